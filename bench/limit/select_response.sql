\set k random(1, :keys)
SELECT response_status, response_headers, response_body, response_bytes, created_at, completed_at, expires_at FROM bench.bare WHERE scope = 'tenant-1' AND operation = 'payment' AND key = :k;
