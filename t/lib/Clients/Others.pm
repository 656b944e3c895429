
# Clients::Others - who else is there: who looks, who forgets keys, who cleans up,
# and who terminates backends and cancels statements
#
# They own nothing. What they see or do has to fit what owners were told, and none
# of it may break an owner's promise.

package Clients::Others;

use strict;
use warnings;

use Clients::Record;
use Clients::Steps;
use Exporter qw(import);
use Time::HiRes qw(time);

our @EXPORT = qw(look forget clean_up disturb);

sub look
{
	my ($client) = @_;
	my $key = some_key();
	my $sent_at = time;

	ask($client, "SELECT response_body FROM idempotency.replay('history', 'op', '$key->{name}')",
		sub {
			my ($result) = @_;
			my $code = code_of($result);
			my $found = $code eq '' && @{ $result->rows };

			count_answer($found ? 'replay: found' : 'replay', $key->{name}, $code, '');
			$history->claim(
				key => $key->{name}, sent_at => $sent_at, answered_at => time, code => $code,
				outcome => $found ? 'replay' : 'none', body => $result->value,
				transaction => own_transaction($code, $sent_at));
			idle($client);
		});
	return;
}

# Somebody who clears keys out of the way.
sub forget
{
	my ($client) = @_;
	my $key = passing_key();
	my $sent_at = time;
	my $force = chance(0.5) ? 'true' : 'false';

	ask($client, "SELECT idempotency.forget('history', 'op', '$key->{name}', $force)",
		sub {
			my ($result) = @_;
			my $code = code_of($result);

			# 55006: in progress, and not forced.
			$history->ending(
				kind => 'forget', key => $key->{name}, sent_at => $sent_at, answered_at => time, code => $code,
				transaction => own_transaction($code, $sent_at));
			count_answer('forget', $key->{name}, $code eq '55006' ? '' : $code, '');
			idle($client);
		});
	return;
}

sub clean_up
{
	my ($client) = @_;

	ask($client, 'SELECT idempotency.cleanup(max_rows => ' . (1 + int rand(4)) . ')',
		sub {
			my ($result) = @_;

			$answers{deleted}{''} += $result->value // 0;
			count_answer('cleanup', '-', code_of($result), '');
			later(0.003, sub { idle($client) });
		});
	return;
}

# Every backend may be hit at any time.
sub disturb
{
	my $client = pick(@_);
	my $pid = $client->{connection}->pid;

	return if $client->{connection}->lost;
	if (chance(0.4))
	{
		$client->{hit_at} = time;
		$control->ok("SELECT pg_terminate_backend($pid)");
		$answers{terminated}{''}++;
	}
	else
	{
		$control->ok("SELECT pg_cancel_backend($pid)");
		$answers{cancelled}{''}++;
	}
	return;
}

1;
