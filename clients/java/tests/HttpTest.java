import static idempotency.Idempotency.*;
import static idempotency.Idempotency.Arg.*;
import static java.nio.charset.StandardCharsets.UTF_8;

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import idempotency.*;
import jakarta.servlet.*;
import jakarta.servlet.http.*;
import java.io.*;
import java.net.*;
import java.net.http.*;
import java.sql.Connection;
import java.util.*;
import java.util.concurrent.*;
import java.util.stream.*;
import org.apache.catalina.Context;
import org.apache.catalina.Wrapper;
import org.apache.catalina.startup.Tomcat;
import org.apache.tomcat.util.descriptor.web.*;

/** The header, and the two adapters on real servers. */
final class HttpTest extends ClientTest {

    private static CompletableFuture<HttpResponse<String>> send(int port, String method, String path, String key, String body) {
        HttpRequest.Builder request = HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + port + path))
            .method(method, HttpRequest.BodyPublishers.ofString(body));
        if (key != null) request.header("Idempotency-Key", key);
        // A client for each request, since one would use connections again that the server has just closed.
        return HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build().sendAsync(request.build(), HttpResponse.BodyHandlers.ofString())
            .whenComplete((response, e) -> expect(e == null, "%s %s: %s", method, path, e));
    }
    private static HttpResponse<String> post(int port, String path, String key, String body) { return send(port, "POST", path, key, body).join(); }
    private static String header(HttpResponse<?> response, String name) { return String.join("|", response.headers().allValues(name)); }
    private static String key() { return UUID.randomUUID().toString(); }
    private static String rows(String key) throws Exception { return one("SELECT count(*) FROM client_java.work WHERE key = ?", key); }
    private static void insert(String key) throws Exception {
        one(HttpCore.connection(), "INSERT INTO client_java.work VALUES (?) RETURNING 1", key);
    }

    static void parseKey() {
        Map<String, String> keys = new LinkedHashMap<>(Map.of("k", "k", "\"k\"", "k", " \"k\" ", "k", "\"k\";p=1", "k", "\"k\"; p=\"x;\\\"y\"; q", "k",
            "\"a\\\"b\\\\\"", "a\"b\\", "\"a, b\"", "a, b", "a/b:c=", "a/b:c="));
        keys.put("\"" + "x".repeat(255) + "\"", "x".repeat(255));
        for (String line : List.of("", "\"\"", "\"k", "\"k\"x", "\"a\\n\"", "k, l", "\"k\", \"l\"", "\"\u00fc\"", "\u00fc", "\"k\";=1", "a b", "\"\u0001\"",
            "x".repeat(256), "\"" + "x".repeat(100000), "\"k\"" + ";p=\"\\\"\"".repeat(100000) + "=")) keys.put(line, null);
        keys.forEach((line, wanted) -> equal(HttpCore.parseKey(List.of(line)), wanted));
        equal(HttpCore.parseKey(List.of("k", "k")), null);
        equal(HttpCore.parseKey(List.of()), null);
    }

    // ---- the JDK's own server ----

    interface Servers { void with(int port) throws Exception; }

    private static void jdk(HttpCore.Settings<HttpExchange> settings, IdempotencyHandler.Answering answering, List<String> routes, Servers test,
                            Option... options) throws Exception {
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 50);
        IdempotencyHandler handler = new IdempotencyHandler(db, settings, answering);
        routes.forEach(route -> handler.once(route, options));
        server.createContext("/", handler);
        ExecutorService threads = Executors.newCachedThreadPool();
        server.setExecutor(threads);
        server.start();
        try { test.with(server.getAddress().getPort()); } finally { server.stop(0); threads.shutdown(); }
    }

    static void jdkServer() throws Exception {
        int[] runs = {0};
        var settings = new HttpCore.Settings<HttpExchange>(e -> "java", "https://shop.example/docs", true, true, 100);
        jdk(settings, (exchange, bytes) -> {
            String body = new String(bytes, UTF_8);
            if (exchange.getRequestMethod().equals("GET")) return Answer.of(418, "text/plain", String.valueOf(thrown(HttpCore::connection)));
            runs[0]++;
            if (body.startsWith("conflict 3") && runs[0] < 3) conflict(HttpCore.connection());
            insert(body);
            if (body.startsWith("refused")) throw new RuntimeException(new HttpCore.Refusal(Answer.json(409, "{}")));
            if (body.startsWith("busy")) return Answer.json(503, "{}");
            return Answer.of(201, "text/plain", "done " + body).with("X-Run", "" + runs[0]);
        }, List.of("POST /work/{id}", "POST /other"), port -> {
            String key = key();
            var first = post(port, "/work/1", key, key);
            var again = post(port, "/work/1", "\"" + key + "\"", key);
            expect(first.statusCode() == 201 && again.statusCode() == 201 && runs[0] == 1, "%s %s", first, again);
            equal(again.body(), "done " + key);
            equal(header(again, "Content-Type") + header(again, "X-Run") + header(again, "Idempotent-Replayed"), "text/plain1true");
            equal(header(first, "Idempotency-Key-Expires"), one("SELECT to_char(expires_at AT TIME ZONE 'UTC', 'Dy, DD Mon YYYY HH24:MI:SS \"GMT\"')"
                + " FROM idempotency.replay('java', 'POST /work/{id}', ?)", key));
            equal(header(again, "Idempotency-Key-Expires"), header(first, "Idempotency-Key-Expires"));
            equal(post(port, "/work/2", key, key).statusCode(), 422); // another path parameter
            equal(post(port, "/work/1", key, "x".repeat(101)).statusCode(), 413);
            var get = send(port, "GET", "/work/1", key, "").join();
            expect(get.statusCode() == 418 && get.body().contains("NullPointerException"), "%s", get.body());
            var missing = post(port, "/work/1", null, key);
            equal(missing.statusCode() + header(missing, "Link"), "400<https://shop.example/docs>; rel=\"describedby\"; type=\"text/html\"");
            expect(missing.body().contains("\"type\": \"https://shop.example/docs#missing\""), missing.body());

            // A serialization failure runs it again, in the end with an answer of its own; what COMMIT refuses is never sent.
            runs[0] = 0;
            equal(header(post(port, "/work/1", key(), "conflict 3" + key()), "X-Run"), "");
            expect(runs[0] > 3, "%s runs", runs[0]); // the table's trigger refuses it at COMMIT
            var conflict = post(port, "/work/1", key(), "conflict");
            equal(conflict.statusCode() + header(conflict, "Retry-After") + header(conflict, "X-Run"), "5031");
            equal(rows("conflict"), "0");
            // A refusal and a 5xx are sent, undo everything, and are not recorded.
            for (String body : List.of("refused" + key(), "busy" + key())) for (int i = 0; i < 2; i++) {
                var answer = post(port, "/other", "k" + body, body);
                equal(answer.statusCode() + header(answer, "Idempotent-Replayed"), body.startsWith("busy") ? "503" : "409");
                equal(rows(body), "0");
            }
        });
    }

    static void optionalKey() throws Exception {
        var settings = new HttpCore.Settings<HttpExchange>(e -> "java", "https://shop.example/docs", false, false, 100);
        jdk(settings, (exchange, body) -> Answer.json(200, "{}"), List.of("POST /a"), port -> {
            equal(post(port, "/a", null, "").statusCode(), 200);
            equal(post(port, "/a", "a b", "").statusCode(), 400);
        });
    }

    /** Of a pool of 4 two may wait, the others are told at once. */
    static void capOnWaiters() throws Exception {
        CountDownLatch entered = new CountDownLatch(1), leave = new CountDownLatch(1);
        String key = key();
        jdk(new HttpCore.Settings<>(e -> "java"), (exchange, body) -> {
            entered.countDown();
            leave.await();
            return Answer.json(200, "{}");
        }, List.of("POST /wait"), port -> {
            var first = send(port, "POST", "/wait", key, "");
            entered.await();
            BlockingQueue<Integer> answers = new LinkedBlockingQueue<>();
            List<CompletableFuture<?>> rivals = new ArrayList<>();
            for (int i = 0; i < 12; i++) rivals.add(send(port, "POST", "/wait", key, "").thenAccept(r -> answers.add(r.statusCode())));
            for (int i = 0; i < 10; i++) equal(answers.take(), 409);
            equal(one("SELECT 1"), "1"); // a connection is left
            leave.countDown();
            equal(first.join().statusCode(), 200);
            for (var rival : rivals) rival.join();
            equal(List.copyOf(answers), List.of(200, 200));
        }, WAIT.of("60 s"));
    }

    // ---- servlets ----

    private static void filter(Context context, String name, Filter filter) {
        FilterDef definition = new FilterDef();
        definition.setFilterName(name);
        definition.setFilter(filter);
        definition.setAsyncSupported("true");
        context.addFilterDef(definition);
        FilterMap map = new FilterMap();
        map.setFilterName(name);
        map.addURLPattern("/*");
        context.addFilterMap(map);
    }

    private static final Map<String, Integer> RUNS = new ConcurrentHashMap<>();

    private static void serve(HttpServletRequest request, HttpServletResponse response) throws Exception {
        String body = request.getReader().lines().collect(Collectors.joining());
        int run = RUNS.merge(body, 1, Integer::sum);
        expect(request.getAttribute(IdempotencyFilter.CONNECTION) == HttpCore.connection(), "another connection");
        insert(body);
        response.setHeader("X-Run", "" + run);
        response.setStatus(201);
        switch (request.getPathInfo()) {
            case "/text" -> {
                response.setContentType("text/plain");
                response.getWriter().print("gr\u00fc\u00dfe");
                response.getWriter().flush();
                response.flushBuffer();
                expect(!response.isCommitted(), "it was sent before COMMIT");
            }
            case "/conflict" -> {
                response.addHeader("X-Attempt", "" + run);
                response.getOutputStream().write(("attempt " + run).getBytes(UTF_8));
                if (run < 3) throw new ServletException(thrown(() -> conflict(HttpCore.connection())));
            }
            case "/reset" -> {
                response.getWriter().print("not this");
                response.reset();
                response.getWriter().print("this");
            }
            case "/redirect" -> response.sendRedirect("/orders/7");
            case "/error" -> response.sendError(404, "no such order");
            case "/throw" -> throw new IllegalArgumentException("a fault");
            case "/async" -> request.startAsync();
            case "/refusal" -> throw new HttpCore.Refusal(Answer.json(409, "{\"a\": 1}"));
            default -> throw new AssertionError(request.getPathInfo());
        }
    }

    static void servletFilter() throws Exception {
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(System.getProperty("java.io.tmpdir"));
        tomcat.setPort(0);
        tomcat.setSilent(true);
        java.util.logging.LogManager.getLogManager().reset(); // the faults are meant
        Context context = tomcat.addContext("/app", null);
        Wrapper shop = Tomcat.addServlet(context, "shop", new HttpServlet() {
            @Override protected void service(HttpServletRequest request, HttpServletResponse response) throws IOException, ServletException {
                try {
                    if (request.getMethod().equals("POST")) serve(request, response);
                    else response.getWriter().print("touched by nobody");
                } catch (IOException | ServletException | RuntimeException e) { throw e; } catch (Exception e) { throw new ServletException(e); }
            }
        });
        shop.setAsyncSupported(true);
        shop.addMapping("/*");
        filter(context, "security", (request, response, chain) -> {
            ((HttpServletResponse) response).setHeader("X-Frame-Options", "DENY");
            chain.doFilter(request, response);
        });
        IdempotencyFilter once = new IdempotencyFilter(db, new HttpCore.Settings<>(request -> "java"));
        for (String path : List.of("text", "conflict", "reset", "redirect", "error", "throw", "async", "refusal")) once.once("POST /" + path);
        filter(context, "idempotency", once);
        tomcat.start();
        try {
            int port = tomcat.getConnector().getLocalPort();
            for (String path : List.of("text", "conflict", "reset", "redirect")) {
                String key = key();
                var first = post(port, "/app/" + path, key, key);
                var again = post(port, "/app/" + path, key, key);
                equal(header(again, "Idempotent-Replayed"), "true");
                for (String name : List.of("X-Run", "X-Attempt", "Content-Type", "Location")) equal(header(again, name), header(first, name));
                equal(again.statusCode() + again.body(), first.statusCode() + first.body());
                equal(first.statusCode() + first.body() + header(first, "Content-Type").replace(" ", "").toLowerCase() + header(first, "X-Run")
                    + header(first, "X-Attempt") + header(first, "Location"), switch (path) {
                        case "text" -> "201gr\u00fc\u00dfetext/plain;charset=iso-8859-11";
                        case "conflict" -> "201attempt 333"; // of the last attempt, and nothing of the others
                        case "reset" -> "200this";
                        default -> "3021/orders/7";
                    });
                if (!path.equals("reset")) for (var answer : List.of(first, again)) equal(header(answer, "X-Frame-Options"), "DENY");
                equal(rows(key), "1");
                equal(one("SELECT (response_headers @> '[[\"X-Frame-Options\"]]') IS TRUE FROM idempotency.lookup('java', ?, ?)", "POST /" + path, key), "f");
            }
            for (String path : List.of("error", "throw", "async", "refusal")) {
                String key = key();
                for (int i = 1; i <= 2; i++) {
                    var answer = post(port, "/app/" + path, key, key);
                    equal(answer.statusCode() + header(answer, "X-Frame-Options") + header(answer, "X-Run"),
                        (path.equals("error") ? "404" : path.equals("refusal") ? "409" : "500") + "DENY");
                    expect(answer.body().contains(path.equals("refusal") ? "{\"a\": 1}" : "html"), answer.body()); // the container's page
                    equal(RUNS.get(key), i); // it was not recorded
                }
                equal(rows(key), "0");
            }
            equal(send(port, "GET", "/app/text", "k", "").join().body(), "touched by nobody");
        } finally { tomcat.stop(); tomcat.destroy(); }
    }
}
