# idempotency: PGXS build. "make", "make install", "make installcheck"; all tests
# by scripts/test.

EXTENSION = idempotency
MODULE_big = idempotency
DATA = idempotency--1.0.sql

OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))

# Tests that a stock server cannot run: the settings of t/server.conf are needed.
# "make check-configured" runs them on a server of its own.
REGRESS_CONFIGURED = claim_rival home_grown statistics two_phase
ISOLATION_CONFIGURED = race_prepared
# Regression tests, one file per promise (sql/, expected/); isolation tests, one
# file per race (specs/, expected/).
REGRESS = $(filter-out $(REGRESS_CONFIGURED),$(sort $(basename $(notdir $(wildcard sql/*.sql)))))
ISOLATION = $(filter-out $(ISOLATION_CONFIGURED),$(sort $(basename $(notdir $(wildcard specs/*.spec)))))
TAP_TESTS = 1

PG_CONFIG ?= pg_config
# The version has one home, the control file.
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" idempotency.control)

PG_CPPFLAGS = -DIDEMPOTENCY_VERSION='"$(EXTVERSION)"' $(EXTRA_CPPFLAGS)
# Our sources build without a warning. The server's headers do not, so they
# count as system headers; its flags forbid declarations among statements,
# which we use for loop variables.
PG_CPPFLAGS += -isystem $(shell $(PG_CONFIG) --includedir-server)
PG_CFLAGS = -Wall -Wextra -Wno-declaration-after-statement $(EXTRA_CFLAGS)

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

$(OBJS): $(wildcard src/*.h)

# After "make install", as somebody other than root.
temporary = --temp-instance=tmp_check/configured --temp-config=t/server.conf
check-configured:
	mkdir -p tmp_check
	$(pg_regress_installcheck) $(temporary) $(REGRESS_OPTS) $(REGRESS_CONFIGURED)
	$(pg_isolation_regress_installcheck) $(temporary) $(ISOLATION_OPTS) $(ISOLATION_CONFIGURED)

# The archive for PGXN, from what is committed.
DISTVERSION = $(shell sed -n '/"version":/{s/.*"\([0-9.]*\)".*/\1/p;q;}' META.json)
dist:
	git archive --format=zip --prefix=$(EXTENSION)-$(DISTVERSION)/ -o $(EXTENSION)-$(DISTVERSION).zip HEAD

# "make print-REGRESS" shows a variable; scripts/test reads the lists so.
print-%:
	@echo $($*)

.PHONY: check-configured dist print-%
