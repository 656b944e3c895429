
# A binding is in force everywhere at once: in connections that are open, by
# their next call, and in a database that was restored from a dump. That a role
# has to have one can be said anywhere, and cannot be got round.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use Test::More;

my $node = new_server('bindings');
my $admin = Connection->connect($node);

$admin->ok(q{CREATE ROLE shop LOGIN; CREATE ROLE gone; SELECT idempotency.grant_usage('shop')});
my $shop = Connection->connect($node, user => 'shop');

my $number = 0;
my $call = sub { my ($connection, $scope) = @_; $number++; return $connection->query("SELECT idempotency.once('$scope', 'bindings', '$number')")->code; };

is($call->($shop, 'other'), '', 'a role that is not bound uses any scope');

# Another connection binds it.
$admin->ok('BEGIN');
$admin->ok(q{SELECT idempotency.bind_role('shop', 'shop:%')});
is($call->($shop, 'other'), '', 'not before the commit');
$admin->ok('COMMIT');
is($call->($shop, 'other'), '42501', 'from the commit on');
is($call->($shop, 'shop:1'), '', 'its own are its own');
is($call->(Connection->connect($node, user => 'shop'), 'other'), '42501', 'in a new connection, too');

# In the middle of a transaction, whatever its snapshot.
$shop->ok('BEGIN');
is($call->($shop, 'shop:1'), '', 'in a transaction');
$admin->ok(q{SELECT idempotency.bind_role('shop', 'common')});
is($call->($shop, 'common'), '', 'in a transaction: the next call knows');
$shop->ok('COMMIT');
$shop->ok('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class');
is($call->($shop, 'common'), '', 'an old snapshot');
$admin->ok(q{SELECT idempotency.unbind_role('shop'), idempotency.bind_role('shop', 'shop:%')});
is($call->($shop, 'common'), '42501', 'an old snapshot does not keep what was allowed');
$shop->ok('ROLLBACK');

# What was written past the functions counts as well, and so does TRUNCATE.
$admin->ok(q{INSERT INTO idempotency.role_bindings VALUES ('shop', 'by hand')});
is($call->($shop, 'by hand'), '', 'a row by hand');
$admin->ok(q{SET session_replication_role = replica; DELETE FROM idempotency.role_bindings WHERE scope_pattern = 'by hand'; RESET session_replication_role});
is($call->($shop, 'by hand'), '42501', 'a row that replication took away');

# No message of a refusal shows the scope.
$shop->query(q{SELECT idempotency.once('very secret scope', 'bindings', 'k')});
unlike(join('', grep { !/STATEMENT/ } split /^/, server_log($node)), qr/very secret/, 'no message shows the scope');

# A role that was dropped leaves a binding that binds nobody.
$admin->ok(q{SELECT idempotency.bind_role('gone', 'x'); DROP ROLE gone});
is($call->($shop, 'shop:1'), '', 'a role that is gone disturbs nobody');
is($call->($admin, 'any'), '', 'nor a superuser');
$admin->ok(q{DELETE FROM idempotency.role_bindings WHERE NOT EXISTS (SELECT FROM pg_roles WHERE oid = role)});

# Dump and restore.
my $dump = $node->basedir . '/dump.sql';
$node->command_ok([ 'pg_dump', '-f', $dump, 'postgres' ], 'dumped');
$admin->ok('CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', 'restored', '-f', $dump ], 'restored');
my $restored = Connection->connect($node, user => 'shop', database => 'restored');
is($call->($restored, 'other'), '42501', 'restored: bound');
is($call->($restored, 'shop:1'), '', 'restored: to the same scopes');
is(Connection->connect($node, database => 'restored')->ok(q{SELECT string_agg(role || ' ' || scope_pattern, ', ') FROM idempotency.role_bindings})->value, 'shop shop:%', 'restored: the bindings');

# Everything of it is undone.
$admin->ok(q{TRUNCATE idempotency.role_bindings});
is($call->($shop, 'other'), '', 'nobody is bound any more');

# Roles have to be bound. The library is loaded by the first call of a
# connection, and what was said before that has to be in force with that call.
my $setting = 'idempotency.require_binding';
my $code = sub { my (%option) = @_; return $call->(Connection->connect($node, user => 'shop', %option), 'other'); };
my %ways = (
	'the database' => ["ALTER DATABASE postgres SET $setting = on", "ALTER DATABASE postgres RESET $setting"],
	'the role' => ["ALTER ROLE shop SET $setting = on", "ALTER ROLE shop RESET $setting"],
	'every role' => ["ALTER ROLE ALL SET $setting = on", "ALTER ROLE ALL RESET $setting"],
	'the server' => ["ALTER SYSTEM SET $setting = on; SELECT pg_reload_conf()", "ALTER SYSTEM RESET $setting; SELECT pg_reload_conf()"]);
# The postmaster has read the file when a connection made then says so.
my $reads = sub {
	my ($value) = @_;
	return wait_until(sub { (Connection->connect($node)->query("SELECT coalesce(current_setting('$setting', true), 'off')")->value || 'off') eq $value; });
};

is(Connection->connect($node, user => 'shop')->ok("SELECT coalesce(current_setting('$setting', true), 'unknown')")->value, 'unknown', 'the library is not preloaded');
foreach my $way (sort keys %ways)
{
	my ($set, $reset) = @{ $ways{$way} };

	$admin->ok($_) foreach split /; /, $set;
	ok($reads->('on'), "$way: is on") if $way eq 'the server';
	is($code->(), '42501', "$way: who is not bound uses no scope");
	is($call->(Connection->connect($node), 'other'), '', "$way: a superuser does");
	$admin->ok(q{SELECT idempotency.bind_role('shop', 'shop:%')});
	is($call->(Connection->connect($node, user => 'shop'), 'shop:1'), '', "$way: who is bound uses its own");
	is($code->(), '42501', "$way: and no other");
	$admin->ok(q{SELECT idempotency.unbind_role('shop')});

	# Nobody else takes it back, by whatever was said before the first call.
	is($code->(options => "-c $setting=off"), '42501', "$way: not by an option of the connection");
	is($code->(options => "-c $setting=nonsense"), '42501', "$way: not by nonsense, either");
	my $shop = Connection->connect($node, user => 'shop');
	$shop->ok("SET $setting = off");
	is($call->($shop, 'other'), '42501', "$way: not by SET");
	$shop->query("SET $setting = off");
	is($call->($shop, 'other'), '42501', "$way: nor by SET afterwards");
	$shop = Connection->connect($node, user => 'shop');
	$shop->ok("BEGIN; SET LOCAL $setting = off");
	is($call->($shop, 'other'), '42501', "$way: not by SET LOCAL");
	$shop->query('ROLLBACK');
	$shop->query('RESET ALL');
	is($call->($shop, 'other'), '42501', "$way: not by RESET");
	$shop = Connection->connect($node, user => 'shop', options => "-c $setting=off");
	$call->($shop, 'other');
	$shop->query("RESET $setting");
	is($call->($shop, 'other'), '42501', "$way: not by an option and RESET");
	is(Connection->connect($node, user => 'shop')->query("ALTER ROLE shop SET $setting = off")->code, '42501', "$way: not by ALTER ROLE");

	$admin->ok($_) foreach split /; /, $reset;
	ok($reads->('off'), "$way: is off") if $way eq 'the server';
	# A connection that is made before the postmaster has read the file has the value of before.
	ok(wait_until(sub { $code->() eq '' }), "$way: it is over");
}
# Who may say it is believed: a superuser, and who was granted it.
is($call->(Connection->connect($node, options => "-c $setting=off"), 'other'), '', 'a superuser with an option');
$admin->ok("ALTER DATABASE postgres SET $setting = on; GRANT SET ON PARAMETER $setting TO shop");
is($code->(options => "-c $setting=off"), '', 'a role that was granted it switches it off');
$admin->ok("REVOKE SET ON PARAMETER $setting FROM shop");
is($code->(options => "-c $setting=off"), '42501', 'no longer');
$admin->ok("ALTER DATABASE postgres SET $setting = off");
is($code->(), '', 'off, said in full');
$admin->ok("ALTER DATABASE postgres RESET $setting");

# Open connections learn of a change of the server's.
$shop = Connection->connect($node, user => 'shop');
is($call->($shop, 'other'), '', 'an open connection');
$admin->ok("ALTER SYSTEM SET $setting = on");
$admin->ok('SELECT pg_reload_conf()');
ok(wait_until(sub { $call->($shop, 'other') eq '42501' }), 'an open connection: on');
my $later = Connection->connect($node, user => 'shop');
is($call->($later, 'other'), '42501', 'a later one');
$admin->ok("ALTER SYSTEM RESET $setting");
$admin->ok('SELECT pg_reload_conf()');
ok(wait_until(sub { $call->($shop, 'other') eq '' }), 'an open connection: off');
ok(wait_until(sub { $call->($later, 'other') eq '' }), 'the later one: off');

# Preloaded.
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'idempotency'\n$setting = on");
$node->restart;
is($code->(), '42501', 'preloaded: who is not bound uses no scope');
is(Connection->connect($node, user => 'shop', options => "-c $setting=off", fail_ok => 1), undef, 'preloaded: the option is refused at the door');
is($call->(Connection->connect($node), 'other'), '', 'preloaded: a superuser does');

$node->stop;
done_testing();
