import com.sun.net.httpserver.*;
import idempotency.*;
import java.net.InetSocketAddress;
import java.util.concurrent.Executors;

/** The conformance service on the JDK's own HTTP server. */
final class JdkService {
    public static void main(String[] arguments) throws Exception {
        var settings = new HttpCore.Settings<HttpExchange>(exchange -> "shop:" + user(exchange));
        IdempotencyHandler handler = new IdempotencyHandler(Shop.DB, settings, (exchange, body) -> Shop.answer(
            exchange.getRequestMethod() + " " + exchange.getRequestURI().getPath(), user(exchange), exchange.getRequestHeaders()::getFirst, body));
        Shop.routes(handler, JdkService::user);
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Shop.PORT), 200);
        server.createContext("/", exchange -> {
            try {
                if (user(exchange) == null && !exchange.getRequestURI().getPath().equals("/health")) {
                    IdempotencyHandler.send(exchange, Shop.problem(401, "Who is it?"));
                } else {
                    handler.handle(exchange);
                }
            } catch (Exception e) { // the server would close the connection without an answer
                e.printStackTrace();
                IdempotencyHandler.send(exchange, Shop.problem(500, "Internal error"));
            }
        });
        server.setExecutor(Executors.newFixedThreadPool(100));
        server.start();
        Shop.listening();
    }

    private static String user(HttpExchange exchange) { return Shop.user(exchange.getRequestHeaders().getFirst("Authorization")); }
}
