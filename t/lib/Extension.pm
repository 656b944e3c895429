
# Extension - what the TAP tests of the extension share

package Extension;

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use Exporter qw(import);
use File::Basename qw(dirname);
use File::Copy qw(copy);
use File::Path qw(make_path);
use File::Temp ();
use POSIX ();
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(new_server build_library use_library key_locks server_log troubles
  wait_until in_child replay_of status_of);

# A server that starts on a busy machine takes its time.
$ENV{PGCTLTIMEOUT} //= $PostgreSQL::Test::Utils::timeout_default;

# objsubid of the extension's locks in pg_locks; see src/locks.c.
our $lock_class = 18756;

# A running server with the extension in database "postgres".
sub new_server
{
	my ($name, %option) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);

	$node->init(%{ $option{init} // {} });
	# The test library logs every statement; servers do not.
	$node->append_conf('postgresql.conf', "log_statement = none\n" . ($option{conf} // ''));
	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION idempotency');
	return $node;
}

# Compiles the library of this checkout with more preprocessor flags, away from
# the checkout. Returns its path. LIBRARIES names a folder where it is to stay after
# the test: builds/coverage reads what it has counted there.
sub build_library
{
	my ($name, @flags) = @_;
	my $top = abs_path(dirname(__FILE__) . '/../..');
	my $to =
	  $ENV{LIBRARIES}
	  ? File::Temp::tempdir("$name.XXXXXX", DIR => $ENV{LIBRARIES})
	  : PostgreSQL::Test::Utils::tempdir($name);
	my $config = $ENV{PG_CONFIG} || 'pg_config';

	make_path("$to/src");
	foreach my $file (glob "$top/src/*.[ch] $top/Makefile $top/*.control")
	{
		my $target = "$to/" . substr($file, 1 + length $top);

		copy($file, $target) or croak "could not copy $file: $!";
	}
	# Bitcode for the JIT compiler would double the time and is not used.
	system_or_bail('make', '-s', '-j2', '-C', $to, "PG_CONFIG=$config",
		'with_llvm=no', "EXTRA_CPPFLAGS=@flags", 'idempotency.so');
	return "$to/idempotency.so";
}

# Lets the functions of a database come from another library. For connections
# made from now on.
sub use_library
{
	my ($node, $library) = @_;

	$node->safe_psql('postgres', qq{
		UPDATE pg_catalog.pg_proc SET probin = '$library'
		WHERE pronamespace = 'idempotency'::regnamespace AND probin IS NOT NULL});
	return;
}

# How many key locks are held or waited for, in all databases.
sub key_locks
{
	my ($connection) = @_;

	return $connection->ok(
		"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = $lock_class")->value;
}

sub server_log { return slurp_file($_[0]->logfile, $_[1] // 0); }

# Lines of the log that report an error or a warning.
sub troubles
{
	return grep { /(ERROR|FATAL|PANIC|WARNING):/ } split /^/, server_log(@_);
}

# Looks again until the condition is true; false if it never is. How long that
# may take is nobody's business: a bound is there for what never comes, and a
# busy machine is slow.
sub wait_until
{
	my ($condition) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	while (!$condition->())
	{
		return 0 if time > $deadline;
		sleep 0.01;
	}
	return 1;
}

# Runs it in a process of its own, and returns the process id. The child is not
# a second test: it keeps no signal handler (from PostgreSQL 16 on the test
# library dies of SIGTERM) and runs no END block, which would stop the servers.
sub in_child
{
	my ($work) = @_;
	my $pid = fork // croak "could not fork: $!";

	return $pid if $pid;
	$SIG{$_} = 'DEFAULT' foreach qw(HUP INT QUIT TERM);
	my $status = eval { $work->() };

	print STDERR "# $@" if $@;
	POSIX::_exit($@ ? 1 : $status);
}

# The recorded body of a key, or undef; the status of a key, or 'absent'.
sub replay_of
{
	my ($connection, @identity) = @_;

	return $connection->execute('SELECT response_body FROM idempotency.replay($1, $2, $3)', @identity)->value;
}

sub status_of
{
	my ($connection, @identity) = @_;

	return $connection->execute('SELECT status FROM idempotency.lookup($1, $2, $3)', @identity)->value // 'absent';
}

1;
