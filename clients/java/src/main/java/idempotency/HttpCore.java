package idempotency;

import idempotency.Idempotency.*;
import java.io.InputStream;
import java.sql.Connection;
import java.time.*;
import java.time.format.DateTimeFormatter;
import java.util.*;
import java.util.concurrent.Callable;
import java.util.function.*;
import java.util.regex.*;

/**
 * The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07) for any framework; R is its request. An adapter says what was
 * asked and how its handler is run, and sends the answer that it gets: after COMMIT, so that no client is told what was undone.
 */
public abstract class HttpCore<R> {
    /** The account that was authenticated; the page that problems point to; is a key needed; is Idempotency-Key-Expires sent. */
    public record Settings<R>(Function<R, String> scope, String documentation, boolean required, boolean lifetimeHeader, int maxBody) {
        public Settings(Function<R, String> scope) { this(scope, "https://developer.example.com/idempotency", true, false, 8 << 20); }
    }
    /** Thrown by a handler: undoes its work, and the answer is sent and not recorded. */
    public static final class Refusal extends RuntimeException {
        private final transient Answer answer;
        public Refusal(Answer answer) { super("answered with " + answer.status()); this.answer = answer; }
    }

    // The draft has the first three titles. Who gets a Retry-After may send the same request again; nobody else is invited to.
    private record Problem(int status, String title, String detail) {}
    private static final Map<String, Problem> PROBLEMS = Map.of(
        "missing", new Problem(400, "Idempotency-Key is missing", "This operation needs the header: one key for each intent."),
        "mismatch", new Problem(422, "Idempotency-Key is already used", "It was used for another request, which may have taken effect."),
        "in-progress", new Problem(409, "A request is outstanding for this Idempotency-Key", "A request with this key is being processed."),
        "malformed", new Problem(400, "Idempotency-Key is malformed", "It is one string of 1 to 255 printable ASCII characters."),
        "held", new Problem(409, "The outcome for this Idempotency-Key is unknown", "Whether the request took effect is looked into."),
        "redacted", new Problem(410, "The answer for this Idempotency-Key is gone", "The request was done, and its answer was removed."),
        "too-large", new Problem(500, "The answer for this Idempotency-Key is too large", "It cannot be recorded, nor could a repeat."),
        "unavailable", new Problem(503, "Idempotency-Key cannot be checked now", "Send the same request with the same key again later."));

    // RFC 8941: a string with its escapes, or a token, as many clients send it. Parameters are read over.
    private static final String STRING = "\"((?:[ !#-\\[\\]-~]|\\\\[\"\\\\])*+)\"", TOKEN = "[!#-+\\--:<-~]+";
    private static final Pattern ITEM = Pattern.compile(
        "(?:" + STRING + "|(" + TOKEN + "))(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:" + STRING + "|" + TOKEN + "))?)*+");
    private static final DateTimeFormatter HTTP_DATE =
        DateTimeFormatter.ofPattern("EEE, dd MMM yyyy HH:mm:ss 'GMT'", Locale.US).withZone(ZoneOffset.UTC);
    private static final Pattern PARAMETER = Pattern.compile("\\{(\\w+)\\}");
    private static final ThreadLocal<Connection> CONNECTION = new ThreadLocal<>();
    private record Route<R>(String operation, Pattern path, Leased work, BiFunction<R, byte[], String> state, Option[] options) {}
    private final Database db;
    private final Settings<R> settings;
    private final List<Route<R>> routes = new ArrayList<>();

    protected HttpCore(Database db, Settings<R> settings) { this.db = db; this.settings = settings; }

    /** Requests for "POST /orders/{id}/refunds" are done once; options are TTL and WAIT. What is not named is not touched. */
    public void once(String operation, Option... options) { leased(operation, null, null, options); }
    /** As work that leaves the database. State is the JSON that it needs, made of the request and its body; or throws a Refusal. */
    public void leased(String operation, Leased work, BiFunction<R, byte[], String> state, Option... options) {
        String path = "\\Q" + PARAMETER.matcher(operation).replaceAll("\\\\E([^/]+)\\\\Q") + "\\E";
        routes.add(new Route<>(operation, Pattern.compile(path), work, state, options));
    }

    /** Of the claim's transaction: what a handler writes by it is committed with its answer. */
    public static Connection connection() { return Objects.requireNonNull(CONNECTION.get(), "no handler of a route that is done once"); }

    /** The key of the header's lines, "k" and k alike; null where they are no key. */
    public static String parseKey(List<String> lines) {
        Matcher match = ITEM.matcher(lines.size() == 1 ? lines.get(0).strip() : "");
        if (!match.matches()) return null;
        String key = match.group(1) == null ? match.group(2) : match.group(1).replaceAll("\\\\(.)", "$1");
        return key.isEmpty() || key.length() > 255 ? null : key;
    }

    protected interface Handler { Answer answer(byte[] body) throws Exception; }

    /** Null where the request is not to be touched. Asked is as "POST /orders/7/refunds". */
    protected Answer answer(R request, String asked, List<String> lines, Callable<InputStream> input, Handler handler) throws Exception {
        Route<R> route = routes.stream().filter(r -> r.path.matcher(asked).matches()).findFirst().orElse(null);
        if (route == null || !settings.required && lines.isEmpty()) return null;
        String scope = Objects.requireNonNull(settings.scope.apply(request), "scope gave nothing: authenticate before");
        String key = parseKey(lines);
        if (key == null) return problem(lines.isEmpty() ? "missing" : "malformed", 0);
        byte[] body = input.call().readNBytes(settings.maxBody + 1);
        if (body.length > settings.maxBody) return Answer.of(413, "text/plain", "too large");
        Id id = new Id(scope, route.operation, key);
        Map<String, String> params = new HashMap<>();
        Matcher names = PARAMETER.matcher(route.operation), values = route.path.matcher(asked);
        for (int n = 1; values.matches() && names.find(); n++) params.put(names.group(1), values.group(n));
        Request compared = new Request(body, params);
        try {
            if (route.work != null) {
                Option state = Arg.STATE.of(route.state.apply(request, body));
                return answerTo(route.work.run(id, compared, Option.join(route.options, state)));
            }
            return db.transaction(connection -> {
                Claim claim = db.capped(route.options, allowed -> Idempotency.claim(connection, id, compared, allowed));
                if (!(claim instanceof Claimed)) return answerTo(claim);
                CONNECTION.set(connection);
                try {
                    Answer answer = handler.answer(body);
                    if (answer.status() >= 500) throw new Refusal(answer);
                    return answerTo(new Answered(answer, Idempotency.complete(connection, id, answer), false));
                } finally { CONNECTION.remove(); }
            });
        } catch (Exception e) {
            for (Refusal refusal : Kind.causes(e, Refusal.class).toList()) return refusal.answer;
            return switch (Kind.of(e)) {
                case RETRY, UNAVAILABLE -> problem("unavailable", 0);
                case WAIT_TIMEOUT, STALE_CLAIM -> problem("in-progress", 0);
                case HELD, REDACTED, TOO_LARGE -> problem(Kind.of(e).name().toLowerCase(Locale.ROOT).replace('_', '-'), 0);
                default -> throw e; // the framework's, as if this were not here
            };
        }
    }

    private Answer answerTo(Claim claim) {
        if (claim instanceof InProgress rival) return problem("in-progress", rival.retryAfterMs());
        if (claim instanceof Mismatch) return problem("mismatch", 0);
        if (!(claim instanceof Answered it)) return problem(claim instanceof Held ? "held" : "unavailable", 0); // or Failed
        Answer answer = it.replayed() ? it.answer().with("Idempotent-Replayed", "true") : it.answer();
        return settings.lifetimeHeader ? answer.with("Idempotency-Key-Expires", HTTP_DATE.format(it.expiresAt())) : answer;
    }

    private Answer problem(String name, long retryAfterMs) {
        Problem it = PROBLEMS.get(name);
        Answer answer = Answer.of(it.status, "application/problem+json", """
            {"type": "%s#%s", "title": "%s", "status": %d, "detail": "%s"}"""
            .formatted(settings.documentation, name, it.title, it.status, it.detail)).with("Content-Language", "en");
        if (it.status == 400) return answer.with("Link", "<" + settings.documentation + ">; rel=\"describedby\"; type=\"text/html\"");
        boolean again = name.equals("in-progress") || name.equals("unavailable");
        return again ? answer.with("Retry-After", String.valueOf(Math.max(1, (retryAfterMs + 999) / 1000))) : answer;
    }
}
