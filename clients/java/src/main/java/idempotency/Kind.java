package idempotency;

import java.sql.SQLException;
import org.postgresql.util.PSQLException;

/** What to do about an error, by its SQLSTATE. TOO_LARGE is permanent: never "try again". OTHER is a fault of the program. */
public enum Kind {
    STALE_CLAIM("IK001"), NOT_CLAIMED("IK002"), OTHER_COMPLETION("IK003"), LEFT_OPEN("IK004"), HELD("IK005"), REDACTED("IK006"),
    RETRY("40001|40P01"), WAIT_TIMEOUT("55P03"), TOO_LARGE("54000"), BAD_REQUEST("22..."), UNAVAILABLE("08...|57P0[123]|53300|25006"), OTHER("");

    private final String states;
    Kind(String states) { this.states = states; }

    /** Looks through what frameworks have wrapped. An SQLException without an SQLSTATE is a pool's, which found no connection. */
    public static Kind of(Throwable error) {
        for (Throwable t = error; t != null; t = t.getCause()) {
            if (!(t instanceof SQLException e)) continue;
            if (e.getSQLState() == null) return UNAVAILABLE;
            for (Kind kind : values()) if (e.getSQLState().matches(kind.states)) return kind;
        }
        return OTHER;
    }

    /** Of STALE_CLAIM: taken_over, completed or forgotten. */
    public static String reason(Throwable error) {
        for (Throwable t = error; t != null; t = t.getCause()) {
            if (t instanceof PSQLException e && e.getServerErrorMessage() != null) return e.getServerErrorMessage().getConstraint();
        }
        return null;
    }
}
