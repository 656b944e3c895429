
# The install script breaks none of pgspot's rules, and scripts/check-install-script,
# which says so, notices each of them; it is told of every line where it is broken.

use strict;
use warnings;

use FindBin;

use Test::More;
use PostgreSQL::Test::Utils;

my $top = "$FindBin::RealBin/..";
my $checker = "$top/scripts/check-install-script";
my $folder = PostgreSQL::Test::Utils::tempdir('scripts');

sub rules_broken
{
	my ($text) = @_;

	PostgreSQL::Test::Utils::append_to_file("$folder/script.sql", '');
	open my $out, '>', "$folder/script.sql" or die $!;
	print $out $text;
	close $out;
	return join ' ', map { /: (PS\d+): / } qx($^X $checker $folder/script.sql);
}

foreach my $script (glob "$top/idempotency--*.sql $top/t/upgrade/idempotency--*.sql")
{
	my $name = $script =~ s{.*/}{}r;
	my $said = qx($^X $checker $script);

	is($said, '', "$name breaks no rule");
	is($?, 0, "$name: and the exit status says so");
}

# One line for each rule, and for each way that it can be broken; beside each, a
# line that keeps it.
my $begin = "\\echo Use \"CREATE EXTENSION\" \\quit\nSET LOCAL search_path TO pg_catalog, pg_temp;\n";
my @samples = (
	[ PS001 => q{SELECT 1 + 2;}, q{SELECT 1 OPERATOR(pg_catalog.+) 2;} ],
	[ PS001 => q{CREATE INDEX i ON s.t (a) WHERE a IN (1);}, q{CREATE INDEX i ON s.t (a) WHERE a OPERATOR(pg_catalog.=) ANY (ARRAY[1]);} ],
	[ PS001 => q{CREATE VIEW s.v AS SELECT t.a FROM s.t AS t WHERE t.a LIKE 'x%';}, q{CREATE VIEW s.v AS SELECT t.a FROM s.t AS t WHERE t.a OPERATOR(pg_catalog.~~) 'x%';} ],
	[ PS001 => q{SELECT t.a FROM s.t AS t WHERE t.a BETWEEN 1 AND 2;}, q{SELECT t.a FROM s.t AS t WHERE t.a IS NOT NULL;} ],
	[ PS001 => q{SELECT t.a FROM s.t AS t WHERE t.a IS DISTINCT FROM t.b;}, q{SELECT DISTINCT t.a FROM s.t AS t;} ],
	[ PS001 => q{SELECT NULLIF(t.a, 0) FROM s.t AS t;}, q{SELECT COALESCE(t.a, 0) FROM s.t AS t;} ],
	[ PS001 => q{ALTER TABLE s.t ADD CHECK (a > 0);}, q{ALTER TABLE s.t SET (fillfactor OPERATOR(pg_catalog.=) 1);} ],
	[ PS002 => q{CREATE OR REPLACE FUNCTION s.f() RETURNS pg_catalog.int4 AS 'MODULE_PATHNAME', 'f' LANGUAGE C;}, q{CREATE FUNCTION s.f() RETURNS pg_catalog.int4 AS 'MODULE_PATHNAME', 'f' LANGUAGE C;} ],
	[ PS002 => q{CREATE OR REPLACE PROCEDURE s.f() AS 'MODULE_PATHNAME', 'f' LANGUAGE C;}, q{CREATE PROCEDURE s.f() AS 'MODULE_PATHNAME', 'f' LANGUAGE C;} ],
	[ PS003 => q{CREATE FUNCTION s.f() RETURNS pg_catalog.int4 AS 'MODULE_PATHNAME', 'f' LANGUAGE C SECURITY DEFINER;}, q{CREATE FUNCTION s.f() RETURNS pg_catalog.int4 AS 'MODULE_PATHNAME', 'f' LANGUAGE C SECURITY INVOKER;} ],
	[ PS004 => q{CREATE FUNCTION s.f() RETURNS pg_catalog.int4 LANGUAGE C SECURITY DEFINER SET search_path TO pg_catalog, public AS 'MODULE_PATHNAME', 'f';},
		q{CREATE FUNCTION s.f() RETURNS pg_catalog.int4 LANGUAGE C SECURITY DEFINER SET search_path TO pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'f';} ],
	[ PS005 => q{CREATE FUNCTION s.f() RETURNS pg_catalog.int4 LANGUAGE sql AS $$ SELECT 1 + 1 $$;}, q{COMMENT ON FUNCTION s.f IS 'LANGUAGE sql';} ],
	[ PS005 => q{DO $$ BEGIN PERFORM now(); END $$;}, q{-- DO $$ BEGIN PERFORM now(); END $$;} ],
	[ PS006 => q{CREATE OR REPLACE TRANSFORM FOR s.x LANGUAGE c (FROM SQL WITH FUNCTION s.a(pg_catalog.internal));}, q{CREATE TRANSFORM FOR s.x LANGUAGE c (FROM SQL WITH FUNCTION s.a(pg_catalog.internal));} ],
	[ PS007 => q{CREATE OR REPLACE AGGREGATE s.a(pg_catalog.int4) (SFUNC = s.f, STYPE = pg_catalog.int4);}, q{CREATE TYPE s.a AS (b pg_catalog.int4);} ],
	[ PS007 => q{CREATE COLLATION IF NOT EXISTS s.c FROM pg_catalog."C";}, q{ALTER TABLE s.t ADD COLUMN b pg_catalog.int4;} ],
	[ PS007 => q{ALTER TABLE s.t ADD COLUMN IF NOT EXISTS b pg_catalog.int4;}, q{COMMENT ON TABLE s.t IS 'CREATE TABLE IF NOT EXISTS';} ],
	[ PS007 => q{CREATE TABLE IF NOT EXISTS s.t AS SELECT 1;}, q{CREATE TABLE s.t AS SELECT 1;} ],
	[ PS008 => q{ALTER SEQUENCE q CYCLE;}, q{ALTER SEQUENCE s.q CYCLE;} ],
	[ PS009 => q{SELECT CASE t.a WHEN 1 THEN 2 END FROM s.t AS t;}, q{SELECT CASE WHEN t.a IS NULL THEN 2 END FROM s.t AS t;} ],
	[ PS010 => q{CREATE SCHEMA IF NOT EXISTS s;}, q{CREATE SCHEMA s;} ],
	[ PS011 => q{CREATE SEQUENCE IF NOT EXISTS s.q;}, q{CREATE SEQUENCE s.q;} ],
	[ PS012 => q{CREATE TABLE IF NOT EXISTS s.t (a pg_catalog.int4);}, q{CREATE TABLE s.t (a pg_catalog.int4) WITH (fillfactor=90);} ],
	[ PS012 => q{CREATE UNLOGGED TABLE IF NOT EXISTS s.t (a pg_catalog.int4);}, q{CREATE UNLOGGED TABLE s.t (a pg_catalog.int4);} ],
	[ PS013 => q{CREATE SERVER IF NOT EXISTS x FOREIGN DATA WRAPPER y;}, q{CREATE SERVER x FOREIGN DATA WRAPPER y;} ],
	[ PS014 => q{CREATE INDEX IF NOT EXISTS i ON s.t (a);}, q{CREATE UNIQUE INDEX i ON s.t (a);} ],
	[ PS015 => q{CREATE OR REPLACE VIEW s.v AS SELECT 1 AS a;}, q{CREATE VIEW s.v AS SELECT 1 AS a;} ],
	[ PS016 => q{SELECT now();}, q{SELECT pg_catalog.now();} ],
	[ PS016 => q{CREATE TABLE s.t (a pg_catalog.uuid DEFAULT gen_random_uuid());}, q{CREATE TABLE s.t (a pg_catalog.uuid DEFAULT pg_catalog.gen_random_uuid());} ],
	[ PS017 => q{SELECT 'a'::text;}, q{SELECT 'a'::pg_catalog.text;} ],
	[ PS017 => q{CREATE TABLE s.t (a integer);}, q{CREATE TABLE s.t (a pg_catalog.int4);} ],
	[ PS017 => q{CREATE TABLE t (a pg_catalog.int4);}, q{CREATE TABLE s.t ();} ],
	[ PS017 => q{CREATE VIEW s.v AS SELECT t.a FROM t;}, q{CREATE VIEW s.v AS SELECT t.a FROM s.t;} ],
	[ PS017 => q{COMMENT ON TABLE t IS 'a';}, q{COMMENT ON TABLE s.t IS 'a table t';} ],
	[ PS017 => q{INSERT INTO t VALUES (1);}, q{INSERT INTO s.t VALUES (1);} ],
	[ PS018 => q{SET LOCAL search_path TO 'pg_catalog, pg_temp';}, q{SET LOCAL search_path TO pg_catalog, pg_temp;} ]);
foreach my $sample (@samples)
{
	my ($rule, $bad, $good) = @$sample;
	my %broken = map { $_ => 1 } split / /, rules_broken("$begin$bad\n");

	ok($broken{$rule}, "$rule: $bad") or diag(join ' ', keys %broken);
	is(rules_broken("$begin$good\n"), '', "and not: $good");
}
is(rules_broken("CREATE SCHEMA s;\n$begin"), 'PS000', 'PS000: something before the search path');
is(rules_broken("SET search_path TO pg_catalog, pg_temp;\n"), 'PS000', 'PS000: not for the transaction alone');
like(qx($^X $checker $folder/script.sql), qr/script\.sql:1: PS000/, 'the line is named');
my %known = map { $_ => 1 } slurp_file($checker) =~ /^\t(PS\d+) =>/mg;
delete @known{ 'PS000', map { $_->[0] } @samples };
is(join(' ', sort keys %known), '', 'every rule has a sample');

# Nor is a rule broken by any line of the script itself that loses its qualification.
my $script = slurp_file("$top/idempotency--1.0.sql");
my ($lines, $unseen) = (0, 0);
while ($script =~ /^(?!--)[^'\n]*?\K(?:OPERATOR\(pg_catalog\.([^)]+)\)|pg_catalog\.(?!\W))/mg)
{
	my ($before, $after) = (substr($script, 0, $-[0]), substr($script, $+[0]));

	# A sample of them; each is a run of the checker.
	next if $lines++ % 40;
	$unseen++ if rules_broken($before . ($1 // '') . $after) eq '';
}
cmp_ok($lines, '>', 300, "the script has $lines qualified names");
is($unseen, 0, 'and the loss of one is noticed');

done_testing();
