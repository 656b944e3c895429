
# History - what clients did and were told, and whether it can be true
#
# A generator (002_history.pl) records every operation with the time before it
# was sent and after it was answered. check() then looks for contradictions to
# the promises that hold for every history, whatever the interleaving. It
# derives nothing from the order in which the server worked, only from what
# certainly came before what: the answer to one thing before the sending of
# another.
#
# What is recorded
#
#	transaction	{ state }: open, committed, aborted, or unknown where the
#			connection ended while the commit was under way; ended_at and
#			over_at are the times around its end
#	claim		{ key, outcome, token, body, lease, wrong, look, ... }
#	ending		{ kind, key, token, body, ... }: complete, fail, release,
#			extend, forget
#
# All three have sent_at and answered_at; claims and endings have a code
# (SQLSTATE or ''), the transaction they belong to, and undone_at if a savepoint
# was rolled back.

package History;

use strict;
use warnings;

use List::Util qw(max min);

# The clock counts microseconds; sums of them may be off by one.
my $tolerance = 0.000005;

# no_locks: the library was built without locks, so that only a commit shows who
# got the key.
sub new
{
	my ($class, %option) = @_;

	return bless { claims => [], endings => [], %option }, $class;
}

sub claim
{
	my ($self, %claim) = @_;

	push @{ $self->{claims} }, \%claim;
	return \%claim;
}

# How many claims were recorded.
sub claims { return scalar @{ $_[0]{claims} }; }

sub ending
{
	my ($self, %ending) = @_;

	push @{ $self->{endings} }, \%ending;
	return \%ending;
}

# It happened, for sure.
sub certain
{
	my ($event) = @_;

	return $event->{code} eq '' && !$event->{undone_at} && $event->{transaction}{state} eq 'committed';
}

# It may have happened.
sub possible
{
	my ($event) = @_;

	return !$event->{undone_at}
	  && ($event->{code} eq '' || $event->{code} eq 'lost')
	  && $event->{transaction}{state} =~ /committed|unknown/;
}

# From when on it was there for everybody to see.
sub visible_at { return $_[0]{transaction}{over_at}; }

# When nobody could know any more whether the claim still stood, at the
# earliest. Until then nobody else may have got the key.
sub held_until
{
	my ($claim, @endings) = @_;

	return min grep { defined } $claim->{undone_at}, $claim->{transaction}{ended_at}
	  if !$claim->{lease};

	my $until = $claim->{sent_at} + $claim->{lease};

	# A heartbeat that comes late may succeed, too, if nobody has taken over; but
	# in between somebody might have.
	foreach my $extension (
		sort { $a->{sent_at} <=> $b->{sent_at} }
		grep { $_->{kind} eq 'extend' && certain($_) && $_->{token} == $claim->{token} } @endings)
	{
		$until = max($until, $extension->{sent_at} + $extension->{lease}) if visible_at($extension) < $until;
	}
	return min $until,
	  map { $_->{sent_at} }
	  grep {
		$_->{kind} eq 'forget'
		  ? possible($_) && $_->{transaction}{over_at} > $claim->{sent_at}
		  : $_->{kind} ne 'extend' && ($_->{token} // 0) == $claim->{token}
	  } @endings;
}

# Violations, one line each.
sub check
{
	my ($self) = @_;
	my (%claims, %endings, %keys, @found);

	push @{ $claims{ $_->{key} } }, $_ foreach @{ $self->{claims} };
	push @{ $endings{ $_->{key} } }, $_ foreach @{ $self->{endings} };
	$keys{$_} = 1 foreach keys %claims, keys %endings;
	foreach my $key (sort keys %keys)
	{
		push @found, map { "key $key: $_" } $self->check_key($claims{$key} // [], $endings{$key} // []);
	}
	push @found, check_tokens(@{ $self->{claims} });
	return @found;
}

# I1, over all keys: no token twice.
sub check_tokens
{
	my %given;

	$given{ $_->{token} }++ foreach grep { defined $_->{token} && !$_->{repeated} } @_;
	return map { "I1: token $_ was given $given{$_} times" } grep { $given{$_} > 1 } sort keys %given;
}

sub check_key
{
	my ($self, $claims, $endings) = @_;
	my @granted = grep { $_->{outcome} eq 'claimed' && !$_->{repeated} } @$claims;
	my @completions = grep { $_->{kind} eq 'complete' } @$endings;
	# In the order in which they happened: a claim that follows a completion is
	# answered after that one's claim was, whichever commit was read first.
	my @done = sort { $a->{claim}{answered_at} <=> $b->{claim}{answered_at} } grep { certain($_) } @completions;
	my @forgets = grep { $_->{kind} eq 'forget' && possible($_) } @$endings;
	my $forgotten_between = sub {
		my ($from, $to) = @_;

		return grep { $_->{sent_at} < $to && $_->{transaction}{over_at} > $from } @forgets;
	};
	my @found;

	# I1: a later claim has the larger token.
	my @leased = sort { $a->{sent_at} <=> $b->{sent_at} } grep { defined $_->{token} } @granted;
	foreach my $i (1 .. $#leased)
	{
		foreach my $j (0 .. $i - 1)
		{
			push @found, "I1: token $leased[$i]{token} was given after $leased[$j]{token}"
			  if $leased[$j]{answered_at} < $leased[$i]{sent_at} && $leased[$j]{token} > $leased[$i]{token};
		}
	}

	# I2: one valid owner at a time. What two owners certainly held for
	# themselves does not overlap. (A transaction may claim again what it has
	# failed or released.)
	my @held;
	foreach my $claim (@granted)
	{
		next if $claim->{lease} && !certain($claim);
		next if $self->{no_locks} && !$claim->{lease};
		my $from = $claim->{lease} ? visible_at($claim) : $claim->{answered_at};
		my $until = held_until($claim, @$endings);

		push @held, [ $from, $until, $claim ] if defined $until && $until > $from;
	}
	@held = sort { $a->[0] <=> $b->[0] } @held;
	my $longest;
	foreach my $hold (@held)
	{
		push @found, sprintf('I2: two owners, the second %.6f s before the first was through (%s, %s)',
			$longest->[1] - $hold->[0], describe($longest->[2]), describe($hold->[2]))
		  if $longest
		  && $longest->[2]{transaction} != $hold->[2]{transaction}
		  && $hold->[0] + $tolerance < $longest->[1];
		$longest = $hold if !$longest || $hold->[1] > $longest->[1];
	}

	# I3: a late owner changes nothing any more. (Without locks, of two claims at
	# once the one with the larger token may come and go first.)
	my %grant = map { $_->{token} => $_ } @leased;
	foreach my $ending (grep { defined $_->{token} && certain($_) } @$endings)
	{
		foreach my $claim (grep { certain($_) && visible_at($_) < $ending->{sent_at} } @leased)
		{
			next if $self->{no_locks} && $claim->{sent_at} < $grant{ $ending->{token} }{answered_at};
			push @found, "I3: $ending->{kind} with token $ending->{token} after $claim->{token} was given"
			  if $claim->{token} > $ending->{token};
		}
	}

	# I4: one result, and after it no other execution, until it has expired or
	# was forgotten.
	foreach my $i (1 .. $#done)
	{
		my ($first, $second) = @done[ $i - 1, $i ];

		next if $first->{body} eq $second->{body};
		next if $forgotten_between->($first->{sent_at}, visible_at($second));
		# Without locks it is the completion that counts, not the claim.
		if ($self->{no_locks})
		{
			push @found, 'I4: two results at a time'
			  if $second->{answered_at} + $tolerance < $first->{expires_at}
			  && $first->{answered_at} + $tolerance < $second->{expires_at};
			next;
		}
		push @found, sprintf('I4: executed again %.6f s before the first result expired',
			$first->{expires_at} - $second->{claim}{answered_at})
		  if $second->{claim}{answered_at} + $tolerance < $first->{expires_at};
	}

	# I16: it expires when it should.
	foreach my $ending (@done)
	{
		push @found, sprintf('I16: expires %.6f s after its completion', $ending->{expires_at} - $ending->{sent_at})
		  if $ending->{expires_at} + $tolerance < $ending->{sent_at} + $ending->{ttl} / 2
		  || $ending->{expires_at} > $ending->{answered_at} + $ending->{ttl} + $tolerance;
	}

	# What was completed for sure, and since when that was certain: because the
	# commit was acknowledged, or because somebody got a replay.
	my %known;
	foreach my $ending (@done)
	{
		$known{ $ending->{body} } = [ visible_at($ending), $ending->{expires_at} ];
	}
	my %completion = map { $_->{body} => $_ } @completions;
	foreach my $claim (grep { $_->{outcome} eq 'replay' && !$_->{own} } @$claims)
	{
		my $completion = $completion{ $claim->{body} };

		# I5, I7: only what somebody has recorded, byte for byte.
		if (!$completion || !possible($completion) || $completion->{sent_at} > $claim->{answered_at})
		{
			push @found, 'I7: a replay of what nobody has completed';
			next;
		}
		push @found, 'I9: a replay for another request' if $claim->{wrong};
		push @found, sprintf('I4: replayed %.6f s after its expiry', $claim->{sent_at} - $completion->{expires_at})
		  if defined $completion->{expires_at} && $claim->{sent_at} > $completion->{expires_at} + $tolerance;
		next unless defined $completion->{expires_at};
		my $known = $known{ $claim->{body} } //= [ $claim->{answered_at}, $completion->{expires_at} ];
		$known->[0] = min($known->[0], $claim->{answered_at});
	}

	# I6: what is known to be completed stays so. I13: and nobody sees less
	# than somebody saw before.
	my @others = sort { $a->{sent_at} <=> $b->{sent_at} } grep { !$_->{own} && $_->{code} eq '' } @$claims;
	my $first = 0;

	foreach my $body (sort { $known{$a}[0] <=> $known{$b}[0] } keys %known)
	{
		my ($since, $expires_at) = @{ $known{$body} };

		$first++ while $first < @others && $others[$first]{sent_at} <= $since;
		foreach my $claim (@others[ $first .. $#others ])
		{
			last if $claim->{sent_at} >= $expires_at;
			next if $claim->{answered_at} >= $expires_at - $tolerance;
			next if $forgotten_between->($completion{$body}{sent_at}, $claim->{answered_at});
			my $expected = $claim->{wrong} ? 'mismatch' : 'replay';

			if ($claim->{outcome} ne $expected)
			{
				push @found, "I6: $claim->{outcome} after the completion was known (" . describe($claim) . ')';
			}
			elsif ($expected eq 'replay' && $claim->{body} ne $body)
			{
				push @found, 'I5: two responses of one request';
			}
		}
	}

	# I9: the right request is never taken for another one, and a wrong one
	# never for the right one while the claim of that is certain.
	foreach my $claim (@$claims)
	{
		push @found, 'I9: the right request was refused as another one'
		  if $claim->{outcome} eq 'mismatch' && !$claim->{wrong};
	}
	foreach my $hold (grep { $_->[2]{lease} } @held)
	{
		foreach my $claim (grep { $_->{wrong} && $_->{code} eq '' } @$claims)
		{
			push @found, "I9: $claim->{outcome} for another request than that in progress"
			  if $claim->{sent_at} > $hold->[0] && $claim->{answered_at} < $hold->[1] && $claim->{outcome} ne 'mismatch';
		}
	}
	return @found;
}

sub describe
{
	my ($claim) = @_;

	return join ' ', $claim->{outcome},
	  $claim->{lease} ? "lease $claim->{lease} token $claim->{token}" : 'no lease',
	  $claim->{level} // '', $claim->{transaction}{state} // '';
}

# All of it, one line each, for whoever looks into a failure.
sub lines
{
	my ($self) = @_;
	my %number;

	foreach my $event (@{ $self->{claims} }, @{ $self->{endings} })
	{
		$number{ $event->{transaction} } //= 1 + keys %number;
	}
	return map {
		my $event = $_;
		my $transaction = $event->{transaction};

		sprintf("%.6f-%.6f %s, %s, transaction %d %s %.6f-%.6f%s%s\n",
			$event->{sent_at}, $event->{answered_at}, $event->{key}, $event->{kind} // "claim: $event->{outcome}",
			$number{$transaction}, $transaction->{state}, $transaction->{ended_at} // 0, $transaction->{over_at} // 0,
			$event->{undone_at} ? sprintf(', undone %.6f', $event->{undone_at}) : '',
			join '', map { ", $_ $event->{$_}" } grep { ($event->{$_} // '') ne '' } qw(code token lease ttl expires_at body level wrong own repeated))
	} sort { $a->{sent_at} <=> $b->{sent_at} } @{ $self->{claims} }, @{ $self->{endings} };
}

# I8, for what the application booked in the same transactions: bodies to the
# number of their rows.
sub check_effects
{
	my ($self, $effects) = @_;
	my %completion = map { $_->{body} => $_ } grep { $_->{kind} eq 'complete' } @{ $self->{endings} };
	my @found;

	foreach my $body (sort keys %completion)
	{
		my $completion = $completion{$body};
		my $booked = $effects->{$body} // 0;

		push @found, "I8: key $completion->{key}: $booked effects of a committed execution"
		  if certain($completion) && $booked != 1;
		push @found, "I8: key $completion->{key}: $booked effects of an execution that did not happen"
		  if !possible($completion) && $booked != 0;
		push @found, "I8: key $completion->{key}: $booked effects of an execution of unknown fate"
		  if $booked > 1;
	}
	push @found, map { "I8: an effect that nobody booked" } grep { !$completion{$_} } keys %$effects;
	return @found;
}

1;
