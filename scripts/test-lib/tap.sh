# shellcheck shell=bash
#
# tap.sh - TAP tests, which have servers of their own
#
# They take longest, so in a run of everything they run beside the other tests,
# and are shown after them.
# shellcheck disable=SC2154  # variables of common.sh and test

# The process group of the running tests, which can be stopped as one.
tap_job=

start_tap()
{
	if [ -z "$(tap_tests)" ]; then
		counting tap
		no_test tap
		return
	fi
	mkdir "$work/tap" "$work/t"
	give_to_server "$work/tap" "$work/t"
	set -m
	if [ "$part" = all ]; then
		run_tap >"$work/tap.out" 2>&1 &
	else
		run_tap &
	fi
	tap_job=$!
	set +m
}

tap_tests()
{
	local file

	for file in "$tree"/t/*.pl; do
		[ -e "$file" ] || continue
		! named "${file##*/}" || printf '%s\n' "t/${file##*/}"
	done
}

run_tap()
{
	local tests=() logs=$work/tap/tmp_check/log name

	say "== tap"
	mapfile -t tests < <(tap_tests)
	(
		cd "$tree"
		as_server env PATH="$bindir:$PATH" TMPDIR="$work/t" \
			PG_CONFIG="$pg_config" PG_REGRESS="$test_programs/regress/pg_regress" \
			TESTDIR="$work/tap" TESTDATADIR="$work/tap/tmp_check" TESTLOGDIR="$logs" \
			PG_TEST_PORT_DIR="$work/tap/portlock" \
			perl "$tree/scripts/test-lib/tap_harness.pl" 2 "$work/tap/results" "$test_programs/perl" "${tests[@]}"
	) 2>&1 && return
	if [ -s "$work/tap/results.failed" ]; then
		while read -r name; do
			say "== the end of $name's log"
			tail -n 60 "$logs/regress_log_$name" || true
		done <"$work/tap/results.failed"
	fi
	return 1
}

# Wait for the tests that were started, and count.
finish_tap()
{
	local good=0 wrong=1 name

	[ -n "$tap_job" ] || return 0
	wait "$tap_job" || true
	tap_job=
	[ ! -e "$work/tap.out" ] || cat "$work/tap.out"
	counting tap
	[ ! -s "$work/tap/results" ] || read -r good wrong <"$work/tap/results"
	count "$good" "$wrong"
	if [ -s "$work/tap/results.failed" ]; then
		while read -r name; do
			failures+=("tap: $name")
		done <"$work/tap/results.failed"
	elif [ "$wrong" -gt 0 ]; then
		failures+=("tap: the harness itself")
	fi
}
