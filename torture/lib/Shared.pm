
# Shared - what all processes of a run see: the file that the clients have mapped
# (client/client.h has the places), the clock of the servers, and plain files that
# say who the primary is and what has been done to whom

package Shared;

use strict;
use warnings;

use Carp;
use Exporter qw(import);
use Fcntl qw(:flock O_RDWR O_CREAT O_APPEND O_WRONLY);
use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC);

our @EXPORT = qw($work now_us begin_shared set_shared get_shared slot set_clock clock_offset note_line read_lines
  write_file read_file with_lock);

our $work = $ENV{TORTURE_WORK};

my %at = (stop => 0, round => 8, block => 16, seed => 24);
my $slots = 4096;
my $slot_size = 64;
my %in_slot = (pid => 0, round => 8, k => 16, calls => 24, beat => 32);

sub now_us { return int(1_000_000 * clock_gettime(CLOCK_MONOTONIC)); }

sub begin_shared
{
	my ($seed, $size) = @_;

	open my $file, '>', "$work/shared" or croak "could not create: $!";
	truncate $file, $size or croak $!;
	close $file;
	set_shared(seed => $seed);
	write_file('clock', pack 'q', 0);
	return;
}

sub place
{
	my ($position, $value) = @_;

	sysopen my $file, "$work/shared", O_RDWR or croak $!;
	sysseek $file, $position, 0;
	if (defined $value)
	{
		syswrite $file, pack 'q', $value;
		return $value;
	}
	sysread $file, my $bytes, 8;
	return unpack 'q', $bytes;
}

sub set_shared { return place($at{ $_[0] }, $_[1]); }
sub get_shared { return place($at{ $_[0] }); }
sub slot { return place($slots + $slot_size * $_[0] + $in_slot{ $_[1] }); }

# The servers' wall clock, in microseconds ahead of the real one. A step is noted, with
# the times before and after it.
sub set_clock
{
	my ($offset) = @_;
	my $old = clock_offset();
	my $before = now_us();

	sysopen my $file, "$work/clock", O_RDWR or croak $!;
	syswrite $file, pack 'q', $offset;
	close $file;
	note_line('steps', join ' ', $before, now_us(), $old, $offset);
	return;
}

sub clock_offset { return unpack 'q', read_file('clock'); }

# A line at the end of a file; lines of several processes do not mix.
sub note_line
{
	my ($name, $line) = @_;

	sysopen my $file, "$work/$name", O_WRONLY | O_APPEND | O_CREAT or croak "$name: $!";
	syswrite $file, "$line\n";
	return;
}

sub read_lines
{
	my ($name) = @_;

	open my $file, '<', "$work/$name" or return ();
	chomp(my @lines = <$file>);
	return @lines;
}

sub write_file
{
	my ($name, $content) = @_;

	open my $file, '>', "$work/$name.new" or croak "$name: $!";
	print $file $content;
	close $file or croak $!;
	rename "$work/$name.new", "$work/$name" or croak $!;
	return;
}

sub read_file
{
	my ($name) = @_;

	open my $file, '<', "$work/$name" or return;
	local $/;
	return scalar <$file>;
}

# Who wants to do something that another may not do meanwhile.
sub with_lock
{
	my ($name, $shared, $action) = @_;

	open my $file, '>>', "$work/$name.lock" or croak $!;
	flock $file, $shared ? LOCK_SH : LOCK_EX or croak $!;
	return $action->();
}

1;
