
# Clients::Record - what the clients of Clients.pm were told
#
# Every claim and every end of one goes into a History, which knows what cannot be
# true; every answer is counted, to see what a run has met; and an answer that no
# client should ever get is a surprise, whatever the history says.

package Clients::Record;

use strict;
use warnings;

use Exporter qw(import);
use History;
use Time::HiRes qw(time);

our @EXPORT = qw($history %answers @surprises begin_record count_answer code_of
  own_transaction record_claim record_ending);

# answers: how often, by what was asked and the SQLSTATE.
our ($history, %answers, @surprises);
my %option;

sub begin_record
{
	%option = @_;
	$history = History->new(%option);
	%answers = ();
	@surprises = ();
	return;
}

sub count_answer
{
	my ($what, $key, $code, $level) = @_;

	$answers{$what}{$code}++;
	return if $code =~ /^(?:|lost|40001|40P01|57014|IK001|IK002)$/;
	push @surprises, "$what on $key: $code ($level)";
	return;
}

sub code_of
{
	my ($result) = @_;

	# A terminated backend may have done its work before it died.
	return 'lost' if $result->{lost};
	return $result->code;
}

# Statements of their own are transactions, too.
sub own_transaction
{
	my ($code, $sent_at) = @_;

	return {
		state => $code eq '' ? 'committed' : $code eq 'lost' ? 'unknown' : 'aborted',
		ended_at => $sent_at,
		over_at => time };
}

sub record_claim
{
	my ($key, $sent_at, $result, %more) = @_;
	my $code = code_of($result);
	my $row = $code eq '' ? $result->row : {};
	my $outcome = $row->{outcome} // 'error';

	count_answer($code eq '' ? "claim: $outcome" : 'claim', $key->{name}, $code, $more{level} // 'read committed');
	push @surprises, "40001 on a key that nobody deletes ($more{level})"
	  if $code eq '40001' && !$key->{passing} && !$option{no_locks} && ($more{level} // 'READ COMMITTED') eq 'READ COMMITTED';
	return $history->claim(
		%more,
		key => $key->{name},
		sent_at => $sent_at,
		answered_at => time,
		code => $code,
		outcome => $outcome,
		token => $row->{token},
		body => $row->{response_body});
}

sub record_ending
{
	my ($kind, $key, $sent_at, $result, %more) = @_;
	my $code = code_of($result);

	count_answer($kind, $key->{name}, $code, $more{level} // 'read committed');
	return $history->ending(
		%more,
		kind => $kind,
		key => $key->{name},
		sent_at => $sent_at,
		answered_at => time,
		code => $code);
}

1;
