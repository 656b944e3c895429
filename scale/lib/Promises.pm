
# Promises - what the tests of scale/ print
#
# A promise is one call of promise(), which prints "ok" or "FAILED"; count() keeps a
# number, and finish() prints the numbers and ends the process as it went.

package Promises;

use strict;
use warnings;

use Exporter qw(import);

our @EXPORT = qw(promise count finish);

my ($failed, @numbers) = (0);

$| = 1;

# With a prototype, or a comparison that does not match would leave its place to the words.
sub promise($$@)
{
	my ($kept, $words, @why) = @_;

	printf "%-7s %s\n", $kept ? 'ok' : 'FAILED', $words;
	return 1 if $kept;
	$failed++;
	print map { "        $_\n" } @why[ 0 .. ($#why > 9 ? 9 : $#why) ];
	return 0;
}

sub count
{
	push @numbers, [@_];
	return;
}

sub finish
{
	print "\n", map { sprintf "%-62s %s\n", @$_ } @numbers;
	print $failed ? "FAILED: $failed\n" : "all ok\n";
	exit($failed ? 1 : 0);
}

1;
