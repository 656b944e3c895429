
# A binding is in force everywhere at once: in connections that are open, by
# their next call, and in a database that was restored from a dump.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Extension;
use Test::More;
use Wire;

my $node = new_server('bindings');
my $admin = Wire->connect($node);

$admin->ok(q{CREATE ROLE shop LOGIN; CREATE ROLE gone; SELECT idempotency.grant_usage('shop')});
my $shop = Wire->connect($node, user => 'shop');

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
is($call->(Wire->connect($node, user => 'shop'), 'other'), '42501', 'in a new connection, too');

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
my $restored = Wire->connect($node, user => 'shop', database => 'restored');
is($call->($restored, 'other'), '42501', 'restored: bound');
is($call->($restored, 'shop:1'), '', 'restored: to the same scopes');
is(Wire->connect($node, database => 'restored')->ok(q{SELECT string_agg(role || ' ' || scope_pattern, ', ') FROM idempotency.role_bindings})->value, 'shop shop:%', 'restored: the bindings');

# Everything of it is undone.
$admin->ok(q{TRUNCATE idempotency.role_bindings});
is($call->($shop, 'other'), '', 'nobody is bound any more');

$node->stop;
done_testing();
