# The middleware, without a server around it: what the conformance test cannot see.

use v5.26;
use warnings;
use experimental 'signatures';
use FindBin;
use lib "$FindBin::RealBin/lib";
use IO::File;
use Plack::Middleware::Idempotency;
use Database;
use Test::More;

my $pg = new_pg();
my $operation = 'POST /things';

sub wrapped ($app, %options) {
	return Plack::Middleware::Idempotency->wrap($app, pg => $pg, scope => sub { 'test_perl' }, routes => { $operation => {} }, %options);
}

# The answer of a request, and what an outer middleware sees of it.
sub ask ($app, $key, %more) {
	my $body = delete $more{body} // '{}';
	open my $input, '<', \$body;
	my %env = (REQUEST_METHOD => 'POST', PATH_INFO => '/things', CONTENT_LENGTH => length $body, 'psgi.input' => $input,
		'psgi.errors' => \*STDERR, defined $key ? (HTTP_IDEMPOTENCY_KEY => $key) : (), %more);
	my $answer = $app->(\%env);
	my ($status, $lines, $parts) = @$answer;
	return { status => $status, lines => $lines, headers => {@$lines}, body => join('', @$parts), env => \%env };
}
sub key () { new_id()->[2] }

subtest 'what a key is' => sub {
	my %keys = ('"k"' => 'k', k => 'k', '"a\"b"' => 'a"b', '"a\\\\b"' => 'a\b', '"k";p=1; q="x;y"' => 'k', '"k,l"' => 'k,l', ' k ' => 'k',
		0 => '0', 'x' x 255 => 'x' x 255);
	is(Plack::Middleware::Idempotency::parse_key($_), $keys{$_}, $_) for sort keys %keys;
	is(Plack::Middleware::Idempotency::parse_key($_), undef, 'not ' . s/[^ -~]/?/gr)
		for '', '""', '"k', '"k"x', '"a\n"', 'k, l', '"k", "l"', qq("\xfc"), 'x' x 256, '"k" ;=1', "k\n";
};

subtest 'an answer at once, later, in pieces, or as a file is held back, recorded and replayed' => sub {
	my $headers = ['Content-Type' => 'text/plain', 'Content-Length' => 99, X => 1];
	my %ways = (
		'at once' => sub ($env) { [201, $headers, ['he', 'llo']] },
		'later' => sub ($env) { sub ($respond) { $respond->([201, $headers, ['hello']]) } },
		'in pieces' => sub ($env) { sub ($respond) { my $w = $respond->([201, $headers]); $w->write($_) for 'he', 'llo'; $w->close } },
		'as a file' => sub ($env) { my $file = IO::File->new_tmpfile; print $file 'hello'; seek $file, 0, 0; [201, $headers, $file] });
	for my $way (sort keys %ways) {
		my $key = key();
		my $app = wrapped(sub ($env) { insert($env->{'idempotency.dbh'}, $way); $ways{$way}->($env) });
		my ($first, $again) = map { ask($app, $key) } 1, 2;
		is_deeply([@$_{qw(status body)}, @{ $_->{headers} }{qw(X Content-Length)}], [201, 'hello', 1, 5], $way) for $first, $again;
		is(scalar(grep { $_ eq 'Content-Length' } $_->{lines}->@*), 1, 'one length') for $first, $again;
		is($first->{headers}{'Idempotent-Replayed'}, undef, 'the first');
		is($again->{headers}{'Idempotent-Replayed'}, 'true', 'the second');
		is(count($way), 1, 'one row');
	}
	my $unended = wrapped(sub ($env) { sub ($respond) { $respond->([201, $headers])->write('he') } });
	ok(!eval { ask($unended, key()) }, 'what has not ended is not recorded');
};

subtest 'a serialization failure is run again, whatever the framework makes of it' => sub {
	my $framework = sub ($handler) { sub ($env) { eval { $handler->($env) } // [500, [], ['a page']] } };
	my $runs = 0;
	my $answer = ask(wrapped($framework->(sub ($env) {
		$env->{'psgi.input'}->read(my $body, 100);
		is($body, '{}', 'it finds the body');
		is($env->{left}, undef, 'and an environment as it was');
		$env->{left} = ++$runs;
		$env->{'idempotency.dbh'}->do(q{DO $$ BEGIN RAISE serialization_failure; END $$}) if $runs < 3;
		insert($env->{'idempotency.dbh'}, 'conflict');
		return [201, [], [$runs]];
	})), key());
	is_deeply([@$answer{qw(status body)}, count('conflict')], [201, 3, 1], 'the third run counts');
	is($answer->{env}{left}, 3, 'an outer middleware sees what the application left');
	is($answer->{env}{'idempotency.dbh'}, undef, 'but no connection');

	$runs = 0;
	$answer = ask(wrapped($framework->(sub ($env) { $runs++; insert($env->{'idempotency.dbh'}, 'fault'); die 'a fault' })), key());
	is_deeply([@$answer{qw(status body)}, $runs, count('fault')], [500, 'a page', 1, 0], 'a fault is not, and nothing remains');
	is(ask(wrapped($framework->(sub ($env) { $env->{'idempotency.dbh'}->do('SELECT 1/0') })), key())->{body}, 'a page', 'nor is an error');
	ok(!eval { ask(wrapped(sub ($env) { die { code => 7 } }), key()) } && $@->{code} == 7, 'without a framework it is the server\'s');
};

subtest 'an answer that is thrown is not recorded' => sub {
	my ($runs, $key) = (0, key());
	my $app = wrapped(sub ($env) {
		insert($env->{'idempotency.dbh'}, 'thrown');
		return ++$runs > 1 ? [201, [], []] : die [422, [X => 1], ['no']];
	});
	is_deeply([map { ask($app, $key)->{status} } 1 .. 3], [422, 201, 201], 'it is answered, and the next attempt works');
	is_deeply([$runs, count('thrown')], [2, 1], 'and nothing remained of it');
};

subtest 'a connection that is lost before COMMIT is no answer of success' => sub {
	my $key = key();
	my $app = wrapped(sub ($env) {
		insert($env->{'idempotency.dbh'}, $key);
		outside('SELECT pg_terminate_backend(?)', $env->{'idempotency.dbh'}{pg_pid});
		return [201, [], ['made']];
	});
	open my $errors, '>', \my $log;
	my $answer = ask($app, $key, 'psgi.errors' => $errors);
	is_deeply([$answer->{status}, $answer->{headers}{'Retry-After'}, count($key)], [503, 1, 0], 'a 503');
	like($log, qr/idempotency: .+/, 'and the log says why');
};

subtest 'what is asked for, and what is not' => sub {
	my $app = sub ($env) { [200, [], [$env->{'idempotency.dbh'} ? 'once' : 'untouched']] };
	is(ask(wrapped($app), undef)->{status}, 400, 'a key is needed');
	is(ask(wrapped($app, routes => { $operation => { required => 0 } }), undef)->{body}, 'untouched', 'unless it is not');
	is(ask(wrapped($app), 'k', REQUEST_METHOD => 'GET')->{body}, 'untouched', 'another method');
	is(ask(wrapped($app), 'k', PATH_INFO => '/things/')->{body}, 'untouched', 'another path');
	my $routes = { 'POST /things/{id}/x' => {}, 'POST /things/new/x' => {}, 'POST /things.x' => {} };
	my $noting = wrapped($app, routes => $routes);
	my $key = key();
	ask($noting, $key, PATH_INFO => $_) for '/things/new/x', '/things/7/x';
	ok($pg->lookup(['test_perl', $_, $key]), $_) for 'POST /things/new/x', 'POST /things/{id}/x';
	is(ask($noting, $key, PATH_INFO => '/things/8/x')->{status}, 422, 'path parameters are compared');
	is(ask($noting, 'k', PATH_INFO => '/thingsyx')->{body}, 'untouched', 'a dot is a dot');
	my $line = ask(wrapped($app, lifetime_header => 1), key())->{headers}{'Idempotency-Key-Expires'};
	like($line, qr/^\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT$/, 'how long a key lives');
	ok(!eval { ask(wrapped($app, scope => sub { undef }), key()) } && $@ =~ /authenticate/, 'who is unknown is never served');
	ok(!eval { ask(wrapped($app), key(), CONTENT_LENGTH => 99, 'psgix.input.buffered' => $_) }, 'half a body is no request') for 0, 1;
	ok(!eval { wrapped($app, routes => { $operation => { wiat => '5 s' } }) } && $@ =~ /unknown/, 'a misspelt option');
	my $uncounted = Idempotency::Pg->new(sub { connected() });
	ok(!eval { wrapped($app, pg => $uncounted, routes => { $operation => { wait => '5 s' } }) } && $@ =~ /lock_dir/, 'waiting has a limit');
};

subtest 'an answer that another program recorded' => sub {
	my $id = ['test_perl', $operation, key()];
	outside(q{SELECT outcome FROM idempotency.run(?, ?, ?, 'SELECT 7 AS n', fingerprint => idempotency.fingerprint_bytes('{}'),
		response_status => 201, response_headers => '{"Link": ["</a>", "</b>"], "Content-Type": "application/json"}')}, @$id);
	my $answer = ask(wrapped(sub { die }), $id->[2]);
	is_deeply([@$answer{qw(status body)}, $answer->{headers}->@{qw(Content-Type Link)}], [201, '7', 'application/json', '</b>'], 'replay');
	outside('SELECT idempotency.redact(?, ?, ?)', @$id);
	is(ask(wrapped(sub { die }), $id->[2])->{status}, 410, 'or that is gone');
};

done_testing();
