
# Who may do what, completely: every object of the extension, every verb, every
# kind of role. What the catalog says is the table of docs/privileges.md, line by
# line; and each verb is tried by each role, and refused just where the table has
# no letter for it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $node = new_preloaded_server('privileges', conf => "idempotency.cleanup_enabled = on\n");
my $control = Connection->connect($node);
my $has_maintain = $control->ok('SHOW server_version_num')->value >= 170000;

# ---- the roles -------------------------------------------------------------------

# The columns of the table, each with the roles that it speaks for.
my @columns = (
	[ 'nobody' => qw(nobody former_app former_operator former_monitor database_owner watcher signaller) ],
	[ 'usage' => 'app' ],
	[ 'operator' => 'operator' ],
	[ 'monitor' => 'monitor' ],
	[ 'table owner' => 'keeper' ],
	[ '`pg_read_all_data`' => 'reader' ],
	[ '`pg_write_all_data`' => 'writer' ],
	[ '`pg_maintain`' => 'maintainer' ],
	[ 'superuser' => 'chief' ]);
@columns = grep { $has_maintain || $_->[1] ne 'maintainer' } @columns;

my %member_of = (reader => 'pg_read_all_data', writer => 'pg_write_all_data', maintainer => 'pg_maintain',
	watcher => 'pg_monitor', signaller => 'pg_signal_backend');
foreach my $role (map { @$_[ 1 .. $#$_ ] } @columns)
{
	$control->ok("CREATE ROLE $role LOGIN" . ($member_of{$role} ? " IN ROLE $member_of{$role}" : ''));
}
$control->ok(q{
	ALTER ROLE chief SUPERUSER;
	ALTER DATABASE postgres OWNER TO database_owner;
	SELECT idempotency.grant_usage('app'), idempotency.grant_operator('operator'), idempotency.grant_monitor('monitor');
	SELECT idempotency.grant_usage('former_app'), idempotency.grant_operator('former_operator'), idempotency.grant_monitor('former_monitor');
	SELECT idempotency.revoke_usage('former_app'), idempotency.revoke_operator('former_operator'), idempotency.revoke_monitor('former_monitor');
	ALTER TABLE idempotency.idempotency_keys OWNER TO keeper;
	GRANT USAGE ON SCHEMA idempotency TO keeper;
	SELECT idempotency.once('sweep', 'op', 'k');
	SELECT idempotency.set_policy('op', ttl => '1 day')});

# ---- the table -------------------------------------------------------------------

$control->ok(q{
CREATE TABLE public.object AS
SELECT 1 AS place, 'extension' AS kind, extname::text AS name, oid, extowner AS owner FROM pg_extension WHERE extname = 'idempotency'
UNION ALL SELECT 2, 'schema', nspname, oid, nspowner FROM pg_namespace WHERE nspname = 'idempotency'
UNION ALL SELECT CASE relkind WHEN 'r' THEN 3 WHEN 'v' THEN 4 ELSE 5 END, CASE relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' ELSE 'sequence' END, relname, oid, relowner
	FROM pg_class WHERE relnamespace = 'idempotency'::regnamespace AND relkind NOT IN ('i', 'c')
UNION ALL SELECT 6, 'type', t.typname, t.oid, typowner FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
	WHERE typnamespace = 'idempotency'::regnamespace AND t.typelem = 0
UNION ALL SELECT 7, 'routine', proname, oid, proowner FROM pg_proc WHERE pronamespace = 'idempotency'::regnamespace;

-- The verbs, by the letters that the server's own documentation has for them.
CREATE TABLE public.verb (kind text, no int, letter text, privilege text);
INSERT INTO public.verb VALUES ('schema', 1, 'U', 'USAGE'), ('schema', 2, 'C', 'CREATE'), ('type', 1, 'U', 'USAGE'), ('routine', 1, 'X', 'EXECUTE'),
	('sequence', 1, 'r', 'SELECT'), ('sequence', 2, 'w', 'UPDATE'), ('sequence', 3, 'U', 'USAGE');
INSERT INTO public.verb SELECT kind, no, letter, privilege FROM unnest(ARRAY['table', 'view']) kind,
	(VALUES (1, 'r', 'SELECT'), (2, 'a', 'INSERT'), (3, 'w', 'UPDATE'), (4, 'd', 'DELETE'), (5, 'D', 'TRUNCATE'), (6, 'x', 'REFERENCES'), (7, 't', 'TRIGGER')} . ($has_maintain ? ", (8, 'm', 'MAINTAIN')" : '') . q{) v (no, letter, privilege);

CREATE FUNCTION public.has(role name, kind text, object oid, privilege text) RETURNS bool LANGUAGE sql AS $$
	SELECT CASE WHEN kind = 'schema' THEN has_schema_privilege(role, object, privilege) WHEN kind = 'type' THEN has_type_privilege(role, object, privilege)
		WHEN kind = 'routine' THEN has_function_privilege(role, object, privilege) WHEN kind = 'sequence' THEN has_sequence_privilege(role, object, privilege)
		ELSE has_table_privilege(role, object, privilege) END $$;

-- "O": owner, or as good as that. "*": may grant it, without being that.
CREATE TABLE public.cell AS
SELECT o.*, r.rolname AS role, concat((SELECT string_agg(v.letter || CASE WHEN public.has(r.rolname, o.kind, o.oid, v.privilege || ' WITH GRANT OPTION') AND NOT pg_has_role(r.oid, o.owner, 'USAGE') THEN '*' ELSE '' END, '' ORDER BY v.no)
	FROM public.verb v WHERE v.kind = o.kind AND public.has(r.rolname, o.kind, o.oid, v.privilege)),
	CASE WHEN pg_has_role(r.oid, o.owner, 'USAGE') THEN 'O' END) AS letters
FROM public.object o, pg_roles r WHERE r.rolname !~ '^pg_' AND r.rolname <> current_user});

sub object_name
{
	my ($kind, $name) = @_;

	return $kind . " `$name`";
}

# A cell has several values, and is wrong, where the roles of one column differ.
my %cells;
my @objects;
foreach my $row (@{ $control->ok('SELECT kind, name, role, letters FROM public.cell ORDER BY place, name COLLATE "C", role')->rows })
{
	my $object = object_name(@$row[ 0, 1 ]);

	push @objects, $object if !$cells{$object};
	$cells{$object}{ $row->[2] } = $row->[3];
}
my @table = map {
	my $object = $_;
	'| ' . join(' | ', $object, map {
		my %values = map { $cells{$object}{$_} => 1 } @$_[ 1 .. $#$_ ];
		join ' or ', sort keys %values;
	} @columns) . ' |';
} @objects;

# The document is that of 17 and later. Before, there was no MAINTAIN.
my ($documented) = slurp_file("$FindBin::RealBin/../docs/privileges.md") =~ /^<!-- sweep -->\n(.*?)^<!-- end -->\n/ms;
my ($head, undef, @lines) = split /\n/, $documented;
sub of_this_version
{
	my ($line, $is_head) = @_;
	my (undef, @parts) = split /\s*\|\s*/, $line, -1;

	if (!$has_maintain)
	{
		splice @parts, 8, 1;
		s/m// foreach $is_head ? () : @parts[ 1 .. $#parts ];
	}
	pop @parts;
	return '| ' . join(' | ', @parts) . ' |';
}
is(of_this_version($head, 1), '| object | ' . join(' | ', map { $_->[0] } @columns) . ' |', 'docs/privileges.md: the roles');
is_deeply([ map { of_this_version($_) } @lines ], \@table, 'docs/privileges.md: every object, verb and role, as the catalog has it')
  or diag("It has to be:\n" . join("\n", @table));
cmp_ok(scalar @table, '>', 70, 'which are many');

# Columns have no privileges of their own.
is($control->ok(q{SELECT count(*) FROM pg_attribute a JOIN public.object o ON o.oid = a.attrelid, pg_roles r, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) p
	WHERE a.attnum > 0 AND r.rolname IN (SELECT role FROM public.cell) AND has_column_privilege(r.rolname, a.attrelid, a.attnum, p) <> has_table_privilege(r.rolname, a.attrelid, p)})->value,
	0, 'what a role may do with a table it may do with each column, and no more');

# ---- the attempt -----------------------------------------------------------------

# One statement for each object and verb: it needs one of these letters, and
# nothing else. Whether it would succeed is another matter; it is rolled back.
$control->ok(q{
CREATE TABLE public.plain (id text);
GRANT TRIGGER ON public.plain TO PUBLIC;
GRANT CREATE, USAGE ON SCHEMA public TO PUBLIC;
CREATE TABLE public.attempt (object oid, kind text, name text, needs text[], statement text);
INSERT INTO public.attempt SELECT oid, kind, name, ARRAY['O'], format('COMMENT ON %s %s IS NULL', kind, CASE WHEN kind IN ('extension', 'schema') THEN name ELSE 'idempotency.' || name END) FROM public.object;
INSERT INTO public.attempt SELECT oid, kind, name, ARRAY['U'], 'SELECT idempotency.no_such_function()' FROM public.object WHERE kind = 'schema';
INSERT INTO public.attempt SELECT oid, kind, name, ARRAY['C'], 'CREATE TABLE idempotency.trial ()' FROM public.object WHERE kind = 'schema';
INSERT INTO public.attempt SELECT oid, kind, name, ARRAY['O'], 'DROP EXTENSION idempotency' FROM public.object WHERE kind = 'extension';
INSERT INTO public.attempt SELECT oid, kind, name, ARRAY['O'], 'ALTER EXTENSION idempotency UPDATE' FROM public.object WHERE kind = 'extension';
INSERT INTO public.attempt SELECT oid, kind, name, ARRAY['O'], 'ALTER EXTENSION idempotency ADD TABLE public.plain' FROM public.object WHERE kind = 'extension';
INSERT INTO public.attempt SELECT oid, kind, name, ARRAY['U'], format('CREATE TABLE public.trial (c idempotency.%I)', name) FROM public.object WHERE kind = 'type';
INSERT INTO public.attempt SELECT oid, kind, name, v.needs, format(v.statement, name) FROM public.object, (VALUES (ARRAY['r'], 'SELECT * FROM idempotency.%I'),
	(ARRAY['w'], 'SELECT setval(''idempotency.%I'', 1)'), (ARRAY['U', 'w'], 'SELECT nextval(''idempotency.%I'')')) v (needs, statement) WHERE kind = 'sequence';
INSERT INTO public.attempt SELECT oid, kind, name, v.needs, format(v.statement, name, (SELECT attname FROM pg_attribute WHERE attrelid = o.oid AND attnum = 1)) FROM public.object o,
	(VALUES (ARRAY['r'], 'SELECT * FROM idempotency.%I'), (ARRAY['t'], 'CREATE TRIGGER trial BEFORE INSERT ON idempotency.%I EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()'),
	(ARRAY['a'], 'INSERT INTO idempotency.%I DEFAULT VALUES'), (ARRAY['w'], 'UPDATE idempotency.%I SET %I = DEFAULT'), (ARRAY['d'], 'DELETE FROM idempotency.%I'),
	(ARRAY['D'], 'TRUNCATE idempotency.%I'), (ARRAY['m'], 'REINDEX TABLE idempotency.%I')) v (needs, statement)
	WHERE kind = 'table' OR kind = 'view' AND v.needs[1] IN ('r', 't');
INSERT INTO public.attempt SELECT c.conrelid, 'table', c.conrelid::regclass::text, ARRAY['x'], format('CREATE TABLE public.trial (%s, FOREIGN KEY (%s) REFERENCES %s)',
	string_agg(format('%I %s %s', attname, format_type(atttypid, atttypmod), CASE WHEN attcollation <> 0 THEN 'COLLATE "C"' END), ', '), string_agg(quote_ident(attname), ', ' ORDER BY array_position(conkey, attnum)), c.conrelid::regclass)
	FROM pg_constraint c JOIN pg_attribute a ON attrelid = conrelid AND attnum = ANY (conkey) WHERE contype = 'p' AND connamespace = 'idempotency'::regnamespace GROUP BY c.oid, c.conrelid;
INSERT INTO public.attempt SELECT o.oid, o.kind, o.name, ARRAY['X'], CASE WHEN p.prorettype = 'trigger'::regtype THEN 'CREATE TRIGGER trial BEFORE DELETE ON public.plain FOR EACH ROW EXECUTE FUNCTION %s()'
	WHEN p.prokind = 'p' THEN 'CALL %s(%s)' ELSE 'SELECT * FROM %s(%s)' END FROM public.object o JOIN pg_proc p ON p.oid = o.oid AND p.prorettype <> 'internal'::regtype;
UPDATE public.attempt t SET statement = CASE WHEN p.prorettype = 'trigger'::regtype THEN format(statement, 'idempotency.' || name)
	ELSE format(statement, 'idempotency.' || name, CASE WHEN p.proisstrict THEN '''{}''' ELSE array_to_string(array_fill('NULL'::text, ARRAY[p.pronargs::int]), ', ') END) END
	FROM pg_proc p WHERE p.oid = t.object AND t.needs = ARRAY['X'];
DELETE FROM public.attempt WHERE needs = ARRAY['m'] AND NOT EXISTS (SELECT FROM public.verb WHERE letter = 'm');

CREATE FUNCTION public.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE statement;
	RAISE SQLSTATE 'OK000';
EXCEPTION WHEN OTHERS THEN
	RETURN SQLSTATE;
END $$;
CREATE FUNCTION public.tried(OUT object oid, OUT name text, OUT statement text, OUT needs text[], OUT code text) RETURNS SETOF record LANGUAGE sql AS
	$$ SELECT t.object, t.name, t.statement, t.needs, public.try(t.statement) FROM public.attempt t $$;

-- What stands behind a letter: who may not use the schema cannot name anything in
-- it, and a view calls its functions as whoever reads it.
CREATE FUNCTION public.may(as_role name, of_object oid, needed text[]) RETURNS bool LANGUAGE sql AS $$
	SELECT EXISTS (SELECT FROM unnest(needed) n WHERE strpos(c.letters, n) > 0)
		AND (c.kind IN ('extension', 'schema') OR has_schema_privilege(as_role, 'idempotency', 'USAGE'))
		AND (c.kind <> 'view' OR needed <> ARRAY['r'] OR NOT EXISTS (SELECT FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_proc'::regclass
			WHERE w.ev_class = of_object AND NOT has_function_privilege(as_role, d.refobjid, 'EXECUTE')))
	FROM public.cell c WHERE c.role = as_role AND c.oid = of_object $$;
GRANT SELECT ON public.attempt, public.cell TO PUBLIC});

my $attempts = $control->ok('SELECT count(*) FROM public.attempt')->value;
cmp_ok($attempts, '>', 150, "$attempts statements, each by each role");
my $refused = 0;
foreach my $role (map { @$_[ 1 .. $#$_ ] } @columns)
{
	my $c = Connection->connect($node, user => $role);
	my @rows = @{ $c->ok(qq{SELECT name, statement, code, public.may('$role', object, needs) FROM public.tried()})->rows };
	my @wrong = grep { ($_->[2] eq '42501') == ($_->[3] eq 't') } @rows;

	is(scalar @rows, $attempts, "$role tries everything");
	is(join("\n", map { "$_->[2] for $_->[1]" } @wrong), '', "$role is refused with 42501 just where the table says so");
	my @odd = grep { $_->[2] =~ /^(?:XX|42601|42883|42P01|0A)/ && $_->[1] !~ /no_such_function/ } @rows;
	is(join("\n", map { "$_->[2] for $_->[1]" } @odd), '', "$role: no attempt was senseless");
	$refused += grep { $_->[2] eq '42501' } @rows;
	$c->close(terminate => 1);
}
note("$attempts statements, " . scalar(map { @$_[ 1 .. $#$_ ] } @columns) . " roles, $refused refusals");

# What cannot be tried, because nobody could: writing through a view, and calling
# what is for the planner.
is($control->ok(q{SELECT count(*) FROM public.object WHERE kind = 'view' AND pg_relation_is_updatable(oid, true) <> 0})->value, 0, 'no view can be written through');
is(Connection->connect($node, user => 'chief')->query('SELECT idempotency.call_support(NULL)')->code, '42883', 'what is for the planner cannot be called');
is(Connection->connect($node, user => 'app')->query('CREATE FUNCTION public.mine(int) RETURNS int LANGUAGE sql SUPPORT idempotency.call_support AS $$ SELECT 1 $$')->code, '42501', 'nor attached to a function');

# ---- beyond SQL privileges -------------------------------------------------------

# Who may signal backends may not stop the worker, which is nobody's.
my $launcher = launcher_pid($node);
foreach my $role (qw(signaller watcher database_owner app))
{
	is(Connection->connect($node, user => $role)->query("SELECT pg_${_}_backend($launcher)")->code, '42501', "$role cannot $_ the worker") foreach qw(terminate cancel);
}

# Settings: limits are not for those whom they limit.
my $app = Connection->connect($node, user => 'app');
is($app->query('SELECT idempotency.effect_key(1::text, 1::text, 1::text)')->code, '', 'the library is loaded');
foreach my $row (@{ $control->ok(q{SELECT name, context, boot_val FROM pg_settings WHERE name LIKE 'idempotency.%' ORDER BY name})->rows })
{
	my ($name, $context, $value) = @$row;
	my $code = { user => '', superuser => '42501', sighup => '55P02' }->{$context};

	is($app->query("SET $name = '$value'")->code, $code, "$name is for $context");
	is(Connection->connect($node, user => 'database_owner')->query("ALTER DATABASE postgres SET $name = '$value'")->code, $code, "$name: also for a database") if $context ne 'user';
}

$node->stop;
done_testing();
