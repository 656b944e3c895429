"""What others publish for the same purpose, called as their users call it, against the bare insert and against us.

Nothing of theirs is in this repository.  DBOS comes from npm, which prints its
own migrations; bench/run has installed it.  Absurd's package on npm has no SQL:
--absurd-sql names the file that its repository and its tool absurdctl have.
The PL/pgSQL package is written here, after what such packages offer
(published.sql), and what PostgreSQL 19 has itself runs where it is at hand.
All record in ordinary tables, as durably as we do, and promise other things,
which stand beside their figures.
"""

import os

from environment import WORK, run
from pairs import Pair, measure_pairs, show_pairs
from server import APPLICATION, Server
from table import heading

# In the folder beside ours, where bench/run puts it.
DBOS = os.path.join(os.path.dirname(WORK), "npm", "node_modules", ".bin", "dbos")

# PostgreSQL that has INSERT ... ON CONFLICT DO SELECT.
DO_SELECT = 190000

# What does as many transactions, and as much, where that is not one statement of each.
LIMITS = {"published/tle": "limit/insert_then_update"}
OURS = {"published/tle": "ours/committed", "published/do_select": "ours/once"}

NOT_PROMISED = {
    "published/do_select": "no lifetime: who finds an expired row has to see to it",
    "published/tle": "start commits before the work: no same transaction, no owner, no lease, other requests not told apart",
    "published/absurd": "queued, answered later; other requests with the key not told apart, no lifetime",
    "published/dbos": "queued, answered later, not told whether new; other requests with the key not told apart, no lifetime",
}


def add_options(parser):
    parser.add_argument("--absurd-sql", help="published: Absurd's sql/absurd.sql, as an absolute path")


def prepare_dbos(server):
    server.sql(run([DBOS, "schema", "--print-migrations", "all"]))
    server.sql(run([DBOS, "schema", "--print-user-role", "--app-role", APPLICATION]))
    server.tables += ["dbos.workflow_status", "dbos.workflow_input"]


def prepare_absurd(server, path):
    server.sql(open(path).read())
    server.sql("""
        SELECT absurd.create_queue('default');
        GRANT USAGE ON SCHEMA absurd TO {role};
        GRANT ALL ON ALL TABLES IN SCHEMA absurd TO {role};
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA absurd TO {role};""".format(role=APPLICATION))
    server.tables += ["absurd.t_default", "absurd.r_default"]


def measure(options):
    names = {}
    server = Server(fsync=options.fsync)
    try:
        server.prepare()
        if os.path.exists(DBOS):
            prepare_dbos(server)
            names["published/dbos"] = "DBOS, enqueue_workflow"
        if options.absurd_sql:
            prepare_absurd(server, options.absurd_sql)
            names["published/absurd"] = "Absurd, spawn_task"
        server.sql_file("published.sql")
        server.tables.append("bench.tle_keys")
        names["published/tle"] = "PL/pgSQL package, start and commit"
        if server.number("SHOW server_version_num;") >= DO_SELECT:
            names["published/do_select"] = "INSERT ... DO SELECT"
        pairs = [Pair("ours, one statement", "ours/one_statement", "limit/insert"),
                 Pair("ours, once", "ours/once", "limit/insert"),
                 Pair("ours, claim with a lease, then complete", "ours/committed", "limit/insert_then_update")]
        pairs += [Pair(name, script, LIMITS.get(script, "limit/insert")) for script, name in names.items()]
        pairs += [Pair("ours against " + name, OURS.get(script, "ours/one_statement"), script)
                  for script, name in names.items()]
        result = measure_pairs(server, pairs, options.rounds, options.seconds)
    finally:
        server.stop()
    heading("Rate against the bare insert, 4 connections, fsync %s" % options.fsync)
    rows = show_pairs(pairs, result, NOT_PROMISED)
    return {"rows": rows, "raw": result}
