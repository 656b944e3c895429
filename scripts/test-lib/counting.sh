# shellcheck shell=bash
#
# counting.sh - what passed and what failed, per kind of test and in total
#
# "counting KIND" says what is counted from then on.  "check" runs one command;
# kinds whose tests are run by a program of their own add up by "count" and
# "fail".  "finish" prints the result and ends the script.
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
