package idempotency;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.sql.*;
import java.time.OffsetDateTime;
import java.util.*;
import java.util.stream.*;

/** The extension's calls on a Connection, with typed outcomes. In autocommit each is a transaction of its own: for leases only. */
public final class Idempotency {
    /** A piece of work. The scope is nothing that the client can choose. */
    public record Id(String scope, String operation, String key) {}

    /** What a key is compared by: the bytes as they came, so that no JSON is encoded twice, and path parameters. None has to be said. */
    public record Request(byte[] body, Map<String, String> params) {
        public static final Request NOT_COMPARED = new Request(new byte[0], Map.of());
        public Request { Objects.requireNonNull(body, "no request: say NOT_COMPARED if that is meant"); }
        public static Request of(String text) { return new Request(text.getBytes(UTF_8), Map.of()); }
    }

    /** What became of a claim. Go on only after Claimed. Failed is of Leased alone: nothing happened, and the next attempt does it. */
    public sealed interface Claim {}
    public record Claimed(Id id, long token, int attempt, String recoveryPoint, String state, String lastError, long leaseMs)
        implements Claim {}
    public record Answered(Answer answer, OffsetDateTime expiresAt, boolean replayed) implements Claim {}
    public record InProgress(long retryAfterMs, String rival, OffsetDateTime lockedUntil) implements Claim {}
    public record Mismatch() implements Claim {}
    public record Held(String lastError) implements Claim {}
    public record Failed(String lastError) implements Claim {}
    /** What lookup knows of a key: for a person or a screen, and no permission to do the work. */
    public record Known(String status, Long token, int attempt, String recoveryPoint, String state, String lastError, String note,
                        OffsetDateTime lockedUntil, Answer answer) {}

    // A value is sent as its toString() and cast, so that it means the same with every stringtype, prepared, unprepared and pooled.
    /** Named arguments, as in LEASE.of("2 min"), or a Duration; STATE.of(json). */
    public enum Arg {
        SCOPE("text"), OPERATION("text"), KEY("text"), COMMAND("text"), ERROR("text"), REASON("text"), NOTE("text"), WAIT_FOR("text"),
        RECOVERY_POINT("text"), STEP("text"), RESPONSE_BODY("text"), RESPONSE_BYTES("bytea"), RESPONSE_STATUS("int"), MAX_ROWS("int"),
        TTL("interval"), LEASE("interval"), WAIT("interval"), RETRY_IN("interval"), STATE("jsonb"), ARGS("jsonb"), TOKEN("bigint"),
        CLAIM_ID("uuid"), HOLD_IF_ABANDONED("boolean"), REFUSE_REPEAT("boolean");
        private final String type;
        Arg(String type) { this.type = type; }
        public Option of(Object value) {
            return new Option(name().toLowerCase(Locale.ROOT), "?::" + type, Objects.requireNonNull(value, name()));
        }
    }
    /** An argument that is given. What is not is not named: the server's defaults hold, and no driver guesses the type of a NULL. */
    public record Option(String name, String sql, Object... values) {
        static Option[] join(Option[] some, Option... more) { return Stream.of(some, more).flatMap(Stream::of).toArray(Option[]::new); }
    }

    /** The calls that return one value, as in HOLD.on(db, id, REASON.of("no answer"), TOKEN.of(token)). */
    public record Call<T>(String name, Class<T> result) {
        public T on(Connection db, Id id, Option... options) throws SQLException {
            return rows(db, "*", name, id, options, row -> row.getObject(1, result)).get(0);
        }
    }
    public static final Call<Boolean> FAIL = new Call<>("fail", Boolean.class), RELEASE = new Call<>("release", Boolean.class),
        RECORD_FAILURE = new Call<>("record_failure", Boolean.class), ONCE = new Call<>("once", Boolean.class);
    public static final Call<OffsetDateTime> COMPLETE = new Call<>("complete", OffsetDateTime.class),
        EXTEND = new Call<>("extend", OffsetDateTime.class), CHECKPOINT = new Call<>("checkpoint", OffsetDateTime.class);
    public static final Call<Long> HOLD = new Call<>("hold", Long.class);
    public static final Call<String> EFFECT_KEY = new Call<>("effect_key", String.class);

    public static Claim claim(Connection db, Id id, Request request, Option... options) throws SQLException {
        return claiming(db, "claim", id, request, options);
    }
    public static Claim run(Connection db, Id id, Request request, String command, Option... options) throws SQLException {
        return claiming(db, "run", id, request, Option.join(options, Arg.COMMAND.of(command)));
    }
    public static OffsetDateTime complete(Connection db, Id id, Answer answer, Option... options) throws SQLException {
        return COMPLETE.on(db, id, Option.join(options, answer.recorded()));
    }
    public static Optional<Answered> replay(Connection db, Id id) throws SQLException {
        return rows(db, "*", "replay", id, new Option[0], row -> answered(db, row, true)).stream().findFirst();
    }
    public static Optional<Known> lookup(Connection db, Id id) throws SQLException {
        return rows(db, "*", "lookup", id, new Option[0], row -> new Known(row.getString("status"), row.getObject("token", Long.class),
            row.getInt("attempt"), row.getString("recovery_point"), row.getString("state"), row.getString("last_error"),
            row.getString("note"), time(row, "locked_until"), Answer.recorded(db, row))).stream().findFirst();
    }
    /** Takes over what others have left behind. */
    public static List<Claimed> claimAbandoned(Connection db, Option... options) throws SQLException {
        return rows(db, LEASED, "claim_abandoned", null, options,
            row -> claimed(new Id(row.getString("scope"), row.getString("operation"), row.getString("key")), row));
    }

    // fingerprint_bytes() also takes what jsonb refuses, and of what it takes it is the fingerprint of the parsed request.
    private static Claim claiming(Connection db, String name, Id id, Request request, Option... options) throws SQLException {
        String digest = "idempotency.fingerprint_bytes(?::bytea)";
        String[][] params = request.params.entrySet().stream().map(e -> new String[] {e.getKey(), e.getValue()}).toArray(String[][]::new);
        Option compared = params.length == 0 ? new Option("fingerprint", digest, request.body) : new Option("request",
            "jsonb_build_object('params', jsonb_object(?::text[]), 'body', encode(" + digest + ", 'hex'))", params, request.body);
        return rows(db, LEASED, name, id, request == Request.NOT_COMPARED ? options : Option.join(options, compared),
            row -> switch (row.getString("outcome")) {
                case "claimed" -> name.equals("run") ? answered(db, row, false) : claimed(id, row);
                case "replay" -> answered(db, row, true);
                case "in_progress" -> new InProgress(row.getLong("retry_after_ms"), row.getString("rival"), time(row, "locked_until"));
                case "mismatch" -> new Mismatch();
                case "held" -> new Held(row.getString("last_error"));
                default -> throw new IllegalStateException("unknown outcome " + row.getString("outcome")); // never go on with it
            }).get(0);
    }

    private static final String LEASED = "*, (extract(epoch FROM locked_until - clock_timestamp()) * 1000)::bigint AS lease_ms";
    private static Claimed claimed(Id id, ResultSet row) throws SQLException {
        return new Claimed(id, row.getLong("token"), row.getInt("attempt"), row.getString("recovery_point"), row.getString("state"),
            row.getString("last_error"), row.getLong("lease_ms"));
    }
    private static Answered answered(Connection db, ResultSet row, boolean replayed) throws SQLException {
        return new Answered(Answer.recorded(db, row), time(row, "expires_at"), replayed);
    }
    private static OffsetDateTime time(ResultSet row, String name) throws SQLException { return row.getObject(name, OffsetDateTime.class); }

    interface Decode<T> { T from(ResultSet row) throws SQLException; }
    private static <T> List<T> rows(Connection db, String columns, String name, Id id, Option[] given, Decode<T> row) throws SQLException {
        Option[] all = id == null ? given : Option.join(given, Arg.SCOPE.of(id.scope), Arg.OPERATION.of(id.operation), Arg.KEY.of(id.key));
        String arguments = Stream.of(all).map(o -> o.name + " => " + o.sql).collect(Collectors.joining(", "));
        return query(db, "SELECT " + columns + " FROM idempotency." + name + "(" + arguments + ") AS result", row,
            Stream.of(all).flatMap(o -> Stream.of(o.values)).toArray());
    }
    static <T> List<T> query(Connection db, String sql, Decode<T> decode, Object... values) throws SQLException {
        try (PreparedStatement statement = db.prepareStatement(sql)) {
            for (int i = 0; i < values.length; i++) {
                if (values[i] instanceof String[][] pairs) statement.setArray(i + 1, db.createArrayOf("text", pairs));
                else if (values[i] instanceof byte[] bytes) statement.setString(i + 1, "\\x" + HexFormat.of().formatHex(bytes));
                else statement.setString(i + 1, values[i].toString());
            }
            List<T> all = new ArrayList<>();
            for (ResultSet row = statement.executeQuery(); row.next();) all.add(decode.from(row));
            return all;
        }
    }
}
