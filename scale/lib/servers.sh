# shellcheck shell=bash
#
# servers.sh - private servers for the tests of scale/, and what is tried on them
#
# Sourced after scripts/common.sh, by a "run" that says what its test needs. What it
# starts ends with it, however it ends, and its folder goes. KEEP_LOG=FOLDER keeps the
# servers' logs.
# shellcheck disable=SC2154,SC2317  # variables of common.sh; "clean_up" is called by a trap

servers=()
child=

# A folder of its own, and the promise to leave nothing behind.
begin()
{
	forget_pg_environment
	umask 022
	work=$(mktemp -d "/tmp/$1.XXXXXX")
	chmod 755 "$work"
	trap clean_up EXIT
	trap 'exit 130' INT TERM
}

clean_up()
{
	local server

	trap '' INT TERM
	[ -z "$child" ] || kill "$child" 2>/dev/null || true
	for server in "${servers[@]}"; do
		[ ! -e "$work/$server/data/postmaster.pid" ] ||
			as_server "$bindir/pg_ctl" -D "$work/$server/data" -s -m immediate -w stop || true
		[ -z "${KEEP_LOG:-}" ] || cp "$work/$server/log" "$KEEP_LOG/$server.log" 2>/dev/null || true
	done
	rm -rf "$work"
}

# Another extension is the distribution's. A PostgreSQL that was built by hand, or is a
# copy of the distribution's, gets the files of the package, if it is of the same
# version. Fails where it cannot be had.
install_server_extension()
{
	local extension=$1 package=postgresql-$pg_major-$1 libraries extensions

	libraries=$("$pg_config" --pkglibdir)
	extensions=$("$pg_config" --sharedir)/extension
	[ ! -e "$extensions/$extension.control" ] || return 0
	if have_apt && refresh_package_list && is_available "$package"; then
		install_packages "$package"
	fi
	if [ ! -e "$extensions/$extension.control" ] && [ -e "/usr/share/postgresql/$pg_major/extension/$extension.control" ]; then
		cp "/usr/lib/postgresql/$pg_major/lib/$extension"*.so "$libraries/"
		cp "/usr/share/postgresql/$pg_major/extension/$extension"* "$extensions/"
	fi
	[ -e "$extensions/$extension.control" ]
}

# The extension, from a copy of the checkout, in $work/tree.
install_ours()
{
	[ "${INSTALLED:-no}" = yes ] || install_extension "$work/tree" >/dev/null || die "could not build and install the extension"
}

# A server in $work/NAME. Its further settings are read from standard input.
start_server()
{
	local server=$1

	servers+=("$server")
	mkdir -m 700 "$work/$server"
	[ "$(id -u)" -ne 0 ] || chown "$server_user:" "$work/$server"
	as_server "$bindir/initdb" -D "$work/$server/data" -U postgres -A trust -E UTF8 --no-locale --no-sync >"$work/initdb.log" 2>&1 ||
		die "initdb failed: $(tail -n 3 "$work/initdb.log")"
	{
		echo "unix_socket_directories = '$work/$server'"
		echo "log_line_prefix = '%m [%p] %q%u@%d '"
		cat
	} | as_server tee -a "$work/$server/data/postgresql.conf" >/dev/null
	as_server "$bindir/pg_ctl" -D "$work/$server/data" -l "$work/$server/log" -s -w start || {
		tail -n 20 "$work/$server/log"
		die "server $server did not start; see the end of its log above"
	}
}

# The test, a Perl program, with its environment; in the background, where a signal
# need not wait for it. Ends the script as it ended.
run_test()
{
	local program=$1 status=0

	shift
	mkdir -m 777 "$work/scratch"
	as_server env "PERL5LIB=$work/tree/t/lib:$work/tree/scale/lib:${program%/*}" "PG_CONFIG=$pg_config" "BINDIR=$bindir" "WORK=$work" \
		"$@" perl "$program" </dev/null &
	child=$!
	wait "$child" || status=$?
	child=
	exit "$status"
}
