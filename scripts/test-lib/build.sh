# shellcheck shell=bash
#
# build.sh - what the tests need besides a server; building with no warning
#
# shellcheck disable=SC2154  # variables of common.sh and test

# Tests skip what the distribution does not offer.
install_test_tools()
{
	local package packages available=()

	if have_apt; then
		packages=(clang perl libipc-run-perl libffi-platypus-perl pgbouncer python3-psycopg2
			python3-asyncpg libpostgresql-jdbc-java libfaketime)
		! is_packaged || packages+=("postgresql-$pg_major-cron")
		for package in "${packages[@]}"; do
			is_installed "$package" && continue
			refresh_package_list
			if is_available "$package"; then
				available+=("$package")
			else
				say "This distribution does not offer $package; tests that need it are skipped."
			fi
		done
		install_packages "${available[@]}"
	fi
	# The driver of clients/node/example, in a folder above the copy of the checkout, where Node.js looks for packages.
	# Without npm or its registry that test is skipped.
	if wanted tap && command -v npm >/dev/null; then
		npm install --prefix "$work" --no-audit --no-fund --no-package-lock pg@8 >/dev/null 2>&1 || true
	fi
}

run_make() { make -j "$(nproc)" --no-print-directory -s -C "$1" PG_CONFIG="$pg_config" "${@:2}"; }

# A variable of the Makefile.
list_of() { run_make "$tree" "print-$1"; }

# PostgreSQL's own headers are excepted: they are not ours to correct.
build() { run_make "$1" CC="$2" COPT="-Wall -Wextra -Werror -isystem $includes $3" all; }

build_with_clang()
{
	command -v clang >/dev/null || return 0
	counting clang
	cp -R "$tree" "$work/clang"
	# The flags that PostgreSQL was built with may be gcc's.
	check 'clang -Wall -Wextra -Werror' build "$work/clang" clang \
		'-Wno-unknown-warning-option -Wno-ignored-optimization-argument'
	rm -rf "$work/clang"
}

build_with_gcc()
{
	counting gcc
	require 'gcc -Wall -Wextra -Werror' build "$tree" gcc ''
	require 'make install' install_extension "$tree"
}
