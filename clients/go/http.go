package idempotency

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"
)

// Answer is what was answered, or is to be. As an error it undoes the work, and is sent without being recorded.
type Answer struct {
	Status int // 200 where 0
	Header http.Header
	Body   []byte
	Book   func(context.Context, *sql.Tx) error // of Work: writes rows in the transaction that records the answer
}

func (a *Answer) Error() string { return fmt.Sprintf("answered with %d: %s", a.Status, a.Body) }

// JSON is an answer with a value as its body.
func JSON(status int, value any) *Answer {
	return &Answer{Status: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(encoded(value))}
}

func encoded(value any) string {
	if value == nil {
		return ""
	}
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // a type that is no JSON
	}
	return string(text)
}

var (
	// About the connection, the moment or the session: never replayed.
	passing = regexp.MustCompile(`(?i)^(set-cookie|date|content-length|connection|transfer-encoding|keep-alive|server|idempotent-replayed)$`)
	textual = regexp.MustCompile(`(?i)^text/|[/+](json|xml)\b`)
)

// The body as text where it is text, so that a person can read the row; as bytes otherwise.
func (a *Answer) recorded() []argument {
	if a == nil {
		return nil
	}
	header, body := http.Header{}, argument{"response_bytes", "bytea", a.Body}
	for name, values := range a.Header {
		if !passing.MatchString(name) && len(values) > 0 {
			header[name] = values
		}
	}
	text := textual.MatchString(a.Header.Get("Content-Type")) && a.Header.Get("Content-Encoding") == ""
	if len(a.Body) == 0 || text && utf8.Valid(a.Body) && bytes.IndexByte(a.Body, 0) < 0 {
		body = argument{"response_body", "text", string(a.Body)}
	}
	return []argument{{"response_status", "int", a.Status}, {"response_headers", "text::jsonb", encoded(header)}, body}
}

// Answer is what was recorded, by whatever language: headers as pairs, or as an object whose values may be lists; strings or numbers.
func (r *Record) Answer() *Answer {
	answer := &Answer{Status: r.ResponseStatus, Header: http.Header{}, Body: append([]byte(r.ResponseBody), r.ResponseBytes...)}
	decoder, header := json.NewDecoder(bytes.NewReader(r.ResponseHeaders)), any(nil)
	decoder.UseNumber() // 1000000 is not 1e+06
	decoder.Decode(&header)
	pairs, _ := header.([]any)
	object, _ := header.(map[string]any)
	for name, value := range object {
		pairs = append(pairs, []any{name, value})
	}
	for _, pair := range pairs {
		name, value := pair.([]any)[0], pair.([]any)[1]
		values, several := value.([]any)
		if !several {
			values = []any{value}
		}
		for _, one := range values {
			answer.Header.Add(fmt.Sprint(name), fmt.Sprint(one))
		}
	}
	return answer
}

// ServeHTTP sends it.
func (a *Answer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	for name, values := range a.Header {
		w.Header()[name] = values
	}
	if a.Status != 0 {
		w.WriteHeader(a.Status)
	}
	w.Write(a.Body) // if the client is gone, it will ask again
}

// API serves the header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07). No answer is sent before COMMIT has succeeded, so
// no client is told what was undone.
type API struct {
	DB             *sql.DB
	Scope          func(*http.Request) string // the account that was authenticated
	Documentation  string                     // a URL, for problems
	Optional       bool                       // without a key a Handler is run without a claim
	LifetimeHeader bool                       // Idempotency-Key-Expires, with what is recorded or replayed
	MaxBody        int64                      // bytes
}

// New has the defaults: a key is required, and a body has 8 MB at most.
func New(db *sql.DB, scope func(*http.Request) string) *API {
	return &API{DB: db, Scope: scope, Documentation: "https://developer.example.com/idempotency", MaxBody: 8 << 20}
}

// The draft has the first three titles. Who gets a Retry-After may send the same request again; nobody else is invited to.
var problems = map[Kind]struct {
	status        int
	title, detail string
}{
	"missing":   {400, "Idempotency-Key is missing", "This operation needs the header Idempotency-Key: one key for each intent."},
	Mismatch:    {422, "Idempotency-Key is already used", "The key was used for another request, which may have taken effect."},
	InProgress:  {409, "A request is outstanding for this Idempotency-Key", "A request with this key is being processed."},
	"malformed": {400, "Idempotency-Key is malformed", `The header is one string of 1 to 255 printable ASCII characters: "k" or k.`},
	Held:        {409, "The outcome for this Idempotency-Key is unknown", "Whether the first request took effect is being looked into."},
	Redacted:    {410, "The answer for this Idempotency-Key is gone", "The request was done, and its answer was removed."},
	TooLarge:    {500, "The answer for this Idempotency-Key is too large", "It cannot be recorded, and a repeat would fail again."},
	Unavailable: {503, "Idempotency-Key cannot be checked now", "Send the same request with the same key again later."},
}

var also = map[Kind]Kind{Failed: Unavailable, Retry: Unavailable, WaitTimeout: InProgress, StaleClaim: InProgress}

// The answer to an outcome or an error. What is nobody's business but the operator's is a 500 and no more.
func (a *API) problem(kind Kind, retryAfterMS int64) *Answer {
	if other, ok := also[kind]; ok {
		kind = other
	}
	p, ok := problems[kind]
	if !ok {
		return &Answer{Status: http.StatusInternalServerError}
	}
	page := a.Documentation + "#" + strings.ReplaceAll(string(kind), "_", "-")
	answer := JSON(p.status, map[string]any{"type": page, "title": p.title, "detail": p.detail, "status": p.status})
	answer.Header = http.Header{"Content-Type": {"application/problem+json"}, "Content-Language": {"en"}}
	if p.status == http.StatusBadRequest {
		answer.Header.Set("Link", fmt.Sprintf(`<%s>; rel="describedby"; type="text/html"`, a.Documentation))
	}
	if kind == InProgress || kind == Unavailable {
		answer.Header.Set("Retry-After", fmt.Sprint(1+(retryAfterMS-1)/1000)) // rounded up, and at least 1
	}
	return answer
}

// RFC 8941: a string with its escapes, or a token, as many clients send it. Parameters are read over.
const char, mark = `(?:[ !#-\[\]-~]|\\["\\])`, `[!#-+\x2d-:<-~]`

var (
	item = regexp.MustCompile(`^(?:"(` + char + `{1,255})"|(` + mark + `{1,255}))` +
		`(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:"` + char + `*"|` + mark + `+))?)*$`)
	escape = regexp.MustCompile(`\\(.)`)
)

// ParseKey is the key of the header's lines, "k" and k alike, or "" where they are none.
func ParseKey(lines []string) string {
	if match := item.FindStringSubmatch(strings.Trim(strings.Join(lines, "\n"), " \t")); match != nil {
		return match[2] + escape.ReplaceAllString(match[1], "$1")
	}
	return ""
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

// Handler does the work of a request in the transaction of its claim. Its answer is recorded with it, and sent after COMMIT. An answer of
// 500 and more, an error and a panic undo everything: an *Answer as the error is sent and not recorded, a serialization failure runs the
// handler again, each time with the body as it came, a lost database is a 503, and anything else is logged and a 500.
type Handler func(tx *sql.Tx, r *http.Request) (*Answer, error)

// Once serves one operation, method and route template, such as "POST /orders/{id}/refunds".
func (a *API) Once(operation string, o Options, handler Handler) http.Handler {
	return a.route(operation, o, false, func(r *http.Request, id ID, o Options) (claim *Record, answer *Answer, err error) {
		err = Transaction(r.Context(), a.DB, func(tx *sql.Tx) (err error) {
			if id.Key != "" {
				if claim, err = capped(r.Context(), a.DB, tx, id, o); err != nil || claim.Outcome != Claimed {
					return err
				}
			}
			r.Body = io.NopCloser(bytes.NewReader(o.Body))
			if answer, err = handler(tx, r); err != nil {
				return err
			} else if answer == nil {
				return errors.New("the handler gave no answer")
			} else if answer.Status >= 500 {
				return answer
			}
			if claim != nil {
				claim.ExpiresAt, err = Complete(r.Context(), tx, id, Options{Answer: answer})
			}
			return err
		})
		return claim, answer, err
	})
}

// Wrapped lets an http.Handler do the work, which finds the transaction by Tx. What it writes is kept until then. It can answer that the
// database has failed, with 500 or more, and not that it is to be run again.
func Wrapped(next http.Handler) Handler {
	return func(tx *sql.Tx, r *http.Request) (*Answer, error) {
		w := &keeper{Answer{Header: http.Header{}}}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), txKey{}, tx)))
		return &w.Answer, nil
	}
}

// Tx is the transaction of the claim, for a handler that is Wrapped.
func Tx(r *http.Request) *sql.Tx { tx, _ := r.Context().Value(txKey{}).(*sql.Tx); return tx }

type txKey struct{}

// A ResponseWriter that sends nothing.
type keeper struct{ Answer }

func (k *keeper) Header() http.Header { return k.Answer.Header }

func (k *keeper) WriteHeader(status int) {
	if k.Status == 0 {
		k.Status = status
	}
}

func (k *keeper) Write(part []byte) (int, error) {
	if k.WriteHeader(http.StatusOK); k.Answer.Header["Content-Type"] == nil {
		k.Answer.Header.Set("Content-Type", http.DetectContentType(part)) // as net/http would do
	}
	k.Body = append(k.Body, part...)
	return len(part), nil
}

// Leased serves one operation whose work leaves the database. The state is what the work needs, without the request; where it
// cannot be made the error, such as an *Answer, is answered, and the key is not used.
func (a *API) Leased(operation string, o Options, state func(*http.Request) (any, error), work Work) http.Handler {
	return a.route(operation, o, true, func(r *http.Request, id ID, o Options) (claim *Record, answer *Answer, err error) {
		if o.State, err = state(r); err != nil {
			return nil, nil, err
		}
		return RunLeased(r.Context(), a.DB, id, o, work)
	})
}

// What both kinds of routes have around them.
func (a *API) route(operation string, o Options, leased bool, do func(*http.Request, ID, Options) (*Record, *Answer, error),
) http.Handler {
	respond := func(w http.ResponseWriter, r *http.Request, o Options) *Answer {
		lines := r.Header.Values("Idempotency-Key")
		id := ID{a.Scope(r), operation, ParseKey(lines)}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, a.MaxBody))
		switch {
		case !strings.HasPrefix(operation, r.Method+" "):
			return &Answer{Status: http.StatusMethodNotAllowed}
		case len(lines) == 0 && (leased || !a.Optional):
			return a.problem("missing", 0)
		case len(lines) > 0 && id.Key == "":
			return a.problem("malformed", 0)
		case err != nil:
			return &Answer{Status: http.StatusRequestEntityTooLarge}
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		o.Body, o.Params = body, parameters(operation, r.URL)
		claim, answer, err := do(r, id, o)
		switch {
		case errors.As(err, &answer):
			return answer
		case err != nil:
			log.Printf("%s %s: %v", r.Method, r.URL.Path, err)
			return a.problem(KindOf(err), 1)
		case claim == nil: // there was no key
			return answer
		case claim.Outcome == Replayed:
			answer = claim.Answer()
			w.Header().Set("Idempotent-Replayed", "true")
		case claim.Outcome != Claimed:
			return a.problem(claim.Outcome, claim.RetryAfterMS)
		}
		if a.LifetimeHeader && !claim.ExpiresAt.IsZero() {
			w.Header().Set("Idempotency-Key-Expires", claim.ExpiresAt.UTC().Format(http.TimeFormat))
		}
		return answer
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { respond(w, r, o).ServeHTTP(w, r) })
}
