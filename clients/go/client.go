// Package idempotency is the PostgreSQL extension of that name for database/sql: its calls with typed outcomes (this file), errors
// and transactions (errors.go), work that leaves the database (leased.go), and the header Idempotency-Key (http.go, answer.go).
// It imports no driver; lib/pq and pgx's adapter are tested.
package idempotency

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Querier is a *sql.DB, *sql.Conn or *sql.Tx.
type Querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// ID is the identity of a piece of work. The scope is nothing that the client can choose.
type ID struct{ Scope, Operation, Key string }

// Outcome of a claim. Go on only after Claimed. Failed is of RunLeased only: nothing happened.
type Outcome string

const (
	Claimed, Replayed, InProgress Outcome = "claimed", "replay", "in_progress"
	Mismatch, Held, Failed        Outcome = "mismatch", "held", "failed"
)

// Record is what claim, run, claim_abandoned, lookup and replay tell of a key, each as much of it as it knows.
type Record struct {
	ID
	Outcome            Outcome         // of claim, run
	Status             string          // of lookup
	Token              int64           // an integer all the way: a float would be rounded some day, and its owner refused
	Attempt            int             `json:"attempt"`
	TakenOver          bool            `json:"taken_over"`
	Abandoned          bool            `json:"abandoned"`
	FingerprintChecked bool            `json:"fingerprint_checked"`
	RecoveryPoint      string          `json:"recovery_point"`
	LastError          string          `json:"last_error"`
	Note               string          `json:"note"`
	State              json.RawMessage // null without one
	RetryAfterMS       int64           `json:"retry_after_ms"`
	Rival              string          `json:"rival"`
	CreatedAt          Time            `json:"created_at"`
	CompletedAt        Time            `json:"completed_at"`
	ExpiresAt          Time            `json:"expires_at"`
	LockedUntil        Time            `json:"locked_until"`
	RedactedAt         Time            `json:"redacted_at"`
	ResponseStatus     int             `json:"response_status"`
	ResponseHeaders    json.RawMessage `json:"response_headers"`
	ResponseBody       string          `json:"response_body"`
	ResponseBytes      Bytes           `json:"response_bytes"`
	EffectKey          string          `json:"-"` // of a Job: what the outside party is given
}

// Time is zero where it is not known, and where it is never.
type Time struct{ time.Time }

func (t *Time) UnmarshalJSON(text []byte) error {
	if string(text) == `"infinity"` {
		return nil
	}
	return t.Time.UnmarshalJSON(text)
}

// Bytes are nil where there are none.
type Bytes []byte

func (b *Bytes) UnmarshalJSON(text []byte) (err error) {
	written := strings.Trim(string(text), `"`)
	if written == "null" {
		return nil
	} else if !strings.HasPrefix(written, `\\x`) { // in JSON a backslash is two
		return errors.New(`idempotency: bytea_output has to be "hex"`)
	}
	*b, err = hex.DecodeString(written[len(`\\x`):])
	return err
}

// Request is what a key is compared by: an argument and no option, since one that was forgotten would switch the comparison off.
type Request struct {
	bytes  []byte
	params map[string]string
	none   bool
}

// NoComparison takes a key for the same request, whatever it is used for.
var NoComparison = Request{none: true}

// Body is a request as it came over the wire, JSON or not: bytes, so that JSON cannot be encoded twice. An empty body is []byte{}; nil is
// a request that was forgotten.
func Body(body []byte) Request { return Request{bytes: body} }

// With adds path parameters, which belong to the request as its body does.
func (r Request) With(params map[string]string) Request { r.params = params; return r }

// Option is a named argument. What is not given is not named, so that the server's defaults and the policies hold; and what is
// given is never NULL, which drivers write in ways of their own (pgx's simple protocol: nil bytes as '\x').
type Option struct {
	name, expression string // a ? for each of the values
	values           []any
}

func option(name, cast string, value any) Option { return Option{name, "?::" + cast, []any{value}} }
func interval(name string, d time.Duration) Option {
	return option(name, "interval", fmt.Sprintf("%d us", d.Microseconds()))
}
func TTL(d time.Duration) Option         { return interval("ttl", d) }
func Lease(d time.Duration) Option       { return interval("lease", d) }
func Wait(d time.Duration) Option        { return interval("wait", d) }
func RetryIn(d time.Duration) Option     { return interval("retry_in", d) }
func WaitFor(rival string) Option        { return option("wait_for", "text", rival) }
func ClaimID(uuid string) Option         { return option("claim_id", "uuid", uuid) }
func Token(token int64) Option           { return option("token", "bigint", token) }
func Note(note string) Option            { return option("note", "text", note) }
func HoldIfAbandoned() Option            { return option("hold_if_abandoned", "boolean", true) }
func RefuseRepeat() Option               { return option("refuse_repeat", "boolean", true) }
func State(state json.RawMessage) Option { return option("state", "text::jsonb", string(state)) }
func Args(args json.RawMessage) Option   { return option("args", "text::jsonb", string(args)) }

// The rows of a call. They travel as JSON, so that one way serves every call and driver. Every parameter is cast, so that prepared,
// unprepared and pooled connections agree on its type.
func rows[T any](ctx context.Context, db Querier, name string, options ...Option) (all []T, err error) {
	var arguments []string
	var values []any
	for _, o := range options {
		values = append(values, o.values...)
		arguments = append(arguments, o.name+" => "+o.expression)
	}
	call := name + "(" + strings.Join(arguments, ", ") + ")"
	for i := range values {
		call = strings.Replace(call, "?", fmt.Sprintf("$%d", i+1), 1)
	}
	found, err := db.QueryContext(ctx, "SELECT coalesce(to_json(result), 'null')::text FROM idempotency."+call+" AS result", values...)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	for found.Next() && err == nil {
		text, row := []byte(nil), *new(T)
		if err = found.Scan(&text); err == nil {
			err = json.Unmarshal(text, &row)
		}
		all = append(all, row)
	}
	if err == nil {
		err = found.Err()
	}
	return all, err
}

// The row of a call about one key. There is one, or an error, but of lookup and replay.
func row[T any](ctx context.Context, db Querier, name string, id ID, own []Option, options ...Option) (result T, err error) {
	identity := []Option{option("scope", "text", id.Scope), option("operation", "text", id.Operation), option("key", "text", id.Key)}
	all, err := rows[T](ctx, db, name, append(append(identity, own...), options...)...)
	if err == nil && len(all) > 0 {
		result = all[0]
	}
	return result, err
}

// fingerprint_bytes also takes what jsonb refuses, and of what it takes it is the fingerprint of the parsed request.
func claiming(ctx context.Context, db Querier, name string, id ID, r Request, own, options []Option) (*Record, error) {
	const digest = "idempotency.fingerprint_bytes(?::bytea)"
	switch params, _ := json.Marshal(r.params); {
	case r.none:
	case r.bytes == nil:
		return nil, errors.New("idempotency: the request is nil; say NoComparison if that is meant")
	case len(r.params) > 0:
		own = append(own, Option{"request", "jsonb_build_object('params', ?::text::jsonb, 'body', encode(" + digest + ", 'hex'))",
			[]any{string(params), r.bytes}})
	default:
		own = append(own, Option{"fingerprint", digest, []any{r.bytes}})
	}
	record, err := row[*Record](ctx, db, name, id, own, options...)
	if err != nil {
		return nil, err
	}
	switch record.ID = id; record.Outcome {
	case Claimed, Replayed, InProgress, Mismatch, Held:
		return record, nil
	}
	return nil, fmt.Errorf("idempotency: unknown outcome %q", record.Outcome) // never go on with it
}

func text(name, value string) []Option { return []Option{option(name, "text", value)} }

func Claim(ctx context.Context, db Querier, id ID, request Request, options ...Option) (*Record, error) {
	return claiming(ctx, db, "claim", id, request, nil, options)
}
func Run(ctx context.Context, db Querier, id ID, request Request, command string, options ...Option) (*Record, error) {
	return claiming(ctx, db, "run", id, request, text("command", command), options)
}
func Complete(ctx context.Context, db Querier, id ID, answer *Answer, options ...Option) (expires Time, err error) {
	return row[Time](ctx, db, "complete", id, answer.options(), options...)
}
func Fail(ctx context.Context, db Querier, id ID, reason string, options ...Option) error {
	_, err := row[bool](ctx, db, "fail", id, text("error", reason), options...)
	return err
}
func RecordFailure(ctx context.Context, db Querier, id ID, reason string, options ...Option) (recorded bool, err error) {
	return row[bool](ctx, db, "record_failure", id, text("error", reason), options...)
}
func Hold(ctx context.Context, db Querier, id ID, reason string, options ...Option) (token int64, err error) {
	return row[int64](ctx, db, "hold", id, text("reason", reason), options...)
}
func Extend(ctx context.Context, db Querier, id ID, options ...Option) (until Time, err error) {
	return row[Time](ctx, db, "extend", id, nil, options...)
}
func Checkpoint(ctx context.Context, db Querier, id ID, recoveryPoint string, options ...Option) (until Time, err error) {
	return row[Time](ctx, db, "checkpoint", id, text("recovery_point", recoveryPoint), options...)
}
func Release(ctx context.Context, db Querier, id ID, options ...Option) error {
	_, err := row[bool](ctx, db, "release", id, nil, options...)
	return err
}
func EffectKey(ctx context.Context, db Querier, id ID, step string) (string, error) {
	return row[string](ctx, db, "effect_key", id, text("step", step))
}

// Once is true the first time. It asks for the transaction of the event's work: by itself it would remember what nobody did, the
// more so as database/sql sends a statement again whose answer lib/pq has lost.
func Once(ctx context.Context, tx *sql.Tx, id ID, options ...Option) (bool, error) {
	return row[bool](ctx, tx, "once", id, nil, options...)
}

// Replay has the recorded answer, or is nil. Nil is never a permission to do the work.
func Replay(ctx context.Context, db Querier, id ID) (*Record, error) {
	return row[*Record](ctx, db, "replay", id, nil)
}

// Lookup is what is known of a key, or nil: which does not mean that nobody is at it.
func Lookup(ctx context.Context, db Querier, id ID) (*Record, error) {
	return row[*Record](ctx, db, "lookup", id, nil)
}

// ClaimAbandoned takes over what others have left behind. Each has its token.
func ClaimAbandoned(ctx context.Context, db Querier, operation string, maxRows int, options ...Option) ([]*Record, error) {
	own := append(text("operation", operation), option("max_rows", "int", maxRows))
	return rows[*Record](ctx, db, "claim_abandoned", append(own, options...)...)
}
