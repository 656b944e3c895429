
# Who may create the extension, drop it, move it, own it: refused to all but a
# superuser, each with the SQLSTATE that docs/privileges.md names; and whoever owns
# it afterwards, the calls work and run nothing with more rights than before.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $node = new_preloaded_server('ownership', conf => "autovacuum = off\n");

$node->safe_psql('postgres', "CREATE ROLE $_ LOGIN") foreach qw(mallory owner application);
$node->safe_psql('postgres', 'CREATE ROLE second LOGIN SUPERUSER');
$node->safe_psql('postgres', "CREATE DATABASE $_ OWNER owner") foreach qw(empty taken moved owned);
$node->safe_psql($_, 'CREATE EXTENSION idempotency') foreach qw(moved owned);

my ($documented) = slurp_file("$FindBin::RealBin/../docs/privileges.md") =~ /^## Creating, dropping, moving\n(.*?)^## /ms;
my %seen;

# What somebody wants, and the SQLSTATE of the document's row that begins so.
sub refused
{
	my ($row, $database, $user, $statement) = @_;
	my ($code) = $documented =~ /^\| \Q$row\E \|.*\| `(\w{5})` \|$/m;
	my $c = Connection->connect($node, database => $database, user => $user);

	$seen{$row} = 1;
	is($c->query($statement)->code, $code // 'undocumented', "$user: $statement");
	$c->close(terminate => 1);
	return;
}

sub nothing_left
{
	my ($database) = @_;

	return is($node->safe_psql($database, q{SELECT count(*) FROM pg_extension WHERE extname = 'idempotency'}), 0, "$database: nothing was created");
}

# ---- creating ------------------------------------------------------------------------

$node->safe_psql('empty', 'GRANT CREATE ON DATABASE empty TO mallory');
refused('somebody else than a superuser creates it', 'empty', $_, 'CREATE EXTENSION idempotency') foreach qw(mallory owner);
refused('into a schema that is given', 'empty', 'second', 'CREATE EXTENSION idempotency SCHEMA public');
nothing_left('empty');
# A schema made beforehand, with an object that would be ours, by whoever may.
$node->safe_psql('taken', 'GRANT CREATE ON DATABASE taken TO mallory');
Connection->connect($node, database => 'taken', user => 'mallory')->ok('CREATE SCHEMA idempotency; CREATE TABLE idempotency.idempotency_keys (scope text)');
refused('where the schema exists already', 'taken', 'second', $_) foreach 'CREATE EXTENSION idempotency', 'CREATE EXTENSION idempotency CASCADE';
nothing_left('taken');
is($node->safe_psql('taken', q{SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'idempotency'}), 'mallory', 'and nothing was adopted');

# ---- dropping, altering -----------------------------------------------------------------

$node->safe_psql('moved', q{
	GRANT CREATE ON SCHEMA public TO PUBLIC;
	ALTER TABLE idempotency.idempotency_keys OWNER TO mallory;
	ALTER SEQUENCE idempotency.token_seq OWNER TO mallory;
	GRANT USAGE ON SCHEMA idempotency TO mallory;
	SELECT idempotency.once('s', 'op', 'k')});
Connection->connect($node, database => 'moved', user => 'mallory')->ok('CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql AS $$ SELECT 1 $$');
foreach my $who (qw(mallory owner))
{
	refused('somebody else drops it', 'moved', $who, 'DROP EXTENSION idempotency CASCADE');
	refused('somebody else drops it', 'moved', $who, 'DROP SCHEMA idempotency CASCADE');
	refused('somebody else alters it', 'moved', $who, $_) foreach 'ALTER EXTENSION idempotency UPDATE', 'ALTER EXTENSION idempotency ADD FUNCTION public.mine()',
	  'ALTER EXTENSION idempotency DROP TABLE idempotency.idempotency_keys', 'ALTER SCHEMA idempotency RENAME TO other', "ALTER SCHEMA idempotency OWNER TO $who",
	  'ALTER EXTENSION idempotency SET SCHEMA public';
}
refused('the owner of the table drops the table', 'moved', 'mallory', 'DROP TABLE idempotency.idempotency_keys CASCADE');
refused('a superuser drops the schema or an object of it', 'moved', 'second', $_) foreach 'DROP SCHEMA idempotency CASCADE', 'DROP TABLE idempotency.policies CASCADE', 'DROP FUNCTION idempotency.claim CASCADE';
refused('a superuser moves it to another schema', 'moved', 'second', 'ALTER EXTENSION idempotency SET SCHEMA public');
refused('another owner of the extension is named', 'moved', 'second', 'ALTER EXTENSION idempotency OWNER TO mallory');
is($node->safe_psql('moved', q{SELECT idempotency.once('s', 'op', 'k')}), 'f', 'the key is where it was');

# What a superuser can do all the same: another name of the schema, or the table in
# another one. Then calls are refused, until it is put back.
foreach my $move ([ 'ALTER SCHEMA idempotency RENAME TO other', 'ALTER SCHEMA other RENAME TO idempotency', 'other' ],
	[ 'ALTER TABLE idempotency.idempotency_keys SET SCHEMA public', 'ALTER TABLE public.idempotency_keys SET SCHEMA idempotency', 'idempotency' ])
{
	my ($away, $back, $schema) = @$move;
	my $c = Connection->connect($node, database => 'moved');

	$c->ok($away);
	is($c->query("SELECT $schema.once('s', 'op', 'k')")->code, '55000', "$away: calls are refused");
	$c->ok($back);
	is($c->query(q{SELECT idempotency.once('s', 'op', 'k')})->value, 'f', 'and good again');
}

# ---- owning -----------------------------------------------------------------------------

# A superuser's objects can be handed to anybody; then the calls go on, as that role
# and no more, and the owner may drop it.
$node->safe_psql('owned', 'ALTER DATABASE owned OWNER TO owner');
Connection->connect($node, database => 'owned', user => 'second')->ok('DROP EXTENSION idempotency; CREATE EXTENSION idempotency; REASSIGN OWNED BY second TO mallory');
is($node->safe_psql('owned', q{SELECT extowner::regrole || ' ' || relowner::regrole || ' ' || proowner::regrole FROM pg_extension, pg_class, pg_proc
	WHERE extname = 'idempotency' AND pg_class.oid = 'idempotency.idempotency_keys'::regclass AND pg_proc.oid = 'idempotency.claim'::regproc}), 'mallory mallory mallory', 'all of it has another owner');
my $mallory = Connection->connect($node, database => 'owned', user => 'mallory');
is($mallory->ok(q{SELECT idempotency.grant_usage('application')})->value, 't', 'who grants');
my $c = Connection->connect($node, database => 'owned', user => 'application');
is($c->ok(q{SELECT outcome FROM idempotency.claim('s', 'op', 'k', lease => '1 min')})->value, 'claimed', 'an application claims');
is($c->ok(q{SELECT response_body FROM idempotency.run('s', 'op', 'r', 'SELECT current_user')})->value, 'application', 'and runs its commands as itself');
$node->safe_psql('owned', 'GRANT CREATE ON SCHEMA public TO mallory');
$mallory->ok(q{CREATE FUNCTION public.who() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING '%', current_user; RETURN NULL; END $$;
	CREATE TRIGGER who AFTER INSERT OR DELETE ON idempotency.idempotency_keys FOR EACH ROW EXECUTE FUNCTION public.who()});
my $super = Connection->connect($node, database => 'owned');
is(join(' ', map { $_->{M} } @{ $super->ok(q{SELECT idempotency.once('s', 'op', 't')})->{notices} }), 'mallory', 'what the owner hangs on the table runs as the owner, also for a superuser');
$node->safe_psql('owned', q{ALTER TABLE idempotency.idempotency_keys DISABLE TRIGGER who});
fill_with_expired($node, 'owned', 5);
ok(cleaned_again($node, 'owned'), 'the worker comes');
is($node->safe_psql('owned', q{SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'expired'}), 0, 'and cleans');
is($mallory->query('DROP EXTENSION idempotency')->code, '', 'its owner may drop it');

is(join(', ', grep { !$seen{$_} } $documented =~ /^\| (?!attempt|---)(.*?) \|/mg), '', 'every row of the page has been tried');

$node->stop;
done_testing();
