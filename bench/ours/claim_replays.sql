\set k random(1, :keys)
SELECT outcome, response_status, response_headers, response_body, response_bytes, created_at, completed_at, expires_at FROM idempotency.claim('tenant-1', 'payment', :k);
