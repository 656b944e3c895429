"""Bytes per key, and rows that are dead or were written twice."""

from server import Server
from table import heading, say, show, spread

# System A's record with a payload that brings its table to its own estimate.
PAYLOAD = ('{"payment_id": "pay_8f14e45fceea167a", "amount": 12500, "currency": "EUR", '
           '"state": "captured", "receipt": "R-2024"}')


def add_options(parser):
    parser.add_argument("--size-keys", type=int, default=1_000_000)


def measure(options):
    server = Server(autovacuum="off")
    number = options.size_keys
    try:
        server.prepare()
        server.sql("""
            CREATE TABLE bench.system_a
            (
                request_id uuid PRIMARY KEY, operation varchar(100), result_payload text NOT NULL,
                status_code integer, created_at timestamptz DEFAULT now(),
                expires_at timestamptz, CHECK (expires_at > created_at)
            );
            CREATE INDEX ON bench.system_a (expires_at);
            CREATE INDEX ON bench.system_a (operation);
            INSERT INTO bench.system_a (request_id, operation, result_payload, status_code, expires_at)
                SELECT gen_random_uuid(), 'payment', '{payload}', 201, now() + interval '24 hours'
                FROM generate_series(1, {number});
            DO $$
            BEGIN
                FOR i IN 1 .. {number} / 1000 LOOP
                    PERFORM CASE WHEN c.outcome = 'claimed' THEN
                            idempotency.complete('-', 'payment', u.key, 201, '{payload}') END
                        FROM (SELECT gen_random_uuid()::text AS key FROM generate_series(1, 1000) OFFSET 0) AS u,
                            idempotency.claim('-', 'payment', u.key) AS c;
                    COMMIT;
                END LOOP;
            END $$;""".format(payload=PAYLOAD, number=number))
        sizes = {}
        for table in ("bench.system_a", "idempotency.idempotency_keys"):
            heap, indexes, rows = (float(x) for x in server.sql(
                "SELECT pg_table_size('%s'), pg_indexes_size('%s'), count(*) FROM %s;" % ((table,) * 3)).split("|"))
            sizes[table] = {"table": heap / rows, "indexes": indexes / rows}
            for line in server.sql("SELECT indexrelid::regclass, pg_relation_size(indexrelid) FROM pg_index"
                                   " WHERE indrelid = '%s'::regclass;" % table).splitlines():
                name, size = line.split("|")
                sizes[table][name] = float(size) / rows
        server.sql("SELECT pg_stat_force_next_flush();")
        dead = server.sql("SELECT n_tup_upd, n_tup_del, n_dead_tup, n_live_tup FROM pg_stat_user_tables"
                          " WHERE relid = 'idempotency.idempotency_keys'::regclass;").split("|")
        server.sql("REINDEX TABLE idempotency.idempotency_keys;")
        packed = server.number("SELECT pg_indexes_size('idempotency.idempotency_keys');") / number
    finally:
        server.stop()
    say()
    say("Bytes per key after %d same-transaction keys, payload of %d bytes" % (number, len(PAYLOAD)))
    for table, parts in sizes.items():
        say("%-46s %6.1f table + %5.1f indexes = %6.1f" % (
            table, parts["table"], parts["indexes"], parts["table"] + parts["indexes"]))
        for name, size in parts.items():
            if name not in ("table", "indexes"):
                say("    %-60s %5.1f" % (name, size))
    say("    indexes as REINDEX packs them: %.1f" % packed)
    say("rows updated, deleted, dead, live: " + ", ".join(dead))
    total = sum(sizes["idempotency.idempotency_keys"][k] for k in ("table", "indexes"))
    heading("Size")
    rows = [show("bytes per key, all in", spread([total]), 345, True, "system A itself: %.0f" % sum(
                sizes["bench.system_a"][k] for k in ("table", "indexes"))),
            show("dead and updated rows", spread([float(dead[0]) + float(dead[2])]), 0, True)]
    return {"rows": rows, "sizes": sizes, "packed": packed}
