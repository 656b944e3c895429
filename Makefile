# idempotency: PGXS build. "make", "make install"; tests by scripts/test.

EXTENSION = idempotency
MODULE_big = idempotency
DATA = idempotency--1.0.sql

OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))

# Regression tests, one file per promise (sql/, expected/).
REGRESS = $(sort $(basename $(notdir $(wildcard sql/*.sql))))
# Isolation tests, one file per race (specs/, expected/).
ISOLATION = $(sort $(basename $(notdir $(wildcard specs/*.spec))))
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

$(OBJS): src/idempotency.h src/compat.h

# "make print-REGRESS" shows a variable; scripts/test reads the lists so.
print-%:
	@echo $($*)

.PHONY: print-%
