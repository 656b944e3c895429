# shellcheck shell=bash
#
# counting.sh - what passed and what failed, per kind of test and in total
#
# "counting KIND" says what is counted from then on.  "check" runs one command;
# kinds whose tests are run by a program of their own add up by "run_program", or by
# "count" and "fail".  "finish" prints the result and ends the script.
# shellcheck disable=SC2154  # variables of test

passed=0
failed=0
failures=()
# What is counted now, all that was counted, and how it went.
kind=
kinds=()
declare -A passed_of failed_of

counting()
{
	kind=$1
	kinds+=("$kind")
	passed_of[$kind]=0
	failed_of[$kind]=0
}

count()
{
	passed=$((passed + $1))
	failed=$((failed + $2))
	passed_of[$kind]=$((passed_of[$kind] + $1))
	failed_of[$kind]=$((failed_of[$kind] + $2))
}

fail()
{
	printf 'FAILED  %s\n' "$1"
	failures+=("$1")
	count 0 1
}

# Is a test of this name wanted? The filter may be several words, one of which is in it.
named()
{
	local word

	for word in $filter; do
		[[ $1 != *"$word"* ]] || return 0
	done
	[ -z "$filter" ]
}

# Nothing to run is a failure: a list must have got lost.
no_test() { fail "$1: there is no test${filter:+ named *$filter*}"; }

# One check: a title and a command, whose output matters only when it fails.
check()
{
	local title=$1

	shift
	if "$@" >"$work/check.log" 2>&1; then
		printf 'ok      %s\n' "$title"
		count 1 0
	else
		fail "$title"
		tail -n 100 "$work/check.log"
	fi
}

# A check without which nothing else makes sense.
require()
{
	local before=$failed

	check "$@"
	[ "$failed" -eq "$before" ] || finish
}

# A program that has tests of its own and says at its end "KIND: N passed, N failed";
# each that failed is a line of "FAILED" or "failed:". 77: it cannot run here, and has
# said why.
run_program()
{
	local status=0 good=0 wrong=1 title

	say "== $1"
	counting "$1"
	"${@:2}" 2>&1 | tee "$work/program.out" || status=$?
	[ "$status" -ne 77 ] || return 0
	read -r good wrong < <(sed -nE "s/^$kind: ([0-9]+) passed, ([0-9]+) failed\$/\\1 \\2/p" "$work/program.out") || wrong=1
	count "$good" "$wrong"
	while IFS= read -r title; do
		failures+=("$kind: $title")
	done < <(sed -nE 's/^(FAILED|failed:) +//p' "$work/program.out")
	[ "$status" -eq 0 ] || [ "$wrong" -gt 0 ] || fail "$kind: the test itself"
}

finish()
{
	echo
	[ "${#failures[@]}" -eq 0 ] || printf 'failed: %s\n' "${failures[@]}"
	for kind in "${kinds[@]}"; do
		echo "$kind: ${passed_of[$kind]} passed, ${failed_of[$kind]} failed"
	done
	echo "$passed passed, $failed failed"
	[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
	exit
}
