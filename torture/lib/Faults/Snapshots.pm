
# Faults::Snapshots - a snapshot that somebody holds: in a session that is idle in its
# transaction, and in a prepared transaction, which also outlives the server

package Faults::Snapshots;

use strict;
use warnings;

use Cluster;
use Shared;
use Time::HiRes qw(sleep);

our %faults = (
	'held-snapshot' => sub {
		my ($draw) = @_;
		my $connection = connect_admin(primary(), 1) or return 0;

		$connection->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class');
		sleep $draw->between(1000, 6000) / 1000;
		return !$connection->lost && $connection->query('COMMIT')->code eq '';
	},
	'prepared-snapshot' => sub {
		my ($draw) = @_;
		my $name = 'snapshot_' . now_us();
		my $connection = connect_admin(primary(), 1) or return 0;

		# With an xid of its own, which is the oldest for as long as it lasts.
		$connection->query("BEGIN ISOLATION LEVEL REPEATABLE READ; INSERT INTO neighbours (filling) VALUES ('prepared'); PREPARE TRANSACTION '$name'")->code eq ''
		  or return 0;
		undef $connection;
		sleep $draw->between(1000, 6000) / 1000;
		ask_once("ROLLBACK PREPARED '$name'");
		return 1;
	});

sub ask_once
{
	my ($sql) = @_;

	return wait_until(sub {
		my $connection = connect_admin(primary(), 1) or return 0;
		my $code = eval { $connection->query($sql)->code } // 'lost';

		# Gone: the first try has done it.
		return $code eq '' || $code eq '42704';
	});
}

1;
