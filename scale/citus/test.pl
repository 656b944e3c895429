
# Homes of scopes on real Citus. scale/citus/run starts the nodes. No promise depends on
# how fast anything is.

use strict;
use warnings;

use Connection;
use POSIX ();
use Promises;
use Time::HiRes qw(sleep time);

my $port = $ENV{NODE_PORT};
my @addresses = map { "127.0.0.$_" } 1 .. 3;

# The coordinator, or one of the workers.
sub connect_to
{
	return Connection->connect(undef, host => $addresses[ $_[0] ], port => $port, user => 'postgres');
}

# ---- a cluster ---------------------------------------------------------------------

connect_to($_)->ok('CREATE EXTENSION citus; CREATE EXTENSION idempotency') foreach 0 .. 2;
my $coordinator = connect_to(0);
$coordinator->ok("SELECT citus_set_coordinator_host('$addresses[0]', $port)");
$coordinator->ok("SELECT citus_add_node('$addresses[$_]', $port)") foreach 1, 2;
$coordinator->ok(q{SET citus.shard_count = 8; CREATE TABLE tenants (id text PRIMARY KEY)});
$coordinator->ok(q{SET citus.shard_count = 8; SELECT create_distributed_table('tenants', 'id')});
$coordinator->ok(q{CREATE TABLE orders (tenant text NOT NULL, key text NOT NULL, done_at timestamptz NOT NULL DEFAULT clock_timestamp())});
$coordinator->ok(q{SELECT create_distributed_table('orders', 'tenant', colocate_with => 'tenants')});
$coordinator->ok(q{ALTER TABLE orders REPLICA IDENTITY FULL});
# The whole request, and the two halves of one whose work is done outside.
$coordinator->ok(q{
	CREATE FUNCTION post_order(tenant text, key text) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE
		answer idempotency.claim_result;
	BEGIN
		SELECT * INTO answer FROM idempotency.claim(tenant, 'order', key, wait => '20 s');
		IF answer.outcome = 'claimed' THEN
			INSERT INTO orders VALUES (tenant, key);
			PERFORM idempotency.complete(tenant, 'order', key, 201, 'body ' || key);
		END IF;
		RETURN answer.outcome || ' ' || coalesce(answer.response_body, '');
	END $$});
$coordinator->ok(q{
	CREATE FUNCTION begin_order(tenant text, key text, attempt uuid) RETURNS text LANGUAGE sql AS $$
		SELECT outcome || ' ' || coalesce(token::text, response_body, '')
		FROM idempotency.claim(tenant, 'order', key, lease => '1 h', claim_id => attempt, wait => '20 s') $$});
$coordinator->ok(q{
	CREATE FUNCTION end_order(tenant text, key text, token bigint) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO orders VALUES (tenant, key);
		PERFORM idempotency.complete(tenant, 'order', key, 201, 'body ' || key, token => token, refuse_repeat => true);
		RETURN 'done';
	END $$});
$coordinator->ok("SELECT create_distributed_function('$_', 'tenant', colocate_with => 'tenants', force_delegation => true)")
  foreach 'post_order(text, text)', 'begin_order(text, text, uuid)', 'end_order(text, text, bigint)';
foreach my $number (0 .. 2)
{
	my $node = connect_to($number);

	$node->ok("ALTER SYSTEM SET idempotency.home_table = 'public.tenants'");
	$node->ok('SELECT pg_reload_conf()');
}
# What a connection made from now on has read.
sleep 0.1 until !grep { connect_to($_)->ok('SHOW idempotency.home_table')->value ne 'public.tenants' } 0 .. 2;
$coordinator = connect_to(0);

# ---- the guard ---------------------------------------------------------------------

sub group_of { return $coordinator->execute(q{SELECT groupid FROM pg_dist_placement WHERE shardid = get_shard_id_for_distribution_column('tenants', $1::text)}, $_[0])->value; }

my $agree = 0;
my @workers = map { connect_to($_) } 1, 2;
foreach my $number (1 .. 300)
{
	my $home = group_of("tenant $number");

	$agree += $workers[ $_ - 1 ]->execute(q{SELECT idempotency.once($1, 'guard', 'k')}, "tenant $number")->code eq ($_ == $home ? '' : '55000') foreach 1, 2;
}
promise($agree == 600, 'a scope is at home where Citus says that its shard is, and refused elsewhere: 300 scopes on 2 nodes', "$agree of 600");

foreach my $type ('int', 'bigint', 'uuid', 'varchar(40)', 'numeric', 'date', 'timestamptz')
{
	my $value = { uuid => 'md5(i::text)::uuid', date => "date '2020-01-01' + i", timestamptz => "timestamptz '2020-01-01' + i * interval '1 h'" }->{$type} // 'i';

	$coordinator->ok('CREATE TABLE other_ids (id ' . $type . ')');
	$coordinator->ok(q{SELECT create_distributed_table('other_ids', 'id', shard_count => 13, colocate_with => 'none')});
	my $rows = $coordinator->ok(qq{SELECT v::text, (SELECT groupid FROM pg_dist_placement WHERE shardid = get_shard_id_for_distribution_column('other_ids', v))
		FROM (SELECT ($value)::$type AS v FROM generate_series(1, 100) AS i) AS x})->rows;
	$agree = 0;
	foreach my $group (1, 2)
	{
		my $node = $workers[ $group - 1 ];

		$node->ok(q{SET idempotency.home_table = 'public.other_ids'});
		$agree += $node->execute(q{SELECT idempotency.once($1, 'guard', 'k')}, $_->[0])->code eq ($_->[1] == $group ? '' : '55000') foreach @$rows;
		$node->ok('RESET idempotency.home_table');
	}
	promise($agree == 200, "a column of type $type: the same of 100 scopes", "$agree of 200");
	$coordinator->ok('DROP TABLE other_ids');
}
foreach my $node (@workers)
{
	$node->ok(q{SET idempotency.home_table = ''});
	$node->ok('SELECT idempotency.forget_scope(scope) FROM (SELECT DISTINCT scope FROM idempotency.idempotency_keys) AS s');
	$node->ok('RESET idempotency.home_table');
}

my $delegated = $coordinator->execute('SELECT post_order($1, $2)', 'tenant 1', 'first');
promise($delegated->code eq '' && $delegated->value =~ /^claimed/, 'a call with parameters is delegated, claimed and completed', $delegated->message);
promise(($coordinator->execute('SELECT post_order($1, $2)', 'tenant 1', 'first')->value // '') eq 'replay body first', 'and its repeat is answered');
my %undelegated = (
	'a subselect' => q{SELECT * FROM (SELECT post_order('tenant 1', 'first') OFFSET 0) AS s},
	'a CTE' => q{WITH c AS MATERIALIZED (SELECT post_order('tenant 1', 'first')) SELECT * FROM c},
	'a volatile argument' => q{SELECT post_order('tenant ' || (1 + random() * 0)::int, 'first')},
	'two calls in one statement' => q{SELECT post_order('tenant 1', 'first'), post_order('tenant 1', 'first')},
	'the call itself' => q{SELECT outcome FROM idempotency.claim('tenant 1', 'order', 'first', lease => '1 s')});
foreach my $what (sort keys %undelegated)
{
	my $result = $coordinator->query($undelegated{$what});

	promise($result->code eq '55000' && $result->message =~ /not kept on this node/, "not delegated: $what is refused", $result->code . ' ' . $result->message . ' ' . ($result->value // ''));
}
promise($coordinator->ok('SELECT count(*) FROM orders')->value == 1, 'and nothing of it is done');

# ---- a move under load ---------------------------------------------------------------

my $scratch = `mktemp -d`;
chomp $scratch;
my $clients = 6;

# One request, asked again until it is answered. 55000 is a call that Citus sent before
# the move was committed, the others are its own while it moves.
sub ask
{
	my ($wire, $sql, @values) = @_;
	my $again = 0;

	for (;;)
	{
		my $result = $wire->execute($sql, @values);

		return ($result, $again) if $result->code eq '' || $result->code !~ /^(55000|40001|40P01|57014|55P03)$/ || $again > 2000;
		$again++;
		sleep 0.005;
	}
}

sub client
{
	my ($number) = @_;
	my $wire = connect_to(0);
	my $i = 0;

	srand 14 + $number;
	open my $told, '>', "$scratch/$number" or die $!;
	while (!-e "$scratch/stop")
	{
		my $tenant = 'tenant ' . int rand 40;
		my $key = "$tenant " . int($i++ / 4 + rand 4);
		my ($result, $again);

		if (rand() < 0.3)
		{
			($result, $again) = ask($wire, 'SELECT begin_order($1, $2, $3)', $tenant, $key, sprintf '%08x-0000-4000-8000-%012x', $number, $i);
			if (($result->value // '') =~ /^claimed (\d+)/)
			{
				my $token = $1;
				my $more;

				sleep rand 0.05;
				($result, $more) = ask($wire, 'SELECT end_order($1, $2, $3)', $tenant, $key, $token);
				$again += $more;
			}
		}
		else
		{
			($result, $again) = ask($wire, 'SELECT post_order($1, $2)', $tenant, $key);
		}
		my $answer = $result->code ne '' ? 'error ' . $result->code . ' ' . $result->message : $result->value =~ s/ .*//r;
		$answer = 'wrong ' . $result->value if $answer eq 'replay' && $result->value ne "replay body $key";
		print $told join("\t", $answer, $tenant, $key, $again), "\n";
	}
	close $told;
	return 0;
}

my @children = map {
	my $number = $_;
	my $pid = fork // die $!;

	POSIX::_exit(eval { client($number) } // 1) if !$pid;
	$pid
} 1 .. $clients;

@ENV{qw(PGHOST PGPORT PGUSER PGDATABASE)} = ($addresses[0], $port, 'postgres', 'postgres');
$ENV{PATH} = "$ENV{BINDIR}:$ENV{PATH}";
my ($moves, $not_moved, $longest, $keys) = (0, 0, 0, 0);
srand 14;
while ($moves < $ENV{MOVES} && $not_moved < 3 * $ENV{MOVES})
{
	my ($shard, $group) = @{ $coordinator->ok(q{SELECT shardid, groupid FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) WHERE logicalrelid = 'tenants'::regclass ORDER BY random() LIMIT 1})->rows->[0] };
	my $to = $addresses[ 3 - $group ];
	my $mode = rand() < 0.5 ? 'block_writes' : 'force_logical';
	my $start = time;
	my $said = `'$ENV{MOVE}' tenants $shard $to $port $mode 2>&1`;

	if ($? == 0)
	{
		$moves++;
		$keys += $1 if $said =~ /^(\d+) keys,/m;
		$longest = time - $start if time - $start > $longest;
	}
	else
	{
		print "# $said";
		$not_moved++;
	}
	sleep 0.3;
}
open my $stop, '>', "$scratch/stop" or die $!;
close $stop;
my $ended = 0;
foreach (@children) { $ended += waitpid($_, 0) == $_ && $? == 0; }

my (%done, %told);
my ($answered, $again) = (0, 0);
foreach my $number (1 .. $clients)
{
	open my $file, '<', "$scratch/$number" or die $!;
	while (<$file>)
	{
		chomp;
		my ($answer, $tenant, $key, $times) = split /\t/;

		$answered++;
		$again += $times;
		$told{ $answer =~ s/ .*//r }++;
		print "# $answer\n" if $answer =~ /^(error|wrong)/;
		$done{$key} = $tenant if $answer =~ /^(claimed|replay|done)/;
	}
}
system 'rm', '-rf', $scratch;

my %rows = map { @$_ } @{ $coordinator->ok(q{SELECT key, count(*) FROM orders WHERE key <> 'first' GROUP BY key})->rows };
my $twice = grep { $rows{$_} > 1 } keys %rows;
my $lost = grep { !$rows{$_} } keys %done;
my $unknown = grep { !$done{$_} } keys %rows;
my $unanswered = 0;
foreach my $key (keys %done)
{
	$unanswered++ if ($coordinator->execute('SELECT post_order($1, $2)', $done{$key}, $key)->value // '') ne "replay body $key";
}
promise($ended == $clients, 'every client came to its end');
promise($moves == $ENV{MOVES}, 'the shards were moved', "$moves moved, $not_moved not");
promise(!$told{error} && !$told{wrong}, 'every request was answered, and rightly');
promise($twice == 0, 'nothing was executed twice', "$twice keys");
promise($lost == 0, 'nothing that was acknowledged is lost', "$lost keys");
promise($unknown == 0, 'nothing was executed that nobody was told of', "$unknown keys");
promise($unanswered == 0, 'every answer is replayed', "$unanswered keys");
my @strays = map { @{ connect_to($_)->ok(q{SELECT status, value FROM idempotency.health() WHERE check_name = 'home'})->rows } } 0 .. 2;
promise(!(grep { $_->[0] ne 'ok' } @strays), 'no key is left where it does not belong', map { "@$_" } @strays);

count('requests, of so many keys', "$answered, " . keys %done);
count('claimed / replayed / completed with a token', join ' / ', map { $told{$_} // 0 } qw(claimed replay done));
count('asked again', $again);
count('moves, with so many keys; not moved at the first try', "$moves, $keys; $not_moved");
count('the longest move, in seconds', sprintf '%.1f', $longest);
count('violations / losses', $twice . ' / ' . ($lost + $unanswered));
finish();
