
# Shards - the two servers of scale/plproxy/run, and what its tests share
#
# A promise is one call of promise(), which prints "ok" or "FAILED"; finish() prints
# the numbers and says how the process has to end. No promise depends on how fast
# anything is.

package Shards;

use strict;
use warnings;

use Carp;
use Connection;
use Exporter qw(import);
use POSIX ();
use Time::HiRes qw(sleep time);

our @EXPORT = qw($work server psql database_at connect_to promise count finish wait_until in_child child_end kill_server
  start_server shards_sql make_front @shards);

our $work = $ENV{WORK};
my $bindir = $ENV{BINDIR};
my ($failed, @numbers) = (0);

# Of the cluster that routes by scope; the fifth comes later.
our @shards = ([ a => 's0' ], [ a => 's1' ], [ b => 's2' ], [ b => 's3' ]);

$| = 1;

# ---- promises and numbers ------------------------------------------------------------

# With a prototype, or a comparison that does not match would leave its place to the words.
sub promise($$@)
{
	my ($kept, $words, @why) = @_;

	printf "%-7s %s\n", $kept ? 'ok' : 'FAILED', $words;
	return 1 if $kept;
	$failed++;
	print map { "        $_\n" } @why[ 0 .. ($#why > 9 ? 9 : $#why) ];
	return 0;
}

sub count
{
	push @numbers, [@_];
	return;
}

sub finish
{
	print "\n", map { sprintf "%-62s %s\n", @$_ } @numbers;
	print $failed ? "FAILED: $failed\n" : "all ok\n";
	exit($failed ? 1 : 0);
}

# ---- servers -------------------------------------------------------------------------

sub server { return "$work/$_[0]"; }

# SQL files, or commands, as the superuser. Dies where psql fails.
sub psql
{
	my ($server, $database, @arguments) = @_;
	my @command = ("$bindir/psql", '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-h', server($server), '-U', 'postgres', '-d', $database, @arguments);

	open my $pipe, '-|', 'sh', '-c', 'exec "$@" 2>&1 >/dev/null', 'sh', @command or croak "could not run psql: $!";
	my @said = grep { !/NOTICE:/ } <$pipe>;

	close $pipe or croak "psql -d $database @arguments: @said";
	return;
}

sub database_at { return "host=" . server($_[0]) . " port=5432 dbname=$_[1]"; }

sub connect_to
{
	my ($server, $database, %option) = @_;

	return Connection->connect(undef, host => server($server), port => 5432, user => 'postgres', database => $database, %option);
}

# All of it at once, so that nobody can end in order.
sub kill_server
{
	my ($server) = @_;

	open my $file, '<', server($server) . '/data/postmaster.pid' or croak "server $server is not running: $!";
	my ($postmaster) = <$file> =~ /(\d+)/;
	my @children = `pgrep -P $postmaster` =~ /(\d+)/g;

	kill KILL => $postmaster, @children;
	wait_until(sub { !grep { kill 0, $_ } $postmaster, @children });
	return;
}

sub start_server
{
	my ($server) = @_;
	my $data = server($server) . '/data';

	# That it was killed, its pg_ctl says in a warning.
	system(qq{"$bindir/pg_ctl" -D "$data" -l "$data/../log" -s -w start 2>/dev/null}) == 0 or croak "server $server did not start";
	return;
}

sub shards_sql { return join ', ', map { "p$_ '" . database_at(@{ $_[$_] }) . "'" } 0 .. $#_; }

# A front, over shards that it makes.
sub make_front
{
	my ($front, $option, @where) = @_;

	foreach my $shard (@where)
	{
		psql($shard->[0], 'postgres', '-c', "CREATE DATABASE $shard->[1]");
		psql(@$shard, '-c', 'CREATE EXTENSION idempotency', '-f', "$ENV{SQL}/shard.sql", '-f', "$ENV{SQL}/example/shard.sql");
	}
	psql('a', 'postgres', '-c', "CREATE DATABASE $front");
	psql('a', $front, '-c', 'CREATE EXTENSION plproxy',
		'-c', "CREATE SERVER idempotency FOREIGN DATA WRAPPER plproxy OPTIONS (modular_mapping '1', " . shards_sql(@where) . ')',
		'-c', "CREATE USER MAPPING FOR postgres SERVER idempotency OPTIONS (user 'postgres')");
	psql('a', $front, @$option, '-f', "$ENV{SQL}/front.sql");
	psql('a', $front, '-f', "$ENV{SQL}/example/front.sql");
	return;
}

# ---- processes -----------------------------------------------------------------------

sub wait_until
{
	my ($condition) = @_;
	my $deadline = time + 180;

	while (!$condition->())
	{
		return 0 if time > $deadline;
		sleep 0.01;
	}
	return 1;
}

# Runs it in a process of its own; child_end() returns what it printed to its handle.
sub in_child
{
	my ($task) = @_;
	my $number = ++$Shards::children;
	my $file = "$work/scratch/child.$number";
	my $pid = fork // croak "could not fork: $!";

	return [ $pid, $file ] if $pid;
	open my $out, '>', $file or POSIX::_exit(1);
	my $done = eval { $task->($out); 1 };

	print STDERR "# $@" if !$done;
	close $out;
	POSIX::_exit($done ? 0 : 1);
}

sub child_end
{
	my ($child) = @_;

	waitpid $child->[0], 0;
	croak 'a child process failed' if $?;
	open my $in, '<', $child->[1] or croak "could not read: $!";
	my @lines = <$in>;

	chomp @lines;
	return @lines;
}

1;
