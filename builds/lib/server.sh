# shellcheck shell=bash
#
# server.sh - a PostgreSQL built from the distribution's sources that looks closer
#
# One build serves all parts. It has assertions, which also check memory for writes
# past an end and fill what was freed; it gives back cached relations and catalog rows
# at once, so that whoever goes on using one reads garbage; it copies every parse tree
# and plan, writes it as text and reads it again. And it says of each piece of memory
# whether it may be used: to valgrind, and by poison/valgrind/memcheck.h to
# AddressSanitizer, which otherwise see only what malloc gave.
# shellcheck disable=SC2034,SC2154  # variables of common.sh, of runs.sh and for them

# Until PostgreSQL 17 these are decided when it is compiled; later ones have settings,
# see tree_settings.
server_macros='-DUSE_VALGRIND -DRELCACHE_FORCE_RELEASE -DCATCACHE_FORCE_RELEASE
	-DCOPY_PARSE_PLAN_TREES -DWRITE_READ_PARSE_PLAN_TREES -DRAW_EXPRESSION_COVERAGE_TEST'

# Set pg_config to that of the server, which is built where CACHE has none yet, and
# suppressions to valgrind's list. Ends the script with 77 where there are no sources.
use_closer_server()
{
	local prefix what

	choose_postgresql
	install_build_tools
	choose_server_user
	have_apt || skip 'the sources of PostgreSQL come from the distribution, by apt-get, which is not here'
	install_packages valgrind
	prefix=$cache/postgresql-$pg_major
	# Another recipe needs another build.
	what=$(cat "$here"/../lib/server.sh "$here"/../lib/poison/valgrind/memcheck.h | cksum)
	if [ "$(cat "$prefix/built" 2>/dev/null)" != "$what" ]; then
		rm -rf "$prefix"
		mkdir -p "$prefix"
		chmod 755 "$cache" "$prefix"
		fetch_source "$work/source"
		build_server "$work/source" "$prefix"
		rm -rf "$work/source"
		printf '%s\n' "$what" >"$prefix/built"
	fi
	suppressions=$prefix/valgrind.supp
	pg_config=$prefix/bin/pg_config
	bindir=$prefix/bin
	export PG_CONFIG=$pg_config
	settings
	say "The server: $("$prefix/bin/postgres" --version), built with assertions"
}

# What the machine's own apt is set up to use, but sources instead of packages: in a
# folder of ours, so that the machine stays as it is.
fetch_source()
{
	local to=$1 apt=$work/apt list options version

	say "Fetching the sources of PostgreSQL $pg_major"
	install_packages dpkg-dev patch xz-utils bzip2
	mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/parts"
	for list in /etc/apt/sources.list /etc/apt/sources.list.d/*; do
		case $list in
			*.sources) sed -E 's/^Types:.*/Types: deb-src/' "$list" ;;
			*.list) [ ! -e "$list" ] || sed -nE 's/^deb(-src)?[[:space:]]/deb-src /p' "$list" | sort -u ;;
		esac >"$apt/parts/${list##*/}"
	done
	rm -f "$apt/parts/*"
	options=(-qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$apt/parts" -o "Dir::State::lists=$apt/lists"
		-o "Dir::Cache=$apt/cache" -o APT::Sandbox::User= -o Acquire::Languages=none)
	# A source of packages that has no sources is no reason to stop.
	apt-get "${options[@]}" update >"$work/apt.log" 2>&1 || true
	# The newest that can be had: a mirror may list what it does not keep.
	apt-cache "${options[@]}" showsrc --only-source "postgresql-$pg_major" | sed -nE 's/^Version: //p' | sort -rVu >"$apt/versions"
	while read -r version; do
		(cd "$apt" && apt-get "${options[@]}" --download-only source "postgresql-$pg_major=$version") >>"$work/apt.log" 2>&1 && break
	done <"$apt/versions"
	if [ -z "${version:-}" ]; then
		tail -n 5 "$work/apt.log"
		skip "the distribution offers no sources of PostgreSQL $pg_major"
	fi
	dpkg-source --no-check -x "$apt/postgresql-${pg_major}_${version#*:}.dsc" "$to" >>"$work/apt.log" 2>&1 || {
		tail -n 20 "$work/apt.log"
		die "could not unpack the sources"
	}
	rm -rf "$apt"
}

# With what the tests need and no more.
build_server()
{
	local source=$1 prefix=$2 contrib

	say "Building PostgreSQL $pg_major, which takes minutes"
	install_packages bison flex perl libipc-run-perl
	mkdir -p "$prefix/include/poison/valgrind"
	cp "$here/../lib/poison/valgrind/memcheck.h" "$prefix/include/poison/valgrind/"
	(
		cd "$source"
		# --disable-... and --without-...: libraries that no test asks for.
		# The linker keeps AddressSanitizer's functions open for who is loaded first.
		./configure -q --prefix="$prefix" --enable-cassert --enable-debug --enable-tap-tests --disable-nls \
			--without-icu --without-readline --without-zlib \
			CFLAGS='-O1 -fno-omit-frame-pointer' CPPFLAGS="${server_macros//$'\n\t'/ } -isystem $prefix/include/poison" \
			LDFLAGS_EX='-Wl,-z,dynamic-undefined-weak'
		make -s -j "$(nproc)"
		make -s install
		for contrib in amcheck postgres_fdw; do
			make -s -C "contrib/$contrib" install
		done
	) >"$work/build.log" 2>&1 || {
		tail -n 30 "$work/build.log"
		die "could not build PostgreSQL from its sources; see above"
	}
	cp "$source/src/tools/valgrind.supp" "$prefix/"
	[ "$(nm -D "$prefix/bin/postgres" | grep -cE ' w __asan_(un)?poison_memory_region$')" -eq 2 ] ||
		die "the server that was built does not know AddressSanitizer's functions"
}
