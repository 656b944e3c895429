
# CardNetwork - the outside party of a payment, for tests
#
# A process of its own behind a Unix socket. It charges and sends receipts. One
# request is one line: "VERB KEY REFERENCE". With a key it does what it was
# asked for once per key and gives the same answer again; with "-" for a key it
# does it each time. It can be asked what it has done for a reference, and that
# never changes anything.

package CardNetwork;

use strict;
use warnings;

use Carp;
use Extension;
use IO::Socket::UNIX;

sub start
{
	my ($class, $path) = @_;
	my $listener = IO::Socket::UNIX->new(Local => $path, Listen => 100) or croak "could not listen: $!";
	my $pid = in_child(sub { serve($listener); return 0; });

	return bless { path => $path, pid => $pid }, $class;
}

sub serve
{
	my ($listener) = @_;
	my (%by_key, %done);
	my $number = 0;

	local $SIG{PIPE} = 'IGNORE';
	while (my $client = $listener->accept)
	{
		# Who died before the line was complete has asked for nothing.
		my $line = <$client>;

		next unless defined $line && $line =~ /^(\w+) (\S+) (\S+)\n/;
		my ($verb, $key, $reference) = ($1, $2, $3);
		my $answer;

		if ($verb =~ /^done_(\w+)/)
		{
			$answer = join(' ', @{ $done{$1}{$reference} // [] });
		}
		else
		{
			$answer = $key eq '-' ? undef : $by_key{$verb}{$key};
			if (!defined $answer)
			{
				$answer = "$verb-" . ++$number;
				push @{ $done{$verb}{$reference} }, $answer;
				$by_key{$verb}{$key} = $answer;
			}
		}
		syswrite($client, "$answer\n");
	}
	return;
}

# Sends a request; what comes in between is the caller's business.
sub ask
{
	my ($self, $verb, $key, $reference, $between) = @_;
	my $socket = IO::Socket::UNIX->new(Peer => $self->{path}) or croak "no card network: $!";

	syswrite($socket, "$verb $key $reference\n");
	$between->() if $between;
	my $answer = <$socket> // croak 'the card network did not answer';

	chomp $answer;
	return $answer;
}

# All that was done for a reference.
sub done
{
	my ($self, $verb, $reference) = @_;

	return split / /, $self->ask("done_$verb", '-', $reference);
}

sub stop
{
	my ($self) = @_;

	kill 'TERM', $self->{pid};
	waitpid $self->{pid}, 0;
	return;
}

1;
