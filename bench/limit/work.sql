\set k random(1000000000000000000, 9000000000000000000)
INSERT INTO bench.payments (account, amount) VALUES (:k, 100);
