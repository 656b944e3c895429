
# What clients do with statements besides sending them one by one: autocommit,
# pipelines, prepared statements, cursors, portals read in pieces. Wherever a
# forgotten claim would commit its business rows, it fails instead.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('clients', conf => "max_prepared_transactions = 5\n");
my $c = Connection->connect($node);
my $rival = Connection->connect($node);
my $number = 0;

$c->ok('CREATE TABLE effects (key text)');

my $claim = q{SELECT outcome, token, response_body FROM idempotency.claim('clients', 'op', $1};
my $effect = 'INSERT INTO effects VALUES ($1)';
my $complete = q{SELECT idempotency.complete('clients', 'op', $1, 200, $2)};

sub effects { return $rival->execute('SELECT count(*) FROM effects WHERE key = $1', $_[0])->value; }

# A forgotten claim was refused: its SQLSTATE, nothing booked, no lock kept, the
# key free, the connection as good as new.
sub refused
{
	my ($result, $key, $title) = @_;

	is($result->code, 'IK004', "$title: IK004");
	like($result->hint, qr/complete\(\).*lease/, "$title: the hint names both cures");
	is(effects($key), 0, "$title: the business rows are gone");
	is(key_locks($rival), 0, "$title: no lock is kept");
	is($c->query('SELECT 1')->{status}, 'I', "$title: the connection goes on");
	is($rival->execute("$claim, lease => '1 hour')", $key)->value, 'claimed', "$title: the key is free");
	return;
}

# ---- autocommit --------------------------------------------------------------------

# The row comes first, the error follows it: who believes the row without
# looking for the error goes wrong.
my $result = $c->execute("$claim)", 'autocommit');
is($result->value, 'claimed', 'autocommit, extended protocol: the row comes first, and says "claimed"');
refused($result, 'autocommit', 'autocommit, extended protocol');

$result = $c->query("SELECT outcome FROM idempotency.claim('clients', 'op', 'simple')");
is($result->value, 'claimed', 'autocommit, simple protocol: the row comes first, and says "claimed"');
refused($result, 'simple', 'autocommit, simple protocol');

# Several statements in one message are one transaction.
$result = $c->query(q{
	SELECT FROM idempotency.claim('clients', 'op', 'batch');
	INSERT INTO effects VALUES ('batch')});
refused($result, 'batch', 'several statements in a message');
is($c->query(q{
		SELECT FROM idempotency.claim('clients', 'op', 'good batch');
		INSERT INTO effects VALUES ('good batch');
		SELECT idempotency.complete('clients', 'op', 'good batch', 200, 'done')})->code,
	'', 'several statements in a message, with completion');
is(effects('good batch'), 1, 'several statements in a message: booked');

# ---- pipelines -----------------------------------------------------------------------

# Up to the Sync a pipeline is one transaction.
$result = $c->pipeline([ "$claim)", 'pipeline' ], [ $effect, 'pipeline' ]);
is($result->{sets}[0]{rows}[0][0], 'claimed', 'pipeline: the claim was answered');
refused($result, 'pipeline', 'pipeline');

$result = $c->pipeline([ "$claim)", 'good' ], [ $effect, 'good' ], [ $complete, 'good', 'done' ]);
is($result->code, '', 'pipeline with completion');
is(effects('good'), 1, 'pipeline with completion: booked');
is(replay_of($rival, 'clients', 'op', 'good'), 'done', 'pipeline with completion: replayed');

# A pipeline that does not wait for the answer books blindly; the repeat is
# stopped by its own completion.
$result = $c->pipeline([ "$claim)", 'good' ], [ $effect, 'good' ], [ $complete, 'good', 'again' ]);
is($result->code, 'IK002', 'pipeline, sent again: the completion is refused');
is(effects('good'), 1, 'pipeline, sent again: nothing is booked');
is(replay_of($rival, 'clients', 'op', 'good'), 'done', 'pipeline, sent again: the first response stands');

# Inside a transaction block the pipeline may end with the claim open.
$result = $c->pipeline(['BEGIN'], [ "$claim)", 'block' ], [ $effect, 'block' ]);
is($result->{status}, 'T', 'pipeline in a block: the transaction goes on');
is($c->pipeline([ $complete, 'block', 'done' ], ['COMMIT'])->code, '', 'pipeline in a block: completed by the next');
is(effects('block'), 1, 'pipeline in a block: booked');
$result = $c->pipeline(['BEGIN'], [ "$claim)", 'bad block' ], [ $effect, 'bad block' ], ['COMMIT']);
refused($result, 'bad block', 'pipeline with its own block');

# The same by libpq.
my $directory = PostgreSQL::Test::Utils::tempdir();
my %script = (
	good => q{
		\startpipeline
		SELECT FROM idempotency.claim('clients', 'libpq', :client_id || ' good');
		INSERT INTO effects VALUES ('libpq good');
		SELECT idempotency.complete('clients', 'libpq', :client_id || ' good', 200, 'done');
		\endpipeline
	},
	forgotten => q{
		\startpipeline
		SELECT FROM idempotency.claim('clients', 'libpq', :client_id || ' forgotten');
		INSERT INTO effects VALUES ('libpq forgotten');
		\endpipeline
	});
append_to_file("$directory/$_", $script{$_} =~ s/^\t+//gmr) foreach keys %script;
foreach my $mode ('extended', 'prepared')
{
	$node->command_ok([ 'pgbench', '-n', '-M', $mode, '-t', 1, '-c', 4, '-f', "$directory/good", 'postgres' ],
		"libpq pipeline, $mode") if $mode eq 'extended';
	$node->command_checks_all([ 'pgbench', '-n', '-M', $mode, '-t', 1, '-c', 4, '-f', "$directory/forgotten", 'postgres' ],
		2, [qr/processed: 0/], [qr/left open at the end of its transaction/], "libpq pipeline, forgotten, $mode");
}
is(effects('libpq good'), 4, 'libpq pipeline: booked');
is(effects('libpq forgotten'), 0, 'libpq pipeline, forgotten: the business rows are gone');

# ---- prepared statements ---------------------------------------------------------------

# They are planned once and live through changes of the search path, of the
# table's statistics, and through other plans being thrown away.
is($c->prepare('claim', $claim . ')')->code, '', 'prepared: claim');
$c->prepare('complete', $complete);
$c->prepare('leased', "$claim, lease => '1 hour')");
foreach my $i (1 .. 8)
{
	$c->ok('BEGIN');
	is($c->execute_prepared('claim', "prepared $i")->value, 'claimed', "prepared: claim $i");
	is($c->execute_prepared('complete', "prepared $i", "response $i")->code, '', "prepared: completion $i");
	$c->ok('COMMIT');
	is($c->execute_prepared('claim', "prepared $i")->row->{response_body}, "response $i", "prepared: replay $i");
	$rival->ok('ANALYZE idempotency.idempotency_keys') if $i == 3;
	$c->ok('SET search_path = pg_temp') if $i == 5;
	$c->ok('SET plan_cache_mode = force_custom_plan') if $i == 6;
	$c->ok('DISCARD PLANS') if $i == 7;
}
$c->ok('RESET ALL');

# DISCARD ALL, as poolers do between two clients.
$c->ok('DISCARD ALL');
$c->prepare('claim', $claim . ')');
is($c->execute_prepared('claim', 'prepared 1')->value, 'replay', 'after DISCARD ALL');

# ---- cursors and portals -----------------------------------------------------------------

# A holdable cursor is run by the commit itself.
$c->ok('BEGIN');
$c->ok("INSERT INTO effects VALUES ('cursor')");
$c->ok("DECLARE held CURSOR WITH HOLD FOR SELECT outcome FROM idempotency.claim('clients', 'op', 'cursor')");
refused($c->query('COMMIT'), 'cursor', 'holdable cursor');

$c->ok('BEGIN');
$c->ok("DECLARE plain CURSOR FOR SELECT outcome FROM idempotency.claim('clients', 'op', 'unread')");
is($c->query('COMMIT')->code, '', 'a cursor that nobody reads claims nothing');

$c->ok('BEGIN');
$c->ok("INSERT INTO effects VALUES ('read')");
$c->ok("DECLARE plain CURSOR FOR SELECT outcome FROM idempotency.claim('clients', 'op', 'read')");
is($c->ok('FETCH plain')->value, 'claimed', 'cursor: the claim comes with the first row');
refused($c->query('COMMIT'), 'read', 'cursor');

# A portal that is left when it has given one of its rows. asyncpg asks for
# the first row of a query and no more; libpq has no way to.
SKIP:
{
	my $python = $ENV{PYTHON} // '/usr/bin/python3';
	my $script = <<'EOS';
import asyncio, asyncpg, sys

claims = "SELECT c.outcome FROM generate_series(1, 3) i, idempotency.claim('clients', 'op', $1 || i) c"
locks = "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'"

async def main(host, port):
    connection = await asyncpg.connect(host=host, port=port, database='postgres')
    await connection.execute('BEGIN')
    print(*await connection.fetchrow(claims, 'portal '), await connection.fetchval(locks))
    for statement in connection.execute('COMMIT'), connection.fetchrow(claims, 'autocommitted portal '):
        try:
            await statement
        except asyncpg.PostgresError as error:
            print(error.sqlstate)

asyncio.run(main(*sys.argv[1:]))
EOS

	skip 'asyncpg is not installed', 4 if system("'$python' -c 'import asyncpg' >/dev/null 2>&1") != 0;
	my ($out, $err) = run_command([ $python, '-c', $script, $node->host, $node->port ]);
	my @said = split /\n/, $out;

	is($said[0], 'claimed 1', 'portal: it gave one row, and has claimed one key') or diag($err);
	is($said[1], 'IK004', 'portal: what it has claimed counts');
	is($said[2], 'IK004', 'portal: in autocommit, too');
	is(key_locks($rival), 0, 'portal: no lock is kept');
}

# ---- the server's own ways to commit ----------------------------------------------------------

$c->ok(q{
	CREATE PROCEDURE forgetful(name text) LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM idempotency.claim('clients', 'op', name);
		INSERT INTO effects VALUES (name);
		COMMIT;
	END $$;
	CREATE FUNCTION claim_later() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM idempotency.claim('clients', 'op', 'deferred');
		RETURN NULL;
	END $$;
	CREATE TABLE with_trigger (i int);
	CREATE CONSTRAINT TRIGGER later AFTER INSERT ON with_trigger
		DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION claim_later()});
refused($c->query("CALL forgetful('called')"), 'called', 'CALL ... COMMIT');
refused($c->query("INSERT INTO effects VALUES ('deferred'); INSERT INTO with_trigger VALUES (1)"),
	'deferred', 'a deferred trigger');
refused($c->query(q{
		DO $$ BEGIN
			PERFORM idempotency.claim('clients', 'op', 'block of code');
			INSERT INTO effects VALUES ('block of code');
		END $$}),
	'block of code', 'DO');
$c->ok('BEGIN');
$c->execute("$claim)", 'two-phase');
$c->execute($effect, 'two-phase');
refused($c->query("PREPARE TRANSACTION 'p'"), 'two-phase', 'PREPARE TRANSACTION');

# A completed one is prepared, and the connection that did it has nothing left
# of it.
$c->ok('BEGIN');
$c->execute("$claim)", 'prepared transaction');
$c->execute($complete, 'prepared transaction', 'kept');
$c->ok("PREPARE TRANSACTION 'p'");
is($c->execute($complete, 'prepared transaction', 'kept')->code, 'IK002', 'after PREPARE the claim is no longer of this connection');
is($c->execute("$claim, lease => '1 hour')", 'prepared transaction')->value, 'in_progress', 'after PREPARE it finds a rival like anybody else');
$rival->ok("COMMIT PREPARED 'p'");
is($c->execute("$claim)", 'prepared transaction')->row->{response_body}, 'kept', 'COMMIT PREPARED completes it');

is(key_locks($rival), 0, 'no key lock is left');
is(scalar(grep { !/left open at the end|the caller has no open claim/ } troubles($node)), 0, 'no other error and no warning in the log');

$node->stop;
done_testing();
