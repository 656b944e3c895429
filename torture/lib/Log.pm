
# Log - what the servers have logged: no key, no crash of our own making, and no error
# that is not explained

package Log;

use strict;
use warnings;

use Cluster;
use Exporter qw(import);
use Shared;

our @EXPORT = qw(read_logs explained);

# What clients may be told, and what the servers may log of them, and why.
my %explained = (
	'40001' => 'cannot be decided in this snapshot, or lost to a caller without key locks: retried',
	'40P01' => 'deadlock between keys in another order, a batch and clean-up: retried',
	'55P03' => 'lock_timeout, or once() met a rival that is undecided',
	'57014' => 'statement_timeout, pg_cancel_backend()',
	'57P01' => 'pg_terminate_backend(), a fast shutdown',
	'57P02' => 'another backend was killed',
	'57P03' => 'the server starts, stops or recovers',
	'25P03' => 'idle_in_transaction_session_timeout',
	'53100' => 'the disk is full',
	'53200' => 'too many prepared transactions, while somebody who would end them is stopped',
	'53300' => 'too many connections while old ones are not gone yet',
	'55000' => 'release() after a checkpoint, resolve() with nothing to decide, a prepared transaction that is busy',
	'55006' => 'forget() and redact() of a key in progress',
	'42704' => 'a prepared transaction that somebody else has ended',
	'08006' => 'the connection was lost',
	'08P01' => 'the connection was lost, to the pooler or by it',
	'08003' => 'the connection was lost in a transaction',
	'25006' => 'the server was a standby at that moment',
	'0A000' => 'a client of the pooler was ended',
	'58030' => 'the disk is full',
	IK001 => 'a late owner, or a repeated completion',
	IK002 => 'an owner whose claim was ended or outdated',
	IK004 => 'a claim was left open',
	IK005 => 'the key is held',
	IK006 => 'the response was redacted',
	lost => 'the connection ended',
	unsure => 'the wait for the standby was cancelled',
	rolled => 'COMMIT of a transaction that had failed');

sub explained { return $explained{ $_[0] }; }

my %read_to;

# Violations, one line each; counts of the SQLSTATEs go to the second argument.
sub read_logs
{
	my ($marker, $codes) = @_;
	my %killed = map { $_ => 1 } read_lines('killed');
	my @found;

	foreach my $name ('a', 'b')
	{
		open my $file, '<', log_of($name) or next;
		my %full;

		seek $file, $read_to{$name} // 0, 0;
		while (my $line = <$file>)
		{
			push @found, "a key or a response is in the log of server $name" if index($line, $marker) >= 0;
			if ($line =~ /^\S+ \S+ \S+ \[(\d+)\] (\w{5}) (\S*) ?(ERROR|FATAL|PANIC|WARNING|LOG):  (.*)/)
			{
				my ($pid, $code, $user, $level, $message) = ($1, $2, $3, $4, $5);

				push @found, "server $name: $message" if $message =~ /^invalid value for parameter/;
				$full{$pid} = 1 if $level eq 'PANIC' && $code =~ /^(?:53100|58030)$/;
				if ($level eq 'LOG' || $level eq 'WARNING')
				{
					my ($who, $signal) = $message =~ /\(PID (\d+)\) was terminated by signal (\d+)/ or next;

					next if $signal == 9 && $killed{$who};
					next if $signal == 6 && $full{$who};
					push @found, "a process of server $name died of signal $signal, which nobody has sent: $message";
					next;
				}
				$codes->{"$code $user"}++;
				# The administrator's statements are cut short, and meet each other.
				next if $explained{$code} || ($user eq 'postgres' && $code !~ /^XX/);
				# So says a server whose disk is full when it begins.
				next if $message =~ /^could not write init file/;
				push @found, "not explained in the log of server $name: $level $code $user $message";
			}
		}
		$read_to{$name} = tell $file;
	}
	return @found;
}

1;
