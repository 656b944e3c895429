# shellcheck shell=bash
#
# checks.sh - what needs no server: sources, scripts, lists and versions
#
# Everything runs in the copy of the checkout.  A further check is a function and
# a line in run_checks.
# shellcheck disable=SC2154,SC2317  # variables of common.sh and test; "check" calls functions by name

run_checks()
{
	counting checks
	cd "$tree" || exit
	# Scripts begin with #!, and what they source with a line for shellcheck.
	mapfile -t shell_scripts < <(grep -rlIE --exclude='*.p[lm]' '^#!.*[/ ](ba)?sh$|^# shellcheck shell=bash$' .)
	check 'shell scripts: syntax' check_syntax
	if command -v shellcheck >/dev/null; then
		check 'shell scripts: shellcheck' shellcheck -x "${shell_scripts[@]}"
	fi
	if command -v clang-format >/dev/null && [ -e .clang-format ]; then
		check 'C: clang-format' clang-format --dry-run -Werror src/*.[ch] builds/fuzz/*.[ch]
	fi
	check_analyzers
	check 'src: layers, as src/idempotency.h draws them' scripts/check-layers
	check 'C: no line of more than 100 columns' check_width
	check 'install script: none of the rules of pgspot broken' scripts/check-install-script idempotency--*.sql
	check 'src: every refusal has a mutant' t/mutants/run --unguarded
	check 'docs/guarantees.md: every function, test, guard and mutant exists' scripts/check-guarantees
	check 'one version everywhere' check_version
	check 'every test file is in a list of the Makefile' check_lists
	check 'README: the first lines of each client are those of its own README' check_first_lines
	check 'examples/deliveries: the recording is what generate writes' check_recording
	cd "$work" || exit
}

# Three that follow the paths through a function, each with its own strengths. That they
# still find something is shown by planted.c, which has a defect for each of them, and a
# dereference behind ereport(ERROR) that is none. What the distribution does not offer is
# skipped; gcc is there.
check_analyzers()
{
	local analyzer

	for analyzer in gcc clang-tidy cppcheck; do
		if ! command -v "$analyzer" >/dev/null && have_apt; then
			refresh_package_list
			! is_available "$analyzer" || install_packages "$analyzer"
		fi
		command -v "$analyzer" >/dev/null || continue
		check "src: $analyzer has nothing to say" "analyze_by_$analyzer" src/*.c
		check "$analyzer finds what is planted for it" check_analyzer_bites "$analyzer"
	done
}

# Each with files; fails where there is anything to say. A process for each file, as many
# at a time as there are processors.
analyze_by_gcc()
{
	local flags

	read -r -a flags <<<"$(list_of CPPFLAGS)"
	printf '%s\0' "$@" |
		xargs -0 -n 1 -P "$(nproc)" gcc -fanalyzer -Werror -O2 -fwrapv -fno-strict-aliasing -Isrc "${flags[@]}" -c -o /dev/null
}

analyze_by_clang-tidy()
{
	local flags

	read -r -a flags <<<"$(list_of CPPFLAGS)"
	printf '%s\0' "$@" |
		xargs -0 -I '{}' -P "$(nproc)" clang-tidy --quiet '{}' -- -fwrapv -fno-strict-aliasing -Isrc "${flags[@]}"
}

# With the server's headers it takes minutes, and finds no more.
analyze_by_cppcheck()
{
	cppcheck --quiet --error-exitcode=1 -j "$(nproc)" --std=c11 -Isrc "-DPG_VERSION_NUM=${pg_major}9999" \
		--enable=warning,style,performance,portability --suppressions-list=scripts/test-lib/cppcheck "$@"
}

# What it has to say, by the lines that are marked with its name, and where it has not.
check_analyzer_bites()
{
	local file=scripts/test-lib/planted.c said line missing=0

	said=$("analyze_by_$1" "$file" 2>&1) && return 1
	printf '%s\n' "$said"
	while IFS=: read -r line _; do
		grep "planted.c:$line:" <<<"$said" | grep -qF -- "$(sed -nE "$line s|.*/\* $1: (.*) \*/|\\1|p" "$file")" || {
			echo "line $line was not found"
			missing=1
		}
	done < <(grep -n "/\* $1: " "$file")
	line=$(grep -n 'No defect' "$file")
	! awk -F: -v from="${line%%:*}" '$1 ~ /planted.c$/ && $2 > from { found = 1 } END { exit !found }' <<<"$said" && [ "$missing" -eq 0 ]
}

# With tabs of 4.
check_width()
{
	local file found=0

	for file in src/*.[ch] builds/fuzz/*.[ch]; do
		if expand -t 4 "$file" | grep '.\{101,\}'; then
			echo "in $file"
			found=1
		fi
	done
	return "$found"
}

check_syntax()
{
	local script

	for script in "${shell_scripts[@]}"; do
		bash -n "$script" || return 1
	done
}

# The version has one home, the control file; releases add a third number, which
# the archive and the package share.
check_version()
{
	local version release

	version=$(sed -n "s/^default_version = '\(.*\)'/\1/p" idempotency.control)
	release=$(list_of DISTVERSION)
	[ -e "idempotency--$version.sql" ] &&
		[[ $release =~ ^"$version".[0-9]+$ ]] &&
		[ "$(sed '/"meta-spec"/,$d' META.json | grep -c "\"version\": \"$release\"")" -eq 2 ] &&
		grep -q "^## $version" CHANGELOG.md &&
		[[ $(head -n 1 debian/changelog) == "idempotency ($release) "* ]]
}

# A test that is not in the Makefile's list would never run.
check_lists()
{
	local file name result=0

	for file in sql/*.sql specs/*.spec; do
		[ -e "$file" ] || continue
		name=${file##*/}
		name=${name%.*}
		case $file in
			sql/*) [[ " $(list_of REGRESS) $(list_of REGRESS_CONFIGURED) " == *" $name "* ]] && continue ;;
			specs/*) [[ " $(list_of ISOLATION) $(list_of ISOLATION_CONFIGURED) " == *" $name "* ]] && continue ;;
		esac
		echo "$file is not in the Makefile's list"
		result=1
	done
	return "$result"
}

# The first block of code, which is what a user of the client writes.
check_first_lines()
{
	local readme result=0

	for readme in clients/*/README.md; do
		[ -e "${readme%README.md}frameworks" ] || continue
		perl -0777 -e '
			my ($all, $one) = map { local @ARGV = $_; <> } "README.md", $ARGV[0];
			my ($block) = $one =~ /^(```\w+\n.*?^```\n)/ms or die "no code in it\n";
			exit(index($all, $block) < 0)' "$readme" || {
			echo "README.md does not show the first lines of $readme"
			result=1
		}
	done
	return "$result"
}

check_recording() { cmp <(examples/deliveries/generate) examples/deliveries/deliveries.csv; }
