# shellcheck shell=bash
#
# examples.sh - examples/deliveries, as the quickstart plays it; those of the clients
# are run by a TAP test
#
# shellcheck disable=SC2154,SC2317  # variables of common.sh and test; "check" calls functions by name

run_examples()
{
	counting examples
	check 'examples/deliveries' run_deliveries
}

run_deliveries()
(
	export PGHOST=$work/server PGPORT=5432 PGUSER=postgres PSQL=$bindir/psql

	"$PSQL" -Xq -d postgres -c 'CREATE DATABASE deliveries' &&
		"$PSQL" -Xq -d deliveries -c 'CREATE EXTENSION idempotency' &&
		PGDATABASE=deliveries "$tree/examples/deliveries/replay"
)
