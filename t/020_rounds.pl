
# A round visits every database that accepts connections and is no template.
# What is wrong in one does not matter to the others: it is logged once, and
# tried again less and less often.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep);
use Worker;

# In UTF8: a long message is clipped at a character, not in one.
my $node = new_preloaded_server('rounds', init => { extra => [ '--encoding=UTF8', '--locale=C' ] });

sub logged { return scalar(() = server_log($node) =~ /$_[0]/g); }

# "aaa" and "zzz": whatever the order, some good ones come after the bad ones.
new_database($node, $_, 100) foreach qw(good1 broken failing wordy closed tmpl skipped good2 good3);
$node->safe_psql('broken', 'ALTER TABLE idempotency.idempotency_keys RENAME TO renamed');
$node->safe_psql('failing', q{
	CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
		$$ BEGIN RAISE EXCEPTION 'no deletions today'; END $$;
	CREATE TRIGGER refuse BEFORE DELETE ON idempotency.idempotency_keys
		FOR EACH ROW EXECUTE FUNCTION refuse()});
# What the planner calls, and what it then says is longer than there is room for,
# with the last place in the middle of a character.
$node->safe_psql('wordy', q{
	CREATE FUNCTION says() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
	CREATE INDEX ON idempotency.idempotency_keys (note) WHERE says();
	CREATE OR REPLACE FUNCTION says() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
		$$ BEGIN RAISE EXCEPTION '%', 'x' || repeat(U&'\20AC', 100); END $$});
$node->safe_psql('postgres', q{
	CREATE DATABASE impostor;
	ALTER DATABASE closed ALLOW_CONNECTIONS false;
	ALTER DATABASE tmpl IS_TEMPLATE true});
$node->safe_psql('impostor', q{
	CREATE SCHEMA idempotency;
	CREATE TABLE idempotency.idempotency_keys (expires_at timestamptz, status text);
	INSERT INTO idempotency.idempotency_keys VALUES (now() - interval '1 day', 'completed')});
$node->append_conf('postgresql.conf', "idempotency.cleanup_skip_databases = 'nowhere, skipped'");
$node->reload;

my $start = -s $node->logfile;
ok(cleaned_again($node, qw(good1 good2 good3)), 'three databases are cleaned');
is(keys_left($node, $_), 0, "$_: no expired key is left") foreach qw(good1 good2 good3);

ok(wait_until(sub { logged('clean-up of database "broken" failed') && logged('clean-up of database "failing" failed') }),
	'a database where the table was renamed, and one with a failing trigger, are reported');
is($node->safe_psql('failing', 'SELECT sqlstate, error, started_by FROM idempotency.cleanup_runs ORDER BY id DESC LIMIT 1'),
	'P0001|writing the row of a key failed|worker', 'cleanup_runs says as much as can be said');
is(health_of($node, 'last_cleanup', 'failing')->{status}, 'critical', 'so does health()');
is(health_of($node, 'last_cleanup', 'good1')->{status}, 'ok', 'which is ok elsewhere');
ok(wait_until(sub { logged('clean-up of database "wordy" failed') }, 30), 'a long message is reported');
is($node->safe_psql('wordy', q{SELECT octet_length(error), error = 'x' || repeat(U&'\20AC', 84) FROM idempotency.cleanup_runs ORDER BY id DESC LIMIT 1}),
	'253|t', 'as many whole characters of it as there is room for');
is(logged('DETAIL:  x(\xE2\x82\xAC){84}\n'), 1, 'also in the log');
like($node->safe_psql('good1', q{SELECT string_agg(database || '|' || last_cleanup_deleted, ' ' ORDER BY database)
	FROM idempotency.stats WHERE database LIKE 'good%'}),
	qr/^good1\|100 good2\|100 good3\|100$/, 'and one connection sees what was deleted in all of them');

is($node->safe_psql('impostor', 'SELECT count(*) FROM idempotency.idempotency_keys'), 1,
	'a schema of our name without the extension is left alone');
is(keys_left($node, 'skipped'), 100, 'so is a database that is to be skipped');
$node->safe_psql('postgres', 'ALTER DATABASE closed ALLOW_CONNECTIONS true');
is(keys_left($node, 'closed'), 100, 'and one that refuses connections');
is(keys_left($node, 'tmpl'), 100, 'and a template');
unlike(server_log($node, $start), qr/(closed|tmpl|impostor|template[01]|skipped)" *(deleted|$)/, 'no process went there');
unlike(server_log($node, $start), qr/FATAL/, 'no process was turned away');
like(server_log($node, $start), qr/clean-up of database "good1" deleted 100 keys and removed 0 responses in 2 batches/,
	'one line tells of a run that did something');

# Frequent rounds; a reload makes the interval shorter, at once.
my ($good_before, $failing_before) = map { last_run($node, $_) } qw(good1 failing);
$node->append_conf('postgresql.conf', 'idempotency.cleanup_interval = 1s');
$node->reload;
ok(wait_until(sub { last_run($node, 'good1') >= $good_before + 2 }),
	'a reload that shortens the interval starts a round at once, not after an hour');
ok(wait_until(sub { last_run($node, 'good1') >= $good_before + 8 }), 'and rounds go on');
# Looked at in this order, there are at least as many rounds as tries.
my $tried = last_run($node, 'failing') - $failing_before;
my $rounds = last_run($node, 'good1') - $good_before;
cmp_ok($tried, '>=', 1, 'the failing database is tried again');
cmp_ok($tried, '<=', $rounds / 2, 'but not in every round');
is(logged('clean-up of database "failing" failed'), 1, 'and is reported once');
is(logged('clean-up of database "broken" failed'), 1, 'as is the broken one');
is(logged('writing the row of a key failed'), 1, 'the reason too');
is(logged('no deletions today'), 0, 'but not what the trigger said, which may show the row');

# Switched off, by a reload as well.
$node->append_conf('postgresql.conf', "idempotency.cleanup_enabled = off");
$node->reload;
# A round may be under way while the setting arrives; none follows it. When the
# launcher has read it cannot be seen.
ok(wait_until(sub { my $runs = last_run($node, 'good1'); sleep 2.2; last_run($node, 'good1') == $runs }),
	'switched off, no round follows');
ok(wait_until(sub { Connection->connect($node)->ok('SHOW idempotency.cleanup_enabled')->value eq 'off' }), 'the setting has arrived');
is(health_of($node, 'worker')->{status}, 'warn', 'and health() says so');

# Cured. Who asks for a round gets one, with nobody left out.
$node->safe_psql('broken', 'ALTER TABLE idempotency.renamed RENAME TO idempotency_keys');
$node->safe_psql('failing', 'DROP TRIGGER refuse ON idempotency.idempotency_keys');
ok(cleaned_again($node, qw(broken failing)), 'a round that was asked for leaves nobody out, even when switched off');
is(keys_left($node, $_), 0, "$_: cured, it is cleaned") foreach qw(broken failing);
ok(wait_until(sub { logged('clean-up of database "failing" works again') == 1 && logged('clean-up of database "broken" works again') == 1 }),
	'and the log says so');

$node->stop;
done_testing();
