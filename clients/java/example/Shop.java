import static idempotency.Idempotency.*;
import static idempotency.Idempotency.Arg.*;

import idempotency.Database;
import idempotency.HttpCore;
import idempotency.Leased;
import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.List;
import javax.sql.DataSource;

/** Three handlers of a small shop, safe to repeat; by the calls, without a framework. */
public class Shop {
    public record Answer(int status, String header, String body) {}

    /** The request to the card network was never sent. */
    public static class NothingSent extends Exception {}

    /** The card network said no, for good. */
    public static class Declined extends Exception {}

    public interface Network {
        String charge(String key, int amount) throws Exception;
    }

    private final Database db;

    public Shop(DataSource source) {
        db = new Database(source, 10);
    }

    /** A statement that returns one row, with the first column as text. */
    private static String one(Connection connection, String sql, Object... values) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) {
                statement.setObject(i + 1, values[i]);
            }
            ResultSet row = statement.executeQuery();
            row.next();
            return row.getString(1);
        }
    }

    private static Answer answer(Claim claim) {
        if (claim instanceof Answered it) {
            return new Answer(it.answer().status(), it.replayed() ? "Idempotent-Replayed: true" : "", it.answer().text());
        } else if (claim instanceof InProgress rival) {
            return new Answer(409, "Retry-After: " + (rival.retryAfterMs() + 999) / 1000, "in progress");
        } else if (claim instanceof Mismatch) {
            return new Answer(422, "", "this key was used for another request");
        } else if (claim instanceof Failed) {
            return new Answer(503, "Retry-After: 1", "try again");
        }
        return new Answer(409, "", "the outcome is being looked into"); // held
    }

    private static Id id(String account, String operation, String header) {
        String key = header == null ? null : HttpCore.parseKey(List.of(header));
        return key == null ? null : new Id(account, operation, key);
    }

    /** POST /orders: nothing but SQL, so all of it is one transaction. */
    public Answer postOrder(String account, String header, int item) throws Exception {
        Id id = id(account, "POST /orders", header);
        if (id == null) {
            return new Answer(400, "", "Idempotency-Key is missing");
        }
        return db.transaction(c -> {
            Claim claim = claim(c, id, Request.of("{\"item\": " + item + "}"), WAIT.of("5 s"));
            if (!(claim instanceof Claimed)) {
                return answer(claim);
            }
            String order = one(c, "INSERT INTO example_java.orders (account, item) VALUES (?, ?) RETURNING id", account, item);
            var done = idempotency.Answer.json(201, "{\"order\": " + order + "}");
            return answer(new Answered(done, complete(c, id, done), false));
        });
    }

    /** POST /charges: somebody else is asked, so the claim is committed first, and whatever the connection is lost at is found out. */
    public Answer postCharge(Network network, String account, String header, int amount) throws Exception {
        Id id = id(account, "POST /charges", header);
        if (id == null) {
            return new Answer(400, "", "Idempotency-Key is missing");
        }
        // The lease is longer than the network's time-out with all retries.
        Leased charge = new Leased(db, "charge", "2 min", job -> {
            try {
                String charged = network.charge(job.effectKey(), amount);
                return idempotency.Answer.json(201, "{\"charge\": \"" + charged + "\"}").booking(c -> one(c, // the row and the answer, together
                    "INSERT INTO example_java.payments (account, charge, amount) VALUES (?, ?, ?) RETURNING 1", account, charged, amount));
            } catch (NothingSent e) { // we know that nothing happened
                throw new Leased.NothingHappened("nothing sent");
            } catch (Declined e) { // an answer like any other
                return idempotency.Answer.of(402, "text/plain", "declined");
            } // whatever else is thrown: nobody knows what happened
        });
        return answer(charge.run(id, Request.of("{\"amount\": " + amount + "}"), HOLD_IF_ABANDONED.of(true)));
    }

    /** A webhook: once, in the transaction that books it. */
    public boolean onEvent(String event, int amount) throws Exception {
        return db.transaction(c -> {
            boolean first = ONCE.on(c, new Id("provider", "webhook", event));
            if (first) {
                one(c, "INSERT INTO example_java.ledger (event, amount) VALUES (?, ?) RETURNING 1", event, amount);
            }
            return first;
        });
    }
}
