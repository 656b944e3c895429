
# Faults::Pooler - the pooler dies, or stands still; half of the clients are behind it

package Faults::Pooler;

use strict;
use warnings;

use Cluster;
use Shared;
use Time::HiRes qw(sleep);

our %faults = (
	'kill-pooler' => sub {
		stop_pooler() or return 0;
		sleep $_[0]->between(0, 500) / 1000;
		return start_pooler();
	},
	'stop-pooler' => sub {
		my $pid = pooler_pid() or return 0;

		kill STOP => $pid;
		sleep $_[0]->between(100, 1500) / 1000;
		kill CONT => $pid;
		return 1;
	});

1;
