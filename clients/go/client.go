// Package idempotency is the PostgreSQL extension of that name for database/sql: its calls with typed outcomes and errors (client.go),
// work that leaves the database (leased.go), and the header Idempotency-Key (http.go). It imports no driver; lib/pq and pgx are tested.
package idempotency

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"reflect"
	"strings"
	"time"
)

// Querier is a *sql.DB, *sql.Conn or *sql.Tx.
type Querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// ID is the identity of a piece of work. The scope is nothing that the client can choose.
type ID struct{ Scope, Operation, Key string }

// Options are what a call is told beside the ID. What is zero is not named, so that the server's defaults and the policies hold.
type Options struct {
	Body         []byte            // what Claim and Run compare by: the request as it came, JSON or not; []byte{} where it is empty
	Params       map[string]string // path parameters, which belong to the request as its body does
	NoComparison bool              // has to be said, since a Body that was forgotten would switch the comparison off
	Answer       *Answer           // of Complete; of Run its status and headers
	State, Args  any               // are made JSON

	TTL, Lease, Wait, RetryIn                                           time.Duration
	Note, Error, Reason, RecoveryPoint, Step, Command, WaitFor, ClaimID string
	Token                                                               int64
	MaxRows                                                             int
	HoldIfAbandoned, RefuseRepeat                                       bool
}

type argument struct {
	name, cast string
	value      any
}

// Verb is a call about a key, or about an operation. It has a result, or an error.
type Verb[T any] func(ctx context.Context, db Querier, id ID, o Options) (T, error)

// The result travels as JSON, so that one way serves every call and driver. Every parameter is cast, so that prepared, unprepared and
// pooled connections agree on its type.
func verb[T any](name, result string) Verb[T] {
	return func(ctx context.Context, db Querier, id ID, o Options) (found T, err error) {
		given, values := []string{}, []any{}
		// fingerprint_bytes also takes what jsonb refuses, and of what jsonb takes it is the fingerprint of the parsed request.
		const digest = "idempotency.fingerprint_bytes($1::bytea)"
		switch {
		case o.Body == nil && !o.NoComparison && (name == "claim" || name == "run"):
			return found, errors.New("idempotency: the request is nil; say NoComparison if that is meant")
		case o.Body == nil || o.NoComparison:
		case len(o.Params) == 0:
			given, values = append(given, "fingerprint => "+digest), append(values, o.Body)
		default:
			given = append(given, "request => jsonb_build_object('params', $2::text::jsonb, 'body', encode("+digest+", 'hex'))")
			values = append(values, o.Body, encoded(o.Params))
		}
		for _, a := range append([]argument{
			{"scope", "text", id.Scope}, {"operation", "text", id.Operation}, {"key", "text", id.Key}, {"note", "text", o.Note},
			{"ttl", "interval", o.TTL}, {"lease", "interval", o.Lease}, {"wait", "interval", o.Wait}, {"retry_in", "interval", o.RetryIn},
			{"error", "text", o.Error}, {"reason", "text", o.Reason}, {"recovery_point", "text", o.RecoveryPoint}, {"step", "text", o.Step},
			{"command", "text", o.Command}, {"wait_for", "text", o.WaitFor}, {"claim_id", "uuid", o.ClaimID}, {"token", "bigint", o.Token},
			{"hold_if_abandoned", "boolean", o.HoldIfAbandoned}, {"refuse_repeat", "boolean", o.RefuseRepeat}, {"max_rows", "int", o.MaxRows},
			{"state", "text::jsonb", encoded(o.State)}, {"args", "text::jsonb", encoded(o.Args)},
		}, o.Answer.recorded()...) {
			if reflect.ValueOf(a.value).IsZero() {
				continue
			} else if d, ok := a.value.(time.Duration); ok {
				a.value = fmt.Sprintf("%d us", d.Microseconds())
			}
			values = append(values, a.value)
			given = append(given, fmt.Sprintf("%s => $%d::%s", a.name, len(values), a.cast))
		}
		var text []byte
		query := fmt.Sprintf("SELECT %s::text FROM idempotency.%s(%s) AS result", result, name, strings.Join(given, ", "))
		if err = db.QueryRowContext(ctx, query, values...).Scan(&text); err == nil {
			err = json.Unmarshal(text, &found)
		}
		return found, err
	}
}

// One result, or null; or a list.
const one, all = "coalesce(json_agg(result)->0, 'null')", "coalesce(json_agg(result), '[]')"

// The calls. An option that is none of the call's is refused by the server.
var (
	Claim         = verb[*Record]("claim", one)       // go on only if the Outcome is Claimed
	Run           = verb[*Record]("run", one)         // the Command with its Args, claimed and completed in one call
	Complete      = verb[Time]("complete", one)       // with the Answer; until when it is remembered
	Fail          = verb[bool]("fail", one)           // nothing happened: the next attempt does it
	RecordFailure = verb[bool]("record_failure", one) // the same after a rollback, for who had no lease
	Hold          = verb[int64]("hold", one)          // nobody knows: for a person, by the token that is returned
	Extend        = verb[Time]("extend", one)         // the lease; until when
	Checkpoint    = verb[Time]("checkpoint", one)     // at RecoveryPoint, with State
	Release       = verb[bool]("release", one)        // as if it had not been claimed
	EffectKey     = verb[string]("effect_key", one)   // what an outside party is given, by Step
	Replay        = verb[*Record]("replay", one)      // nil is never a permission to do the work
	Lookup        = verb[*Record]("lookup", one)      // nil does not mean that nobody is at it
	// ClaimAbandoned takes over what others have left behind of an operation, MaxRows at most. Each has its token.
	ClaimAbandoned = verb[[]*Record]("claim_abandoned", all)
	once           = verb[bool]("once", one)
)

// Once is true the first time. It asks for the transaction of the event's work: by itself it would remember what nobody did, the
// more so as database/sql sends a statement again whose answer lib/pq has lost.
func Once(ctx context.Context, tx *sql.Tx, id ID, o Options) (bool, error) {
	return once(ctx, tx, id, o)
}

// Record is what Claim, Run, ClaimAbandoned, Lookup and Replay tell of a key, each as much of it as it knows.
type Record struct {
	ID                        // of ClaimAbandoned, and for Work
	EffectKey          string `json:"-"` // for Work: what the outside party is given
	Outcome            Kind   // of Claim, Run
	Status             string // of Lookup
	Note, Rival        string
	Token              int64           // all the way: a float would be rounded some day, and its owner refused
	Attempt            int             `json:"attempt"`
	TakenOver          bool            `json:"taken_over"`
	Abandoned          bool            `json:"abandoned"`
	FingerprintChecked bool            `json:"fingerprint_checked"`
	RecoveryPoint      string          `json:"recovery_point"`
	LastError          string          `json:"last_error"`
	State              json.RawMessage `json:"state"` // null without one
	RetryAfterMS       int64           `json:"retry_after_ms"`
	CreatedAt          Time            `json:"created_at"`
	CompletedAt        Time            `json:"completed_at"`
	ExpiresAt          Time            `json:"expires_at"`
	LockedUntil        Time            `json:"locked_until"`
	RedactedAt         Time            `json:"redacted_at"`
	ResponseStatus     int             `json:"response_status"`
	ResponseHeaders    json.RawMessage `json:"response_headers"`
	ResponseBody       string          `json:"response_body"`
	ResponseBytes      Bytes           `json:"response_bytes"`
}

// Time is zero where it is not known, and where it is never.
type Time struct{ time.Time }

func (t *Time) UnmarshalJSON(text []byte) error {
	if string(text) == `"infinity"` {
		return nil
	}
	return t.Time.UnmarshalJSON(text)
}

// Bytes are nil where there are none. They are read as bytea_output = 'hex' writes them, with the backslash that JSON doubles.
type Bytes []byte

func (b *Bytes) UnmarshalJSON(text []byte) (err error) {
	if string(text) != "null" {
		*b, err = hex.DecodeString(strings.TrimSuffix(strings.TrimPrefix(string(text), `"\\x`), `"`))
	}
	return err
}

// Kind is how a call has ended: the outcome of a claim, or what to do about an error. Go on only after Claimed. Failed is of RunLeased
// only: nothing happened. TooLarge is permanent: never "try again". Other is a fault of the program.
type Kind string

const (
	Claimed, Replayed, InProgress, Mismatch, Held Kind = "claimed", "replay", "in_progress", "mismatch", "held"
	Failed, StaleClaim, NotClaimed, LeftOpen      Kind = "failed", "stale_claim", "not_claimed", "left_open"
	OtherCompletion, Redacted, TooLarge           Kind = "other_completion", "redacted", "too_large"
	BadRequest, Retry, WaitTimeout                Kind = "bad_request", "retry", "wait_timeout"
	Unavailable, Other                            Kind = "unavailable", "other"
)

var kinds = map[string]Kind{ // of an SQLSTATE, or of its class
	"IK001": StaleClaim, "IK002": NotClaimed, "IK003": OtherCompletion, "IK004": LeftOpen, "IK005": Held, "IK006": Redacted,
	"40001": Retry, "40P01": Retry, "55P03": WaitTimeout, "54000": TooLarge, "22": BadRequest, "08": Unavailable,
	"57P01": Unavailable, "57P02": Unavailable, "57P03": Unavailable, "53300": Unavailable, "25006": Unavailable,
}

// The error of lib/pq or pgx, however it is wrapped.
func coded(err error) (e interface{ SQLState() string }) { errors.As(err, &e); return e }

// KindOf tells an error by its SQLSTATE, or as a lost connection. A request that was given up counts as one.
func KindOf(err error) Kind {
	if e := coded(err); e != nil && len(e.SQLState()) == 5 {
		if kind := kinds[e.SQLState()] + kinds[e.SQLState()[:2]]; kind != "" {
			return kind
		}
		return Other
	}
	var network net.Error                      // a deadline that has passed, too
	var closed interface{ SafeToRetry() bool } // pgx: a connection that is closed, and the like
	is := func(lost error) bool { return errors.Is(err, lost) }
	if errors.As(err, &network) || errors.As(err, &closed) || is(driver.ErrBadConn) || is(sql.ErrConnDone) || is(io.EOF) ||
		is(io.ErrUnexpectedEOF) || is(context.Canceled) {
		return Unavailable
	}
	return Other
}

// Reason of StaleClaim: taken_over, completed or forgotten. It travels in the field that is Constraint in lib/pq, ConstraintName in pgx.
func Reason(err error) string {
	var e struct{ Constraint, ConstraintName string }
	text, _ := json.Marshal(coded(err))
	json.Unmarshal(text, &e)
	return e.Constraint + e.ConstraintName
}

// Transaction is BEGIN, fn, COMMIT; all of it again where the server asks for that. Where fn panics it is rolled back, too.
func Transaction(ctx context.Context, db *sql.DB, fn func(*sql.Tx) error) error {
	return again(ctx, conflict, func() error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() // nothing after COMMIT; the driver gives up a connection on which it fails
		if err := fn(tx); err != nil {
			return err
		}
		return tx.Commit()
	})
}

var (
	conflict = map[Kind]bool{Retry: true}
	loss     = map[Kind]bool{Retry: true, Unavailable: true}
	// What an owner is told whose claim is somebody else's by now, or was settled by a call whose answer was lost.
	gone = map[Kind]bool{StaleClaim: true, NotClaimed: true, Held: true}
)

// Runs fn until it gets no error of these kinds, five times at most, with growing pauses that rivals do not share.
func again(ctx context.Context, kinds map[Kind]bool, fn func() error) error {
	for attempt := 1; ; attempt++ {
		err := fn()
		if attempt == 5 || !kinds[KindOf(err)] {
			return err
		}
		pause(ctx, 10*time.Millisecond+time.Duration(rand.Int63n(int64(40*time.Millisecond)<<attempt)))
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
