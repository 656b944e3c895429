
# Wire - a PostgreSQL connection for tests that need many at a time
#
# Speaks the frontend/backend protocol over a Unix socket, so that the tests
# need no driver besides Perl. One process can keep dozens of connections busy
# and sees what the server really sends: SQLSTATEs, the order of messages, the
# bytes of values. Only "trust" authentication.
#
#	my $c = Wire->connect($node);
#	my $r = $c->query('SELECT 1');                 # simple protocol
#	my $r = $c->execute('SELECT $1::text', 'x');   # extended protocol
#	my $r = $c->pipeline([$sql, @values], ...);    # several, one Sync
#
# start(), start_pipeline() send and return at once; finish() waits for the
# answer of one connection, Wire::next_of(seconds, @connections) returns those
# that got theirs.

package Wire;

use strict;
use warnings;

use Carp;
use IO::Select;
use IO::Socket::UNIX;
use Time::HiRes qw(time);

our $timeout = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 180;

# Dies if the server refuses, unless fail_ok says to return undef.
sub connect
{
	my ($class, $node, %option) = @_;
	my $host = $option{host} // $node->host;
	my $port = $option{port} // $node->port;
	my $socket =
	  IO::Socket::UNIX->new(Peer => "$host/.s.PGSQL.$port", Timeout => 10);
	my $self = bless { socket => $socket, input => '', busy => 0 }, $class;
	my @parameters = (
		user => $option{user} // scalar getpwuid($>),
		database => $option{database} // 'postgres',
		client_encoding => 'UTF8');

	push @parameters, options => $option{options} if defined $option{options};
	if ($socket)
	{
		my $startup = pack('N', 196608) . join("\0", @parameters) . "\0\0";

		$self->_begin;
		$self->_write(pack('N', 4 + length $startup) . $startup);
		my $result = $self->finish;

		return $self if !$result->{lost} && !$result->{error};
		$self->close;
		return undef if $option{fail_ok};
		croak 'connection refused: ' . $result->code . ' ' . $result->message;
	}
	return undef if $option{fail_ok};
	croak "no server at $host port $port";
}

# The server notices at its next read. Without terminate, as if the client had
# died.
sub close
{
	my ($self, %option) = @_;

	$self->_write($self->_message('X', ''))
	  if $option{terminate} && !$self->{lost};
	close $self->{socket} if $self->{socket};
	$self->{lost} = 1;
	return;
}

sub pid { return $_[0]->{pid}; }
sub busy { return $_[0]->{busy}; }
sub lost { return $_[0]->{lost}; }

# What the result of the current or last request is.
sub result { return $_[0]->{result}; }

sub query
{
	my ($self, $sql) = @_;

	$self->start($sql);
	return $self->finish;
}

# The same, where an error means that the test itself is wrong.
sub ok
{
	my ($self, $sql) = @_;
	my $result = $self->query($sql);

	croak "$sql: " . $result->code . ' ' . $result->message
	  if $result->{lost} || $result->{error};
	return $result;
}

sub execute
{
	my ($self, $sql, @values) = @_;

	return $self->pipeline([ $sql, @values ]);
}

sub pipeline
{
	my ($self, @items) = @_;

	$self->start_pipeline(@items);
	return $self->finish;
}

# A statement with a name; execute_prepared() runs it.
sub prepare
{
	my ($self, $name, $sql) = @_;

	$self->_begin;
	$self->_write($self->_message('P', "$name\0" . _bytes($sql) . "\0" . pack('n', 0))
		  . $self->_message('S', ''));
	return $self->finish;
}

sub execute_prepared
{
	my ($self, $name, @values) = @_;

	$self->_begin;
	$self->_write($self->_bind_and_execute($name, 0, @values)
		  . $self->_message('S', ''));
	return $self->finish;
}

# Fetches at most so many rows, and leaves the portal suspended.
sub execute_some
{
	my ($self, $rows, $sql, @values) = @_;

	$self->_begin;
	$self->_write($self->_message('P', "\0" . _bytes($sql) . "\0" . pack('n', 0))
		  . $self->_bind_and_execute('', $rows, @values)
		  . $self->_message('S', ''));
	return $self->finish;
}

sub start
{
	my ($self, $sql) = @_;

	$self->_begin;
	$self->_write($self->_message('Q', _bytes($sql) . "\0"));
	return;
}

sub start_pipeline
{
	my ($self, @items) = @_;
	my $out = '';

	$self->_begin;
	foreach my $item (@items)
	{
		my ($sql, @values) = @$item;

		$out .= $self->_message('P', "\0" . _bytes($sql) . "\0" . pack('n', 0))
		  . $self->_bind_and_execute('', 0, @values);
	}
	$self->_write($out . $self->_message('S', ''));
	return;
}

# Waits for the answer. Never for ever: a hang is a failure.
sub finish
{
	my ($self) = @_;
	my $deadline = time + $timeout;

	while ($self->{busy})
	{
		my $left = $deadline - time;

		croak 'no answer from the server' if $left <= 0;
		next_of($left, $self);
	}
	return $self->{result};
}

# Reads what has arrived on any of the connections; waits at most so long for
# something to arrive. Returns the connections whose answer is now complete.
sub next_of
{
	my ($seconds, @connections) = @_;
	my %by_handle = map { fileno($_->{socket}) => $_ } grep { $_->{busy} && !$_->{lost} } @connections;
	my @done = grep { $_->{busy} && $_->{lost} } @connections;

	$_->_lose foreach @done;
	return @done if @done || !%by_handle;
	foreach my $socket (IO::Select->new(map { $_->{socket} } values %by_handle)->can_read($seconds))
	{
		my $connection = $by_handle{ fileno $socket };

		$connection->_read;
		push @done, $connection unless $connection->{busy};
	}
	return @done;
}

# ---- messages ------------------------------------------------------------------

sub _bytes
{
	my ($text) = @_;

	utf8::encode($text) if utf8::is_utf8($text);
	return $text;
}

sub _message
{
	my ($self, $type, $payload) = @_;

	return $type . pack('N', 4 + length $payload) . $payload;
}

sub _bind_and_execute
{
	my ($self, $name, $rows, @values) = @_;
	my $bind = "\0$name\0" . pack('n n', 0, scalar @values);

	$bind .= defined $_ ? pack('N/a*', _bytes($_)) : pack('N', 0xffffffff) foreach @values;
	return
		$self->_message('B', $bind . pack('n', 0))
	  . $self->_message('D', "P\0")
	  . $self->_message('E', "\0" . pack('N', $rows));
}

sub _begin
{
	my ($self) = @_;

	croak 'the connection is still busy' if $self->{busy};
	$self->{busy} = 1;
	$self->{result} = bless { sets => [], notices => [], order => '', lost => 0 }, 'Wire::Result';
	return;
}

sub _write
{
	my ($self, $out) = @_;

	local $SIG{PIPE} = 'IGNORE';
	while (!$self->{lost} && length $out)
	{
		my $written = syswrite($self->{socket}, $out);

		next if !defined $written && $!{EINTR};
		# There may be a last message to read; next_of() will find the end.
		last unless defined $written;
		substr($out, 0, $written, '');
	}
	return;
}

sub _lose
{
	my ($self) = @_;

	$self->{lost} = 1;
	$self->{busy} = 0;
	$self->{result}{lost} = 1;
	return;
}

sub _read
{
	my ($self) = @_;
	my $got = sysread($self->{socket}, $self->{input}, 65536, length $self->{input});

	return if !defined $got && $!{EINTR};
	return $self->_lose unless $got;
	while ($self->{busy} && length $self->{input} >= 5)
	{
		my ($type, $length) = unpack('a N', $self->{input});

		last if length $self->{input} < 1 + $length;
		my $payload = substr($self->{input}, 5, $length - 4);
		substr($self->{input}, 0, 1 + $length, '');
		$self->_handle($type, $payload);
	}
	return;
}

sub _fields
{
	my ($payload) = @_;

	return { map { substr($_, 0, 1) => substr($_, 1) } grep { length } split /\0/, $payload };
}

sub _handle
{
	my ($self, $type, $payload) = @_;
	my $result = $self->{result};

	$result->{order} .= $type;
	if ($type eq 'T')
	{
		my $count = unpack('n', $payload);

		push @{ $result->{sets} }, { columns => [ unpack("x2 (Z* x18)$count", $payload) ], rows => [] };
	}
	elsif ($type eq 'D')
	{
		my ($count, $at, @row) = (unpack('n', $payload), 2);

		foreach (1 .. $count)
		{
			my $length = unpack('N', substr($payload, $at, 4));

			$at += 4;
			if ($length == 0xffffffff)
			{
				push @row, undef;
				next;
			}
			push @row, substr($payload, $at, $length);
			$at += $length;
		}
		push @{ $result->{sets}[-1]{rows} }, \@row;
	}
	elsif ($type eq 'C') { push @{ $result->{tags} }, unpack('Z*', $payload); }
	elsif ($type eq 'E') { $result->{error} //= _fields($payload); }
	elsif ($type eq 'N') { push @{ $result->{notices} }, _fields($payload); }
	elsif ($type eq 'K') { $self->{pid} = unpack('N', $payload); }
	elsif ($type eq 'Z')
	{
		$result->{status} = $payload;
		$self->{busy} = 0;
	}
	elsif ($type eq 'R')
	{
		croak 'the server wants a password' if unpack('N', $payload) != 0;
	}
	return;
}

# ---- results -------------------------------------------------------------------

package Wire::Result;

# SQLSTATE; 'lost' if the connection ended, '' if all is well.
sub code
{
	my ($self) = @_;

	return $self->{error}{C} if $self->{error};
	return $self->{lost} ? 'lost' : '';
}

sub message { return $_[0]->{error} ? $_[0]->{error}{M} : ''; }
sub detail { return $_[0]->{error} ? $_[0]->{error}{D} // '' : ''; }
sub hint { return $_[0]->{error} ? $_[0]->{error}{H} // '' : ''; }

# Rows of the last statement that has a result; its first row by column names;
# that row's first value.
sub rows { return $_[0]->{sets}[-1] ? $_[0]->{sets}[-1]{rows} : []; }

sub row
{
	my ($self) = @_;
	my $set = $self->{sets}[-1];
	my %row;

	return {} unless $set && @{ $set->{rows} };
	@row{ @{ $set->{columns} } } = @{ $set->{rows}[0] };
	return \%row;
}

sub value
{
	my ($self) = @_;
	my $row = $self->rows->[0];

	return $row ? $row->[0] : undef;
}

1;
