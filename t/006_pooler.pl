
# Behind a pooler in transaction mode every transaction may run on another
# connection, and every connection serves one client after the other. Nothing
# of the extension outlives a transaction, so that is all right.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($pgbouncer) = grep { -x } map { "$_/pgbouncer" } split(/:/, $ENV{PATH}), '/usr/sbin';

plan skip_all => 'pgbouncer is not installed' unless $pgbouncer;

my $node = new_server('pooled');
my $directory = PostgreSQL::Test::Utils::tempdir_short();
my $direct = Connection->connect($node);
my $user = getpwuid($>);
my $port = PostgreSQL::Test::Cluster::get_free_port();
my @poolers;

# A pooler of so many server connections.
sub start_pooler
{
	my ($size) = @_;
	my $at = "$directory/$size";

	mkdir $at or die "could not create a directory: $!";
	append_to_file("$at/users", qq("$user" ""\n));
	append_to_file("$at/ini", <<"EOC");
[databases]
postgres = host=${\ $node->host} port=${\ $node->port} dbname=postgres
[pgbouncer]
listen_addr =
listen_port = $port
unix_socket_dir = $at
auth_type = trust
auth_file = $at/users
pool_mode = transaction
default_pool_size = $size
min_pool_size = 0
logfile = $at/log
EOC
	push @poolers, in_child(sub { exec $pgbouncer, '-q', "$at/ini" });
	return $at;
}

END { kill 'TERM', @poolers if @poolers; }

sub pooled
{
	my ($at) = @_;
	my $connection;

	wait_until(sub { $connection = Connection->connect(undef, host => $at, port => $port, fail_ok => 1) })
	  or BAIL_OUT('the pooler does not answer');
	return $connection;
}

$direct->ok('CREATE TABLE effects (key text, client text)');

my $claim = q{SELECT outcome, token, response_body FROM idempotency.claim('pooled', 'op', $1};

# ---- one server connection, two clients ----------------------------------------

my $one = start_pooler(1);
my ($a, $b) = (pooled($one), pooled($one));

is($a->ok('SELECT pg_backend_pid()')->value, $b->ok('SELECT pg_backend_pid()')->value, 'two clients share a connection');

# In one transaction. B's call waits for the connection, not for the key.
$a->ok('BEGIN');
is($a->execute("$claim)", 'one')->value, 'claimed', 'one connection: A claims');
$b->start_pipeline([ "$claim)", 'one' ]);
$a->ok("INSERT INTO effects VALUES ('one', 'A'); SELECT idempotency.complete('pooled', 'op', 'one', 200, 'by A')");
$a->ok('COMMIT');
is_deeply($b->finish->rows, [ [ 'replay', undef, 'by A' ] ], 'one connection: B gets the replay');
is(key_locks($direct), 0, 'one connection: no key lock is left');

# What A has claimed is not B's, though the same backend did it.
$a->ok('BEGIN');
$a->execute("$claim)", 'two');
$a->ok('ROLLBACK');
is($b->query("SELECT idempotency.complete('pooled', 'op', 'two', 200)")->code, 'IK002',
	'one connection: a claim ends with its transaction');
$b->ok('BEGIN');
is($b->execute("$claim)", 'two')->value, 'claimed', 'one connection: its key is free');
$b->ok("INSERT INTO effects VALUES ('two', 'B'); SELECT idempotency.complete('pooled', 'op', 'two', 200, 'by B'); COMMIT");

# A leased claim belongs to the token, not to a connection.
my $token = $a->execute("$claim, lease => '1 hour')", 'three')->row->{token};
is($b->execute("$claim, lease => '1 hour')", 'three')->value, 'in_progress', 'one connection: B does not get A\'s lease');
is($b->query("SELECT idempotency.complete('pooled', 'op', 'three', 200, 'by B')")->code, 'IK002',
	'one connection: nor can it complete without the token');
$a->ok("BEGIN; INSERT INTO effects VALUES ('three', 'A'); SELECT idempotency.complete('pooled', 'op', 'three', 200, 'by A', token => $token); COMMIT");
is($b->execute("$claim)", 'three')->row->{response_body}, 'by A', 'one connection: then it replays');

# A forgotten claim does not leak into the next client's transaction.
$a->ok('BEGIN');
$a->execute("$claim)", 'four');
is($a->query('COMMIT')->code, 'IK004', 'one connection: A forgot to complete');
is($b->ok("BEGIN; SELECT 1; COMMIT")->code, '', 'one connection: B commits on the same connection');

# A client that disappears in the middle: the pooler ends its connection.
$a->ok('BEGIN');
$a->execute("$claim)", 'five');
$a->ok("INSERT INTO effects VALUES ('five', 'A')");
my $gone = $a->ok('SELECT pg_backend_pid()')->value;
$a->close;
ok(wait_until(sub { $direct->ok("SELECT count(*) FROM pg_stat_activity WHERE pid = $gone")->value == 0 }),
	'one connection: it ends with its client');
is($b->execute("SELECT outcome FROM idempotency.claim('pooled', 'op', \$1, lease => '1 hour')", 'five')->value,
	'claimed', 'one connection: the key of a client that vanished is free');
is($direct->ok("SELECT count(*) FROM effects WHERE key = 'five'")->value, 0, 'one connection: and its business rows are gone');

# ---- two server connections ------------------------------------------------------

my $two = start_pooler(2);
($a, $b) = (pooled($two), pooled($two));

$a->ok('BEGIN');
is($a->execute("$claim)", 'six')->value, 'claimed', 'two connections: A claims');
is($b->execute("$claim)", 'six')->value, 'in_progress', 'two connections: B is told');
is(key_locks($direct), 1, 'two connections: B keeps no lock');
$b->start_pipeline([ "$claim, wait => '60 s')", 'six' ]);
$a->ok("INSERT INTO effects VALUES ('six', 'A'); SELECT idempotency.complete('pooled', 'op', 'six', 200, 'by A'); COMMIT");
is_deeply($b->finish->rows, [ [ 'replay', undef, 'by A' ] ], 'two connections: B waits and gets the replay');

# Claim on one connection, heartbeat and completion on the other.
my $other = pooled($two);
$token = $a->execute("$claim, lease => '1 hour')", 'seven')->row->{token};
$other->ok('BEGIN');
my $busy = $other->ok('SELECT pg_backend_pid()')->value;
isnt($a->ok('SELECT pg_backend_pid()')->value, $busy, 'two connections: A is served by the one that is left');
$other->ok('COMMIT');
$b->ok('BEGIN');
$b->ok('SELECT 1');
is($a->query("SELECT idempotency.extend('pooled', 'op', 'seven', '2 hours', token => $token) > now() + '1 hour'")->value,
	't', 'two connections: a heartbeat from wherever');
$b->ok('COMMIT');
$other->ok("BEGIN; INSERT INTO effects VALUES ('seven', 'A'); SELECT idempotency.complete('pooled', 'op', 'seven', 200, 'by A', token => $token); COMMIT");
is(replay_of($b, 'pooled', 'op', 'seven'), 'by A', 'two connections: a completion by another connection');

# ---- many clients ------------------------------------------------------------------

# Eight clients on two connections, all after the same keys.
my @clients = map { pooled($two) } 1 .. 8;
my $wrong = 0;
foreach my $round (1 .. 50)
{
	my $sql = qq{
		DO \$\$
		DECLARE
			mine boolean;
		BEGIN
			SELECT outcome = 'claimed' INTO mine FROM idempotency.claim('pooled', 'many', '$round');
			IF mine THEN
				INSERT INTO effects VALUES ('many $round', NULL);
				PERFORM idempotency.complete('pooled', 'many', '$round', 200, 'round $round');
			END IF;
		END \$\$;
		SELECT response_body FROM idempotency.replay('pooled', 'many', '$round')};

	$_->start($sql) foreach @clients;
	foreach my $client (@clients)
	{
		my $result = $client->finish;

		BAIL_OUT($result->message) if $result->code ne '';
		$wrong++ if ($result->value // "round $round") ne "round $round";
	}
}
is($wrong, 0, 'many clients: every replay is the right one');
is($direct->ok("SELECT count(*) || ' ' || count(DISTINCT key) FROM effects WHERE key LIKE 'many%'")->value,
	'50 50', 'many clients: each key is executed once');
is($direct->ok("SELECT count(*) FROM effects WHERE key NOT LIKE 'many%'")->value, 5, 'each of the other keys, too');
is(key_locks($direct), 0, 'no key lock is left');
is( $direct->ok(q{
		SELECT count(*) FROM pg_stat_activity
		WHERE backend_type = 'client backend' AND state <> 'idle' AND pid <> pg_backend_pid()})->value,
	0, 'no transaction is left open');

$_->close(terminate => 1) foreach @clients, $a, $b, $other;
$node->stop;
done_testing();
