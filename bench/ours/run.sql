\set k random(1000000000000000000, 9000000000000000000)
SELECT * FROM idempotency.run('tenant-1', 'payment', :k, 'SELECT ''{"ok": true}''');
