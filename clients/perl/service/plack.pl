# The conformance service on plain PSGI. Its blobs are answered in pieces.

use v5.26;
use warnings;
use experimental 'signatures';
use FindBin;
use lib $FindBin::RealBin, "$FindBin::RealBin/../lib";
use Plack::Request;
use Shop qw(count_orders created health insert json member serve visit);

sub body ($env) { Plack::Request->new($env)->raw_body }

sub order ($env) {
	my ($status, $value, @headers) = created($env, body($env));
	return json($status, $value, @headers);
}

sub blob ($env) {
	insert($env, 0);
	my %of = ('Content-Type' => $env->{CONTENT_TYPE}, 'Content-Encoding' => $env->{HTTP_CONTENT_ENCODING});
	my $bytes = body($env);
	return sub ($respond) {
		my $writer = $respond->([201, [map { $_ => $of{$_} } grep { defined $of{$_} } sort keys %of]]);
		$writer->write($_) for unpack '(a65536)*', $bytes;
		$writer->close;
	};
}

sub refund ($env, $id) {
	member(body($env));
	return json(201, { refund => insert($env, $id) });
}

my %route = (
	'POST /orders' => \&order, 'POST /waiting-orders' => \&order, 'POST /blobs' => \&blob,
	'GET /orders' => sub ($env) { json(200, { orders => count_orders($env) }) },
	'GET /visits' => sub ($env) { json(200, { visits => visit($env) }) },
	'GET /health' => sub ($env) { json(health(), {}) });

serve(sub ($env) {
	my $asked = "$env->{REQUEST_METHOD} $env->{PATH_INFO}";
	return refund($env, $1) if $asked =~ m{\APOST /orders/([0-9]+)/refunds\z};
	return ($route{$asked} // sub { json(404, {}) })->($env);
});
