
# LossyProxy - stands between a client and the server, and loses connections
#
# A process of its own behind a Unix socket. It passes on everything, but for
# what concerns three keys, each of them once:
#
#	lost-claim	the answer to the claim is lost, when it is committed
#	lost-booking	the connection is lost before the completion arrives
#	lost-commit	the answer to the COMMIT is lost, after the completion
#
# Client and server see a connection that ended, and neither what the other one
# has seen.

package LossyProxy;

use strict;
use warnings;

use Carp;
use Extension;
use IO::Select;
use IO::Socket::UNIX;

# Listens in a directory, as a server would at the port.
sub start
{
	my ($class, $node, $directory) = @_;
	my $name = '.s.PGSQL.' . $node->port;
	my $listener = IO::Socket::UNIX->new(Local => "$directory/$name", Listen => 100) or croak "could not listen: $!";
	my $done = "$directory/done";
	my $pid = in_child(sub { serve($listener, $node->host . "/$name", $done); return 0; });

	return bless { pid => $pid, directory => $directory, done => $done }, $class;
}

sub host { return $_[0]{directory}; }

# What it has lost, in order.
sub lost
{
	my ($self) = @_;

	open my $file, '<', $self->{done} or return '';
	return join ' ', map { s/\n//r } <$file>;
}

sub stop
{
	my ($self) = @_;

	kill 'TERM', $self->{pid};
	waitpid $self->{pid}, 0;
	return;
}

sub serve
{
	my ($listener, $server, $done) = @_;
	my $select = IO::Select->new($listener);
	my (%other, %sender, %armed, %lost);
	my $lose = sub {
		my ($end, $key) = @_;

		if ($key)
		{
			$lost{$key} = 1;
			open my $file, '>>', $done or die;
			print $file "$key\n";
		}
		foreach my $socket ($other{$end}, $end)
		{
			$select->remove($socket);
			delete @$_{$socket} foreach \%other, \%sender, \%armed;
			close $socket;
		}
	};

	$SIG{PIPE} = 'IGNORE';
	while (my @ready = $select->can_read)
	{
		foreach my $from (@ready)
		{
			if ($from == $listener)
			{
				my $client = $listener->accept;
				my $backend = IO::Socket::UNIX->new(Peer => $server);

				next unless $client && $backend;
				@other{ $client, $backend } = ($backend, $client);
				@sender{ $client, $backend } = ('client', 'server');
				$select->add($client, $backend);
				next;
			}
			my $to = $other{$from} or next;
			my $got = sysread($from, my $data, 65536);

			if (!$got) { $lose->($from); next; }
			if ($sender{$from} eq 'client')
			{
				my ($key) = grep { !$lost{$_} && index($data, $_) >= 0 } qw(lost-claim lost-booking lost-commit);
				my $call = $data =~ /idempotency\.(claim|complete)\(/ ? $1 : '';

				if ($key && $key eq 'lost-booking' && $call eq 'complete') { $lose->($from, $key); next; }
				$armed{$to} = $key if $key && "$key $call" =~ /^lost-(?:claim claim|commit complete)$/;
			}
			# "Ready for query", and the transaction is over.
			elsif ($armed{$from} && $data =~ /Z\0\0\0\x05I$/) { $lose->($from, $armed{$from}); next; }
			syswrite($to, $data);
		}
	}
	return;
}

1;
