\set k random(1000000000000000000, 9000000000000000000)
SELECT bench.tle_start(:k, 'payment', '24 hours');
SELECT bench.tle_commit(:k, '{"ok": true}');
