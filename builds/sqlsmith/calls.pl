
# Random calls of everything in schema idempotency; see run.
#
# A statement is drawn from its connection's own generator, so what a connection sends
# depends on the seed alone.

use strict;
use warnings;

use POSIX ();
use Servers;

my ($queries, $seed) = @ENV{qw(QUERIES SEED)};
# Four connections, of which one is another role each time that it begins.
my $connections = 4;
my @roles = ((qw(postgres app)) x 3, qw(operator monitor nobody));

# ---- values --------------------------------------------------------------------------

sub one_of { return $_[ int rand @_ ]; }

sub quoted
{
	my ($text) = @_;

	return 'NULL' unless defined $text;
	$text =~ s/(['\\])/$1 eq "'" ? "''" : "\\\\"/ge;
	return "E'$text'";
}

my %pool = (
	scope => [ qw(s1 s2 s3), 's_', '%' ],
	operation => [ qw(o1 o2), 'POST /orders' ],
	key => [ map { "k$_" } 1 .. 6 ],
	decision => [qw(retry forget complete RETRY)],
	scope_pattern => [ 's%', '%', 's\\_', '\\', '_', 's1' ],
	command => [
		'SELECT 1', 'SELECT $1', 'SELECT $1->>\'a\', $2', 'VALUES (1), (2)', 'SELECT', 'COMMIT', 'nonsense', ';', '',
		'SELECT 1; SELECT 2', 'SELECT 1/0', 'CREATE TEMP TABLE made (a int)', 'SELECT NULL::int', 'SET work_mem = 64',
		q{SELECT idempotency.once('s1', 'o1', 'k1')}, q{SELECT idempotency.complete('s1', 'o1', 'k2')},
		'DELETE FROM nowhere', 'INSERT INTO scratch VALUES (1) RETURNING *', 'SAVEPOINT a', 'LISTEN x', 'SELECT pg_catalog.pg_backend_pid()' ],
	schedule => [ '* * * * *', '1 minute', 'never' ],
	status => [qw(in_progress completed failed held other)]);

my @texts = (undef, '', ' ', 'a', 'x' x 255, 'x' x 256, 'y' x 900, 'z' x 9000, "\xC3\xBC\xE2\x82\xAC\xF0\x9F\x98\x80", "it's", 'back\\slash', "tab\t\nline", '%s %d %n', '{}', "\x01\x7f");
my @jsons = (undef, '{}', '[]', 'null', '1', '"text"', '{"a": 1.0}', '{"a": [1, {"b": null}]}', '[["Location", "/a"], ["Set-Cookie", "b"]]', '{"Location": "/a"}', '{"X": ["a", 1]}',
	'{"bad name": 1}', '[["a"]]', '[' x 400 . ']' x 400, '{"long": "' . 'x' x 5000 . '"}', '1e100', '[' . join(',', 1 .. 500) . ']');
my @intervals = (undef, '0', '1 us', '-1 us', '1 ms', '50 ms', '1 s', '1 hour', '24 hours', '30 days', '1 month -30 days', '-1 day', '100 years', '178000000 years', '-178000000 years', '2147483647 days');
my @times = (undef, 'now', 'epoch', 'infinity', '-infinity', '4713-01-01 BC', '294276-12-31', '2020-01-01', 'tomorrow');

my %value_of = (
	text => sub { return quoted(one_of(@texts)) . '::text' },
	jsonb => sub { return quoted(one_of(@jsons)) . '::jsonb' },
	bytea => sub { return one_of(q{NULL::bytea}, q{'\x'::bytea}, q{pg_catalog.sha256('a')}, q{pg_catalog.decode('00ff0d0a', 'hex')}, q{pg_catalog.convert_to('{"a": 1}', 'UTF8')}, q{pg_catalog.convert_to(pg_catalog.repeat('x', 33), 'UTF8')}, q{pg_catalog.convert_to(pg_catalog.repeat('[', 5000), 'UTF8')}) },
	interval => sub { return quoted(one_of(@intervals)) . '::interval' },
	timestamptz => sub { return quoted(one_of(@times)) . '::timestamptz' },
	int4 => sub { return one_of(qw(NULL 0 1 -1 2 100 200 503 2147483647 (-2147483648))) . '::int4' },
	int8 => sub { return one_of(qw(NULL 0 1 -1 2 5 1000 9223372036854775807 (-9223372036854775808) 9007199254740993)) . '::int8' },
	bool => sub { return one_of(qw(NULL true false)) . '::bool' },
	uuid => sub { return one_of('NULL', map { "'0000000$_-0000-8000-8000-000000000000'" } 0 .. 3) . '::uuid' },
	regrole => sub { return one_of(qw(NULL 0 4294967295 10), map { "'$_'" } @roles) . '::regrole' },
	_text => sub { return one_of('NULL', q{'{}'}, q{'{k1,k2,k3}'}, q{'{k1,k1,NULL}'}, q{'{{k1,k2},{k3,k4}}'}, q{'[5:6]={k5,k6}'}, q{'{s1,s2}'}, q{'{""}'}) . '::text[]' },
);

# The token that a key has now, or one of any other value.
sub token
{
	my ($identity) = @_;

	return $value_of{int8}->() if rand() < 0.3;
	return "(SELECT token FROM idempotency.lookup(" . join(', ', @$identity) . '))';
}

# A row of the keys: one that is there, or one with a value of its type in each column.
sub key_row
{
	my ($columns) = @_;

	return one_of('NULL::idempotency.idempotency_keys', '(SELECT k FROM idempotency.idempotency_keys AS k ORDER BY created_at LIMIT 1)') if rand() < 0.4;
	return 'ROW(' . join(', ', map { value(@$_) } @$columns) . ')::idempotency.idempotency_keys';
}

my @key_columns;

sub value
{
	my ($type, $name, $identity) = @_;

	return "NULL::$type" if rand() < 0.05;
	return token($identity) if $name eq 'token' && $identity;
	return quoted(one_of(@{ $pool{$name} })) . '::text' if $pool{$name} && $type eq 'text' && rand() < 0.9;
	return key_row(\@key_columns) if $type eq 'idempotency_keys';
	return $value_of{$type}->() if $value_of{$type};
	return "NULL::$type";
}

# ---- calls ---------------------------------------------------------------------------

# As "name(arguments)", with the options by name, of which most calls give few.
sub call
{
	my ($function) = @_;
	my @arguments;
	my @identity;
	my $needed = @{ $function->{types} } - $function->{defaults};

	foreach my $i (0 .. $#{ $function->{types} })
	{
		my ($type, $name) = ($function->{types}[$i], $function->{names}[$i]);

		next if $i >= $needed && rand() < 0.7;
		my $value = value($type, $name, @identity == 3 ? \@identity : undef);
		push @identity, $value if $i < 3 && $type eq 'text';
		push @arguments, $i < $needed || $name eq '' ? $value : "$name => $value";
	}
	return "idempotency.$function->{name}(" . join(', ', @arguments) . ')';
}

sub statement
{
	my ($functions) = @_;
	my $function = one_of(@$functions);
	my $call = call($function);

	return "CALL $call" if $function->{kind} eq 'p';
	my $other = call(one_of(grep { !$_->{set} && $_->{kind} eq 'f' } @$functions));
	my @forms = (
		"SELECT $call", "SELECT $call", "SELECT * FROM $call", "SELECT * FROM $call",
		"SELECT $call FROM pg_catalog.generate_series(1, 3)",
		"SELECT x, $other FROM $call AS x",
		"WITH x AS MATERIALIZED (SELECT $call AS r) SELECT x.r, $other FROM x",
		"SELECT * FROM (SELECT $call AS r OFFSET 0) AS x LEFT JOIN LATERAL (SELECT $other) AS y ON true",
		"SELECT $call UNION ALL SELECT NULL LIMIT 1",
		"EXPLAIN (ANALYZE, VERBOSE, COSTS OFF, TIMING OFF) SELECT * FROM $call",
		"EXPLAIN (VERBOSE) SELECT $call",
		"CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM $call",
		"SELECT $call ORDER BY $other",
		"SELECT r FROM ROWS FROM ($call, $call) AS r LIMIT 1",
		"DO \$do\$ BEGIN PERFORM $call; EXCEPTION WHEN OTHERS THEN IF SQLSTATE LIKE 'XX%' THEN RAISE; END IF; END \$do\$",
		"DO \$do\$ DECLARE r record; BEGIN FOR r IN SELECT * FROM $call LOOP PERFORM $other; EXIT; END LOOP; END \$do\$");
	push @forms, "SELECT ($call).*" if $function->{composite};
	push @forms, "SELECT CASE WHEN $other IS NULL THEN $call END", "SELECT 1 WHERE $call IS NOT NULL", "SELECT pg_catalog.count($call) FILTER (WHERE true), $call",
	  "SELECT COALESCE($call, $call)", "SELECT ARRAY[$call, $call]"
	  unless $function->{set};
	return one_of(@forms);
}

# What is between calls.
sub surroundings
{
	my ($settings, $name) = @_;
	my $setting = one_of(@$settings);

	return one_of(
		('COMMIT') x 4, ('ROLLBACK') x 2, ('SAVEPOINT a') x 4, ('ROLLBACK TO a') x 3, ('RELEASE a') x 2,
		"PREPARE TRANSACTION '$name'", "COMMIT PREPARED '$name'", "ROLLBACK PREPARED '$name'",
		'BEGIN ISOLATION LEVEL REPEATABLE READ', 'BEGIN ISOLATION LEVEL SERIALIZABLE', 'BEGIN READ ONLY',
		('BEGIN') x 4, 'COMMIT AND CHAIN',
		'DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT * FROM idempotency.idempotency_keys', 'FETCH ALL FROM c', 'MOVE BACKWARD ALL IN c', 'CLOSE ALL',
		"SET $setting->[0] = " . one_of(@{ $setting->[1] }), "SET LOCAL $setting->[0] = " . one_of(@{ $setting->[1] }),
		'RESET ALL', 'DISCARD ALL', 'SET search_path = pg_temp, public', "SET search_path = ''", 'SET plan_cache_mode = ' . one_of(qw(auto force_custom_plan force_generic_plan)),
		'SET ROLE ' . one_of(@roles), 'RESET ROLE', 'SET debug_parallel_query = on', 'SET force_parallel_mode = on', 'SET jit_above_cost = 0', 'SET transaction_read_only = on',
		'UPDATE idempotency.idempotency_keys SET ' . one_of('locked_until = now()', 'expires_at = now()', 'token = NULL', 'note = NULL', 'lease_ms = -1', "status = 'other'", 'attempt = 2147483647', 'expires_at = created_at',
			"created_at = 'infinity'", "expires_at = '-infinity'", "locked_until = 'infinity'") . " WHERE key = '" . one_of(@{ $pool{key} }) . "'",
		"DELETE FROM idempotency.idempotency_keys WHERE key = '" . one_of(@{ $pool{key} }) . "'",
		"INSERT INTO idempotency.idempotency_keys SELECT (" . key_row(\@key_columns) . ').*',
		'ANALYZE idempotency.idempotency_keys', 'TRUNCATE scratch', 'SELECT * FROM idempotency.stats', 'SELECT * FROM idempotency.effective_policies');
}

# Sends its share of statements, and writes what came out: SQLSTATEs, and what must not be.
sub smith
{
	my ($out, $number, $functions, $settings) = @_;
	my (%count, $connection);

	srand($seed + $number);
	foreach my $turn (1 .. $queries / $connections)
	{
		if (!$connection || rand() < 0.002)
		{
			$connection->close(terminate => 1) if $connection;
			$connection = connect_to('server', 'smith', options => '-c statement_timeout=300 -c lock_timeout=100 -c application_name=calls');
			$connection->query('SET SESSION AUTHORIZATION ' . ($number == 0 ? 'postgres' : one_of(@roles)));
		}
		my $sql = rand() < 0.7 ? statement($functions) : surroundings($settings, "p$number");
		my $result = rand() < 0.3 ? $connection->execute($sql) : $connection->query($sql);
		my $code = $result->code;

		# The end of a transaction and of a cursor are as drawn; what is aborted is not kept long.
		$count{$code}++;
		if ($code eq 'lost' || $code =~ /^(XX|57P0[12])/)
		{
			print $out "wrong $code: ", $result->message =~ s/\n.*//sr, ": ", substr($sql =~ s/\s+/ /gr, 0, 2000), "\n";
			last if $code !~ /^XX/;
		}
		$connection->query('ROLLBACK') if $code eq '25P02' || ($result->{status} // '') eq 'E' && rand() < 0.5;
	}
	$connection->close(terminate => 1) if $connection;
	print $out "count $_ $count{$_}\n" foreach keys %count;
	return;
}

# ---- sqlsmith ------------------------------------------------------------------------

# sqlsmith draws from all of pg_proc by type. So that our functions are not lost among
# thousands it gets a schema in front of pg_catalog that shows few others, those that
# return sets as if they returned one row, and no type that it does not know. Operators
# it reads by their full name; most of what it would draw are those of ranges, of which it
# has no values, so they go. Values beyond NULL it only finds in tables.
my $stage = q{
	CREATE SCHEMA smith;
	CREATE VIEW smith.pg_proc AS
		SELECT oid, proname, pronamespace, prorettype, proargtypes, proargnames, prokind, false AS proretset,
			prokind = 'a' AS proisagg, prokind = 'w' AS proiswindow
		FROM pg_catalog.pg_proc
		WHERE (pronamespace = 'idempotency'::regnamespace AND prokind = 'f'
			AND NOT 'internal'::regtype = ANY (proargtypes))
			OR (pronamespace = 'pg_catalog'::regnamespace
				AND proname IN ('md5', 'upper', 'jsonb_typeof', 'jsonb_array_length', 'length', 'sha256', 'clock_timestamp', 'gen_random_uuid', 'max', 'min', 'bool_and'));
	CREATE VIEW smith.pg_type AS SELECT * FROM pg_catalog.pg_type WHERE typtype <> 'm';
	SET allow_system_table_mods = on;
	DELETE FROM pg_catalog.pg_operator
		WHERE oprleft::regtype::text LIKE 'any%range' OR oprright::regtype::text LIKE 'any%range';
	RESET allow_system_table_mods;
	CREATE TABLE smith.arguments
	(
		words text, document jsonb, span interval, moment timestamptz, bytes bytea, name uuid, list text[], role regrole, truth bool,
		small int4, large int8
	);
	GRANT USAGE ON SCHEMA smith TO PUBLIC;
	GRANT SELECT ON ALL TABLES IN SCHEMA smith TO PUBLIC;
};

sub fill_arguments
{
	my @rows;

	for (1 .. 60)
	{
		push @rows, '(' . join(', ',
			value('text', one_of(qw(scope operation key command decision other))), map { $value_of{$_}->() } qw(jsonb interval timestamptz bytea uuid _text regrole bool int4 int8)) . ')';
	}
	return 'INSERT INTO smith.arguments VALUES ' . join ', ', @rows;
}

sub sqlsmith
{
	my ($user, $number) = @_;
	my $target = "host=$work/server port=5432 dbname=smith user=$user options='-c search_path=smith,pg_catalog -c lock_timeout=100'";

	my @command = ($ENV{SQLSMITH}, "--target=$target", '--exclude-catalog', '--seed=' . ($seed + $number), '--max-queries=' . int($queries / 20));

	# What it says of each error is in the server's log as well.
	my $pid = fork // die "fork: $!";

	if (!$pid)
	{
		open STDOUT, '>', "$work/scratch/sqlsmith" or POSIX::_exit(1);
		open STDERR, '>&', \*STDOUT or POSIX::_exit(1);
		exec { $command[0] } @command or POSIX::_exit(1);
	}
	waitpid $pid, 0;
	return $? == 0;
}

# ---- the test ------------------------------------------------------------------------

my ($passed, $failed) = (0, 0);

sub verdict
{
	my ($good, $words, @why) = @_;

	printf "%-7s %s\n", $good ? 'ok' : 'FAILED', $words;
	$good ? $passed++ : $failed++;
	print map { "        $_\n" } splice @why, 0, 15 unless $good;
	return;
}

sub slurp_log
{
	open my $log, '<', "$work/server/log" or die "log: $!";
	return <$log>;
}

$| = 1;
psql('server', 'postgres', '-c', 'CREATE DATABASE smith');
psql('server', 'smith', '-c', 'CREATE EXTENSION idempotency', '-c', "CREATE ROLE $_ LOGIN") foreach 'app';
psql('server', 'smith', '-c', "CREATE ROLE $_ LOGIN") foreach qw(operator monitor nobody);
psql('server', 'smith', '-c', "SELECT idempotency.grant_usage('app')", '-c', "SELECT idempotency.grant_operator('operator')", '-c', "SELECT idempotency.grant_monitor('monitor')",
	'-c', 'CREATE TABLE scratch (a int); GRANT ALL ON scratch TO PUBLIC', '-c', 'GRANT TEMPORARY ON DATABASE smith TO PUBLIC', '-c', $stage);

my $admin = connect_to('server', 'smith');
my $assertions = $admin->ok('SHOW debug_assertions')->value;

print "seed $seed, assertions $assertions\n";
@key_columns = map { [@$_] } @{ $admin->ok(q{
	SELECT t.typname, a.attname FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
	WHERE a.attrelid = 'idempotency.idempotency_keys'::regclass AND a.attnum > 0 ORDER BY a.attnum})->rows };
my @functions = map
{
	{
		name => $_->[0], kind => $_->[1], set => $_->[2] eq 't', composite => $_->[3] eq 't', defaults => $_->[4],
		types => [ split /,/, $_->[5] // '' ], names => [ split /,/, $_->[6] // '', -1 ]
	}
} @{ $admin->ok(q{
	SELECT p.proname, p.prokind, p.proretset, t.typtype = 'c' OR p.prorettype = 'record'::regtype, p.pronargdefaults,
		(SELECT string_agg(a.typname, ',' ORDER BY i) FROM unnest(p.proargtypes) WITH ORDINALITY AS u (type, i) JOIN pg_catalog.pg_type a ON a.oid = u.type),
		(SELECT string_agg(n, ',' ORDER BY i) FROM unnest(p.proargnames[1:p.pronargs]) WITH ORDINALITY AS u (n, i))
	FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_type t ON t.oid = p.prorettype
	WHERE p.pronamespace = 'idempotency'::regnamespace AND t.typname NOT IN ('trigger', 'internal')
	ORDER BY p.proname})->rows };
# Those of every request are drawn more often.
my @drawn = map { ($_) x ($_->{name} =~ /^(claim|complete|run|once|fail|extend|checkpoint)$/ ? 4 : 1) } @functions;

# What a session may set, to its bounds and between.
my @settings = map
{
	my ($name, $type, $low, $high, $default) = @$_;

	[ $name, $type eq 'bool' ? [qw(on off)] : $type eq 'integer' ? [ $low, $high, $low + 1, int(($low + $high) / 2), $default, $default, $default ] : ["''"] ]
} @{ $admin->ok(q{SELECT name, vartype, min_val, max_val, boot_val FROM pg_catalog.pg_settings
	WHERE name LIKE 'idempotency.%' AND context IN ('user', 'superuser') AND vartype <> 'string' ORDER BY name})->rows };

my @children = map
{
	my $number = $_;
	in_child(sub { smith($_[0], $number, \@drawn, \@settings) })
} 0 .. $connections - 1;
my (%count, @wrong, $statements);

foreach my $line (map { child_end($_) } @children)
{
	if ($line =~ /^count (\S*) (\d+)$/) { $count{ $1 || '00000' } += $2; $statements += $2; }
	else { push @wrong, $line; }
}
my @lost = grep { !/^wrong XX/ } @wrong;
my @internal = grep { /^wrong XX/ } @wrong;

verdict($statements && !@lost, 'calls: every connection came to its end', @lost);
verdict(!@internal, 'calls: no internal error', @internal);
$admin->query('SELECT 1');
if ($ENV{SQLSMITH} && !$admin->lost)
{
	$admin->ok(fill_arguments());
	verdict(sqlsmith('postgres', 0), 'sqlsmith as the superuser: came to its end');
	verdict(sqlsmith('app', 1), 'sqlsmith as an application: came to its end');
}
my @log = slurp_log();

verdict(!(grep { /TRAP|PANIC|terminated by signal|stack smashing/ } @log), 'the server lives, and no assertion failed', grep { /TRAP|PANIC|terminated by signal|stack smashing/ } @log);
verdict(!(grep { / XX[0-9A-Z]{3} / } @log), 'the log has no internal error', grep { / XX[0-9A-Z]{3} / } @log);
verdict(!(grep { /WARNING.*(leak|still|not closed|owned by|problem in|bogus)/ } @log), 'no session left a resource behind', grep { /WARNING.*(leak|still|not closed|owned by|problem in|bogus)/ } @log);

# Locks of prepared transactions are all that may be left.
my $after = connect_to('server', 'smith', fail_ok => 1);

if ($after && $after->query('CREATE EXTENSION amcheck')->code eq '')
{
	$after->ok("ROLLBACK PREPARED '$_->[0]'") foreach @{ $after->ok('SELECT gid FROM pg_catalog.pg_prepared_xacts')->rows };
	my $sound = $after->query(q{SELECT bt_index_check(indexrelid, true) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
		JOIN pg_catalog.pg_am a ON a.amname = 'btree' JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid AND x.relam = a.oid
		WHERE c.relnamespace = 'idempotency'::regnamespace});

	verdict($sound->code eq '', 'the indexes are sound', $sound->message);
	verdict($after->ok('SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = \'advisory\' AND objsubid = 18756')->value == 0, 'no lock of a key is left');
}
print "\n";
foreach my $code (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)
{
	printf "%-8s %s\n", $code, $count{$code};
}
my %smith;

/ (?:sqlsmith|smith\S*)::dut ([0-9A-Z]{5}) (?:ERROR|FATAL)/i and $smith{$1}++ foreach @log;
print 'of sqlsmith: ', join(', ', map { "$_ $smith{$_}" } sort { $smith{$b} <=> $smith{$a} } keys %smith), "\n" if %smith;
printf "statements %d, by sqlsmith %d, functions %d\n", $statements, $ENV{SQLSMITH} && !$admin->lost ? 2 * int($queries / 20) : 0, scalar @functions;
print "$passed passed, $failed failed\n";
exit($failed ? 1 : 0);
