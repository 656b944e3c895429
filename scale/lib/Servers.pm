
# Servers - the servers that servers.sh has started, seen by a test; and processes of
# its own
#
# Nothing here depends on how fast anything is.

package Servers;

use strict;
use warnings;

use Carp;
use Connection;
use Exporter qw(import);
use POSIX ();
use Time::HiRes qw(sleep time);

our @EXPORT = qw($work psql database_at connect_to wait_until in_child child_end kill_server start_server);

our $work = $ENV{WORK};
my $bindir = $ENV{BINDIR};
my $children = 0;

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
	my $number = ++$children;
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
