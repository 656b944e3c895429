# shellcheck shell=bash
#
# cluster.sh - a private server with the extension, and one run of the conformance
# test against one service on it
#
# Sourced after scripts/common.sh, with "root", "here" and "work" set.
# shellcheck disable=SC2154,SC2094  # variables of the caller; service.log is only appended to

started=()
databases=0

# A server that runs as somebody other than root. It listens on a socket below the
# work folder and, for drivers that know no sockets, on this machine's own address.
# Exports how it is reached.
start_private_server()
{
	local data=$work/server/data port

	if [ "${INSTALLED:-no}" != yes ]; then
		copy_tree "$work/tree"
		install_extension "$work/tree" >/dev/null || die "could not build and install the extension"
	fi
	mkdir -m 700 "$work/server"
	[ "$(id -u)" -ne 0 ] || chown "$server_user:" "$work/server"
	as_server "$bindir/initdb" -D "$data" -U postgres -A trust -E UTF8 --no-locale --no-sync >"$work/initdb.log" 2>&1 ||
		die "initdb failed: $(tail -n 3 "$work/initdb.log")"
	port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
	as_server tee -a "$data/postgresql.conf" >/dev/null <<-EOC
		shared_preload_libraries = 'idempotency'
		listen_addresses = '127.0.0.1'
		port = $port
		unix_socket_directories = '$work/server'
		fsync = off
		log_line_prefix = '%m [%p] %q%u@%d '
	EOC
	as_server "$bindir/pg_ctl" -D "$data" -l "$work/server/log" -s -w start || {
		tail -n 20 "$work/server/log"
		die "the server did not start; see the end of its log above"
	}
	export PGHOST=$work/server PGPORT=$port PGUSER=postgres PSQL=$bindir/psql SERVER_USER=$server_user
}

stop_all()
{
	local pid

	for pid in "${started[@]}"; do
		kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
	done
	[ ! -e "$work/server/data/postmaster.pid" ] ||
		as_server "$bindir/pg_ctl" -D "$work/server/data" -s -m immediate -w stop || true
}

# conform NAME VIA COMMAND... [-- OPTION...]: run all cases, or those that the
# options choose, against a service in a database of its own. Prints what
# "conformance" prints, and appends its JSON line to $work/results. Returns 1 if a
# case failed, 2 if the service did not start.
conform()
{
	local name=$1 via=$2 command=() pid status=0 output options=() said url host

	shift 2
	while [ $# -gt 0 ] && [ "$1" != -- ]; do
		command+=("$1")
		shift
	done
	[ $# -eq 0 ] || shift
	[ "$via" = direct ] || options=(--pgbouncer)
	databases=$((databases + 1))
	said=$work/host.$databases
	output=$work/output.$databases
	"$bindir/createdb" "conformance_$databases" || die "could not make a database"
	PGDATABASE=conformance_$databases "$here/host" "${options[@]}" --log "$work/service.log" -- "${command[@]}" \
		>"$said" 2>>"$work/service.log" &
	pid=$!
	started+=("$pid")
	until [ -s "$said" ]; do
		if ! kill -0 "$pid" 2>/dev/null; then
			tail -n 20 "$work/service.log"
			say "The service $name, $via, did not start; see the end of its log above"
			return 2
		fi
		sleep 0.1
	done
	host=$(sed 's/.*"host": "\([^"]*\)".*/\1/' "$said")
	url=$(sed 's/.*"service": "\([^"]*\)".*/\1/' "$said")
	"$here/conformance" --url "$url" --host "$host" --name "$name" --via "$via" "$@" >"$output" &
	started+=("$!") # not in the foreground, where a signal would have to wait for it
	wait "$!" || status=$?
	kill "$pid"
	wait "$pid" || true
	grep -v '^{' "$output" || true
	grep '^{' "$output" >>"$work/results" || status=1
	return "$status"
}
