
# Contention - many connections run after the same key
#
# Each call takes the next number of a sequence, and as many numbers as there
# are connections share a key, so that all connections meet at one key, then at
# the next. One of them may execute; every other answer is "in progress", or the
# very bytes that the one recorded.

package Contention;

use strict;
use warnings;

use Extension;
use PostgreSQL::Test::Utils;
use Test::More;

# The ways to claim: in one transaction, as an application does it; committed on
# its own, with the work in another transaction; waiting for the end.
our @ways = qw(same_transaction lease waiting);

# effects is what the application books; answers is what callers were told.
sub prepare
{
	my ($control) = @_;

	$control->ok(q{
		CREATE SEQUENCE calls MINVALUE 0;
		CREATE TABLE effects (way text, round bigint, body text);
		CREATE UNLOGGED TABLE answers (way text, round bigint, outcome text, body text, headers jsonb)});
	return;
}

# pgbench's script.
sub script
{
	my ($way, $connections) = @_;
	my $headers = q{'[["Set-Cookie", "a"], ["Set-Cookie", "b"]]'};
	my $next_key = "SELECT nextval('calls') / $connections AS round \\gset\n";
	my $more = $way eq 'lease' ? ", lease => '1 hour'" : $way eq 'waiting' ? ", wait => '1 min'" : '';
	my $claim = qq{
		SELECT quote_literal(outcome) AS outcome, outcome = 'claimed' AS mine,
			coalesce(token::text, 'NULL') AS token,
			quote_nullable(response_body) AS recorded,
			quote_nullable(response_headers) AS headers
		FROM idempotency.claim('contention', '$way', :round::text$more) \\gset\n};

	# No two executions record the same.
	my $body = qq{SELECT quote_literal('{ "b":1, "a":1.10 } ' || md5(random()::text)) AS body \\gset\n};
	my $work = qq{
		INSERT INTO effects VALUES ('$way', :round, :body);
		SELECT idempotency.complete('contention', '$way', :round::text, 201, :body, $headers,
			token => :token) AS until \\gset\n};
	my $note = "INSERT INTO answers VALUES ('$way', :round, :outcome, :recorded, :headers);\n";

	return $way eq 'lease'
	  ? "$next_key$claim\\if :mine\n${body}BEGIN;$work COMMIT;\n\\endif\n$note"
	  : "${next_key}BEGIN;$claim\\if :mine\n$body$work\\endif\n${note}COMMIT;\n";
}

# So many connections, and as many keys as rounds. With retries, a call that
# fails with 40001 is made again, for another key.
sub contend
{
	my ($node, $control, $way, $connections, $rounds, %option) = @_;
	my $file = PostgreSQL::Test::Utils::tempdir() . "/$way";
	my $title = $option{title} // $way;
	my @retries = $option{retries} ? ('--max-tries', 1000) : ();

	append_to_file($file, script($way, $connections));
	$control->ok('ALTER SEQUENCE calls RESTART');
	$node->command_ok(
		[ 'pgbench', '-n', '-f', $file, '-c', $connections, '-j', 2, '-t', $rounds, @retries, 'postgres' ],
		"$title: $connections connections, $rounds keys");
	$control->ok('ANALYZE effects, answers');

	my $seen = $control->ok(qq{
		SELECT count(DISTINCT round) AS keys, count(*) AS answers FROM answers WHERE way = '$way'})->row;
	my $done = $control->ok(qq{
		SELECT count(DISTINCT round) AS keys, count(*) AS executions FROM effects WHERE way = '$way'})->row;

	is($done->{keys}, $seen->{keys}, "$title: every key was executed");
	is($done->{executions}, $done->{keys}, "$title: and every one once");
	is($seen->{answers}, $rounds * $connections, "$title: every call was answered");
	cmp_ok($seen->{keys}, '>=', $rounds, "$title: all keys had their turn");
	is( $control->ok(qq{
			SELECT string_agg(DISTINCT outcome, ' ' ORDER BY outcome) FROM answers WHERE way = '$way'})->value
		  =~ s/ in_progress//r,
		'claimed replay', "$title: no strange answers");
	is( $control->ok(qq{
			SELECT count(*) FROM answers WHERE way = '$way' AND outcome = 'in_progress'})->value,
		0, "$title: who waits long enough learns the end") if $way eq 'waiting';
	is( $control->ok(qq{
			SELECT count(*) FROM answers a
			WHERE way = '$way' AND outcome = 'replay' AND NOT EXISTS
				(SELECT FROM effects e WHERE e.way = a.way AND e.round = a.round AND e.body = a.body
				 AND a.headers = '[["Set-Cookie", "a"], ["Set-Cookie", "b"]]')})->value,
		0,
		"$title: every replay is what the execution recorded, byte for byte");
	is( $control->ok(qq{
			SELECT count(*) FROM answers
			WHERE way = '$way' AND outcome <> 'replay' AND (body IS NOT NULL OR headers IS NOT NULL)})->value,
		0,
		"$title: no other answer carries a response");
	is( $control->ok(qq{
			SELECT count(*) FROM effects e JOIN idempotency.idempotency_keys k
				ON k.scope = 'contention' AND k.operation = '$way' AND k.key = e.round::text
			WHERE e.way = '$way' AND k.status = 'completed' AND k.response_body = e.body})->value,
		$done->{keys}, "$title: the table agrees with what was booked");
	note("$title: " . $control->ok(qq{
		SELECT string_agg(outcome || ' ' || n, ', ' ORDER BY outcome)
		FROM (SELECT outcome, count(*) AS n FROM answers WHERE way = '$way' GROUP BY 1) AS a})->value);
	return;
}

1;
