# The thin client: what is compared, what an outcome and an error are, what the driver's settings must not change.

use v5.26;
use warnings;
use experimental 'signatures';
use utf8;
use FindBin;
use lib "$FindBin::RealBin/lib";
use Idempotency::Pg qw(again kind);
use Database;
use File::Temp;
use Test::More;

my $pg = new_pg();
my @lease = (lease => '1 min');

# What a sub dies of.
sub error_of ($work) { eval { $work->(); 1 } ? undef : $@ }
sub raise ($dbh, $state) { $dbh->do("DO \$\$ BEGIN RAISE SQLSTATE '$state'; END \$\$") }

# A key that is completed for this request.
sub completed ($pg, $claim, %answer) {
	my $id = new_id();
	$pg->transaction(sub ($dbh) {
		is($pg->claim($id, %$claim)->{outcome}, 'claimed', 'claimed') or die;
		$pg->complete($id, %answer);
	});
	return $id;
}

subtest 'a repeat is replayed, byte for byte, and another request is a mismatch' => sub {
	my $id = completed($pg, { request => { item => 7, n => 1 } },
		status => 201, headers => [Link => '</a>', Link => '</b>', Date => 'now'], body => '{"order":  1.10}');
	my $replay = $pg->claim($id, body => '{ "n": 1.0, "item": 7 }');
	is_deeply([@$replay{qw(outcome response_status response_body fingerprint_checked)}], ['replay', 201, '{"order":  1.10}', 1], 'replay');
	is_deeply($replay->{response_headers}, [[Link => '</a>'], [Link => '</b>']], 'headers, in order');
	is($pg->claim($id, request => { item => 8, n => 1 })->{outcome}, 'mismatch', 'another request');
	is($pg->replay($id)->{response_body}, '{"order":  1.10}', 'replay()');
	is($pg->lookup($id)->{status}, 'completed', 'lookup()');
	is(scalar $pg->lookup(new_id()), undef, 'lookup() of nothing');
	is($pg->run(new_id(), q{SELECT $1->>'n' AS n}, args => { n => 7 }, request => {})->{response_body}, '7', 'run()');
};

subtest 'an undefined request does not switch the comparison off' => sub {
	my $id = new_id();
	for my $given ({}, { request => undef }, { body => undef }, { request => undef, fingerprint => undef }) {
		like(error_of(sub { $pg->claim($id, %$given, @lease) }), qr/the request is undefined/, 'claim()');
		like(error_of(sub { $pg->run($id, 'SELECT 1', %$given) }), qr/the request is undefined/, 'run()');
	}
	like(error_of(sub { $pg->claim($id, request => '{"item": 7}', @lease) }), qr/given as body/, 'JSON is not made JSON once more');
	like(error_of(sub { $pg->claim($id, body => "\x{263a}", @lease) }), qr/bytes/, 'characters are no body');
	like(error_of(sub { $pg->claim($id, request => {}, laese => '1 min') }), qr/unknown option laese/, 'a misspelt option');
	is($pg->claim($id, compare => 0, @lease)->{fingerprint_checked}, 0, 'unless it is said');
};

subtest 'JSON that jsonb refuses is compared all the same, and path parameters are' => sub {
	for my $body ('{"a": "\u0000"}', '{"a": "\ud800"}', '{"a": 1e200000}', "\0\xff", '') {
		my $id = new_id();
		my @outcomes = map { $pg->claim($id, body => $_, params => { id => 7 }, @lease)->{outcome} } $body, $body, "${body}x";
		is_deeply(\@outcomes, [qw(claimed in_progress mismatch)], $body =~ /^\{/ ? $body : 'bytes');
		is($pg->claim($id, body => $body, params => { id => 8 }, @lease)->{outcome}, 'mismatch', 'another path');
	}
};

subtest 'settings of the driver change nothing' => sub {
	my $text = '{"name": "naïve ☺"}';
	utf8::encode(my $encoded = $text);
	my $bytes = join '', map { chr } 0 .. 255, 102;
	for my $setting ([], [pg_enable_utf8 => 0], [pg_enable_utf8 => 1], [pg_bool_tf => 1], [pg_server_prepare => 0],
		[pg_switch_prepared => 1], [pg_placeholder_dollaronly => 1], [pg_errorlevel => 2], [FetchHashKeyName => 'NAME_uc']) {
		my ($pg, $name) = (new_pg(@$setting), "@$setting" || 'as they are');
		my $id = completed($pg, { body => $encoded }, body => $encoded, headers => ['Content-Type' => 'application/json', X => 'é']);
		is(outside('SELECT response_body FROM idempotency.replay(?, ?, ?)', @$id), $text, "$name: recorded as text");
		is_deeply($pg->replay($id)->{response_headers}[1], [X => 'é'], "$name: headers");
		is($pg->claim($id, request => { name => 'naïve ☺' })->{outcome}, 'replay', "$name: request and body are compared alike");
		is($pg->claim($id, body => '{"name": "naive"}')->{outcome}, 'mismatch', "$name: mismatch");
		$id = completed($pg, { body => $bytes }, body => $bytes);
		is($pg->replay($id)->{response_bytes}, $bytes, "$name: bytes");
		$id = completed($pg, { body => $bytes }, body => "a\0b", headers => ['Content-Type' => 'text/plain']);
		is($pg->replay($id)->{response_bytes}, "a\0b", "$name: text that the server cannot take for text");
		my $event = new_id('event');
		is_deeply([map { $pg->once($event) ? 'first' : 'again' } 1, 2], ['first', 'again'], "$name: a boolean");
	}
	my $id = new_id();
	$pg->claim($id, compare => 0, hold_if_abandoned => !1, lease => '1 ms');
	until_it('it is abandoned', sub { $pg->lookup($id)->{abandoned} });
	is($pg->lookup($id)->{hold_if_abandoned}, 0, 'false of Perl is false');

	my $prepares = new_pg(pg_switch_prepared => 1);    # what pgbouncer before 1.21 loses
	my $trace = File::Temp->new;
	$prepares->dbh->trace('pglibpq', "$trace");
	$prepares->once(new_id('event'));
	$prepares->dbh->trace(0);
	my $called = do { local $/; readline $trace };
	like($called, qr/PQexec/, 'the calls of libpq are seen');
	unlike($called, qr/PQprepare/, 'and nothing is prepared by name');
};

subtest 'a token is a whole number, however large' => sub {
	my $id = new_id();
	my $token = $pg->claim($id, request => {}, @lease)->{token};
	is($token, outside('SELECT token::text FROM idempotency.lookup(?, ?, ?)', @$id), 'as the server has it');
	# Tokens grow with time: some day they are beyond 2**53, which no floating-point number counts.
	my $later = '9007199254740993';
	outside(q{UPDATE idempotency.idempotency_keys SET token = ? WHERE key = ? RETURNING 1}, $later, $id->[2]);
	is($token = $pg->lookup($id)->{token}, $later, 'exactly');
	ok($pg->extend($id, token => $token), 'extend()');
	ok($pg->checkpoint($id, 'charged', state => { charge => 'ch_1' }, token => $token), 'checkpoint()');
	is_deeply($pg->lookup($id)->{state}, { charge => 'ch_1' }, 'state');
	is($pg->hold($id, reason => 'no answer', token => $token), $token, 'hold()');
	is($pg->claim($id, request => {})->{outcome}, 'held', 'held');
	is(kind(error_of(sub { $pg->fail($id, token => $token) })), 'held', 'a fail() of what is held');
	$id = new_id();
	is($pg->release($id, token => $pg->claim($id, request => {}, @lease)->{token}), 1, 'release()');
	is($pg->record_failure($id, error => 'full'), 1, 'record_failure()');
	is($pg->effect_key($id, 'charge'), outside(q{SELECT idempotency.effect_key(?, ?, ?, 'charge')}, @$id), 'effect_key()');
};

subtest 'errors are told apart by SQLSTATE' => sub {
	my %wanted = (IK003 => 'other_completion', IK006 => 'redacted', 40001 => 'retry', '40P01' => 'retry', '55P03' => 'wait_timeout',
		'22P02' => 'bad_request', 25006 => 'unavailable', 53300 => 'unavailable', '08006' => 'unavailable', '57P01' => 'unavailable',
		54000 => 'too_large', 57014 => 'other', 23505 => 'other');
	is(kind(error_of(sub { raise($pg->dbh, $_) })), $wanted{$_}, "SQLSTATE $_") for sort keys %wanted;
	my $error = error_of(sub { $pg->dbh->do('SELECT 1/0') });
	like("$error", qr/division by zero at .*client\.t line/, 'it reads like a message of DBI');
	is($error->{state}, '22012', 'and has its state');
	is(do { local $pg->dbh->{RaiseError} = 0; $pg->dbh->do('SELECT 1/0') }, undef, 'who does not want to die of it does not');
	is(kind($_), 'other', 'no error of the database') for undef, 'ERROR: 40001', {};
	my $nowhere = Idempotency::Pg->new(sub { connected('dbi:Pg:host=127.0.0.1;port=1') });
	is(kind(error_of(sub { $nowhere->once(new_id()) })), 'unavailable', 'nobody there');
	is(kind(error_of(sub { Idempotency::Pg->new(sub { DBI->connect('dbi:Pg:host=127.0.0.1;port=1', '', '', { PrintError => 0 }) })->dbh })),
		'unavailable', 'nobody there, and connect() only returns');
	is(kind(error_of(sub { Idempotency::Pg->new(sub { die 'no such method' })->dbh })), 'other', 'a fault of the sub that connects');
	my $id = new_id();
	my @token = (token => $pg->claim($id, request => {}, @lease)->{token});
	$pg->complete($id, body => 'done', @token);
	$error = error_of(sub { $pg->complete($id, body => 'done', @token, refuse_repeat => 1) });
	is_deeply([kind($error), $error->{reason}], ['stale_claim', 'completed'], 'why a claim is stale');
};

subtest 'a transaction is run again where the server asks for it, and only there' => sub {
	for my $case (['40001', 3, 3], ['40P01', 3, 3], ['40001', 9, 5], ['54000', 3, 1]) {
		my ($state, $until, $wanted) = @$case;
		my $runs = 0;
		my $error = error_of(sub { $pg->transaction(sub ($dbh) { raise($dbh, $state) if ++$runs < $until }) });
		is($runs, $wanted, "$state: runs");
		is(!!$error, $wanted < $until, "$state: the end");
	}
	my $runs = 0;
	$pg->transaction(sub ($dbh) { eval { raise($dbh, '40001') } if ++$runs < 3; die 'an error of the framework' if $runs < 3 });
	is($runs, 3, 'an error that somebody has made another one of is known all the same');
	$runs = 0;
	$pg->transaction(sub ($dbh) { eval { raise($dbh, '40001') } if ++$runs < 3; $dbh->do('SELECT 1') });
	is($runs, 3, 'or that somebody has swallowed');
	is_deeply([$pg->transaction(sub { undef }), $pg->transaction(sub { 7 })], [undef, 7], 'what the work returns');
};

subtest 'nothing remains of what failed' => sub {
	my $swallowing = sub ($dbh) { insert($dbh, 'swallowed'); eval { $dbh->do('SELECT 1/0') } };
	like(error_of(sub { $pg->transaction($swallowing) }), qr/division by zero/, 'an error that was swallowed is one at the end');
	my $id = completed($pg, { request => {} }, body => 'done');
	is(kind(error_of(sub {
		$pg->transaction(sub ($dbh) {
			$pg->claim($id, request => {});    # "replay", and nobody looks
			insert($dbh, 'ignored');
			$pg->complete($id, body => 'again');
		});
	})), 'not_claimed', 'an outcome that is ignored');
	is(kind(error_of(sub { $pg->claim(new_id(), request => {}) })), 'left_open', 'a claim in autocommit');
	is(kind(error_of(sub {
		$pg->transaction(sub ($dbh) {
			$pg->claim($id = new_id(), request => {});
			insert($dbh, 'large');
			$pg->complete($id, body => 'x' x (5 << 20));
		});
	})), 'too_large', 'an answer that is too large, for good');
	is(count($_), 0, "no row: $_") for qw(swallowed ignored large);
	is($pg->transaction(sub ($dbh) { insert($dbh, 'kept') }), 1, 'the next one works');
	is(count('kept'), 1, 'and remains');
};

subtest 'a connection that was lost is replaced, but not within a transaction' => sub {
	my $kill = sub ($dbh) {
		my $backend = $dbh->{pg_pid};
		outside('SELECT pg_terminate_backend(?)', $backend);
		until_it('it is gone', sub { !outside('SELECT count(*) FROM pg_stat_activity WHERE pid = ?', $backend) });
	};
	$kill->($pg->dbh);
	is($pg->once(new_id('event')), 1, 'an idle one is replaced before it is used');
	my $error = error_of(sub {
		$pg->transaction(sub ($dbh) {
			insert($dbh, 'lost');
			$kill->($dbh);
			eval { $dbh->do('SELECT 1') };
			insert($pg->dbh, 'after the loss');
		});
	});
	is(kind($error), 'unavailable', 'one in a transaction is an error');
	is(count('lost') + count('after the loss'), 0, 'and nothing remains');
	my $backend = $pg->dbh->{pg_pid};
	error_of(sub { raise($pg->dbh, '25006') });
	isnt($pg->dbh->{pg_pid}, $backend, 'nor is one kept that leads to a server which only reads');
	is($pg->once(new_id('event')), 1, 'the next one works');
};

subtest 'a child has a connection of its own' => sub {
	my $backend = $pg->dbh->{pg_pid};
	my $child = fork // die "fork: $!";
	exit($pg->dbh->{pg_pid} == $backend) if !$child;    # which would close the parent's
	waitpid $child, 0;
	is($?, 0, 'another one');
	is($pg->dbh->{pg_pid}, $backend, 'the parent keeps its own');
	is($pg->once(new_id('event')), 1, 'and it works');
};

subtest 'an outcome that is not known is never gone on with' => sub {
	my $error = error_of(sub {
		$pg->transaction(sub ($dbh) {    # a later version, as it were, which is rolled back
			$dbh->do('ALTER EXTENSION idempotency DROP FUNCTION idempotency.run');
			$dbh->do('DROP FUNCTION idempotency.run');
			$dbh->do(q{CREATE FUNCTION idempotency.run(scope text, operation text, key text, command text) RETURNS idempotency.claim_result
				LANGUAGE sql AS $$ SELECT jsonb_populate_record(NULL::idempotency.claim_result, '{"outcome": "postponed"}') $$});
			$pg->run(new_id(), 'SELECT 1', compare => 0);
		});
	});
	like($error, qr/unknown outcome postponed/, 'an error');
};

subtest 'those that wait do not fill the pool, whatever process they are in' => sub {
	my $id = new_id();
	my @token = (token => $pg->claim($id, request => {}, @lease)->{token});
	pipe my $read, my $write or die "pipe: $!";
	my @children;
	for (1 .. 6) {
		push @children, my $child = fork // die "fork: $!";
		next if $child;
		my $outcome = $pg->capped('1 min', sub ($wait) { $pg->claim($id, request => {}, wait => $wait) })->{outcome};
		syswrite $write, "$outcome\n";
		exit;
	}
	close $write;
	is(scalar readline $read, "in_progress\n", 'one that may not wait') for 1 .. 4;    # of 5 workers, 2 wait
	$pg->complete($id, body => 'done', @token);
	is(scalar readline $read, "replay\n", 'one that waits') for 1, 2;
	waitpid $_, 0 for @children;
	is($pg->capped('1 s', sub ($wait) { $wait }), '1 s', 'the places are free again');
};

done_testing();
