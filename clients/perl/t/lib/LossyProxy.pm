package LossyProxy;

# A way to the database on which the first answer of the server that contains a word gets lost: the server has sent it, and the client
# sees a connection that ended. One connection at a time, in a process that ends with the test.

use v5.26;
use warnings;
use experimental 'signatures';
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use POSIX ();

sub start ($class, $word) {
	my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 5) or die "cannot listen: $!";
	pipe my $read, my $write or die "pipe: $!";
	my $child = fork // die "fork: $!";
	if (!$child) {
		my $lost = 0;
		while (my $client = $listener->accept) { $lost = pass($client, $word, $lost, $write) }
		POSIX::_exit(0);
	}
	close $write;
	return bless { port => $listener->sockport, child => $child, read => $read }, $class;
}

sub dsn ($self) { "dbi:Pg:host=127.0.0.1;port=$self->{port};sslmode=disable;gssencmode=disable" }

# How many answers were lost.
sub lost ($self) {
	kill KILL => $self->{child};
	waitpid $self->{child}, 0;
	return scalar(my @lines = readline $self->{read});
}

sub pass ($client, $word, $lost, $write) {
	my ($host, $port) = ($ENV{PGHOST} // '/var/run/postgresql', $ENV{PGPORT} // 5432);
	my $server = $host =~ m{^/} ? IO::Socket::UNIX->new("$host/.s.PGSQL.$port") : IO::Socket::INET->new("$host:$port");
	my $select = IO::Select->new($client, $server);
	while (1) {
		for my $socket ($select->can_read) {
			sysread $socket, my $data, 65536 or return $lost;
			if ($socket == $server && !$lost && index($data, $word) >= 0) {
				syswrite $write, "lost\n";
				return 1;
			}
			syswrite $socket == $server ? $client : $server, $data;
		}
	}
}

1;
