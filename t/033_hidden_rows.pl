
# Nothing of a row leaves in an error that is raised while it is written: whoever
# raises it, in whatever field, to the client or to the log. The SQLSTATE stays.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $node = new_preloaded_server('hidden', conf => <<'EOC');
log_error_verbosity = verbose
log_lock_waits = on
deadlock_timeout = 10ms
EOC
my $c = Connection->connect($node);
my $table = 'idempotency.idempotency_keys';
my @answers;

# Everything that a row is made of.
my @id = ('Canary scope', 'Canary operation');
my $body = 'Canary body';
my $headers = '[["X-Canary", "Canary header"]]';

sub keep
{
	my ($result) = @_;

	push @answers, values %{ $result->{error} // {} };
	push @answers, values %$_ foreach @{ $result->{notices} };
	return $result;
}

my $keys = 0;
my %calls = (
	complete => sub {
		my @key = (@id, 'Canary key ' . ++$keys);

		$c->ok('BEGIN');
		$c->execute('SELECT idempotency.claim($1, $2, $3, note => $4)', @key, 'Canary note');
		my $result = $c->execute('SELECT idempotency.complete($1, $2, $3, 200, $4, $5)', @key, $body, $headers);
		$c->ok('ROLLBACK');
		return $result;
	},
	claim => sub {
		return $c->execute(q{SELECT idempotency.claim($1, $2, $3, lease => '1 hour', note => $4)}, @id, 'Canary key ' . ++$keys, 'Canary note');
	},
	batch => sub {
		return $c->execute('SELECT idempotency.once_batch($1, $2, ARRAY[$3])', @id, 'Canary key ' . ++$keys);
	});

# What is hung on the table; the call that meets it, with which SQLSTATE; what takes
# it away again.
sub trap
{
	my ($title, $call, $code, $put, $remove, $hint) = @_;

	$c->ok($put);
	my $result = keep($calls{$call}->());
	is($result->code, $code, "$title: $call fails as it should");
	like($result->hint, $hint // qr/./, "$title: with a hint");
	$c->ok($remove);
	return $result;
}

# ---- casts and constraints -----------------------------------------------------

sub constraint { return ("ALTER TABLE $table ADD CONSTRAINT trap $_[0]", "ALTER TABLE $table DROP CONSTRAINT trap"); }
sub column { return ("ALTER TABLE $table ADD COLUMN trap $_[0]", "ALTER TABLE $table DROP COLUMN trap"); }
sub indexed { return ("CREATE INDEX trap ON $table $_[0]", 'DROP INDEX idempotency.trap'); }

trap('a CHECK that casts', 'complete', '22P02', constraint('CHECK (response_body::int > 0)'));
trap('an index that casts', 'complete', '22P02', indexed('((response_body::int))'));
foreach my $call (sort keys %calls)
{
	trap("an index's predicate that casts", $call, '22P02', indexed('(note) WHERE key::int > 0'));
	trap("an index's predicate whose functions are the server's own", $call, '22P02', indexed('(note) WHERE int4in(textout(key)) > 0'));
	trap('a CHECK', $call, '23514', constraint(q{CHECK (key NOT LIKE 'Canary%')}));
	trap('NOT NULL', $call, '23502', column('int NOT NULL'));
	trap('a foreign key', $call, '23503', 'CREATE TABLE public.scopes (id text PRIMARY KEY); ' . (constraint('FOREIGN KEY (scope) REFERENCES public.scopes'))[0],
		'DROP TABLE public.scopes CASCADE');
}
trap('a generated column', 'complete', '22P02', column('int GENERATED ALWAYS AS (response_body::int) STORED'));
trap('a default', 'claim', '22P02', column(q{int DEFAULT current_query()::int}));
trap('a domain', 'claim', '23514', 'CREATE DOMAIN public.d AS text CHECK (VALUE IS NOT NULL); ' . (column('public.d'))[0], (column(''))[1] . '; DROP DOMAIN public.d');
trap('a rule', 'complete', '22P02', "CREATE TABLE public.copy (b int); CREATE RULE trap AS ON INSERT TO $table DO ALSO INSERT INTO public.copy VALUES (NEW.response_body::int)",
	"DROP RULE trap ON $table; DROP TABLE public.copy");
{
	my @key = (@id, 'Canary of before');

	$c->execute('SELECT idempotency.once($1, $2, $3)', @key);
	trap('a unique index', $_, '23505', "CREATE UNIQUE INDEX trap ON $table (scope)", 'DROP INDEX idempotency.trap', qr/drop it/) foreach sort keys %calls;
	trap('an exclusion constraint', $_, '23P01', constraint('EXCLUDE USING btree (scope WITH =)')) foreach sort keys %calls;
	my $named = trap('a unique index', 'claim', '23505', "CREATE UNIQUE INDEX trap ON $table (scope)", 'DROP INDEX idempotency.trap');
	like($named->message, qr/"trap"/, 'what refuses a row is named');
	$c->execute('SELECT idempotency.forget($1, $2, $3)', @key);
}

# ---- triggers --------------------------------------------------------------------

sub trigger
{
	my ($code) = @_;

	return ("CREATE FUNCTION public.trap() RETURNS trigger LANGUAGE plpgsql AS \$\$ $code \$\$;
		CREATE TRIGGER trap BEFORE INSERT ON $table FOR EACH ROW EXECUTE FUNCTION public.trap()",
		"DROP TRIGGER trap ON $table; DROP FUNCTION public.trap");
}

# In every field, as every kind of error that is treated differently.
foreach my $code (qw(P0001 22000 40001 40P01 42501 53100 53200 55P03 57014 58030 23505 23514 XX000 XX001 IK001))
{
	trap("a trigger that raises $code", 'complete', $code, trigger(qq{
		DECLARE
			row text = concat_ws(' ', NEW.scope, NEW.operation, NEW.key, NEW.note, NEW.response_body, NEW.response_headers);
		BEGIN
			RAISE EXCEPTION USING ERRCODE = '$code', MESSAGE = row, DETAIL = row, HINT = row, COLUMN = row,
				CONSTRAINT = row, DATATYPE = row, SCHEMA = row, TABLE = row;
		END}));
	trap("a trigger that raises $code on our table", 'complete', $code, trigger(qq{
		BEGIN
			RAISE EXCEPTION USING ERRCODE = '$code', MESSAGE = NEW.key, CONSTRAINT = NEW.key,
				SCHEMA = 'idempotency', TABLE = 'idempotency_keys';
		END}));
}
# Dynamic SQL: the context, the query, the position in it.
trap('a trigger whose statement fails', 'complete', '22012', trigger(q{
	BEGIN EXECUTE format('SELECT 1 / 0 AS %I', NEW.response_body); RETURN NEW; END}));
trap('a trigger whose statement is wrong', 'complete', '42601', trigger(q{
	BEGIN EXECUTE NEW.response_body; RETURN NEW; END}));

# A trigger that waits, until it is canceled or its process is ended.
my $rival = Connection->connect($node);
my $control = Connection->connect($node);
foreach my $end ('pg_cancel_backend', 'pg_terminate_backend')
{
	my ($put, $remove) = trigger(q{ BEGIN EXECUTE format('SELECT pg_advisory_xact_lock(1) /* %s */', NEW.key); RETURN NEW; END});
	my $waiting = Connection->connect($node);
	my $from = -s $node->logfile;

	$control->ok($put);
	$rival->ok('BEGIN; SELECT pg_advisory_xact_lock(1)');
	$waiting->start_pipeline([ 'SELECT idempotency.once($1, $2, $3)', @id, 'Canary that waits' ]);
	ok(wait_until(sub { server_log($node, $from) =~ /still waiting for ExclusiveLock on advisory lock/ }), "$end: the wait is logged");
	$control->ok("SELECT $end(" . $waiting->pid . ')');
	my $result = $waiting->finish;
	is($result->code, $end eq 'pg_cancel_backend' ? '57014' : '57P01', "$end: it ends");
	keep($result) if $end eq 'pg_cancel_backend';
	$rival->ok('ROLLBACK');
	$control->ok($remove);
}

# ---- clean-up --------------------------------------------------------------------

fill_with_expired($node, 'postgres', 5, 'Canary scope');
$c->ok(q{CREATE FUNCTION public.trap() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN RAISE EXCEPTION '%', OLD USING DETAIL = OLD::text; END $$});
$c->ok("CREATE TRIGGER trap BEFORE DELETE ON $table FOR EACH ROW EXECUTE FUNCTION public.trap()");
is(keep($c->query($_))->code, 'P0001', $_) foreach 'SELECT idempotency.cleanup()', 'CALL idempotency.maintain()',
  q{SELECT idempotency.forget_scope('Canary scope' || left(current_setting('server_version'), 0))};
my $before = last_run($node, 'postgres');
ok(cleaned_again($node, 'postgres'), 'the worker comes');
my ($run) = @{ $c->ok("SELECT sqlstate, error FROM idempotency.cleanup_runs WHERE id > $before ORDER BY id LIMIT 1")->rows };
is($run->[0], 'P0001', 'the worker fails');
unlike($run->[1], qr/Canary/, 'what it records');
push @answers, map { $_->[0] // '' } @{ $c->ok('SELECT detail FROM idempotency.health()')->rows };

# ---- the server's own words --------------------------------------------------------

# Where nothing of anybody's runs they stay as they are.
$c->ok("DROP TRIGGER trap ON $table");
$rival->ok("BEGIN; SELECT FROM $table FOR UPDATE");
$c->ok("SET lock_timeout = '50ms'");
my $plain = keep($c->query(q{SELECT idempotency.forget_scope('Canary ' || 'scope')}));
is($plain->code . ' ' . $plain->message, '55P03 canceling statement due to lock timeout', 'a plain table: the message is the server\'s');
$rival->ok('ROLLBACK');

# ---- the search --------------------------------------------------------------------

$_->close(terminate => 1) foreach $c, $rival, $control;
$node->stop;

# The statements are the client's, and so are traps and clean-up's own words here.
my @logged = grep { /Canary/ && !/STATEMENT:/ } split /^/, server_log($node);
my @told = grep { /Canary/ } @answers;

is(scalar @told, 0, 'no message to a client shows a value') or diag(join("\n", splice(@told, 0, 10)));
is(scalar @logged, 0, 'no line of the log shows a value') or diag(join('', splice(@logged, 0, 10)));
like(server_log($node), qr/ERROR:  22P02: /, 'the errors are in the log');

done_testing();
