
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

# A run that met nothing shows nothing.
Clients::run(
	$node,
	$ENV{IDEMPOTENCY_HISTORY_CLAIMS} // 12_000,
	{
		'claim: claimed' => [ '', 500 ],
		'claim: replay' => [ '', 500 ],
		'claim: in_progress' => [ '', 100 ],
		'claim: mismatch' => [ '', 100 ],
		'claim' => [ '40001', 10 ],
		'complete' => [ 'IK001', 10 ],
		'left open' => [ 'IK004', 10 ],
		'deleted' => [ '', 10 ],
		'terminated' => [ '', 10 ]
	});
Clients::judge();

$node->stop;
done_testing();
