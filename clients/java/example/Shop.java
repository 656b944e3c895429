import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.UUID;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.FutureTask;
import javax.sql.DataSource;

/** Three handlers of a small shop, safe to repeat. */
public class Shop {
    public record Answer(int status, String header, String body) {}

    /** The request to the card network was never sent. */
    public static class NothingSent extends Exception {}

    /** The card network said no, for good. */
    public static class Declined extends Exception {}

    public interface Network {
        String charge(String key, int amount) throws Exception;
    }

    private interface Work<T> {
        T in(Connection connection) throws SQLException;
    }

    private final DataSource source;

    public Shop(DataSource source) {
        this.source = source;
    }

    /** The key of an Idempotency-Key header: quoted or not, it is the same. */
    static String keyOf(String header) {
        if (header == null) {
            return null;
        }
        String key = header.strip().replaceFirst("^\"(.*)\"$", "$1");
        return key.isEmpty() ? null : key;
    }

    /** Runs work in a transaction, again where the server asks for that. */
    private <T> T transaction(Work<T> work) throws SQLException {
        for (int attempt = 1;; attempt++) {
            try (Connection connection = source.getConnection()) {
                connection.setAutoCommit(false);
                try {
                    T result = work.in(connection);
                    connection.commit();
                    return result;
                } catch (SQLException e) {
                    connection.rollback();
                    boolean again = "40001".equals(e.getSQLState()) || "40P01".equals(e.getSQLState());
                    if (!again || attempt == 5) {
                        throw e;
                    }
                }
            }
        }
    }

    /** The connection is lost, and whether the server did what it was asked for is not known. */
    private static boolean isLost(SQLException e) {
        String state = String.valueOf(e.getSQLState());
        return state.startsWith("08") || state.startsWith("57P");
    }

    private interface Answering {
        Answer answer() throws SQLException;
    }

    /** Again if it lost its connection. It has to begin with a claim, which tells what became of the last time. */
    private static Answer despiteLostConnections(Answering work) throws SQLException {
        for (int attempt = 1;; attempt++) {
            try {
                return work.answer();
            } catch (SQLException e) {
                if (!isLost(e) || attempt == 5) {
                    throw e;
                }
                try {
                    Thread.sleep(100 * attempt);
                } catch (InterruptedException interrupted) {
                    Thread.currentThread().interrupt();
                    throw e;
                }
            }
        }
    }

    /** Asks the network once, whatever it leads to. */
    private static Network once(Network network) {
        FutureTask<?>[] asked = new FutureTask<?>[1];
        return (key, amount) -> {
            if (asked[0] == null) {
                asked[0] = new FutureTask<>(() -> network.charge(key, amount));
                asked[0].run();
            }
            try {
                return (String) asked[0].get();
            } catch (ExecutionException e) {
                throw (Exception) e.getCause();
            }
        };
    }

    /** A statement that returns one row, with the first column as text. */
    private static String one(Connection connection, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) {
                statement.setObject(i + 1, values[i]);
            }
            try (ResultSet row = statement.executeQuery()) {
                row.next();
                return row.getString(1);
            }
        }
    }

    /** The answer to an outcome other than "claimed". */
    private static Answer answerWithoutWork(ResultSet claim) throws SQLException {
        switch (claim.getString("outcome")) {
            case "replay":
                return new Answer(claim.getInt("response_status"), "Idempotent-Replayed: true", claim.getString("response_body"));
            case "in_progress":
                return new Answer(409, "Retry-After: " + (claim.getLong("retry_after_ms") + 999) / 1000, "in progress");
            case "mismatch":
                return new Answer(422, "", "this key was used for another request");
            case "held":
                return new Answer(409, "", "the outcome is being looked into");
            default: // never go on with what is not known
                throw new IllegalStateException(claim.getString("outcome"));
        }
    }

    /** POST /orders: nothing but SQL, so all of it is one transaction. */
    public Answer postOrder(String account, String header, int item) throws SQLException {
        String key = keyOf(header);
        if (key == null) {
            return new Answer(400, "", "Idempotency-Key is missing");
        }
        return transaction(connection -> {
            try (PreparedStatement statement = connection.prepareStatement(
                    "SELECT outcome, response_status, response_body, retry_after_ms"
                            + "  FROM idempotency.claim(?, 'POST /orders', ?, request => ?::jsonb, wait => '5 s')")) {
                statement.setString(1, account);
                statement.setString(2, key);
                statement.setString(3, "{\"item\": " + item + "}");
                try (ResultSet claim = statement.executeQuery()) {
                    claim.next();
                    if (!claim.getString("outcome").equals("claimed")) {
                        return answerWithoutWork(claim);
                    }
                }
            }
            String order = one(connection, "INSERT INTO example_java.orders (account, item) VALUES (?, ?) RETURNING id", account, item);
            String answer = "{\"order\": " + order + "}";
            one(connection, "SELECT idempotency.complete(?, 'POST /orders', ?, 201, ?)", account, key, answer);
            return new Answer(201, "", answer);
        });
    }

    /**
     * POST /charges: somebody else is asked, so the claim is committed first.
     *
     * Whatever the connection was lost at, the same claim id tells: "claimed" again, with the same token, if the claim
     * is still open; "replay" if the answer was recorded.
     */
    public Answer postCharge(Network network, String account, String header, int amount) throws SQLException {
        String key = keyOf(header);
        if (key == null) {
            return new Answer(400, "", "Idempotency-Key is missing");
        }

        UUID claimId = UUID.randomUUID(); // fresh for each request, the same for its repeats
        Network asked = once(network);
        return despiteLostConnections(() -> charge(asked, account, key, amount, claimId));
    }

    private Answer charge(Network network, String account, String key, int amount, UUID claimId) throws SQLException {
        // The lease is longer than the network's time-out with all retries.
        long token;
        String effectKey;
        try (Connection connection = source.getConnection(); // autocommit: the claim is committed when it returns
                PreparedStatement statement = connection.prepareStatement(
                        "SELECT outcome, response_status, response_body, retry_after_ms, token,"
                                + "       idempotency.effect_key(?, 'POST /charges', ?, 'charge') AS effect_key"
                                + "  FROM idempotency.claim(?, 'POST /charges', ?, request => ?::jsonb,"
                                + "                         lease => '2 min', claim_id => ?, hold_if_abandoned => true)")) {
            statement.setString(1, account);
            statement.setString(2, key);
            statement.setString(3, account);
            statement.setString(4, key);
            statement.setString(5, "{\"amount\": " + amount + "}");
            statement.setObject(6, claimId);
            try (ResultSet claim = statement.executeQuery()) {
                claim.next();
                if (!claim.getString("outcome").equals("claimed")) {
                    return answerWithoutWork(claim);
                }
                token = claim.getLong("token");
                effectKey = claim.getString("effect_key");
            }
        }

        String charge;
        try {
            charge = network.charge(effectKey, amount);
        } catch (NothingSent e) { // we know that nothing happened
            transaction(c -> one(c, "SELECT idempotency.fail(?, 'POST /charges', ?, error => ?, token => ?)",
                    account, key, "nothing sent", token));
            return new Answer(503, "Retry-After: 1", "try again");
        } catch (Declined e) { // an answer like any other
            transaction(c -> one(c, "SELECT idempotency.complete(?, 'POST /charges', ?, 402, 'declined', token => ?)",
                    account, key, token));
            return new Answer(402, "", "declined");
        } catch (Exception e) { // nobody knows what happened
            transaction(c -> one(c, "SELECT idempotency.hold(?, 'POST /charges', ?, reason => ?, token => ?)",
                    account, key, e.toString(), token));
            return new Answer(409, "", "the outcome is being looked into");
        }

        String answer = "{\"charge\": \"" + charge + "\"}";
        transaction(c -> { // the row and the answer, together
            one(c, "INSERT INTO example_java.payments (account, charge, amount) VALUES (?, ?, ?) RETURNING 1", account, charge, amount);
            return one(c, "SELECT idempotency.complete(?, 'POST /charges', ?, 201, ?, token => ?, refuse_repeat => true)", account, key, answer, token);
        });
        return new Answer(201, "", answer);
    }

    /** A webhook: once, in the transaction that books it. */
    public boolean onEvent(String event, int amount) throws SQLException {
        return transaction(connection -> {
            boolean first = one(connection, "SELECT idempotency.once('provider', 'webhook', ?)", event).equals("t");
            if (first) {
                one(connection, "INSERT INTO example_java.ledger (event, amount) VALUES (?, ?) RETURNING 1", event, amount);
            }
            return first;
        });
    }
}
