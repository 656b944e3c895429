# shellcheck shell=bash
#
# monitoring.sh - monitoring/, with the exporter and Prometheus of the distribution
#
# The test is a program of its own, which can be run without this; here its checks
# are counted among the others. Where the two cannot be had, it says so and is skipped.
# shellcheck disable=SC2154  # variables of common.sh and test

run_monitoring()
{
	local status=0 good=0 wrong=1 title

	say "== monitoring"
	counting monitoring
	PG_CONFIG=$pg_config "$tree/monitoring/test" 2>&1 | tee "$work/monitoring.out" || status=$?
	[ "$status" -ne 77 ] || return 0
	read -r good wrong < <(sed -nE 's/^monitoring: ([0-9]+) passed, ([0-9]+) failed$/\1 \2/p' "$work/monitoring.out") ||
		wrong=1
	count "$good" "$wrong"
	while IFS= read -r title; do
		failures+=("monitoring: $title")
	done < <(sed -n 's/^failed: //p' "$work/monitoring.out")
	[ "$status" -eq 0 ] || [ "$wrong" -gt 0 ] || fail 'monitoring: the test itself'
}
