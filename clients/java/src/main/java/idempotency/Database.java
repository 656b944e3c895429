package idempotency;

import idempotency.Idempotency.Option;
import java.sql.*;
import java.util.concurrent.*;
import java.util.stream.Stream;
import javax.sql.DataSource;
import org.postgresql.core.*;

/** A pool: transactions on it, and who may wait in it. */
public final class Database {
    public interface Work<T> { T in(Connection db) throws Exception; }

    private final DataSource source;
    private final Semaphore waiters;

    /** Half of that many connections may be kept by claims that wait; those that are more are answered at once. */
    public Database(DataSource source, int connections) {
        this.source = source;
        this.waiters = new Semaphore(connections / 2);
    }

    /** BEGIN, the work, COMMIT; all of it again where the server asks for that. Whatever is thrown rolls back. */
    public <T> T transaction(Work<T> work) throws Exception {
        return again(Kind.RETRY, 5, () -> {
            try (Connection db = source.getConnection()) {
                boolean before = db.getAutoCommit(); // not every pool restores it
                db.setAutoCommit(false);
                try {
                    T result = work.in(db);
                    // Where an error was swallowed, COMMIT would succeed and roll back. Any statement says so, and has it as its cause.
                    boolean failed = db.unwrap(BaseConnection.class).getTransactionState() == TransactionState.FAILED;
                    if (failed) db.createStatement().execute("SELECT");
                    db.commit();
                    db.setAutoCommit(before);
                    return result;
                } catch (Throwable e) {
                    try { db.rollback(); db.setAutoCommit(before); } catch (SQLException lost) { e.addSuppressed(lost); }
                    throw e;
                }
            }
        });
    }

    /** Again after a lost connection, too: for what finds out what became of the last time. */
    <T> T despiteLoss(Work<T> work) throws Exception { return again(Kind.UNAVAILABLE, 6, () -> transaction(work)); }

    private static <T> T again(Kind kind, int attempts, Callable<T> attempt) throws Exception {
        for (int n = 1;; n++) {
            try { return attempt.call(); } catch (Exception e) { if (n == attempts || Kind.of(e) != kind) throw e; }
            Thread.sleep((long) ((1 << n) * 20 * (0.5 + Math.random()))); // longer each time, and not shared by rivals
        }
    }

    interface Asking<T> { T with(Option... options) throws Exception; }
    /** With the option "wait" for those that may keep a connection, without it for the others. */
    <T> T capped(Option[] options, Asking<T> asking) throws Exception {
        Option[] atOnce = Stream.of(options).filter(o -> !o.name().equals("wait")).toArray(Option[]::new);
        if (atOnce.length == options.length || !waiters.tryAcquire()) return asking.with(atOnce);
        try { return asking.with(options); } finally { waiters.release(); }
    }
}
