
# Guards - the list of guards, and how one is taken out
#
# t/mutants/run does it to see that a test notices, torture/bites that the torture does.
# An edit is Perl, so this is; it needs no more than the text of the file.

package Guards;

use strict;
use warnings;

use Cwd qw(abs_path);
use Exporter qw(import);
use File::Basename qw(dirname);

our @EXPORT = qw(read_list edited refusals);

my $top = abs_path(dirname(__FILE__) . '/../..');

sub text_of
{
	my ($name) = @_;

	open my $file, '<', $name or die "$name: $!\n";
	local $/;
	return <$file>;
}

# Paragraphs of "name", "file", "edit" and "tests", each on a line; an edit may
# go on for several lines, which begin with a tab.
sub read_list
{
	my (@mutants, %known);
	my $list = text_of("$top/t/mutants/list") =~ s/^#.*\n//gmr;

	foreach my $paragraph (split /\n{2,}/, $list)
	{
		my %mutant;

		next unless $paragraph =~ /\S/;
		$paragraph .= "\n";
		while ($paragraph =~ /^(\w+):[ \t]*(.*\n(?:\t.*\n?)*)/gm)
		{
			my ($field, $value) = ($1, $2);

			$value =~ s/^\t//gm;
			chomp($mutant{$field} = $value);
		}
		foreach my $field (qw(name file edit tests))
		{
			die "t/mutants/list: no $field:\n$paragraph" unless defined $mutant{$field};
		}
		die "t/mutants/list: twice: $mutant{name}\n" if $known{ $mutant{name} }++;
		push @mutants, \%mutant;
	}
	return @mutants;
}

# For edits: lets the only refusal with these words, in its condition or its text, never happen. True if
# there is one.
sub never
{
	my ($words) = @_;
	my @lines = split /\n/;
	my ($place, $more) = grep { index(join("\n", @lines[ $_->{from} .. $_->{to} ]), $words) >= 0 } refusals($_);

	return 0 if !$place || $more;
	my $before = join("\n", @lines[ $place->{from} .. $place->{at} - 1 ]);

	# Whatever the condition uses is still used.
	if ($before =~ s/\bif (\(.*\))/if (false && $1)/s)
	{
		@lines[ $place->{from} .. $place->{at} - 1 ] = split /\n/, $before;
	}
	else
	{
		$lines[ $place->{at} ] =~ s/^\t+/$&if (false) /;
	}
	$_ = join("\n", @lines) . "\n";
	return 1;
}

# The text after the edit; undef if there was nothing to edit, or for a part of it.
sub edited
{
	my ($text, $edit) = @_;
	local $_ = $text;
	my $found = eval $edit;

	die "bad edit: $edit\n$@" if $@;
	return $found && $_ ne $text ? $_ : undef;
}

# Functions that never return, since they refuse.
my @refusing = map { /pg_noreturn (?:static|extern) void\s(\w+)/g } map { text_of($_) } glob("$top/src/*.[ch]");

# The lines of each place that refuses something, from 0 on: "at" which it does, "to"
# where, and "from" which the condition is. What never returns is no place, its callers are.
sub refusals
{
	my ($text) = @_;
	my @lines = split /\n/, $text;
	my $call = join '|', @refusing;
	my ($never_returns, @places) = (0);

	foreach my $i (0 .. $#lines)
	{
		$never_returns = 1 if $lines[$i] =~ /^(?:pg_noreturn|(?:$call)\()/;
		$never_returns = 0 if $lines[$i] =~ /^}/;
		next if $never_returns || $lines[$i] !~ /^(\t+)(?:ereport\(ERROR,|ReThrowError\(|(?:$call)\()/;
		my ($from, $to, $less) = ($i, $i, -1 + length $1);

		$to++ until $lines[$to] =~ /;$/;
		$from-- while $lines[ $from - 1 ] =~ /[^;{}]$/ && $lines[$from] !~ /^\t{0,$less}(?:else )?if \(/;
		push @places, { at => $i, from => $lines[$from] =~ /\bif \(/ ? $from : $i, to => $to };
	}
	return @places;
}

# Takes the guard of that name out of a tree, or dies: for programs that are no Perl.
sub take_out
{
	my ($name, $tree) = @_;
	my ($guard) = grep { $_->{name} eq $name } read_list() or die "there is no such guard\n";
	my $text = edited(text_of("$tree/$guard->{file}"), $guard->{edit}) // die "nothing to edit\n";

	open my $file, '>', "$tree/$guard->{file}" or die "$guard->{file}: $!\n";
	print $file $text;
	close $file or die "$guard->{file}: $!\n";
	return;
}

1;
