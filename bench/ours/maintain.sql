CALL idempotency.maintain();
\sleep 200 ms
