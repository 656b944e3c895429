
# What sharding/plproxy promises, on real servers. scale/plproxy/run starts them.

use strict;
use warnings;

use Connection;
use List::Util qw(max sum0 uniq);
use Promises;
use Sequence;
use Servers;
use Shards;
use Time::HiRes qw(sleep time);

my $requests = $ENV{REQUESTS};
my $clients = 8;

foreach my $server (qw(a b))
{
	psql($server, 'postgres', '-c', "CREATE ROLE $_ LOGIN") foreach qw(app support watch nobody);
}
psql('a', 'postgres', '-c', 'CREATE DATABASE direct');
psql('a', 'direct', '-c', 'CREATE EXTENSION idempotency');
make_front('front', [], @shards);
my @by_identity = ([ a => 'i0' ], [ a => 'i1' ], [ b => 'i2' ], [ b => 'i3' ]);
make_front('front_by_identity', [ '-v', 'route_by=identity' ], @by_identity);

# As the extension's schema, nobody but the superuser may do anything yet.
my %roles = (app => 'app', support => 'support', watch => 'watch');
foreach my $front (qw(front front_by_identity))
{
	psql('a', $front, '-c', "CREATE USER MAPPING FOR $_ SERVER idempotency OPTIONS (user '$roles{$_}')") foreach sort keys %roles;
}

my $direct = connect_to('a', 'direct');
my $front = connect_to('a', 'front');

sub shard_connection
{
	my ($number, @where) = @_;

	return connect_to(@{ (@where ? @where : @shards)[$number] });
}

# Of all shards, rows of the same query.
sub of_all_shards
{
	my ($sql, @where) = @_;

	return map { @{ connect_to(@$_)->ok($sql)->rows } } @where ? @where : @shards;
}

sub shard_of { return $front->execute('SELECT idempotency_front.shard_of($1, NULL, NULL)', $_[0])->value }

# ---- the same API --------------------------------------------------------------------

my $signatures = q{
	SELECT p.proname || '(' || pg_get_function_arguments(p.oid) || ') ' || coalesce(pg_get_function_result(p.oid), '') || ' ' || p.proisstrict
		|| ' ' || obj_description(p.oid, 'pg_proc')
	FROM pg_proc AS p
	WHERE p.pronamespace = 'idempotency'::regnamespace
		AND p.proname NOT IN ('call_support', 'config_changed', 'default_policy', 'stats_data', 'health', 'maintain', 'forget_scope_on_delete',
			'export_scopes', 'import_key', 'forget_exported')
	ORDER BY 1};
my @theirs = map { $_->[0] } @{ $direct->ok($signatures)->rows };

foreach my $name (qw(front front_by_identity))
{
	my %ours = map { $_->[0] => 1 } @{ connect_to('a', $name)->ok($signatures)->rows };

	promise(@theirs == keys %ours && !(grep { !$ours{$_} } @theirs), "$name: names, arguments, defaults, results and comments of " . @theirs . ' functions are the same',
		grep { !$ours{$_} } @theirs);
}
my $types = q{
	SELECT string_agg(c.relname || ' ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || coalesce(col_description(c.oid, a.attnum), ''), E'\n' ORDER BY c.relname, a.attnum)
	FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
	WHERE c.relnamespace = 'idempotency'::regnamespace AND c.relkind = 'c'};
promise($direct->ok($types)->value eq $front->ok($types)->value, 'the result types are the same');

# Whatever is made has a comment, and nothing of it is for everybody.
my $bare = q{
	SELECT p.pronamespace::regnamespace || '.' || p.proname || ': ' || concat_ws(', ', CASE WHEN d.description IS NULL THEN 'no comment' END,
		CASE WHEN p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) AS a WHERE a.grantee = 0) THEN 'for everybody' END)
	FROM pg_proc AS p LEFT JOIN pg_description AS d ON d.objoid = p.oid AND d.classoid = 'pg_proc'::regclass
	WHERE p.pronamespace::regnamespace::text ~ '^idempotency' AND p.proname !~ '^(forget_scope_on_delete|maintain)$'
		AND (d.description IS NULL OR p.proacl IS NULL OR EXISTS (SELECT FROM aclexplode(p.proacl) AS a WHERE a.grantee = 0))
	UNION ALL
	SELECT c.oid::regclass || coalesce('.' || a.attname, '') || ': no comment'
	FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND c.relkind IN ('r', 'c')
	WHERE c.relnamespace::regnamespace::text ~ '^idempotency' AND c.relkind IN ('r', 'v', 'c') AND col_description(c.oid, a.attnum) IS NULL AND obj_description(c.oid, 'pg_class') IS NULL
		AND obj_description(c.reltype, 'pg_type') IS NULL
	ORDER BY 1};
foreach my $where ([ a => 'front' ], [ a => 's0' ])
{
	my @bare = map { $_->[0] } @{ connect_to(@$where)->ok($bare)->rows };
	promise(!@bare, "$where->[1]: every object has a comment, and no function is for everybody", @bare);
}

# What cannot be set up says why.
psql('a', 'postgres', '-c', 'CREATE DATABASE wrong');
psql('a', 'wrong', '-c', 'CREATE EXTENSION plproxy');
promise(!eval { psql('a', 'wrong', '-f', "$ENV{SQL}/front.sql"); 1 } && $@ =~ /no foreign server/ && $@ =~ /HINT/, 'front.sql without a server says what to make', $@);
promise(!eval { psql('a', 'wrong', '-v', 'route_by=moon', '-f', "$ENV{SQL}/front.sql"); 1 } && $@ =~ /neither "scope" nor "identity"/, 'so it does of a way of routing that there is not', $@);

my $tested = Sequence::names();
my $functions = $direct->ok(q{
	SELECT proname FROM pg_proc WHERE pronamespace = 'idempotency'::regnamespace
	AND proname NOT IN ('call_support', 'config_changed', 'default_policy', 'stats_data', 'maintain', 'forget_scope_on_delete',
		'export_scopes', 'import_key', 'forget_exported')})->rows;
my @missing = grep { !$tested->{$_} } map { $_->[0] } @$functions;
promise(!@missing, 'the sequence of calls has every function', @missing);

my @expected = Sequence::play($direct);
foreach my $name (qw(front front_by_identity))
{
	my @given = Sequence::play(connect_to('a', $name));
	my @differ = grep { $expected[$_] ne $given[$_] } 0 .. $#expected;

	promise(!@differ, "$name: " . @expected . ' calls, directly and through it: the same results and errors, word for word',
		map { ($Sequence::steps[$_], "direct: $expected[$_]", "front:  $given[$_]") } @differ);
}
promise(3 == (uniq grep { defined } map { m{^IK001 .*/ reason: (\w+)} ? $1 : undef } @expected), 'among them IK001 with each of its three reasons');

# A client of this repository, as it is.
{
	my $client = "$ENV{SQL}/../../clients/python";
	my @lines = `PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$client" "$ENV{PYTHON}" "$ENV{SQL}/../../scale/plproxy/client.py" "@{[database_at(a => 'front')]} user=postgres" 2>&1`;

	promise(5 == (grep { /^(ok|FAILED) / } @lines), 'clients/python runs on the front', @lines);
	promise(/^ok/, s/^\w+\s+|\n//gr) foreach grep { /^(ok|FAILED) / } @lines;
}

# As somebody who is no superuser, on the front or on the shards.
{
	my $app = connect_to('a', 'front', user => 'app');

	promise($app->query(q{SELECT outcome FROM idempotency.claim('app:1', 'op', 'k', lease => '1 hour')})->code eq '42501', 'a role that was given nothing may nothing');
	$front->ok(q{SELECT idempotency.grant_usage('app'), idempotency.bind_role('app', 'app:%'), idempotency.grant_monitor('watch'), idempotency.grant_operator('support')});
	promise($app->ok(q{SELECT outcome FROM idempotency.claim('app:1', 'op', 'k', lease => '1 hour')})->value eq 'claimed', 'grant_usage() opens front and shards');
	promise($app->ok(q{SELECT response_body FROM idempotency.run('app:1', 'op', 'who', 'SELECT current_user')})->value eq 'app', 'the shard sees who calls');
	promise($app->query(q{SELECT outcome FROM idempotency.claim('other', 'op', 'k', lease => '1 hour')})->code eq '42501', 'a bound role uses its scopes only');
	promise($app->query(q{SELECT idempotency.forget('app:1', 'op', 'k', true)})->code eq '42501', 'an application is no operator: the shard says so');
	promise($app->query(q{SELECT * FROM idempotency.keys_by_scope})->code eq '42501', 'nor a monitor');
	promise($app->query(q{SELECT scope FROM idempotency_front.scopes})->code eq '42501', 'nor does it see who the other scopes are');
	promise(connect_to('a', 'front', user => 'nobody')->query(q{SELECT idempotency.once('app:1', 'op', 'k')})->code eq '42501', 'nor does somebody else');
	$front->ok(q{SELECT idempotency_front.open_to('nobody')});
	promise(connect_to('a', 'front', user => 'nobody')->query(q{SELECT idempotency.once('app:1', 'op', 'k')})->code =~ /^42/, 'nor does a role without a user mapping');
	promise($app->query(q{CALL idempotency_move.move_scope('app:1', 0)})->code eq '42501', 'nor moves it a scope');
	promise(connect_to('a', 'front', user => 'watch')->ok(q{SELECT sum(keys) FROM idempotency.keys_by_scope WHERE scope = 'app:1'})->value == 2, 'a monitor sees numbers of all shards');
	promise(connect_to('a', 'front', user => 'support')->ok(q{SELECT idempotency.forget_scope('app:1', true)})->value == 2, 'an operator decides');
	$front->ok(q{SELECT idempotency.unbind_role('app')});
	psql('a', 'front', '-1', '-f', "$ENV{SQL}/api.sql");
	promise($app->ok(q{SELECT outcome FROM idempotency.claim('app:1', 'op', 'k', lease => '1 hour')})->value eq 'claimed', 'api.sql again, as after an upgrade: nothing changes');
}

# ---- what cannot work ------------------------------------------------------------------

my %refused = (
	'a claim without a lease' => q{SELECT outcome FROM idempotency.claim('%s', 'op', 'k')},
	'the same with a policy that has one' => q{SELECT outcome FROM idempotency.claim('%s', 'with policy', 'k')},
	'complete() without a token' => q{SELECT idempotency.complete('%s', 'op', 'k', 200)},
	'fail() without a token' => q{SELECT idempotency.fail('%s', 'op', 'k')},
	'release() without a token' => q{SELECT idempotency.release('%s', 'op', 'k')},
	'extend() without a token' => q{SELECT idempotency.extend('%s', 'op', 'k')},
	'checkpoint() without a token' => q{SELECT idempotency.checkpoint('%s', 'op', 'k', 'p')},
	'hold() without a token' => q{SELECT idempotency.hold('%s', 'op', 'k')},
	'maintain()' => 'CALL idempotency.maintain()');

# Every one of them is answered while its shard is down, so nothing is sent.
sub check_refusals
{
	my ($scope, $when) = @_;

	foreach my $what (sort keys %refused)
	{
		my $result = $front->query($refused{$what} =~ s/%s/$scope/r);

		promise($result->code eq '0A000' && $result->hint ne '' && $result->detail =~ /Nothing was sent/, "refused $when: $what",
			join ' ', $result->code, $result->message, $result->hint);
	}
	return;
}

$front->ok(q{SELECT idempotency.set_policy('with policy', lease => '5 min')});
my ($on_a) = grep { shard_of($_) == 0 } map { "scope $_" } 1 .. 100;
my ($on_b) = grep { shard_of($_) == 3 } map { "scope $_" } 1 .. 100;
check_refusals($on_a, 'by the front');
{
	$front->ok(q{CREATE TABLE tenant (id text); INSERT INTO tenant VALUES ('x');
		CREATE TRIGGER forget AFTER DELETE ON tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id')});
	promise($front->query('DELETE FROM tenant')->code eq '0A000', 'refused by the front: forget_scope_on_delete() as a trigger');

	my $result = connect_to('a', 'front_by_identity')->query(q{SELECT * FROM idempotency.once_batch('s', 'op', '{1,2,3,4,5,6,7,8}')});
	promise($result->code eq '0A000' && $result->hint =~ /skip_undecided/, 'refused by the front: once_batch() over several shards, unless it skips');
}

# ---- each call commits by itself --------------------------------------------------------

$front->ok(q{BEGIN});
$front->ok(q{SELECT idempotency.once('acme', 'hook', 'rolled back')});
$front->ok(q{ROLLBACK});
promise($front->ok(q{SELECT idempotency.once('acme', 'hook', 'rolled back')})->value eq 'f', 'a rollback at the front undoes nothing: once() stays, and the event would be lost');
$direct->ok(q{BEGIN; SELECT idempotency.once('acme', 'hook', 'rolled back'); ROLLBACK});
promise($direct->ok(q{SELECT idempotency.once('acme', 'hook', 'rolled back')})->value eq 't', 'where there are no shards it does');
$front->ok(q{BEGIN; SELECT outcome FROM idempotency.claim('acme', 'op', 'rolled back', lease => '1 hour'); ROLLBACK});
promise($front->ok(q{SELECT status FROM idempotency.lookup('acme', 'op', 'rolled back')})->value eq 'in_progress', 'nor a claim with a lease');
promise($front->query(q{BEGIN READ ONLY; SELECT idempotency.once('acme', 'hook', 'read only')})->code eq '25006', 'a read-only transaction writes on no shard');
$front->ok('ROLLBACK');

# A statement that is canceled at the front is canceled on the shard.
{
	$front->ok(q{SET statement_timeout = '300 ms'});
	promise($front->query(q{SELECT outcome FROM idempotency.run('acme', 'op', 'slow', 'SELECT pg_sleep(600)')})->code eq '57014', 'what is canceled at the front');
	$front->ok('RESET statement_timeout');
	promise(wait_until(sub { !grep { $_->[0] } of_all_shards(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600%' AND state = 'active' AND pid <> pg_backend_pid()}) }),
		'ends on the shard');
	promise($front->ok(q{SELECT outcome FROM idempotency.run('acme', 'op', 'slow', 'SELECT 1')})->value eq 'claimed', 'and left nothing there');
}

# ---- a shard that is killed ----------------------------------------------------------------

# Asks until there is an answer.
sub until_answered
{
	my ($connection, $codes, @request) = @_;

	while (1)
	{
		my $result = $connection->execute(@request);

		return $result if $result->code eq '';
		$codes->{ $result->code }++;
		die 'the front itself is gone' if $result->code eq 'lost';
		# What is no trouble on the way is a finding.
		return $result if $result->code !~ /^(08|53|55P03|40|57)/;
		sleep 0.02;
	}
}

foreach my $shard (@shards)
{
	connect_to(@$shard)->ok(q{CREATE TABLE effect (scope text, key text, note text)});
}

# One client: each of its requests in one of four ways, each asked twice. It prints a
# line for each answer: way, scope, key, what it was told, the answer.
sub load
{
	my ($out, $client) = @_;
	my $connection = connect_to('a', 'front', user => 'postgres');
	my %codes;

	for (my $i = $client; $i < $requests; $i += $clients)
	{
		my $way = (qw(run order lease once))[ int($i / $clients) % 4 ];
		my ($scope, $key) = ('tenant ' . $i % 37, "request $i");

		foreach my $time (1, 2)
		{
			my $result;

			if ($way eq 'run')
			{
				$result = until_answered($connection, \%codes, q{SELECT outcome, response_body FROM idempotency.run($1, 'effect', $2,
					'INSERT INTO effect VALUES ($1->>''s'', $1->>''k'') RETURNING md5(ctid::text || clock_timestamp())',
					args => jsonb_build_object('s', $1::text, 'k', $2::text), wait => '5 s')}, $scope, $key);
			}
			elsif ($way eq 'order')
			{
				$result = until_answered($connection, \%codes, 'SELECT outcome, response_body FROM shop.post_order($1, $2, 7)', $scope, $key);
			}
			elsif ($way eq 'lease')
			{
				$result = until_answered($connection, \%codes, q{SELECT outcome, coalesce(token::text, response_body) FROM idempotency.claim($1, 'lease', $2,
					lease => '1 hour', claim_id => md5($2::text || $3::text)::uuid)}, $scope, $key, $time);
				if ($result->code eq '' && $result->rows->[0][0] eq 'claimed')
				{
					my $token = $result->rows->[0][1];

					# The work outside would be here.
					my $end = until_answered($connection, \%codes, q{SELECT idempotency.complete($1, 'lease', $2, 200, $3::text, token => $3::text::bigint)}, $scope, $key, $token);
					print $out "failed\t$scope\t$key\t" . $end->code . "\t\n" if $end->code ne '';
				}
			}
			else
			{
				$result = until_answered($connection, \%codes, q{SELECT CASE WHEN idempotency.once($1, 'once', $2) THEN 'claimed' ELSE 'replay' END, ''}, $scope, $key);
			}
			print $out join("\t", $way, $scope, $key, $result->code ne '' ? $result->code : @{ $result->rows->[0] }), "\n";
		}
	}
	print $out "code\t$_\t$codes{$_}\n" foreach sort keys %codes;
	return;
}

my @children = map { my $client = $_; in_child(sub { load($_[0], $client) }) } 0 .. $clients - 1;
my $kills = 0;
my $watch = connect_to('a', 's0');

# In the middle of it: after a third of the requests and after two thirds.
foreach my $share (1 / 4, 1 / 2)
{
	wait_until(sub { $watch->ok('SELECT count(*) FROM idempotency.idempotency_keys')->value >= $share * $requests / @shards }) or die 'no progress';
	kill_server('b');
	$kills++;
	check_refusals($on_b, 'while its shard is down') if $kills == 1;
	{
		my $result = $front->query(qq{SELECT outcome FROM idempotency.claim('$on_b', 'op', 'k', lease => '1 hour')});
		promise($result->code =~ /^08/ && $result->hint =~ /same key/, "kill $kills: a call to the shard that is down", $result->code . ' ' . $result->message);
		promise($front->ok(qq{SELECT outcome FROM idempotency.run('$on_a', 'op', 'while $kills', 'SELECT 1')})->value eq 'claimed', "kill $kills: the other shards serve");
		promise($front->ok(q{SELECT count(*) FROM idempotency.health() WHERE check_name = 'shard' AND status = 'critical' AND shard IN (2, 3)})->value == 2, "kill $kills: health() names the shards");
		promise($front->query(q{SELECT idempotency.set_policy('half', ttl => '1 hour')})->code eq '08001', "kill $kills: set_policy() fails, having reached some shards") if $kills == 1;
	}
	if ($kills == 1)
	{
		my $identity = connect_to('a', 'front_by_identity');
		my $batch = q{SELECT key, first FROM idempotency.once_batch('s', 'batch', ARRAY(SELECT 'k' || n FROM generate_series(1, 40) AS n), skip_undecided => true)};
		my @first = @{ $identity->ok($batch)->rows };

		promise(join(' ', map { $_->[0] } @first) eq join(' ', map { "k$_" } 1 .. 40), 'once_batch() by identity keeps the order');
		promise(!!(grep { !defined $_->[1] } @first) && !!(grep { ($_->[1] // '') eq 't' } @first), 'and says NULL of the keys of a shard that is down, true of the others');
		start_server('b');
		my @second = @{ $identity->ok($batch)->rows };
		promise(40 == (grep { (defined $first[$_][1] ? 'f' : 't') eq $second[$_][1] } 0 .. 39), 'asked again, exactly those are true');
	}
	else { start_server('b') }
}
promise($front->ok(q{SELECT idempotency.set_policy('half', ttl => '1 hour')})->value eq 't', 'set_policy() called again reaches them all');
promise($front->ok(q{SELECT count(*) FROM idempotency.effective_policies WHERE operation = 'half'})->value == 1, 'and they agree again');

my (%asked, %answers, %codes, @unexpected);
foreach my $line (map { child_end($_) } @children)
{
	my ($way, $scope, $key, $outcome, $answer) = split /\t/, $line, -1;

	if ($way eq 'code') { $codes{$scope} += $key; next; }
	$asked{$way}{$key}++;
	push @{ $answers{"$way $key"} }, [ $outcome, $answer ];
	push @unexpected, $line if $outcome !~ /^(claimed|replay)$/;
}
my $asked = sum0(map { sum0(values %$_) } values %asked);
promise($asked == 2 * $requests && !@unexpected, "killed under load: $requests requests, each asked twice, all answered", "$asked answers", @unexpected);

my (%effects, %orders);
$effects{$_->[0]} = $_->[1] foreach of_all_shards('SELECT key, count(*) FROM effect GROUP BY 1');
$orders{$_->[0]} = $_->[1] foreach of_all_shards('SELECT key, count(*) FROM shop.orders GROUP BY 1');
my @twice = ((grep { $effects{$_} > 1 } keys %effects), (grep { $orders{$_} > 1 } keys %orders),
	# A second claim that is another one's, or a second "first time".
	(map { my $key = $_; 1 < (uniq map { $_->[1] } grep { $_->[0] eq 'claimed' } @{ $answers{"lease $key"} }) ? $key : () } keys %{ $asked{lease} }),
	(map { my $key = $_; 1 < (grep { $_->[0] eq 'claimed' } @{ $answers{"once $key"} }) ? $key : () } keys %{ $asked{once} }));
my @lost = ((grep { !$effects{$_} } keys %{ $asked{run} }), (grep { !$orders{$_} } keys %{ $asked{order} }));
my @torn = map { my $key = $_; my @body = uniq map { $_->[1] // '' } @{ $answers{$key} }; $key !~ /^(run|order|lease) / || @body == 1 ? () : "$key: @body" } sort keys %answers;
my %known = map { $_->[0] => 1 } of_all_shards(q{SELECT key FROM idempotency.idempotency_keys WHERE status = 'completed' AND key LIKE 'request %'});
my @forgotten = grep { !$known{$_} } map { keys %$_ } values %asked;
promise(!@twice, 'killed under load: nothing executed twice', @twice);
promise(!@lost, 'killed under load: no work that was acknowledged is lost', @lost);
promise(!@forgotten, 'killed under load: no key is lost', @forgotten);
promise(!@torn, 'killed under load: the second answer is the first one\'s', @torn);
my @never = map { my $key = $_; (grep { $_->[0] eq 'claimed' } @{ $answers{"once $key"} }) ? () : $key } keys %{ $asked{once} };
count('killed under load: requests, each asked twice', $requests);
count('  connections; kills', "$clients; $kills");
count('  answers', $asked);
count('  errors that were answered by asking again', sum0(values %codes) . ' (' . join(', ', map { "$_ $codes{$_}" } sort keys %codes) . ')');
count('  executed twice', scalar @twice);
count('  lost', scalar @lost + @forgotten);
count('  once() whose first answer was lost, so nobody was told true', scalar @never);

# ---- a shard that is added ---------------------------------------------------------------

psql('b', 'postgres', '-c', 'CREATE DATABASE s4');
push @shards, [ b => 's4' ];
psql('b', 's4', '-c', 'CREATE EXTENSION idempotency', '-f', "$ENV{SQL}/shard.sql", '-f', "$ENV{SQL}/example/shard.sql");
my %place_before = map { $_ => shard_of("tenant $_") } 0 .. 36;
$front->ok(q{ALTER SERVER idempotency OPTIONS (ADD p4 '} . database_at(b => 's4') . q{')});
promise(!(grep { $place_before{$_} != shard_of("tenant $_") } 0 .. 36), 'a shard that is added changes no scope\'s place');
promise($front->ok('SELECT idempotency_move.copy_policies(0, 4)')->value == $front->ok('SELECT count(*) FROM idempotency_front.policies(0)')->value, 'it gets the policies of the others');

# ---- moving, at rest ----------------------------------------------------------------------

{
	my $there = connect_to(@{ $shards[0] });

	promise($there->query(q{SELECT idempotency_shard.move_along('effect', 'scope')})->code eq '55000', 'a table without a primary key does not move along');
	promise($there->query(q{SELECT idempotency_shard.move_along('shop.orders', 'item')})->code eq '42703', 'nor by a column that is not text');
}

# Every kind of key and of value.
my @states = (
	q{SELECT token FROM idempotency.claim('mover', 'op', 'leased', request => '{"a": 1}', lease => '1 hour', claim_id => '22222222-2222-4222-8222-222222222222', note => E'tab\\tand "quote", comma', state => '{"x": "(a,b)"}')},
	q{SELECT token FROM idempotency.claim('mover', 'op', 'lapsed', lease => '1 microsecond')},
	q{SELECT token FROM idempotency.claim('mover', 'op', 'held', lease => '1 hour')},
	q{SELECT token FROM idempotency.claim('mover', 'op', 'failed', lease => '1 hour')},
	q{SELECT idempotency.once('mover', 'op', 'once')},
	q{SELECT idempotency.import_completed('mover', 'op', 'bytes', 200, response_bytes => '\x00ff5c22', response_headers => '[["a", "b"]]')},
	q{SELECT idempotency.import_completed('mover', 'op', 'text', 200, E'a\\\\b"c\\n\\'', expires_at => '2027-10-31 02:30:00.000001+02')},
	q{SELECT outcome FROM shop.post_order('mover', 'order', 5)});
my %token;
foreach my $sql (@states)
{
	my ($key) = $sql =~ /'op', '(\w+)'/;

	$token{ $key // '' } = $front->ok($sql)->value;
}
$front->ok(qq{SELECT idempotency.hold('mover', 'op', 'held', token => $token{held})});
$front->ok(qq{SELECT idempotency.fail('mover', 'op', 'failed', 'no', token => $token{failed})});

# A call of $steps is interrupted there: the shard it needs is one that does not answer.
sub rows_of
{
	my ($scope, $shard) = @_;
	my $connection = shard_connection($shard);

	return join "\n", map { $_->[0] } map { @{ $connection->execute($_, $scope)->rows } } 'SELECT k::text FROM idempotency.idempotency_keys AS k WHERE scope = $1 ORDER BY 1',
	  'SELECT o::text FROM shop.orders AS o WHERE scope = $1 ORDER BY 1';
}

my $old = shard_of('mover');
my $before = rows_of('mover', $old);
my $mover = connect_to('a', 'front');
# Someone with an older snapshot, which has the old place.
my $stale = connect_to('a', 'front');
$stale->ok('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT idempotency_front.shard_of(\'mover\', NULL, NULL)');
my $stale_there = shard_connection($old);
$stale_there->ok('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM idempotency.idempotency_keys');
promise($mover->query(q{CALL idempotency_move.move_scope('mover', 4, batch_size => 3)})->code eq '', 'a scope is moved');
promise(shard_of('mover') == 4, 'the front knows where it is');
promise(rows_of('mover', 4) eq $before, 'every column of every key and row is as it was: tokens, leases, holds, bytes', $before, rows_of('mover', 4));
promise(rows_of('mover', $old) eq '', 'nothing is left on the old shard');
promise($front->ok(q{SELECT outcome FROM shop.post_order('mover', 'order', 5)})->value eq 'replay', 'what was done is known on the new shard');
promise($front->ok(qq{SELECT idempotency.complete('mover', 'op', 'leased', 200, token => $token{leased}) > now()})->value eq 't', 'an owner of before completes on the new shard');
promise($front->ok(q{SELECT token FROM idempotency.claim('mover', 'op', 'lapsed', lease => '1 hour')})->value > $token{lapsed}, 'who takes over there gets a larger token');
promise($front->query(qq{SELECT idempotency.complete('mover', 'op', 'lapsed', 200, token => $token{lapsed})})->reason eq 'taken_over', 'and the late owner is refused');

# Whoever still writes on the old shard.
{
	my $there = shard_connection($old);
	my %late = (
		claim => q{SELECT outcome FROM idempotency.claim('mover', 'op', 'new', lease => '1 hour')},
		'claim of an old key' => q{SELECT outcome FROM idempotency.claim('mover', 'op', 'text', lease => '1 hour')},
		once => q{SELECT idempotency.once('mover', 'op', 'once')},
		once_batch => q{SELECT * FROM idempotency.once_batch('mover', 'op', '{once,new}')},
		run => q{SELECT outcome FROM idempotency.run('mover', 'op', 'text', 'SELECT 1')},
		'the procedure' => q{SELECT outcome FROM shop.post_order('mover', 'order', 5)},
		import_completed => q{SELECT idempotency.import_completed('mover', 'op', 'new', 200)},
		record_failure => q{SELECT idempotency.record_failure('mover', 'op', 'new', 'no')},
		'a row without a key' => q{INSERT INTO shop.orders (scope, key, item) VALUES ('mover', 'x', 1)});

	foreach my $name (sort keys %late)
	{
		my $result = $there->query($late{$name});
		promise($result->code eq '55P03', "on the old shard, refused: $name", $result->code . ' ' . $result->message);
	}
	foreach my $name (sort keys %late)
	{
		my $result = $stale_there->query("SAVEPOINT s; $late{$name}");
		promise($result->code =~ /^(55P03|40001)$/, "on the old shard, refused in a transaction that is older than the move: $name", $result->code . ' ' . $result->message);
		$stale_there->ok('ROLLBACK TO s');
	}
	my $result = $there->query(qq{SELECT idempotency.complete('mover', 'op', 'leased', 200, token => $token{leased})});
	promise($result->code =~ /^(IK001|55P03)$/, 'on the old shard, refused: a late owner', $result->code . ' ' . $result->reason);
	promise($there->ok(q{SELECT outcome FROM idempotency.claim('stays', 'op', 'k', lease => '1 hour')})->value eq 'claimed', 'other scopes of that shard are not concerned');
	$result = $stale->query(q{SELECT outcome FROM idempotency.run('mover', 'op', 'text', 'SELECT 1')});
	promise($result->code =~ /^(55P03|40001)$/, 'through a front that does not know yet, refused', $result->code . ' ' . $result->message);
	promise(rows_of('mover', $old) eq '', 'and nothing came of any of it');
	$_->ok('ROLLBACK') foreach $stale, $stale_there;
}
$front->ok('CALL idempotency_move.move_scope(\'mover\', ' . $old . ')');
promise(shard_of('mover') == $old && rows_of('mover', 4) eq '', 'a scope is moved back');
promise($front->ok(q{SELECT idempotency.once('mover', 'op', 'back')})->value eq 't', 'and serves there again');

# ---- moving, interrupted ---------------------------------------------------------------------

{
	my $kept = rows_of('mover', $old);

	kill_server('b');
	promise($front->query(q{CALL idempotency_move.move_scope('mover', 4)})->code ne '', 'a move to a shard that is down fails');
	promise($front->query(q{SELECT outcome FROM shop.post_order('mover', 'order', 5)})->code eq '55P03', 'and every call of the scope is told to come again');
	promise($front->ok(q{SELECT status FROM idempotency.health() WHERE check_name = 'moves'})->value eq 'warn', 'health() knows of it');
	start_server('b');
	promise($front->query(q{CALL idempotency_move.move_scope('mover', 1)})->code eq '55000', 'another destination is refused meanwhile') if $old != 1;
	# Whoever is at the old shard meanwhile.
	my $there = shard_connection($old);
	$there->ok(q{SELECT idempotency_shard.fence('mover', false)});
	foreach my $what ("forget('mover', 'op', 'text')", "redact('mover', 'op', 'text')", "forget_scope('mover', true)", "redact_scope('mover')",
		"resolve('mover', 'op', 'held', 'retry')", "complete('mover', 'op', 'held', 200, token => $token{held})")
	{
		promise($there->query("SELECT idempotency.$what")->code eq '55P03', 'on its way, refused on the old shard: ' . $what =~ s/\(.*//r . '()');
	}
	$there->ok(q{SELECT idempotency.record_failure('cleaned', 'op', 'k'), idempotency_shard.fence('cleaned', false)});
	$there->ok(q{SET session_replication_role = replica; UPDATE idempotency.idempotency_keys SET expires_at = now() - interval '1 hour' WHERE scope = 'cleaned'; RESET session_replication_role});
	promise($there->ok(q{SELECT idempotency.cleanup(scope => 'cleaned')})->value == 1, 'clean-up deletes what has expired, fenced or not');

	# The rest of an earlier try: half of it was copied.
	my $ticket = $front->ok(q{SELECT idempotency_move.fence(4, 'mover', true)})->value;
	$front->ok(qq{SELECT idempotency_move.import(4, 'mover', $ticket, 'idempotency.idempotency_keys', ARRAY(SELECT line FROM idempotency_move.export($old, 'mover', 'idempotency.idempotency_keys', '(0,0)', 2)))});
	promise($front->query(q{CALL idempotency_move.move_scope('mover', 4)})->code eq '' && rows_of('mover', 4) eq $kept, 'called again, it starts over and comes to its end');

	# What that try has sent, and what arrives only now.
	$front->ok(q{SELECT idempotency_move.fence(4, 'mover', false)});
	promise($front->query("SELECT idempotency_move.$_")->code eq '55000', 'a statement of an earlier try that comes late is refused: ' . s/\(.*//r . '()')
	  foreach "empty(4, 'mover', $ticket)", "import(4, 'mover', $ticket, 'idempotency.idempotency_keys', '{}')";
	promise($front->ok("SELECT idempotency_move.lift(4, 'mover', $ticket)")->value eq 'f', 'and lifts no fence');
	promise(rows_of('mover', 4) eq $kept, 'and changes nothing');

	# After the switch, before the new shard was opened.
	$front->ok(qq{UPDATE idempotency_front.scopes SET leftover = $old WHERE scope = 'mover'});
	$front->ok(q{SELECT idempotency_move.fence(4, 'mover', false)});
	promise($front->query(q{SELECT outcome FROM shop.post_order('mover', 'order 2', 5)})->code eq '55P03', 'interrupted after the switch: told to come again');
	promise($front->query(q{CALL idempotency_move.move_scope('mover', 4)})->code eq '' && $front->ok(q{SELECT outcome FROM shop.post_order('mover', 'order 2', 5)})->value eq 'claimed',
		'called again, it comes to its end');
	$kept = rows_of('mover', 4);

	# The front has lost its last changes: it believes that the scope is on its way to
	# where it is in use.
	$front->ok(qq{UPDATE idempotency_front.scopes SET shard = $old, moving_to = 4 WHERE scope = 'mover'});
	promise($front->query(q{CALL idempotency_move.move_scope('mover', 4)})->code eq '55000' && rows_of('mover', 4) eq $kept, 'a front that has lost its last changes deletes nothing that is in use');
	promise($front->query(q{CALL idempotency_move.abandon_move('mover')})->code eq '55000' && rows_of('mover', 4) eq $kept, 'nor does it open the old shard');
	$front->ok(q{DELETE FROM idempotency_front.scopes WHERE scope = 'mover'});
	promise($front->query(q{SELECT outcome FROM shop.post_order('mover', 'order', 5)})->code eq '55P03', 'with its routes lost the scope is refused by its old shard, not executed again');
	$front->ok(q{INSERT INTO idempotency_front.scopes (scope, shard) VALUES ('mover', 4)});

	# Given up.
	$front->ok(q{UPDATE idempotency_front.scopes SET moving_to = 0 WHERE scope = 'mover'});
	$front->ok(q{SELECT idempotency_move.fence(4, 'mover', false)});
	promise($front->query(q{CALL idempotency_move.abandon_move('mover')})->code eq '' && $front->ok(q{SELECT outcome FROM shop.post_order('mover', 'order', 5)})->value eq 'replay', 'a move is given up');
	promise($front->query(q{CALL idempotency_move.move_scope('mover', 99)})->code eq '22023', 'a shard that is not there is refused');
	promise(connect_to('a', 'front_by_identity')->query(q{CALL idempotency_move.move_scope('mover', 0)})->code eq '0A000', 'where keys are routed by identity no scope can be moved');
}

# ---- moving, while somebody is at work on the old shard -----------------------------------------

foreach my $shard (@shards)
{
	connect_to(@$shard)->ok(q{
		CREATE FUNCTION shop.post_slow_order(scope text, key text, pause float8) RETURNS text LANGUAGE plpgsql AS $$
		#variable_conflict use_variable
		DECLARE
			outcome text;
		BEGIN
			SELECT c.outcome INTO outcome FROM idempotency.claim(scope, 'slow', key) AS c;
			IF outcome = 'claimed' THEN
				INSERT INTO shop.orders (scope, key, item) VALUES (scope, key, 1);
				PERFORM pg_sleep(pause);
				PERFORM idempotency.complete(scope, 'slow', key, 201);
			END IF;
			RETURN outcome;
		END $$});
}
$front->ok(q{CREATE FUNCTION shop.post_slow_order(scope text, key text, pause float8) RETURNS text LANGUAGE plproxy AS $$
	CLUSTER 'idempotency'; RUN ON idempotency_front.shard_of(scope, 'slow', key); $$});

# So that the trigger is on the tables already, and it is the lock that has to wait.
$front->ok(q{CALL idempotency_move.move_scope('other scope', 4)});
foreach my $case ('the caller waits', 'its front has died')
{
	my $scope = "slow $case";
	my $from = shard_of($scope);
	my $to = 4;
	my $slow = connect_to('a', 'front');

	connect_to(@{ $shards[$from] })->ok(q{SELECT idempotency_shard.fence('keeps the trigger', false)});
	$slow->start(qq{SELECT shop.post_slow_order('$scope', 'k', 1.5)});
	my $there = shard_connection($from);
	wait_until(sub { $there->ok(q{SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'})->value == 1 }) or die 'the slow call has not begun';
	if ($case ne 'the caller waits')
	{
		$front->ok('SELECT pg_terminate_backend(' . $slow->pid . ')');
		$slow->finish;
	}
	my @tries;
	wait_until(sub { push @tries, $mover->query(qq{CALL idempotency_move.move_scope('$scope', $to)})->code; $tries[-1] eq '' });
	$slow->finish if $slow->busy;
	my $again;
	wait_until(sub { $again = $front->query(qq{SELECT shop.post_slow_order('$scope', 'k', 0)}); $again->code eq '' });
	my @rows = of_all_shards(qq{SELECT current_database() FROM shop.orders WHERE scope = '$scope'});
	my @keys = of_all_shards(qq{SELECT current_database() FROM idempotency.idempotency_keys WHERE scope = '$scope'});
	promise(@rows == 1 && @keys == 1 && $rows[0][0] eq 's4' && $keys[0][0] eq 's4' && $again->value eq 'replay', "moved while a call is at work, $case: done once, and moved with its row",
		'rows: ' . join(' ', map { @$_ } @rows), 'keys: ' . join(' ', map { @$_ } @keys), 'again: ' . $again->value, "tries: @tries");
}

# ---- moving, under load ---------------------------------------------------------------------------

my $stop = "$work/scratch/stop";

# Orders, runs, and claims with leases whose work is a row of its own, until told to
# stop; each asked twice, the second time a little later.
sub moving_load
{
	my ($out, $client) = @_;
	my $connection = connect_to('a', 'front');
	my %codes;
	my @again;

	for (my $i = 0; !-e $stop || @again;)
	{
		my $job = -e $stop || @again > 20 ? shift @again : [ 'moved ' . $i % 4, "c$client-$i", (qw(order run lease))[ $i++ % 3 ], 0 ];
		my ($scope, $key, $way, $time) = @$job;
		my $result;

		if ($way eq 'order') { $result = until_answered($connection, \%codes, 'SELECT outcome, response_body FROM shop.post_order($1, $2, 7)', $scope, $key) }
		elsif ($way eq 'run')
		{
			$result = until_answered($connection, \%codes, q{SELECT outcome, response_body FROM idempotency.run($1, 'effect', $2,
				'INSERT INTO shop.orders (scope, key, item) VALUES ($1->>''s'', $1->>''k'', 1) RETURNING id', args => jsonb_build_object('s', $1::text, 'k', $2::text), wait => '5 s')}, $scope, $key);
		}
		else
		{
			$result = until_answered($connection, \%codes, q{SELECT outcome, coalesce(token::text, response_body) FROM idempotency.claim($1, 'lease', $2,
				lease => '1 hour', claim_id => md5($2::text || $3::text)::uuid)}, $scope, $key, $time);
			if ($result->code eq '' && $result->rows->[0][0] eq 'claimed')
			{
				my $end = until_answered($connection, \%codes, q{SELECT idempotency.complete($1, 'lease', $2, 200, $3::text, token => $3::text::bigint)}, $scope, $key, $result->rows->[0][1]);
				print $out join("\t", 'failed', $scope, $key, $end->code, ''), "\n" if $end->code ne '';
			}
		}
		print $out join("\t", $way, $scope, $key, $result->code ne '' ? $result->code : @{ $result->rows->[0] }), "\n";
		push @again, [ $scope, $key, $way, 1 ] if !$time;
	}
	print $out "code\t$_\t$codes{$_}\n" foreach sort keys %codes;
	return;
}

@children = map { my $client = $_; in_child(sub { moving_load($_[0], $client) }) } 0 .. $clients - 1;
my ($moves, $tries, $interrupted) = (0, 0, 0);
my %want;
for my $round (1 .. 4)
{
	foreach my $number (0 .. 3)
	{
		my $scope = "moved $number";
		# Not before there is something to move.
		my $target = ($want{$scope} // shard_of($scope)) == 4 ? $round % 4 : 4;
		my $there = shard_connection($want{$scope} // shard_of($scope));
		my $count = sub { $there->execute('SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = $1', $scope)->value };
		my $now = $count->();

		wait_until(sub { $count->() > $now + 10 }) or die "no progress on $scope";
		# Every other one is interrupted first, somewhere.
		if ($moves % 2)
		{
			my $victim = connect_to('a', 'front');

			$victim->start("CALL idempotency_move.move_scope('$scope', $target, batch_size => 5)");
			sleep rand 0.1;
			$front->ok('SELECT pg_terminate_backend(' . $victim->pid . ')');
			$interrupted++ if $victim->finish->code ne '';
		}
		wait_until(sub {
			my $code = $mover->query("CALL idempotency_move.move_scope('$scope', $target)")->code;
			$tries++;
			promise(0, "move of $scope", $code) if $code !~ /^(|55P03)$/;
			$code eq '';
		}) or die "$scope was never moved";
		$want{$scope} = $target;
		$moves++;
	}
}
open my $file, '>', $stop or die;
close $file;
my (%done, %bodies, %ways, %moved_codes, @odd);
foreach my $line (map { child_end($_) } @children)
{
	my ($way, $scope, $key, $outcome, $answer) = split /\t/, $line, -1;

	if ($way eq 'code') { $moved_codes{$scope} += $key; next; }
	push @odd, $line if $outcome !~ /^(claimed|replay)$/ || $way eq 'failed';
	push @{ $bodies{$key} }, $answer;
	$done{$key} = $scope;
	$ways{$key} = $way;
}
my (%rows, %keys, %place);
foreach my $shard (0 .. $#shards)
{
	my $connection = shard_connection($shard);

	foreach my $row (@{ $connection->ok(q{SELECT key, scope FROM shop.orders WHERE scope LIKE 'moved %'})->rows }) { $rows{ $row->[0] }++; $place{ $row->[1] }{$shard} = 1; }
	foreach my $row (@{ $connection->ok(q{SELECT key, scope FROM idempotency.idempotency_keys WHERE scope LIKE 'moved %' AND status = 'completed'})->rows }) { $keys{ $row->[0] }++; $place{ $row->[1] }{$shard} = 1; }
}
my @more = ((grep { $rows{$_} > 1 } keys %rows), (grep { $keys{$_} > 1 } keys %keys), map { "$_: @{ $bodies{$_} }" } grep { 1 < uniq @{ $bodies{$_} } } keys %bodies);
my @less = ((grep { !$keys{$_} } keys %done), grep { $ways{$_} ne 'lease' && !$rows{$_} } keys %done);
my @astray = grep { my $scope = $_; join(' ', keys %{ $place{$scope} }) ne shard_of($scope) } keys %place;
promise(!@odd, 'moved under load: every request is answered', @odd);
promise(!@more, 'moved under load: nothing executed twice, and every repeat has the first answer', @more);
promise(!@less, 'moved under load: no key and no row is lost', @less);
promise(!@astray && 4 == keys %place, 'moved under load: every scope is on one shard, the one that the front knows', @astray);
count('moved under load: moves; of these interrupted by killing the mover', "$moves; $interrupted");
count('  further calls of move_scope() that failed', $tries - $moves);
count('  requests, each asked twice', scalar keys %done);
count('  errors that were answered by asking again', sum0(values %moved_codes) . ' (' . join(', ', map { "$_ $moved_codes{$_}" } sort keys %moved_codes) . ')');
count('  executed twice', scalar @more);
count('  lost', scalar @less);

# ---- fences come down --------------------------------------------------------------------------

foreach my $shard (@shards)
{
	my $connection = connect_to(@$shard);

	$connection->ok(q{SELECT idempotency_shard.lift_old('0')});
	$connection->ok(q{SELECT idempotency_shard.lift('keeps the trigger', idempotency_shard.renew('keeps the trigger'))});
	promise($connection->ok(q{SELECT count(*) FROM pg_trigger WHERE tgname = 'refuse_fenced'})->value == 0, "$shard->[1]: with the last fence the triggers go",
		map { @$_ } @{ $connection->ok('SELECT scope, coming FROM idempotency_shard.fences')->rows });
}
promise($front->ok(q{SELECT count(*) FROM idempotency.health() WHERE status = 'critical'})->value == 0, 'health() finds nothing critical');

finish();
