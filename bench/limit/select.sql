\set k random(1, :keys)
SELECT status, token, attempt, hold_if_abandoned, recovery_point, state, last_error, response_status, response_headers, response_body, response_bytes, true, NULL::bigint, created_at, completed_at, expires_at FROM bench.bare WHERE scope = 'tenant-1' AND operation = 'payment' AND key = :k;
