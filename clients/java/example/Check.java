import java.sql.Connection;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.postgresql.ds.PGSimpleDataSource;

/** Runs Shop against the database that the PG* variables name. */
public class Check {
    private static final Map<String, String> charges = new LinkedHashMap<>();
    private static String mood = "well";

    /** A card network that honours the key that it is given. */
    private static String charge(String key, int amount) throws Exception {
        if (mood.equals("refused")) {
            throw new Shop.NothingSent();
        }
        if (mood.equals("declined")) {
            throw new Shop.Declined();
        }
        String charge = charges.computeIfAbsent(key, k -> "ch_" + (charges.size() + 1));
        if (mood.equals("silent")) {
            throw new java.net.SocketTimeoutException("no answer");
        }
        return charge;
    }

    private static void check(String what, Object got, Object expected) {
        if (!Objects.equals(got, expected)) {
            System.err.println("FAILED " + what + ": got " + got + ", expected " + expected);
            System.exit(1);
        }
        System.out.println("ok  " + what);
    }

    private static String one(PGSimpleDataSource source, String sql) throws SQLException {
        try (Connection connection = source.getConnection(); Statement statement = connection.createStatement();
                ResultSet row = statement.executeQuery(sql)) {
            row.next();
            return row.getString(1);
        }
    }

    public static void main(String[] arguments) throws Exception {
        PGSimpleDataSource source = UnixSockets.source();
        Shop shop = new Shop(source);

        try (Connection connection = source.getConnection(); Statement statement = connection.createStatement()) {
            statement.execute("SET client_min_messages = warning;"
                    + "CREATE EXTENSION IF NOT EXISTS idempotency;"
                    + "DROP SCHEMA IF EXISTS example_java CASCADE;"
                    + "CREATE SCHEMA example_java;"
                    + "CREATE TABLE example_java.orders (id int GENERATED ALWAYS AS IDENTITY, account text, item int);"
                    + "CREATE TABLE example_java.payments (account text, charge text, amount int);"
                    + "CREATE TABLE example_java.ledger (event text, amount int);"
                    + "SELECT idempotency.forget_scope('java', force => true), idempotency.forget('provider', 'webhook', 'evt_java')");
        }

        // 1. the HTTP handler
        String key = "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"";
        check("first request", shop.postOrder("java", key, 7), new Shop.Answer(201, "", "{\"order\": 1}"));
        check("repeat, without quotes", shop.postOrder("java", key.replace("\"", ""), 7),
                new Shop.Answer(201, "Idempotent-Replayed: true", "{\"order\": 1}"));
        check("another request", shop.postOrder("java", key, 8).status(), 422);
        check("no key", shop.postOrder("java", null, 8).status(), 400);

        ExecutorService pool = Executors.newFixedThreadPool(4);
        List<Future<Shop.Answer>> answers = new ArrayList<>();
        for (int i = 0; i < 4; i++) {
            answers.add(pool.submit(() -> shop.postOrder("java", "at-once", 9)));
        }
        int worked = 0;
        for (Future<Shop.Answer> answer : answers) {
            check("at the same time, one answer", answer.get().body(), "{\"order\": 2}");
            worked += answer.get().header().isEmpty() ? 1 : 0;
        }
        pool.shutdown();
        check("one of them did the work", worked, 1);
        check("two orders in all", one(source, "SELECT count(*) FROM example_java.orders"), "2");

        // 2. the charge
        check("charge", shop.postCharge(Check::charge, "java", "c-1", 5), new Shop.Answer(201, "", "{\"charge\": \"ch_1\"}"));
        check("repeat", shop.postCharge(Check::charge, "java", "c-1", 5).header(), "Idempotent-Replayed: true");
        mood = "refused";
        check("nothing sent", shop.postCharge(Check::charge, "java", "c-2", 6).status(), 503);
        mood = "well";
        check("so it may be tried again", shop.postCharge(Check::charge, "java", "c-2", 6).status(), 201);
        mood = "declined";
        check("declined", shop.postCharge(Check::charge, "java", "c-3", 7).status(), 402);
        mood = "well";
        check("declined stays declined", shop.postCharge(Check::charge, "java", "c-3", 7).status(), 402);
        mood = "silent";
        check("no answer: held", shop.postCharge(Check::charge, "java", "c-4", 8).status(), 409);
        mood = "well";
        check("held stays held", shop.postCharge(Check::charge, "java", "c-4", 8).status(), 409);
        check("three charges in all", charges.size(), 3);

        // The connection is lost, where t/060_examples.pl stands in between: before the answer to the claim, in the
        // middle of the booking, and before the answer to its commit.
        for (String lost : List.of("lost-claim", "lost-booking", "lost-commit")) {
            check(lost, shop.postCharge(Check::charge, "java", lost, 1).status(), 201);
        }
        check("each charged once", charges.size(), 6);
        check("and booked once", one(source, "SELECT count(*) FROM example_java.payments WHERE amount = 1"), "3");

        // A person asks the network with the same key, hears that it was charged, and records that.
        String charged = charges.get(one(source, "SELECT idempotency.effect_key('java', 'POST /charges', 'c-4', 'charge')"));
        one(source, "SELECT idempotency.complete(scope, operation, key, 201, '" + charged + "', token => token)"
                + " FROM idempotency.abandoned WHERE scope = 'java' AND key = 'c-4'");
        check("decided", shop.postCharge(Check::charge, "java", "c-4", 8).body(), "ch_3");

        // 3. the webhook
        check("event", shop.onEvent("evt_java", 3), true);
        check("again", shop.onEvent("evt_java", 3), false);
        check("booked once", one(source, "SELECT count(*) FROM example_java.ledger"), "1");

        // 4. autocommit: the claim would end with its own statement
        String state = "no error";
        try {
            one(source, "SELECT outcome FROM idempotency.claim('java', 'POST /orders', 'autocommit')");
        } catch (SQLException e) {
            state = e.getSQLState();
        }
        check("a claim in autocommit fails", state, "IK004");
        System.out.println("all well");
    }
}
