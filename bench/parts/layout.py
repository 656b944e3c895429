"""What the row could also have been: plain tables of the same data."""

import time

from parts.size import PAYLOAD
from server import Server
from table import heading, show, spread

TEXT_FIRST = ("scope text COLLATE \"C\" NOT NULL, operation text COLLATE \"C\" NOT NULL, key text COLLATE \"C\" NOT NULL, "
              "status text COLLATE \"C\" NOT NULL, token int8, attempt int4 NOT NULL, claim_id uuid, fingerprint bytea, "
              "created_at timestamptz NOT NULL, claimed_at timestamptz, locked_until timestamptz, "
              "completed_at timestamptz, expires_at timestamptz NOT NULL, response_status int4, "
              "response_body text, note text")
LIKE = "LIKE idempotency.idempotency_keys INCLUDING DEFAULTS"
PKEY = "PRIMARY KEY (scope, operation, key)"
INDEXES = {
    "expiry": "CREATE INDEX ON {t} (expires_at);",
    "unfinished": "CREATE INDEX ON {t} (operation) WHERE status = ANY (ARRAY['in_progress', 'held']);",
    "response": "CREATE INDEX ON {t} (response_expires_at) WHERE response_expires_at IS NOT NULL;",
}
ALL = "".join(INDEXES.values())
LAYOUTS = [
    # name, columns, indexes
    ("as it is", "%s, %s" % (LIKE, PKEY), ALL),
    ("text columns first", "%s, response_expires_at timestamptz, %s" % (TEXT_FIRST, PKEY), ALL),
    ("status \"char\"", "%s, %s" % (LIKE, PKEY),
     "ALTER TABLE {t} ALTER status TYPE \"char\";" + ALL.replace("status = ANY (ARRAY['in_progress', 'held'])", "status <> 'c'")),
    ("status an enum", "%s, %s" % (LIKE, PKEY),
     "ALTER TABLE {t} ALTER status TYPE bench.key_status USING status::bench.key_status;"
     + ALL.replace("ARRAY['in_progress', 'held']", "ARRAY['in_progress', 'held']::bench.key_status[]")),
    ("key a uuid", "%s, %s" % (LIKE, PKEY), "ALTER TABLE {t} ALTER key TYPE uuid USING key::uuid;" + ALL),
    ("primary key a 16-byte digest", "%s, digest uuid PRIMARY KEY" % LIKE, ALL),
    ("expiry index BRIN", "%s, %s" % (LIKE, PKEY),
     "CREATE INDEX ON {t} USING brin (expires_at);" + INDEXES["unfinished"] + INDEXES["response"]),
    ("expiry index with status", "%s, %s" % (LIKE, PKEY),
     "CREATE INDEX ON {t} (expires_at, status);" + INDEXES["unfinished"] + INDEXES["response"]),
    ("no expiry index", "%s, %s" % (LIKE, PKEY), INDEXES["unfinished"] + INDEXES["response"]),
    ("no partial indexes", "%s, %s" % (LIKE, PKEY), INDEXES["expiry"]),
    ("expiry on whole seconds", "%s, %s" % (LIKE, PKEY), ALL),
    ("CHECK on status", "%s, %s, CHECK (status = ANY (ARRAY['completed', 'in_progress', 'failed', 'held']))" % (LIKE, PKEY),
     ALL),
]


def measure(options):
    server = Server(autovacuum="off")
    number = 200_000
    times = {}
    sizes = {}
    try:
        server.prepare()
        server.sql("""
            CREATE TYPE bench.key_status AS ENUM ('completed', 'in_progress', 'failed', 'held');
            CREATE TABLE bench.source AS SELECT gen_random_uuid() AS key FROM generate_series(1, %d);""" % number)
        # In alternating order, and the first round, which also makes the
        # server's WAL files, does not count.
        for number_of_round in range(options.rounds + 1):
            for name, columns, indexes in LAYOUTS[::-1 if number_of_round % 2 else 1]:
                server.sql("DROP TABLE IF EXISTS bench.layout;"
                           "CREATE TABLE bench.layout (%s); %s CHECKPOINT;" % (columns, indexes.format(t="bench.layout")))
                status = {"status \"char\"": "'c'"}.get(name, "'completed'")
                key = "key" if name == "key a uuid" else "key::text"
                digest = ", digest" if "digest" in columns else ""
                expiry = "date_trunc('second', clock_timestamp())" if "seconds" in name else "clock_timestamp()"
                start = time.time()
                server.sql("""
                    INSERT INTO bench.layout (created_at, expires_at, completed_at, attempt, response_status,
                                              scope, operation, key, status, response_body{digest})
                    SELECT clock_timestamp(), {expiry} + interval '24 hours', clock_timestamp(), 1, 201,
                           '-', 'payment', {key}, {status}, '{payload}'{value} FROM bench.source;""".format(
                    status=status, key=key, expiry=expiry, payload=PAYLOAD, digest=digest, value=digest and ", key"))
                if number_of_round > 0:
                    times.setdefault(name, []).append(time.time() - start)
                sizes[name] = [float(x) / number for x in server.sql(
                    "SELECT pg_table_size('bench.layout'), pg_indexes_size('bench.layout');").split("|")]
    finally:
        server.stop()
    heading("Rate of a bulk insert against the layout as it is (%d rows)" % number)
    rows = []
    for name, _, _ in LAYOUTS:
        rows.append(show(name, spread([a / b for a, b in zip(times[LAYOUTS[0][0]], times[name])]),
                         note="%.1f table + %.1f indexes = %.1f bytes per key" % (*sizes[name], sum(sizes[name]))))
    return {"rows": rows, "sizes": sizes}
