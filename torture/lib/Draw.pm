
# Draw - random numbers that are a function of the words that one begins with
#
# Not Perl's own, which every process would have to share.

package Draw;

use strict;
use warnings;

use Digest::SHA qw(sha256);

sub new
{
	my ($class, @words) = @_;

	return bless { words => join("\0", @words), count => 0 }, $class;
}

# From and to, both included.
sub between
{
	my ($self, $from, $to) = @_;

	return $from + unpack('Q', sha256("$self->{words}\0" . $self->{count}++)) % (int($to) - $from + 1);
}

sub pick
{
	my ($self, @of) = @_;

	return @of ? $of[ $self->between(0, $#of) ] : undef;
}

sub shuffle
{
	my ($self, @of) = @_;

	foreach my $i (reverse 1 .. $#of)
	{
		my $j = $self->between(0, $i);

		@of[ $i, $j ] = @of[ $j, $i ];
	}
	return @of;
}

1;
