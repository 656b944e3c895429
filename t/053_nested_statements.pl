
# Servers that log everything: every statement, nested ones with their plans and
# parameters, debug messages, parse trees. What a client gives as a parameter shows
# in none of our own statements. What the client's own statement contains is the
# client's: here it passes values backwards, so that whatever shows them the right
# way round is ours.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $config = $ENV{PG_CONFIG} || 'pg_config';
my ($major) = `$config --version` =~ /(\d+)/;
chomp(my $libraries = `$config --pkglibdir`);
plan skip_all => 'needs auto_explain and pg_stat_statements of the server\'s contrib'
  if grep { !-e "$libraries/$_.so" } qw(auto_explain pg_stat_statements);

my $node = new_server('nested', conf => <<'EOC' . ($major >= 16 ? "auto_explain.log_parameter_max_length = -1\n" : ''));
shared_preload_libraries = 'pg_stat_statements, auto_explain, idempotency'
auto_explain.log_min_duration = 0
auto_explain.log_nested_statements = on
auto_explain.log_analyze = on
auto_explain.log_verbose = on
auto_explain.log_triggers = on
auto_explain.log_settings = on
pg_stat_statements.track = all
pg_stat_statements.track_planning = on
log_min_messages = debug5
log_min_error_statement = debug5
log_error_verbosity = verbose
debug_print_parse = on
debug_print_rewritten = on
debug_print_plan = on
log_lock_waits = on
deadlock_timeout = 10ms
# The client's own parameters are the client's.
log_statement = all
log_min_duration_statement = 0
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
EOC

# Volatile, so that no plan has the result in it.
$node->safe_psql('postgres', q{
	CREATE EXTENSION pg_stat_statements;
	CREATE ROLE bound;
	CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
	CREATE FUNCTION public.plain(text) RETURNS text VOLATILE LANGUAGE plpgsql AS 'BEGIN RETURN pg_catalog.reverse($1); END';
	CREATE TABLE public.tenant (id text);
	CREATE TRIGGER forget AFTER DELETE ON public.tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id')});
my $c = Connection->connect($node);
my $rival = Connection->connect($node);
my $control = Connection->connect($node);
$_->ok('SET client_min_messages = debug5') foreach $c, $rival;

my @answers;
my %called;

# "?" is the next value, the right way round inside the server.
sub request
{
	my ($call, @values) = @_;
	my $n = 0;

	$called{$1} = 1 if $call =~ /^(\w+)\(/;
	return ("SELECT * FROM idempotency.$call" =~ s/\?/'public.plain($' . ++$n . ')'/ger, map { scalar reverse } @values);
}

sub keep
{
	my ($result) = @_;

	push @answers, values %{ $result->{error} // {} };
	push @answers, values %$_ foreach @{ $result->{notices} };
	return $result;
}

sub call
{
	my ($call, @values) = @_;
	my ($sql, @reversed) = request($call, @values);
	my $result = keep($c->execute($sql, @reversed));

	is($result->code, '', $call) or diag($result->message);
	return $result;
}

sub fails
{
	my ($code, $call, @values) = @_;
	my ($sql, @reversed) = request($call, @values);

	is(keep($c->execute($sql, @reversed))->code, $code, "$code: $call");
	return;
}

my @id = ('Canary scope', 'Canary operation');
my $keys = 0;
sub id { return (@id, 'Canary key ' . ++$keys); }
sub token { return call(q{claim(?, ?, ?, ?::jsonb, lease => '1 hour', note => ?, state => ?::jsonb)}, @_, '{"Canary": 1}', 'Canary note', '{"Canary": 2}')->row->{token}; }

# ---- every call ---------------------------------------------------------------------

# More than five times each, since the sixth plan of a statement is another.
foreach my $round (1 .. 7)
{
	my @key = id();

	keep($c->query('BEGIN'));
	call('claim(?, ?, ?, ?::jsonb, note => ?)', @key, '{"Canary": 1}', 'Canary note');
	call('checkpoint(?, ?, ?, ?, ?::jsonb)', @key, 'Canary step', '{"Canary": 2}');
	call('complete(?, ?, ?, 200, ?, ?::jsonb)', @key, 'Canary body', '[["X-Canary", "Canary"]]');
	keep($c->query('COMMIT'));
	call('claim(?, ?, ?, ?::jsonb)', @key, '{"Canary": 1}');
	call('replay(?, ?, ?)', @key);
	call('lookup(?, ?, ?)', @key);
	call('redact(?, ?, ?)', @key);
	call('forget(?, ?, ?)', @key);

	my $token = token(@key = id());
	fails('IK002', 'complete(?, ?, ?, 200, ?)', @key, 'Canary body');
	call("extend(?, ?, ?, token => $token)", @key);
	call("checkpoint(?, ?, ?, ?, ?::jsonb, token => $token)", @key, 'Canary step', '{"Canary": 3}');
	call("fail(?, ?, ?, ?, token => $token)", @key, 'Canary error');
	$token = token(@key);
	call("hold(?, ?, ?, ?, $token)", @key, 'Canary reason');
	call('resolve(?, ?, ?, ?, ?)', @key, 'retry', 'Canary decision');
	$token = token(@key);
	call("complete(?, ?, ?, response_bytes => ?::bytea, token => $token)", @key, 'Canary bytes');
	$token = token(@key = id());
	call("release(?, ?, ?, $token)", @key);
	call('record_failure(?, ?, ?, ?)', id(), 'Canary error');
	call(q{claim(?, ?, ?, lease => '1 us')}, id());
	call('claim_abandoned(?)', $id[1]);
	call('once(?, ?, ?)', @key = id());
	call('once(?, ?, ?)', @key);
	call('once_batch(?, ?, ARRAY[?, ?, ?])', @id, "Canary batch $round", "Canary batch $round", 'Canary batch');
	# The command is the client's own statement, and its arguments are that one's.
	call('run(?, ?, ?, ?, ?::jsonb, request => ?::jsonb)', id(), q{SELECT $1->>'a'}, '{"a": "b"}', '{"Canary": 1}');
	call('import_completed(?, ?, ?, 200, ?, created_at => now(), completed_at => now(), expires_at => now() + interval \'1 hour\')', id(), 'Canary body');
	call('set_policy(?, ttl => \'1 hour\')', $id[1]);
	call('drop_policy(?)', $id[1]);
	call('bind_role(?::regrole, ?)', 'bound', 'Canary%');
	call('unbind_role(?::regrole, ?)', 'bound', 'Canary%');
	call('cleanup(scope => ?, operation => ?)', @id);
	call('redact_scope(?)', $id[0]);
	keep($c->query('BEGIN'));
	call('export_scopes(ARRAY[?])', $id[0]);
	keep($c->query('ROLLBACK'));
	call('effect_key(?, ?, ?, ?)', @id, 'Canary key', 'Canary step');
	call('content_key(?::jsonb)', '{"Canary": 1}');
	call('fingerprint(?::jsonb)', '{"Canary": 1}');
	call('fingerprint_bytes(?::bytea)', '{"Canary": 1}');
	call('once(?, ?, ?)', 'Canary tenant', $id[1], 'Canary key');
	keep($c->execute('INSERT INTO public.tenant VALUES (public.plain($1))', scalar reverse 'Canary tenant'));
	keep($c->query('DELETE FROM public.tenant'));
	call('health()');
	call('forget_scope(?, true)', $id[0]);
}
# A key that was exported elsewhere.
call('once(?, ?, ?)', @id, 'Canary moved');
keep($c->query('CREATE TEMP TABLE moved AS SELECT k FROM idempotency.idempotency_keys AS k; DELETE FROM idempotency.idempotency_keys'));
is(keep($c->query('SELECT idempotency.import_key(k) FROM moved'))->code, '', 'import_key()');
fails('55000', 'forget_exported(ARRAY[?])', $id[0]);
is(keep($c->query('CALL idempotency.maintain()'))->code, '', 'maintain()');
my $none = join ' ', grep { !$called{$_} } map { $_->[0] } @{ $control->ok(q{SELECT proname FROM pg_proc WHERE pronamespace = 'idempotency'::regnamespace
	AND proname !~ '^(grant|revoke|stats|un?schedule|schedule|request)_' AND prorettype NOT IN ('internal'::regtype, 'trigger'::regtype)
	AND proname NOT IN ('maintain', 'import_key', 'default_policy', 'key_standing')})->rows };
is($none, '', 'every call that takes a value has been made');

# ---- while somebody waits ------------------------------------------------------------

my @key = id();
my @other = id();
my $watcher = Connection->connect($node, user => 'watcher');
foreach my $pair ([ $c, \@key ], [ $rival, \@other ])
{
	$pair->[0]->ok('BEGIN');
	my ($sql, @values) = request('claim(?, ?, ?, ?::jsonb)', @{ $pair->[1] }, '{"Canary": 1}');
	keep($pair->[0]->execute($sql, @values));
}
my ($sql, @values) = request(q{claim(?, ?, ?, wait => '60 s')}, @other);
$c->start_pipeline([ $sql, @values ]);
ok(wait_until(sub { $control->ok('SELECT count(*) FROM pg_locks WHERE NOT granted')->value == 1 }), 'somebody waits');
my @seen = map { @$_ } @{ $watcher->ok('SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid()')->rows };
cmp_ok(scalar(grep { /idempotency\.claim/ } map { $_ // '' } @seen), '>=', 2, 'a monitor sees the statements');
($sql, @values) = request(q{claim(?, ?, ?, wait => '60 s')}, @key);
$rival->start_pipeline([ $sql, @values ]);
is(scalar(grep { keep($_->finish)->code eq '40P01' } $c, $rival), 1, 'a deadlock');
$_->ok('ROLLBACK') foreach $c, $rival;

# The worker, with nobody's statement around it.
$control->ok(q{INSERT INTO idempotency.idempotency_keys (created_at, expires_at, completed_at, attempt, scope, operation, key, status)
	SELECT now() - interval '2 days', now() - interval '1 day', now(), 1, public.plain('epocs yranaC'), 'op', g, 'completed' FROM generate_series(1, 20) g});
ok(cleaned_again($node, 'postgres'), 'the worker cleans');

# EXPLAIN of the client's statement.
$c->ok('SET plan_cache_mode = force_generic_plan; PREPARE explained AS SELECT idempotency.once(public.plain($1), public.plain($1), public.plain($1))');
push @seen, map { @$_ } @{ $c->ok(q{EXPLAIN (ANALYZE, VERBOSE) EXECUTE explained('yek yranaC')})->rows };

push @seen, map { @$_ } @{ $control->ok('SELECT query FROM pg_stat_statements')->rows };
cmp_ok(scalar(grep { /^INSERT INTO idempotency\.idempotency_keys/ } map { $_ // '' } @seen), '>', 0, 'pg_stat_statements has our statements');

# ---- the search ------------------------------------------------------------------------

$_->close(terminate => 1) foreach $c, $rival, $control, $watcher;
$node->stop;

# As text, as hexadecimal digits, as debug_print_plan shows the bytes of a constant.
my $canary = join '|', 'Canary', unpack('H*', 'Canary'), join ' ', unpack('C*', 'Canary');
my $log = server_log($node);
my @logged = grep { /$canary/ } split /^/, $log;

is(scalar(grep { /$canary/ } map { $_ // '' } @answers), 0, 'no message to a client shows a value');
is(scalar(grep { /$canary/ } map { $_ // '' } @seen), 0, 'nor does a view') or diag(join("\n", grep { /$canary/ } @seen));
is(scalar @logged, 0, 'nor a line of the log') or diag(join('', map { substr($_, 0, 400) . "\n" } splice(@logged, 0, 10)));

# The log has not been looked for in the wrong place.
like($log, qr/yranaC/, 'the log shows what the client itself has said') if $major >= 16;
like($log, qr/Query Text: INSERT INTO idempotency\.idempotency_keys/, 'and our nested statements');
like($log, qr/Query Text: DELETE FROM idempotency\.role_bindings/, 'also of the small tables');
like($log, qr/PLANNEDSTMT/, 'and plans');

done_testing();
