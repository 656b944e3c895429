
# What the front costs: the same calls through it and directly on the shard that it
# would send them to, in turns, by pgbench. And what a fence costs the other scopes of
# its shard. Prints ratios; asserts nothing.

use strict;
use warnings;

use Promises;
use Servers;
use Shards;

my $clients = $ENV{CLIENTS} // 8;
my $rounds = $ENV{ROUNDS} // 5;
my $seconds = $ENV{SECONDS} // 4;

make_front('front', [], @shards);
my $front = connect_to('a', 'front');
my ($scope) = grep { $front->ok("SELECT idempotency_front.shard_of('$_', NULL, NULL)")->value == 0 } map { "t$_" } 1 .. 100;

connect_to('a', 's0')->ok(q{CREATE TABLE effect (scope text, key text)});
connect_to('a', 's0')->ok(qq{SELECT count(idempotency.import_completed('$scope', 'replay', 'k' || n, 200, repeat('x', 200))) FROM generate_series(0, 999) AS n});

my @measured = (
	[ 'run()', q{SELECT outcome FROM idempotency.run('SCOPE', 'effect', 'k' || :k::text, 'INSERT INTO effect VALUES ($1->>''s'', $1->>''k'')', args => '{"s": "a", "k": "b"}');} ],
	[ 'the procedure: claim, work, complete', q{SELECT outcome FROM shop.post_order('SCOPE', 'k' || :k::text, 7);} ],
	[ 'once()', q{SELECT idempotency.once('SCOPE', 'once', 'k' || :k::text);} ],
	[ 'claim with a lease, then complete', q{SELECT token FROM idempotency.claim('SCOPE', 'lease', 'k' || :k::text, lease => '1 hour') \gset
SELECT idempotency.complete('SCOPE', 'lease', 'k' || :k::text, 200, 'done', token => :token);} ],
	[ 'once_batch() of 100', q{SELECT count(*) FROM idempotency.once_batch('SCOPE', 'batch', ARRAY(SELECT 'k' || :k::text || ' ' || n FROM generate_series(1, 100) AS n));} ],
	[ 'replay()', q{SELECT response_status FROM idempotency.replay('SCOPE', 'replay', 'k' || :r::text);} ]);

# Transactions a second.
sub rate
{
	my ($database, $number) = @_;
	my $file = "$work/scratch/bench.$number.sql";
	my $out = `"$ENV{BINDIR}/pgbench" -n -h "@{[server('a')]}" -U postgres -c $clients -j 2 -T $seconds -M extended -f "$file" $database 2>&1`;

	return $out =~ /tps = ([\d.]+) \(without/ ? $1 : die $out;
}

sub median { my @sorted = sort { $a <=> $b } @_; return $sorted[ $#sorted / 2 ] }

sub compare
{
	my ($name, $number, $first, $second, $before) = @_;
	my (@first, @second, @ratios);

	foreach (1 .. $rounds)
	{
		$before->(1) if $before;
		push @first, rate($first, $number);
		$before->(0) if $before;
		push @second, rate($second, $number);
		push @ratios, $first[-1] / $second[-1];
	}
	my @sorted = sort { $a <=> $b } @ratios;

	printf "%-48s %6.0f of %6.0f a second: %.2f (%.2f-%.2f)\n", $name, median(@first), median(@second), median(@ratios), @sorted[ 0, -1 ];
	return;
}

foreach my $number (0 .. $#measured)
{
	open my $file, '>', "$work/scratch/bench.$number.sql" or die;
	print $file "\\set k random(1, 1000000000000)\n\\set r random(0, 999)\n" . $measured[$number][1] =~ s/SCOPE/$scope/gr . "\n";
	close $file;
}
print "$clients connections, $rounds rounds of $seconds s each in turns, all on one shard, durable; medians (smallest-largest)\n\n";
compare("through the front: $measured[$_][0]", $_, 'front', 's0') foreach 0 .. $#measured;
my $shard = connect_to('a', 's0');
compare('on a shard with a fence: once()', 2, 's0', 's0',
	sub { $shard->ok($_[0] ? q{SELECT idempotency_shard.fence('elsewhere', false)} : q{SELECT idempotency_shard.lift_old('0')}) });
exit 0;
