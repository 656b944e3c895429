
# Scopes, keys, requests, responses, errors and notes are other people's data.
# Clients bind them as parameters, and then no message shows them: neither what
# the client gets nor the server's log, whatever goes wrong.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;

# As servers log by default, and more: every field, and every lock that is
# waited for.
my $node = new_server('logs', conf => <<'EOC');
log_error_verbosity = verbose
log_lock_waits = on
deadlock_timeout = 10ms
max_prepared_transactions = 5
EOC
my $c = Connection->connect($node);
my $rival = Connection->connect($node);

# Everything that a call carries has a canary in it, as text and as bytes.
my @id = ('Canary scope', 'Canary operation', 'Canary key');
my $request = '{"Canary request": "Canary"}';
my $body = '{ "Canary": "response" }';
my $bytes = '\x' . unpack('H*', 'Canary bytes');
my $headers = '[["X-Canary", "Canary header"]]';
my $canary = join '|', 'Canary', unpack('H*', 'Canary');

my @answers;
my %seen;

# A call that must fail, and how.
sub fails
{
	my ($code, $title, $connection, $call, @values) = @_;
	my $result = $connection->execute("SELECT * FROM idempotency.$call", @values);

	is($result->code, $code, $title);
	return keep($result);
}

sub keep
{
	my ($result) = @_;

	$seen{ $result->code }++;
	push @answers, values %{ $result->{error} // {} };
	push @answers, values %$_ foreach @{ $result->{notices} };
	return $result;
}

sub call
{
	my ($connection, $call, @values) = @_;
	my $result = $connection->execute("SELECT * FROM idempotency.$call", @values);

	BAIL_OUT("$call: " . $result->message) if $result->code ne '';
	return keep($result);
}

# A key of its own for each case.
my $keys = 0;
sub id { return ('Canary scope', 'Canary operation', 'Canary key ' . ++$keys); }

# ---- arguments -------------------------------------------------------------------

foreach my $i (0 .. 2)
{
	my @wrong = @id;

	$wrong[$i] = undef;
	fails('22004', "part $i is null", $c, 'claim($1, $2, $3)', @wrong);
	$wrong[$i] = '';
	fails('22023', "part $i is empty", $c, 'claim($1, $2, $3)', @wrong);
	$wrong[$i] = 'Canary' x 100;
	fails('22001', "part $i is too long", $c, 'claim($1, $2, $3)', @wrong);
	fails('22001', "part $i is too long to look for", $c, 'replay($1, $2, $3)', @wrong);
}
fails('22023', 'request and fingerprint', $c, 'claim($1, $2, $3, $4, $5)', @id, $request, $bytes);
fails('22023', 'a fingerprint that is none', $c, 'claim($1, $2, $3, fingerprint => $4)', @id, $bytes);
fails('22023', 'a ttl of nothing', $c, q{claim($1, $2, $3, $4, ttl => '0', note => $5)}, @id, $request, 'Canary note');
fails('22023', 'a lease that goes back', $c, q{claim($1, $2, $3, $4, lease => '-1 s')}, @id, $request);
fails('22023', 'an absurd ttl', $c, q{claim($1, $2, $3, $4, ttl => '1000 years')}, @id, $request);
fails('54000', 'a note that is too large', $c, q{claim($1, $2, $3, note => repeat($4, 1000000))}, @id, 'Canary note');

# ---- owners ------------------------------------------------------------------------

# Taken over, completed, forgotten.
my @key = id();
my $late = call($c, q{claim($1, $2, $3, $4, lease => '1 microsecond', note => $5)}, @key, $request, 'Canary note')->row->{token};
my $token = call($c, q{claim($1, $2, $3, $4, lease => '1 hour')}, @key, $request)->row->{token};

sub complete { return 'complete($1, $2, $3, 200, $4, $5, token => $6)'; }
fails('IK001', 'taken over: complete', $c, complete(), @key, $body, $headers, $late);
fails('IK001', 'taken over: fail', $c, 'fail($1, $2, $3, $4, token => $5)', @key, 'Canary error', $late);
fails('IK001', 'taken over: release', $c, 'release($1, $2, $3, $4)', @key, $late);
fails('IK001', 'taken over: extend', $c, 'extend($1, $2, $3, token => $4)', @key, $late);
fails('IK002', 'no token', $c, complete(), @key, $body, $headers, undef);
fails('IK002', 'a token that nobody has', $c, complete(), @key, $body, $headers, $token + 1000);
fails('22023', 'two bodies', $c, 'complete($1, $2, $3, 200, $4, response_bytes => $5, token => $6)', @key, $body, $bytes, $token);
fails('54000', 'a body that is too large', $c, 'complete($1, $2, $3, 200, repeat($4, 1000000), token => $5)', @key, $body, $token);
fails('54000', 'bytes that are too large', $c,
	q{complete($1, $2, $3, 200, response_bytes => decode(repeat($4, 1000000), 'hex'), token => $5)}, @key, unpack('H*', 'Canary'), $token);
fails('54000', 'an error that is too large', $c, 'fail($1, $2, $3, repeat($4, 1000000), token => $5)', @key, 'Canary error', $token);
fails('55006', 'forgetting what is in progress', $c, 'forget($1, $2, $3)', @key);
call($c, complete(), @key, $body, $headers, $token);
fails('IK003', 'another response', $c, complete(), @key, "$body ", $headers, $token);
fails('IK003', 'other headers', $c, complete(), @key, $body, '{"Canary": "other"}', $token);
fails('IK001', 'completed: fail', $c, 'fail($1, $2, $3, $4, token => $5)', @key, 'Canary error', $token);
$c->ok('UPDATE idempotency.idempotency_keys SET redacted_at = now()');
fails('IK006', 'redacted: claim', $c, 'claim($1, $2, $3, $4)', @key, $request);
fails('IK006', 'redacted: replay', $c, 'replay($1, $2, $3)', @key);
call($c, 'forget($1, $2, $3)', @key);
fails('IK001', 'forgotten: complete', $c, complete(), @key, $body, $headers, $token);

# Held.
@key = id();
$token = call($c, q{claim($1, $2, $3, $4, lease => '1 microsecond', hold_if_abandoned => true)}, @key, $request)->row->{token};
fails('IK005', 'held: fail', $c, 'fail($1, $2, $3, $4, token => $5)', @key, 'Canary error', $token);
fails('IK005', 'held: forget', $c, 'forget($1, $2, $3)', @key);

# Forgotten claims, in three ways to end a transaction.
@key = id();
is(keep($c->execute('SELECT * FROM idempotency.claim($1, $2, $3, $4)', @key, $request))->code, 'IK004', 'left open: autocommit');
foreach my $end ('COMMIT', "PREPARE TRANSACTION 'p'")
{
	$c->ok('BEGIN');
	call($c, 'claim($1, $2, $3, $4)', @key, $request);
	is(keep($c->query($end))->code, 'IK004', "left open: $end");
}

# Too many.
$c->ok('BEGIN; SET LOCAL idempotency.max_claims_per_transaction = 1');
call($c, 'claim($1, $2, $3, $4)', id(), $request);
fails('54000', 'too many keys', $c, 'claim($1, $2, $3, $4)', id(), $request);
$c->ok('ROLLBACK');

# ---- transactions ----------------------------------------------------------------------

$c->ok('BEGIN READ ONLY');
fails('25006', 'read-only', $c, 'claim($1, $2, $3, $4)', @id, $request);
$c->ok('ROLLBACK');

# A snapshot that is too old, for the answer and for the write.
foreach my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	@key = id();
	$c->ok("BEGIN ISOLATION LEVEL $level; SELECT 1 FROM pg_class LIMIT 1");
	$rival->ok('BEGIN');
	call($rival, 'claim($1, $2, $3, $4)', @key, $request);
	call($rival, complete(), @key, $body, $headers, undef);
	$rival->ok('COMMIT');
	fails('40001', "$level: a completion that is not visible", $c, 'claim($1, $2, $3, $4)', @key, $request);
	$c->ok('ROLLBACK');

	@key = id();
	$token = call($rival, q{claim($1, $2, $3, $4, lease => '1 hour')}, @key, $request)->row->{token};
	$c->ok("BEGIN ISOLATION LEVEL $level; SELECT 1 FROM pg_class LIMIT 1");
	call($rival, 'extend($1, $2, $3, token => $4)', @key, $token);
	fails('40001', "$level: a row that has changed", $c, complete(), @key, $body, $headers, $token);
	$c->ok('ROLLBACK');
}

# Waiting for a rival's lock: time-outs, cancel, deadlock.
@key = id();
$token = call($c, q{claim($1, $2, $3, $4, lease => '1 hour')}, @key, $request)->row->{token};
$rival->ok('BEGIN');
call($rival, 'extend($1, $2, $3, token => $4)', @key, $token);
$c->ok("SET lock_timeout = '50ms'");
fails('55P03', 'lock_timeout', $c, complete(), @key, $body, $headers, $token);
my @free = id();
call($rival, 'claim($1, $2, $3, $4)', @free, $request);
fails('55P03', 'lock_timeout, shorter than the wait', $c, q{claim($1, $2, $3, $4, wait => '60 s')}, @free, $request);
# Long enough for the statement that resets it.
$c->ok("RESET lock_timeout; SET statement_timeout = '500ms'");
fails('57014', 'statement_timeout', $c, complete(), @key, $body, $headers, $token);
fails('57014', 'statement_timeout during the wait', $c, q{claim($1, $2, $3, $4, wait => '60 s')}, @free, $request);
$c->ok('RESET statement_timeout');
$rival->ok('ROLLBACK');

my @other = id();
@key = id();
$_->ok('BEGIN') foreach $c, $rival;
call($c, 'claim($1, $2, $3, $4)', @key, $request);
call($rival, 'claim($1, $2, $3, $4)', @other, $request);
$c->start_pipeline([ q{SELECT * FROM idempotency.claim($1, $2, $3, $4, wait => '60 s')}, @other, $request ]);
my $control = Connection->connect($node);
wait_until(sub { $control->ok('SELECT count(*) FROM pg_locks WHERE NOT granted')->value == 1 });
$rival->start_pipeline([ q{SELECT * FROM idempotency.claim($1, $2, $3, $4, wait => '60 s')}, @key, $request ]);
# One of the two is the victim; which one is a matter of timing.
my @codes = map { keep($_->finish)->code } $c, $rival;
is(scalar(grep { $_ eq '40P01' } @codes), 1, 'deadlock');
$_->ok('ROLLBACK') foreach $c, $rival;

# ---- privileges ----------------------------------------------------------------------------

$c->ok('CREATE ROLE nobody LOGIN; CREATE ROLE application LOGIN');
$c->ok("SELECT idempotency.grant_usage('application')");
$c->ok('GRANT USAGE ON SCHEMA idempotency TO nobody');
my $nobody = Connection->connect($node, user => 'nobody');
my $application = Connection->connect($node, user => 'application');
fails('42501', 'no privilege: claim', $nobody, 'claim($1, $2, $3, $4)', @id, $request);
fails('42501', 'no privilege: forget', $application, 'forget($1, $2, $3)', @id);
keep($application->execute('SELECT * FROM idempotency.idempotency_keys WHERE key = $1', $id[2]));
keep($application->execute('INSERT INTO idempotency.idempotency_keys (scope, operation, key) VALUES ($1, $2, $3)', @id));
is($seen{42501}, 4, 'no privilege: the table itself');

# ---- a backend dies ---------------------------------------------------------------------------

@key = id();
$c->ok('BEGIN');
call($c, 'claim($1, $2, $3, $4)', @key, $request);
$rival->start_pipeline([ q{SELECT * FROM idempotency.claim($1, $2, $3, $4, wait => '60 s')}, @key, $request ]);
wait_until(sub { $control->ok('SELECT count(*) FROM pg_locks WHERE NOT granted')->value == 1 });
$control->ok('SELECT pg_terminate_backend(' . $rival->pid . ')');
is(keep($rival->finish)->code, '57P01', 'terminated while waiting');
$c->ok('ROLLBACK');

# ---- the search -----------------------------------------------------------------------------------

$_->close(terminate => 1) foreach $c, $control, $nobody, $application;
$node->stop;

my $log = server_log($node);
my @told = grep { /$canary/i } @answers;
my @logged = grep { /$canary/i } split /^/, $log;

is(scalar @told, 0, 'no message to a client shows a value') or diag(join("\n", splice(@told, 0, 10)));
is(scalar @logged, 0, 'no line of the log shows a value') or diag(join('', splice(@logged, 0, 10)));

# The log has not been looked for in the wrong place.
like($log, qr/ERROR:  IK001: the claim no longer belongs to the caller/, 'the errors are in the log');
like($log, qr/still waiting for ExclusiveLock on advisory lock/, 'so are the waits');
like($log, qr/deadlock detected/, 'and the deadlock');
is(join(' ', grep { !/^(?:|40P01|57P01|IK00[1-6]|2\w+|40001|54000|55006|55P03|57014|42501)$/ } sort keys %seen), '', 'no other SQLSTATE came up');

done_testing();
