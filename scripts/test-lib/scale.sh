# shellcheck shell=bash
#
# scale.sh - shards by PL/Proxy, in short: what scripts/test has time for of scale/
#
# All of it is scripts/test-scale; read replicas and failover within one second are
# TAP tests, t/018 and t/019. Where PL/Proxy cannot be had, that is said and skipped.
# shellcheck disable=SC2154  # variables of common.sh and test

run_scale()
{
	local status=0 good=0 wrong=1 title

	say "== scale"
	counting scale
	PG_CONFIG=$pg_config INSTALLED=yes "$tree/scripts/test-scale" --short plproxy 2>&1 | tee "$work/scale.out" || status=$?
	read -r good wrong < <(sed -nE 's/^scale: ([0-9]+) passed, ([0-9]+) failed$/\1 \2/p' "$work/scale.out") || wrong=1
	count "$good" "$wrong"
	while IFS= read -r title; do
		failures+=("scale: $title")
	done < <(sed -n 's/^FAILED  *//p' "$work/scale.out")
	[ "$status" -eq 0 ] || [ "$wrong" -gt 0 ] || fail 'scale: the test itself'
}
