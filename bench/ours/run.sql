\set k random(1000000000000000000, 9000000000000000000)
SELECT outcome, response_body FROM idempotency.run('tenant-1', 'payment', :k, 'SELECT ''{"ok": true}''');
