package Plack::Middleware::Idempotency;

# The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07) for any PSGI application. What it answers, at once, later or
# in pieces, is kept until COMMIT has succeeded, so no client is told what was undone. The connection is $env->{'idempotency.dbh'}.
use v5.26; use warnings; use experimental 'signatures';
use parent 'Plack::Middleware'; use Carp 'croak'; use HTTP::Date qw(str2time time2str); use Plack::Request ();
use Idempotency::Pg qw(answer kind); use Idempotency::Pg::Leased 'run_leased';
# The draft has the first three titles. Who gets a Retry-After may send the same request again; nobody else is invited to.
my %PROBLEM = (
	'missing' => [400, 'Idempotency-Key is missing', 'This operation needs the header Idempotency-Key: one key for each intent.'],
	'mismatch' => [422, 'Idempotency-Key is already used', 'The key was used for another request, which may have taken effect.'],
	'in-progress' => [409, 'A request is outstanding for this Idempotency-Key', 'A request with this key is being processed.'],
	'malformed' => [400, 'Idempotency-Key is malformed', 'The header is one string of 1 to 255 printable ASCII characters: "k" or k.'],
	'held' => [409, 'The outcome for this Idempotency-Key is unknown', 'Whether the first request took effect is being looked into.'],
	'redacted' => [410, 'The answer for this Idempotency-Key is gone', 'The request was done, and its answer was removed.'],
	'too-large' => [500, 'The answer for this Idempotency-Key is too large', 'It cannot be recorded, and a repeat would fail again.'],
	'unavailable' => [503, 'Idempotency-Key cannot be checked now', 'Send the same request with the same key again later.']);
my %ALSO = (failed => 'unavailable', retry => 'unavailable', wait_timeout => 'in-progress', stale_claim => 'in-progress');
sub problem_of ($kind) { $ALSO{$kind} // $kind =~ tr/_/-/r }
# RFC 8941: a string with its escapes, or a token, as many clients send it. Parameters are read over.
my ($STRING, $TOKEN) = (qr/"((?:[ !#-\[\]-~]|\\["\\])*)"/, qr/[!#-+\--:<-~]+/);
my $ITEM = qr/\A(?:$STRING|($TOKEN))(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:$STRING|$TOKEN))?)*\z/;
# The key of the header's line, "k" and k alike. Two lines have become one with a comma, which is no key.
sub parse_key ($line) {
	my ($string, $token) = $line =~ s/\A[ \t]+|[ \t]+\z//gr =~ $ITEM or return undef;
	my $key = $token // $string =~ s/\\(.)/$1/gr;
	return $key ne '' && length $key <= 255 ? $key : undef;
}

my %ROUTE = map { $_ => 1 } qw(required wait ttl work state lease step hold_if_abandoned);
sub prepare_app ($self) {
	defined $self->{$_} or croak "$_ is missing" for qw(pg scope routes);
	$self->{documentation} //= 'https://developer.example.com/idempotency';
	for my $operation (sort keys $self->{routes}->%*) {    # which has /orders/new before /orders/{id}
		my %route = (required => 1, $self->{routes}{$operation}->%*);
		$ROUTE{$_} or croak "$operation: unknown option $_" for keys %route;
		croak "$operation: wait needs lock_dir of Idempotency::Pg" if $route{wait} && !defined $self->{pg}{lock_dir};
		my $pattern = quotemeta($operation) =~ s/\\\{(\w+)\\\}/(?<$1>[^\/]+)/gr;
		push $self->{compiled}->@*, { %route, operation => $operation, pattern => qr/\A$pattern\z/ };
	}
}

sub call ($self, $env) {
	for my $route ($self->{compiled}->@*) {
		return $self->answered($env, $route, {%+}) if "$env->{REQUEST_METHOD} $env->{PATH_INFO}" =~ $route->{pattern}
			&& (defined $env->{HTTP_IDEMPOTENCY_KEY} || $route->{required} || $route->{work});
	}
	return $self->app->($env);
}

sub answered ($self, $env, $route, $params) {
	my ($status, $headers, $body, $expires) = (eval { $self->once($env, $route, $params) } // do {
		my ($error, $name) = ($@, problem_of(kind($@)));
		$env->{'psgi.errors'}->print("idempotency: $error\n") if $name eq 'unavailable';
		# An answer that was thrown is not recorded. What is neither is the server's, as if this were not here.
		ref $error eq 'ARRAY' ? captured($error) : $PROBLEM{$name} ? $self->problem($name) : die $error;
	})->@*;
	my $until = $self->{lifetime_header} && $expires && str2time($expires);
	push @$headers, $until ? ('Idempotency-Key-Expires' => time2str($until)) : (),
		$status =~ /^[23]04$/ ? () : ('Content-Length' => length $body->[0]);
	return [$status, $headers, $body];
}

# An answer, and when its key expires.
sub once ($self, $env, $route, $params) {
	my $scope = $self->{scope}->($env) // die 'scope gave nothing: authenticate before';
	my $line = $env->{HTTP_IDEMPOTENCY_KEY} // return $self->problem('missing');
	my $id = [$scope, $route->{operation}, parse_key($line) // return $self->problem('malformed')];
	my $body = Plack::Request->new($env)->raw_body;
	die 'the body ended early' if length $body < ($env->{CONTENT_LENGTH} || 0);
	my ($pg, %request) = ($self->{pg}, body => $body, params => $params, ttl => $route->{ttl});
	if ($route->{work}) {
		$request{state} = $route->{state}->($env, $body) if $route->{state};
		my $result = run_leased($pg, $id, $route->{work}, %request, %$route{qw(wait lease step hold_if_abandoned)});
		return $result->{outcome} eq 'claimed' ? [answer(@$result{qw(status headers body)})->@*, $result->{expires_at}]
			: $self->without_work($result);
	}
	my %before = %$env;
	return $pg->transaction(sub ($dbh) {
		my $claimed = $pg->capped($route->{wait}, sub ($most) { $pg->claim($id, %request, wait => $most) });
		return $self->without_work($claimed) if $claimed->{outcome} ne 'claimed';
		# It may be run again, so it finds everything as it was. In the same $env, though, into which outer middlewares look.
		open my $again, '<:raw', \$body;
		%$env = (%before, 'psgi.input' => $again, 'psgix.input.buffered' => 1, 'idempotency.dbh' => $dbh);
		my $answer = captured($self->app->($env));
		delete $env->{'idempotency.dbh'};    # what is written later is not part of it
		die $answer if $answer->[0] >= 500;
		return [@$answer, $pg->complete($id, status => $answer->[0], headers => $answer->[1], body => $answer->[2][0])];
	});
}

# All that an application answers, in any of the three ways that PSGI has.
sub captured ($response) {
	if (ref $response eq 'CODE') {
		my ($started, $ended, @chunks);
		my $writer = Plack::Util::inline_object(write => sub ($chunk) { push @chunks, $chunk }, close => sub { $ended = 1 });
		$response->(sub ($given) { ($started, $ended) = ($given, @$given > 2); $writer });
		die 'a response has to be at its end when the application returns' unless $ended;
		$response = [@$started, \@chunks];
	}
	my $bytes = '';
	Plack::Util::foreach($response->[2], sub ($chunk) { $bytes .= $chunk });
	return answer(@$response[0, 1], $bytes);
}

sub problem ($self, $name, $seconds = 0) {
	my ($status, $title, $detail) = $PROBLEM{$name}->@*;
	my @headers = ('Content-Type' => 'application/problem+json', 'Content-Language' => 'en',
		$status == 400 ? (Link => qq(<$self->{documentation}>; rel="describedby"; type="text/html")) : (),
		$name =~ /^(?:in-progress|unavailable)$/ ? ('Retry-After' => int($seconds + 0.999) || 1) : ());
	return answer($status, \@headers, { type => "$self->{documentation}#$name", title => $title, status => $status, detail => $detail });
}

sub without_work ($self, $row) {
	my ($outcome, $given) = @$row{qw(outcome response_headers)};
	return $self->problem(problem_of($outcome), ($row->{retry_after_ms} // 0) / 1000) if $outcome ne 'replay';
	# Pairs, or an object, as other programs record it, whose values may be lists.
	my @headers = ('Idempotent-Replayed' => 'true', ref $given eq 'ARRAY' ? map { @$_ } @$given
		: map { my $name = $_; map { $name => $_ } map { ref ? @$_ : $_ } $given->{$name} } sort keys %{ $given // {} });
	utf8::downgrade($_, 1) || utf8::encode($_) for @headers;
	my $body = $row->{response_bytes} // $row->{response_body};
	utf8::encode($body) if utf8::is_utf8($body);    # text from the driver is characters, and marked so
	return [answer($row->{response_status}, \@headers, $body)->@*, $row->{expires_at}];
}
1;
