# shellcheck shell=bash
#
# runs.sh - running tests of the suite on a build that looks closer
#
# Sourced after scripts/common.sh by a builds/*/run. Counts the tests, and what whoever
# looks closer reports in the servers' logs: nothing may come.
# shellcheck disable=SC2034,SC2154,SC2317  # variables of common.sh and server.sh; "clean_up" is called by a trap

passed=0
failed=0
failures=()
child=

# A folder of its own, and the promise to leave nothing behind.
begin()
{
	forget_pg_environment
	umask 022
	part=$1
	work=$(mktemp -d "/tmp/builds-$1.XXXXXX")
	chmod 755 "$work"
	cache=${CACHE:-$work/cache}
	trap clean_up EXIT
	trap 'exit 130' INT TERM
}

clean_up()
{
	trap '' INT TERM
	if [ -n "$child" ]; then
		# All that it started, or it would only be stopped when that ends.
		kill -- "-$child" 2>/dev/null || true
		wait "$child" || true
	fi
	[ "$(type -t stop_servers)" != function ] || stop_servers
	rm -rf "$work"
}

skip()
{
	say "skipped: $*"
	exit 77
}

ok()
{
	printf 'ok      %s\n' "$1"
	passed=$((passed + ${2:-1}))
}

fail()
{
	printf 'FAILED  %s\n' "$1"
	failures+=("$1")
	failed=$((failed + ${2:-1}))
}

# ---- tests -------------------------------------------------------------------

# Settings for the servers of the tests that follow, one a line, beside those that this
# version of PostgreSQL needs in order to look closer.
settings()
{
	{
		tree_settings
		[ $# -eq 0 ] || printf '%s\n' "$@"
	} >"$work/settings"
}

# What was macros before.
tree_settings()
{
	[ "$pg_major" -lt 18 ] ||
		printf '%s = on\n' debug_copy_parse_plan_trees debug_write_read_parse_plan_trees debug_raw_expression_coverage_test
}

# The name of the setting that makes everything run in parallel workers that can.
parallel_setting()
{
	if [ "$pg_major" -lt 16 ]; then
		echo force_parallel_mode
	else
		echo debug_parallel_query
	fi
}

# suite regress|isolation|tap [NAME...]: as scripts/test runs it. Leaves what
# it printed in $work/test.out and the servers' logs in $work/logs, and returns how it ended.
suite()
{
	local status=0

	rm -rf "$work/logs"
	mkdir "$work/logs"
	set -m
	env PG_CONFIG="$pg_config" TEMP_CONFIG="$work/settings" KEEP_LOG="$work/logs" \
		"$root/scripts/test" "$1" "${*:2}" >"$work/test.out" 2>&1 </dev/null &
	child=$!
	set +m
	wait "$child" || status=$?
	child=
	return "$status"
}

# tests TITLE regress|isolation|tap [NAME...]
tests()
{
	local title=$1 kind=$2 status=0 good wrong started=$SECONDS

	shift
	suite "$@" || status=$?
	read -r good wrong < <(sed -nE "s/^$kind: ([0-9]+) passed, ([0-9]+) failed\$/\1 \2/p" "$work/test.out") || {
		good=0
		wrong=0
	}
	[ "$good" -eq 0 ] || ok "$title: $good passed, in $((SECONDS - started)) s" "$good"
	[ "$wrong" -eq 0 ] || fail "$title: $(sed -nE 's/^failed: //p' "$work/test.out" | paste -sd ' ')" "$wrong"
	if [ "$status" -ne 0 ] || [ "$good" -eq 0 ]; then
		[ "$wrong" -gt 0 ] || fail "$title: scripts/test itself"
		tail -n "${LINES_SHOWN:-60}" "$work/test.out"
	fi
	look_into_logs "$title"
}

# What the server says where it found something wrong, and only then; a part adds to it
# what else there may be.
trouble='TRAP: |PANIC: |detected write past chunk|problem in (alloc|slab|generation)|bad (chunk|header|size)'
trouble+='|(reference|refcount) leak|resource was not closed|terminated by signal (4|6|7|8|11):'

look_into_logs()
{
	local number

	[ -n "$(find "$work/logs" -type f -size +0)" ] || {
		fail "$1: no server's log was kept"
		return
	}
	number=$(cat "$work/logs"/* | grep -cE "$trouble") || true
	if [ "$number" -eq 0 ]; then
		ok "$1: 0 reports"
	else
		fail "$1: $number reports" "$number"
		grep -rhE -A 25 "$trouble" "$work/logs" | head -n 150
	fi
}

# ---- a server that somebody watches ------------------------------------------

# watched_server: a copy of the server, whose program "postgres" is the shell script that
# is read from standard input; $real stands there for the program itself. Sets pg_config.
watched_server()
{
	local prefix=${pg_config%/bin/pg_config}

	cp -a "$prefix" "$work/pg"
	bindir=$work/pg/bin
	pg_config=$bindir/pg_config
	mv "$bindir/postgres" "$bindir/postgres.real"
	{
		printf '#!/bin/bash\nreal=%q\n' "$bindir/postgres.real"
		cat
	} >"$bindir/postgres"
	chmod 755 "$bindir/postgres"
}

# ---- the end -----------------------------------------------------------------

finish()
{
	echo
	[ ${#failures[@]} -eq 0 ] || printf 'failed: %s\n' "${failures[@]}"
	say "$part: $passed passed, $failed failed"
	say "$passed passed, $failed failed"
	[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
	exit
}
