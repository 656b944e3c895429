# shellcheck shell=bash
#
# installcheck.sh - "make installcheck", as packagers run it
#
# On a server as initdb leaves it, with one of the TAP tests.  In a copy of the
# tree, since TAP tests may run beside it.
# shellcheck disable=SC2154,SC2317  # variables of common.sh and test; "check" calls functions by name

run_installcheck()
{
	local here=$work/stock

	counting installcheck
	mkdir "$here"
	cp -a "$tree" "$here/tree"
	give_to_server "$here"
	make_cluster "$here/data"
	start_cluster "$here/data" "$here/log" -o "-c listen_addresses= -k $here"
	check 'make installcheck' make_as_server installcheck PGHOST="$here" PROVE_TESTS=t/011_one_write.pl
	check 'make check-configured' make_as_server check-configured
}

make_as_server()
{
	as_server env PGUSER=postgres make --no-print-directory -C "$work/stock/tree" PG_CONFIG="$pg_config" "$@" && return
	find "$work/stock/tree" -name regression.diffs -exec cat {} +
	return 1
}
