import idempotency.*;
import jakarta.servlet.*;
import jakarta.servlet.http.*;
import java.io.IOException;
import org.apache.catalina.Context;
import org.apache.catalina.connector.Connector;
import org.apache.catalina.startup.Tomcat;
import org.apache.tomcat.util.descriptor.web.*;

/** The conformance service on an embedded Tomcat 10, as a servlet behind the filter. */
final class TomcatService {
    private static String user(HttpServletRequest request) { return Shop.user(request.getHeader("Authorization")); }

    /** Writes to the response as servlets do, knowing nothing of what is held back. */
    private static final class ShopServlet extends HttpServlet {
        @Override protected void service(HttpServletRequest request, HttpServletResponse response) throws IOException, ServletException {
            Answer answer;
            try {
                answer = Shop.answer(request.getMethod() + " " + request.getPathInfo(), user(request), request::getHeader,
                    request.getInputStream().readAllBytes());
            } catch (IOException | RuntimeException e) { throw e; } catch (Exception e) { throw new ServletException(e); }
            response.setStatus(answer.status());
            answer.headers().forEach(header -> response.addHeader(header.name(), header.value()));
            response.getOutputStream().write(answer.body());
            response.flushBuffer();
        }
    }

    private static void authenticate(ServletRequest request, ServletResponse response, FilterChain chain) throws IOException, ServletException {
        if (user((HttpServletRequest) request) == null && !((HttpServletRequest) request).getRequestURI().equals("/health")) {
            ((HttpServletResponse) response).setStatus(401);
        } else {
            chain.doFilter(request, response);
        }
    }

    private static void filter(Context context, String name, Filter filter) {
        FilterDef definition = new FilterDef();
        definition.setFilterName(name);
        definition.setFilter(filter);
        context.addFilterDef(definition);
        FilterMap map = new FilterMap();
        map.setFilterName(name);
        map.addURLPattern("/*");
        context.addFilterMap(map);
    }

    public static void main(String[] arguments) throws Exception {
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(System.getProperty("java.io.tmpdir"));
        Connector connector = new Connector();
        connector.setPort(Shop.PORT);
        connector.setProperty("address", "127.0.0.1");
        connector.setProperty("maxThreads", "100");
        tomcat.setConnector(connector);
        Context context = tomcat.addContext("", null);
        Tomcat.addServlet(context, "shop", new ShopServlet()).addMapping("/*");
        var settings = new HttpCore.Settings<HttpServletRequest>(request -> "shop:" + user(request));
        IdempotencyFilter once = new IdempotencyFilter(Shop.DB, settings);
        Shop.routes(once, TomcatService::user);
        filter(context, "authentication", TomcatService::authenticate);
        filter(context, "idempotency", once);
        tomcat.start();
        Shop.listening();
    }
}
