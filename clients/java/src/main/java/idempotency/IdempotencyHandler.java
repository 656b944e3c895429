package idempotency;

import com.sun.net.httpserver.*;
import java.io.*;
import java.util.*;

/**
 * The JDK's own HTTP server. What answers is a function, also for what is not touched: an Answer that is returned is recorded and sent, an
 * exception undoes everything. Its connection is IdempotencyHandler.connection().
 */
public final class IdempotencyHandler extends HttpCore<HttpExchange> implements HttpHandler {
    public interface Answering { Answer answer(HttpExchange exchange, byte[] body) throws Exception; }
    private final Answering handler;

    public IdempotencyHandler(Database db, Settings<HttpExchange> its, Answering handler) { super(db, its); this.handler = handler; }

    @Override public void handle(HttpExchange exchange) throws IOException {
        String asked = exchange.getRequestMethod() + " " + exchange.getRequestURI().getPath();
        List<String> lines = exchange.getRequestHeaders().getOrDefault("Idempotency-Key", List.of());
        try (InputStream in = exchange.getRequestBody()) {
            Answer answer = answer(exchange, asked, lines, () -> in, body -> handler.answer(exchange, body));
            send(exchange, answer != null ? answer : handler.answer(exchange, in.readAllBytes()));
        } catch (IOException | RuntimeException e) { throw e; } catch (Exception e) { throw new IOException(e); }
    }

    public static void send(HttpExchange exchange, Answer answer) throws IOException {
        answer.headers().forEach(header -> exchange.getResponseHeaders().add(header.name(), header.value()));
        exchange.sendResponseHeaders(answer.status(), answer.body().length == 0 ? -1 : answer.body().length);
        if (answer.body().length > 0) exchange.getResponseBody().write(answer.body());
        exchange.close();
    }
}
