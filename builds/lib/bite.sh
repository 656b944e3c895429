# shellcheck shell=bash
#
# bite.sh - does the build notice faults?
#
# Sourced after runs.sh. Puts the faults of faults.c into a copy of the library, and a
# call of the one that a setting names at the beginning of whatever has an identity. For
# each of them there has to be a report, or the build proves nothing.
# shellcheck disable=SC2034,SC2154,SC2317  # variables of common.sh and runs.sh, and for server.sh

. "$root/scripts/test-lib/server.sh"

noticed=()

# A server with the copy, in $work/server, with these settings. Again: with other settings.
bite_server()
{
	tree=$work/bitten
	if [ ! -e "$tree" ]; then
		say "Building a library with faults"
		copy_tree "$tree"
		cp "$here/../lib/faults.c" "$tree/src/"
		sed -i '/^idem_identity_argument(/{n;s/^{/{\n\textern void idem_fault(void);\n\n\tidem_fault();/}' "$tree/src/arguments.c"
		grep -q 'idem_fault();' "$tree/src/arguments.c" || die "found no place for a fault in src/arguments.c"
		{
			make -s -j "$(nproc)" -C "$tree" PG_CONFIG="$pg_config" COPT=-w && install_extension "$tree"
		} >"$work/build.log" 2>&1 || {
			tail -n 30 "$work/build.log"
			die "the library with faults was not built; see above"
		}
	fi
	stop_servers
	rm -rf "$work/server"
	settings "$@"
	TEMP_CONFIG=$work/settings start_server
	ask 'CREATE EXTENSION idempotency'
}

# In a connection of its own. A server that has just crashed is waited for.
ask()
{
	local i

	for ((i = 0; i < 600; i++)); do
		"$bindir/pg_isready" -q -h "$work/server" -U postgres && break
		sleep 0.1
	done
	as_server "$bindir/psql" -X -q -h "$work/server" -U postgres -d postgres -c "$1" 2>&1
}

# bite FAULT PATTERN: there has to be a line of the log or an error that matches. Without the fault there is none, or any fault would be noticed.
bite()
{
	local fault=$1 pattern=$2 seen

	for name in none "$fault"; do
		as_server truncate -s 0 "$work/server/log"
		ask "SET fault.name = '$name'; SELECT * FROM idempotency.lookup('a', 'b', 'c')" >"$work/answer" || true
		seen=$(grep -hoE "$pattern" "$work/server/log" "$work/answer" | head -n 1) || true
		[ "$name" = "$fault" ] || [ -z "$seen" ] || {
			fail "without a fault there is no report"
			return
		}
	done
	noticed+=("$(printf '%-26s%s' "$fault" "${seen:-NOBODY}")")
	if [ -n "$seen" ]; then
		ok "noticed: $fault"
	else
		fail "noticed: $fault"
		cat "$work/answer"
		tail -n 5 "$work/server/log"
	fi
}

bite_table()
{
	echo
	printf '%-26s%s\n' fault 'noticed by'
	printf '%s\n' "${noticed[@]}"
}
