
# Clean-up makes way for whoever wants its database: DROP, RENAME, SET
# TABLESPACE and CREATE DATABASE ... TEMPLATE succeed during a run. So does DROP
# EXTENSION, and the run ends quietly.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

# A run through 40,000 keys takes ten minutes.
my $node = new_preloaded_server('making_way', conf => <<'EOC');
idempotency.cleanup_batch_size = 10
idempotency.cleanup_pause = 150ms
restart_after_crash = on
EOC
my $place = PostgreSQL::Test::Utils::tempdir('place');
my $tablespaces = $node->safe_psql('postgres', "CREATE TABLESPACE elsewhere LOCATION '$place'; SELECT 1");

# The server waits five seconds for others to leave a database, which a busy
# machine may need to run the one that has to. So it may be asked again; without
# making way it would be refused for all of the ten minutes.
sub succeeds
{
	my ($command) = @_;
	my $result;

	foreach (1 .. 6)
	{
		$result = Connection->connect($node)->query($command);
		last unless $result->code eq '55006';
	}
	diag($result->message) if $result->code;
	return $result->code eq '';
}

# Of the log, but for those refusals.
sub troubles_but_refusals
{
	my ($from) = @_;

	return grep { !/is being accessed by other users/ } troubles($node, $from);
}

foreach my $case (
	[ 'DROP DATABASE', 'DROP DATABASE dropped', 'dropped' ],
	[ 'CREATE DATABASE ... TEMPLATE', 'CREATE DATABASE copy TEMPLATE copied', 'copied' ],
	[ 'ALTER DATABASE ... RENAME', 'ALTER DATABASE renamed RENAME TO another', 'renamed', 'another' ],
	[ 'ALTER DATABASE ... SET TABLESPACE', 'ALTER DATABASE moved SET TABLESPACE elsewhere', 'moved' ])
{
	my ($name, $command, $database, $called) = @$case;
	my $log = -s $node->logfile;

	new_database($node, $database, 40_000);
	my $pid = slow_run($node, $database);

	ok(succeeds($command), "$name during a run");
	ok(wait_until(sub { !kill 0, $pid }), "$name: the process has left");
	is(scalar(troubles_but_refusals($log)), 0, "$name: nothing in the log") or diag(troubles($node, $log));
	$called //= $database;
	next if $name eq 'DROP DATABASE';
	isnt(keys_left($node, $called), 0, "$name: it left with work undone");
	cmp_ok($node->safe_psql($called, 'SELECT count(*) FROM idempotency.idempotency_keys'), '<', 40_000, "$name: and some of it done");
	# Or the next round would be busy there.
	succeeds("DROP DATABASE IF EXISTS $_") foreach $called, 'copy';
}

# During a run that begins over and over.
new_database($node, 'busy', 40_000);
my $wire = Connection->connect($node);
foreach my $i (1 .. 3)
{
	$wire->ok('SELECT idempotency.request_cleanup()');
	ok(succeeds("CREATE DATABASE copy$i TEMPLATE busy"), "copied while a process may be starting there, $i");
	ok(succeeds("DROP DATABASE copy$i"), "and the copy dropped, $i");
}
succeeds('DROP DATABASE busy');

# DROP DATABASE ... FORCE ends the process.
new_database($node, 'forced', 40_000);
slow_run($node, 'forced');
is(Connection->connect($node)->query('DROP DATABASE forced WITH (FORCE)')->code, '', 'DROP DATABASE ... WITH (FORCE)');

# Both kinds of DROP EXTENSION: between batches, and while a batch waits.
new_database($node, 'without', 40_000);
my $pid = slow_run($node, 'without');
my $log = -s $node->logfile;
is_within(60, sub { Connection->connect($node, database => 'without')->query('DROP EXTENSION idempotency')->code eq '' },
	'DROP EXTENSION during a run');
ok(wait_until(sub { !kill 0, $pid }), 'DROP EXTENSION: the process has left');
is(scalar(troubles_but_refusals($log)), 0, 'DROP EXTENSION: nothing in the log') or diag(troubles($node, $log));
unlike(server_log($node, $log), qr/idempotency clean-up of database .* failed/, 'DROP EXTENSION: no failure');

my $owner = Connection->connect($node, database => 'without');
$owner->ok('CREATE EXTENSION idempotency');
fill_with_expired($node, 'without', 40_000);
$pid = slow_run($node, 'without');
$log = -s $node->logfile;
$owner->ok('BEGIN; DROP EXTENSION idempotency');
my $watch = Connection->connect($node);
ok(wait_until(sub { ($watch->ok("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $pid")->value // '') eq 't' }),
	'a batch waits for a DROP EXTENSION that is not committed');
$owner->ok('COMMIT');
ok(wait_until(sub { !kill 0, $pid }), 'and leaves when it is');
is($node->safe_psql('postgres', 'SELECT 1'), 1, 'the server is well');
unlike(server_log($node, $log), qr/PANIC|terminated by signal|TRAP/, 'nothing crashed');

$owner->ok('CREATE EXTENSION idempotency');
ok(cleaned_again($node, 'without'), 'after CREATE EXTENSION it is cleaned again');
# The launcher says what it learns of a run when that has left, but before the next.
unlike(server_log($node, $log), qr/idempotency clean-up of database .* failed/, 'nor was it a failure');
note(server_log($node, $log));

$node->stop;
done_testing();
