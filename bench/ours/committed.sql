\set k random(1000000000000000000, 9000000000000000000)
SELECT outcome, token FROM idempotency.claim('tenant-1', 'payment', :k, lease => '60 seconds')
\gset
SELECT idempotency.complete('tenant-1', 'payment', :k, 201, '{"ok": true}', token => :token);
