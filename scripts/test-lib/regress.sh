# shellcheck shell=bash
#
# regress.sh - regression and isolation tests, and what their programs say
#
# shellcheck disable=SC2154  # variables of common.sh and test

# run_regress regress|isolation: run the Makefile's tests of that kind.
run_regress()
{
	local program tests=() options=() bad=() name status=0
	local out=$work/$1

	counting "$1"
	case $kind in
		regress) program=regress/pg_regress ;;
		isolation) program=isolation/pg_isolation_regress ;;
	esac
	for name in $(list_of "${kind^^}") $(list_of "${kind^^}_CONFIGURED"); do
		! named "$name" || tests+=("$name")
	done
	if [ "${#tests[@]}" -eq 0 ]; then
		no_test "$kind"
		return
	fi
	read -r -a options <<<"$(list_of "${kind^^}_OPTS")"

	say "== $kind"
	mkdir "$out"
	# pg_regress gives up where there is nothing to compare with.
	for name in "${tests[@]}"; do
		[ -e "$tree/expected/$name.out" ] || { mkdir -p "$tree/expected" && : >"$tree/expected/$name.out"; }
	done
	give_to_server "$out"
	(
		cd "$tree"
		as_server "$test_programs/$program" "${options[@]}" \
			--inputdir=. --outputdir="$out" --bindir="$bindir" --dlpath="$("$pg_config" --pkglibdir)" \
			--host="$work/server" --port=5432 --user=postgres "${tests[@]}"
	) 2>&1 | tee "$work/$kind.out" || status=$?

	if [ -n "${RESULTS:-}" ]; then
		mkdir -p "$RESULTS" && cp "$out"/results/*.out "$RESULTS/"
	fi
	count "$(regress_results passed "$work/$kind.out" | wc -l)" 0
	mapfile -t bad < <(regress_results failed "$work/$kind.out")
	if [ "$status" -eq 0 ] && [ "${#bad[@]}" -eq 0 ]; then
		return
	fi
	[ ! -s "$out/regression.diffs" ] || cat "$out/regression.diffs"
	say "== the end of the server's log"
	tail -n 30 "$work/server/log"
	for name in "${bad[@]}"; do
		fail "$kind: $name"
	done
	[ "${#bad[@]}" -gt 0 ] || fail "$kind: $program itself"
}

# The names of the tests that passed, or that failed.  pg_regress says
# "test NAME ... ok" up to 15 and "ok 1 - NAME" from 16 on.
regress_results()
{
	case $1 in
		passed) sed -nE -e 's/^ok +[0-9]+ +[-+] ([^ ]+).*/\1/p' -e 's/^(test)? +([^ ]+) +\.\.\. ok( .*)?$/\2/p' "$2" ;;
		failed) sed -nE -e 's/^not ok +[0-9]+ +[-+] ([^ ]+).*/\1/p' -e 's/^(test)? +([^ ]+) +\.\.\. (FAILED|failed).*/\2/p' "$2" ;;
	esac
}
