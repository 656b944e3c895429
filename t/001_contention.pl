
# 64 connections run after the same key, thousands of keys in turn: one
# execution each, however the key is claimed (lib/Contention.pm).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Contention;
use Extension;
use Test::More;

my $connections = 64;
my %rounds = (same_transaction => 1000, lease => 1000, waiting => 200);
my $node = new_server('contention', conf => "max_connections = 100\nshared_buffers = 64MB\n");
my $control = Connection->connect($node);

Contention::prepare($control);
Contention::contend($node, $control, $_, $connections, $rounds{$_}) foreach @Contention::ways;

is( $control->ok(q{
		SELECT count(*) - count(DISTINCT token) FROM idempotency.idempotency_keys WHERE token IS NOT NULL})->value,
	0, 'no token was given twice');
is(key_locks($control), 0, 'no key lock is left');
is(join('', troubles($node)), '', 'no error and no warning in the log');

$node->stop;
done_testing();
