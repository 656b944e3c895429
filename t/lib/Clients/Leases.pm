
# Clients::Leases - a client that commits its claim before it works
#
# Claim and completion are transactions of their own. In between some vanish, some
# report that nothing came of it, some ask for more time, and some need longer than
# they have. A claim may be sent again, as if its answer had been lost.

package Clients::Leases;

use strict;
use warnings;

use Clients::Record;
use Clients::Steps;
use Clients::Transactions;
use Exporter qw(import);
use Time::HiRes qw(time);

our @EXPORT = qw(under_a_lease);

sub under_a_lease
{
	my ($client) = @_;
	my $key = some_key();
	my $lease = pick(0.015, 0.04, 0.15);
	my $ttl = ttl_of($key);
	my $id = chance(0.3) ? sprintf('00000000-0000-4000-8000-%012x', rand(2**45)) : undef;
	my %option = (lease => $lease, ttl => $ttl, claim_id => $id, wait => chance(0.2) ? 0.05 : 0);
	my $sent_at = time;

	$client->{transaction} = undef;
	ask($client, claim_sql($key, %option),
		sub {
			my ($result) = @_;
			my $claim = record_claim($key, $sent_at, $result,
				transaction => own_transaction(code_of($result), $sent_at), lease => $lease);

			return idle($client) if $claim->{outcome} ne 'claimed';
			return lease_work($client, $key, $ttl, $claim) unless $id;

			# As if the answer had been lost.
			my $again_at = time;
			ask($client, claim_sql($key, %option),
				sub {
					my ($repeat) = @_;
					my $token = $repeat->code eq '' ? $repeat->row->{token} : undef;
					my $same = defined $token && $token == $claim->{token};

					record_claim($key, $again_at, $repeat,
						transaction => own_transaction(code_of($repeat), $again_at),
						lease => $lease, repeated => $same);
					return idle($client) unless $same;
					lease_work($client, $key, $ttl, $claim);
				});
		});
	return;
}

sub lease_work
{
	my ($client, $key, $ttl, $claim) = @_;
	my $lease = $claim->{lease};

	# Some vanish, some report that nothing came of it, some need longer.
	return idle($client) if chance(0.15);
	if (chance(0.2))
	{
		my $kind = pick('fail', 'release');
		my $sent_at = time;

		ask($client, "SELECT idempotency.$kind('history', 'op', '$key->{name}', token => $claim->{token})",
			sub {
				my ($result) = @_;

				record_ending($kind, $key, $sent_at, $result, token => $claim->{token},
					transaction => own_transaction(code_of($result), $sent_at));
				idle($client);
			});
		return;
	}
	if (chance(0.25))
	{
		my $sent_at = time;

		ask($client,
			sprintf("SELECT idempotency.extend('history', 'op', '%s', '%.0f ms', token => %d)",
				$key->{name}, 1000 * $lease, $claim->{token}),
			sub {
				my ($result) = @_;

				record_ending('extend', $key, $sent_at, $result, token => $claim->{token}, lease => $lease,
					transaction => own_transaction(code_of($result), $sent_at));
				return idle($client) if $result->code ne '';
				finish_lease($client, $key, $ttl, $claim);
			});
		return;
	}
	later(chance(0.5) ? rand(2 * $lease) : 0, sub { finish_lease($client, $key, $ttl, $claim) });
	return;
}

# The business rows and the completion, in a transaction of their own. A late
# owner must not get past the completion.
sub finish_lease
{
	my ($client, $key, $ttl, $claim) = @_;
	my $level = pick('READ COMMITTED', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE');

	return idle($client) if $client->{connection}->lost;
	$client->{transaction} = { state => 'open' };
	ask($client, "BEGIN ISOLATION LEVEL $level",
		sub {
			my ($result) = @_;

			return lose($client) if $result->{lost} || $result->code ne '';
			complete_it($client, $level, $key, $ttl, $claim, [],
				sub { return $_[0] ? roll_back($client, 1) : end_transaction($client, $level); });
		});
	return;
}

1;
