
# Lock tags are readable by everybody (pg_locks). They are keyed by a secret of
# the database, so that nobody can confirm a guess of a key by them.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Cwd qw(abs_path);
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;

# ---- the digest, against the vectors of its paper ----------------------------------------

my $source = PostgreSQL::Test::Utils::tempdir('siphash');
my $top = abs_path("$FindBin::RealBin/..");
append_to_file("$source/vectors.c", <<'C');
#include "postgres.h"
#include "siphash.h"
#undef printf /* the server has its own */
int
main(void)
{
	unsigned char key[SIPHASH_KEY_LEN], data[64];

	for (int i = 0; i < 16; i++)
		key[i] = i;
	for (int i = 0; i < 64; i++)
		data[i] = i;
	for (int len = 0; len <= 15; len++)
		printf("%016llx\n", (unsigned long long) siphash(key, data, len));
	return 0;
}
C
chomp(my $includes = `$ENV{PG_CONFIG} --includedir-server`);
system_or_bail($ENV{CC} || 'gcc', '-isystem', $includes, "-I$top/src", '-o', "$source/vectors", "$source/vectors.c", "$top/src/siphash.c");
my @digests = split /\n/, `$source/vectors`;
is($digests[0], '726fdb47dd0e0e31', 'SipHash-2-4 of nothing');
is($digests[7], 'ab0200f58b01d137', 'of 7 bytes');
is($digests[8], '93f5f5799a932462', 'of 8 bytes');
is($digests[15], 'a129ca6149be45e5', 'of 15 bytes, as in the paper');

# ---- pg_locks ----------------------------------------------------------------------------

my $node = new_server('secret');
my ($claimer, $other) = map { Connection->connect($node) } 1 .. 2;

$node->safe_psql('postgres', 'CREATE DATABASE second; CREATE ROLE nobody LOGIN; CREATE ROLE watch LOGIN IN ROLE pg_monitor');
$node->safe_psql('second', 'CREATE EXTENSION idempotency');

sub tag_of
{
	my ($database, $key) = @_;
	my $connection = Connection->connect($node, database => $database);

	$connection->ok('BEGIN');
	$connection->ok("SELECT FROM idempotency.claim('acme', 'POST /pay', '$key')");
	my $tag = $connection->ok("SELECT classid || '.' || objid FROM pg_locks WHERE pid = pg_backend_pid() AND objsubid = $Extension::lock_class")->value;
	$connection->ok('ROLLBACK');
	$connection->close;
	return $tag;
}

my $tag = tag_of('postgres', 'invoice-4711');
is(tag_of('postgres', 'invoice-4711'), $tag, 'every connection of a database makes the same of a key');
isnt(tag_of('second', 'invoice-4711'), $tag, 'another database another');

# What the version before did: hashes that SQL can compute.
my $guess = $claimer->ok("SELECT h FROM (SELECT hashtextextended('invoice-4711', hashtextextended('POST /pay', hashtextextended('acme', 0))) AS h) AS g")->value;
isnt($tag, sprintf('%u.%u', ($guess >> 32) & 0xFFFFFFFF, $guess & 0xFFFFFFFF), 'the tag is not what SQL can compute');

# Only the owner reads the secret, and it does not leave by a dump.
foreach my $role (qw(nobody watch))
{
	my ($status, $out, $err) = $node->psql('postgres', 'SELECT * FROM idempotency.lock_secret', connstr => $node->connstr('postgres') . " user=$role");
	isnt($status, 0, "$role does not read the secret");
}
$node->safe_psql('postgres', "SELECT idempotency.grant_usage('nobody'), idempotency.grant_operator('nobody'), idempotency.grant_monitor('nobody')");
isnt($node->psql('postgres', 'SELECT * FROM idempotency.lock_secret', connstr => $node->connstr('postgres') . ' user=nobody'), 0, 'nor does who was granted everything');
my $secret = $node->safe_psql('postgres', 'SELECT secret FROM idempotency.lock_secret');
my $dump = '';
run_log([ 'pg_dump', '-d', $node->connstr('postgres') ], '>', \$dump);
like($dump, qr/CREATE EXTENSION.*idempotency/, 'the dump has the extension');
unlike($dump, qr/\Q$secret\E/, 'and not the secret');

# ---- without it ------------------------------------------------------------------------------

$node->safe_psql('postgres', 'DELETE FROM idempotency.lock_secret');
my $refused = $other->query("SELECT FROM idempotency.claim('acme', 'POST /pay', 'k', lease => '1 min')");
is($refused->code, '55000', 'no claim without a secret');
like($refused->hint, qr/INSERT INTO idempotency\.lock_secret DEFAULT VALUES/, 'and how to put one back');
$node->safe_psql('postgres', 'INSERT INTO idempotency.lock_secret DEFAULT VALUES');
is($other->query("SELECT outcome FROM idempotency.claim('acme', 'POST /pay', 'k', lease => '1 min')")->value, 'claimed', 'which works');
isnt(tag_of('postgres', 'invoice-4711'), $tag, 'another secret makes other tags');

$node->stop;
done_testing();
