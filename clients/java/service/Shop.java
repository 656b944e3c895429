import static idempotency.Idempotency.Arg.WAIT;

import com.google.gson.*;
import com.zaxxer.hikari.HikariDataSource;
import idempotency.*;
import java.io.IOException;
import java.net.ConnectException;
import java.net.URI;
import java.net.http.*;
import java.sql.*;
import java.time.Duration;
import java.util.*;
import java.util.function.Function;

/** What the conformance service (../../conformance/spec.md) does, whatever the server: SQL, the card network, the completer. */
final class Shop {
    static final int PORT = Integer.parseInt(env("PORT", "8080"));
    static final int MAX_BODY = 8 << 20;
    private static final int POOL_SIZE = Integer.parseInt(env("POOL_SIZE", "5"));
    private static final HikariDataSource POOL = pool();
    static final Database DB = new Database(POOL, POOL_SIZE);
    private static final Leased CHARGES = new Leased(DB, "charge", env("LEASE", "3 s"), Shop::charge);

    private Shop() {}

    static String env(String name, String otherwise) { return Objects.requireNonNullElse(System.getenv(name), otherwise); }

    private static HikariDataSource pool() {
        HikariDataSource pool = new HikariDataSource();
        // A pgbouncer before 1.21 gives the next statement another server, which knows no statement that was prepared. Of the settings
        // that the driver makes by SET, this version makes start-up parameters.
        pool.setJdbcUrl("jdbc:postgresql://%s:%s/%s?prepareThreshold=0&assumeMinServerVersion=15&sslmode=%s".formatted(
            env("PGHOST", "127.0.0.1"), env("PGPORT", "5432"), env("PGDATABASE", "postgres"), env("PGSSLMODE", "prefer")));
        pool.setUsername(env("PGUSER", "postgres"));
        pool.setMaximumPoolSize(POOL_SIZE);
        pool.setConnectionTimeout(5000);
        pool.setInitializationFailTimeout(-1);
        return pool;
    }

    static String user(String authorization) {
        return authorization != null && authorization.matches("Bearer \\S+") ? authorization.substring("Bearer ".length()) : null;
    }

    /** The routes that are done once. */
    static <R> void routes(HttpCore<R> core, Function<R, String> user) {
        core.once("POST /orders");
        core.once("POST /waiting-orders", WAIT.of(env("WAIT", "5 s")));
        core.once("POST /orders/{id}/refunds");
        core.once("POST /blobs");
        core.leased("POST /charges", CHARGES, (request, body) -> {
            JsonObject state = new JsonObject();
            state.addProperty("account", user.apply(request));
            state.addProperty("amount", number(parsed(body), "amount"));
            return state.toString();
        });
    }

    /** All other work, and that of a request that is done once. */
    static Answer answer(String asked, String user, Function<String, String> header, byte[] body) throws Exception {
        if (asked.matches("POST /orders/\\d{1,9}/refunds")) {
            parsed(body);
            return Answer.json(201, "{\"refund\": %d}".formatted(insert(user, Integer.parseInt(asked.split("/")[2]))));
        }
        return switch (asked) {
            case "POST /orders", "POST /waiting-orders" -> order(user, parsed(body), header.apply("X-Fail"));
            case "POST /blobs" -> blob(user, header, body);
            case "GET /orders" -> Answer.json(200, "{\"orders\": %d}".formatted(count("SELECT count(*) FROM shop.orders WHERE account = ?", user)));
            case "GET /visits" -> Answer.json(200, "{\"visits\": %d}".formatted(count("INSERT INTO shop.visits (account) VALUES (?) RETURNING "
                + "(SELECT count(*) FROM shop.visits AS before WHERE before.account = visits.account) + 1", user)));
            case "GET /health" -> new Answer(healthy() ? 200 : 503, List.of(), new byte[0], null);
            default -> problem(404, "No such page");
        };
    }

    static Answer problem(int status, String title) {
        return Answer.of(status, "application/problem+json", "{\"title\": \"%s\", \"status\": %d}".formatted(title, status));
    }

    private static JsonObject parsed(byte[] body) {
        try {
            return JsonParser.parseString(new String(body, java.nio.charset.StandardCharsets.UTF_8)).getAsJsonObject();
        } catch (JsonParseException | IllegalStateException e) { throw new HttpCore.Refusal(problem(400, "The body is no JSON object")); }
    }
    private static int number(JsonObject body, String member) {
        try {
            return body.getAsJsonPrimitive(member).getAsBigDecimal().intValueExact();
        } catch (RuntimeException e) { throw new HttpCore.Refusal(problem(422, member + " is missing")); }
    }

    private static Answer order(String user, JsonObject body, String fault) throws Exception {
        int item = number(body, "item");
        if ("refuse".equals(fault)) return Answer.json(402, "{\"refused\": true}");
        int id = insert(user, item);
        if (body.has("pause_ms")) Thread.sleep(number(body, "pause_ms"));
        if ("throw".equals(fault)) throw new IllegalStateException("the handler was asked to throw");
        if ("503".equals(fault)) return problem(503, "The handler was asked to answer so");
        return Answer.json(201, "{\"order\": %d}".formatted(id)).with("Location", "/orders/" + id).with("Link", "</a>; rel=a")
            .with("Link", "</b>; rel=b").with("Set-Cookie", "session=" + UUID.randomUUID()).with("X-Request", UUID.randomUUID().toString());
    }

    private static Answer blob(String user, Function<String, String> header, byte[] body) throws SQLException {
        insert(user, 0);
        Answer answer = new Answer(201, List.of(), body, null);
        for (String name : List.of("Content-Type", "Content-Encoding")) {
            if (header.apply(name) != null) answer = answer.with(name, header.apply(name));
        }
        return answer;
    }

    private static int insert(String user, int item) throws SQLException {
        String sql = "INSERT INTO shop.orders (account, item) VALUES (?, ?) RETURNING id";
        try (PreparedStatement statement = HttpCore.connection().prepareStatement(sql)) {
            statement.setString(1, user);
            statement.setInt(2, item);
            ResultSet row = statement.executeQuery();
            row.next();
            return row.getInt(1);
        }
    }

    private static long count(String sql, String user) throws SQLException {
        try (Connection connection = POOL.getConnection(); PreparedStatement statement = connection.prepareStatement(sql)) {
            statement.setString(1, user);
            ResultSet row = statement.executeQuery();
            row.next();
            return row.getLong(1);
        }
    }

    /** For a load balancer. */
    private static boolean healthy() {
        try (Connection connection = POOL.getConnection(); Statement statement = connection.createStatement()) {
            return !statement.executeQuery("SELECT FROM idempotency.health() WHERE status = 'critical'").next();
        } catch (SQLException e) { return false; }
    }

    // ---- charges ----

    private static Answer charge(Leased.Job job) throws Exception {
        JsonObject state = JsonParser.parseString(job.claim().state()).getAsJsonObject();
        String account = state.get("account").getAsString(), key = job.effectKey();
        int amount = state.get("amount").getAsInt();
        ask(get("/before?key=" + key));
        HttpResponse<String> answer = ask(request("/charges").timeout(Duration.ofMillis((long) (Double.parseDouble(env("NETWORK_TIMEOUT", "2")) * 1000)))
            .header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString("{\"key\": \"%s\", \"amount\": %d}".formatted(key, amount))).build());
        if (answer.statusCode() == 402) return Answer.json(402, "{\"declined\": true}");
        if (answer.statusCode() != 200) throw new IOException("the network answered " + answer.statusCode() + ": " + answer.body());
        String charge = JsonParser.parseString(answer.body()).getAsJsonObject().get("charge").getAsString();
        try { ask(get("/after?key=" + key)); } catch (IOException | Leased.NothingHappened e) { /* it is charged all the same */ }
        return Answer.json(201, "{\"charge\": %s}".formatted(new JsonPrimitive(charge))).booking(db -> {
            try (PreparedStatement statement = db.prepareStatement("INSERT INTO shop.payments (account, charge, amount) VALUES (?, ?, ?)")) {
                statement.setString(1, account);
                statement.setString(2, charge);
                statement.setInt(3, amount);
                return statement.executeUpdate();
            }
        });
    }

    private static HttpRequest.Builder request(String path) { return HttpRequest.newBuilder(URI.create(env("NETWORK_URL", "") + path)); }
    private static HttpRequest get(String path) { return request(path).build(); }

    /** A request that did not reach the network has had no effect; of any other error nobody knows. */
    private static HttpResponse<String> ask(HttpRequest request) throws Exception {
        try { // by a client of its own: one for all would use a connection again that the network has just closed
            HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
            return client.send(request, HttpResponse.BodyHandlers.ofString());
        } catch (ConnectException e) { throw new Leased.NothingHappened("the network cannot be reached"); }
    }

    static void listening() throws InterruptedException {
        System.out.println("listening");
        System.out.flush();
        CHARGES.completer("POST /charges", () -> false, e -> System.err.println("completer: " + e));
    }
}
