
# Clients::Steps - what all clients of Clients.pm do: choose a key, send a statement
#
# A client does one thing after the other, and each step is given what the one
# before it was answered: ask() sends a statement and names who goes on with the
# answer. None of them waits, so one process runs all clients.

package Clients::Steps;

use strict;
use warnings;

use Exporter qw(import);
use Time::HiRes qw(time);

our @EXPORT = qw($control @all_lasting $executions begin_steps chance pick later call_due ask idle
  some_key passing_key ttl_of new_body claim_sql completion_sql effect_sql);

# A connection that is nobody's in particular.
our $control;
my @timers;    # [time, callback], unordered

sub chance { return rand() < $_[0]; }
sub pick { return $_[ rand @_ ]; }

# ---- keys ----------------------------------------------------------------------

# Lasting keys are executed once in this run. A few are in use at a time, and
# one that has been completed makes room for a new one after a while. Passing
# keys live for fractions of a second and are executed again and again; these
# are the ones that clean-up deletes and people forget.
our @all_lasting;
my (@lasting, @passing, $keys);

# Responses that were made.
our $executions;

sub new_lasting_key
{
	my $name = 'lasting ' . ++$keys;

	push @all_lasting, $name;
	return { name => $name, left => 40 };
}

sub some_key
{
	return pick(@passing) if chance(0.35);
	my $i = int(rand(@lasting));

	$lasting[$i] = new_lasting_key() if $lasting[$i]{done} && --$lasting[$i]{left} <= 0;
	return $lasting[$i];
}

sub passing_key { return pick(@passing); }

sub begin_steps
{
	$control = $_[0];
	$keys = $executions = 0;
	@timers = @all_lasting = ();
	@lasting = map { new_lasting_key() } 1 .. 8;
	@passing = map { { name => "passing $_", passing => 1 } } 1 .. 5;
	return;
}

# ---- steps ---------------------------------------------------------------------

sub later
{
	my ($in, $callback) = @_;

	push @timers, [ time + $in, $callback ];
	return;
}

sub call_due
{
	my $now = time;
	my @due = grep { $_->[0] <= $now } @timers;

	@timers = grep { $_->[0] > $now } @timers;
	$_->[1]->() foreach @due;
	return;
}

# Sends something, and has its answer handled. A client that lost its
# connection ends what it was about.
sub ask
{
	my ($client, $sql, $callback) = @_;

	$client->{callback} = $callback;
	$client->{asked_at} = time;
	$client->{connection}->start($sql);
	return;
}

sub idle
{
	my ($client) = @_;

	$client->{callback} = undef;
	$client->{transaction} = undef;
	return;
}

# ---- statements ----------------------------------------------------------------

sub claim_sql
{
	my ($key, %option) = @_;
	my $request = $option{wrong} ? '{"another": true}' : qq({"key": "$key->{name}"});
	my $sql =
	  "SELECT outcome, token, response_body FROM idempotency.claim('history', 'op', '$key->{name}', request => '$request'";

	$sql .= sprintf(", ttl => '%.0f ms'", 1000 * $option{ttl}) if $option{ttl};
	$sql .= sprintf(", lease => '%.0f ms'", 1000 * $option{lease}) if $option{lease};
	$sql .= sprintf(", wait => '%.0f ms'", 1000 * $option{wait}) if $option{wait};
	$sql .= ", claim_id => '$option{claim_id}'" if $option{claim_id};
	return "$sql)";
}

sub ttl_of { return $_[0]{passing} ? 0.02 + int(rand(200)) / 1000 : 86400; }

# No two executions have the same response. Its spacing is part of it.
sub new_body { return sprintf('{ "execution":%d,  "at":1.10, "é":"%s" }', ++$executions, 'x' x rand(40)); }

sub completion_sql
{
	my ($key, $body, $token) = @_;
	my $with_token = defined $token ? ", token => $token" : '';

	return
	  "SELECT extract(epoch FROM idempotency.complete('history', 'op', '$key->{name}', 200, '$body'$with_token)) AS expires_at";
}

sub effect_sql { return "INSERT INTO effects VALUES ('$_[0]{name}', '$_[1]')"; }

1;
