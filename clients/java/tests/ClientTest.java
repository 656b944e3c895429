import static idempotency.Idempotency.*;
import static idempotency.Idempotency.Arg.*;
import static java.nio.charset.StandardCharsets.UTF_8;

import com.zaxxer.hikari.HikariDataSource;
import idempotency.*;
import idempotency.Answer.Header;
import java.lang.reflect.*;
import java.sql.*;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import org.postgresql.ds.PGSimpleDataSource;

/**
 * The client against a real database, that of PG*, by each mode of the driver: what goes wrong where such lines are written by hand. What
 * needs two processes, a pooler or a lost answer is in ../conformance. HTTP is in HttpTest.
 */
class ClientTest {
    /** Prepared at once, never (as behind a pgbouncer before 1.21), by the simple protocol, and with strings that have no type. */
    static final List<String> MODES = List.of("prepareThreshold=1", "prepareThreshold=0", "preferQueryMode=simple",
        "preferQueryMode=extendedCacheEverything&stringtype=unspecified");
    static final Map<String, HikariDataSource> POOLS = new LinkedHashMap<>();
    static Database db; // of the mode that is tested
    static HikariDataSource pool;

    interface Test { void run() throws Exception; }

    static void expect(boolean ok, String why, Object... values) { if (!ok) throw new AssertionError(why.formatted(values)); }
    static void equal(Object got, Object wanted) { expect(Objects.equals(got, wanted), "got %s instead of %s", got, wanted); }
    static Throwable thrown(Test test) {
        try { test.run(); } catch (Throwable e) { return e; }
        throw new AssertionError("nothing was thrown");
    }
    static void kind(Kind wanted, Test test) {
        Throwable e = thrown(test);
        expect(Kind.of(new IllegalStateException("wrapped", e)) == wanted, "%s is %s instead of %s", e, Kind.of(e), wanted);
    }

    static Id fresh() { return new Id("java", "test", UUID.randomUUID().toString()); }
    static String one(Connection c, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = c.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) statement.setObject(i + 1, values[i]);
            ResultSet row = statement.executeQuery();
            return row.next() ? row.getString(1) : null;
        }
    }
    static String one(String sql, Object... values) throws SQLException {
        try (Connection c = pool.getConnection()) { return one(c, sql, values); }
    }
    static Claim claim(Id id, Request request, Option... options) throws Exception {
        return db.transaction(c -> Idempotency.claim(c, id, request, options));
    }
    static Claimed lease(Id id, Option... options) throws Exception {
        List<Option> all = new ArrayList<>(List.of(options));
        all.add(LEASE.of(Duration.ofMinutes(1)));
        return (Claimed) claim(id, Request.NOT_COMPARED, all.toArray(Option[]::new));
    }
    /** Claims and completes. */
    static Claim done(Id id, Request request, Answer answer) throws Exception {
        return db.transaction(c -> {
            Claim claim = Idempotency.claim(c, id, request);
            if (claim instanceof Claimed) complete(c, id, answer);
            return claim;
        });
    }
    static final Answer OK = Answer.json(200, "{}");

    static void answersComeBackByteForByte() throws Exception {
        byte[][] bodies = {"{\"a\": 1.10}\r\n".getBytes(UTF_8), {}, {0, (byte) 255, '"', '\\', 'x', 0x5c}, "na\u00efve\0".getBytes(UTF_8),
            "\\x00".getBytes(UTF_8), "na\u00efve \ud83d\ude00".getBytes(UTF_8), {'c', 'a', 'f', (byte) 0xe9}};
        for (byte[] body : bodies) for (String type : List.of("application/json", "text/plain;charset=UTF-8", "application/octet-stream")) {
            Id id = fresh();
            List<Header> kept = List.of(new Header("Content-Type", type), new Header("Link", "</a>; rel=\"a\", {x}\\"), new Header("link", "</b>, c"));
            Answer answer = new Answer(201, kept, body, null).with("Set-Cookie", "a=b").with("Date", "now").with("Content-Length", "7");
            expect(done(id, Request.of("{}"), answer) instanceof Claimed, "not claimed");
            Answered again = (Answered) done(id, Request.of("{}"), null);
            expect(again.replayed() && Arrays.equals(again.answer().body(), body), "%s came back", again);
            equal(again.answer().headers(), kept);
            equal(again.answer().status(), 201);
            equal(db.transaction(c -> lookup(c, id)).get().answer().text(), again.answer().text());
            boolean text = !type.endsWith("stream") && body.length > 0 && Arrays.equals(new String(body, UTF_8).getBytes(UTF_8), body)
                && new String(body, UTF_8).indexOf(0) < 0;
            equal(one("SELECT response_body IS NOT NULL FROM idempotency.lookup(?, ?, ?)", id.scope(), id.operation(), id.key()), text ? "t" : "f");
        }
    }

    static void whatIsNotGivenIsNull() throws Exception {
        Id id = fresh();
        done(id, Request.NOT_COMPARED, new Answer(204, List.of(), new byte[0], null));
        equal(one("SELECT response_bytes IS NULL AND response_body IS NULL AND response_headers IS NULL AND fingerprint IS NULL"
            + " FROM idempotency.lookup(?, ?, ?)", id.scope(), id.operation(), id.key()), "t");
        expect(thrown(() -> new Request(null, Map.of())) instanceof NullPointerException, "a request that was forgotten");
        expect(thrown(() -> Request.of(null)) instanceof NullPointerException, "a request that was forgotten");
        expect(thrown(() -> STATE.of(null)).getMessage().equals("STATE"), "an option that was forgotten");
        expect(lease(fresh()).token() > 0, "no token");
    }

    static void comparison() throws Exception {
        Id id = fresh();
        done(id, Request.of("{\"n\": 1, \"a\": \"b\"}"), OK);
        expect(done(id, Request.of("{ \"a\": \"b\", \"n\": 1.0}"), OK) instanceof Answered, "another spelling is another request");
        Request other = new Request("{\"n\": 1, \"a\": \"b\"}".getBytes(UTF_8), Map.of("id", "7"));
        expect(done(id, other, OK) instanceof Mismatch, "path parameters do not count");
        equal(one("SELECT fingerprint = idempotency.fingerprint('{\"n\": 1, \"a\": \"b\"}') FROM idempotency.lookup(?, ?, ?)",
            id.scope(), id.operation(), id.key()), "t"); // it was not encoded twice
        // What jsonb refuses is compared by its bytes, and is no error.
        for (String body : List.of("{\"a\": \"\\u0000\"}", "{\"a\": \"\\ud800\"}", "{\"a\": 1e200000}", "\0", "")) {
            Id mine = fresh();
            expect(done(mine, Request.of(body), OK) instanceof Claimed, body);
            expect(done(mine, Request.of(body), OK) instanceof Answered, body);
            expect(done(mine, Request.of(body + " x"), OK) instanceof Mismatch, body);
        }
    }

    static void errorsAreToldApart() throws Exception {
        Id id = fresh(), other = fresh();
        Option token = TOKEN.of(lease(id, STATE.of("{\"n\": [1]}"), NOTE.of("n")).token());
        Known known = db.transaction(c -> lookup(c, id)).get();
        expect(known.status().equals("in_progress") && known.state().equals("{\"n\": [1]}") && known.note().equals("n"), "%s", known);
        db.transaction(c -> EXTEND.on(c, id, token));
        kind(Kind.TOO_LARGE, () -> db.transaction(c -> complete(c, id, new Answer(200, List.of(), new byte[5 << 20], null), token)));
        db.transaction(c -> complete(c, id, OK, token, REFUSE_REPEAT.of(true)));
        Test repeat = () -> db.transaction(c -> complete(c, id, OK, token, REFUSE_REPEAT.of(true)));
        kind(Kind.STALE_CLAIM, repeat);
        equal(Kind.reason(new RuntimeException(thrown(repeat))), Optional.of("completed"));
        kind(Kind.OTHER_COMPLETION, () -> db.transaction(c -> complete(c, id, Answer.json(201, "{}"), token)));
        kind(Kind.NOT_CLAIMED, () -> db.transaction(c -> FAIL.on(c, fresh(), ERROR.of("never claimed"))));
        kind(Kind.LEFT_OPEN, () -> db.transaction(c -> Idempotency.claim(c, fresh(), Request.NOT_COMPARED)));
        kind(Kind.BAD_REQUEST, () -> claim(fresh(), Request.NOT_COMPARED, LEASE.of(Duration.ofSeconds(-1))));
        kind(Kind.BAD_REQUEST, () -> claim(fresh(), Request.NOT_COMPARED, LEASE.of("1 min"), STATE.of("{")));
        Option held = TOKEN.of(lease(other).token());
        equal(db.transaction(c -> HOLD.on(c, other, REASON.of("nobody knows"), held)), held.values()[0]);
        kind(Kind.HELD, () -> db.transaction(c -> FAIL.on(c, other, held)));
        expect(claim(other, Request.NOT_COMPARED) instanceof Held, "not held");
        equal(db.transaction(c -> lookup(c, other)).get().lastError(), "nobody knows");
        expect(db.transaction(c -> replay(c, other)).isEmpty(), "a replay of what is not known");
        expect(db.transaction(c -> lookup(c, fresh())).isEmpty(), "a key that nobody knows");
        equal(Kind.of(new SQLException("of a server", "53300")), Kind.UNAVAILABLE);
        equal(Kind.of(new SQLException("of a server", "25006")), Kind.UNAVAILABLE);
        equal(Kind.of(new SQLException("of a server", "55P03")), Kind.WAIT_TIMEOUT);
        equal(Kind.of(new SQLException("of a server", "IK006")), Kind.REDACTED);
        equal(Kind.of(new SQLException("of a server", "42601")), Kind.OTHER);
        equal(Kind.of(new IllegalStateException("a fault")), Kind.OTHER);
    }

    static void theOtherCalls() throws Exception {
        Id ran = fresh(), once = fresh(), failed = fresh(), released = fresh();
        for (boolean replayed : new boolean[] {false, true}) {
            Answered it = (Answered) db.transaction(c -> run(c, ran, Request.NOT_COMPARED, "SELECT $1->>'key' AS key", ARGS.of("{\"key\": \"k\"}")));
            expect(it.replayed() == replayed && it.answer().text().equals("k"), "%s", it);
            equal(db.transaction(c -> ONCE.on(c, once, TTL.of("1 day"))), !replayed);
        }
        expect(db.transaction(c -> RECORD_FAILURE.on(c, failed, ERROR.of("out of stock"), RETRY_IN.of("1 min"))), "not recorded");
        InProgress rival = (InProgress) claim(failed, Request.NOT_COMPARED, LEASE.of("1 min"), WAIT.of("1 ms"), WAIT_FOR.of("any"));
        expect(rival.rival().equals("retry") && rival.retryAfterMs() > 50000 && rival.lockedUntil() != null, "%s", rival);
        long token = lease(released, HOLD_IF_ABANDONED.of(false)).token();
        expect(db.transaction(c -> RELEASE.on(c, released, TOKEN.of(token))), "not released");
        Claimed mine = lease(released);
        equal(mine.attempt(), 1);
        db.transaction(c -> CHECKPOINT.on(c, released, RECOVERY_POINT.of("charged"), LEASE.of("1 ms"), TOKEN.of(mine.token()), STATE.of("{\"b\": 2}")));
        Claimed taken = null;
        while (taken == null) { // until the lease has lapsed
            taken = db.transaction(c -> claimAbandoned(c, OPERATION.of("test"), LEASE.of("1 min"), MAX_ROWS.of(100))).stream()
                .filter(claim -> claim.id().equals(released)).findFirst().orElse(null);
        }
        expect(taken.attempt() == 2 && taken.recoveryPoint().equals("charged") && taken.state().equals("{\"b\": 2}"), "%s", taken);
        expect(taken.leaseMs() > 30000 && taken.leaseMs() <= 60000, "%s", taken);
    }

    static void lostConnections() throws Exception {
        for (String when : List.of("query", "COMMIT")) {
            kind(Kind.UNAVAILABLE, () -> db.transaction(c -> {
                String pid = one(c, "SELECT pg_backend_pid()");
                one("SELECT pg_terminate_backend(?::int, 60000)", pid);
                if (when.equals("query")) Idempotency.claim(c, fresh(), Request.NOT_COMPARED);
                return null;
            }));
        }
        equal(one("SELECT 1"), "1"); // by another connection
    }

    /** A transaction that commits is not told of an error that was swallowed; the server has rolled back. */
    static void swallowedError() throws Exception {
        Throwable e = thrown(() -> db.transaction(c -> {
            try { one(c, "SELECT 1/0"); } catch (SQLException swallowed) { /* as in a handler that means well */ }
            return null;
        }));
        expect(e instanceof SQLException, "%s", e);
        int[] runs = {0};
        kind(Kind.RETRY, () -> db.transaction(c -> {
            runs[0]++;
            try { conflict(c); } catch (SQLException swallowed) { /* but it is the reason */ }
            return null;
        }));
        equal(runs[0], 5);
    }

    static void conflict(Connection c) throws SQLException {
        one(c, "SELECT client_java.conflict()");
    }

    static void serializationFailuresRunItAgain() throws Exception {
        int[] runs = {0};
        equal(db.transaction(c -> {
            equal(c.getAutoCommit(), false);
            if (++runs[0] < 3) conflict(c);
            return "done";
        }), "done");
        equal(runs[0], 3);
        for (int i = 0; i < 4; i++) try (Connection c = pool.getDataSource().getConnection()) { expect(c.getAutoCommit(), "autocommit"); }
        expect(thrown(() -> db.transaction(c -> { throw new StackOverflowError(); })) instanceof StackOverflowError, "an Error");
    }

    // ---- only once, not by mode ----

    /** A token is no double: the one after 2^53. */
    static void tokenBeyond53Bits() throws Exception {
        Id id = fresh();
        lease(id);
        one("UPDATE idempotency.idempotency_keys SET token = 9007199254740993 WHERE key = ? RETURNING 1", id.key());
        long token = db.transaction(c -> lookup(c, id)).get().token();
        equal(token, 9007199254740993L);
        db.transaction(c -> complete(c, id, OK, TOKEN.of(token)));
    }

    /** Other languages record headers as an object, or as numbers. */
    static void headersOfOthers() throws Exception {
        Id id = fresh();
        db.transaction(c -> {
            Idempotency.claim(c, id, Request.NOT_COMPARED);
            return one(c, "SELECT idempotency.complete(?, ?, ?, response_headers => '{\"x-n\": 1000000, \"Link\": [\"a\", \"b\"]}')",
                id.scope(), id.operation(), id.key());
        });
        Answer answer = db.transaction(c -> replay(c, id)).get().answer();
        equal(new HashSet<>(answer.headers()), Set.of(new Header("x-n", "1000000"), new Header("Link", "a"), new Header("Link", "b")));
        equal(answer.headers().indexOf(new Header("Link", "a")) + 1, answer.headers().indexOf(new Header("Link", "b")));
        equal(answer.status(), 200);
    }

    /** Pools say in their own words that they have no connection, and not all of them restore autocommit. */
    static void pools() throws Exception {
        try (HikariDataSource one = new HikariDataSource()) {
            one.setDataSource(UnixSockets.source());
            one.setMaximumPoolSize(1);
            one.setConnectionTimeout(250);
            Connection kept = one.getConnection();
            kind(Kind.UNAVAILABLE, () -> new Database(one, 1).transaction(c -> null));
            kept.close();
        }
        PGSimpleDataSource nobody = new PGSimpleDataSource();
        nobody.setServerNames(new String[] {"127.0.0.1"});
        nobody.setPortNumbers(new int[] {1});
        kind(Kind.UNAVAILABLE, () -> new Database(nobody, 1).transaction(c -> null));
        try (Connection real = UnixSockets.source().getConnection()) {
            Object unclosed = Proxy.newProxyInstance(ClientTest.class.getClassLoader(), new Class<?>[] {Connection.class}, (p, method, arguments) -> {
                try { return method.getName().equals("close") ? null : method.invoke(real, arguments); }
                catch (InvocationTargetException e) { throw e.getCause(); }
            });
            Database forgetful = new Database(new PGSimpleDataSource() {
                @Override public Connection getConnection() { return (Connection) unclosed; }
            }, 1);
            forgetful.transaction(c -> one(c, "SELECT 1"));
            expect(real.getAutoCommit(), "autocommit is off after COMMIT");
            thrown(() -> forgetful.transaction(c -> one(c, "SELECT 1/0")));
            expect(real.getAutoCommit(), "autocommit is off after ROLLBACK");
        }
    }

    static Claim leased(Id id, String lease, Leased.Effect effect) throws Exception {
        return new Leased(db, "charge", lease, effect).run(id, Request.NOT_COMPARED, STATE.of("{\"n\": 1}"));
    }

    static void leasedByWhatIsKnown() throws Exception {
        Id id = fresh();
        equal(leased(id, "1 min", job -> { throw new Leased.NothingHappened("not reached"); }), new Failed("not reached"));
        Claim claim = leased(id, "1 min", job -> {
            equal(job.effectKey(), one("SELECT idempotency.effect_key(?, ?, ?, 'charge')", id.scope(), id.operation(), id.key()));
            expect(job.claim().attempt() == 2 && job.claim().state().equals("{\"n\": 1}") && job.claim().lastError().equals("not reached"), "%s", job);
            return Answer.json(201, "{\"a\": 1}").booking(c -> one(c, "INSERT INTO client_java.work VALUES (?) RETURNING 1", id.key()));
        });
        expect(claim instanceof Answered it && !it.replayed() && it.answer().status() == 201, "%s", claim);
        equal(one("SELECT count(*) FROM client_java.work WHERE key = ?", id.key()), "1");
        claim = leased(id, "1 min", job -> { throw new AssertionError("it was done"); });
        expect(claim instanceof Answered it && it.replayed() && it.answer().text().equals("{\"a\": 1}"), "%s", claim);

        Map<String, Leased.Effect> unknown = Map.of("time-out", job -> { throw new java.net.SocketTimeoutException("time-out"); },
            "Error", job -> { throw new NoClassDefFoundError("Error"); }, "no answer", job -> null,
            "NUL", job -> { throw new Exception("NUL \0" + "x".repeat(5 << 20)); });
        for (var work : unknown.entrySet()) {
            Id mine = fresh();
            expect(leased(mine, "1 min", work.getValue()) instanceof Held held && held.lastError().contains(work.getKey()), work.getKey());
            expect(db.transaction(c -> lookup(c, mine)).get().lastError().contains(work.getKey()), work.getKey());
        }
        // It happened, and cannot be booked: nobody may do it again.
        Id unbooked = fresh();
        thrown(() -> leased(unbooked, "1 min", job -> OK.booking(c -> { throw new IllegalStateException("no such account"); })));
        equal(db.transaction(c -> lookup(c, unbooked)).get().status(), "held");
        Id large = fresh();
        kind(Kind.TOO_LARGE, () -> leased(large, "1 min", job -> new Answer(200, List.of(), new byte[5 << 20], null)));
        equal(db.transaction(c -> lookup(c, large)).get().status(), "held");
    }

    static void heartbeat() throws Exception {
        Id id = fresh();
        CountDownLatch interrupted = new CountDownLatch(1);
        Throwable e = thrown(() -> leased(id, "2 s", job -> {
            var first = db.transaction(c -> lookup(c, id)).get().lockedUntil();
            while (!db.transaction(c -> lookup(c, id)).get().lockedUntil().isAfter(first)) Thread.sleep(10); // renewed
            one("SELECT idempotency.forget(?, ?, ?, force => true)", id.scope(), id.operation(), id.key());
            try {
                Thread.sleep(Long.MAX_VALUE); // the test hangs if the work is not stopped
            } catch (InterruptedException stopped) { interrupted.countDown(); }
            return OK;
        }));
        expect(EnumSet.of(Kind.STALE_CLAIM, Kind.NOT_CLAIMED).contains(Kind.of(e)), "%s", e);
        interrupted.await();
    }

    /** A claim whose answer was lost is repeated with its claim_id; a booking whose answer was lost is found. */
    static void lostAnswers() throws Exception {
        Set<String> lose = ConcurrentHashMap.newKeySet();
        Database lossy = new Database(new PGSimpleDataSource() {
            @Override public Connection getConnection() throws SQLException {
                Connection real = pool.getConnection();
                StringBuilder said = new StringBuilder();
                return (Connection) Proxy.newProxyInstance(ClientTest.class.getClassLoader(), new Class<?>[] {Connection.class}, (p, method, arguments) -> {
                    if (method.getName().equals("prepareStatement")) said.append(arguments[0]);
                    try {
                        Object result = method.invoke(real, arguments);
                        if (method.getName().equals("commit") && lose.removeIf(call -> said.indexOf("idempotency." + call + "(") >= 0)) {
                            throw new SQLException("the answer to COMMIT was lost", "08006");
                        }
                        return result;
                    } catch (InvocationTargetException e) { throw e.getCause(); }
                });
            }
        }, 4);
        for (String call : List.of("claim", "effect_key", "complete", "fail", "hold")) {
            Id id = fresh();
            int[] runs = {0};
            lose.add(call);
            Claim claim = new Leased(lossy, "charge", "1 min", job -> {
                runs[0]++;
                if (call.equals("fail")) throw new Leased.NothingHappened("x");
                if (call.equals("hold")) throw new Exception("x");
                return OK.booking(c -> one(c, "INSERT INTO client_java.work VALUES (?) RETURNING 1", id.key()));
            }).run(id, Request.NOT_COMPARED);
            expect(lose.isEmpty() && runs[0] == 1, "%s: %s runs", call, runs[0]);
            expect(call.equals("fail") ? claim instanceof Failed : call.equals("hold") ? claim instanceof Held : claim instanceof Answered, "%s", claim);
            equal(one("SELECT count(*) FROM client_java.work WHERE key = ?", id.key()), claim instanceof Answered ? "1" : "0");
        }
    }

    static void completer() throws Exception {
        Id id = new Id("java", "completed " + UUID.randomUUID(), "k");
        claim(id, Request.NOT_COMPARED, LEASE.of("1 ms"), STATE.of("{\"n\": 5}"));
        List<String> seen = new CopyOnWriteArrayList<>();
        new Leased(db, "charge", "1 min", job -> {
            seen.add(job.claim().state());
            return OK;
        }).completer(id.operation(), () -> !seen.isEmpty(), e -> { throw new AssertionError(e); });
        equal(seen, List.of("{\"n\": 5}"));
        equal(db.transaction(c -> replay(c, id)).get().answer().status(), 200); // what was begun is finished
    }

    private static final List<String> BY_MODE = List.of("answersComeBackByteForByte", "whatIsNotGivenIsNull", "comparison", "errorsAreToldApart",
        "theOtherCalls", "lostConnections", "swallowedError", "serializationFailuresRunItAgain");

    public static void main(String[] only) throws Exception {
        for (String mode : MODES) {
            PGSimpleDataSource source = UnixSockets.source();
            source.setURL(source.getURL() + (source.getURL().contains("?") ? "&" : "?") + mode);
            HikariDataSource mine = new HikariDataSource();
            mine.setDataSource(source);
            mine.setMaximumPoolSize(4);
            POOLS.put(mode, mine);
        }
        use(MODES.get(0));
        try (Connection c = pool.getConnection(); Statement statement = c.createStatement()) {
            statement.execute("""
                CREATE EXTENSION IF NOT EXISTS idempotency;
                DROP SCHEMA IF EXISTS client_java CASCADE;
                CREATE SCHEMA client_java;
                CREATE TABLE client_java.work (key text PRIMARY KEY);
                CREATE FUNCTION client_java.conflict() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE serialization_failure; END $$;
                CREATE FUNCTION client_java.conflict_later() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE serialization_failure; END $$;
                CREATE CONSTRAINT TRIGGER conflict AFTER INSERT ON client_java.work DEFERRABLE INITIALLY DEFERRED
                    FOR EACH ROW WHEN (NEW.key LIKE 'conflict%') EXECUTE FUNCTION client_java.conflict_later()""");
        }
        int failed = 0;
        for (Class<?> tests : List.of(ClientTest.class, HttpTest.class)) for (Method method : tests.getDeclaredMethods()) {
            boolean isTest = method.getParameterCount() == 0 && method.getReturnType() == void.class && !method.isSynthetic();
            if (!isTest || only.length > 0 && !List.of(only).contains(method.getName())) continue;
            for (String mode : BY_MODE.contains(method.getName()) ? MODES : MODES.subList(0, 1)) {
                use(mode);
                try {
                    method.invoke(null);
                    System.out.println("ok      " + method.getName() + " " + mode);
                } catch (InvocationTargetException e) {
                    failed++;
                    System.out.println("FAILED  " + method.getName() + " " + mode);
                    e.getCause().printStackTrace(System.out);
                }
            }
        }
        System.exit(failed == 0 ? 0 : 1);
    }

    private static void use(String mode) {
        pool = POOLS.get(mode);
        db = new Database(pool, 4);
    }
}
