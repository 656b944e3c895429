
# Sequence - the same calls, directly and through a front
#
# A list of steps, each a name and an SQL command. What differs from run to run,
# times and tokens, is compared with something in the command itself or kept under a
# name: "=> t1" after the command keeps the first value, {t1} stands for it in later
# ones. play() returns what each step gave: columns, rows, and all of an error.
#
# Every function of the extension that an application, operator or administrator
# calls is in it; names() says which are, so that the test can see that none is missing.

package Sequence;

use strict;
use warnings;

my $id = "'acme', 'POST /x'";
my $far = "'2100-01-01 00:00:00.123456+00'";

our @steps = map { /\S/ && !/^#/ ? $_ : () } split /\n/, <<"EOF_STEPS";
# a leased claim and all that its owner can do
SELECT outcome, attempt, taken_over, token > 0, locked_until > now(), pg_typeof(token), pg_typeof(state), state FROM idempotency.claim($id, 'a', request => '{"n": 1, "s": "\x{e4}"}', lease => '1 hour', claim_id => '11111111-1111-4111-8111-111111111111', hold_if_abandoned => true, note => 'trace \x{20ac}', state => '{"x": [1, null]}')
SELECT token FROM idempotency.claim($id, 'a', request => '{"n": 1, "s": "\x{e4}"}', lease => '1 hour', claim_id => '11111111-1111-4111-8111-111111111111') => a
SELECT outcome, rival, retry_after_ms > 0, created_at IS NOT NULL FROM idempotency.claim($id, 'a', lease => '1 hour')
SELECT outcome FROM idempotency.claim($id, 'a', request => '{"n": 2}', lease => '1 hour')
SELECT outcome FROM idempotency.claim($id, 'a', lease => '1 hour', wait => '20 ms', wait_for => 'any')
SELECT idempotency.extend($id, 'a', lease => '2 hours', token => {a}) > now() + interval '119 min'
SELECT idempotency.checkpoint($id, 'a', 'half', '{"done": 1}', token => {a}) > now()
SELECT status, token = {a}, attempt, claim_id, abandoned, hold_if_abandoned, encode(fingerprint, 'hex'), recovery_point, state, note, response_bytes FROM idempotency.lookup($id, 'a')
SELECT idempotency.release($id, 'a', token => {a})
SELECT idempotency.complete($id, 'a', 201, 'done "\x{20ac}"', '[["Set-Cookie", "a"], ["Set-Cookie", "b"]]', ttl => '10 days', token => {a}) > now() + interval '9 days'
SELECT idempotency.complete($id, 'a', 201, 'done "\x{20ac}"', '[["Set-Cookie", "a"], ["Set-Cookie", "b"]]', token => {a}) > now()
SELECT idempotency.complete($id, 'a', 201, 'done "\x{20ac}"', '[["Set-Cookie", "a"], ["Set-Cookie", "b"]]', token => {a}, refuse_repeat => true)
SELECT idempotency.complete($id, 'a', 200, 'other', token => {a})
SELECT response_status, response_headers, response_body, response_bytes, created_at < now() + interval '1 min', completed_at IS NOT NULL, expires_at > now() FROM idempotency.replay($id, 'a')
SELECT outcome, response_status, response_headers, response_body, fingerprint_checked FROM idempotency.claim($id, 'a', request => '{"s": "\x{e4}", "n": 1.0}', lease => '1 hour')
SELECT outcome, response_body FROM idempotency.claim($id, 'a', fingerprint => idempotency.fingerprint('{"s": "\x{e4}", "n": 1.0}'), lease => '1 hour')
# bytes, and a fingerprint of the caller's
SELECT token FROM idempotency.claim($id, 'bytes', fingerprint => decode(repeat('0f', 32), 'hex'), lease => '1 hour') => b
SELECT idempotency.complete($id, 'bytes', response_bytes => '\\x00ff5c'::bytea, token => {b}) > now()
SELECT encode(response_bytes, 'hex'), response_body FROM idempotency.replay($id, 'bytes')
# failures
SELECT token FROM idempotency.claim($id, 'f', lease => '1 hour') => f
SELECT idempotency.fail($id, 'f', error => 'refused', retry_in => '1 hour', token => {f})
SELECT outcome, rival, locked_until > now() + interval '59 min' FROM idempotency.claim($id, 'f', lease => '1 hour')
SELECT idempotency.record_failure($id, 'rf', 'full', retry_in => '1 microsecond', request => '{}')
SELECT outcome, attempt, last_error FROM idempotency.claim($id, 'rf', lease => '1 hour')
SELECT idempotency.record_failure($id, 'rf', 'full')
SELECT token FROM idempotency.claim($id, 'rel', lease => '1 hour') => rel
SELECT idempotency.release($id, 'rel', token => {rel})
SELECT count(*) FROM idempotency.lookup($id, 'rel')
# held
SELECT token FROM idempotency.claim($id, 'h', lease => '1 hour') => h
SELECT idempotency.hold($id, 'h', reason => 'who knows', token => {h}) = {h}
SELECT outcome FROM idempotency.claim($id, 'h', lease => '1 hour')
SELECT idempotency.fail($id, 'h', token => {h})
SELECT idempotency.forget($id, 'h')
SELECT scope, operation, key, status, last_error, token = {h} FROM idempotency.abandoned
SELECT idempotency.resolve($id, 'h', 'maybe')
SELECT idempotency.resolve($id, 'h', 'retry', note => 'it did not happen')
SELECT status, note FROM idempotency.lookup($id, 'h')
# a late owner, for each reason
SELECT token FROM idempotency.claim($id, 'late', lease => '1 microsecond') => l
SELECT outcome, taken_over FROM idempotency.claim($id, 'late', lease => '1 hour')
SELECT idempotency.complete($id, 'late', 200, token => {l})
SELECT idempotency.forget($id, 'late')
SELECT idempotency.forget($id, 'late', force => true)
SELECT idempotency.complete($id, 'late', 200, token => {l})
SELECT idempotency.extend($id, 'late', token => {l} + 1000000000)
# as the clients of this repository write it
SELECT to_json(result)->>'outcome', to_json(result)->'created_at' FROM idempotency.claim('acme', 'client', 'c', request => '{"b": 1}'::text::jsonb, lease => '60000 ms'::interval, claim_id => '33333333-3333-4333-8333-333333333333'::uuid) AS result WHERE false
SELECT coalesce(to_json(result), 'null')::text FROM idempotency.replay('acme', 'client', 'none') AS result
SELECT result FROM idempotency.once('acme', 'client', 'o', ttl => '1 day') AS result
# driven to its end
SELECT outcome FROM idempotency.claim('acme', 'ship', 'p', lease => '1 microsecond', state => '{"parcel": 7}', note => 'n')
SELECT scope, operation, key, attempt, recovery_point, state, note, last_error, token > 0, created_at < locked_until FROM idempotency.claim_abandoned('ship', lease => '1 hour', max_rows => 5)
SELECT count(*) FROM idempotency.claim_abandoned('ship')
# once
SELECT idempotency.once('acme', 'hook', 'e1', ttl => '90 days')
SELECT idempotency.once('acme', 'hook', 'e1', wait => '1 s')
SELECT key, first FROM idempotency.once_batch('acme', 'hook', ARRAY['e3', 'e1', 'e2', 'e3', 'e4', 'e5', 'e6'], ttl => '90 days', skip_undecided => true)
SELECT key, first FROM idempotency.once_batch('acme', 'hook', ARRAY['e6', 'e7', 'e5', 'e8', 'e7', 'e9'], skip_undecided => true)
SELECT outcome FROM idempotency.claim('acme', 'hook', 'busy', lease => '1 hour')
SELECT key, first FROM idempotency.once_batch('acme', 'hook', ARRAY['e10', 'busy', 'e11', 'e1'], skip_undecided => true)
SELECT key, first FROM idempotency.once_batch('acme', 'hook', ARRAY['busy'])
SELECT key, first FROM idempotency.once_batch('acme', 'hook', ARRAY[]::text[])
SELECT key, first FROM idempotency.once_batch('acme', 'hook', NULL)
# run
SELECT outcome, attempt, response_status, response_headers, response_body FROM idempotency.run($id, 'r', 'SELECT \$1->>''a'' AS a, 2 AS b', args => '{"a": "x"}', request => '{"a": "x"}', ttl => '2 days', wait => '1 s', response_status => 201, response_headers => '{"X": "y"}')
SELECT outcome, response_status, response_headers, response_body, fingerprint_checked FROM idempotency.run($id, 'r', 'SELECT 1/0', request => '{"a": "x"}')
SELECT outcome FROM idempotency.run($id, 'r', 'SELECT 1', fingerprint => decode(repeat('0f', 32), 'hex'))
SELECT outcome FROM idempotency.run($id, 'r0', 'SELECT 1/0')
SELECT outcome FROM idempotency.run($id, 'r0', 'SELECT generate_series(1, 2)')
SELECT outcome FROM idempotency.run($id, 'r0', 'COMMIT')
SELECT outcome FROM idempotency.run($id, 'r0', 'nonsense')
SELECT outcome, response_body FROM idempotency.run($id, 'r0', 'SELECT ''at last''')
# pure ones
SELECT encode(idempotency.fingerprint('{"b": 1, "a": 2}'), 'hex'), encode(idempotency.fingerprint_bytes('{"b": 1.0, "a": 2}'), 'hex'), idempotency.fingerprint(NULL)
SELECT idempotency.content_key('{"b": 1}'), idempotency.effect_key('acme', 'pay', 'k', 'charge'), idempotency.effect_key('acme', 'pay', 'k')
SELECT idempotency.key_standing('completed', $far, NULL, NULL, $far), idempotency.key_standing('in_progress', $far, '2000-01-01', true, '2020-01-01')
# policies
SELECT idempotency.set_policy('pol', ttl => '3 days', failed_ttl => '1 hour', response_ttl => '1 day', lease => '10 min', hold_if_abandoned => true, max_attempts => 2)
SELECT operation, ttl_seconds, failed_ttl_seconds, response_ttl_seconds, lease_seconds, hold_if_abandoned, max_attempts FROM idempotency.effective_policies ORDER BY operation
SELECT token, expires_at > now() + interval '2 days' FROM idempotency.claim('acme', 'pol', 'p', lease => '1 min') => p
SELECT idempotency.complete('acme', 'pol', 'p', 200, token => {p}) BETWEEN now() AND now() + interval '25 hours'
SELECT idempotency.drop_policy('pol'), idempotency.drop_policy('pol')
SELECT idempotency.set_policy('pol', ttl => '-1 s')
# an operator's
SELECT idempotency.redact($id, 'a')
SELECT * FROM idempotency.replay($id, 'a')
SELECT outcome FROM idempotency.claim($id, 'a', lease => '1 hour')
SELECT idempotency.redact($id, 'nothing')
SELECT idempotency.redact_scope('acme')
SELECT idempotency.import_completed('acme', 'old', 'o', 200, 'body', '{"a": "b"}', created_at => now() - interval '1 hour', completed_at => now() - interval '1 min', expires_at => now() + interval '10 days', request => '{}')
SELECT idempotency.import_completed('acme', 'old', 'o', 200, response_bytes => 'x')
SELECT response_body, response_headers, expires_at > now() + interval '9 days', created_at < now() - interval '59 min' FROM idempotency.replay('acme', 'old', 'o')
SELECT idempotency.import_completed('acme', 'old', 'gone', 200, expires_at => now() - interval '1 hour', created_at => now() - interval '2 hours')
SELECT outcome FROM idempotency.claim('acme', 'short', 's1', lease => '1 microsecond', ttl => '1 microsecond')
SELECT outcome FROM idempotency.claim('other', 'short', 's2', lease => '1 microsecond', ttl => '1 microsecond')
SELECT idempotency.cleanup(scope => 'acme', operation => 'short', older_than => '1 microsecond')
SELECT idempotency.cleanup(older_than => '1 microsecond', max_rows => 10)
SELECT idempotency.cleanup(older_than => '-1 s')
SELECT operation, status, keys, expired FROM idempotency.keys_by_scope WHERE scope = 'other' ORDER BY 1, 2
SELECT sum(keys), min(oldest) < max(newest) FROM idempotency.keys_by_operation
SELECT idempotency.forget('acme', 'old', 'o'), idempotency.forget('acme', 'old', 'o')
SELECT idempotency.forget_scope('acme') BETWEEN 1 AND 100, idempotency.forget_scope('acme', force => true), idempotency.forget_scope('acme')
SELECT DISTINCT check_name, status FROM idempotency.health() WHERE check_name IN ('table', 'held_keys', 'worker') ORDER BY 1
SELECT count(*) > 0 FROM idempotency.stats WHERE claims >= 0
SELECT count(*) >= 0 FROM idempotency.cleanup_runs
SELECT count(*) FROM idempotency.policies
SELECT idempotency.request_cleanup(), idempotency.stats_reset()
SELECT idempotency.schedule_cleanup()
SELECT idempotency.unschedule_cleanup()
# roles
SELECT idempotency.grant_usage('app'), idempotency.grant_operator('support'), idempotency.grant_monitor('watch')
SELECT idempotency.bind_role('app', 'app:%'), idempotency.bind_role('app', 'app:%')
SELECT idempotency.bind_role('app', 'app:\\')
SELECT idempotency.unbind_role('app', 'app:%'), idempotency.unbind_role('app')
SELECT idempotency.revoke_usage('app'), idempotency.revoke_operator('support'), idempotency.revoke_monitor('watch'), idempotency.revoke_usage('app')
# bad arguments
SELECT outcome FROM idempotency.claim(NULL, 'op', 'k', lease => '1 hour')
SELECT outcome FROM idempotency.claim('s', '', 'k', lease => '1 hour')
SELECT outcome FROM idempotency.claim('s', 'op', repeat('k', 300), lease => '1 hour')
SELECT outcome FROM idempotency.claim('s', 'op', 'k', lease => '-1 s')
SELECT outcome FROM idempotency.claim('s', 'op', 'k', lease => '1 hour', request => '{}', fingerprint => decode(repeat('0f', 32), 'hex'))
SELECT outcome FROM idempotency.claim('s', 'op', 'k', lease => '1 hour', wait_for => 'godot')
SELECT idempotency.complete('s', 'op', 'k', -1, token => 5)
SELECT idempotency.complete('s', 'op', 'k', 200, 'a', response_bytes => 'b', token => 5)
SELECT idempotency.once('s', 'op', NULL)
SELECT outcome FROM idempotency.run('s', 'op', 'k', NULL)
SELECT idempotency.set_policy(NULL)
EOF_STEPS

sub names
{
	my %seen;

	$seen{$_}++ foreach map { /idempotency\.(\w+)/g } @steps;
	return \%seen;
}

sub play
{
	my ($connection) = @_;
	my (%kept, @given);

	foreach my $step (@steps)
	{
		my ($sql, $name) = $step =~ /^(.*?)(?: => (\w+))?$/;

		$sql =~ s/\{(\w+)\}/defined $kept{$1} ? $kept{$1} : "{$1}"/ge;
		utf8::encode($sql) if utf8::is_utf8($sql);
		my $result = $connection->query($sql);
		my $set = $result->{sets}[-1];

		$kept{$name} = $result->value if defined $name;
		shift @{ $_ } foreach defined $name ? @{ $result->rows } : ();
		push @given, join ' / ', $result->code, map({ "$_: " . $result->$_ } qw(message detail hint reason)),
		  $result->code ne '' ? () : join(',', @{ $set->{columns} // [] }), map { join ',', map { $_ // 'NULL' } @$_ } @{ $result->rows };
	}
	return @given;
}

1;
