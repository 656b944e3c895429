
# A claim without a lease that is left open fails the commit before another
# server has committed its part: with a foreign table of a real postgres_fdw,
# which commits there in a callback of its own, no row is left behind, whoever
# came first, the claim or the connection, and by whatever way the end comes.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('remote', conf => "max_prepared_transactions = 5\n");
my $has_fdw = $node->safe_psql('postgres',
	q{SELECT count(*) FROM pg_available_extensions WHERE name = 'postgres_fdw'});

if (!$has_fdw)
{
	$node->stop;
	plan skip_all => 'needs postgres_fdw';
}

my $rows = PostgreSQL::Test::Utils::tempdir('remote') . '/rows';

append_to_file($rows, "copied\n");
chmod 0644, $rows;
$node->safe_psql('postgres', 'CREATE DATABASE far');
$node->safe_psql('far', 'CREATE TABLE effects (what text)');
$node->safe_psql('postgres', sprintf <<'SQL', $node->host, $node->port);
CREATE EXTENSION postgres_fdw;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '%s', port '%s', dbname 'far');
CREATE USER MAPPING FOR PUBLIC SERVER far;
CREATE FOREIGN TABLE effects (what text) SERVER far;

CREATE FUNCTION claims() RETURNS text LANGUAGE sql AS
	$$ SELECT outcome FROM idempotency.claim('remote', 'op', 'key') $$;
CREATE FUNCTION claims_by_expression() RETURNS text LANGUAGE plpgsql AS $$
	DECLARE answer idempotency.claim_result;
	BEGIN
		answer := idempotency.claim('remote', 'op', 'key');
		RETURN answer.outcome;
	END $$;
CREATE FUNCTION completes() RETURNS bool LANGUAGE sql AS
	$$ SELECT idempotency.complete('remote', 'op', 'key') > now() $$;
CREATE FUNCTION books() RETURNS int LANGUAGE sql AS
	$$ INSERT INTO effects VALUES ('booked'); SELECT 1 $$;
CREATE FUNCTION fails() RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO effects VALUES ('undone');
		PERFORM 1 / (random() * 0)::int; -- in the executor
	EXCEPTION WHEN division_by_zero THEN NULL;
	END $$;

-- What is done at the end of a statement, or at the commit.
CREATE TABLE at_once (what text);
CREATE TABLE deferred (what text);
CREATE FUNCTION does() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		EXECUTE new.what;
		RETURN NULL;
	END $$;
CREATE FUNCTION claims_as_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
	DECLARE answer idempotency.claim_result;
	BEGIN
		answer := idempotency.claim('remote', 'op', 'key');
		RETURN NULL;
	END $$;
CREATE TRIGGER does AFTER INSERT ON at_once FOR EACH ROW EXECUTE FUNCTION does();
CREATE CONSTRAINT TRIGGER does AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW WHEN (new.what <> 'claims') EXECUTE FUNCTION does();
CREATE CONSTRAINT TRIGGER claims AFTER INSERT ON deferred DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW WHEN (new.what = 'claims') EXECUTE FUNCTION claims_as_trigger();

CREATE PROCEDURE claims_books() LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM idempotency.claim('remote', 'op', 'key');
		INSERT INTO effects VALUES ('booked');
		COMMIT;
	END $$;
CREATE PROCEDURE books_claims() LANGUAGE plpgsql AS $$
	DECLARE answer idempotency.claim_result;
	BEGIN
		INSERT INTO effects VALUES ('booked');
		answer := idempotency.claim('remote', 'op', 'key');
		COMMIT;
	END $$;
CREATE PROCEDURE books_often() LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM idempotency.claim('remote', 'op', 'good');
		PERFORM idempotency.complete('remote', 'op', 'good');
		COMMIT;
		PERFORM idempotency.claim('remote', 'op', 'key');
		INSERT INTO effects VALUES ('booked');
		COMMIT;
	END $$;
SQL

my $claim = 'SELECT claims()';
my $book = q{INSERT INTO effects VALUES ('booked')};

# Title and what a connection sends, a message each: a string is a simple
# query, a list is a pipeline. The last one has to fail.
my @orders = (
	[ 'claimed, then booked', 'BEGIN', $claim, $book, 'COMMIT' ],
	[ 'booked, then claimed', 'BEGIN', $book, $claim, 'COMMIT' ],
	[ 'one query', "BEGIN; $claim; $book; COMMIT" ],
	[ 'prepared', 'BEGIN', $claim, $book, q{PREPARE TRANSACTION 'remote'} ],
	[ 'COMMIT AND CHAIN', 'BEGIN', $claim, $book, 'COMMIT AND CHAIN' ],
	[ 'savepoints', 'BEGIN', $claim, 'SAVEPOINT a', $book, 'SAVEPOINT b', $book, 'COMMIT' ],
	[ 'what opened the connection was undone', 'BEGIN', $claim, 'SELECT fails()', $book, 'COMMIT' ],
	[ 'claimed in a savepoint', 'BEGIN', $book, 'SAVEPOINT a', $claim, 'RELEASE a', 'COMMIT' ],
	[ 'many statements in between', 'BEGIN', $claim, join(';', ('SELECT 1') x 3000), $book, 'COMMIT' ],
	[ 'one statement',
		"WITH c AS MATERIALIZED ($claim AS what) INSERT INTO effects SELECT what FROM c" ],
	[ 'two functions', 'SELECT claims(), books()' ],
	[ 'two functions, the other way round', 'SELECT books(), claims()' ],
	[ 'an expression', 'SELECT books(), claims_by_expression()' ],
	[ 'several in one query', "$claim; $book" ],
	[ 'several in one query, the other way round', "$book; $claim" ],
	[ 'a pipeline', [ [$claim], [$book] ] ],
	[ 'a pipeline, the other way round', [ [$book], [$claim] ] ],
	[ 'EXECUTE', "PREPARE b AS $book", "$claim; EXECUTE b" ],
	[ 'COPY', "$claim; COPY effects FROM '$rows'" ],
	[ 'COPY in a block', 'BEGIN', $claim, "COPY effects FROM '$rows'", 'COMMIT' ],
	[ 'EXPLAIN ANALYZE', "$claim; EXPLAIN ANALYZE $book" ],
	[ 'DO', "DO \$\$ BEGIN PERFORM claims(); $book; END \$\$" ],
	[ 'DO, by an expression', "DO \$\$ DECLARE o text; BEGIN $book; o := claims_by_expression(); END \$\$" ],
	[ 'DO that commits', "DO \$\$ BEGIN PERFORM claims(); $book; COMMIT; END \$\$" ],
	[ 'DO, after a query that failed',
		"DO \$\$ BEGIN PERFORM claims(); BEGIN PERFORM 1 / (random() * 0)::int; EXCEPTION WHEN division_by_zero THEN NULL; END; $book; END \$\$" ],
	[ 'a procedure that commits', 'CALL claims_books()' ],
	[ 'a procedure that commits, by an expression', 'CALL books_claims()' ],
	[ 'a procedure that commits twice', 'CALL books_often()' ],
	[ 'a trigger books', 'BEGIN', $claim, q{INSERT INTO at_once VALUES ('SELECT books()')}, 'COMMIT' ],
	[ 'a trigger claims', "$book; INSERT INTO at_once VALUES ('SELECT claims()')" ],
	[ 'a deferred trigger books', 'BEGIN', $claim, q{INSERT INTO deferred VALUES ('SELECT books()')}, 'COMMIT' ],
	[ 'a deferred trigger claims', 'BEGIN', $book, q{INSERT INTO deferred VALUES ('SELECT claims()')}, 'COMMIT' ],
	[ 'a deferred trigger claims by an expression', 'BEGIN', $book, q{INSERT INTO deferred VALUES ('claims')}, 'COMMIT' ],
	[ 'one deferred trigger books, the next one claims',
		q{INSERT INTO deferred VALUES ('SELECT books()'), ('claims')} ],
	[ 'one deferred trigger claims, the next one books',
		q{INSERT INTO deferred VALUES ('claims'), ('SELECT books()')} ],
	[ 'a holdable cursor books', 'BEGIN', $claim, 'DECLARE c CURSOR WITH HOLD FOR SELECT books()', 'COMMIT' ],
	[ 'a holdable cursor claims', 'BEGIN', $book, 'DECLARE c CURSOR WITH HOLD FOR SELECT claims()', 'COMMIT' ],
	[ 'holdable cursors book and claim', 'BEGIN', 'DECLARE c CURSOR WITH HOLD FOR SELECT claims()',
		'DECLARE d CURSOR WITH HOLD FOR SELECT books()', 'COMMIT' ],
);

# What the connection has been used for before.
my %before = (
	'nothing before' => [],
	'the server was used before' => [$book],
	'a key was claimed before' => [ 'BEGIN', $claim, 'SELECT completes()', 'COMMIT' ],
	'a key, then the server' => [ 'BEGIN', $claim, 'ROLLBACK', $book ],
);

my ($near, $far);

sub clean_up
{
	$near->ok(q{SELECT idempotency.forget_scope('remote', force => true)});
	$far->ok('TRUNCATE effects');
	return;
}

sub booked { return $far->ok('SELECT count(*) FROM effects')->value; }

sub send_message
{
	my ($wire, $message) = @_;

	return ref $message ? $wire->pipeline(@$message) : $wire->query($message);
}

sub try_all
{
	my ($how) = @_;

	$near = Connection->connect($node);
	$far = Connection->connect($node, database => 'far');
	foreach my $past (sort keys %before)
	{
		foreach my $order (@orders)
		{
			my ($title, @messages) = @$order;
			my $wire = Connection->connect($node);
			my $code;

			$wire->ok($_) foreach @{ $before{$past} };
			clean_up();
			foreach my $message (@messages)
			{
				$code = send_message($wire, $message)->code;
				last if $code;
			}
			is("$code " . booked(), 'IK004 0', "$how, $past: $title");
			$wire->ok('ROLLBACK');
			$wire->close(terminate => 1);
		}
	}
	return;
}

try_all('not preloaded');
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'idempotency'\n");
$node->restart;
try_all('preloaded');

# ---- completed -------------------------------------------------------------------

my $wire = Connection->connect($node);

sub is_booked
{
	my ($title, @messages) = @_;

	clean_up();
	is(send_message($wire, $_)->code, '', "$title: no error") foreach @messages;
	is(booked(), 1, "$title: it is booked");
	is(status_of($wire, 'remote', 'op', 'key'), 'completed', "$title: it is completed");
	return;
}

is_booked('completed', 'BEGIN', $claim, $book, 'SELECT completes()', 'COMMIT');
is_booked('completed in a deferred trigger', 'BEGIN', $claim, $book,
	q{INSERT INTO deferred VALUES ('SELECT completes()')}, 'COMMIT');
is_booked('claimed anew in an exception block', 'BEGIN', 'SELECT fails()', 'SAVEPOINT a', $claim, 'ROLLBACK TO a',
	$claim, $book, 'SELECT completes()', 'COMMIT');

# postgres_fdw refuses to prepare by itself, where we do not.
$wire->ok('BEGIN');
$wire->ok($_) foreach 'SELECT outcome FROM idempotency.claim(\'remote\', \'op\', \'other\')', $book,
  q{SELECT idempotency.complete('remote', 'op', 'other')};
is($wire->query(q{PREPARE TRANSACTION 'remote'})->code, '0A000', 'postgres_fdw does not prepare');

$node->stop;
done_testing();
