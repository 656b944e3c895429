
# Faults::Clock - the servers' wall clock jumps, ahead and back, and returns
#
# It begins each round later than it ever was (main.pl), so that leases that were made
# ahead of time have lapsed by then. Two hours at most: a lease of six is live in
# every round, whatever the clock does.

package Faults::Clock;

use strict;
use warnings;

use Cluster;
use Shared;
use Time::HiRes qw(sleep);

our %faults = (
	'clock-ahead' => sub { return jump($_[0], 1); },
	'clock-back' => sub { return jump($_[0], -1); });

sub jump
{
	my ($draw, $sign) = @_;
	my $base = read_file('base');
	my $seconds = $draw->pick(2, 90, 1800, 7200);

	set_clock($base + $sign * $seconds * 1_000_000);
	# Long enough for the worker to believe it, mostly.
	sleep $draw->between(500, 4500) / 1000;
	set_clock($base);
	return 1;
}

1;
