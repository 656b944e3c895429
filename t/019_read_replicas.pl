
# Looking on a standby: replay() may come too early there, and "not found" means only
# that this server does not know it yet. Who writes and then reads elsewhere takes the
# position in the WAL along and waits for it, bounded; or has the standby apply each
# commit before it returns (remote_apply).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Cluster;
use Test::More;

my $primary = new_server('primary', init => { allows_streaming => 1 });
my $p = Connection->connect($primary);

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
my $s = Connection->connect($standby);
my $major = int($p->ok('SHOW server_version_num')->value / 10000);

# Replay stands still; returns once it does.
sub pause_replay
{
	$s->ok('SELECT pg_wal_replay_pause()');
	return wait_until(sub { $s->ok('SELECT pg_get_wal_replay_pause_state()')->value eq 'paused' });
}

sub resume_replay { return $s->ok('SELECT pg_wal_replay_resume()'); }

my $number = 0;

# What a request does on the primary. Returns the key, and the position that its
# client takes along: what is flushed once COMMIT has returned, and no further. The end
# of what was merely inserted would be that of somebody else's transaction, perhaps,
# which may not be flushed for a while, and on an idle server it can lie past a page's
# header, where no replay gets before something more is written.
sub complete_one
{
	my ($connection) = @_;
	my $key = 'key ' . ++$number;

	$connection->ok("BEGIN; SELECT FROM idempotency.claim('replica', 'op', '$key')");
	$connection->ok("SELECT idempotency.complete('replica', 'op', '$key', 200, 'the answer to $key'); COMMIT");
	return ($key, $connection->ok('SELECT pg_current_wal_flush_lsn()')->value);
}

# Reads what was written, on 15 and later: asks how far the standby is until it is far
# enough, for so many seconds at most. undef is "not yet": then ask the primary.
sub replay_after
{
	my ($lsn, $seconds, $key) = @_;
	my $deadline = time + $seconds;

	while ($s->execute('SELECT pg_last_wal_replay_lsn() >= $1::pg_lsn', $lsn)->value ne 't')
	{
		return undef if time > $deadline;
		select undef, undef, undef, 0.01;
	}
	return replay_of($s, 'replica', 'op', $key);
}

# ---- too early -------------------------------------------------------------------

ok(pause_replay(), 'the standby stands still');
my ($key, $lsn) = complete_one($p);
is(replay_of($p, 'replica', 'op', $key), "the answer to $key", 'written: the primary replays it');
is(replay_of($s, 'replica', 'op', $key), undef, 'the standby does not find it');
is(status_of($s, 'replica', 'op', $key), 'absent', 'nor does lookup');
is($p->ok("SELECT outcome FROM idempotency.claim('replica', 'op', '$key')")->value, 'replay',
	'which is no permission: asked for one, the primary has the answer');
is($s->query("SELECT FROM idempotency.claim('replica', 'op', '$key')")->code, '25006', 'and the standby gives none');

# What it knows may be what was: in progress, though completed.
resume_replay();
my $token = $p->ok("SELECT token FROM idempotency.claim('replica', 'op', 'lease', lease => '1 hour')")->value;
is(replay_after($p->ok('SELECT pg_current_wal_flush_lsn()')->value, 60, $key), "the answer to $key", 'a moment later it is there');
ok(pause_replay(), 'the standby stands still again');
$p->ok("SELECT idempotency.complete('replica', 'op', 'lease', 200, 'done', token => $token)");
is(status_of($s, 'replica', 'op', 'lease'), 'in_progress', 'what is completed still seems to be in progress');

# ---- read your writes ---------------------------------------------------------------

($key, $lsn) = complete_one($p);
is(replay_after($lsn, 1, $key), undef, 'waiting for the position ends after its time, with no answer');
resume_replay();
is(replay_after($lsn, 60, $key), "the answer to $key", 'and with the answer once the standby is there');
my $missed = 0;
foreach (1 .. 200)
{
	($key, $lsn) = complete_one($p);
	$missed++ if (replay_after($lsn, 60, $key) // '') ne "the answer to $key";
}
is($missed, 0, 'with the position, every one of 200 answers is found');

SKIP:
{
	skip 'no WAIT FOR LSN before 19', 3 if $major < 19;
	pause_replay();
	($key, $lsn) = complete_one($p);
	is($s->ok("WAIT FOR LSN '$lsn' WITH (TIMEOUT '100ms', NO_THROW)")->value, 'timeout', 'WAIT FOR LSN ends after its time');
	resume_replay();
	is($s->ok("WAIT FOR LSN '$lsn' WITH (TIMEOUT '60s', NO_THROW)")->value, 'success', 'and succeeds once the standby is there');
	is(replay_of($s, 'replica', 'op', $key), "the answer to $key", 'which then has the answer');
}

# ---- remote_apply -------------------------------------------------------------------

my $name = $p->ok('SELECT application_name FROM pg_stat_replication')->value;
$p->ok("ALTER SYSTEM SET synchronous_standby_names = '\"$name\"'");
$p->ok('SELECT pg_reload_conf()');
ok(wait_until(sub { $p->ok('SELECT sync_state FROM pg_stat_replication')->value eq 'sync' }), 'the standby is synchronous');

# "on" waits until the standby has it on its disk, not until it can be seen there.
pause_replay();
$p->ok('SET synchronous_commit = on');
($key, $lsn) = complete_one($p);
is(replay_of($s, 'replica', 'op', $key), undef, 'synchronous_commit = on: committed, and not found on the synchronous standby');

$p->ok('SET synchronous_commit = remote_apply');
$key = 'key ' . ++$number;
$p->ok("BEGIN; SELECT FROM idempotency.claim('replica', 'op', '$key')");
$p->ok("SELECT idempotency.complete('replica', 'op', '$key', 200, 'applied')");
$p->start('COMMIT');
my $w = Connection->connect($primary);
ok(wait_until(sub { $w->ok("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")->value == 1 }), 'remote_apply: COMMIT waits');
is(replay_of($w, 'replica', 'op', $key), undef, 'and nobody sees the answer meanwhile');
is($w->ok("SELECT rival FROM idempotency.claim('replica', 'op', '$key')")->value, 'transaction', 'a rival is told that it is in progress');
resume_replay();
is($p->finish->code, '', 'it returns once the standby has applied it');
is(replay_of($s, 'replica', 'op', $key), 'applied', 'where it is found');
$missed = 0;
foreach (1 .. 200)
{
	($key) = complete_one($p);
	$missed++ if (replay_of($s, 'replica', 'op', $key) // '') ne "the answer to $key";
}
is($missed, 0, 'remote_apply: every one of 200 answers is found without waiting');

$_->stop foreach $standby, $primary;
done_testing();
