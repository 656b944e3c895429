# The official image of PostgreSQL with the extension in it:
#	docker build --build-arg PG_MAJOR=17 -t postgres-idempotency .
ARG PG_MAJOR=18
FROM postgres:$PG_MAJOR
COPY . /usr/src/idempotency
RUN set -eux; \
	tools="gcc libc6-dev make postgresql-server-dev-$PG_MAJOR"; \
	apt-get update; \
	apt-get install -y --no-install-recommends $tools; \
	make -C /usr/src/idempotency with_llvm=no install; \
	apt-get purge -y --auto-remove $tools; \
	rm -rf /usr/src/idempotency /var/lib/apt/lists/*
CMD ["postgres", "-c", "shared_preload_libraries=idempotency"]
