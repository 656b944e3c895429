
# Clean-up by the real pg_cron: a job that really ran, both ways in which
# pg_cron runs jobs; and schedules that nobody meant.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $pg_config = $ENV{PG_CONFIG} || 'pg_config';
chomp(my $libraries = `$pg_config --pkglibdir`);
plan skip_all => 'pg_cron is not installed' unless -e "$libraries/pg_cron.so";

# The library itself is not preloaded: that is who needs pg_cron.
sub new_cron_server
{
	my ($name, $conf) = @_;
	my $server = PostgreSQL::Test::Cluster->new($name);

	$server->init;
	$server->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_cron'\ncron.database_name = 'postgres'\n"
		  . "log_statement = none\ncron.host = '" . $server->host . "'\n$conf");
	$server->start;
	$server->safe_psql('postgres', 'CREATE EXTENSION idempotency; CREATE EXTENSION pg_cron');
	return $server;
}

# Two servers, so that both wait through the same minute.
my $node = new_cron_server('cron', '');
my $background = new_cron_server('background', "cron.use_background_workers = on\n");
$node->safe_psql('postgres', 'CREATE ROLE other LOGIN; CREATE DATABASE without');

my $wire = Connection->connect($node);

sub jobs
{
	return $wire->ok('SELECT schedule, command, database, username = current_user, jobname FROM cron.job ORDER BY jobid')->rows;
}

# One that runs soon; the rest meanwhile.
fill_with_expired($_, 'postgres', 100) foreach $node, $background;
$background->safe_psql('postgres', "SELECT idempotency.schedule_cleanup('* * * * *')");
my $job = $wire->ok("SELECT idempotency.schedule_cleanup('* * * * *')")->value;
is_deeply(jobs(), [ [ '* * * * *', 'CALL idempotency.maintain()', 'postgres', 't', 'idempotency-cleanup' ] ], 'a job');

# In another database without pg_cron.
$node->safe_psql('without', 'CREATE EXTENSION idempotency');
my $without = Connection->connect($node, database => 'without');
foreach my $call ('schedule_cleanup()', 'unschedule_cleanup()')
{
	my $result = $without->query("SELECT idempotency.$call");

	is($result->code, '55000', "without pg_cron: $call");
	is($result->message, 'extension "pg_cron" is not installed in this database', 'says what is missing');
	like($result->hint, qr/cron\.database_name.*CALL idempotency\.maintain\(\).*preload "idempotency"/, 'and names both cures');
}
# Functions of that name prove nothing.
$without->ok(q{CREATE SCHEMA cron;
	CREATE FUNCTION cron.schedule(text, text, text) RETURNS int8 LANGUAGE sql AS 'SELECT 1::int8'});
is($without->query('SELECT idempotency.schedule_cleanup()')->code, '55000', 'nor does a function of that name help');

# Schedules that nobody meant: refused by pg_cron, or only ever a schedule.
foreach my $schedule ('', ' ', 'x', '* * *', '61 * * * *', '* * * * * *; DROP TABLE idempotency.policies',
	"'); DROP TABLE idempotency.policies; --", "* * * * *'", "0 * * * *', 'SELECT 1'); --", '$1', '0 * * * *; x', 'x' x 5000)
{
	my $result = $wire->execute('SELECT idempotency.schedule_cleanup($1)', $schedule);
	my $shown = length $schedule > 50 ? substr($schedule, 0, 20) . '...' : $schedule;

	# pg_cron is lenient with what follows the fifth field.
	$result->code eq ''
	  ? is($result->value, $job, "no more than a schedule: $shown")
	  : isnt($result->code, '42601', "refused, and not as SQL: $shown");
	is_deeply([ map { [ @$_[1 .. 4] ] } @{ jobs() } ],
		[ [ 'CALL idempotency.maintain()', 'postgres', 't', 'idempotency-cleanup' ] ], "the job does what it did: $shown");
}
isnt($wire->execute('SELECT idempotency.schedule_cleanup($1)', $_)->code, '', "refused: $_")
  foreach '', 'x', '* * *', '61 * * * *';
is($wire->ok("SELECT idempotency.schedule_cleanup('* * * * *')")->value, $job, 'scheduled again: the same job');
is($wire->ok("SELECT to_regclass('idempotency.policies') IS NOT NULL")->value, 't', 'the tables are there');

# Whose job it is.
my $other = Connection->connect($node, user => 'other');
is($other->query('SELECT idempotency.schedule_cleanup()')->code, '42501', 'who was granted nothing schedules nothing');
$wire->ok("SELECT idempotency.grant_operator('other'); SELECT has_function_privilege('other', 'idempotency.schedule_cleanup(text)', 'EXECUTE')");
if ($wire->ok("SELECT has_function_privilege('other', 'idempotency.schedule_cleanup(text)', 'EXECUTE')")->value eq 't')
{
	is($other->query('SELECT idempotency.schedule_cleanup()')->code, '42501', 'nor does an operator without a privilege on pg_cron');
}
$wire->ok('GRANT USAGE ON SCHEMA idempotency, cron TO other; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA cron TO other;
	GRANT EXECUTE ON FUNCTION idempotency.schedule_cleanup, idempotency.unschedule_cleanup TO other;
	GRANT SELECT ON cron.job TO other');
is($other->ok('SELECT idempotency.unschedule_cleanup()')->value, 'f', 'nobody removes the job of another');
is(scalar @{ jobs() }, 1, 'it is still there');
$other->ok('SELECT idempotency.schedule_cleanup()');
is_deeply(jobs()->[1], [ '0 * * * *', 'CALL idempotency.maintain()', 'postgres', 'f', 'idempotency-cleanup' ], 'the default: hourly, as whoever asked');
is($other->ok('SELECT idempotency.unschedule_cleanup()')->value, 't', 'and their own is theirs to remove');
is(scalar @{ jobs() }, 1, 'only that');

# What the caller's path offers is not called.
$wire->ok(q{CREATE SCHEMA evil; CREATE FUNCTION evil.bool_or(bool) RETURNS bool LANGUAGE sql AS 'SELECT 1/0 = 1';
	SET search_path = evil, pg_catalog});
is($wire->ok("SELECT idempotency.schedule_cleanup('* * * * *')")->value, $job, 'whatever the search_path');
$wire->ok('RESET search_path');

foreach my $case ([ 'over a connection', $node ], [ 'in a background process', $background ])
{
	my ($what, $server) = @$case;
	my $look = Connection->connect($server);

	ok(wait_until(sub { $look->ok("SELECT count(*) FROM cron.job_run_details WHERE status IN ('succeeded', 'failed')")->value > 0 }),
		"$what: the job ran");
	is($look->ok('SELECT status FROM cron.job_run_details ORDER BY runid LIMIT 1')->value, 'succeeded', "$what: it succeeded")
	  or diag($look->ok('SELECT return_message FROM cron.job_run_details ORDER BY runid LIMIT 1')->value);
	is(keys_left($server, 'postgres'), 0, "$what: the keys are deleted");
	is_deeply($look->ok('SELECT started_by, deleted FROM idempotency.cleanup_runs ORDER BY id LIMIT 1')->rows->[0],
		[ 'maintain', 100 ], "$what: and the run is recorded");
}

is($wire->ok('SELECT idempotency.unschedule_cleanup()')->value, 't', 'unscheduled');
is($wire->ok('SELECT idempotency.unschedule_cleanup()')->value, 'f', 'there is no job any more');
is_deeply(jobs(), [], 'none at all');

$_->stop foreach $node, $background;
done_testing();
