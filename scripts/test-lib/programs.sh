# shellcheck shell=bash
#
# programs.sh - tests that are programs of their own and can be run without this:
# monitoring/, clients/, scale/, model/ and torture/, some of them in short
#
# All of the clients is scripts/test-clients, all of scale/ scripts/test-scale; read
# replicas and failover within one second are TAP tests, t/018 and t/019. What cannot
# be installed here is said, and skipped.
# shellcheck disable=SC2154  # variables of common.sh and test

run_monitoring() { run_program monitoring env PG_CONFIG="$pg_config" "$tree/monitoring/test"; }
run_clients() { run_program clients env PG_CONFIG="$pg_config" INSTALLED=yes "$tree/scripts/test-clients" --short; }
run_scale() { run_program scale env PG_CONFIG="$pg_config" INSTALLED=yes "$tree/scripts/test-scale" --short plproxy; }
run_model() { run_program model "$tree/model/run"; }
run_torture() { run_program torture env PG_CONFIG="$pg_config" INSTALLED=yes "$tree/scripts/torture" --minutes 2; }
