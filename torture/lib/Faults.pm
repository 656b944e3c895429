
# Faults - what happens while clients work, and when
#
# Faults are in lanes. Each lane is a process of its own, so that faults of different
# lanes come on top of one another; those of one lane follow one another, with calm
# phases in between. A lane deals its faults from a deck that the seed shuffles, so all
# of them have come before one comes twice. Which process a fault hits, and in the
# middle of what, is not the seed's to say.
#
# A fault is a sub in one of the files in Faults/, which gets a source of random
# numbers, and returns true if it could be done.

package Faults;

use strict;
use warnings;

use Cluster;
use Draw;
use Exporter qw(import);
use POSIX ();
use Shared;
use Time::HiRes qw(sleep time);

use Faults::Clock;
use Faults::Pooler;
use Faults::Processes;
use Faults::Servers;
use Faults::Sessions;
use Faults::Snapshots;
use Faults::Tables;

our @EXPORT = qw(all_faults begin_faults run_faults);

# Lanes: their faults, and the calm after each, in milliseconds, from and to.
my %lanes = (
	processes => [ \%Faults::Processes::faults, 400, 2500 ],
	sessions => [ \%Faults::Sessions::faults, 20, 400 ],
	servers => [ \%Faults::Servers::faults, 1500, 4000 ],
	clock => [ \%Faults::Clock::faults, 1000, 4000 ],
	tables => [ \%Faults::Tables::faults, 200, 2000 ],
	snapshots => [ \%Faults::Snapshots::faults, 500, 3000 ],
	pooler => [ \%Faults::Pooler::faults, 2000, 6000 ]);
my (%wanted, $seed);

sub all_faults { return sort map { keys %{ $_->[0] } } values %lanes; }

sub begin_faults
{
	($seed, my @names) = @_;
	%wanted = map { $_ => 1 } @names;
	return;
}

# Of a lane, from a number of the deck on: the faults of the round, one after the other.
# Where a lane left off in a round it goes on in the next.
sub run_lane
{
	my ($lane, $round, $until, $slow) = @_;
	my ($faults, $from, $to) = @{ $lanes{$lane} };
	my @names = grep { $wanted{$_} } sort keys %$faults or return;
	my $card = read_file("card.$lane") // 0;
	my $draw = Draw->new($seed, $lane, $round);

	sleep $draw->between(0, 1000) / 1000;
	while (time < $until)
	{
		my @deck = Draw->new($seed, $lane, 'deck', int($card / @names))->shuffle(@names);
		my $name = $deck[ $card % @names ];
		my $before = now_us();
		my $done = eval { $faults->{$name}->($draw) };
		my $why = $@ =~ s/\n.*//sr;

		note_line('faults', join ' ', $round, $name, $before, now_us(), $done ? 'done' : "not done $why");
		write_file("card.$lane", ++$card);
		sleep $slow * $draw->between($from, $to) / 1000;
	}
	return;
}

# All lanes for so many seconds, then calm. "slow" stretches the calm phases.
sub run_faults
{
	my ($round, $seconds, $slow, $meanwhile) = @_;
	my $until = time + $seconds;
	my @children;

	foreach my $lane (sort keys %lanes)
	{
		my $pid = fork // die "fork: $!";

		if (!$pid)
		{
			$SIG{$_} = 'DEFAULT' foreach qw(INT TERM);
			eval { run_lane($lane, $round, $until, $slow); 1 } or note_line('faults', "$round $lane 0 0 lane died $@");
			POSIX::_exit(0);
		}
		push @children, $pid;
	}
	while (@children)
	{
		$meanwhile->();
		sleep 0.05;
		@children = grep { waitpid($_, POSIX::WNOHANG()) == 0 } @children;
	}
	return;
}

1;
