# Work that leaves the database: what is recorded of it, when a claim's answer is lost, when the claim is, and when its owner dies.

use v5.26;
use warnings;
use experimental 'signatures';
use FindBin;
use lib "$FindBin::RealBin/lib";
use Idempotency::Pg 'kind';
use Idempotency::Pg::Leased qw(completer nothing_happened run_leased);
use LossyProxy;
use POSIX ();
use Database;
use Test::More;

my $pg = new_pg();
my %request = (request => { item => 1 }, lease => '1 min');

sub error_of ($work) { eval { $work->(); 1 } ? undef : $@ }
sub asleep ($seconds) { select undef, undef, undef, $seconds }

subtest 'an answer is recorded with what it books, once' => sub {
	my ($id, @attempts) = new_id();
	my $work = sub ($attempt) {
		push @attempts, $attempt;
		return { status => 201, body => { charged => $attempt->{state}{amount} }, book => sub ($dbh) { insert($dbh, 'booked') } };
	};
	my ($first, $second) = map { run_leased($pg, $id, $work, %request, step => 'charge', state => { amount => 5 }) } 1, 2;
	is_deeply([@$first{qw(outcome status body)}], ['claimed', 201, { charged => 5 }], 'the first');
	ok($first->{expires_at}, 'and until when it is replayed');
	is_deeply([@$second{qw(outcome response_status response_body)}], ['replay', 201, '{"charged":5}'], 'the second');
	is(count('booked'), 1, 'one row');
	is_deeply([map { $_->{effect_key} } @attempts], [$pg->effect_key($id, 'charge')], 'one call, with the effect key');
};

subtest 'the other ends: nothing happened, nobody knows, not to be recorded' => sub {
	my $id = new_id();
	my $result = run_leased($pg, $id, sub { nothing_happened('connection refused') }, %request);
	is_deeply($result, { outcome => 'failed', last_error => 'connection refused' }, 'nothing happened');
	$result = run_leased($pg, $id, sub ($attempt) { { body => { map { $_ => $attempt->{claim}{$_} } qw(attempt last_error) } } }, %request);
	is_deeply($result->{body}, { attempt => 2, last_error => 'connection refused' }, 'the next attempt does it');

	$id = new_id();
	is(run_leased($pg, $id, sub { die 'no answer ' . 'x' x 9e6 }, %request)->{outcome}, 'held', 'nobody knows');
	like($pg->lookup($id)->{last_error}, qr/^no answer/, 'why');
	is(run_leased($pg, $id, sub { fail('it was run') }, %request)->{outcome}, 'held', 'and nobody gets it');
	is(run_leased($pg, new_id(), sub { undef }, %request)->{outcome}, 'held', 'work without an answer');

	for my $answer ({ body => 'x' x (5 << 20), book => sub ($dbh) { insert($dbh, 'large') } },
		{ body => 'booked', book => sub ($dbh) { insert($dbh, 'large'); $dbh->do('SELECT 1/0') } }) {
		my $error = error_of(sub { run_leased($pg, $id = new_id(), sub { $answer }, %request) });
		like($error->{state}, qr/^(?:54000|22012)$/, 'it is an error');
		is($pg->lookup($id)->{status}, 'held', 'done, and not to be recorded: held');
	}
	is(count('large'), 0, 'and nothing is booked');
	my $within = sub { run_leased($pg, new_id(), sub { {} }, %request) };
	like(error_of(sub { $pg->transaction($within) }), qr/transaction/, 'not in a transaction');
};

subtest 'an answer that a person has recorded meanwhile is the one that counts' => sub {
	my $id = new_id();
	my $result = run_leased($pg, $id, sub ($attempt) {
		outside('SELECT idempotency.complete(?, ?, ?, 201, ?, token => ?)', @$id, 'by hand', $attempt->{claim}{token});
		return { status => 201, body => 'by the machine', book => sub ($dbh) { insert($dbh, 'by the machine') } };
	}, %request);
	is_deeply([@$result{qw(outcome response_body)}, count('by the machine')], ['replay', 'by hand', 0], 'a replay');
};

# The processes that renew leases: children of this one that have not ended.
sub hearts () { waitpid(-1, POSIX::WNOHANG()) }

subtest 'a heartbeat keeps the lease, and leaves the work alone' => sub {
	my ($id, $losses) = (new_id(), 0);
	my $losing = Idempotency::Pg->new(sub { $losses-- > 0 ? connected('dbi:Pg:host=127.0.0.1;port=1') : connected() });
	$losing->dbh;
	$losses = 2;    # of the child, whose first beats find nobody there
	pipe my $read, my $write or die "pipe: $!";
	my $result = run_leased($losing, $id, sub ($attempt) {
		until_it('a heartbeat', sub { $pg->lookup($id)->{locked_until} ne $attempt->{claim}{locked_until} });
		local $SIG{ALRM} = sub { die "the child has it open\n" };
		close $write;
		alarm 60;
		is(readline $read, undef, 'the child keeps nothing open that its parent closes');
		alarm 0;
		return { body => 'done' };
	}, %request, lease => '900 ms');
	is($result->{outcome}, 'claimed', 'it is done') or diag explain $result;
	is(hearts(), -1, 'and no process is left');
};

subtest 'work that has lost its claim is stopped, and records nothing' => sub {
	for my $stubborn (0, 1) {    # which catches whatever it is told
		my ($id, $stopped) = (new_id(), 0);
		my $error = error_of(sub {
			run_leased($pg, $id, sub {
				outside('SELECT idempotency.forget(?, ?, ?, force => true)', @$id);
				if ($stubborn) { eval { asleep(60); 1 } or $stopped = 1; return { body => 'done' } }
				eval { asleep(60); 1 } or do { $stopped = 1; die $@ };
			}, %request, lease => '300 ms');
		});
		is_deeply([kind($error), $stopped], ['stale_claim', 1], 'stopped, and told why');
		is(scalar $pg->lookup($id), undef, 'a late owner records nothing');
		is(hearts(), -1, 'no process is left');
		is($SIG{USR1}, undef, 'nor a handler');
	}
};

subtest 'a lease ends when its owner is killed' => sub {
	my $id = new_id();
	pipe my $read, my $write or die "pipe: $!";
	my $owner = fork // die "fork: $!";
	if (!$owner) {
		run_leased($pg, $id, sub { syswrite $write, "begun\n"; asleep(600) }, %request, lease => '600 ms');
		POSIX::_exit(1);
	}
	close $write;
	is(readline $read, "begun\n", 'it works');
	kill KILL => $owner;
	waitpid $owner, 0;
	ok(until_it('it is abandoned', sub { $pg->lookup($id)->{abandoned} }), 'and nobody renews its lease');
};

subtest 'a claim whose answer is lost is repeated with its claim_id' => sub {
	my $proxy = LossyProxy->start('claimed');
	my ($id, $runs) = (new_id(), 0);
	my $through = Idempotency::Pg->new(sub { connected($proxy->dsn) });
	my $work = sub ($attempt) { { body => { run => ++$runs, attempt => $attempt->{claim}{attempt} } } };
	my $result = run_leased($through, $id, $work, %request);
	is($proxy->lost, 1, 'the first answer was lost');
	is_deeply([@$result{qw(outcome body)}], ['claimed', { run => 1, attempt => 1 }], 'one attempt, one run');
};

subtest 'the completer drives on what others left, from its state' => sub {
	my $operation = 'POST /abandoned';
	my @ids = map { new_id($operation) } 1, 2;
	$pg->claim($_, request => {}, lease => '1 ms', state => { item => $_->[2] }) for @ids;
	completer($pg, $operation, sub ($attempt) {
		my $item = $attempt->{state}{item};
		return { status => 201, body => { item => $item }, book => sub ($dbh) { insert($dbh, $item) } };
	}, lease => '1 min', every => 0.05, on_error => sub ($error) { fail("no error: $error") },
		until => sub { !grep { $pg->lookup($_)->{status} ne 'completed' } @ids });
	is(count($_->[2]), 1, 'driven on, once') for @ids;
};

subtest 'the completer survives the loss of its database' => sub {
	my @errors;
	completer(Idempotency::Pg->new(sub { connected('dbi:Pg:host=127.0.0.1;port=1') }), 'x', sub { fail('it was run') },
		every => 0.01, on_error => sub ($error) { push @errors, kind($error) }, until => sub { @errors == 2 });
	is_deeply(\@errors, ['unavailable', 'unavailable'], 'it tries again');
};

done_testing();
