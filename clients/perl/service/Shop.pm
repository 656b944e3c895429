package Shop;

# What the conformance service (../../conformance/spec.md) does, whatever the framework: SQL, the card network, the completer and the
# server. A connection for each worker, and one for the completer, which is a process beside them.

use v5.26;
use warnings;
use experimental 'signatures';
use DBI;
use Exporter 'import';
use HTTP::Tiny;
use Idempotency::Pg;
use Idempotency::Pg::Leased qw(completer nothing_happened);
use JSON::PP qw(decode_json encode_json);
use Plack::Builder;
use Plack::Handler::Starman;

our @EXPORT_OK = qw(account count_orders created dbh_of health insert json member serve visit);

my $workers = $ENV{POOL_SIZE} - 1;
my $pg = Idempotency::Pg->new(sub { DBI->connect('dbi:Pg:', '', '') }, lock_dir => $ENV{LOCK_DIR}, workers => $workers);

sub json ($status, $value, @headers) { [$status, ['Content-Type' => 'application/json', @headers], [encode_json($value)]] }

sub account ($env) { ($env->{HTTP_AUTHORIZATION} // '') =~ /\ABearer (\S+)\z/ ? $1 : undef }

# The body as a JSON object with this member as a whole number; otherwise an answer that nothing is recorded of.
sub member ($body, $name = undef) {
	my $data = eval { decode_json($body) };
	my $good = ref $data eq 'HASH' && (!$name || ($data->{$name} // '') =~ /\A-?[0-9]{1,9}\z/);
	return $good ? $data : die json(422, { error => 'the body has to be a JSON object' . ($name ? " with $name" : '') });
}

# ---- work in the claim's transaction, on the connection that the middleware gives ----

sub dbh_of ($env) { $env->{'idempotency.dbh'} // $pg->dbh }

sub insert ($env, $item) {
	my $sql = 'INSERT INTO shop.orders (account, item) VALUES (?, ?) RETURNING id';
	return (dbh_of($env)->selectrow_array($sql, undef, account($env), $item))[0];
}

# Status, JSON and headers of an order.
sub created ($env, $body) {
	my $fail = $env->{HTTP_X_FAIL} // '';
	my $data = member($body, 'item');
	return (402, { refused => JSON::PP::true }) if $fail eq 'refuse';
	my $id = insert($env, $data->{item});
	select undef, undef, undef, $data->{pause_ms} / 1000 if $data->{pause_ms};
	die 'the handler was asked to die' if $fail eq 'throw';
	return (503, { error => 'the handler was asked to answer so' }) if $fail eq '503';
	my ($session, $request) = map { sprintf '%08x', rand 2**32 } 1, 2;
	return (201, { order => $id }, Location => "/orders/$id", Link => '</a>; rel=a', Link => '</b>; rel=b',
		'Set-Cookie' => "session=$session", 'X-Request' => $request);
}

sub count_orders ($env) {
	return ($pg->dbh->selectrow_array('SELECT count(*) FROM shop.orders WHERE account = ?', undef, account($env)))[0];
}

sub visit ($env) {
	my $dbh = dbh_of($env);
	$dbh->do('INSERT INTO shop.visits (account) VALUES (?)', undef, account($env));
	return ($dbh->selectrow_array('SELECT count(*) FROM shop.visits WHERE account = ?', undef, account($env)))[0];
}

# For a load balancer: 200 or 503.
sub health () {
	my $sql = q{SELECT NOT EXISTS (SELECT FROM idempotency.health() WHERE status = 'critical')};
	return eval { ($pg->dbh->selectrow_array($sql))[0] } ? 200 : 503;
}

# ---- charges, outside of it ----

my %charge = (lease => $ENV{LEASE}, step => 'charge');

sub charge ($attempt) {
	my ($account, $amount) = $attempt->{state}->@{qw(account amount)};
	my $ask = sub ($timeout, $method, $path, @options) {
		my $answer = HTTP::Tiny->new(timeout => $timeout)->request($method, "$ENV{NETWORK_URL}$path", @options);
		nothing_happened($answer->{content}) if $answer->{status} == 599 && $answer->{content} =~ /^Could not connect/;
		return $answer;
	};
	my $forever = 86400;
	$ask->($forever, GET => "/before?key=$attempt->{effect_key}");
	my $asked = encode_json({ key => $attempt->{effect_key}, amount => $amount });
	my $answer = $ask->($ENV{NETWORK_TIMEOUT}, POST => '/charges', { content => $asked });
	return { status => 402, body => { declined => JSON::PP::true } } if $answer->{status} == 402;
	die "the network answered $answer->{status}: $answer->{content}" if $answer->{status} != 200;
	my $charge = decode_json($answer->{content})->{charge};
	eval { $ask->($forever, GET => "/after?key=$attempt->{effect_key}") };
	my $sql = 'INSERT INTO shop.payments (account, charge, amount) VALUES (?, ?, ?)';
	return { status => 201, body => { charge => $charge }, book => sub ($dbh) { $dbh->do($sql, undef, $account, $charge, $amount) } };
}

# What a request leaves for whoever does its work, the completer included.
sub charge_state ($env, $body) { return { account => account($env), amount => member($body, 'amount')->{amount} } }

# ---- the server ----

sub authenticated ($app) {
	return sub ($env) { account($env) || $env->{PATH_INFO} eq '/health' ? $app->($env) : json(401, { error => 'who is it?' }) };
}

sub serve ($app) {
	my $service = builder {
		enable \&authenticated;
		enable 'Idempotency', pg => $pg, scope => sub ($env) { 'shop:' . account($env) }, routes => {
			'POST /orders' => {}, 'POST /waiting-orders' => { wait => $ENV{WAIT} }, 'POST /orders/{id}/refunds' => {}, 'POST /blobs' => {},
			'POST /charges' => { %charge, work => \&charge, state => \&charge_state, hold_if_abandoned => 0 },
		};
		$app;
	};
	my $server = $$;
	if (!(fork // die "fork: $!")) {
		completer($pg, 'POST /charges', \&charge, %charge, until => sub { getppid != $server });
		exit;
	}
	my $ready = sub { syswrite STDOUT, "listening\n" };
	Plack::Handler::Starman->new(host => '127.0.0.1', port => $ENV{PORT}, workers => $workers, server_ready => $ready)->run($service);
}

1;
