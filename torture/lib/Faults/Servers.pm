
# Faults::Servers - whole servers: restarts, crashes, promotions, full disks

package Faults::Servers;

use strict;
use warnings;

use Cluster;
use Shared;
use Time::HiRes qw(sleep);

our %faults = (
	'immediate-restart' => sub { return restart(primary(), 'immediate'); },
	'fast-restart' => sub { return restart(primary(), 'fast'); },
	'standby-restart' => sub { return restart(standby(), 'immediate'); },
	'kill-postmaster' => sub {
		my $name = primary();
		my $postmaster = postmaster_of($name) or return ensure_up($name) && 0;

		note_line('killed', $postmaster);
		kill KILL => $postmaster;
		# The others find out by themselves; those that are stopped, once they go on.
		wait_until(sub { gone($name) }) or kill_server($name);
		note_line('restarts', "$name kill-postmaster");
		return ensure_up($name);
	},
	'kill-server' => sub {
		my $name = primary();

		kill_server($name);
		note_line('restarts', "$name kill-server");
		return ensure_up($name);
	},
	'promote' => \&fail_over,
	'data-full' => sub { return fill($_[0], 'data', sub { ask_some(); return seen_in_log('53100', $_[0]); }); },
	'wal-full' => sub {
		return fill($_[0], 'wal', sub {
			# What is there already is used up first.
			my $connection = connect_admin(primary(), 1);

			eval { $connection->query("SELECT pg_logical_emit_message(true, 'torture', repeat('x', 400000)), pg_switch_wal()") } if $connection;
			return seen_in_log('PANIC', $_[0]);
		});
	});

sub restart
{
	my ($name, $mode) = @_;

	stop_server($name, $mode) or kill_server($name);
	note_line('restarts', "$name $mode");
	return ensure_up($name);
}

# The primary dies, and its synchronous standby takes its place. Then the dead one is
# made anew as the standby of the other. No commit may be at that moment that stands
# only here because its wait was cancelled, or because the server has just recovered.
sub fail_over
{
	my ($old, $new) = (primary(), standby());

	ensure_up($new);
	my $dead = with_lock('commits', 0, sub {
		ensure_up($old) && in_sync($old) or die "server $new does not follow\n";
		return kill_server($old);
	}) or die "server $old cannot be killed\n";

	promote($new) or die "could not promote $new";
	note_line('promotions', $new);
	return make_standby($old, $new);
}

# ---- full disks ----------------------------------------------------------------------

sub seen_in_log
{
	my ($what, $from) = @_;

	open my $file, '<', log_of(primary()) or return 0;
	seek $file, $from, 0;
	local $/;
	return scalar(<$file> // '') =~ /$what/;
}

sub ask_some
{
	my $connection = connect_admin(primary(), 1) or return;

	eval { $connection->query('INSERT INTO neighbours (filling) SELECT repeat(md5(g::text), 30) FROM generate_series(1, 2000) AS g') };
	return;
}

# Fills the file system until it has hit, and for a while; then makes room.
sub fill
{
	my ($draw, $what, $hit) = @_;
	my $name = primary();
	my $ballast = "$work/$name/$what/ballast";
	my $from = -s log_of($name);
	my $seen;

	open my $file, '>', $ballast or return 0;
	for my $size (1048576, 65536, 4096)
	{
		my $block = "\0" x $size;

		1 while (syswrite($file, $block) // 0) == $size;
	}
	close $file;
	$seen = wait_until(sub { $hit->($from) }, 10);
	sleep $draw->between(200, 1500) / 1000;
	unlink $ballast;
	note_line('restarts', "$name $what-full") if $what eq 'wal';
	return ensure_up($name) && $seen;
}

1;
