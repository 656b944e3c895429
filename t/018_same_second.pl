
# A failover that is faster than a second, or two machines whose clocks are apart: a
# new primary gives tokens in a second in which the old one has given some that were
# lost, from a sequence that gives their numbers again. No token is given twice all
# the same, and a lost claim's owner cannot complete its successor's claim. The old
# primary here goes on, as one does that was cut off and does not know.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Cluster;
use Test::More;

my $old = new_server('old', init => { allows_streaming => 1 });
my $o = Connection->connect($old);

$o->ok("SELECT FROM idempotency.claim('second', 'op', 'before', lease => '1 hour')");
$old->backup('backup');
my $new = PostgreSQL::Test::Cluster->new('new');
$new->init_from_backup($old, 'backup', has_streaming => 1);
$new->start;
$old->wait_for_catchup($new, 'replay', $old->lsn('insert'));

my $n = Connection->connect($new);
$n->ok("ALTER SYSTEM SET primary_conninfo = ''");
$n->ok('SELECT pg_reload_conf()');
ok(wait_until(sub { $n->ok('SELECT count(*) FROM pg_stat_wal_receiver')->value == 0 }), 'the standby is cut off');
$new->promote;
ok(wait_until(sub { $n->ok('SELECT NOT pg_is_in_recovery()')->value eq 't' }), 'and promoted');
$n = Connection->connect($new);

# One key after the other is claimed on both sides with the same number of the
# sequence, until both fall into one second.
my ($key, $lost, $token);
my $number = 1000;

ok( wait_until(
		sub {
			$key = 'key ' . ++$number;
			$_->ok("SELECT setval('idempotency.token_seq', $number, false)") foreach $o, $n;
			$_->start("SELECT token FROM idempotency.claim('second', 'op', '$key', lease => '1 hour')") foreach $o, $n;
			($lost, $token) = map { $_->finish->value } $o, $n;
			return $lost >> 20 == $token >> 20;
		}),
	'two claims of a key in one second');
my $numbers = (1 << 18) - 1;
is_deeply([ map { $_ & $numbers } $lost, $token ], [ $number, $number ], 'by the same number of the sequence');
isnt($token, $lost, 'have unlike tokens');
cmp_ok($token, '>', $lost, 'that of the new primary is larger');

my $late = $n->query("SELECT idempotency.complete('second', 'op', '$key', 200, 'late', token => $lost)");
is($late->code, 'IK001', 'the lost claim cannot complete the other one');
is($late->reason, 'taken_over', 'because somebody else has the key');
is($n->ok("SELECT count(idempotency.complete('second', 'op', '$key', 200, 'in time', token => $token))")->value, 1, 'whose owner can');
is(replay_of($n, 'second', 'op', $key), 'in time', 'and whose answer it is');

$_->stop foreach $old, $new;
done_testing();
