
# Faults::Sessions - statements that are cancelled, sessions that are ended
#
# Both may hit a commit that waits for the standby: then it stands here and nowhere
# else, of which PostgreSQL warns (t/019_cancelled_wait.pl). So no promotion is begun
# before what stands here has arrived there: they hold a lock that Servers.pm takes.

package Faults::Sessions;

use strict;
use warnings;

use Cluster;
use Shared;

our %faults = (
	'cancel' => sub { return signal_some('pg_cancel_backend', "usename = 'app' AND state <> 'idle'", 1 + $_[0]->between(0, 5)); },
	'terminate' => sub { return signal_some('pg_terminate_backend', "usename = 'app'", 1); },
	'terminate-worker' => sub { return signal_some('pg_terminate_backend', "backend_type LIKE 'idempotency %'", 2); });

sub signal_some
{
	my ($function, $which, $count) = @_;

	return with_lock('commits', 1, sub {
		my $connection = connect_admin(primary(), 1) or return 0;
		my $result = $connection->query(qq{
			SELECT count($function(pid)) FROM (SELECT pid FROM pg_stat_activity
				WHERE pid <> pg_backend_pid() AND ($which) ORDER BY random() LIMIT $count) AS p});

		return $result->value // 0;
	});
}

1;
