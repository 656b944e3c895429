
# Clients::Judgement - whether a run of Clients.pm can be what was promised
#
# Faults have stopped. Every request has to come to its end now, the record may not
# contradict itself, what the table has is what was booked, nothing is left behind,
# and the log has no other troubles than those that were meant.

package Clients::Judgement;

use strict;
use warnings;

use Clients::Record;
use Clients::Steps;
use Exporter qw(import);
use Extension;
use List::Util qw(max);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

our @EXPORT = qw(judge_run);

# The first violations, and the whole history in a file.
sub explain_failure
{
	my ($node, @violations) = @_;
	my $file = "$PostgreSQL::Test::Utils::log_path/history.$$." . $node->name;

	append_to_file($file, join('', $history->lines));
	diag(join("\n", splice(@violations, 0, 20), "The history is in $file."));
	return;
}

sub judge_run
{
	my ($node, $offset) = @_;

	# Faults have stopped: every request comes to its end by asking again. Who
	# waits gets the answer when the last lease lapses, which is no second long,
	# and not when the wait is over.
	my ($worst, $stuck) = (0, 0);
	foreach my $name (@all_lasting)
	{
		my $key = { name => $name };
		my $transaction = { state => 'open' };

		$control->ok('BEGIN');
		my $sent_at = time;
		my $claim = record_claim($key, $sent_at, $control->query(claim_sql($key, ttl => 86400, wait => 60)),
			transaction => $transaction);
		$worst = max($worst, time - $sent_at);
		if ($claim->{outcome} eq 'claimed')
		{
			my $body = new_body();
			my $completed_at = time;

			$control->ok(effect_sql($key, $body));
			record_ending('complete', $key, $completed_at, $control->query(completion_sql($key, $body)),
				transaction => $transaction, claim => $claim, body => $body, ttl => 86400,
				expires_at => $control->result->row->{expires_at});
		}
		$transaction->{ended_at} = time;
		$control->ok('COMMIT');
		@$transaction{qw(state over_at)} = ('committed', time);
		$stuck++ unless $claim->{outcome} =~ /claimed|replay/;
	}
	is($stuck, 0, 'I10: every request came to its end');
	cmp_ok($worst, '<', 30, 'I10: within its lease and a little');

	my @violations = $history->check;
	my %effects = map { $_->[0] => $_->[1] } @{ $control->ok('SELECT body, count(*) FROM effects GROUP BY body')->rows };

	push @violations, $history->check_effects(\%effects);
	is(scalar @violations, 0, 'I1 to I9, I13: what clients were told can be true') or explain_failure($node, @violations);
	is(scalar @surprises, 0, 'no unexpected answer') or diag(join("\n", splice(@surprises, 0, 20)));

	is( $control->ok(q{
			SELECT count(*) FROM idempotency.idempotency_keys k
			WHERE k.key LIKE 'lasting%' AND (k.status <> 'completed' OR
				(SELECT count(*) FROM effects e WHERE e.key = k.key) <> 1 OR
				(SELECT body FROM effects e WHERE e.key = k.key LIMIT 1) <> k.response_body)})->value,
		0,
		'I8: one effect for each key, with the recorded response');
	is( $control->ok(q{SELECT count(*) FROM idempotency.idempotency_keys WHERE key LIKE 'lasting%'})->value,
		scalar @all_lasting, 'I6: no key is missing');

	ok( wait_until(sub {
			$control->ok(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'})->value == 1
		}), 'all clients are gone');
	is(key_locks($control), 0, 'I15: no key lock is left');
	is($control->ok(q{SELECT count(*) FROM pg_prepared_xacts})->value, 0, 'I15: no prepared transaction is left');
	my $expected = join '|',
	  'FATAL:  terminating connection', 'ERROR:  canceling statement', 'ERROR:  could not serialize access',
	  'ERROR:  deadlock detected', 'ERROR:  prepared transaction .* (?:does not exist|is busy)',
	  'ERROR:  the claim no longer belongs to the caller', 'ERROR:  the caller has no open claim', 'ERROR:  the key is in progress',
	  'ERROR:  the key was written by a concurrent', 'ERROR:  could not decide the claim in this',
	  'ERROR:  a claim without a lease was left open', 'ERROR:  savepoint "s" does not exist',
	  'WARNING:  PID .* is not a PostgreSQL';
	is(join('', grep { !/$expected/ } troubles($node, $offset)), '', 'nothing else is in the log');

	note(scalar(@all_lasting) . " lasting keys, $executions executions");
	foreach my $what (sort keys %answers)
	{
		note("$what: " . join(', ', map { "$answers{$what}{$_} " . ($_ || 'ok') } sort keys %{ $answers{$what} }));
	}
	return;
}

1;
