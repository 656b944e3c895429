# shellcheck shell=bash
#
# server.sh - private servers below the work folder
#
# They run as somebody other than root, listen on a socket beside their data, and
# are killed at the end, however that comes. TEMP_CONFIG names a file of further
# settings, which PostgreSQL's own library for TAP tests reads as well; KEEP_LOG a
# folder that keeps the servers' logs. builds/ uses both.
# shellcheck disable=SC2154  # variables of common.sh and test

give_to_server() { [ "$(id -u)" -ne 0 ] || chown -R "$server_user:" "$@"; }

# make_cluster DATA [OPTION]...
make_cluster()
{
	as_server "$bindir/initdb" -D "$1" -U postgres -A trust --no-sync "${@:2}" >"$work/initdb.log" 2>&1 || {
		cat "$work/initdb.log"
		die "initdb failed; see above"
	}
}

# start_cluster DATA LOG [OPTION]...
start_cluster()
{
	as_server "$bindir/pg_ctl" -D "$1" -l "$2" -s -w "${@:3}" start || {
		tail -n 30 "$2"
		die "a server for the tests did not start; see the end of its log above"
	}
}

# The server of the regression tests, the isolation tests and the examples.
start_server()
{
	local data=$work/server/data quoted="'${TEMP_CONFIG:-}'"

	mkdir -m 700 "$work/server"
	give_to_server "$work/server"
	make_cluster "$data" -E UTF8 --no-locale
	as_server tee -a "$data/postgresql.conf" >/dev/null <<-EOC
		include '$tree/t/server.conf'
		listen_addresses = ''
		unix_socket_directories = '$work/server'
		fsync = off
		log_line_prefix = '%m [%p] %q%a '
		${TEMP_CONFIG:+include $quoted}
	EOC
	start_cluster "$data" "$work/server/log"
}

# Stop every server that lives below the work folder.  A pid file may be what
# a killed server left, so its process must also be at home there.
stop_servers()
{
	local pid_file pid stopping=() i

	while IFS= read -r pid_file; do
		pid=$(head -n 1 "$pid_file" 2>/dev/null) || continue
		if [ "$(readlink "/proc/$pid/cwd" 2>/dev/null)" = "${pid_file%/*}" ]; then
			kill -QUIT "$pid" 2>/dev/null || true
			stopping+=("$pid")
		fi
	done < <(find "$work" -name postmaster.pid 2>/dev/null)
	for pid in "${stopping[@]}"; do
		for ((i = 0; i < 100; i++)); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.1
		done
	done
	[ -z "${KEEP_LOG:-}" ] || find "$work/server/log" "$work/tap/tmp_check/log" -type f -exec cp {} "$KEEP_LOG" ';' 2>/dev/null || true
}
