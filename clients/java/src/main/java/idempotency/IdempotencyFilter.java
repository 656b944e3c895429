package idempotency;

import idempotency.Answer.Header;
import jakarta.servlet.*;
import jakarta.servlet.http.*;
import java.io.*;
import java.util.*;

/**
 * Jakarta Servlet, Spring Boot 3: the last filter before the servlet. Its connection is IdempotencyFilter.connection(), and the request's
 * attribute CONNECTION. What the servlet writes is recorded; an exception and sendError() undo its work and are the container's affair.
 */
public final class IdempotencyFilter extends HttpCore<HttpServletRequest> implements Filter {
    public static final String CONNECTION = "idempotency.connection";

    public IdempotencyFilter(Database db, Settings<HttpServletRequest> settings) { super(db, settings); }

    @Override public void doFilter(ServletRequest request, ServletResponse response, FilterChain chain)
            throws IOException, ServletException {
        HttpServletRequest asked = (HttpServletRequest) request;
        HttpServletResponse real = (HttpServletResponse) response;
        String operation = asked.getMethod() + " " + asked.getServletPath() + Objects.requireNonNullElse(asked.getPathInfo(), "");
        List<Header> before = headers(real); // of filters, such as those about security
        Answer answer;
        try {
            answer = answer(asked, operation, Collections.list(asked.getHeaders("Idempotency-Key")), asked::getInputStream, body -> {
                put(real, 200, before); // it may be run again, on a response as it was
                asked.setAttribute(CONNECTION, connection());
                Captured captured = new Captured(real);
                chain.doFilter(new Repeatable(asked, body), captured);
                return captured.answer(before);
            });
        } catch (SentError e) {
            put(real, 200, before);
            real.sendError(e.status, e.getMessage());
            return;
        } catch (Exception e) {
            put(real, 200, before);
            if (e instanceof IOException io) throw io;
            if (e instanceof RuntimeException fault) throw fault;
            throw e instanceof ServletException thrown ? thrown : new ServletException(e);
        } finally { asked.removeAttribute(CONNECTION); }
        if (answer == null) { chain.doFilter(request, response); return; }
        put(real, answer.status(), before);
        answer.headers().forEach(header -> real.addHeader(header.name(), header.value()));
        real.setContentLength(answer.body().length);
        real.getOutputStream().write(answer.body());
    }

    private static List<Header> headers(HttpServletResponse response) {
        Set<String> names = new TreeSet<>(String.CASE_INSENSITIVE_ORDER);
        names.addAll(response.getHeaderNames());
        List<Header> all = new ArrayList<>();
        for (String name : names) for (String value : response.getHeaders(name)) all.add(new Header(name, value));
        String type = names.contains("Content-Type") ? null : response.getContentType(); // Tomcat does not count it
        if (type != null) all.add(new Header("Content-Type", type));
        return all;
    }
    private static void put(HttpServletResponse response, int status, List<Header> headers) {
        response.reset();
        response.setStatus(status);
        headers.forEach(header -> response.addHeader(header.name(), header.value()));
    }

    /** The body, to be read in each attempt. An asynchronous answer would come after COMMIT. */
    private static final class Repeatable extends HttpServletRequestWrapper {
        private final ServletInputStream in;
        Repeatable(HttpServletRequest real, byte[] body) {
            super(real);
            ByteArrayInputStream bytes = new ByteArrayInputStream(body);
            in = new ServletInputStream() {
                @Override public int read() { return bytes.read(); }
                @Override public boolean isFinished() { return bytes.available() == 0; }
                @Override public boolean isReady() { return true; }
                @Override public void setReadListener(ReadListener listener) { throw new IllegalStateException("not asynchronous"); }
            };
        }
        @Override public boolean isAsyncSupported() { return false; }
        @Override public AsyncContext startAsync() { throw new IllegalStateException("not asynchronous"); }
        @Override public AsyncContext startAsync(ServletRequest request, ServletResponse response) { return startAsync(); }
        @Override public ServletInputStream getInputStream() { return in; }
        @Override public BufferedReader getReader() throws IOException {
            return new BufferedReader(new InputStreamReader(in, Objects.requireNonNullElse(getCharacterEncoding(), "UTF-8")));
        }
    }

    private static final class SentError extends RuntimeException {
        private final int status;
        SentError(int status, String message) { super(message); this.status = status; }
    }
    /** The answer, held back. Status and headers are kept by the response itself, which is not committed as long as it gets no body. */
    private static final class Captured extends HttpServletResponseWrapper {
        private final ByteArrayOutputStream body = new ByteArrayOutputStream();
        private final ServletOutputStream out = new ServletOutputStream() {
            @Override public void write(int one) { body.write(one); }
            @Override public boolean isReady() { return true; }
            @Override public void setWriteListener(WriteListener listener) { throw new IllegalStateException("not asynchronous"); }
        };
        private PrintWriter writer;
        private SentError error;

        Captured(HttpServletResponse real) { super(real); }
        Answer answer(List<Header> before) {
            if (error != null) throw error;
            flushBuffer();
            List<Header> own = headers(this);
            own.removeAll(before);
            return new Answer(getStatus(), own, body.toByteArray(), null);
        }
        @Override public ServletOutputStream getOutputStream() { return out; }
        @Override public PrintWriter getWriter() throws IOException {
            setCharacterEncoding(getCharacterEncoding()); // so that it becomes part of the type
            if (writer == null) writer = new PrintWriter(new OutputStreamWriter(out, getCharacterEncoding()));
            return writer;
        }
        @Override public void flushBuffer() { if (writer != null) writer.flush(); }
        @Override public void resetBuffer() { flushBuffer(); body.reset(); }
        @Override public void reset() { resetBuffer(); super.reset(); }
        @Override public void sendError(int status) { sendError(status, null); }
        @Override public void sendError(int status, String message) { error = new SentError(status, message); }
        @Override public void sendRedirect(String location) { setStatus(SC_FOUND); setHeader("Location", location); }
    }
}
