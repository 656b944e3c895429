
# Runs TAP tests like prove, and says in files what came out.
#
#	tap_harness.pl JOBS RESULTS LIBRARY TEST...
#
# RESULTS gets the numbers of assertions that passed and that failed, and
# RESULTS.failed the names of the tests that failed. prove prints both only for
# people to read. A test that dies or runs other than its planned number of
# assertions is at least one failure.

use strict;
use warnings;

use TAP::Harness;

my ($jobs, $results, $library, @tests) = @ARGV;

my $all = TAP::Harness->new({ jobs => $jobs, lib => [$library], timer => 1 })->runtests(@tests);

my $failed = 0;
open my $bad, '>', "$results.failed" or die "$results.failed: $!";
for my $name ($all->descriptions)
{
	my ($test) = $all->parsers($name);
	next unless $test->has_problems;
	$failed += scalar($test->failed) || 1;
	$name =~ s{.*/|\.pl$}{}g;
	print $bad "$name\n";
}
close $bad or die "$results.failed: $!";

open my $count, '>', $results or die "$results: $!";
print $count scalar($all->passed), " $failed\n";
close $count or die "$results: $!";

exit($failed ? 1 : 0);
