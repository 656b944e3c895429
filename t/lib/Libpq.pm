
# Libpq - the functions of PostgreSQL's C library that the tests call, for Perl
#
# FFI::Platypus calls them; their names, arguments and results are those of libpq's
# documentation. No test speaks the protocol itself.
#
# DBD::Pg, the usual driver, reports less than the tests have to know. In its
# asynchronous mode a canceled statement counts as one that succeeded (from 3.19
# on); the SQLSTATE with which a connection ended is lost, and so are rows that an
# error follows, and all results of a query but the last. It has no pipelines.
#
# What libpq cannot do either is to ask for some rows of a statement and no more;
# 007_clients.pl has a driver that does.

package Libpq;

use strict;
use warnings;

use Exporter qw(import);
use Test::More ();

BEGIN
{
	Test::More::plan(skip_all => 'FFI::Platypus is not installed') unless eval { require FFI::Platypus };
}

our @EXPORT = qw(PGRES_EMPTY_QUERY PGRES_COMMAND_OK PGRES_TUPLES_OK PGRES_FATAL_ERROR PGRES_SINGLE_TUPLE
  PGRES_PIPELINE_SYNC PGRES_PIPELINE_ABORTED CONNECTION_OK notice_receiver);

# Of the enumerations in libpq-fe.h.
use constant { CONNECTION_OK => 0 };
use constant {
	PGRES_EMPTY_QUERY => 0,
	PGRES_COMMAND_OK => 1,
	PGRES_TUPLES_OK => 2,
	PGRES_FATAL_ERROR => 7,
	PGRES_SINGLE_TUPLE => 9,
	PGRES_PIPELINE_SYNC => 10,
	PGRES_PIPELINE_ABORTED => 11 };

# The library beside the PostgreSQL under test, or else the system's.
my $config = $ENV{PG_CONFIG} || 'pg_config';
my ($library) = grep { -e } `"$config" --libdir` =~ s{\n}{/libpq.so.5}r;
my $ffi = FFI::Platypus->new(api => 1, lib => [ $library // 'libpq.so.5' ]);

$ffi->type('opaque' => 'PGconn');
$ffi->type('opaque' => 'PGresult');
$ffi->type('(opaque, PGresult)->void' => 'PQnoticeReceiver');
foreach (split /\n/, <<'EOF_LIBPQ')
PGconn PQconnectdb(string)
int PQstatus(PGconn)
int PQtransactionStatus(PGconn)
string PQerrorMessage(PGconn)
int PQsocket(PGconn)
int PQbackendPID(PGconn)
opaque PQsetNoticeReceiver(PGconn, PQnoticeReceiver, opaque)
void PQfinish(PGconn)
int PQsendQuery(PGconn, string)
int PQsendQueryParams(PGconn, string, int, opaque, string[], opaque, opaque, int)
int PQsendPrepare(PGconn, string, string, int, opaque)
int PQsendQueryPrepared(PGconn, string, int, string[], opaque, opaque, int)
int PQsetSingleRowMode(PGconn)
int PQenterPipelineMode(PGconn)
int PQpipelineSync(PGconn)
int PQexitPipelineMode(PGconn)
int PQconsumeInput(PGconn)
int PQisBusy(PGconn)
PGresult PQgetResult(PGconn)
int PQresultStatus(PGresult)
string PQcmdStatus(PGresult)
string PQresultErrorField(PGresult, int)
int PQnfields(PGresult)
string PQfname(PGresult, int)
int PQntuples(PGresult)
int PQgetisnull(PGresult, int, int)
string PQgetvalue(PGresult, int, int)
void PQclear(PGresult)
EOF_LIBPQ
{
	my ($returns, $name, $arguments) = /(\S+) (\w+)\((.*)\)/;

	$ffi->attach($name => [ split /, /, $arguments ] => $returns);
	push @EXPORT, $name;
}

# A function that libpq can call; it lives as long as the caller keeps it.
sub notice_receiver { return $ffi->closure($_[0]); }

1;
