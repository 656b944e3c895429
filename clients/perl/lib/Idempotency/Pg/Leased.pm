package Idempotency::Pg::Leased;

# Work that leaves the database: the claim is committed first, with a lease, and what became of the work is recorded afterwards.
# $work->({ id, claim, state, effect_key }) says by its end what is known. An answer, { status, headers, body, book }, is recorded in
# one transaction with what $book->($dbh) writes; a refusal for good is such an answer. nothing_happened($why) lets the next attempt
# do it. Any other die means that nobody knows, and the key is held for a person.
use v5.26; use warnings; use experimental 'signatures';
use Exporter 'import'; use Idempotency::Pg qw(again kind); use List::Util 'max'; use POSIX ();
our @EXPORT_OK = qw(completer nothing_happened run_leased);
@Idempotency::Pg::NothingHappened::ISA = 'Idempotency::Pg::Error';    # which reads as its message
sub nothing_happened ($why) { die bless { message => "$why" }, 'Idempotency::Pg::NothingHappened' }
sub despite_loss ($work) { again(['unavailable'], $work, 6) }

# A row as of claim(), with the answer where it was claimed; its outcome can also be "failed", after nothing_happened().
sub run_leased ($pg, $id, $work, %options) {
	die 'leased work cannot begin in a transaction' if $pg->{in};
	my ($wait, $step) = delete @options{qw(wait step)};
	open my $random, '<:raw', '/dev/urandom' or die "/dev/urandom: $!";
	read $random, my $bytes, 16;
	# If the answer to the claim is lost, the same id gets the same token.
	my %claim = (%options, lease => $options{lease} // '1 min', claim_id => unpack 'H*', $bytes);
	my $claimed = $pg->capped($wait, sub ($most) { despite_loss(sub { $pg->claim($id, %claim, wait => $most) }) });
	return $claimed->{outcome} eq 'claimed' ? finish($pg, $id, $claimed, $step, $work) : $claimed;
}

# Drives on what others have left behind, one at a time, until $options{until}->() says so. It wants a process of its own.
sub completer ($pg, $operation, $work, %options) {
	until ($options{until} && $options{until}->()) {
		next if eval {
			my ($found) = $pg->claim_abandoned(operation => $operation, lease => $options{lease}, max_rows => 1);
			$found && finish($pg, [@$found{qw(scope operation key)}], $found, $options{step}, $work);
		};
		($options{on_error} // sub ($why) { warn "completer: $why" })->($@) if $@;
		select undef, undef, undef, $options{every} // 1;
	}
}

sub finish ($pg, $id, $claimed, $step, $work) {
	my @token = (token => $claimed->{token});
	# What a repeat finds settled was settled by the call whose answer was lost, or is somebody else's by now.
	my $settle = sub ($outcome, $verb, $name, $error) {
		my $why = substr "$error", 0, 1000;
		eval { despite_loss(sub { $pg->$verb($id, $name => $why, @token) }); 1 }
			or kind($@) =~ /^(?:stale_claim|not_claimed|held)$/ or die $@;
		return { outcome => $outcome, last_error => $why };
	};
	my $effect = eval { despite_loss(sub { $pg->effect_key($id, $step) }) } // return $settle->('failed', 'fail', error => $@);
	my $attempt = { id => $id, claim => $claimed, state => $claimed->{state}, effect_key => $effect };
	my ($answer, $error, $lost) = beating($pg, $attempt, $work);
	$pg->extend($id, @token) if $lost;    # an error, which says why: not the owner any more, so there is nothing to record
	return $settle->('failed', 'fail', error => $error) if ref $error eq 'Idempotency::Pg::NothingHappened';
	return $settle->('held', 'hold', reason => $error) if $error;
	my $recorded = eval { despite_loss(sub { $pg->transaction(sub ($dbh) {
		# First, so that a repeat of what was committed learns that from it, and not from a unique key of book's.
		my $expires = $pg->complete($id, %$answer{qw(status headers body)}, @token, refuse_repeat => 1);
		$answer->{book}->($dbh) if $answer->{book};
		$expires;
	}) }) };
	return { outcome => 'claimed', %$answer, expires_at => $recorded } if $recorded;
	$error = $@;
	# The answer to COMMIT was lost, or a person was faster: what is recorded is what counts.
	return { $pg->replay($id)->%*, outcome => 'replay' } if kind($error) eq 'stale_claim' && $error->{reason} eq 'completed';
	# It was done and cannot be recorded. Nobody may do it once more because the lease ends.
	$settle->('held', 'hold', reason => $error) unless kind($error) =~ /^(?:unavailable|stale_claim)$/;
	die $error;
}

# The work, and beside it a child with a connection of its own that renews the lease, three times in its length; its signal ends the
# work when the claim is lost. Not an alarm: that would cut sleeps short, have to wait for whatever blocks in C, take the work's own
# alarms away, and ask on a connection that is in use.
sub beating ($pg, $attempt, $work) {
	my ($parent, $working, $lost, $answer, $error) = ($$, 0);
	local $SIG{USR1} = sub { $lost = 1; die "the claim was lost\n" if $working };
	my $child = fork // return (undef, bless { message => "fork: $!" }, 'Idempotency::Pg::NothingHappened');
	if (!$child) { eval { beat($pg, $attempt, $parent) }; POSIX::_exit(0) }    # nothing of the parent's is to be tidied up
	eval {    # the signal may come when the inner one has just ended
		$working = 1;
		$answer = eval { $work->($attempt) };
		$error = $@ || 'the work gave no answer' unless ref $answer eq 'HASH';
		$working = 0;
	};
	$working = 0;
	kill KILL => $child; waitpid $child, 0;
	return ($answer, $error, $lost);
}

sub beat ($pg, $attempt, $parent) {
	$SIG{$_} = 'DEFAULT' for qw(INT TERM HUP QUIT USR1 USR2 ALRM CHLD);
	POSIX::close($_) for 3 .. 255;    # sockets of a server, which must not stay open because of this process
	do {
		select undef, undef, undef, max(0.1, $attempt->{claim}{lease_seconds} / 3);
		return if getppid != $parent;    # it was killed, and the lease has to end
	} while eval { $pg->extend($attempt->{id}, token => $attempt->{claim}{token}) } || kind($@) =~ /^(?:unavailable|retry)$/;
	kill USR1 => $parent;
}
1;
