
# Connection - a PostgreSQL connection for tests that need many at a time
#
#	my $c = Connection->connect($node);
#	my $r = $c->query('SELECT 1');                 # simple protocol
#	my $r = $c->execute('SELECT $1::text', 'x');   # extended protocol
#	my $r = $c->pipeline([$sql, @values], ...);    # several, one Sync
#
# start(), start_pipeline() send and return at once; finish() waits for the
# answer of one connection, Connection::next_of(seconds, @connections) returns those
# that got theirs. So one process keeps dozens of connections busy.
#
# libpq does the work (Libpq.pm, which says why not a driver). Rows are taken one
# at a time, so that those are kept, too, that an error follows.

package Connection;

use strict;
use warnings;

use Carp;
use Libpq;
use Scalar::Util qw(weaken);
use Time::HiRes qw(time);

our $timeout = $ENV{PG_TEST_TIMEOUT_DEFAULT} || 180;

# Everything that a message can say, by the letters of PG_DIAG_SQLSTATE and so on.
sub fields_of
{
	my ($result) = @_;
	my %fields;

	foreach my $letter (split //, 'SVCMDHPpqWstcdnFLR')
	{
		my $field = PQresultErrorField($result, ord $letter);

		$fields{$letter} = $field if defined $field;
	}
	return \%fields;
}

# ---- connections -------------------------------------------------------------------

# Dies if the server refuses, unless fail_ok says to return undef.
sub connect
{
	my ($class, $node, %option) = @_;
	my %info = (
		host => $option{host} // $node->host,
		port => $option{port} // $node->port,
		user => $option{user} // scalar getpwuid($>),
		dbname => $option{database} // 'postgres',
		options => $option{options} // '',
		client_encoding => 'UTF8',
		connect_timeout => $timeout);
	my $conn = PQconnectdb(join ' ', map { "$_='" . $info{$_} =~ s/(['\\])/\\$1/gr . "'" } keys %info);
	my $self = bless { conn => $conn, process => $$, busy => 0 }, $class;

	if ($self->lost)
	{
		return undef if $option{fail_ok};
		croak PQerrorMessage($conn);
	}
	weaken(my $weak = $self);
	$self->{on_notice} = notice_receiver(sub { push @{ $weak->{result}{notices} }, fields_of($_[1]) });
	PQsetNoticeReceiver($conn, $self->{on_notice}, undef);
	$self->{pid} = PQbackendPID($conn);
	return $self;
}

# The server notices at its next read. Without terminate, as if the client had
# died.
sub close
{
	my ($self, %option) = @_;
	my $conn = delete $self->{conn} or return;

	if (!$option{terminate} && open my $socket, '+<&', PQsocket($conn))
	{
		shutdown $socket, 2;
	}
	PQfinish($conn);
	$self->{busy} = 0;
	return;
}

# What a child process has inherited is its parent's.
sub DESTROY
{
	my ($self) = @_;

	$self->close if $self->{process} == $$ && ${^GLOBAL_PHASE} ne 'DESTRUCT';
	return;
}

sub pid { return $_[0]{pid}; }
sub busy { return $_[0]{busy}; }
sub lost { return !$_[0]{conn} || PQstatus($_[0]{conn}) != CONNECTION_OK; }

# What the result of the current or last request is.
sub result { return $_[0]{result}; }

# ---- requests ----------------------------------------------------------------------

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

	croak "$sql: " . $result->code . ' ' . $result->message if $result->code ne '';
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
	$self->_must(PQsendPrepare($self->{conn}, $name, $sql, 0, undef));
	return $self->finish;
}

sub execute_prepared
{
	my ($self, $name, @values) = @_;

	$self->_begin;
	$self->_must(PQsendQueryPrepared($self->{conn}, $name, scalar @values, \@values, undef, undef, 0));
	return $self->finish;
}

sub start
{
	my ($self, $sql) = @_;

	$self->_begin;
	$self->_must(PQsendQuery($self->{conn}, $sql));
	$self->_must(PQsetSingleRowMode($self->{conn}));
	return;
}

sub start_pipeline
{
	my ($self, @items) = @_;

	$self->_begin;
	$self->{pipeline} = 1;
	$self->_must(PQenterPipelineMode($self->{conn}));
	foreach my $item (@items)
	{
		my ($sql, @values) = @$item;

		$self->_must(PQsendQueryParams($self->{conn}, $sql, scalar @values, undef, \@values, undef, undef, 0));
	}
	$self->_must(PQpipelineSync($self->{conn}));
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
	my @busy = grep { $_->{busy} } @connections;
	my @done = read_all(@busy);
	my $sockets = '';

	# libpq may have it already, or know that nothing more will come.
	return @done if @done || !@busy;
	vec($sockets, PQsocket($_->{conn}), 1) = 1 foreach @busy;
	select $sockets, undef, undef, $seconds;
	return read_all(@busy);
}

sub read_all
{
	$_->_read foreach @_;
	return grep { !$_->{busy} } @_;
}

sub _begin
{
	my ($self) = @_;

	croak 'the connection is still busy' if $self->{busy};
	croak 'the connection is closed' if !$self->{conn};
	$self->{busy} = 1;
	$self->{pipeline} = 0;
	$self->{in_set} = 0;
	$self->{result} = bless { sets => [], tags => [], notices => [], lost => 0 }, 'Connection::Result';
	return;
}

# What libpq does not do by itself is our mistake. That the connection is lost will
# be found when the answer is read.
sub _must
{
	my ($self, $done) = @_;

	croak PQerrorMessage($self->{conn}) unless $done || $self->lost;
	return;
}

# All that is there, without waiting. An answer ends with no result, that of a
# pipeline with its own, since there each statement ends with none.
sub _read
{
	my ($self) = @_;
	my $conn = $self->{conn};

	PQconsumeInput($conn);
	while ($self->{busy} && !PQisBusy($conn))
	{
		my $result = PQgetResult($conn);

		if ($result)
		{
			$self->_keep($result);
			PQclear($result);
		}
		elsif (!$self->{pipeline} || $self->lost)
		{
			$self->{busy} = 0;
		}
	}
	return if $self->{busy};
	$self->_must(PQexitPipelineMode($conn)) if $self->{pipeline};
	$self->{result}{lost} = $self->lost;
	$self->{result}{status} = (qw(I A T E ?))[ PQtransactionStatus($conn) ];
	return;
}

sub _keep
{
	my ($self, $result) = @_;
	my $status = PQresultStatus($result);
	my ($sets, $tags) = @{ $self->{result} }{qw(sets tags)};

	push @$tags, PQcmdStatus($result) if $status == PGRES_COMMAND_OK || $status == PGRES_TUPLES_OK;
	if ($status == PGRES_SINGLE_TUPLE || $status == PGRES_TUPLES_OK)
	{
		my @columns = 0 .. PQnfields($result) - 1;

		push @$sets, { columns => [ map { PQfname($result, $_) } @columns ], rows => [] } unless $self->{in_set};
		$self->{in_set} = $status == PGRES_SINGLE_TUPLE;
		foreach my $row (0 .. PQntuples($result) - 1)
		{
			push @{ $sets->[-1]{rows} },
			  [ map { PQgetisnull($result, $row, $_) ? undef : PQgetvalue($result, $row, $_) } @columns ];
		}
	}
	elsif ($status == PGRES_FATAL_ERROR)
	{
		my $error = fields_of($result);

		# That a connection was lost is libpq's own word, after the server's last.
		$self->{result}{error} //= $error if defined $error->{C};
	}
	elsif ($status == PGRES_PIPELINE_SYNC) { $self->{busy} = 0; }
	elsif (!grep { $status == $_ } PGRES_EMPTY_QUERY, PGRES_COMMAND_OK, PGRES_PIPELINE_ABORTED)
	{
		croak "an answer of another kind: $status";
	}
	return;
}

# ---- results -------------------------------------------------------------------

package Connection::Result;

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
# Of an IK001: the field for the name of a constraint.
sub reason { return $_[0]->{error} ? $_[0]->{error}{n} // '' : ''; }

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
