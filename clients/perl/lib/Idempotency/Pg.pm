package Idempotency::Pg;

# The calls of the extension as methods, with typed outcomes and errors told apart by SQLSTATE. An object has the one connection of
# its process, which the sub that new() is given makes: when it is first needed, after a fork, and when the former one was lost.
use v5.26; use warnings; use experimental 'signatures';
use Carp qw(croak shortmess); use DBD::Pg ':pg_types'; use Encode (); use Exporter 'import'; use Fcntl ':flock';
use JSON::PP (); use List::Util qw(pairgrep pairmap); use Scalar::Util 'weaken';
our $VERSION = '1.0.0'; our @EXPORT_OK = qw(again answer kind);
sub new ($class, $connect, %options) { bless { workers => 5, %options, connect => $connect }, $class }    # lock_dir, workers: see capped()

# Of an error: its SQLSTATE as state, and of stale_claim a reason, which is taken_over, completed or forgotten.
package Idempotency::Pg::Error { use overload '""' => sub { $_[0]{message} }, bool => sub { 1 }, fallback => 1 }
my %KIND = (
	IK001 => 'stale_claim', IK002 => 'not_claimed', IK003 => 'other_completion', IK004 => 'left_open', IK005 => 'held', IK006 => 'redacted',
	40001 => 'retry', '40P01' => 'retry', '55P03' => 'wait_timeout', 54000 => 'too_large', 25006 => 'unavailable', 53300 => 'unavailable');
# What to do about an error; "other" is a fault of the program. 54000 is permanent: never "try again".
sub kind ($error) {
	my $state = ref $error eq 'Idempotency::Pg::Error' ? $error->{state} : return 'other';
	return $KIND{$state} // ($state =~ /^(?:08|57P0[123])/ ? 'unavailable' : $state =~ /^22/ ? 'bad_request' : 'other');
}

# Every error on the connection, the handler's too, comes by here and is remembered, whatever a framework makes of it.
sub _error ($self, $message, $state, $dbh = undef) {
	return $self->{error} if $state eq '25P02' && $self->{in} && $self->{error};    # "transaction is aborted": by that one
	my $reason = $state eq 'IK001' ? $dbh->pg_error_field('pg_diag_constraint_name') : undef;
	my $error = bless { message => shortmess($message), state => $state, reason => $reason }, 'Idempotency::Pg::Error';
	$self->{lost} = 1 if kind($error) eq 'unavailable';
	return $self->{error} = $error;
}

sub dbh ($self) {
	return $self->{in} if $self->{in};    # never another one in the middle of a transaction, lost or not
	return $self->{dbh} if $self->{dbh} && $self->{pid} == $$ && !$self->{lost} && _alive($self->{dbh});
	my $dbh = eval { $self->{connect}->() };
	die $@ if $@ && $@ !~ /DBI connect/i;    # a fault of the sub, not of the network
	die $self->_error($@ || $DBI::errstr || 'no connection', '08006') unless $dbh;
	@$dbh{qw(PrintError RaiseError AutoInactiveDestroy)} = (0, 1, 1);    # the last: a child's end is not that of its parent's connection
	weaken(my $weak = $self);
	$dbh->{HandleError} = sub ($message, $handle, @) {
		my $error = $weak && $weak->_error($message, $handle->state, $handle->{Type} eq 'st' ? $handle->{Database} : $handle);
		die $error if $error && $handle->{RaiseError};
	};
	@$self{qw(pid lost)} = ($$, 0);
	return $self->{dbh} = $dbh;
}

# What can be read from an idle connection is, most often, that it was closed. To look costs no round trip.
sub _alive ($dbh) {
	my ($socket, $bits) = ($dbh->{pg_socket}, '');
	vec($bits, $socket, 1) = 1 if $socket >= 0;
	return $socket >= 0 && (!select($bits, undef, undef, 0) || $dbh->ping);
}

# Runs the sub, again after an error of one of these kinds, with growing pauses that rivals do not share.
sub again ($kinds, $work, $attempts = 5) {
	for my $attempt (1 .. $attempts) {
		my $result;
		return $result if eval { $result = $work->(); 1 };
		die $@ if $attempt == $attempts || !grep { $_ eq kind($@) } @$kinds;
		select undef, undef, undef, 0.02 * 2**$attempt * (0.5 + rand);
	}
}

# BEGIN, $work->($dbh), COMMIT; all of it again where the server asks for that.
sub transaction ($self, $work) {
	return again(['retry'], sub {
		my $dbh = $self->dbh;
		local @$self{qw(in error)} = ($dbh, undef);
		my $result;
		return $result if eval {
			$dbh->begin_work;
			$result = $work->($dbh);
			die $self->{error} // 'it has failed' if $dbh->ping == 4;    # and somebody swallowed that: COMMIT would succeed and roll back
			$dbh->commit;
		};
		my ($error, $cause) = ($@, $self->{error});
		eval { $dbh->rollback unless $dbh->{AutoCommit}; 1 } or $self->{lost} = 1;
		# Frameworks make a 500 of what a handler throws; what was the matter is known here all the same.
		die kind($error) eq 'other' && kind($cause) !~ /^(?:other|bad_request)$/ ? $cause : $error;
	});
}

# $ask->($wait) for half of the workers at a time, $ask->(undef) for the others: those that wait must not fill the pool. Workers are
# processes, so they are counted by locks, which one that is killed does not keep.
sub capped ($self, $wait, $ask) {
	for my $place (defined $wait ? 1 .. $self->{workers} / 2 : ()) {
		my $file = ($self->{lock_dir} // croak 'waiting needs lock_dir') . "/waiter.$place";
		open my $lock, '>>', $file or croak "$file: $!";
		return $ask->($wait) if flock $lock, LOCK_EX | LOCK_NB;
	}
	return $ask->(undef);
}

# Every parameter is cast, so that all ways of sending it agree on its type.
my %TYPE = map { my ($type, @options) = split; map { $_ => $type } @options } (
	'text scope operation key command error reason note wait_for recovery_point step response_body', 'interval ttl lease wait retry_in',
	'jsonb state args response_headers', 'bytea response_bytes fingerprint', 'int response_status max_rows', 'bigint token',
	'uuid claim_id', 'boolean hold_if_abandoned refuse_repeat');
my $JSON = JSON::PP->new->ascii->canonical->allow_nonref;    # ASCII is the same whatever the connection's encoding
my %SENT = (jsonb => sub ($it) { $JSON->encode($it) }, boolean => sub ($it) { $it ? 't' : 'f' }, bytea => sub ($it) { \$it });
my %GOT = (bool => sub ($it) { $it =~ /^[t1]/ ? 1 : 0 },    # under pg_bool_tf false is "f", which Perl takes for true
	jsonb => sub ($it) { JSON::PP->new->utf8(!utf8::is_utf8($it))->allow_nonref->decode($it) });

# Rows as hashes. What is not given is not named, so that the server's defaults and the policies hold. $args: further arguments
# as SQL, and their values. Never a named prepared statement, which pgbouncer before 1.21 would lose. An id is [scope, operation, key].
sub _call ($self, $columns, $name, $id, $options, $args = [], @values) {
	my %given = %$options;
	@given{qw(scope operation key)} = @$id if $id;
	for my $option (sort keys %given) {
		my $type = $TYPE{$option} // croak "$name: unknown option $option";
		my $value = $given{$option} // next;
		push @values, $SENT{$type} ? $SENT{$type}->($value) : $value;
		push @$args, "$option => \$" . @values . "::$type";
	}
	my $sql = "SELECT $columns FROM idempotency.$name(" . join(', ', @$args) . ') AS result';
	my $sth = $self->dbh->prepare($sql, { pg_server_prepare => 0 });
	# A reference: bytes, which without their type would end at the first NUL.
	$sth->bind_param($_ + 1, ref $values[$_] ? (${ $values[$_] }, { pg_type => PG_BYTEA }) : $values[$_]) for 0 .. $#values;
	$sth->execute;
	my @got = @GOT{ $sth->{pg_type}->@* };
	return map { my ($row, %row) = $_;
		@row{ $sth->{NAME}->@* } = map { defined $row->[$_] && $got[$_] ? $got[$_]->($row->[$_]) : $row->[$_] } 0 .. $#$row;
		\%row } $sth->fetchall_arrayref->@*;
}
sub _result ($self, $name, $id, %options) { ($self->_call('result', $name, $id, \%options))[0]{result} }
sub lookup ($self, $id) { ($self->_call('*', 'lookup', $id, {}))[0] }
sub replay ($self, $id) { ($self->_call('*', 'replay', $id, {}))[0] }
for my $verb (qw(fail record_failure release once hold extend)) {
	no strict 'refs';
	*$verb = sub ($self, $id, %options) { $self->_result($verb, $id, %options) };
}
sub checkpoint ($self, $id, $point, %options) { $self->_result('checkpoint', $id, recovery_point => $point, %options) }
sub effect_key ($self, $id, $step = undef) { $self->_result('effect_key', $id, step => $step) }

# The request is given to notice a key that is used for another one: `body` is bytes as they came, `request` a hash or an array that
# is made JSON here, once. Either becomes fingerprint_bytes(), which also takes what jsonb refuses. Path parameters belong to it.
# What is undefined would switch the comparison off without a word; that has to be said: compare => 0.
my $CLAIM = '*, extract(epoch FROM locked_until - clock_timestamp())::float8 AS lease_seconds';
sub _claiming ($self, $name, $id, %options) {
	my ($request, $body, $params, $compare) = delete @options{qw(request body params compare)};
	my (@args, @values);
	if (($compare // 1) && !defined $options{fingerprint}) {
		croak "$name: request is a hash or an array; JSON text is given as body" if defined $request && !ref $request;
		$body //= $JSON->encode($request // croak "$name: the request is undefined; give request, body or compare => 0");
		utf8::downgrade($body, 1) or croak "$name: body is bytes, not characters";
		@values = (\$body, $params && %$params ? $JSON->encode($params) : ());
		my $digest = 'idempotency.fingerprint_bytes($1::bytea)';
		@args = @values == 1 ? "fingerprint => $digest"
			: "request => jsonb_build_object('params', \$2::jsonb, 'body', encode($digest, 'hex'))";
	}
	my ($row) = $self->_call($CLAIM, $name, $id, \%options, \@args, @values);
	return $row if $row->{outcome} =~ /^(?:claimed|replay|in_progress|mismatch|held)$/;
	die "unknown outcome $row->{outcome}";    # never go on with it
}
sub claim ($self, $id, %options) { $self->_claiming('claim', $id, %options) }
sub run ($self, $id, $command, %options) { $self->_claiming('run', $id, command => $command, %options) }
sub claim_abandoned ($self, %options) { $self->_call($CLAIM, 'claim_abandoned', undef, \%options) }

# status, headers as in PSGI, and body: bytes, or a reference that is made JSON. What is text is recorded as text, so that a person
# can read the row. What is about the connection, the moment or the session is not recorded.
my $PASSING = qr/^(?:set-cookie|date|connection|transfer-encoding|keep-alive|server|idempotent-replayed)$/i;
sub complete ($self, $id, %options) {
	my ($status, $headers, $body) = answer(delete @options{qw(status headers body)})->@*;
	my ($bytes, %of) = ($body->[0], pairmap { lc $a => $b } @$headers);
	my $text = ($of{'content-type'} // 'text/plain') =~ m{^text/|[/+](?:json|xml)\b}i && !$of{'content-encoding'} && $bytes !~ /\0/
		? eval { Encode::decode('UTF-8', $bytes, Encode::FB_CROAK | Encode::LEAVE_SRC) } : undef;
	my $name = defined $text ? 'response_body' : 'response_bytes';
	$options{$name} = defined $text && $self->dbh->{pg_utf8_flag} ? $text : $bytes if $bytes ne '';    # as the driver takes text
	@options{qw(response_status response_headers)} = ($status, [pairmap { [$a, "$b"] } pairgrep { $a !~ $PASSING } @$headers]);
	return $self->_result('complete', $id, %options);
}

# An answer as PSGI has it, with all of the body as one string of bytes, and without its length.
sub answer ($status, $headers, $body) {
	my @headers = pairgrep { lc $a ne 'content-length' } @{ $headers // [] };
	push @headers, 'Content-Type' => 'application/json' if ref $body && !pairgrep { lc $a eq 'content-type' } @headers;
	$body = ref $body ? $JSON->encode($body) : $body // '';
	utf8::downgrade($body, 1) or croak 'a body is bytes: encode it';
	return [$status // 200, \@headers, [$body]];
}
1;
