# shellcheck shell=bash
#
# common.sh - what scripts/* and bench/run share: finding a PostgreSQL, installing
# what is missing, and running servers as somebody who is not root
#
# Sourced with "root" set to the folder of the checkout, and "work" to a
# temporary folder before anything is installed.
# shellcheck disable=SC2154

supported_majors='19 18 17 16 15'

say() { printf '%s\n' "$*"; }

die()
{
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# Settings of psql, the server and make in the caller's environment are not
# meant for the private servers and builds of these scripts.
forget_pg_environment()
{
	local name

	for name in "${!PG@}"; do
		[ "$name" = PG_CONFIG ] || unset "$name"
	done
	unset MAKEFLAGS MFLAGS MAKELEVEL
	export LC_ALL=C.UTF-8
}

# Run a command with the right to install.
as_root()
{
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		say "Installing needs root: run this script as root, or install sudo" >&2
		return 1
	fi
}

# ---- packages ----------------------------------------------------------------

have_apt() { command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; }

is_installed()
{
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Set pg_config and pg_major: PG_CONFIG where given, or else the newest server
# that is installed, or else the newest that the distribution offers (then
# pg_config does not exist yet, and install_packages makes it).
choose_postgresql()
{
	local major

	if [ -n "${PG_CONFIG:-}" ]; then
		pg_config=$(command -v "$PG_CONFIG") || die "PG_CONFIG says '$PG_CONFIG', but there is no such program"
		[[ $pg_config == /* ]] || pg_config=$PWD/$pg_config
		pg_major=$("$pg_config" --version 2>/dev/null | sed -nE '1s/^PostgreSQL ([0-9]+).*/\1/p')
		[ -n "$pg_major" ] || die "PG_CONFIG says '$PG_CONFIG', but that is no pg_config"
		[[ " $supported_majors " == *" $pg_major "* ]] ||
			die "$pg_config is of PostgreSQL $pg_major; this extension needs 15 to 19"
		return
	fi
	for major in $supported_majors; do
		if [ -x "/usr/lib/postgresql/$major/bin/postgres" ]; then
			pg_major=$major
			pg_config=/usr/lib/postgresql/$major/bin/pg_config
			return
		fi
	done
	have_apt ||
		die "found no PostgreSQL 15 to 19; install one with its headers and say PG_CONFIG=/path/to/pg_config"
	refresh_package_list
	for major in $supported_majors; do
		if is_available "postgresql-server-dev-$major"; then
			pg_major=$major
			pg_config=/usr/lib/postgresql/$major/bin/pg_config
			return
		fi
	done
	die "this distribution offers no PostgreSQL 15 to 19; install one with its headers and say PG_CONFIG=/path/to/pg_config"
}

package_list_is_fresh=no

refresh_package_list()
{
	[ "$package_list_is_fresh" = no ] || return 0
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 update ||
		die "apt-get update failed; see above, then run this again"
	package_list_is_fresh=yes
}

is_available() { [ -n "$(apt-cache madison "$1" 2>/dev/null)" ]; }

# Install those of the packages that are missing.  Nothing that gets installed
# on the way starts a service or makes a database cluster: these scripts only
# use servers of their own.
install_packages()
{
	local package missing=() log

	for package in "$@"; do
		is_installed "$package" || missing+=("$package")
	done
	[ "${#missing[@]}" -gt 0 ] || return 0

	say "Installing ${missing[*]}"
	refresh_package_list
	log=$(mktemp)
	# shellcheck disable=SC2016  # expanded by the shell that runs as root
	as_root env DEBIAN_FRONTEND=noninteractive bash -c '
		set -euo pipefail
		policy=/usr/sbin/policy-rc.d
		cluster=/etc/postgresql-common/createcluster.d/idempotency-scripts.conf
		made=()
		trap '\''[ "${#made[@]}" -eq 0 ] || rm -f "${made[@]}"'\'' EXIT
		trap "exit 130" INT TERM
		if [ ! -e "$policy" ]; then
			made+=("$policy")
			printf "#!/bin/sh\nexit 101\n" >"$policy"
			chmod 755 "$policy"
		fi
		mkdir -p "${cluster%/*}"
		made+=("$cluster")
		echo "create_main_cluster = false" >"$cluster"
		apt-get -qq -y -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 \
			install --no-install-recommends "$@"
	' install "${missing[@]}" >"$log" 2>&1 || {
		tail -n 20 "$log" >&2
		rm -f "$log"
		die "could not install the packages; the lines above say why"
	}
	rm -f "$log"
}

# Is it the distribution's PostgreSQL, rather than one built by hand?
is_packaged() { [[ $pg_config == /usr/lib/postgresql/* ]]; }

# Install what building needs, and check that it is there.  Sets bindir, pgxs
# and includes.
install_build_tools()
{
	if have_apt; then
		if is_packaged; then
			install_packages "postgresql-$pg_major" "postgresql-server-dev-$pg_major" gcc libc6-dev make
		else
			install_packages gcc libc6-dev make
		fi
	fi
	command -v make >/dev/null || die "make is missing; install it and run this again"
	[ -x "$pg_config" ] || die "$pg_config is missing; install PostgreSQL's development package and run this again"
	includes=$("$pg_config" --includedir-server)
	pgxs=$("$pg_config" --pgxs)
	if [ ! -f "$pgxs" ] || [ ! -f "$includes/postgres.h" ]; then
		die "PostgreSQL's headers are missing; install its development package (postgresql-server-dev-$pg_major on Debian) and run this again"
	fi
	bindir=$("$pg_config" --bindir)
	if [ ! -x "$bindir/initdb" ] || [ ! -x "$bindir/postgres" ]; then
		die "there is no server in $bindir; install it (postgresql-$pg_major on Debian) and run this again"
	fi
}

# ---- building ----------------------------------------------------------------

# Copy the checkout, uncommitted files included, to a folder where building
# leaves nothing behind in the checkout.
copy_tree()
{
	local to=$1

	mkdir -p "$to"
	if command -v git >/dev/null && git -c safe.directory='*' -C "$root" rev-parse --is-inside-work-tree >/dev/null 2>&1; then
		(
			cd "$root" || exit
			git -c safe.directory='*' ls-files -z -co --exclude-standard -- . ':!.quickstart' |
				while IFS= read -r -d '' file; do
					[ ! -e "$file" ] || printf '%s\0' "$file"
				done | tar -c --no-recursion --null -T - -f -
		) | tar -x --no-same-owner -C "$to" -f -
	else
		tar -c --exclude=./.git --exclude=./.quickstart -C "$root" -f - . | tar -x --no-same-owner -C "$to" -f -
	fi
}

install_extension()
{
	local from=$1
	local do=as_root

	if [ -w "$("$pg_config" --pkglibdir)" ] && [ -w "$("$pg_config" --sharedir)/extension" ]; then
		do=
	fi
	$do make -s -C "$from" PG_CONFIG="$pg_config" install
}

# ---- servers -----------------------------------------------------------------

# Servers never run as root: root lends them to the user that the PostgreSQL
# packages make, everybody else runs them as themselves.
choose_server_user()
{
	if [ "$(id -u)" -ne 0 ]; then
		server_user=$(id -un)
	elif id postgres >/dev/null 2>&1; then
		server_user=postgres
	else
		die "there is no user 'postgres' to run the server as; run this as a user other than root"
	fi
}

as_server()
{
	if [ "$(id -u)" -eq 0 ]; then
		setpriv --reuid="$server_user" --regid="$(id -g "$server_user")" --init-groups \
			env HOME=/nonexistent USER="$server_user" LOGNAME="$server_user" "$@"
	else
		"$@"
	fi
}

# The path of a Unix socket has at most 107 bytes.
socket_fits() { [ "$(printf '%s' "$1/.s.PGSQL.5432" | LC_ALL=C wc -c)" -le 107 ]; }
