# What holds with logical replication and with two writers, and what does not.
# scale/replication/run starts the servers.
#
# Each part has databases of its own, under one name on both servers: "promote", a
# subscriber that becomes the primary; "everything", FOR ALL TABLES; "writers", native
# replication both ways; "pgl_…", pglogical both ways; "homes", both ways with a home for each
# scope. "control" is not replicated: its expired keys show when clean-up has been round.

use strict;
use warnings;

use Connection;
use List::Util qw(uniq);
use Promises;
use Servers;
use Time::HiRes qw(sleep);

my $requests = $ENV{REQUESTS};
my $clients = 4;
my $mutation = $ENV{MUTATE};
my %no = map { $_ => $mutation eq $_ } qw(apart cleanup synchronous together bindings required filter first);

sub on_both
{
	my ($database, @commands) = @_;

	foreach my $server (qw(a b))
	{
		psql($server, $database, map { ('-c', $_) } @commands);
	}
	return;
}

# A database with the extension and a table of the business, on both servers.
sub make_database
{
	my ($name) = @_;

	on_both('postgres', "CREATE DATABASE $name");
	on_both($name, 'CREATE EXTENSION idempotency', q{
		CREATE TABLE orders (scope text, key text, node text, id uuid DEFAULT gen_random_uuid(), PRIMARY KEY (scope, id));
		CREATE TABLE marker (n bigint PRIMARY KEY)});
	return (connect_to('a', $name), connect_to('b', $name));
}

# Waits until what was committed on the one is on the other, by a row that follows it;
# not at all if replication stands still, so look at "stops" instead where it may.
my $markers = 0;

sub caught_up
{
	my ($from, $to) = @_;
	my $n = ++$markers;

	$from->ok("INSERT INTO marker VALUES ($n)");
	return wait_until(sub { $to->ok("SELECT count(*) FROM marker WHERE n = $n")->value == 1 });
}

# So often has a subscription of this database been stopped by an error.
sub stops { return $_[0]->ok('SELECT coalesce(sum(apply_error_count + sync_error_count), 0) FROM pg_stat_subscription_stats JOIN pg_subscription ON oid = subid WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())')->value; }

# All tables of it are past their initial copy.
sub copied { my ($to) = @_; return wait_until(sub { $to->ok(q{SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'})->value == 0 }); }

sub rows_of { return join "\n", map { $_->[0] } @{ $_[0]->ok('SELECT k::text FROM idempotency.idempotency_keys AS k ORDER BY 1')->rows }; }

sub subscribe
{
	my ($to, $name, $publisher, %with) = @_;

	$to->ok("CREATE SUBSCRIPTION $name CONNECTION '" . database_at(@$publisher) . " user=postgres' PUBLICATION node" . (%with ? ' WITH (' . join(', ', map { "$_ = $with{$_}" } sort keys %with) . ')' : ''));
	return;
}

# Its publisher may be gone: its slot stays there, and has to be dropped there.
sub promote
{
	my ($to, $name) = @_;

	$to->ok("ALTER SUBSCRIPTION $name DISABLE");
	$to->ok("ALTER SUBSCRIPTION $name SET (slot_name = NONE)");
	$to->ok("DROP SUBSCRIPTION $name");
	return;
}

# Clean-up by the worker of a server has been through all its databases, twice to be
# sure that the second round began after the call.
sub worker_was_round
{
	my ($server) = @_;
	my $control = connect_to($server, 'control');

	foreach my $round (1, 2)
	{
		$control->ok(q{SELECT FROM idempotency.claim('control', 'op', 'expired', lease => '1 microsecond', ttl => '1 microsecond')});
		wait_until(sub { $control->ok('SELECT count(*) FROM idempotency.idempotency_keys')->value == 0 }) or die 'the worker does nothing';
	}
	return;
}

sub set_on
{
	my ($server, $what) = @_;

	# ALTER SYSTEM is no part of a transaction, so each by itself.
	psql($server, 'postgres', '-c', "ALTER SYSTEM $what", '-c', 'SELECT pg_reload_conf()');
	return;
}

sub setting_is
{
	my ($server, $name, $value) = @_;

	return wait_until(sub { connect_to($server, 'postgres')->ok("SELECT current_setting('$name')")->value eq $value });
}

sub claim_sql
{
	my ($scope, $key, $more) = @_;

	return "SELECT outcome, token, response_body FROM idempotency.claim('$scope', 'op', '$key'" . ($more // '') . ')';
}

# A request in one transaction, as an application does it. What its client is told,
# and whether it was executed.
sub request
{
	my ($connection, $scope, $key, $answer) = @_;

	$connection->ok('BEGIN');
	my $result = $connection->query(claim_sql($scope, $key));
	if ($result->code ne '') { $connection->query('ROLLBACK'); return ($result->code, 0); }
	my ($outcome, undef, $body) = @{ $result->rows->[0] };
	if ($outcome eq 'claimed')
	{
		$connection->ok("INSERT INTO orders (scope, key, node) VALUES ('$scope', '$key', '$answer')");
		$connection->ok("SELECT idempotency.complete('$scope', 'op', '$key', 201, '$answer')");
	}
	$connection->ok('COMMIT');
	return $outcome eq 'claimed' ? ($answer, 1) : ($body // $outcome, 0);
}

sub replay { return $_[0]->execute(q{SELECT response_body FROM idempotency.replay($1, 'op', $2)}, @_[ 1, 2 ])->value // 'nothing'; }

on_both('postgres', 'CREATE ROLE app LOGIN', 'CREATE ROLE stranger LOGIN', 'CREATE ROLE reader LOGIN', 'CREATE ROLE keeper LOGIN', 'CREATE DATABASE control');
on_both('control', 'CREATE EXTENSION idempotency');
my $keys = 'idempotency.idempotency_keys';

# ---- a subscriber, as it follows -----------------------------------------------------

# What an operator sets on the subscriber before anything else.
set_on('b', q{SET idempotency.cleanup_skip_databases = 'promote'}) if !$no{cleanup};
my ($a, $b) = make_database('promote');
# Numbers of tokens that the two never share.
if (!$no{apart})
{
	$a->ok('ALTER SEQUENCE idempotency.token_seq INCREMENT BY 2 RESTART WITH 1');
	$b->ok('ALTER SEQUENCE idempotency.token_seq INCREMENT BY 2 RESTART WITH 2');
}

my %token;
my $make_one_of_each = sub {
	my ($when) = @_;

	$a->ok("SELECT idempotency.once('s', 'op', 'once $when')");
	$a->ok("SELECT idempotency.import_completed('s', 'op', 'bytes $when', 200, response_bytes => '\\x00ff5c22', response_headers => '[[\"a\", \"b\"]]')");
	request($a, 's', "completed $when", 'as it was');
	$token{"$_ $when"} = $a->ok(claim_sql('s', "$_ $when", q{, lease => '1 hour', request => '{"n": 1}', state => '{"x": "(a,b)"}'}))->row->{token} foreach qw(leased held failed done);
	$token{"lapsed $when"} = $a->ok(claim_sql('s', "lapsed $when", q{, lease => '1 microsecond'}))->row->{token};
	$a->ok("SELECT idempotency.hold('s', 'op', 'held $when', token => " . $token{"held $when"} . ')');
	$a->ok("SELECT idempotency.fail('s', 'op', 'failed $when', 'no', token => " . $token{"failed $when"} . ')');
	$a->ok("SELECT idempotency.complete('s', 'op', 'done $when', 200, 'with a lease', token => " . $token{"done $when"} . ')');
	return;
};

$make_one_of_each->('copied');
$a->ok(q{SELECT idempotency.set_policy('with policy', ttl => '3 days'), idempotency.bind_role('app', 'app:%')});
$a->ok("CREATE PUBLICATION node FOR TABLE $keys, idempotency.policies, idempotency.role_bindings, orders, marker");
# A synchronous publisher waits until it is flushed here; without this that would be left
# to the WAL writer, a fifth of a second later.
subscribe($b, 'follower', [ a => 'promote' ], synchronous_commit => 'on');
copied($b);
promise(rows_of($a) eq rows_of($b), 'subscriber: the initial copy has every kind of key');
$make_one_of_each->('streamed');
$a->ok(q{SELECT idempotency.grant_usage('app')});
$b->ok(q{SELECT idempotency.grant_usage('app')});
$a->ok(q{SELECT idempotency.set_policy('with policy', ttl => '5 days')});
caught_up($a, $b);
promise(rows_of($a) eq rows_of($b), 'subscriber: so has the stream');
promise($b->ok(q{SELECT ttl_seconds FROM idempotency.effective_policies WHERE operation = 'with policy'})->value == 5 * 86400, 'subscriber: policies follow');
promise(connect_to('b', 'promote', user => 'app')->query(q{SELECT idempotency.once('other', 'op', 'k')})->code eq '42501', 'subscriber: bindings follow, by the name of the role');
promise(replay($b, 's', 'completed streamed') eq 'as it was', 'subscriber: replay() answers while it follows');
promise($b->ok('SELECT last_value FROM idempotency.token_seq')->value < $a->ok('SELECT last_value FROM idempotency.token_seq')->value, 'subscriber: the sequence of tokens is not replicated');

# Clean-up deletes on both sides; the second deletion finds nothing.
$a->ok(claim_sql('s', 'deleted twice', q{, lease => '1 microsecond', ttl => '1 microsecond'}));
caught_up($a, $b);
$b->ok('SELECT idempotency.forget(scope, operation, key, true) FROM idempotency.idempotency_keys WHERE key = \'deleted twice\'');
$a->ok('SELECT idempotency.cleanup()');
caught_up($a, $b);
promise($b->ok(q{SELECT count(*) FROM idempotency.idempotency_keys WHERE key = 'deleted twice'})->value == 0 && stops($b) == 0, 'subscriber: a row that is deleted on both sides stops nothing');

# A row that has expired by what the subscriber knows, and lives on by what is on its
# way. "lag" makes one: completed late, but by its owner.
sub lag
{
	my ($key, $meanwhile) = @_;

	my $token = $a->ok(claim_sql('s', $key, q{, lease => '1 microsecond', ttl => '1 microsecond'}))->row->{token};
	caught_up($a, $b);
	$b->ok('ALTER SUBSCRIPTION follower DISABLE');
	wait_until(sub { $b->ok(q{SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL})->value == 0 });
	$a->ok("SELECT idempotency.complete('s', 'op', '$key', 201, 'in time', ttl => '10 days', token => $token)");
	$meanwhile->();
	$b->ok('ALTER SUBSCRIPTION follower ENABLE');
	caught_up($a, $b);
	return;
}

# The publisher's own worker may be there first: it is told to leave this database
# alone as well, so that only the subscriber's is at issue.
set_on('a', q{SET idempotency.cleanup_skip_databases = 'promote'});
worker_was_round('a');
lag('renewed', sub { worker_was_round('b') });
promise(replay($b, 's', 'renewed') eq 'in time', 'subscriber, no clean-up: a key that was renewed meanwhile is there', 'it was deleted, and its renewal found no row');
lag('renewed and cleaned', sub { $b->ok('CALL idempotency.maintain()') });
my $lost_by_cleanup = replay($b, 's', 'renewed and cleaned') eq 'nothing' ? 1 : 0;
promise($lost_by_cleanup && stops($b) == 0, 'NOT promised, clean-up on the subscriber: the renewal finds no row, and nobody is told');
count('subscriber: keys lost by clean-up there', $lost_by_cleanup);

# ---- FOR ALL TABLES ---------------------------------------------------------------------

{
	my ($from, $to) = make_database('everything');

	$_->ok('CALL idempotency.maintain()') foreach $from, $to;
	$from->ok('CREATE PUBLICATION node FOR ALL TABLES');
	subscribe($to, 'all_tables', [ a => 'everything' ]);
	promise(wait_until(sub { stops($to) > 0 }), 'NOT promised, FOR ALL TABLES: cleanup_runs comes along, where each server writes its own, and stops the copy');
	promise(wait_until(sub { $to->ok('SELECT count(*) FROM idempotency.lock_secret')->value == 2 }), 'NOT promised, FOR ALL TABLES: nor is lock_secret meant to travel');
	promise($from->query('UPDATE idempotency.lock_secret SET secret = gen_random_uuid()')->code eq '55000', 'NOT promised, FOR ALL TABLES: and it cannot be changed any more');
	$to->ok('DROP SUBSCRIPTION all_tables');
}

# ---- tokens ----------------------------------------------------------------------------

# A claim that never arrived: the subscription is off. The same key is then claimed on
# the other server, and the lost claim's owner comes back there with its token.
sub late_owner
{
	my ($key, $token) = @_;

	my $result = $b->query("SELECT idempotency.complete('s', 'op', '$key', 200, 'late', token => $token)");
	return $result->code =~ /^IK00[12]$/ ? 1 : 0;
}

$b->ok('ALTER SUBSCRIPTION follower DISABLE');
wait_until(sub { $b->ok(q{SELECT count(*) FROM pg_stat_subscription WHERE pid IS NOT NULL})->value == 0 });
{
	my ($same_second, $equal, $refused, $tries) = (0, 0, 0, 0);

	# In the same second, with the same number if the two sequences have it. How often
	# a pair falls into one second is the machine's affair; twenty have to.
	while ($same_second < 20 && $tries++ < 2000)
	{
		my $key = "same second $tries";
		my $number = $a->ok(q{SELECT nextval('idempotency.token_seq')})->value;

		# The other one's next number is the one that the first gives next, or beside it.
		$b->ok("SELECT setval('idempotency.token_seq', $number + " . ($no{apart} ? 0 : 1) . ')');
		$a->start(claim_sql('s', $key, q{, lease => '1 hour'}));
		$b->start(claim_sql('s', $key, q{, lease => '1 hour'}));
		my ($lost, $given) = map { $_->finish->row->{token} } $a, $b;
		next if $lost >> 20 != $given >> 20;
		$same_second++;
		$equal++ if $lost == $given;
		$refused += late_owner($key, $lost);
	}
	promise($same_second == 20 && !$equal, "tokens, in one second: of $same_second keys none gets a lost claim's token again", "$equal of $same_second are equal");
	promise($refused == 20, 'tokens, in one second: the lost claim\'s owner is refused', "$refused of $same_second");
	count('keys claimed on both within one second; equal tokens', "$same_second; $equal");
}
{
	# As CREATE EXTENSION leaves the sequence, and in a later second.
	my $key = 'later second';

	$_->ok('ALTER SEQUENCE idempotency.token_seq INCREMENT BY 1 RESTART WITH 1000000') foreach $a, $b;
	my $lost = $a->ok(claim_sql('s', $key, q{, lease => '1 hour'}))->row->{token};
	my $then = $a->ok('SELECT floor(extract(epoch FROM clock_timestamp()))')->value;
	wait_until(sub { $b->ok('SELECT floor(extract(epoch FROM clock_timestamp()))')->value > $then });
	my $given = $b->ok(claim_sql('s', $key, q{, lease => '1 hour'}))->row->{token};
	promise($lost != $given && late_owner($key, $lost), 'tokens, in a later second: never again, whatever the sequence says', "lost $lost, given $given");
	# As they were: one with odd, one with even numbers.
	if (!$no{apart})
	{
		$a->ok('ALTER SEQUENCE idempotency.token_seq INCREMENT BY 2 RESTART WITH 100001');
		$b->ok('ALTER SEQUENCE idempotency.token_seq INCREMENT BY 2 RESTART WITH 2');
	}
	$a->ok(q{SELECT idempotency.forget(scope, operation, key, true) FROM idempotency.idempotency_keys WHERE key ~ 'second'});
	$b->ok(q{SELECT idempotency.forget(scope, operation, key, true) FROM idempotency.idempotency_keys WHERE key ~ 'second'});
}

# ---- somebody writes on the subscriber before its time --------------------------------------

$b->ok('ALTER SUBSCRIPTION follower ENABLE');
caught_up($a, $b);
{
	my $before = stops($b);

	request($b, 's', 'too early', 'b');
	request($a, 's', 'too early', 'a');
	promise(wait_until(sub { stops($b) > $before }), 'NOT promised, a claim on the subscriber before its time: executed on both; replication stops there, loudly');
	count('subscriber: executed twice by a claim before its time', $a->ok(q{SELECT count(*) FROM orders WHERE key = 'too early'})->value + $b->ok(q{SELECT count(*) FROM orders WHERE key = 'too early'})->value - 1);
	$b->ok(q{SELECT idempotency.forget('s', 'op', 'too early', true)});
	promise(caught_up($a, $b) && replay($b, 's', 'too early') eq 'a', 'once the key is forgotten on the subscriber, it goes on with the publisher\'s answer');
	$b->ok(q{DELETE FROM orders WHERE key = 'too early' AND node = 'b'});
}

# ---- promotion ------------------------------------------------------------------------------

# One client of the publisher until that is gone. A line for each answer.
sub load
{
	my ($out, $client) = @_;
	my $connection = connect_to('a', 'promote');

	for (my $i = $client;; $i += $clients)
	{
		my $key = "load $i";

		if ($i % 3 == 0)
		{
			# One in three is left at its lease; of those every other one's has lapsed.
			my $result = $connection->query(claim_sql('s', $key, ', lease => ' . ($i % 2 ? q{'1 hour'} : q{'1 microsecond'})));

			last if $result->code eq 'lost' || $result->code =~ /^57/;
			print $out join("\t", $i % 2 ? 'leased' : 'lapsed', $key, $result->row->{token}), "\n";
		}
		else
		{
			my $result = $connection->query("BEGIN; " . claim_sql('s', $key) . "; INSERT INTO orders (scope, key, node) VALUES ('s', '$key', 'a');"
				. "SELECT idempotency.complete('s', 'op', '$key', 201, 'answer $i'); COMMIT");

			last if $result->code ne '' || $result->{lost};
			print $out join("\t", 'done', $key, "answer $i"), "\n";
		}
	}
	return;
}

sub ask_again
{
	my ($what, $acknowledged, $b, $has_arrived) = @_;
	my (@lost, @replaced, @tokens, @accepted);

	foreach my $line (@$acknowledged)
	{
		my ($kind, $key, $value) = @$line;

		if ($kind eq 'done')
		{
			my ($told, $executed) = request($b, 's', $key, 'again');

			if ($executed) { push @lost, $key }
			elsif ($told ne $value) { push @replaced, $key }
			next;
		}
		my $row = $b->ok(claim_sql('s', $key, q{, lease => '1 hour'}))->row;
		my $is_lapsed = $kind eq 'lapsed';

		push @lost, $key if $kind eq 'leased' && $row->{outcome} ne 'in_progress';
		if ($row->{outcome} eq 'claimed')
		{
			# Of a claim that did not arrive nobody here knows what would be larger.
			push @tokens, "$key: $value, $row->{token}" if $has_arrived ? $row->{token} <= $value : $row->{token} == $value;
			push @accepted, $key if !late_owner($key, $value);
			$b->ok("SELECT idempotency.complete('s', 'op', '$key', 200, 'new owner', token => $row->{token})");
			push @accepted, $key if !late_owner($key, $value);
		}
		else
		{
			my $result = $b->query("SELECT idempotency.complete('s', 'op', '$key', 200, 'the owner', token => $value)");
			push @lost, "$key: " . $result->message if $result->code ne '';
		}
	}
	promise(!@tokens, "$what: every new token is " . ($has_arrived ? 'larger than the one before' : 'another than the one that was lost'), @tokens);
	promise(!@accepted, "$what: every late owner is refused", @accepted);
	promise(!@replaced, "$what: every answer is the recorded one", @replaced);
	return @lost;
}

sub publisher_is_lost
{
	my ($enough, @more) = @_;
	my @children = map { my $client = $_; in_child(sub { load($_[0], $client) }) } 0 .. $clients - 1;
	my $watch = connect_to('a', 'promote');

	wait_until(sub { $watch->ok(q{SELECT count(*) FROM idempotency.idempotency_keys WHERE key LIKE 'load %'})->value >= $enough }) or die 'no progress';
	kill_server('a');
	return map { [ split /\t/, $_ ] } map { child_end($_) } @children;
}

# A synchronous subscriber: what is acknowledged is there.
if (!$no{synchronous})
{
	set_on('a', q{SET synchronous_standby_names = 'follower'});
	wait_until(sub { connect_to('a', 'postgres')->ok(q{SELECT count(*) FROM pg_stat_replication WHERE application_name = 'follower' AND sync_state = 'sync'})->value == 1 }) or die 'not synchronous';
}
else
{
	# With the subscriber as far behind as it can be.
	$b->ok('ALTER SUBSCRIPTION follower DISABLE');
}
{
	my @acknowledged = publisher_is_lost($requests);

	promote($b, 'follower');
	my @lost = ask_again('promoted, synchronous', \@acknowledged, $b, 1);
	my $twice = $b->ok(q{SELECT count(*) FROM (SELECT FROM orders GROUP BY scope, key HAVING count(*) > 1) AS t})->value;
	my $torn = $b->ok(q{SELECT count(*) FROM orders AS o FULL JOIN (SELECT * FROM idempotency.idempotency_keys WHERE response_status = 201) AS k USING (scope, key)
		WHERE (o.scope IS NULL AND k.response_body ~ '^(answer|again)') OR (k.key IS NULL AND o.key LIKE 'load %')})->value;
	promise(@acknowledged >= $requests / 2 && !@lost, 'promoted, synchronous: nothing that was acknowledged is lost', scalar(@acknowledged) . ' acknowledged', @lost);
	promise($twice == 0, 'promoted, synchronous: nothing executed twice');
	promise($torn == 0, 'promoted, synchronous: no row without its key, no key without its row', $torn);
	count('promoted, synchronous: acknowledged; lost; executed twice', scalar(@acknowledged) . '; ' . @lost . "; $twice");
	promise($b->ok(q{SELECT outcome FROM idempotency.claim('s', 'op', 'held streamed')})->value eq 'held', 'promoted: what was held is held');
	promise($b->ok(q{SELECT attempt FROM idempotency.claim('s', 'op', 'failed streamed', lease => '1 hour')})->value == 2, 'promoted: what had failed is tried again');
	promise($b->ok(q{SELECT idempotency.once('s', 'op', 'once streamed')})->value eq 'f', 'promoted: once() has not forgotten');
	promise($b->ok(q{SELECT count(*) FROM idempotency.once_batch('s', 'op', ARRAY['once copied', 'once streamed', 'new']) WHERE first})->value == 1, 'promoted: nor has once_batch()');
	promise(stops($b) == 0 && $b->ok('SELECT count(*) FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())')->value == 0, 'promoted: nothing is subscribed any more');
	set_on('b', 'RESET idempotency.cleanup_skip_databases');
	$b->ok(claim_sql('s', 'to clean', q{, lease => '1 microsecond', ttl => '1 microsecond'}));
	promise(wait_until(sub { $b->ok(q{SELECT count(*) FROM idempotency.idempotency_keys WHERE key = 'to clean'})->value == 0 }), 'promoted: clean-up begins when it is let');
}

# An asynchronous one: what had not arrived is lost. Here that is everything after a moment.
start_server('a');
set_on('a', 'RESET synchronous_standby_names');
setting_is('a', 'synchronous_standby_names', '');
$a = connect_to('a', 'promote');
$a->ok(q{SELECT pg_drop_replication_slot('follower')});
$a->ok('TRUNCATE idempotency.idempotency_keys, orders, marker');
$b->ok('TRUNCATE idempotency.idempotency_keys, orders, marker, idempotency.policies, idempotency.role_bindings');
subscribe($b, 'follower', [ a => 'promote' ]);
copied($b);
request($a, 's', 'arrived', 'arrived');
caught_up($a, $b);
$b->ok('ALTER SUBSCRIPTION follower DISABLE');
{
	my @acknowledged = publisher_is_lost(100);

	promote($b, 'follower');
	my @lost = ask_again('promoted, asynchronous', \@acknowledged, $b, 0);
	my $twice = $b->ok(q{SELECT count(*) FROM (SELECT FROM orders GROUP BY scope, key HAVING count(*) > 1) AS t})->value;

	promise(@lost > 0, 'NOT promised, asynchronous: what was acknowledged and had not arrived is lost, and counted');
	promise($twice == 0, 'promoted, asynchronous: the rows are lost with their keys, so nothing is there twice');
	promise(replay($b, 's', 'arrived') eq 'arrived', 'promoted, asynchronous: what had arrived is there');
	count('promoted, asynchronous: acknowledged; lost, and done again', scalar(@acknowledged) . '; ' . @lost);
}
start_server('a');

# Rows in a subscription of their own come apart from their keys.
{
	my ($from, $to) = make_database('apart');

	# "together": one publication and one subscription for both.
	$from->ok("CREATE PUBLICATION node FOR TABLE $keys, marker" . ($no{together} ? '' : ', orders'));
	subscribe($to, 'keys_apart', [ a => 'apart' ]);
	copied($to);
	if ($no{together})
	{
		$from->ok('CREATE PUBLICATION rows FOR TABLE orders');
		$to->ok(q{CREATE SUBSCRIPTION rows_apart CONNECTION '} . database_at(a => 'apart') . q{ user=postgres' PUBLICATION rows WITH (enabled = false, create_slot = true, copy_data = false)});
	}
	request($from, 's', "k $_", 'a') foreach 1 .. 20;
	caught_up($from, $to);
	my $torn = $to->ok(q{SELECT count(*) FROM idempotency.idempotency_keys AS k WHERE NOT EXISTS (SELECT FROM orders AS o WHERE o.key = k.key)})->value;
	promise($torn == 0, 'keys and rows in one subscription arrive together', "$torn keys without their rows");
	$to->ok($_) foreach map { "DROP SUBSCRIPTION $_" } 'keys_apart', $no{together} ? 'rows_apart' : ();
}

# ---- two writers, native ---------------------------------------------------------------------

# Both sides get the same request at once: both transactions are open before either commits.
# Returns what each client was told and how often it was executed.
sub on_both_at_once
{
	my ($one, $two, $key) = @_;
	my %node = (a => $one, b => $two);

	foreach my $name (qw(a b))
	{
		$node{$name}->ok('BEGIN');
		my $outcome = $node{$name}->ok(claim_sql('s', $key))->value;
		return undef if $outcome ne 'claimed';
		$node{$name}->ok("INSERT INTO orders (scope, key, node) VALUES ('s', '$key', '$name')");
		$node{$name}->ok("SELECT idempotency.complete('s', 'op', '$key', 201, '$name')");
	}
	$node{$_}->ok('COMMIT') foreach qw(a b);
	return 2;
}

{
	my ($one, $two) = make_database('writers');
	my $tables = "$keys, orders, marker";
	my $native = $ENV{MAJOR} >= 16;

	$_->ok("CREATE PUBLICATION node FOR TABLE $tables") foreach $one, $two;
	subscribe($two, 'writers_ab', [ a => 'writers' ], copy_data => 'false', $native ? (origin => 'none') : ());
	subscribe($one, 'writers_ba', [ b => 'writers' ], copy_data => 'false', $native ? (origin => 'none') : ());
	if (!$native)
	{
		request($one, 's', 'round trip', 'a');
		promise(wait_until(sub { stops($one) > 0 }), 'NOT promised, both ways before PostgreSQL 16: the first key comes back to its writer and stops replication');
	}
	else
	{
		request($one, 's', "a $_", 'a') foreach 1 .. 20;
		request($two, 's', "b $_", 'b') foreach 1 .. 20;
		caught_up($one, $two);
		caught_up($two, $one);
		promise(stops($one) + stops($two) == 0 && rows_of($one) eq rows_of($two), 'both ways, origin = none: keys that only one side claims are on both');
		my $executed = on_both_at_once($one, $two, 'at once');
		promise(wait_until(sub { stops($one) > 0 && stops($two) > 0 }), 'NOT promised, both ways: the same key on both at once is executed twice; replication stops on both sides, loudly');
		request($one, 's', "after $_", 'a') foreach 1 .. 20;
		my $again = grep { (request($two, 's', "after $_", 'b'))[1] } 1 .. 20;
		promise($again == 20, 'NOT promised, both ways: while it stands still, whatever is asked on both is executed twice');
		count('both ways, origin = none: executed twice', $executed - 1 + $again);
	}
	$_->[0]->ok("ALTER SUBSCRIPTION $_->[1] DISABLE") foreach [ $two, 'writers_ab' ], [ $one, 'writers_ba' ];
	promote(@$_) foreach [ $two, 'writers_ab' ], [ $one, 'writers_ba' ];
}

# ---- two writers, pglogical --------------------------------------------------------------------

# A conflict is over when a row that follows it has arrived.
sub with_pglogical
{
	my ($resolution) = @_;
	my $database = "pgl_$resolution";
	my ($one, $two) = make_database($database);
	my %node = (a => $one, b => $two);
	my $number = 10;

	# The default of pglogical, where the test leaves it alone.
	on_both('postgres', "ALTER DATABASE $database SET pglogical.conflict_resolution = $resolution") if $resolution ne 'apply_remote';
	on_both($database, 'CREATE EXTENSION pglogical');
	foreach my $name (qw(a b))
	{
		$node{$name}->ok("SELECT pglogical.create_node('node_$name', '" . database_at($name => $database) . " user=postgres')");
		$node{$name}->ok(qq{SELECT pglogical.replication_set_add_table('default', '$_')}) foreach $keys, 'orders', 'marker';
	}
	foreach my $pair ([ 'a', 'b' ], [ 'b', 'a' ])
	{
		my ($from, $to) = @$pair;

		$node{$to}->ok("SELECT pglogical.create_subscription('from_$from', '" . database_at($from => $database)
			. " user=postgres', synchronize_structure => false, synchronize_data => false, forward_origins => '{}')");
		wait_until(sub { $node{$to}->ok("SELECT status FROM pglogical.show_subscription_status('from_$from')")->value eq 'replicating' }) or die 'pglogical does not replicate';
	}
	request($one, 's', 'alone', 'a');
	caught_up($one, $two);
	promise(replay($two, 's', 'alone') eq 'a', "pglogical, $resolution: a key that only one side claims is on both");
	my $executed = 0;
	$executed += on_both_at_once($one, $two, "k $_") foreach 1 .. $number;
	caught_up($one, $two);
	caught_up($two, $one);
	my @answers = map { [ replay($one, 's', "k $_"), replay($two, 's', "k $_") ] } 1 .. $number;
	my $differ = grep { $_->[0] ne $_->[1] } @answers;
	my $first = grep { $_->[0] eq 'a' && $_->[1] eq 'a' } @answers;
	my $replaced = grep { $_ } map { ($_->[0] ne 'a', $_->[1] ne 'b') } @answers;
	my $orders = $one->ok(q{SELECT count(*) FROM orders WHERE key LIKE 'k %'})->value;

	foreach my $name (qw(a b))
	{
		$node{$name}->ok("SELECT pglogical.drop_subscription('from_" . ($name eq 'a' ? 'b' : 'a') . "')");
	}
	return ($number, $executed - $number, $differ, $first, $replaced, $orders);
}

if ($ENV{PGLOGICAL} eq 'yes')
{
	foreach my $resolution (qw(first_update_wins last_update_wins apply_remote))
	{
		my ($number, $twice, $differ, $first, $replaced, $orders) = with_pglogical($no{first} && $resolution eq 'first_update_wins' ? 'last_update_wins' : $resolution);

		promise($twice == $number && $orders == 2 * $number, "NOT promised, pglogical, $resolution: the same key on both at once is executed twice, and both rows stay", "$twice, $orders");
		promise($first == $number, "pglogical, $resolution: the answer that was first stays, on both sides", "$first of $number") if $resolution eq 'first_update_wins';
		promise($first == 0 && !$differ, "NOT promised, pglogical, $resolution: the recorded answer is silently replaced by the later one", "$first first ones, $differ differ") if $resolution eq 'last_update_wins';
		promise($differ == $number, "NOT promised, pglogical, $resolution (its default): each side has silently replaced its recorded answer by the other's, for good", "$differ of $number") if $resolution eq 'apply_remote';
		count("pglogical, $resolution: keys on both at once; executed twice", "$number; $twice");
		count('  answers that were told to a client and are another one now', $replaced);
		count('  keys whose answer differs between the two', $differ);
		last if $no{first};
	}
}
else { print "        no pglogical for PostgreSQL $ENV{MAJOR} here: that part is left out\n"; }

# ---- a home for each scope ------------------------------------------------------------------------

{
	# So that the workers do not clean up what the test wants to clean up at its time.
	set_on($_, q{SET idempotency.cleanup_skip_databases = 'homes'}) foreach qw(a b);
	my ($one, $two) = make_database('homes');
	my %node = (a => $one, b => $two);
	my %app;

	# Each publishes the rows of its own homes and nothing else. So nothing comes back,
	# on any version, and what is deleted of a copy does not travel home.
	foreach my $name (qw(a b))
	{
		my $filter = $no{filter} ? '' : " WHERE (scope LIKE '$name:%')";

		$node{$name}->ok("CREATE PUBLICATION node FOR TABLE $keys$filter, orders$filter, marker" . ($no{filter} ? '' : " WHERE (n % 2 = " . ($name eq 'a' ? 1 : 0) . ')'));
		$node{$name}->ok(q{SELECT idempotency.grant_usage('app'), idempotency.grant_usage('stranger')});
		$node{$name}->ok(q{GRANT SELECT, INSERT ON orders TO app, stranger; GRANT USAGE ON SCHEMA idempotency TO reader; GRANT EXECUTE ON FUNCTION idempotency.replay TO reader});
		# role_bindings are not published: each node has its own.
		$node{$name}->ok("SELECT idempotency.bind_role('app', '$name:%'), idempotency.bind_role('reader', '%')") if !$no{bindings};
		$node{$name}->ok('ALTER DATABASE homes SET idempotency.require_binding = on') if !$no{required} && !$no{bindings};
	}
	subscribe($two, 'homes_ab', [ a => 'homes' ], copy_data => 'false');
	subscribe($one, 'homes_ba', [ b => 'homes' ], copy_data => 'false');
	%app = map { $_ => connect_to($_, 'homes', user => 'app') } qw(a b);

	my $marker = $markers + 1000;
	my $arrived = sub {
		my ($from) = @_;

		$marker += 1 + ($marker % 2 == ($from eq 'a' ? 1 : 0));
		$node{$from}->ok("INSERT INTO marker VALUES ($marker)");
		return wait_until(sub { stops($one) + stops($two) > 0 || $node{ $from eq 'a' ? 'b' : 'a' }->ok("SELECT count(*) FROM marker WHERE n = $marker")->value == 1 });
	};

	# Every request goes to both nodes at once, by routing that knows nothing.
	my %codes;
	foreach my $i (1 .. $requests / 2)
	{
		my $home = $i % 2 ? 'a' : 'b';
		my $scope = "$home:" . $i % 7;

		$app{$_}->start("SELECT outcome FROM idempotency.run('$scope', 'op', 'request $i', 'INSERT INTO orders (scope, key, node) VALUES (''$scope'', ''request $i'', ''$_'') RETURNING key')") foreach qw(a b);
		foreach my $name (qw(a b))
		{
			my $result = $app{$name}->finish;
			$codes{ ($name eq $home ? 'home' : 'elsewhere') . ' ' . ($result->code || $result->value) }++;
		}
	}
	my $half = int($requests / 2);
	$arrived->('a');
	$arrived->('b');
	my $twice = $one->ok(q{SELECT count(*) FROM (SELECT FROM orders GROUP BY scope, key HAVING count(*) > 1) AS t})->value
	  || ($codes{'elsewhere claimed'} // 0);
	my $told = join ', ', map { "$_ $codes{$_}" } sort keys %codes;

	promise(($codes{'home claimed'} // 0) == $half && ($codes{'elsewhere 42501'} // 0) == $half, "homes: of $half requests sent to both at once each is claimed at home and 42501 elsewhere", $told);
	promise($twice == 0, 'homes: nothing executed twice', $twice);
	promise(stops($one) + stops($two) == 0 && rows_of($one) eq rows_of($two), 'homes: replication goes on both ways, and both have all keys');
	count('homes: requests to both at once; executed twice', "$half; $twice");
	if (stops($one) + stops($two) == 0)
	{
		promise($app{b}->query(q{SELECT * FROM idempotency.replay('a:1', 'op', 'request 1')})->code eq '42501', 'homes: the application does not even replay what is at home elsewhere');
		promise(defined connect_to('b', 'homes', user => 'reader')->ok(q{SELECT response_body FROM idempotency.replay('a:1', 'op', 'request 1')})->value, 'homes: a role that has replay() alone, and is bound to all, does');
		my $stranger = connect_to('b', 'homes', user => 'stranger');
		promise($stranger->query(claim_sql('a:1', 'stranger', q{, lease => '1 hour'}))->code eq '42501', 'homes: require_binding refuses a role that nobody bound');

		# A role whose last home moves away is not bound any more; it is refused everything.
		my $result = $two->ok(q{SELECT idempotency.unbind_role('app', 'b:%')});
		promise($app{b}->query(claim_sql('a:1', 'unbound', q{, lease => '1 hour'}))->code eq '42501', 'homes: require_binding refuses the role whose last home moved away');
		$two->ok(q{SELECT idempotency.bind_role('app', 'b:%')});

		# Clean-up is not bound. It deletes what has expired of a copy that is behind; with
		# the filter that does not travel home.
		my $token = $app{a}->query(claim_sql('a:1', 'renewed', q{, lease => '1 microsecond', ttl => '1 microsecond'}))->row->{token};
		$arrived->('a');
		$two->ok('ALTER SUBSCRIPTION homes_ab DISABLE');
		wait_until(sub { $two->ok(q{SELECT count(*) FROM pg_stat_subscription WHERE subname = 'homes_ab' AND pid IS NOT NULL})->value == 0 });
		$result = $app{a}->query("SELECT idempotency.complete('a:1', 'op', 'renewed', 200, 'in time', ttl => '10 days', token => $token)");
		$two->ok('CALL idempotency.maintain()');
		$arrived->('b');
		promise($result->code eq '' && replay($one, 'a:1', 'renewed') eq 'in time', 'homes: clean-up elsewhere deletes nothing at home');
		$two->ok('ALTER SUBSCRIPTION homes_ab ENABLE');

		# At home it is done scope by scope, by a role that is bound to those.
		$one->ok(q{SELECT idempotency.grant_operator('keeper'), idempotency.bind_role('keeper', 'a:%')});
		$app{a}->ok(claim_sql('a:1', 'expired', q{, lease => '1 microsecond', ttl => '1 microsecond'}));
		$arrived->('a');
		my $copies = sub { $two->ok(q{SELECT count(*) FROM idempotency.idempotency_keys WHERE key = 'expired'})->value };
		my $before_cleanup = $copies->();
		my $keeper = connect_to('a', 'homes', user => 'keeper');
		promise($keeper->query(q{SELECT idempotency.cleanup(scope => 'b:1')})->code eq '42501' && $keeper->ok(q{SELECT idempotency.cleanup(scope => 'a:1')})->value == 1,
			'homes: cleanup(scope) asks the binding');
		$arrived->('a');
		promise($before_cleanup == 1 && $copies->() == 0, 'homes: what is deleted at home is deleted in the copy');

		# Who is not bound by nature: a superuser.
		my $before = stops($two);
		my (undef, $there) = request($two, 'a:1', 'by a superuser', 'b');
		my (undef, $here) = request($one, 'a:1', 'by a superuser', 'a');
		promise($there + $here == 2 && wait_until(sub { stops($two) > $before }), 'NOT promised, homes: a superuser is bound by nothing: executed twice; replication of that home stops, loudly');
	}
	$_->[0]->ok("ALTER SUBSCRIPTION $_->[1] DISABLE") foreach [ $two, 'homes_ab' ], [ $one, 'homes_ba' ];
	promote(@$_) foreach [ $two, 'homes_ab' ], [ $one, 'homes_ba' ];
}

# ---- the end --------------------------------------------------------------------------------------

finish();
