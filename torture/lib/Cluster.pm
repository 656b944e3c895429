
# Cluster - a primary, its synchronous standby, and a pooler before the primary
#
# Two servers, a and b, each with its data and its WAL on a file system of its own
# where that was possible (scripts/torture mounts them). Which of them is the primary
# is in a file, since faults are the business of several processes. Nothing here
# depends on how fast anything is: it waits for what can be observed.

package Cluster;

use strict;
use warnings;

use Carp;
use Connection;
use Exporter qw(import);
use File::Path qw(remove_tree);
use POSIX ();
use Shared;
use Time::HiRes qw(sleep time);

our @EXPORT = qw($patience primary standby socket_of init_primary start_server ensure_up stop_server postmaster_of processes_of
  kill_server gone make_standby in_sync promote connect_admin ask_admin wait_until start_pooler pooler_pid
  reload_pooler stop_pooler log_of run_command direct_conninfo pooled_conninfo);

our $patience = 120;
my $bindir = $ENV{TORTURE_BINDIR};
my %preloaded = (LD_PRELOAD => "$work/clock.so", TORTURE_CLOCK => "$work/clock");

sub primary { return read_file('primary'); }
sub standby { return primary() eq 'a' ? 'b' : 'a'; }
sub socket_of { return "$work/$_[0]/socket"; }
sub log_of { return "$work/$_[0]/log"; }

sub wait_until
{
	my ($condition, $seconds) = @_;
	my $deadline = time + ($seconds // $patience);

	while (!$condition->())
	{
		return 0 if time > $deadline;
		sleep 0.02;
	}
	return 1;
}

# True if it succeeded; what it said is in $work/commands.
sub run_command
{
	my (@command) = @_;
	my $pid = fork // croak "fork: $!";

	if (!$pid)
	{
		open STDIN, '<', '/dev/null';
		open STDOUT, '>>', "$work/commands";
		open STDERR, '>&', \*STDOUT;
		exec @command or POSIX::_exit(127);
	}
	waitpid $pid, 0;
	return $? == 0;
}

# ---- servers -------------------------------------------------------------------------

sub settings
{
	my ($name) = @_;

	return <<"EOC";
listen_addresses = ''
unix_socket_directories = '${\ socket_of($name)}'
port = 5432
max_connections = 90
max_prepared_transactions = 60
max_worker_processes = 12
shared_buffers = 64MB
shared_preload_libraries = 'idempotency'
fsync = on
max_wal_size = 48MB
min_wal_size = 4MB
wal_keep_size = 64MB
wal_level = replica
wal_retrieve_retry_interval = 100ms
checkpoint_timeout = 30s
deadlock_timeout = 20ms
autovacuum_naptime = 3s
restart_after_crash = on
log_min_messages = warning
log_checkpoints = off
log_line_prefix = '%m [%p] %e %u '
log_parameter_max_length_on_error = 0
idempotency.default_ttl = '360d'
idempotency.failed_ttl = '360d'
idempotency.cleanup_interval = 1s
idempotency.cleanup_pause = 0
idempotency.cleanup_batch_size = 10
include_if_exists '$work/$name/synchronous'
EOC
}

sub init_primary
{
	my ($name) = @_;

	mkdir "$work/$_" foreach $name, "$name/socket", "$name/data", "$name/wal";
	run_command("$bindir/initdb", '-D', "$work/$name/data/pg", '--waldir', "$work/$name/wal/pg", '--wal-segsize=1', '-k',
		'-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--no-locale', '--no-sync') or croak 'initdb failed';
	write_file("$name/data/pg/postgresql.conf", settings($name));
	write_file('primary', $name);
	start_server($name) or croak 'the server did not start';
	return;
}

sub start_server
{
	my ($name) = @_;

	# What a killed server has left, which may still be a process that nobody has
	# waited for.
	unlink "$work/$name/data/pg/postmaster.pid", glob(socket_of($name) . '/.s.PGSQL.*') if gone($name);
	{
		local %ENV = (%ENV, %preloaded);

		# pg_ctl waits by comparing wall clocks, which jump.
		run_command("$bindir/pg_ctl", '-D', "$work/$name/data/pg", '-l', log_of($name), '-s', '-W', 'start');
	}
	wait_until(sub { !gone($name) }, 10);
	return wait_until(sub { connect_admin($name, 1) || gone($name) }) && !gone($name);
}

# A server that has come to its own end, such as one that could not recover because
# its disk was full, is started again.
sub ensure_up
{
	my ($name) = @_;

	return wait_until(sub {
		return 1 if connect_admin($name, 1);
		start_server($name) if gone($name);
		return connect_admin($name, 1);
	});
}

sub stop_server
{
	my ($name, $mode) = @_;

	# A server (15.20) that is told to stop while it begins to recover from a crash may
	# wait for ever, with nothing left of it but its checkpointer.
	run_command("$bindir/pg_ctl", '-D', "$work/$name/data/pg", '-s', '-m', $mode, '-t', 15, '-w', 'stop');
	return wait_until(sub { gone($name) }, 5);
}

sub postmaster_of
{
	my ($name) = @_;
	my ($pid) = (read_file("$name/data/pg/postmaster.pid") // '') =~ /^(\d+)/ or return;

	return (readlink "/proc/$pid/cwd" // '') eq "$work/$name/data/pg" ? $pid : undef;
}

# All processes of a server, also those that have outlived their postmaster.
sub processes_of
{
	my ($name) = @_;

	return grep { (readlink "/proc/$_/cwd" // '') eq "$work/$name/data/pg" && (readlink "/proc/$_/exe" // '') =~ m{/postgres( |$)} }
	  map { m{(\d+)$} } glob '/proc/[0-9]*';
}

sub gone { return !processes_of($_[0]); }

# All of it at once, as if the machine had stopped.
sub kill_server
{
	my ($name) = @_;
	my $postmaster = postmaster_of($name);

	kill STOP => $postmaster if $postmaster;
	kill KILL => $postmaster // (), processes_of($name);
	return wait_until(sub {
		my @left = processes_of($name);
		kill KILL => @left if @left;
		return !@left;
	});
}

# Makes a server anew as the standby of the other, and has commits wait for it.
sub make_standby
{
	my ($name, $of) = @_;

	synchronous($of, 0);
	kill_server($name);
	mkdir "$work/$_" foreach $name, "$name/socket", "$name/data", "$name/wal";
	remove_tree("$work/$name/data/pg", "$work/$name/wal/pg");
	wait_until(sub {
		ensure_up($of);
		remove_tree("$work/$name/data/pg", "$work/$name/wal/pg");
		return run_command("$bindir/pg_basebackup", '-D', "$work/$name/data/pg", '--waldir', "$work/$name/wal/pg", '-R', '-X', 'stream',
			'-c', 'fast', '-h', socket_of($of), '-p', 5432, '-U', 'postgres');
	}) or die "could not copy server $of\n";
	write_file("$name/data/pg/postgresql.conf", settings($name));
	unlink "$work/$name/synchronous";
	ensure_up($name) or die "server $name does not start as a standby\n";
	synchronous($of, 1);
	return in_sync($of) || die "server $name does not follow\n";
}

sub synchronous
{
	my ($name, $on) = @_;

	write_file("$name/synchronous", $on ? "synchronous_standby_names = '*'\n" : '');
	return ask_admin($name, 'SELECT pg_reload_conf()');
}

# Whether all that this server has written by now has come to its standby, and is
# waited for from now on.
sub in_sync
{
	my ($name) = @_;
	my $lsn = ask_admin($name, 'SELECT pg_current_wal_insert_lsn()');

	return wait_until(sub {
		return (ask_admin($name, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming' AND flush_lsn >= '$lsn'") // 0) > 0;
	}, 30);
}

# The old primary is dead. The other one takes its place.
sub promote
{
	my ($name) = @_;

	{
		local $ENV{PGCTLTIMEOUT} = $patience;
		run_command("$bindir/pg_ctl", '-D', "$work/$name/data/pg", '-s', '-w', 'promote') or return 0;
	}
	write_file('primary', $name);
	reload_pooler();
	return 1;
}

# ---- connections ---------------------------------------------------------------------

sub connect_admin
{
	my ($name, $fail_ok) = @_;
	my $connection = eval {
		Connection->connect(undef, host => socket_of($name), port => 5432, user => 'postgres', database => 'postgres', fail_ok => 1);
	};

	return $connection if $connection || $fail_ok;
	wait_until(sub { $connection = connect_admin($name, 1) }) or croak "server $name does not answer";
	return $connection;
}

# A value, asked until it is answered; undef if it never is.
sub ask_admin
{
	my ($name, $sql) = @_;
	my $value;

	wait_until(sub {
		my $connection = connect_admin($name, 1) or return 0;
		my $result = eval { $connection->query($sql) } or return 0;

		return 0 if $result->code ne '';
		$value = $result->value;
		return 1;
	});
	return $value;
}

sub direct_conninfo
{
	return join ' ', 'host=' . join(',', map { socket_of($_) } 'a', 'b'), 'port=5432,5432', 'dbname=postgres user=app',
	  'target_session_attrs=read-write';
}

sub pooled_conninfo { return "host=$work/pooler port=6432 dbname=postgres user=app"; }

# ---- the pooler ----------------------------------------------------------------------

sub pooler_settings
{
	write_file('pooler/users', qq("app" ""\n));
	write_file('pooler/ini', <<"EOC");
[databases]
postgres = host=${\ socket_of(primary())} port=5432 dbname=postgres
[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = $work/pooler
auth_type = trust
auth_file = $work/pooler/users
pool_mode = transaction
default_pool_size = 4
server_login_retry = 0.1
logfile = $work/pooler/log
pidfile = $work/pooler/pid
EOC
	return;
}

sub start_pooler
{
	mkdir "$work/pooler";
	pooler_settings();
	unlink "$work/pooler/pid", "$work/pooler/.s.PGSQL.6432";
	return run_command($ENV{TORTURE_PGBOUNCER}, '-q', '-d', "$work/pooler/ini") && wait_until(\&pooler_pid);
}

sub pooler_pid
{
	my ($pid) = (read_file('pooler/pid') // '') =~ /(\d+)/ or return;

	return (readlink "/proc/$pid/exe" // '') =~ /pgbouncer/ ? $pid : undef;
}

sub reload_pooler
{
	my $pid = pooler_pid() or return;

	pooler_settings();
	kill HUP => $pid;
	return;
}

sub stop_pooler
{
	my $pid = pooler_pid() or return;

	kill KILL => $pid;
	return wait_until(sub { !pooler_pid() });
}

1;
