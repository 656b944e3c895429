
# Judge - whether what the clients of a round were told can be true
#
# Reads what client/wire.c has written, and looks for contradictions to what is
# promised whatever the interleaving (the numbers of the invariants are those of
# t/lib/History.pm). It derives nothing from the order in which the server worked:
# only from what certainly came before what, the answer to one thing before the sending
# of another, by the monotonic clock that all clients share. Only where a lease has to
# be over it compares times of the server's own clock, which may jump; calls that were
# under way while it did are left out there.
#
# t/lib/History.pm does not fit here: it compares leases with the clients' clock,
# which is nobody's where the server's jumps, and keeps a million events as hashes.

package Judge;

use strict;
use warnings;

use List::Util qw(max min);
use Shared;

# What a key is for: the last four bits of its number, as in client/scripts.c.
my ($kept, $long, $once, $batch) = (6, 7, 10, 11);

sub kind { return $_[0] & 15; }
sub lasts { return !grep { kind($_[0]) == $_ } 8, 9, 12, 13; }
sub passes { return kind($_[0]) == 8 || kind($_[0]) == 9; }
# Its row may be deleted while it is wanted.
sub deletable { return kind($_[0]) != $kept && kind($_[0]) != $long; }

my %ends = map { $_ => 1 } qw(complete fail release hold);
my %decides = map { $_ => 1 } qw(forget resolve);
my %of_owner = map { $_ => 1 } qw(complete fail release hold extend checkpoint);

# Fields of a call.
use constant { TX => 0, KIND => 1, KEY => 2, SENT => 3, ANSWERED => 4, CODE => 5, OUTCOME => 6, TOKEN => 7, SERVER => 8, UNTIL => 9,
	EXECUTION => 10, FLAGS => 11, STATE => 12, UNDONE => 13, CLIENT => 14 };

sub new
{
	my ($class) = @_;

	return bless { calls => {}, transactions => {}, counts => {}, codes => {}, violations => [], steps => [] }, $class;
}

sub violation
{
	my ($self, $key, $words) = @_;

	push @{ $self->{violations} }, [ $key, $words ];
	return;
}

# ---- reading -------------------------------------------------------------------------

# A client's history of one round; all of its lives, one after the other.
sub read_history
{
	my ($self, $client, $file) = @_;
	my $intention;
	my $lost = sub {
		# A call that was sent, and whose client was killed before it could say how it
		# was answered.
		return unless $intention;
		my ($kind, $key, $sent, $token) = @$intention;
		push @{ $self->{calls}{$key} }, [ 0, $kind, $key, $sent, 9e18, 'lost', '-', $token, 0, 0, $kind eq 'run' ? $token : 0, '-', 'unknown', undef, $client ];
		undef $intention;
	};

	open my $in, '<', $file or return;
	while (my $line = <$in>)
	{
		# A client that was killed may have left half a line.
		next if $line !~ /\n\z/;
		my ($what, @fields) = split ' ', $line;

		if ($what eq 'C' && @fields == 12)
		{
			my $call = \@fields;

			$call->[CLIENT] = $client;
			$self->{counts}{ $call->[KIND] }{ $call->[CODE] eq 'ok' ? $call->[OUTCOME] : $call->[CODE] }++ if $call->[KIND] ne 'undo';
			$call->[EXECUTION] = $intention->[3] if $intention && $call->[KIND] eq 'run' && $call->[CODE] ne 'ok';
			undef $intention if !$call->[TX];
			push @{ $self->{calls}{ $call->[KEY] } }, $call;
			push @{ $self->{of_transaction}{ $call->[TX] } }, $call if $call->[TX];
		}
		elsif ($what eq 'I') { $lost->(); $intention = \@fields; }
		elsif ($what eq 'P') { $self->{transactions}{ $fields[0] } = { state => 'unknown', last_ok => 0, over => 9e18 }; }
		elsif ($what eq 'E')
		{
			my ($number, $state, $sent, $answered, $code, $last_ok) = @fields;

			$self->{transactions}{$number} = { state => $state, sent => $sent, over => $answered, last_ok => $last_ok };
			$self->{counts}{transaction}{ $code eq 'ok' || $state ne 'aborted' ? $state : $code }++;
		}
		elsif ($what eq 'V') { $self->violation($fields[0], join ' ', @fields[ 1 .. $#fields ]); }
	}
	$lost->();
	return;
}

sub read_steps
{
	my ($self) = @_;

	$self->{steps} = [ map { [split] } read_lines('steps') ];
	return;
}

sub step_between
{
	my ($self, $from, $to, $back) = @_;

	return grep { $_->[0] < $to && $_->[1] > $from && (!$back || $_->[3] < $_->[2]) } @{ $self->{steps} };
}

# Which calls took effect: committed, unknown or aborted.
sub settle
{
	my ($self) = @_;

	foreach my $calls (values %{ $self->{calls} })
	{
		foreach my $call (@$calls)
		{
			next if $call->[STATE];
			my $code = $call->[CODE];

			$call->[STATE] =
			    $call->[TX] ? ($code ne 'ok' ? 'aborted' : ($self->{transactions}{ $call->[TX] } // { state => 'aborted' })->{state})
			  : $code eq 'ok' ? 'committed'
			  : $code =~ /^(?:lost|unsure)$/ ? 'unknown'
			  :                 'aborted';
		}
	}
	foreach my $calls (values %{ $self->{of_transaction} })
	{
		foreach my $undo (grep { $_->[KIND] eq 'undo' } @$calls)
		{
			foreach my $call (grep { $_->[KEY] == $undo->[KEY] && $_->[SENT] < $undo->[SENT] } @$calls)
			{
				$call->[STATE] = 'aborted';
				$call->[UNDONE] = $undo->[SENT];
			}
		}
	}
	return;
}

sub over_at
{
	my ($self, $call) = @_;

	return $call->[TX] ? $self->{transactions}{ $call->[TX] }{over} : $call->[ANSWERED];
}

# ---- judging -------------------------------------------------------------------------

sub judge
{
	my ($self) = @_;
	my %tokens;

	$self->read_steps;
	$self->settle;
	foreach my $key (sort { $a <=> $b } keys %{ $self->{calls} })
	{
		my @calls = sort { $a->[SENT] <=> $b->[SENT] } @{ $self->{calls}{$key} };
		my @grants = grep { $_->[CODE] =~ /^(?:ok|unsure)$/ && $_->[OUTCOME] eq 'claimed' && $_->[KIND] =~ /^claim/ } @calls;
		my @leased = grep { $_->[TOKEN] } @grants;

		# I1, over all keys: no token twice, but to who repeats a claim by its id.
		foreach my $grant (@leased)
		{
			my $other = $tokens{ $grant->[TOKEN] } //= $grant;

			$self->violation($key, "I1: token $grant->[TOKEN] was given to two")
			  if $other->[KEY] != $key || $grant != $other && ($grant->[CLIENT] != $other->[CLIENT] || $grant->[FLAGS] ne 'id' || $other->[FLAGS] ne 'id');
		}
		$self->judge_order($key, @leased);
		$self->judge_leases($key, \@calls, \@grants, \@leased);
		$self->judge_transactions($key, @grants);
		$self->judge_late_owners($key, \@calls, \@leased);
		$self->judge_results($key, @calls);
	}
	return;
}

# I1: a later claim has the larger token. Where the row went, and the clock back, the new
# one may be smaller until the clock has caught up with it (docs/guarantees.md#tokens).
sub judge_order
{
	my ($self, $key, @leased) = @_;
	my @answered = sort { $a->[ANSWERED] <=> $b->[ANSWERED] } @leased;
	my ($largest, $at);

	foreach my $grant (@leased)
	{
		while (@answered && $answered[0][ANSWERED] < $grant->[SENT])
		{
			my $before = shift @answered;

			($largest, $at) = ($before->[TOKEN], $before) if !defined $largest || $before->[TOKEN] > $largest;
		}
		next if !defined $largest || $largest <= $grant->[TOKEN];
		next if $largest == $grant->[TOKEN];
		next if deletable($key) && ($self->step_between($at->[SENT], $grant->[ANSWERED], 1) || ($largest >> 20) * 1_000_000 > $grant->[SERVER] - 1_000_000);
		$self->violation($key, "I1: token $grant->[TOKEN] was given after $largest");
	}
	return;
}

# I2: a lease is over, or its claim was ended, before somebody else gets the key.
sub judge_leases
{
	my ($self, $key, $calls, $grants, $leased) = @_;

	foreach my $grant (@$grants)
	{
		next if !$grant->[SERVER] || $self->step_between($grant->[SENT], $grant->[ANSWERED]);
		# The last that certainly came before.
		my ($before) = sort { $b->[SENT] <=> $a->[SENT] } grep { $_->[ANSWERED] < $grant->[SENT] && $_->[TOKEN] != $grant->[TOKEN] && $_->[CODE] eq 'ok' } @$leased;

		next if !$before;
		# Others may have had it in between.
		next if grep { $_ != $before && $_ != $grant && $_->[TOKEN] != $before->[TOKEN] && $_->[ANSWERED] > $before->[SENT] && $_->[SENT] < $grant->[ANSWERED] } @$grants;
		my @between = grep { $_->[SENT] < $grant->[ANSWERED] && $_->[ANSWERED] > $before->[SENT] } @$calls;
		my $token = $before->[TOKEN];

		next if grep { $_->[STATE] ne 'aborted' && ($ends{ $_->[KIND] } && $_->[TOKEN] == $token || $decides{ $_->[KIND] }) } @between;
		# It was over, and then the clock went back: somebody else may have had the key
		# since, or clean-up may have taken the row.
		next if $self->step_between($before->[ANSWERED], $grant->[ANSWERED], 1) && (passes($key) || grep { $_->[STATE] eq 'unknown' } @between);

		my $until = max map { $_->[UNTIL] }
		  grep { $_->[TOKEN] == $token && $_->[STATE] eq 'committed' && $_->[UNTIL] && $self->over_at($_) < $grant->[SENT] } $before, @between;

		$self->violation($key, sprintf 'I2: token %d was valid for another %.3f s when somebody else got the key', $token, ($until - $grant->[SERVER]) / 1e6)
		  if $grant->[SERVER] + 1000 < $until;
	}
	return;
}

# I2: nor do two transactions have a key at a time. What certainly lasted of one: from
# its answer to the sending of the last thing that went well.
sub judge_transactions
{
	my ($self, $key, @grants) = @_;
	my @held;
	my $last;

	foreach my $grant (grep { !$_->[TOKEN] && $_->[TX] } @grants)
	{
		my $transaction = $self->{transactions}{ $grant->[TX] } or next;
		my ($gone) = grep { $_->[KIND] =~ /^(?:release|fail)$/ && $_->[KEY] == $key } @{ $self->{of_transaction}{ $grant->[TX] } };
		my $until = min grep { defined } $transaction->{last_ok}, $grant->[UNDONE], $gone && $gone->[SENT];

		push @held, [ $grant->[ANSWERED], $until, $grant ] if $until > $grant->[ANSWERED];
	}
	foreach my $hold (sort { $a->[0] <=> $b->[0] } @held)
	{
		$self->violation($key, sprintf 'I2: two transactions had the key at a time, for %.6f s', ($last->[1] - $hold->[0]) / 1e6)
		  if $last && $last->[1] > $hold->[0] && $last->[2][TX] != $hold->[2][TX];
		$last = $hold if !$last || $hold->[1] > $last->[1];
	}
	return;
}

# I3: who comes late changes nothing any more.
sub judge_late_owners
{
	my ($self, $key, $calls, $leased) = @_;
	my %grant = map { $_->[TOKEN] => $_ } reverse @$leased;

	foreach my $call (grep { $of_owner{ $_->[KIND] } && $_->[TOKEN] && $_->[STATE] eq 'committed' } @$calls)
	{
		my $own = $grant{ $call->[TOKEN] } or next;

		foreach my $later (@$leased)
		{
			$self->violation($key, "I3: $call->[KIND] with token $call->[TOKEN] after $later->[TOKEN] was given")
			  if $later->[TOKEN] > $call->[TOKEN] && $later->[STATE] eq 'committed' && $later->[ANSWERED] < $call->[SENT] && $later->[SENT] > $own->[ANSWERED];
		}
	}
	return;
}

# One of the calls may have come between the executions.
sub may_lie_between
{
	my ($self, $first, $second, $calls) = @_;

	return grep { $_->[SENT] < $self->over_at($second) && $_->[ANSWERED] > $first->[SENT] } @$calls;
}

# I4: a lasting key is executed once, one that is forgotten once between two times. I5, I7:
# and what is replayed is what somebody has recorded.
sub judge_results
{
	my ($self, $key, @calls) = @_;
	my @completions = grep { $_->[EXECUTION] && ($_->[KIND] eq 'complete' || $_->[KIND] =~ /^once/ || $_->[KIND] eq 'run' && $_->[OUTCOME] ne 'replay') } @calls;
	my @done = sort { $self->over_at($a) <=> $self->over_at($b) } grep { $_->[STATE] eq 'committed' } @completions;
	my %possible = map { $_->[EXECUTION] => 1 } grep { $_->[STATE] ne 'aborted' } @completions;
	my @forgets = grep { $decides{ $_->[KIND] } && $_->[STATE] ne 'aborted' } @calls;

	foreach my $i (1 .. $#done)
	{
		my ($first, $second) = @done[ $i - 1, $i ];

		last if passes($key);
		next if $first->[EXECUTION] == $second->[EXECUTION];
		next if !lasts($key) && $self->may_lie_between($first, $second, \@forgets);
		# An answer to COMMIT may come late: then nobody knows which was the first.
		next if !lasts($key) && $second->[SENT] < $self->over_at($first) && $self->may_lie_between($second, $first, \@forgets);
		$self->violation($key, 'I4: executed twice');
	}
	foreach my $call (grep { $_->[EXECUTION] && $_->[CODE] eq 'ok' && $_->[OUTCOME] eq 'replay' } @calls)
	{
		$self->violation($key, 'I7: a replay of what was not committed') if !$possible{ $call->[EXECUTION] };
	}
	$self->{committed}{ $_->[EXECUTION] } = $key foreach @done;
	$self->{possible}{$_} = $key foreach keys %possible;
	$self->{aborted}{ $_->[EXECUTION] } = $key foreach grep { $_->[STATE] eq 'aborted' } @completions;
	return;
}

# I8, I6: business rows (key and execution) and the keys as they are in the end (number,
# status and the execution that is replayed).
sub judge_tables
{
	my ($self, $effects, $keys) = @_;
	my (%booked, %of_key, %row);

	$booked{ $_->[1] }++, push @{ $of_key{ $_->[0] } }, $_->[1] foreach @$effects;
	$row{ $_->[0] } = $_ foreach @$keys;
	foreach my $execution (keys %{ $self->{committed} })
	{
		$self->violation($self->{committed}{$execution}, 'I8: ' . ($booked{$execution} // 0) . ' business rows of a committed execution') if ($booked{$execution} // 0) != 1;
	}
	foreach my $row (@$effects)
	{
		my ($key, $execution) = @$row;

		$self->violation($key, 'I8: a business row of an execution that was rolled back') if !$self->{possible}{$execution} && $self->{aborted}{$execution};
		$self->violation($key, 'I8: a business row that nobody has booked') if !$self->{possible}{$execution} && !$self->{aborted}{$execution};
		$self->violation($key, 'I8: a business row is there twice') if $booked{$execution} > 1;
	}
	foreach my $key (grep { lasts($_) } keys %of_key)
	{
		my @executions = @{ $of_key{$key} };

		$self->violation($key, 'I8: ' . @executions . ' business rows of one key') if @executions != 1;
		$self->violation($key, 'I6: its business row is there, and it is not') if !$row{$key};
		next if !$row{$key};
		$self->violation($key, "I6: its business row is there, and it is $row{$key}[1]") if $row{$key}[1] ne 'completed';
		next if kind($key) == $once || kind($key) == $batch;
		$self->violation($key, 'I8: the response is not of the execution that was booked') if ($row{$key}[2] // 0) != $executions[0];
	}
	foreach my $key (grep { lasts($_) } keys %row)
	{
		$self->violation($key, 'I10: the key was not driven to its end') if $row{$key}[1] ne 'completed';
		$self->violation($key, 'I8: completed without its business row') if $row{$key}[1] eq 'completed' && !$of_key{$key};
	}
	return;
}

# ---- showing -------------------------------------------------------------------------

sub lines_of
{
	my ($self, $key) = @_;

	return map {
		my $call = $_;

		sprintf "%.6f-%s client %d %s: %s%s%s", $call->[SENT] / 1e6, $call->[ANSWERED] > 8e18 ? 'never' : sprintf('%.6f', $call->[ANSWERED] / 1e6), $call->[CLIENT], $call->[KIND],
		  $call->[CODE] eq 'ok' ? $call->[OUTCOME] : $call->[CODE], ($call->[TX] ? " in $call->[TX]" : '') . ', ' . ($call->[STATE] // '?'),
		  join '', map { $call->[$_->[1]] && $call->[ $_->[1] ] ne '-' ? ", $_->[0] $call->[$_->[1]]" : '' }[ 'token', TOKEN ], [ 'server', SERVER ], [ 'until', UNTIL ], [ 'execution', EXECUTION ], [ 'as', FLAGS ]
	} sort { $a->[SENT] <=> $b->[SENT] } @{ $self->{calls}{$key} // [] };
}

1;
