# shellcheck shell=bash
#
# prepare.sh - what the torture needs before it begins: programs, file systems, a build
#
# Sourced after scripts/common.sh, by scripts/torture and torture/bites.
# shellcheck disable=SC2154,SC2317  # variables of common.sh; "clean_up" is called by a trap

mounted=()
skipped=
child=
keep=no

clean_up()
{
	local pid mount

	trap '' INT TERM
	if [ -n "$child" ]; then
		kill "$child" 2>/dev/null || true
		wait "$child" 2>/dev/null || true
	fi
	# Whatever works below the folder, or was started from there, is ours.
	for pid in $(processes_below); do
		kill -KILL "$pid" 2>/dev/null || true
	done
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		[ -n "$(processes_below)" ] || break
		sleep 0.2
	done
	if [ "$keep" = yes ]; then
		for mount in "${mounted[@]}"; do
			rm -f "$mount/ballast"
			cp -a "$mount" "$mount.kept" 2>/dev/null || true
		done
	fi
	for mount in "${mounted[@]}"; do
		umount -l "$mount" 2>/dev/null || true
	done
	if [ "$keep" = yes ]; then
		rm -f "$work/shared"
		say "The folder is kept: $work"
	else
		rm -rf "$work"
	fi
}

processes_below()
{
	local directory

	for directory in /proc/[0-9]*; do
		case $(readlink "$directory/cwd" 2>/dev/null):$(readlink "$directory/exe" 2>/dev/null) in
			"$work"/* | *:"$work"/*) say "${directory#/proc/}" ;;
			*:*/pgbouncer*) ! grep -qsF "$work/pooler" "$directory/cmdline" || say "${directory#/proc/}" ;;
		esac
	done
}

prepare()
{
	local server

	forget_pg_environment
	umask 022
	work=$(mktemp -d /tmp/torture.XXXXXX)
	chmod 755 "$work"
	trap clean_up EXIT
	trap 'exit 130' INT TERM

	choose_postgresql
	install_build_tools
	! have_apt || install_packages perl libffi-platypus-perl libpq-dev pgbouncer
	choose_server_user
	pgbouncer=$(PATH=$PATH:/usr/sbin command -v pgbouncer) || die 'pgbouncer is missing; install it and run this again'
	copy_tree "$work/tree"
	[ "${INSTALLED:-no}" = yes ] || install_extension "$work/tree" >/dev/null || die "could not build and install the extension"
	[ -e "$("$pg_config" --sharedir)/extension/amcheck.control" ] || die "the extension amcheck is missing; install PostgreSQL's contrib package"
	gcc -O2 -Wall -I "$("$pg_config" --includedir)" -o "$work/client" "$work"/tree/torture/client/*.c -L "$("$pg_config" --libdir)" -lpq
	gcc -O2 -Wall -shared -fPIC -o "$work/clock.so" "$work/tree/torture/clock.c"

	for server in a b; do
		mkdir -p "$work/$server/data" "$work/$server/wal"
		mount_small "$work/$server/data" 1500m
		mount_small "$work/$server/wal" 300m
	done
	[ "$(id -u)" -ne 0 ] || chown -R "$server_user:" "$work"
}

# A small file system, so that it can be full.
mount_small()
{
	if [ "$(id -u)" -ne 0 ]; then
		skipped=$'data-full=needs root to mount a small file system\nwal-full=needs root to mount a small file system'
	elif mount -t tmpfs -o "size=$2,mode=755" torture "$1" 2>"$work/mount"; then
		mounted+=("$1")
	else
		skipped=$'data-full=could not mount tmpfs\nwal-full=could not mount tmpfs'
	fi
}

# As the server's user, in the background, where a signal need not wait for it.
run_torture()
{
	local status=0

	as_server env "PERL5LIB=$work/tree/torture/lib:$work/tree/t/lib" "PG_CONFIG=$pg_config" "TORTURE_BINDIR=$bindir" \
		"TORTURE_WORK=$work" "TORTURE_PGBOUNCER=$pgbouncer" "TORTURE_SKIPPED=$skipped" \
		perl "$work/tree/torture/main.pl" "$@" </dev/null &
	child=$!
	wait "$child" || status=$?
	child=
	[ "$status" -ne 1 ] || keep=${KEEP:-yes}
	return "$status"
}
