
# Faults::Processes - SIGKILL and SIGSTOP: of clients, of the server's processes
#
# A process that was stopped goes on after longer than most leases last. A killed
# backend or worker has the server end all others and recover. Who was killed is
# noted, since nobody else may die of a signal.

package Faults::Processes;

use strict;
use warnings;

use Cluster;
use Shared;
use Time::HiRes qw(sleep);

our %faults = (
	'kill-client' => sub {
		my $pid = a_client($_[0]) or return 0;

		return kill KILL => $pid;
	},
	'stop-client' => sub { return stop_for($_[0], 100, 2500, map { a_client($_[0]) // () } 1 .. 3); },
	'kill-backend' => sub { return kill_one(a_process($_[0], "backend_type = 'client backend' AND usename = 'app'")); },
	'stop-backend' => sub { return stop_for($_[0], 50, 1500, a_process($_[0], "backend_type = 'client backend' AND usename = 'app'") // ()); },
	'kill-worker' => sub {
		# The one that deletes is there for a moment only; the launcher always is.
		my $cleaner = "backend_type = 'idempotency cleanup'";

		my ($draw) = @_;
		my $pid;

		wait_until(sub { $pid = a_process($draw, $cleaner) }, 2);
		wait_until(sub { $pid //= a_process($draw, "backend_type = 'idempotency launcher'") }, 8);
		return kill_one($pid);
	},
	'stop-worker' => sub { return stop_for($_[0], 200, 3000, a_process($_[0], "backend_type LIKE 'idempotency %'") // ()); },
	'kill-auxiliary' => sub { return kill_one(a_process($_[0], q{backend_type IN ('checkpointer', 'walwriter', 'background writer')})); },
	'stop-auxiliary' => sub { return stop_for($_[0], 200, 2000, a_process($_[0], q{backend_type IN ('checkpointer', 'walwriter', 'walsender')}) // ()); },
	'stop-postmaster' => sub { return stop_for($_[0], 200, 2000, postmaster_of(primary()) // ()); });

sub a_client
{
	my ($draw) = @_;

	return $draw->pick(grep { $_ && (readlink "/proc/$_/exe" // '') eq "$work/client" } map { slot($_, 'pid') } 0 .. 63);
}

sub a_process
{
	my ($draw, $which) = @_;
	my $connection = connect_admin(primary(), 1) or return;
	my $result = $connection->query("SELECT pid FROM pg_stat_activity WHERE $which ORDER BY pid");

	return $draw->pick(map { $_->[0] } @{ $result->rows });
}

# Not while it is seen to that no commit is only here (Servers.pm).
sub kill_one
{
	my ($pid) = @_;

	return 0 if !$pid;
	return with_lock('commits', 1, sub {
		note_line('killed', $pid);
		return kill KILL => $pid;
	});
}

sub stop_for
{
	my ($draw, $from, $to, @pids) = @_;

	return 0 if !@pids;
	kill STOP => @pids;
	sleep $draw->between($from, $to) / 1000;
	kill CONT => @pids;
	return 1;
}

1;
