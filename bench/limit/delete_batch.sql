DELETE FROM bench.bare WHERE ctid = ANY (ARRAY(SELECT b.ctid FROM bench.bare AS b WHERE b.expires_at <= now() ORDER BY b.expires_at LIMIT 1000 FOR UPDATE SKIP LOCKED));
\sleep 10 ms
