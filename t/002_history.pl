
# Twenty clients do everything at once that clients do, and things happen to
# them (lib/Clients.pm); then the record of what they were told is searched for
# contradictions (lib/History.pm).

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Clients;
use Extension;
use Test::More;

my $node = new_server('history', conf => $Clients::conf);
my $answers = Clients::run($node, $ENV{IDEMPOTENCY_HISTORY_SECONDS} // 12);

Clients::judge();

# A run that met nothing shows nothing.
my %enough = (
	'claim: claimed' => '',
	'claim: replay' => '',
	'claim: in_progress' => '',
	'claim: mismatch' => '',
	'claim' => '40001',
	'complete' => 'IK001',
	'left open' => 'IK004',
	'deleted' => '',
	'terminated' => '');
foreach my $what (sort keys %enough)
{
	cmp_ok($answers->{$what}{ $enough{$what} } // 0, '>', 10, "often enough: $what $enough{$what}");
}

$node->stop;
done_testing();
