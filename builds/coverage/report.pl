#!/usr/bin/perl

# report.pl - the lines of src/ that were reached, from gcov's JSON on standard input
#
#	report.pl [--share-only] [--list] SOURCES UNCOVERED
#
# UNCOVERED has paragraphs: "FILE FUNCTION: reason", and below, indented, the text of each
# line of that function that no test reaches. Line numbers would be wrong after the next
# edit. A text that the function has several times stands there as often as it is not
# reached. "sometimes" in front of the reason is for what depends on who comes first:
# such lines may be reached or not, and count as not reached.

use strict;
use warnings;

use JSON::PP;

my $least = 95;
my ($share_only, $list);

while (@ARGV && $ARGV[0] =~ /^--/)
{
	my $option = shift;

	$option eq '--share-only' ? $share_only = 1 : $option eq '--list' ? $list = 1 : die "what is $option?\n";
}
my ($sources, $uncovered) = @ARGV;

# ---- what was reached ----------------------------------------------------------------

# By file and line: how often, and in which function. A line of a header, or of a
# function that was inlined, is in the counters of several objects.
my (%reached, %function);

while (my $json = <STDIN>)
{
	foreach my $file (@{ decode_json($json)->{files} })
	{
		# A library that a test has built has copies of them.
		my ($name) = $file->{file} =~ m{(?:^|/)src/(\w+\.[ch])$} or next;

		next unless -e "$sources/$name";

		foreach my $line (@{ $file->{lines} })
		{
			my $number = $line->{line_number};

			$reached{$name}{$number} += $line->{count};
			$function{$name}{$number} //= $line->{function_name};
		}
	}
}
die "there are no counters\n" unless %reached;

my %text;
foreach my $name (keys %reached)
{
	open my $in, '<', "$sources/$name" or die "$sources/$name: $!\n";
	my $number = 0;

	while (my $line = <$in>)
	{
		$line =~ s/^\s+|\s+$//g;
		$text{$name}{ ++$number } = $line;
	}
}

my ($all, $good) = (0, 0);
my %missing;

printf "%-20s %7s %9s %8s\n", qw(file lines reached percent);
foreach my $name (sort keys %reached)
{
	my @lines = sort { $a <=> $b } keys %{ $reached{$name} };
	my @missing = grep { !$reached{$name}{$_} } @lines;

	$all += @lines;
	$good += @lines - @missing;
	printf "%-20s %7d %9d %8.1f\n", $name, scalar @lines, @lines - @missing, 100 * (@lines - @missing) / @lines;
	push @{ $missing{"$name $function{$name}{$_}"}{ $text{$name}{$_} } }, $_ foreach @missing;
}
printf "%-20s %7d %9d %8.1f\n\n", 'all', $all, $good, 100 * $good / $all;
printf "%-7s at least %d of 100 lines are reached: %.2f\n", $good >= $least / 100 * $all ? 'ok' : 'FAILED', $least, 100 * $good / $all;
exit 0 if $share_only;

# ---- and why the others are not --------------------------------------------------------

my (%listed, %sometimes, @wrong);

if (open my $in, '<', $uncovered)
{
	my $place;

	while (my $line = <$in>)
	{
		next if $line =~ /^#/ || $line !~ /\S/;
		if ($line =~ /^(\w+\.[ch] \w+): (sometimes: )?(\S.*)/)
		{
			$place = $1;
			$sometimes{$place} = 1 if $2;
		}
		elsif ($place && $line =~ /^\t\s*(.*?)\s*$/) { $listed{$place}{$1}++; }
		else { push @wrong, "line $. of \"uncovered\" is neither a place with its reason nor a line of code"; }
	}
}
foreach my $place (sort keys %missing)
{
	foreach my $code (sort keys %{ $missing{$place} })
	{
		my @lines = @{ $missing{$place}{$code} };
		my $extra = @lines - ($listed{$place}{$code} // 0);

		push @wrong, "$place: not reached, and no reason is given: \"$code\" (line @lines)" if $extra > 0;
		push @wrong, "$place: listed more often than it is not reached: \"$code\"" if $extra < 0 && !$sometimes{$place};
	}
}
foreach my $place (sort keys %listed)
{
	foreach my $code (sort keys %{ $listed{$place} })
	{
		push @wrong, "$place: listed, though it is reached or is not there: \"$code\""
		  if !$missing{$place}{$code} && !$sometimes{$place};
	}
}
my $reasons = 0;

$reasons += $_ foreach map { values %$_ } values %listed;
printf "%-7s each of the others stands in builds/coverage/uncovered with its reason: %d\n", @wrong ? 'FAILED' : 'ok', $reasons;
print map { "        $_\n" } @wrong;
if ($list)
{
	foreach my $place (sort keys %missing)
	{
		my @lines = sort { $a->[0] <=> $b->[0] } map { my $code = $_; map { [ $_, $code ] } @{ $missing{$place}{$code} } } keys %{ $missing{$place} };

		print "\n$place: \n", map { "\t$_->[1]\n" } @lines;
	}
}
