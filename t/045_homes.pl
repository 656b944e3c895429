
# Where scopes have homes (idempotency.home_table), whoever decides about a key does
# so at its scope's home, and is refused everywhere else: also when the scope has just
# moved, by a transaction that is older, and by one that waited for the move. A move
# waits for open claims. Keys move along with export_scopes() and import_key(): under
# load nothing is executed twice, and nothing is lost.
#
# Two databases are the two nodes, with a stand-in for Citus (lib/StandIn.pm).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use StandIn;
use Test::More;
use Time::HiRes qw(sleep);

my $node = new_server('homes', conf => "max_connections = 40\nlog_line_prefix = '%m [%p] '\n");
my $plain = Connection->connect($node);
my $set = 'idempotency.home_table';

sub refused
{
	my ($result, $message, $title) = @_;

	is($result->code, '55000', "$title: is refused");
	like($result->message, $message, "$title: says why");
	return;
}

# ---- the setting, without Citus ------------------------------------------------

$plain->ok("SELECT idempotency.once('s', 'op', 'loaded')");
is($plain->query("SET $set = '$_'")->code, '22023', "no name of a table: $_") foreach 'tenants', 'a.b.c', 'a.', '.';
$plain->ok("SET $set = 'public.tenants'");
my $none = $plain->query("SELECT outcome FROM idempotency.claim('s', 'op', 'k')");
refused($none, qr/names no table that says where a scope is at home/, 'no Citus');
like($none->detail, qr/Citus is not installed/, 'no Citus: the detail');
isnt($none->hint, '', 'no Citus: a hint');
is_deeply($plain->ok("SELECT status, detail ~ 'Citus is not installed' FROM idempotency.health() WHERE check_name = 'home'")->rows, [ [ 'critical', 't' ] ], 'no Citus: health()');
$plain->ok("SET $set = ''");
is($plain->ok("SELECT count(*) FROM idempotency.health() WHERE check_name = 'home'")->value, 0, 'neither: nothing to say');
is($plain->ok("SELECT outcome FROM idempotency.claim('s', 'op', 'k', lease => '1 h')")->value, 'claimed', 'neither: nothing is refused');

# ---- the guard --------------------------------------------------------------------

$plain->close(terminate => 1);
my $cluster = StandIn->new($node);
my $here = $cluster->scope_of(0);
my $away = $cluster->scope_of(1);

$plain = Connection->connect($node);
is_deeply($plain->ok("SELECT status, detail ~ 'is not set' FROM idempotency.health() WHERE check_name = 'home'")->rows, [ [ 'warn', 't' ] ], 'not set: health()');
$node->safe_psql('postgres', "ALTER DATABASE $_ SET $set = 'public.tenants'") foreach @StandIn::names;
$node->safe_psql('postgres', q{CREATE ROLE app LOGIN});
$node->safe_psql($_, q{SELECT idempotency.grant_usage('app')}) foreach @StandIn::names;

my ($first, $second) = map { $cluster->connect($_) } @StandIn::names;
my $app = $cluster->connect('postgres', user => 'app');

# Every call that decides about a key.
my %calls = (
	claim => q{SELECT outcome FROM idempotency.claim('%s', 'op', 'k', lease => '1 h')},
	run => q{SELECT outcome FROM idempotency.run('%s', 'op', 'run', 'SELECT 1')},
	once => q{SELECT idempotency.once('%s', 'op', 'once')},
	once_batch => q{SELECT first FROM idempotency.once_batch('%s', 'op', '{a,b}')},
	record_failure => q{SELECT idempotency.record_failure('%s', 'op', 'failed')},
	complete => q{SELECT idempotency.complete('%s', 'op', 'k', 200, token => 1)},
	fail => q{SELECT idempotency.fail('%s', 'op', 'k', token => 1)},
	release => q{SELECT idempotency.release('%s', 'op', 'k', token => 1)},
	extend => q{SELECT idempotency.extend('%s', 'op', 'k', token => 1)},
	checkpoint => q{SELECT idempotency.checkpoint('%s', 'op', 'k', 'p', token => 1)},
	hold => q{SELECT idempotency.hold('%s', 'op', 'k', token => 1)},
	resolve => q{SELECT idempotency.resolve('%s', 'op', 'k', 'forget')},
	forget => q{SELECT idempotency.forget('%s', 'op', 'none')},
	forget_scope => q{SELECT idempotency.forget_scope('%s')},
	redact => q{SELECT idempotency.redact('%s', 'op', 'none')},
	redact_scope => q{SELECT idempotency.redact_scope('%s')},
	import_completed => q{SELECT idempotency.import_completed('%s', 'op', 'imported')});
foreach my $call (sort keys %calls)
{
	my $result = $first->query(sprintf $calls{$call}, $away);

	refused($result, qr/not kept on this node/, $call);
	isnt($result->hint, '', "$call: a hint");
	unlike($first->query(sprintf $calls{$call}, $here)->message, qr/not kept on this node/, "$call: at home it is not refused for that");
	unlike($second->query(sprintf $calls{$call}, $away)->message, qr/not kept on this node/, "$call: nor over there");
}
is($app->query(sprintf $calls{once}, $away)->code, '55000', 'who has no privilege but to call, too');
is($first->query("SELECT count(*) FROM idempotency.lookup('$away', 'op', 'k')")->value, 0, 'reading is not refused');
is($first->query("SELECT outcome FROM idempotency.claim('$here', 'op', 'mine')")->code, 'IK004', 'at home: what is not completed is found as ever');

# Every scope is at home on one of the two.
my %homes;
foreach my $number (1 .. 100)
{
	my @codes = map { $_->query("SELECT idempotency.once('many $number', 'op', 'k')")->code } $first, $second;

	$homes{"@codes"}++;
	is($codes[ $cluster->shard_of("many $number") % 2 ], '', "many $number: at home");
}
is_deeply([ sort keys %homes ], [ ' 55000', '55000 ' ], 'each scope is at home on one node');

# ---- what cannot be told ------------------------------------------------------------

$cluster->distribute('numbers', 'int4', 8);
my $numbers = $cluster->connect('postgres');
$numbers->ok("SET $set = 'public.numbers'");
my %answers = map { ($numbers->query("SELECT idempotency.once('$_', 'op', 'k')")->code => 1) } 1 .. 40;
is_deeply([ sort keys %answers ], [ '', '55000' ], 'an integer column: some at home, some not');
is($numbers->query("SELECT idempotency.once('$_', 'op', 'k')")->code, $numbers->query("SELECT idempotency.once('  $_ ', 'op', 'k')")->code, "two spellings of $_ have one home") foreach 1 .. 5;
my $no_value = $numbers->query("SELECT idempotency.once('very secret scope', 'op', 'k')");
refused($no_value, qr/the scope is no value of the column/, 'no value of the column');
like($no_value->detail, qr/type integer/, 'no value of the column: the detail');
is($numbers->query('SELECT 1')->value, 1, 'the connection goes on');
$numbers->ok('BEGIN; SAVEPOINT s');
is($numbers->query("SELECT idempotency.once('no number', 'op', 'k')")->code, '55000', 'in a savepoint');
$numbers->ok('ROLLBACK TO s');
$numbers->ok('COMMIT');

my $admin = $cluster->connect('postgres');
$admin->ok('SET allow_system_table_mods = on');
foreach my $change (
	[ "partmethod = 'r'", 'distributed by range' ],
	[ "partmethod = 'n', partkey = NULL, repmodel = 't'", 'a reference table' ])
{
	$admin->ok("BEGIN; UPDATE pg_dist_partition SET $change->[0] WHERE logicalrelid = 'numbers'::regclass; COMMIT");
	refused($numbers->query("SELECT idempotency.once('1', 'op', 'k')"), qr/names no table/, $change->[1]);
}
# A table of one shard is the home of all scopes.
$admin->ok(q{UPDATE pg_dist_partition SET partmethod = 'n', partkey = NULL, repmodel = 's', colocationid = 0 WHERE logicalrelid = 'numbers'::regclass;
	DELETE FROM pg_dist_shard WHERE shardid > 8000 AND logicalrelid = 'numbers'::regclass;
	UPDATE pg_dist_shard SET shardminvalue = NULL, shardmaxvalue = NULL WHERE logicalrelid = 'numbers'::regclass});
is($numbers->query("SELECT idempotency.once('any scope', 'op', 'k $_')")->code, '', "one shard, here: $_") foreach 1, 2;
$admin->ok('UPDATE pg_dist_placement SET groupid = 2 WHERE shardid = 8000');
is($numbers->query("SELECT idempotency.once('any scope', 'op', 'k')")->code, '55000', 'one shard, elsewhere');
$numbers->ok("SET $set = 'public.none'");
refused($numbers->query("SELECT idempotency.once('1', 'op', 'k')"), qr/names no table/, 'no such table');
$numbers->ok("SET $set = 'public.tenants'");
is($numbers->query("SELECT idempotency.once('$here', 'op', 'again')")->code, '', 'another table is taken at once');
is($numbers->query("SELECT idempotency.once('$away', 'op', 'again')")->code, '55000', 'whatever it says');
$numbers->ok("RESET $set");

unlike(join('', grep { !/STATEMENT|CONTEXT/ } split /^/, server_log($node)), qr/very secret|\Q$away\E/, 'no message shows a scope');

# The library is not preloaded: nobody gets round the setting by what he says before
# it is loaded.
foreach my $way ("-c $set=", "-c $set=public.other", "-c $set=nonsense")
{
	is($cluster->connect('postgres', user => 'app', options => $way)->query("SELECT idempotency.once('$away', 'op', 'k')")->code, '55000', "not by an option: $way");
}
my $sneaky = $cluster->connect('postgres', user => 'app');
$sneaky->ok("SET $set = ''");
is($sneaky->query("SELECT idempotency.once('$away', 'op', 'k')")->code, '55000', 'not by SET before the first call');
is($sneaky->query("SET $set = ''")->code, '42501', 'nor after it');

# ---- what changes --------------------------------------------------------------------

# A placement that changes is known to the next call, in an old transaction, too.
my $old = $cluster->connect('postgres');
$old->ok("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_dist_placement");
is($old->query("SELECT idempotency.once('$here', 'op', 'old 1')")->code, '', 'an old transaction');
$old->ok('COMMIT');
$old->ok("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_dist_placement");
$admin->ok(StandIn::move_sql(0, 2) . '; COMMIT');
is($old->query("SELECT idempotency.once('$here', 'op', 'old 2')")->code, '55000', 'does not go by its snapshot');
$old->ok('ROLLBACK');
is($first->query("SELECT idempotency.once('$here', 'op', 'moved')")->code, '55000', 'a connection that knew better learns');
$admin->ok(StandIn::move_sql(0, 1) . '; COMMIT');
is($first->query("SELECT idempotency.once('$here', 'op', 'moved back')")->code, '', 'and learns again');
# What has no active placement here is not here.
$admin->ok('UPDATE pg_dist_placement SET shardstate = 4 WHERE shardid = 7000');
is($first->query("SELECT idempotency.once('$here', 'op', 'inactive')")->code, '55000', 'a placement that is no more in use');
$admin->ok('UPDATE pg_dist_placement SET shardstate = 1 WHERE shardid = 7000');
# The node gets another number.
$admin->ok('UPDATE pg_dist_local_group SET groupid = 5; ALTER TABLE pg_dist_local_group SET (fillfactor = 100)');
is($first->query("SELECT idempotency.once('$here', 'op', 'renumbered')")->code, '55000', 'the node has another number');
$admin->ok('UPDATE pg_dist_local_group SET groupid = 1; ALTER TABLE pg_dist_local_group SET (fillfactor = 100)');
is($first->query("SELECT idempotency.once('$here', 'op', 'renumbered')")->code, '', 'and its own again');

# ---- moves and open claims ---------------------------------------------------------------

# Whether a connection waits for a lock; false once it has its answer.
sub waits
{
	my ($connection) = @_;
	my $waiting = 0;

	wait_until(sub {
		Connection::next_of(0, $connection);
		$waiting = $admin->ok("SELECT count(*) FROM pg_stat_activity WHERE pid = @{[$connection->pid]} AND wait_event_type = 'Lock'")->value;
		return $waiting || !$connection->busy;
	});
	return $waiting;
}

# A move waits for an open claim, and who comes meanwhile waits for the move.
my $mover = $cluster->connect('postgres');
my $late = $cluster->connect('postgres');
foreach my $way ('complete', 'rollback')
{
	$first->ok("BEGIN; SELECT FROM idempotency.claim('$here', 'op', 'open $way')");
	$mover->start(StandIn::move_sql(0, 2));
	ok(waits($mover), "$way: the move waits for the open claim");
	$late->start("SELECT idempotency.once('$here', 'op', 'late $way')");
	ok(waits($late), "$way: who comes after it waits for the move");
	$first->ok($way eq 'complete' ? "SELECT idempotency.complete('$here', 'op', 'open complete', 200); COMMIT" : 'ROLLBACK');
	is($mover->finish->code, '', "$way: the move goes on with its end");
	$mover->ok('COMMIT');
	is($late->finish->code, '55000', "$way: who waited for the move is refused");
	$admin->ok(StandIn::move_sql(0, 1) . '; COMMIT');
}
$first->ok("BEGIN; SAVEPOINT s; SELECT FROM idempotency.claim('$here', 'op', 'savepoint'); ROLLBACK TO s");
is($mover->query(StandIn::move_sql(0, 1) . '; ROLLBACK')->code, '', 'a claim that was rolled back keeps no move waiting');
$first->ok('ROLLBACK');

# A move that is rolled back.
$mover->ok(StandIn::move_sql(0, 2));
$late->start("SELECT idempotency.once('$here', 'op', 'not moved')");
ok(waits($late), 'a move that fails: who comes meanwhile waits');
$mover->ok('ROLLBACK');
is($late->finish->value, 't', 'a move that fails: and goes on');

# Who waits for a rival does not keep the move from its end, which the rival has to
# wait for.
my $token = $first->ok("SELECT token FROM idempotency.claim('$here', 'op', 'rival', lease => '1 h')")->value;
$late->start("SELECT outcome FROM idempotency.claim('$here', 'op', 'rival', wait => '1 min')");
wait_until(sub { $admin->ok("SELECT count(*) FROM pg_stat_activity WHERE pid = @{[$late->pid]} AND wait_event_type IN ('Extension', 'IPC')")->value > 0 })
  or fail('does not wait');
is($mover->query(StandIn::move_sql(0, 2))->code, '', 'a move does not wait for who waits for a lease');
$mover->ok('ROLLBACK');
$first->ok("SELECT idempotency.complete('$here', 'op', 'rival', 200, 'done', token => $token)");
is($late->finish->value, 'replay', 'who waited gets the answer');

# claim_abandoned() leaves what a move has left behind. Scopes that were claimed
# under other tables are none of that.
$plain = Connection->connect($node);
$plain->ok(q{SET idempotency.home_table = ''; SELECT count(idempotency.forget_scope(scope, true)) FROM (SELECT DISTINCT scope FROM idempotency.idempotency_keys) AS s});
$first->ok("SELECT FROM idempotency.claim('$here', 'op', 'abandoned', lease => '1 microsecond')");
$admin->ok(StandIn::move_sql(0, 2) . '; COMMIT');
is($first->ok(q{SELECT count(*) FROM idempotency.claim_abandoned()})->value, 0, 'claim_abandoned(): not elsewhere');
is_deeply($first->ok("SELECT status, value FROM idempotency.health() WHERE check_name = 'home'")->rows, [ [ 'warn', 1 ] ], 'health(): the scope that was left behind');
$admin->ok(StandIn::move_sql(0, 1) . '; COMMIT');
is($first->ok(q{SELECT count(*) FROM idempotency.claim_abandoned()})->value, 1, 'claim_abandoned(): at home');
is_deeply($first->ok("SELECT status, value FROM idempotency.health() WHERE check_name = 'home'")->rows, [ [ 'ok', 0 ] ], 'health(): none is left behind');

# ---- export --------------------------------------------------------------------------------

my ($minimum, $maximum) = StandIn::bounds(0);

$first->ok("SELECT idempotency.once('$here', 'op', 'completed')");
my $export = "SELECT k::text FROM idempotency.export_scopes(minimum => $minimum, maximum => $maximum) AS k";

# An export waits for open claims, and keeps others away until its transaction ends.
$first->ok("BEGIN; SELECT FROM idempotency.claim('$here', 'op', 'exported')");
$mover->ok('BEGIN');
$mover->start($export);
ok(waits($mover), 'an export waits for an open claim');
$first->ok("SELECT idempotency.complete('$here', 'op', 'exported', 200, 'first'); COMMIT");
my $rows = $mover->finish->rows;
is(scalar(grep { $_->[0] =~ /exported/ } @$rows), 1, 'and has what it has committed');
is(scalar(grep { $_->[0] =~ /\Q$away\E/ } @$rows), 0, 'and no scope of another shard');
$late->start("SELECT idempotency.once('$here', 'op', 'while exported')");
ok(waits($late), 'an export keeps others away');
is($second->query("SELECT idempotency.once('$away', 'op', 'meanwhile')")->code, '', 'but not from other scopes');
$mover->ok('COMMIT');
is($late->finish->code, '', 'until it ends');
# By their names it is the same.
$mover->ok("BEGIN; SELECT FROM idempotency.export_scopes(ARRAY['$here'])");
$late->start("SELECT idempotency.once('$here', 'op', 'while exported by name')");
ok(waits($late), 'an export by name keeps others away');
is($second->query("SELECT idempotency.once('$away', 'op', 'meanwhile, again')")->code, '', 'but not from other scopes');
$mover->ok('COMMIT');
is($late->finish->code, '', 'until it ends');
is($mover->query("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; $export")->code, '55000', 'an export needs the latest keys');
$mover->query('ROLLBACK');
is($mover->query("BEGIN; SELECT FROM idempotency.claim('$here', 'op', 'own'); $export")->code, '55006', 'an export of what is not written yet');
$mover->query('ROLLBACK');

# Within a move that is about to end: whoever has the lock keeps others away.
$mover->ok(StandIn::move_sql(0, 2));
is(scalar @{ $late->query($export)->rows } > 0, 1, 'an export does not wait for the move that it is a part of');
$mover->ok('ROLLBACK');

# What is left behind, and nothing else, is forgotten.
my $forget = "SELECT idempotency.forget_exported(minimum => $minimum, maximum => $maximum)";
refused($first->query($forget), qr/at home on this node/, 'forget_exported() at home');
refused($first->query("SELECT idempotency.forget_exported(ARRAY['$here'])"), qr/at home on this node/, 'forget_exported() of a scope at home');
refused($plain->query("SET $set = ''; $forget"), qr/is not set/, 'forget_exported() without homes');
$plain->ok("RESET $set");
# A shard that comes back brings keys that are not to be forgotten.
$admin->ok(StandIn::move_sql(0, 2) . '; COMMIT');
$mover->ok(StandIn::move_sql(0, 1));
$late->start($forget);
ok(waits($late), 'forget_exported() waits for the end of a move to here');
$mover->ok('COMMIT');
is($late->finish->code, '55000', 'and is refused then');
is(scalar @{ $late->query($export)->rows } > 0, 1, 'and has forgotten nothing');

# ---- a move under load -----------------------------------------------------------------------

my $scopes = 24;
my $workers = 4;
my $per_worker = $ENV{HOMES_REQUESTS} || 300;
my $answers = $node->basedir . '/answers';
mkdir $answers;
$node->safe_psql($_, q{CREATE TABLE work (scope text, key text, done_at timestamptz DEFAULT clock_timestamp())}) foreach @StandIn::names;

# One request: sent where its scope was last seen, and elsewhere once it is refused.
# Returns what the client was told, and how often it was sent on.
sub request
{
	my ($connections, $believed, $scope, $key, $leased) = @_;
	my $sent_on = 0;
	my $token;

	for (;;)
	{
		my $wire = $connections->[ $believed->{$scope} //= 0 ];
		my $claim = $wire->query(qq{BEGIN; SELECT outcome, token, response_body FROM idempotency.claim('$scope', 'op', '$key', claim_id => '$leased->{id}', wait => '20 s'}
			  . ($leased->{on} ? ", lease => '1 h')" : ')'));
		my $row = $claim->row;

		if ($claim->code eq '' && $row->{outcome} eq 'claimed')
		{
			if ($leased->{on})
			{
				$wire->ok('COMMIT');
				# Work outside, while the scope may move: its owner goes on where it is.
				sleep rand 0.02;
				for (;;)
				{
					$wire = $connections->[ $believed->{$scope} ];
					$claim = $wire->query(qq{BEGIN; INSERT INTO work VALUES ('$scope', '$key'); SELECT idempotency.complete('$scope', 'op', '$key', 201, 'body $key', token => $row->{token}, refuse_repeat => true); COMMIT});
					last if $claim->code eq '';
					$wire->query('ROLLBACK');
					return ('error ' . $claim->code . ' ' . $claim->message, $sent_on) if $claim->code ne '55000';
					$believed->{$scope} = 1 - $believed->{$scope};
					$sent_on++;
				}
				return ('claimed', $sent_on);
			}
			$claim = $wire->query(qq{INSERT INTO work VALUES ('$scope', '$key'); SELECT idempotency.complete('$scope', 'op', '$key', 201, 'body $key'); COMMIT});
			return ($claim->code eq '' ? 'claimed' : 'error ' . $claim->code, $sent_on);
		}
		$wire->query('ROLLBACK');
		return ("replay", $sent_on) if $claim->code eq '' && $row->{outcome} eq 'replay' && $row->{response_body} eq "body $key";
		return ("error $claim->{error}{C} " . $claim->message . ($row->{outcome} // ''), $sent_on) if $claim->code ne '55000';
		$believed->{$scope} = 1 - $believed->{$scope};
		$sent_on++;
		sleep 0.001;
	}
}

sub work
{
	my ($number) = @_;
	my $connections = [ map { $cluster->connect($_) } @StandIn::names ];
	my %believed;

	srand 45 + $number;
	open my $told, '>', "$answers/$number" or die $!;
	foreach my $i (1 .. $per_worker)
	{
		my $scope = 'load ' . int rand $scopes;
		# A key is asked for by several workers, at about the same time and later.
		my $key = $scope . ' ' . int($i / 6 + rand 3);
		my $leased = { on => rand() < 0.4, id => sprintf('%08x-0000-4000-8000-%012x', $number, $i) };
		my ($outcome, $sent_on) = request($connections, \%believed, $scope, $key, $leased);

		print $told join("\t", $outcome, $scope, $key, $sent_on), "\n";
	}
	close $told;
	return 0;
}

my @children = map { my $number = $_; in_child(sub { work($number) }) } 1 .. $workers;

# Shards move to and fro meanwhile, with their keys.
my @nodes = map { $cluster->connect($_) } @StandIn::names;
my ($exporter, $importer) = map { [ map { $cluster->connect($_) } @StandIn::names ] } 1 .. 2;
my @at = map { $_ % 2 } 0 .. 7;
my ($moves, $moved, $failed) = (0, 0, 0);

sub move_shard
{
	my ($shard, $fails) = @_;
	my $from = $at[$shard];
	my $to = 1 - $from;
	my ($minimum, $maximum) = StandIn::bounds($shard);
	my $range = "minimum => $minimum, maximum => $maximum";

	$_->ok(StandIn::move_sql($shard, $to + 1)) foreach @nodes;
	my $rows = $exporter->[$from]->ok("SELECT k::text FROM idempotency.export_scopes($range) AS k")->rows;

	$importer->[$to]->ok('BEGIN');
	foreach my $row (@$rows)
	{
		my $result = $importer->[$to]->execute('SELECT idempotency.import_key($1::idempotency.idempotency_keys)', $row->[0]);

		die $result->code . ' ' . $result->message if $result->code ne '';
		$moved++ if $result->value eq 't';
	}
	$importer->[$to]->ok('COMMIT');
	if ($fails)
	{
		# What was imported stays behind there, until it is imported again.
		$_->ok('ROLLBACK') foreach @nodes;
		$failed++;
		return;
	}
	$_->ok('COMMIT') foreach rand() < 0.5 ? @nodes : reverse @nodes;
	$at[$shard] = $to;
	$exporter->[$from]->ok("SELECT idempotency.forget_exported($range)");
	$moves++;
	return;
}

srand 45;
my %left = map { $_ => 1 } @children;
while (%left)
{
	move_shard(int rand 8, rand() < 0.2);
	foreach my $pid (keys %left)
	{
		next if waitpid($pid, 1) != $pid;
		is($?, 0, 'a client came to its end');
		delete $left{$pid};
	}
}

my (%done, %told);
my $answered = 0;
my $sent_on = 0;
foreach my $number (1 .. $workers)
{
	foreach (split /^/, PostgreSQL::Test::Utils::slurp_file("$answers/$number"))
	{
		chomp;
		my ($outcome, $scope, $key, $times) = split /\t/;

		$answered++;
		$sent_on += $times;
		$told{ $outcome =~ s/ .*//r }++;
		note($_) if $outcome =~ /^error/;
		$done{$key} = $scope if $outcome =~ /claimed|replay/;
	}
}
my %worked;
foreach my $name (@StandIn::names)
{
	$worked{ $_->[0] } += $_->[1] foreach @{ $cluster->connect($name)->ok('SELECT key, count(*) FROM work GROUP BY key')->rows };
}
is($answered, $workers * $per_worker, 'every request was answered');
is($told{error} // 0, 0, 'none with an error');
is(scalar(grep { $worked{$_} > 1 } keys %worked), 0, 'nothing was executed twice');
is(scalar(grep { !$worked{$_} } keys %done), 0, 'nothing that was acknowledged is lost');
is(scalar(grep { !$done{$_} } keys %worked), 0, 'nothing was executed that nobody knows of');
my $gone = 0;
foreach my $key (keys %done)
{
	my $home = $at[ $cluster->shard_of($done{$key}) ];

	$gone++ if (replay_of($importer->[$home], $done{$key}, 'op', $key) // '') ne "body $key";
}
is($gone, 0, 'every answer is replayed at home');
cmp_ok($moves, '>', 0, 'shards were moved');
diag(sprintf '%d requests on %d keys, %d claimed, %d replayed, %d sent on; %d moves with %d keys, %d more failed',
	$answered, scalar keys %done, $told{claimed}, $told{replay}, $sent_on, $moves, $moved, $failed);

$node->stop;
done_testing;
