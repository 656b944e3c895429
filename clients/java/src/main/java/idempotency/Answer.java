package idempotency;

import static java.nio.charset.StandardCharsets.UTF_8;

import idempotency.Idempotency.*;
import java.sql.*;
import java.util.*;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/** What was answered, or is to be: headers in order, and `book`, which writes in the transaction that records it, or null. */
public record Answer(int status, List<Header> headers, byte[] body, Database.Work<?> book) {
    public record Header(String name, String value) {}

    // About the connection, the moment or the session: never replayed.
    private static final Pattern PASSING = Pattern.compile(
        "(?i)set-cookie|date|content-length|connection|transfer-encoding|keep-alive|server|idempotent-replayed");
    private static final Pattern TEXTUAL = Pattern.compile("(?i)^text/|[/+](json|xml)\\b");
    // An array of pairs, or an object whose values may be arrays: others may have recorded it.
    private static final String HEADERS = """
        SELECT pair->>0, value #>> '{}' FROM (SELECT ?::jsonb) AS recorded(h), jsonb_array_elements(CASE jsonb_typeof(h) WHEN 'array'
            THEN h ELSE (SELECT jsonb_agg(jsonb_build_array(key, value)) FROM jsonb_each(h)) END) WITH ORDINALITY AS pairs(pair, n),
          jsonb_array_elements(CASE jsonb_typeof(pair->1) WHEN 'array' THEN pair->1 ELSE jsonb_build_array(pair->1) END)
            WITH ORDINALITY AS them(value, m) ORDER BY n, m""";

    public static Answer of(int status, String type, String text) {
        return new Answer(status, List.of(new Header("Content-Type", type)), text.getBytes(UTF_8), null);
    }
    public static Answer json(int status, String json) { return of(status, "application/json", json); }
    public Answer with(String name, String value) {
        return new Answer(status, Stream.concat(headers.stream(), Stream.of(new Header(name, value))).toList(), body, book);
    }
    public Answer booking(Database.Work<?> book) { return new Answer(status, headers, body, book); }
    public String text() { return new String(body, UTF_8); }
    public String header(String name) {
        return headers.stream().filter(h -> h.name.equalsIgnoreCase(name)).map(Header::value).findFirst().orElse("");
    }

    /** As arguments of complete(): text where it is text, so that a person can read the row; bytes otherwise. */
    Option[] recorded() {
        boolean text = TEXTUAL.matcher(header("Content-Type")).find() && header("Content-Encoding").isEmpty()
            && text().indexOf(0) < 0 && Arrays.equals(text().getBytes(UTF_8), body);
        String[][] kept = headers.stream().filter(h -> !PASSING.matcher(h.name).matches())
            .map(h -> new String[] {h.name, h.value}).toArray(String[][]::new);
        List<Option> options = new ArrayList<>(List.of(Arg.RESPONSE_STATUS.of(status)));
        if (kept.length > 0) options.add(new Option("response_headers", "to_jsonb(?::text[])", (Object) kept));
        if (body.length > 0) options.add(text ? Arg.RESPONSE_BODY.of(text()) : Arg.RESPONSE_BYTES.of(body));
        return options.toArray(Option[]::new);
    }
    /** And what was recorded, by whatever language. */
    static Answer recorded(Connection db, ResultSet row) throws SQLException {
        String json = row.getString("response_headers"), text = Objects.requireNonNullElse(row.getString("response_body"), "");
        List<Header> headers = json == null ? List.of()
            : Idempotency.query(db, HEADERS, pair -> new Header(pair.getString(1), pair.getString(2)), json);
        byte[] bytes = row.getBytes("response_bytes");
        return new Answer(Math.max(200, row.getInt("response_status")), headers, bytes != null ? bytes : text.getBytes(UTF_8), null);
    }
}
