
# From one release to the next while it is used. The next one is made up: t/upgrade
# has its script and its source. Old library under new objects, new library under
# old ones, and both at a time in different connections: calls of 1.0 go on, and what
# is not there says so.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use File::Copy;
use Extension;
use Installation;
use PostgreSQL::Test::Cluster;
use Test::More;

my $installation = Installation->new;
my $old = "$installation->{pkglibdir}/idempotency.so";
my $kept = PostgreSQL::Test::Utils::tempdir('old') . '/idempotency.so';
my $next = $installation->build_with("$FindBin::RealBin/upgrade/next.c");
my $node = PostgreSQL::Test::Cluster->new('upgrade', install_path => $installation->path);
my $missing = qr/could not find function "idempotency_next" in file/;

copy($old, $kept) or die;
$node->init;
$node->append_conf('postgresql.conf', "log_statement = none\n");
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION idempotency');

sub version { return $_[0]->ok("SELECT extversion FROM pg_extension WHERE extname = 'idempotency'")->value; }

# Whether a connection can do what 1.0 promises: all outcomes, on keys of its own.
my $story = 0;

sub works
{
	my ($c, $name) = @_;
	my $key = 'works ' . ++$story;
	my @said;

	foreach my $body ('first', 'second')
	{
		$c->ok('BEGIN');
		push @said, $c->execute(q{SELECT outcome FROM idempotency.claim('u', 'op', $1, $2)}, $key, '{"a": 1}')->value;
		$c->execute(q{SELECT idempotency.complete('u', 'op', $1, 200, $2) IS NOT NULL}, $key, $body)
		  if $said[-1] eq 'claimed';
		$c->ok('COMMIT');
	}
	push @said, replay_of($c, 'u', 'op', $key);
	push @said, $c->execute(q{SELECT outcome FROM idempotency.claim('u', 'op', $1, '{"a": 2}')}, $key)->value;
	my $token = $c->execute(q{SELECT token FROM idempotency.claim('u', 'op', $1, lease => '1 hour')}, "$key leased")->value;
	push @said, $c->execute(q{SELECT outcome FROM idempotency.claim('u', 'op', $1, lease => '1 hour')}, "$key leased")->value;
	$c->execute(q{SELECT idempotency.hold('u', 'op', $1, 'why', $2)}, "$key leased", $token);
	push @said, status_of($c, 'u', 'op', "$key leased");
	push @said, $c->execute(q{SELECT idempotency.once('u', 'op', $1)}, "$key once")->value;
	push @said, $c->execute(q{SELECT idempotency.once('u', 'op', $1)}, "$key once")->value;
	is(join(' ', @said), 'claimed replay first mismatch in_progress held t f', $name);
	return;
}

# One of each kind that an update meets: a claim in an open transaction, a claim
# that is committed, plans that are cached.
my ($open, $leased, $planned, $other) = map { Connection->connect($node) } 1 .. 4;

$open->ok(q{BEGIN; SELECT outcome FROM idempotency.claim('u', 'op', 'open')});
my $token = $leased->ok(q{SELECT token FROM idempotency.claim('u', 'op', 'leased', lease => '1 hour')})->value;
$planned->ok(q{PREPARE claim AS SELECT outcome FROM idempotency.claim('u', 'op', $1);
	PREPARE complete AS SELECT idempotency.complete('u', 'op', $1, 200, 'planned') IS NOT NULL});
$planned->ok("BEGIN; EXECUTE claim('plan $_'); EXECUTE complete('plan $_'); COMMIT") foreach 1 .. 10;

# ---- new objects, old library ----------------------------------------------------

$installation->install_script("$FindBin::RealBin/upgrade/idempotency--1.0--1.1.sql", '1.1');
like($other->query('ALTER EXTENSION idempotency UPDATE')->message, $missing, 'the old library is told apart');
is(version($other), '1.0', '... and nothing has changed');
works($other, '... and works');

# ---- new library, old objects ----------------------------------------------------

$installation->install_library($next);
my $new = Connection->connect($node);
works($new, 'new library, old objects');
works($other, 'old library, beside the new one');
# They exclude each other.
is($new->ok(q{SELECT outcome FROM idempotency.claim('u', 'op', 'open', lease => '1 hour')})->value,
	'in_progress', 'a claim of the old library is seen by the new one');

# ---- the update ------------------------------------------------------------------

$new->start('ALTER EXTENSION idempotency UPDATE');
ok(wait_until(sub { $other->ok('SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = ' . $new->pid)->value }),
	'the update waits for the open transaction');
$open->ok(q{SELECT idempotency.complete('u', 'op', 'open', 200, 'from before') IS NOT NULL; COMMIT});
is($new->finish->code // '', '', 'the update');
is(version($new), '1.1', 'its version');
is($new->ok('SELECT idempotency.next()')->value, 11, 'its call');
is(replay_of($new, 'u', 'op', 'open'), 'from before', 'the claim that was open is completed');
is($leased->query("SELECT idempotency.complete('u', 'op', 'leased', 200, 'by token', token => $token) IS NOT NULL")->code // '',
	'', 'the claim that was committed is completed');
is(replay_of($new, 'u', 'op', 'leased'), 'by token', '... and recorded');
is($planned->query("BEGIN; EXECUTE claim('plan 1'); EXECUTE claim('plan 11'); EXECUTE complete('plan 11'); COMMIT")->code // '',
	'', 'the plans that were cached');
is(replay_of($new, 'u', 'op', "plan $_"), 'planned', "... key $_") foreach 1, 11;
works($new, 'new library, new objects');
works($_, 'old library, new objects') foreach $open, $leased, $planned, $other;
like($other->query('SELECT idempotency.next()')->message, $missing, 'a call that the old library lacks says so');

# ---- back to the old library, and preloaded -----------------------------------------

$installation->install_library($kept);
my $back = Connection->connect($node);
works($back, 'back to the old library');
like($back->query('SELECT idempotency.next()')->message, $missing, '... which says what it lacks');
$_->close(terminate => 1) foreach $open, $leased, $planned, $other, $new, $back;

$node->append_conf('postgresql.conf', "shared_preload_libraries = 'idempotency'\n");
$node->restart;
$installation->install_library($next);
my $preloaded = Connection->connect($node);
works($preloaded, 'preloaded: the old library until the server restarts');
like($preloaded->query('SELECT idempotency.next()')->message, $missing, '... which says what it lacks');
$preloaded->close(terminate => 1);
$node->restart;
$preloaded = Connection->connect($node);
works($preloaded, 'preloaded: the new library after that');
is($preloaded->ok('SELECT idempotency.next()')->value, 11, '... with its call');
is($preloaded->ok(q{SELECT version FROM pg_get_loaded_modules() WHERE module_name = 'idempotency'})->value, '1.0', '... and says what it is')
  if $node->pg_version >= 18;
$preloaded->close(terminate => 1);

unlike(server_log($node), qr/PANIC|terminated by signal/, 'no crash');
$node->stop;
done_testing();
