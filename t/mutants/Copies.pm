
# Copies - what t/mutants/run and t/mutants/generic share: several workers, each with
# a PostgreSQL, a checkout and servers of its own, that edit, build and test
#
# A worker is a folder below a temporary one. It has a copy of the PostgreSQL that
# PG_CONFIG or the PATH leads to, which finds its files relative to its programs, and
# of the checkout, with its objects, so that only what is edited is compiled again.
# Nothing is installed, and nothing is left behind. Started by root, it all runs as
# user postgres.
#
# Tests never meet: servers listen on sockets below the worker's folder, and their
# ports are given out by the test library, which notes them in a folder for all.
#
# What costs time and shows nothing is saved: a cluster is a copy of one that initdb
# has made once, nothing is flushed, and a test is stopped at its first failure.

package Copies;

use strict;
use warnings;

use Cwd qw(abs_path);
use Errno;
use Exporter qw(import);
use File::Basename qw(basename dirname);
use File::Find qw(find);
use File::Path qw(make_path remove_tree);
use File::Temp qw(tempdir);
use POSIX ();
use Storable qw(retrieve store);
use Time::HiRes qw(sleep time);

our @EXPORT = qw($top prepare in_parallel fresh_tree build install start_server end_running
  run_test lines_reached compiling log_tail slurp spew run);

our $top = abs_path(dirname(__FILE__) . '/../..');

# How long a test waits for what does not come. Of a mutant it often never does.
use constant PATIENCE => 30;

# The folder of all, and the number and the folder of this worker.
my ($work, $mine);
my $parent = $$;
my (%child, $group, $config);
my %directory;

# ---- processes -------------------------------------------------------------------

sub go_on_as_postgres
{
	return if $> != 0;
	exec 'setpriv', '--reuid=postgres', '--regid=postgres', '--init-groups',
	  'env', 'HOME=/nonexistent', $^X, abs_path($0), @ARGV
	  or die "could not go on as user postgres: $!\n";
}

# Whoever leaves by a signal leaves nothing behind.
sub leave
{
	my ($signal) = @_;

	if ($$ == $parent)
	{
		print STDERR "stopped by SIG$signal\n";
		kill 'TERM', keys %child;
		waitpid $_, 0 foreach keys %child;
		exit 130;
	}
	end_running() if $mine;
	POSIX::_exit(130);
}

# Stops what runs for this worker, and the servers of a test, which are no part of
# its process group: those whose pid files are below its folder. A pid file may be
# what a killed server has left, so its process must also be at home there.
sub end_running
{
	my @servers;

	if ($group)
	{
		kill 'KILL', -$group;
		waitpid $group, 0;
		undef $group;
	}
	return unless -d "$mine/out";
	find({ no_chdir => 1, wanted => sub {
		return unless m{/postmaster\.pid$} && open my $file, '<', $_;
		my ($pid) = (<$file> // '') =~ /^(\d+)$/ or return;

		push @servers, $pid if (readlink "/proc/$pid/cwd" // '') eq $File::Find::dir;
	} }, "$mine/out");
	kill 'QUIT', @servers;
	for (1 .. 600)
	{
		@servers = grep { kill 0, $_ } @servers or return;
		sleep 0.05;
	}
	kill 'KILL', @servers;
	return;
}

sub mine { return $mine; }

sub log_name { return ($mine // $work) . '/log'; }

sub log_tail
{
	my ($lines) = @_;

	return `tail -n $lines '${\ log_name() }'`;
}

# Runs a command, with what it says in the worker's log. Says how it went: '' if it
# succeeded, or else "failed", or "no end" after so many seconds. With "tap", its
# output is read, and its first failure is the end of it.
sub run_watched
{
	my ($limit, $tap, @command) = @_;
	my $verdict = '';

	open my $log, '>>', log_name() or die log_name() . ": $!\n";
	pipe my $reader, my $writer or die;
	$group = fork // die "fork: $!\n";
	if ($group == 0)
	{
		setpgrp;
		$SIG{$_} = 'DEFAULT' foreach qw(HUP INT TERM);
		close $reader;
		open STDIN, '<', '/dev/null' or die;
		open STDERR, '>>&', $log or die;
		open STDOUT, '>>&', $tap ? $writer : $log or die;
		close $writer unless $tap;
		exec @command or POSIX::_exit(127);
	}
	# Before the child does it, too, or a signal could miss it.
	setpgrp $group, $group;
	close $writer;

	eval {
		local $SIG{ALRM} = sub { die "no end\n" };
		alarm $limit;
		if ($tap)
		{
			while (defined(my $line = <$reader>))
			{
				syswrite $log, $line;
				die "failed\n" if $line =~ /^not ok(?!.*# (?:TODO|SKIP))|^Bail out!/;
			}
		}
		1 while waitpid($group, 0) < 0 && $!{EINTR};
		$verdict = $? == 0 ? '' : 'failed';
		undef $group;
		alarm 0;
		1;
	} or do {
		alarm 0;
		chomp($verdict = $@);
		die $@ unless $verdict eq 'failed' || $verdict eq 'no end';
		end_running();
	};
	return $verdict;
}

sub run { return run_watched(1800, 0, @_) eq ''; }

# Calls "work" for each of the items, in a process of a worker that is free, and
# "done" here with the item and what it returned, as they come to their end. Items
# that take long should come first.
sub in_parallel
{
	my ($jobs, $items, $work_on, $done) = @_;
	my @waiting = @$items;
	my @free = (1 .. $jobs);

	while (@waiting || %child)
	{
		while (@waiting && @free)
		{
			my ($item, $worker) = (shift @waiting, shift @free);
			my $pid = fork // die "fork: $!\n";

			if ($pid == 0)
			{
				%child = ();
				$mine = "$work/$worker";
				truncate log_name(), 0;
				my $result = eval { $work_on->($item) };

				print STDERR $@ if $@;
				store(\$result, "$mine/result");
				end_running();
				POSIX::_exit($@ ? 1 : 0);
			}
			$child{$pid} = [ $item, $worker ];
		}
		my $pid = waitpid -1, 0;
		my $ended = delete $child{$pid} or next;

		die "a worker has failed\n" if $? != 0;
		push @free, $ended->[1];
		$done->($ended->[0], ${ retrieve("$work/$ended->[1]/result") });
	}
	return;
}

# ---- files -----------------------------------------------------------------------

sub slurp
{
	my ($path) = @_;

	open my $in, '<', $path or die "$path: $!\n";
	local $/;
	return scalar <$in>;
}

sub spew
{
	my ($path, $text) = @_;

	open my $out, '>', $path or die "$path: $!\n";
	print $out $text;
	close $out or die "$path: $!\n";
	return;
}

# ---- a PostgreSQL of our own -------------------------------------------------------

sub config_of
{
	my ($program, $what) = @_;

	chomp(my $value = `'$program' --$what`);
	die "pg_config --$what failed\n" if $? != 0;
	return $value;
}

# The programs are copied, everything else may be links to the original.
sub copy_postgresql
{
	my $original = $ENV{PG_CONFIG} || 'pg_config';
	my %from = map { $_ => config_of($original, $_) } qw(bindir pkglibdir sharedir includedir-server);
	my $prefix = $from{bindir};

	foreach my $path (values %from)
	{
		chop $prefix while index("$path/", $prefix) != 0;
	}
	foreach my $what (keys %from)
	{
		my $to = "$mine/pg/" . substr($from{$what}, length $prefix);

		$directory{$what} = substr($from{$what}, length $prefix);
		make_path(dirname($to));
		next if -e $to;
		run('cp', $what eq 'bindir' ? '-rL' : '-rs', $from{$what}, $to) or die "could not copy $from{$what}\n";
	}
	foreach my $what (keys %from)
	{
		die "this PostgreSQL cannot be moved: $what\n"
		  if config_of(place('bindir') . '/pg_config', $what) ne place($what);
	}
	save_initdb();
	return;
}

sub place { return "$mine/pg/$directory{ $_[0] }"; }
sub pg_config { return place('bindir') . '/pg_config'; }
sub pgxs { return config_of(pg_config(), 'pgxs') =~ s{/makefiles/pgxs\.mk$}{/test}r; }

# A cluster of the same options is made once and then copied. All of them are the
# same cluster then, as PostgreSQL's own tests have it from version 16 on.
sub save_initdb
{
	my $program = place('bindir') . '/initdb';

	rename $program, "$program.original" or die "$program: $!\n";
	spew($program, <<"EOC");
#!/bin/bash
# initdb OPTION... : the same, of a cluster that was made before
set -e
data= options=()
while [ \$# -gt 0 ]; do
	case \$1 in
		-D | --pgdata) data=\$2; shift ;;
		*) options+=("\$1") ;;
	esac
	shift
done
real=\$(dirname "\$0")/initdb.original
[ -n "\$data" ] || exec "\$real" "\${options[\@]}"
made=$work/clusters/\$(echo "\${options[*]}" | md5sum | cut -c 1-32)
exec 9>>"\$made.lock"
flock 9
if [ ! -e "\$made/PG_VERSION" ]; then
	"\$real" -D "\$made.new" "\${options[\@]}"
	mv "\$made.new" "\$made"
fi
exec 9>&-
mkdir -p "\$(dirname "\$data")"
[ -d "\$data" ] && rmdir "\$data"
cp -a --reflink=auto "\$made" "\$data"
EOC
	chmod 0755, $program;
	return;
}

# ---- workers -----------------------------------------------------------------------

# Makes so many workers. Their checkouts are built with what is said to make, and
# once more to count which lines are reached, if "counting" is true.
sub prepare
{
	my ($jobs, $counting, @make) = @_;

	$ENV{LC_ALL} = 'C.UTF-8';
	delete @ENV{ grep { /^PG/ && $_ ne 'PG_CONFIG' } keys %ENV };
	$SIG{$_} = \&leave foreach qw(HUP INT TERM);
	$| = 1;
	$work = tempdir('/tmp/mutants.XXXXXX', CLEANUP => 1);
	make_path("$work/1", "$work/clusters", "$work/portlock");
	$mine = "$work/1";
	copy_postgresql();

	my $tree = "$mine/original";

	make_path($tree);
	run('cp', '-r', (grep { -e } map { "$top/$_" } qw(Makefile src sql specs expected t moving docs scripts)),
		glob("$top/*.control"), glob("$top/*--*.sql"), $tree)
	  or die "could not copy the checkout\n";
	unlink glob("$tree/src/*.o"), glob("$tree/src/*.bc"), "$tree/idempotency.so";
	if ($counting)
	{
		run('cp', '-a', $tree, "$mine/counting") or die "could not copy the checkout\n";
		build("$mine/counting", 'idempotency.so', 'EXTRA_CFLAGS=-O0 --coverage -fprofile-update=atomic', 'SHLIB_LINK=--coverage')
		  or die "the checkout cannot be built to be counted:\n" . log_tail(20);
	}
	build($tree, @make) or die "the checkout cannot be built:\n" . log_tail(20);
	foreach my $worker (2 .. $jobs)
	{
		run('cp', '-a', "$work/1", "$work/$worker") or die "could not copy a worker\n";
	}
	undef $mine;
	return;
}

# The checkout as it is, with its objects and their times, to be edited.
sub fresh_tree
{
	my $tree = "$mine/mutant";

	remove_tree($tree);
	run('cp', '-a', "$mine/original", $tree) or die "could not copy what was built\n";
	return $tree;
}

sub build
{
	my ($tree, @what) = @_;

	return run('make', '-s', '-j2', '-C', $tree, 'PG_CONFIG=' . pg_config(), 'with_llvm=no', @what ? @what : 'idempotency.so');
}

# The command that compiles a file, in whatever checkout.
sub compiling
{
	my ($file, @make) = @_;
	my $tree = "$work/1/original";
	my $config = "$work/1/pg/$directory{bindir}/pg_config";

	return (grep { /-c/ } `make -n -C '$tree' -W src/$file.c PG_CONFIG='$config' with_llvm=no @make src/$file.o`)[0];
}

sub install
{
	my ($tree) = @_;
	my ($library, $share) = (place('pkglibdir'), place('sharedir') . '/extension');

	run('sh', '-c',
		"rm -f '$library/idempotency.so' '$share'/idempotency[.-]* &&"
		  . " cp '$tree/idempotency.so' '$library' && cp '$tree'/*.control '$tree'/*--*.sql '$share'")
	  or die "could not install\n";
	return;
}

# ---- tests -----------------------------------------------------------------------

# Starts the server of regression tests and isolation specs, from a cluster that has
# met no test; returns the folder of its socket.
sub start_server
{
	my $data = "$mine/out/server/data";

	end_running();
	remove_tree("$mine/out");
	make_path("$mine/out/server");
	run(place('bindir') . '/initdb', '-D', $data, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--no-locale', '--no-sync')
	  or die "initdb failed:\n" . log_tail(20);
	open my $conf, '>>', "$data/postgresql.conf" or die;
	print $conf slurp("$top/t/server.conf"), "fsync = off\nlisten_addresses = ''\nunix_socket_directories = '$mine/out/server'\n";
	close $conf or die;
	return run(place('bindir') . '/pg_ctl', '-D', $data, '-l', "$mine/out/server/log", '-s', '-w', '-t', PATIENCE, 'start')
	  ? "$mine/out/server"
	  : undef;
}

# Runs a test on what is installed. Says how it went: '' if it passed, or else
# "failed"; "no end", it was stopped after so many seconds; "in vain", it failed
# when what it waited for had not come. Unless it is to go on with the "server" of
# the test before, that is a new one.
sub run_test
{
	my ($tree, $test, $limit, $server) = @_;
	my $out = "$mine/out";
	my ($kind, $name) = $test =~ m{^(t|sql|specs)/(.*?)(?:\.\w+)?$} or die "what is $test?\n";
	my $verdict;

	local %ENV = %ENV;
	$ENV{PATH} = place('bindir') . ":$ENV{PATH}";
	$ENV{PG_CONFIG} = pg_config();
	$ENV{PG_TEST_TIMEOUT_DEFAULT} = $ENV{PGISOLATIONTIMEOUT} = PATIENCE;
	truncate log_name(), 0;
	if ($kind eq 't')
	{
		end_running();
		remove_tree($out);
		make_path("$out/tmp_check", "$out/tmp");
		@ENV{qw(PG_REGRESS TESTDIR TESTDATADIR TESTLOGDIR TMPDIR PG_TEST_PORT_DIR PERL5LIB)} =
		  (pgxs() . '/regress/pg_regress', $out, "$out/tmp_check", "$out/tmp_check/log", "$out/tmp", "$work/portlock", pgxs() . '/perl');
		$verdict = run_watched($limit, 1, 'sh', '-c', "cd '$tree' && exec '$^X' 't/$name.pl'");
		# Whatever it had not stopped itself.
		end_running();
	}
	else
	{
		my $socket = "$out/server";

		$socket = start_server() // return 'failed' unless $server;
		local $ENV{PGUSER} = 'postgres';
		$verdict = run_watched($limit, 0,
			pgxs() . ($kind eq 'sql' ? '/regress/pg_regress' : '/isolation/pg_isolation_regress'),
			"--bindir=" . place('bindir'), "--inputdir=$tree", "--outputdir=$out", '--dbname=contrib_regression',
			"--host=$socket", '--port=5432', '--user=postgres', $name);
		if (!$server)
		{
			# What counts lines does so when it ends by itself.
			run(place('bindir') . '/pg_ctl', '-D', "$out/server/data", '-s', '-w', '-m', 'fast', 'stop') if $ENV{GCOV_PREFIX};
			end_running();
		}
	}
	if ($verdict eq 'failed')
	{
		my $said = slurp(log_name()) . (-e "$out/regression.diffs" ? slurp("$out/regression.diffs") : '');

		$verdict = 'in vain' if $said =~ /timed out|timeout expired|no answer from the server|canceling step|gets no answer/;
	}
	return $verdict;
}

# ---- which lines a test reaches ------------------------------------------------------

# Runs a test on the checkout that counts; returns, for each of these source files,
# the lines that were executed. Processes that are killed do not say what they did.
sub lines_reached
{
	my ($test, @files) = @_;
	my $counted = "$mine/counted";
	my %lines;

	remove_tree($counted);
	make_path($counted);
	install("$mine/counting");
	{
		local $ENV{GCOV_PREFIX} = $counted;
		run_test("$mine/counting", $test, 1800);
	}
	my ($at) = glob("$counted$work/1/counting/src");

	foreach my $file ($at ? @files : ())
	{
		next unless -e "$at/$file.gcda";
		run('cp', "$mine/counting/src/$file.gcno", $at) or die "no counts of $file\n";
		my $source = '';

		foreach my $line (split /\n/, `cd '$mine/counting' && gcov -t -o '$at' '$at/$file.gcda' 2>/dev/null`)
		{
			my ($count, $number, $text) = $line =~ /^ *([^:]+): *(\d+):(.*)/ or next;

			$source = $1 if $number == 0 && $text =~ /^Source:(.*)/;
			push @{ $lines{$file} }, $number if $source eq "src/$file.c" && $count =~ /^\d/;
		}
	}
	return \%lines;
}

go_on_as_postgres();

1;
