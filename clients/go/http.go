package idempotency

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// API serves the header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07). No answer is sent before COMMIT has succeeded, so
// no client is told what was undone.
type API struct {
	DB             *sql.DB
	Scope          func(*http.Request) string // the account that was authenticated
	Documentation  string                     // a URL, for problems and 400
	Methods        string                     // others are not touched; "POST PATCH" where ""
	Optional       bool                       // a request without a key is not touched
	LifetimeHeader bool                       // Idempotency-Key-Expires, with what is recorded or replayed
	MaxBody        int64                      // bytes; 8 MB where 0
}

// The draft has the first three titles. Who gets a Retry-After may send the same request again; nobody else is invited to.
var problems = map[string]struct {
	status        int
	title, detail string
}{
	"missing":     {400, "Idempotency-Key is missing", "This operation needs the header Idempotency-Key: one key for each intent."},
	"mismatch":    {422, "Idempotency-Key is already used", "The key was used for another request, which may have taken effect."},
	"in-progress": {409, "A request is outstanding for this Idempotency-Key", "A request with this key is being processed."},
	"malformed":   {400, "Idempotency-Key is malformed", `The header is one string of 1 to 255 printable ASCII characters: "k" or k.`},
	"held":        {409, "The outcome for this Idempotency-Key is unknown", "Whether the first request took effect is being looked into."},
	"redacted":    {410, "The answer for this Idempotency-Key is gone", "The request was done, and its answer was removed."},
	"too-large":   {500, "The answer for this Idempotency-Key is too large", "It cannot be recorded, and a repeat would fail again."},
	"unavailable": {503, "Idempotency-Key cannot be checked now", "Send the same request with the same key again later."},
}

var problemOf = map[Kind]string{
	Retry: "unavailable", Unavailable: "unavailable", WaitTimeout: "in-progress", StaleClaim: "in-progress",
	IsHeld: "held", Redacted: "redacted", TooLarge: "too-large",
}

func (a *API) problem(name string, retryAfterMS int64) *Answer {
	documentation, p := a.Documentation, problems[name]
	if documentation == "" {
		documentation = "https://developer.example.com/idempotency"
	}
	body := map[string]any{"type": documentation + "#" + name, "title": p.title, "detail": p.detail, "status": p.status}
	answer := JSONAnswer(p.status, body)
	answer.Header = http.Header{"Content-Type": {"application/problem+json"}, "Content-Language": {"en"}}
	if p.status == http.StatusBadRequest {
		answer.Header.Set("Link", fmt.Sprintf(`<%s>; rel="describedby"; type="text/html"`, documentation))
	}
	if name == "in-progress" || name == "unavailable" {
		answer.Header.Set("Retry-After", fmt.Sprint(1+(retryAfterMS-1)/1000)) // rounded up, and at least 1
	}
	return answer
}

// RFC 8941: a string with its escapes, or a token, as many clients send it. Parameters are read over.
const quoted, token = `"((?:[ !#-\[\]-~]|\\["\\])*)"`, `[!#-+\x2d-:<-~]+`

var (
	item   = regexp.MustCompile(`^(?:` + quoted + `|(` + token + `))(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:` + quoted + `|` + token + `))?)*$`)
	escape = regexp.MustCompile(`\\(.)`)
)

// ParseKey is the key of the header's lines, "k" and k alike, or the name of the problem.
func ParseKey(lines []string) (key, problem string) {
	if len(lines) == 0 {
		return "", "missing"
	}
	if match := item.FindStringSubmatch(strings.Trim(lines[0], " \t")); match != nil && len(lines) == 1 {
		key = match[2] + escape.ReplaceAllString(match[1], "$1")
	}
	if key == "" || len(key) > 255 {
		return "", "malformed"
	}
	return key, ""
}

// What a handler below Once works with, in its context, and how it failed.
type work struct {
	tx  *sql.Tx
	err error
}
type workKey struct{}

// Tx is the transaction of the claim, in which a handler below Once works; nil where the request is not touched.
func Tx(ctx context.Context) *sql.Tx {
	if w, ok := ctx.Value(workKey{}).(*work); ok {
		return w.tx
	}
	return nil
}

// HandlerFunc is a handler that can fail. What it has written is thrown away then, and the error decides: an *Answer is sent and not
// recorded, a serialization failure runs the handler again, a lost database is a 503, and anything else is logged and a 500.
type HandlerFunc func(http.ResponseWriter, *http.Request) error

func (fn HandlerFunc) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	err := fn(w, r)
	if work, ok := r.Context().Value(workKey{}).(*work); ok {
		work.err = err
	} else if err != nil {
		new(API).answerTo(r, err).ServeHTTP(w, r)
	}
}

func (a *API) answerTo(r *http.Request, err error) (answer *Answer) {
	if errors.As(err, &answer) {
		return answer
	} else if name, ok := problemOf[KindOf(err)]; ok {
		return a.problem(name, 1)
	}
	log.Printf("%s %s: %v", r.Method, r.URL.Path, err)
	return &Answer{Status: http.StatusInternalServerError}
}

// Once wraps the handler of a route, such as "/orders/{id}": claim, handler and recording are one transaction. The handler may be run
// again after a serialization failure, each time with the body as it came. An answer of 500 and more undoes everything.
func (a *API) Once(template string, options ...Option) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return a.route(template, next, func(ctx context.Context, r *http.Request, id ID, request Request) (answer *Answer, err error) {
			err = Transaction(ctx, a.DB, func(tx *sql.Tx) error {
				claim, err := capped(ctx, a.DB, tx, id, request, options)
				if err != nil || claim.Outcome != Claimed {
					answer = a.withoutWork(claim)
					return err
				}
				w, work := &capture{Answer: Answer{Header: http.Header{}}}, &work{tx: tx}
				again := r.WithContext(context.WithValue(ctx, workKey{}, work))
				again.Body = io.NopCloser(bytes.NewReader(request.bytes))
				next.ServeHTTP(w, again)
				w.WriteHeader(http.StatusOK) // where it has not said another
				if answer = &w.Answer; work.err != nil {
					return work.err
				} else if answer.Status >= 500 {
					return answer
				}
				expires, err := Complete(ctx, tx, id, answer)
				answer = a.expiring(answer, expires)
				return err
			})
			return answer, err
		})
	}
}

// Leased is the handler of a route whose work leaves the database. The state is what the work needs, without the request; where it
// cannot be made the error, such as an *Answer, is answered, and the key is not used.
func (a *API) Leased(template string, job Job, state func(*http.Request) (any, error), options ...Option) http.Handler {
	return a.route(template, http.NotFoundHandler(), func(ctx context.Context, r *http.Request, id ID, request Request) (*Answer, error) {
		state, err := state(r)
		if err != nil {
			return nil, err
		}
		claim, answer, err := RunLeased(ctx, a.DB, id, request, state, job, options...)
		if answer == nil {
			answer = a.withoutWork(claim)
		}
		return answer, err
	})
}

func (a *API) withoutWork(claim *Record) *Answer {
	switch {
	case claim == nil: // there is an error
		return nil
	case claim.Outcome == Replayed:
		answer := a.expiring(claim.Answer(), claim.ExpiresAt)
		answer.Header.Set("Idempotent-Replayed", "true")
		return answer
	case claim.Outcome == InProgress:
		return a.problem("in-progress", claim.RetryAfterMS)
	case claim.Outcome == Failed:
		return a.problem("unavailable", 1)
	}
	return a.problem(string(claim.Outcome), 0) // mismatch, held
}

func (a *API) expiring(answer *Answer, at Time) *Answer {
	if a.LifetimeHeader && !at.IsZero() {
		answer.Header.Set("Idempotency-Key-Expires", at.UTC().Format(http.TimeFormat))
	}
	return answer
}

// What both kinds of routes have around them.
func (a *API) route(template string, next http.Handler, do func(context.Context, *http.Request, ID, Request) (*Answer, error),
) http.Handler {
	methods, most := a.Methods, a.MaxBody
	if methods == "" {
		methods = "POST PATCH"
	}
	if most == 0 {
		most = 8 << 20
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lines := r.Header.Values("Idempotency-Key")
		if !strings.Contains(methods, r.Method) || a.Optional && len(lines) == 0 {
			next.ServeHTTP(w, r)
			return
		}
		key, name := ParseKey(lines)
		if name != "" {
			a.problem(name, 0).ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
		if err != nil {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		id, request := ID{a.Scope(r), r.Method + " " + template, key}, Body(body).With(parameters(template, r.URL))
		answer, err := do(r.Context(), r, id, request)
		if err != nil {
			answer = a.answerTo(r, err)
		}
		answer.ServeHTTP(w, r)
	})
}

// The parts of the path that stand where the template has {name}.
func parameters(template string, u *url.URL) map[string]string {
	params, path := map[string]string{}, strings.Split(u.EscapedPath(), "/")
	for i, part := range strings.Split(template, "/") {
		if strings.HasPrefix(part, "{") && i < len(path) {
			params[strings.Trim(part, "{}")], _ = url.PathUnescape(path[i])
		}
	}
	return params
}

// What a handler writes, kept instead of sent.
type capture struct{ Answer }

func (c *capture) Header() http.Header { return c.Answer.Header }

func (c *capture) WriteHeader(status int) {
	if c.Status == 0 {
		c.Status = status
	}
}

func (c *capture) Write(part []byte) (int, error) {
	if c.Answer.Header["Content-Type"] == nil && len(c.Body) == 0 && c.Answer.Header["Content-Encoding"] == nil {
		c.Answer.Header.Set("Content-Type", http.DetectContentType(part)) // as net/http would do
	}
	c.WriteHeader(http.StatusOK)
	c.Body = append(c.Body, part...)
	return len(part), nil
}
