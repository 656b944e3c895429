package idempotency;

import java.sql.SQLException;
import java.util.*;
import java.util.stream.Stream;
import org.postgresql.util.*;

/** What to do about an error, by its SQLSTATE. TOO_LARGE is permanent: never "try again". OTHER is a fault of the program. */
public enum Kind {
    STALE_CLAIM("IK001"), NOT_CLAIMED("IK002"), OTHER_COMPLETION("IK003"), LEFT_OPEN("IK004"), HELD("IK005"), REDACTED("IK006"),
    RETRY("40001|40P01"), WAIT_TIMEOUT("55P03"), TOO_LARGE("54000"), BAD_REQUEST("22..."), OTHER(""),
    UNAVAILABLE("08...|57P0[123]|53300|25006");

    private final String states;
    Kind(String states) { this.states = states; }

    /** Of the error or what it was made of. An SQLException without an SQLSTATE is a pool's, which found no connection. */
    public static Kind of(Throwable error) {
        return causes(error, SQLException.class).map(e -> e.getSQLState() == null ? UNAVAILABLE
            : Stream.of(values()).filter(kind -> e.getSQLState().matches(kind.states)).findFirst().orElse(OTHER))
            .filter(kind -> kind != OTHER).findFirst().orElse(OTHER);
    }
    boolean in(Kind... kinds) { return List.of(kinds).contains(this); }

    /** Of STALE_CLAIM: taken_over, completed or forgotten; it travels as the name of a constraint. */
    public static Optional<String> reason(Throwable error) {
        return causes(error, PSQLException.class).map(PSQLException::getServerErrorMessage).filter(Objects::nonNull)
            .map(ServerErrorMessage::getConstraint).filter(Objects::nonNull).findFirst();
    }
    static <T> Stream<T> causes(Throwable error, Class<T> type) {
        return Stream.iterate(error, Objects::nonNull, Throwable::getCause).filter(type::isInstance).map(type::cast);
    }
}
