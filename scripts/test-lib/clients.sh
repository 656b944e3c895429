# shellcheck shell=bash
#
# clients.sh - the clients' own tests and the conformance test, in short
#
# All of it is scripts/test-clients. Languages that cannot be installed here say so
# and are skipped.
# shellcheck disable=SC2154  # variables of common.sh and test

run_clients()
{
	local status=0 good=0 wrong=1 title

	say "== clients"
	counting clients
	PG_CONFIG=$pg_config INSTALLED=yes "$tree/scripts/test-clients" --short 2>&1 | tee "$work/clients.out" || status=$?
	read -r good wrong < <(sed -nE 's/^clients: ([0-9]+) passed, ([0-9]+) failed$/\1 \2/p' "$work/clients.out") || wrong=1
	count "$good" "$wrong"
	while IFS= read -r title; do
		failures+=("clients: $title")
	done < <(sed -n 's/^FAILED  *//p' "$work/clients.out")
	[ "$status" -eq 0 ] || [ "$wrong" -gt 0 ] || fail 'clients: the test itself'
}
