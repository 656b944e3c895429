# The conformance service on Dancer2, which answers a handler that dies by a page of its own.

use v5.26;
use warnings;
use experimental 'signatures';
use FindBin;
use lib $FindBin::RealBin, "$FindBin::RealBin/../lib";
use Dancer2;
use Shop ();

set logger => 'console';
set log => 'error';

# Bytes, as they are: Dancer2 would encode what is text.
sub bytes ($status, $headers, $body) {
	status $status;
	push_response_header splice @$headers, 0, 2 while @$headers;
	response->is_encoded(1);
	return $body;
}

sub answer (@answer) {
	my ($status, $headers, $body) = Shop::json(@answer)->@*;
	return bytes($status, $headers, $body->[0]);
}

# A handler that may throw an answer.
sub answering ($handler) {
	return sub {
		my $content = eval { $handler->(request->env, request->body) };
		return $content if defined $content;
		die $@ unless ref $@ eq 'ARRAY';
		return bytes(@{$@}[0, 1], $@->[2][0]);
	};
}

my $order = answering(sub ($env, $body) {
	my @answer = Shop::created($env, $body);
	return answer(@answer);
});
post '/orders' => $order;
post '/waiting-orders' => $order;

post '/orders/:id/refunds' => answering(sub ($env, $body) {
	Shop::member($body);
	return answer(201, { refund => Shop::insert($env, route_parameters->get('id')) });
});

post '/blobs' => answering(sub ($env, $body) {
	Shop::insert($env, 0);
	my %of = ('Content-Type' => $env->{CONTENT_TYPE}, 'Content-Encoding' => $env->{HTTP_CONTENT_ENCODING});
	return bytes(201, [map { $_ => $of{$_} } grep { defined $of{$_} } sort keys %of], $body);
});

get '/orders' => sub { answer(200, { orders => Shop::count_orders(request->env) }) };
get '/visits' => sub { answer(200, { visits => Shop::visit(request->env) }) };
get '/health' => sub { answer(Shop::health(), {}) };

Shop::serve(to_app);
