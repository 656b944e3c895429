
# What the documents print is true: every block marked "sql" in README.md, docs/
# and the clients' READMEs is executed, in order, each document in a database of
# its own. And every link to a file or to a heading leads there.
#
#   -- => value          the statement before it returns this row
#   <!-- fails: IK004 --> the block after it ends with this SQLSTATE
#   <!-- needs: pg_cron --> the block after it is executed only where that is
#                        preloaded and installed
#
# A block is one psql session. Settings of the server itself stand in blocks
# marked otherwise ("conf", "text") and are not executed. Of docs/ten-minutes/ the
# page that needs nothing but psql is executed here, as a reader would.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Extension;
use File::Basename qw(dirname);
use IPC::Run ();
use PostgreSQL::Test::Utils;
use Test::More;

my $top = "$FindBin::RealBin/..";
my $has_cron = -e `"${\ ($ENV{PG_CONFIG} || 'pg_config') }" --pkglibdir` =~ s/\n//r . '/pg_cron.so';
my $node = new_server('documents', conf => "max_prepared_transactions = 5\n"
	  . "shared_preload_libraries = 'idempotency" . ($has_cron ? ', pg_cron' : '') . "'\n"
	  . "cron.use_background_workers = on\n");

# A database that the documents speak of.
$node->safe_psql('postgres', 'CREATE DATABASE shop');

# The blocks of a document, each with its line and what was said of it.
sub blocks
{
	my ($file) = @_;
	my @blocks;
	my %said;
	my $inside;
	my $number = 0;

	foreach my $line (split /^/, slurp_file($file))
	{
		$number++;
		if (defined $inside)
		{
			if ($line =~ /^\s*```\s*$/)
			{
				push @blocks, $inside if $inside->{language} eq 'sql';
				undef $inside;
				%said = ();
			}
			else { $inside->{text} .= $line; }
		}
		elsif ($line =~ /^\s*```(\w*)/) { $inside = { language => $1, line => $number, text => '', %said }; }
		elsif ($line =~ /^<!-- (fails|needs): (\S+) -->/) { $said{$1} = $2; }
		elsif ($line =~ /\S/) { %said = (); }
	}
	die "$file: a block without an end" if defined $inside;
	return @blocks;
}

sub execute
{
	my ($database, $text) = @_;
	my ($out, $err) = ('', '');

	$text =~ s{^\s*-- => ?(.*)$}{ my $v = $1; $v =~ s/'/''/g; "\\echo '=> $v'" }emg;
	IPC::Run::run([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-v', 'VERBOSITY=verbose',
			'-d', $node->connstr($database) ], '<', \$text, '>', \$out, '2>', \$err);
	return ($? >> 8, $out, $err);
}

# What was promised and did not come.
sub broken_promises
{
	my ($out) = @_;
	my @broken;
	my @rows;
	my @promised;

	foreach my $line (split(/\n/, $out), undef)
	{
		if (defined $line && $line =~ /^=> (.*)/) { push @promised, $1; next; }
		if (@promised)
		{
			my @got = splice @rows, -@promised < -@rows ? -@rows : -@promised;

			push @broken, "promised:\n@{[join qq(\n), @promised]}\ngot:\n@{[join qq(\n), @got]}"
			  if "@got" ne "@promised";
			(@promised, @rows) = ();
		}
		push @rows, $line if defined $line;
	}
	return @broken;
}

foreach my $file (glob "$top/README.md $top/docs/*.md $top/clients/*/README.md")
{
	my $page = $file =~ s{^\Q$top\E/}{}r;
	my $database = $page =~ s{^docs/|\.md$}{}gr =~ s{/}{-}gr;
	my @blocks = blocks($file);

	next unless @blocks;
	$node->safe_psql('postgres', qq(CREATE DATABASE "$database"));
	$node->safe_psql($database, 'CREATE EXTENSION idempotency')
	  unless grep { $_->{text} =~ /CREATE EXTENSION idempotency/ } @blocks;
	foreach my $block (@blocks)
	{
		my $name = "$page line $block->{line}";

	  SKIP:
		{
			skip "$name: needs $block->{needs}", 1
			  if ($block->{needs} // '') eq 'pg_cron' && !$has_cron;
			my $where = ($block->{needs} // '') eq 'pg_cron' ? 'postgres' : $database;
			my ($status, $out, $err) = execute($where, $block->{text});

			if (my $expected = $block->{fails})
			{
				my ($state) = $err =~ /^.*?ERROR:  (\w{5}):/m;
				is($state // "no error\n$out", $expected, "$name: fails with $expected");
			}
			else
			{
				my @broken = $status == 0 ? broken_promises($out) : "it failed:\n$err";
				ok(!@broken, $name) or diag(join "\n", @broken);
			}
		}
	}
}

SKIP:
{
	skip 'no python3, which executes the page', 1 if system('python3 --version >/dev/null 2>&1') != 0;
	$node->safe_psql('postgres', 'CREATE DATABASE ten_minutes');
	local @ENV{qw(PGHOST PGPORT PGDATABASE)} = ($node->host, $node->port, 'ten_minutes');
	my $output = `'$top/clients/ten-minutes' '$top/docs/ten-minutes/sql.md' 2>&1`;
	ok($? == 0 && $output =~ /^all well/m, 'docs/ten-minutes/sql.md') or diag($output);
}

# A page without its blocks, where a bracket is no link and a # no heading.
sub prose { return slurp_file($_[0]) =~ s/^\s*```.*?^\s*```\s*$//gmsr; }

# The anchors of a page's headings, made as the forges make them.
sub anchors
{
	my ($file) = @_;
	my (%seen, @anchors);

	foreach my $heading (prose($file) =~ /^#+ +(.+?) *$/gm)
	{
		my $anchor = lc($heading =~ s/\]\([^)]*\)//gr) =~ s/[^\w -]//gr =~ tr/ /-/r;
		push @anchors, $seen{$anchor}++ ? "$anchor-" . ($seen{$anchor} - 1) : $anchor;
	}
	return @anchors;
}

sub broken_links
{
	my ($file) = @_;
	my @broken;

	foreach my $link (prose($file) =~ s/`[^`]*`//gr =~ /\]\(([^)\s]+)\)/g)
	{
		next if $link =~ /^\w+:/;
		my ($path, $anchor) = $link =~ /^([^#]*)(?:#(.*))?$/;
		my $target = $path eq '' ? $file : dirname($file) . "/$path";

		push @broken, $link unless -e $target && (!defined $anchor || grep { $_ eq $anchor } anchors($target));
	}
	return @broken;
}

foreach my $file (glob "$top/*.md $top/*/*.md $top/*/*/*.md $top/*/*/*/*.md")
{
	is_deeply([ broken_links($file) ], [], 'links of ' . $file =~ s{^\Q$top\E/}{}r);
}

# That a broken one is found.
my $page = PostgreSQL::Test::Utils::tempdir() . '/page.md';
append_to_file($page, <<'PAGE');
# One `a_b`, two
## One `a_b`, two
[file](page.md), [heading](#one-a_b-two), [second](page.md#one-a_b-two-1), [elsewhere](https://example.com/#x), `[no](link)`
[no file](pages.md), [no
heading](#three), [neither](pages.md#one-a_b-two), [commented](#out)
```text
# out
[no](link)
```
PAGE
is_deeply([ broken_links($page) ], [ 'pages.md', '#three', 'pages.md#one-a_b-two', '#out' ], 'broken links are found');

done_testing();
