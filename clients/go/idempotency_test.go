// The client against a real database, that of PG*, by each driver and protocol: what goes wrong where such lines are written by hand.
// What needs two processes, a pooler or a lost answer is in ../conformance.
package idempotency_test

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	. "example.com/idempotency"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/stdlib"
	_ "github.com/lib/pq"
)

var ctx = context.Background()

type pool struct {
	name string
	*sql.DB
}

var pools []pool

func TestMain(m *testing.M) {
	for _, settings := range []string{"", "binary_parameters=yes"} {
		db, err := sql.Open("postgres", settings)
		must(err)
		pools = append(pools, pool{"pq " + settings, db})
	}
	for _, simple := range []bool{false, true} {
		config, err := pgx.ParseConfig("")
		must(err)
		config.PreferSimpleProtocol = simple
		pools = append(pools, pool{fmt.Sprintf("pgx simple=%v", simple), stdlib.OpenDB(*config)})
	}
	for _, db := range pools {
		db.SetMaxOpenConns(4)
	}
	_, err := pools[0].Exec(`CREATE EXTENSION IF NOT EXISTS idempotency;
		DROP SCHEMA IF EXISTS client_go CASCADE;
		CREATE SCHEMA client_go;
		CREATE TABLE client_go.work (key text PRIMARY KEY);
		CREATE FUNCTION client_go.conflict() RETURNS trigger LANGUAGE plpgsql AS $$
			BEGIN RAISE serialization_failure; END $$;
		CREATE CONSTRAINT TRIGGER conflict AFTER INSERT ON client_go.work DEFERRABLE INITIALLY DEFERRED
			FOR EACH ROW WHEN (NEW.key LIKE 'conflict%') EXECUTE FUNCTION client_go.conflict()`)
	must(err)
	status := m.Run()
	_, err = pools[0].Exec("DROP SCHEMA client_go CASCADE")
	must(err)
	os.Exit(status)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func expect(t *testing.T, ok bool, format string, values ...any) {
	t.Helper()
	if !ok {
		t.Fatalf(format, values...)
	}
}

var ids = time.Now().UnixNano()

func fresh() ID {
	ids++
	return ID{"go", "test", fmt.Sprint(ids)}
}

// Runs a test by each driver and protocol.
func each(t *testing.T, test func(t *testing.T, db *sql.DB)) {
	for _, db := range pools {
		t.Run(db.name, func(t *testing.T) { test(t, db.DB) })
	}
}

func body(text string) Options { return Options{Body: []byte(text)} }

var uncompared = Options{NoComparison: true}

// Claims with a lease, and without a comparison.
func begin(t *testing.T, db *sql.DB, id ID) *Record {
	t.Helper()
	claim, err := Claim(ctx, db, id, Options{NoComparison: true, Lease: time.Minute})
	expect(t, err == nil && claim.Outcome == Claimed && claim.Token > 0, "%v %v", err, claim)
	return claim
}

func do(db *sql.DB, id ID, request Options, answer *Answer) (claim *Record) {
	must(Transaction(ctx, db, func(tx *sql.Tx) (err error) {
		if claim, err = Claim(ctx, tx, id, request); err == nil && claim.Outcome == Claimed {
			_, err = Complete(ctx, tx, id, Options{Answer: answer})
		}
		return err
	}))
	return claim
}

func TestAnswersComeBackByteForByte(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		bodies := [][]byte{[]byte("{\"a\": 1.10}\r\n"), {}, nil, {0, 255, '"', '\\', 'x', 0x5c}, {255}, []byte("na\u00efve\x00"), []byte(`\x00`)}
		for _, given := range bodies {
			for _, kind := range []string{"application/json", "application/octet-stream"} {
				id := fresh()
				header := http.Header{"Content-Type": {kind}, "Link": {"</a>; rel=a", "</b>; rel=b"}, "Set-Cookie": {"a=b"}, "Date": {"now"}}
				do(db, id, body("{}"), &Answer{Status: 201, Header: header, Body: given})
				replay := do(db, id, body("{}"), nil)
				expect(t, replay.Outcome == Replayed, "%v", replay)
				answer := replay.Answer()
				expect(t, answer.Status == 201 && bytes.Equal(answer.Body, given), "%q came back as %q", given, answer.Body)
				expect(t, fmt.Sprint(answer.Header) == fmt.Sprint(http.Header{"Content-Type": {kind}, "Link": header["Link"]}), "%v", answer.Header)
			}
		}
	})
}

// pgx's simple protocol writes nil bytes as '\x', which is no NULL.
func TestNoBodyIsNULL(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		for _, answer := range []*Answer{{Status: 204}, {Status: 204, Body: []byte{}}, JSON(204, nil)} {
			id := fresh()
			do(db, id, uncompared, answer)
			var null bool
			must(db.QueryRow(`SELECT response_bytes IS NULL AND response_body IS NULL AND fingerprint IS NULL
				FROM idempotency.lookup($1::text, $2::text, $3::text)`, id.Scope, id.Operation, id.Key).Scan(&null))
			expect(t, null, "something was recorded where nothing was given")
		}
	})
}

func TestRequestThatWasForgotten(t *testing.T) {
	for name, call := range map[string]Verb[*Record]{"claim": Claim, "run": Run} {
		_, err := call(ctx, pools[0].DB, fresh(), Options{Lease: time.Minute, Command: "SELECT 1"})
		expect(t, err != nil && strings.Contains(err.Error(), "nil"), "%s: no request was taken for one: %v", name, err)
	}
	begin(t, pools[0].DB, fresh())
}

func TestComparison(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		id, value := fresh(), body(`{"n": 1, "a": "b"}`)
		do(db, id, value, &Answer{})
		expect(t, do(db, id, body(`{ "a": "b", "n": 1.0}`), nil).Outcome == Replayed, "another spelling is another request")
		value.Params = map[string]string{"id": "7"}
		expect(t, do(db, id, value, nil).Outcome == Mismatch, "path parameters do not count")
		var same bool
		must(db.QueryRow(`SELECT fingerprint = idempotency.fingerprint('{"n": 1, "a": "b"}')
			FROM idempotency.lookup($1::text, $2::text, $3::text)`, id.Scope, id.Operation, id.Key).Scan(&same))
		expect(t, same, "the request was encoded twice")
		// What jsonb refuses is compared by its bytes, and is no error.
		for _, text := range []string{`{"a": "\u0000"}`, `{"a": "\ud800"}`, `{"a": 1e200000}`, "\xff\x00", ""} {
			id := fresh()
			expect(t, do(db, id, body(text), &Answer{}).Outcome == Claimed, "%q", text)
			expect(t, do(db, id, body(text), nil).Outcome == Replayed, "%q", text)
			expect(t, do(db, id, body(text+" x"), nil).Outcome == Mismatch, "%q", text)
		}
	})
}

func TestErrorsAreToldApart(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		id := fresh()
		o := Options{NoComparison: true, Lease: time.Minute, State: map[string]any{"n": []int{1}}}
		claim, err := Claim(ctx, db, id, o)
		must(err)
		own, once := Options{Token: claim.Token}, Options{Token: claim.Token, Answer: &Answer{Status: 200}, RefuseRepeat: true}
		_, err = Extend(ctx, db, id, own)
		must(err)
		record, err := Lookup(ctx, db, id, Options{})
		expect(t, err == nil && record.Status == "in_progress" && string(record.State) == `{"n": [1]}`, "%v %v", err, record)
		_, err = Complete(ctx, db, id, Options{Token: claim.Token, Answer: &Answer{Status: 200, Body: make([]byte, 5<<20)}})
		expect(t, KindOf(err) == TooLarge, "%v", err)
		must(Transaction(ctx, db, func(tx *sql.Tx) error {
			_, err := Complete(ctx, tx, id, once)
			return err
		}))
		_, err = Complete(ctx, db, id, once)
		expect(t, KindOf(fmt.Errorf("wrapped: %w", err)) == StaleClaim && Reason(err) == "completed", "%v, reason %q", err, Reason(err))
		_, err = Complete(ctx, db, id, Options{Token: claim.Token, Answer: &Answer{Status: 201}})
		expect(t, KindOf(err) == OtherCompletion, "%v", err)
		_, err = Fail(ctx, db, fresh(), Options{Error: "never claimed"})
		expect(t, KindOf(err) == NotClaimed && Reason(err) == "", "%v", err)
		_, err = Claim(ctx, db, fresh(), uncompared)
		expect(t, KindOf(err) == LeftOpen, "a claim without a lease outside of a transaction: %v", err)
		_, err = Claim(ctx, db, fresh(), Options{NoComparison: true, Lease: -time.Second})
		expect(t, KindOf(err) == BadRequest, "%v", err)
		_, err = Claim(ctx, db, ID{}, Options{NoComparison: true, Lease: time.Minute})
		expect(t, err != nil && KindOf(err) == Other || KindOf(err) == BadRequest, "an empty identity: %v", err)
		_, err = Claim(ctx, db, fresh(), Options{NoComparison: true, Lease: time.Minute, Step: "of another call"})
		expect(t, KindOf(err) == Other, "an option of another call: %v", err)
		for _, given := range []error{context.Canceled, context.DeadlineExceeded, driver.ErrBadConn, io.EOF} { // by the client, by lib/pq
			expect(t, KindOf(fmt.Errorf("wrapped: %w", given)) == Unavailable, "%v is %s", given, KindOf(given))
		}
		expect(t, KindOf(nil) == Other && Reason(nil) == "" && Reason(errors.New("no server's")) == "", "no error has a kind")
		id = fresh()
		claim = begin(t, db, id)
		token, err := Hold(ctx, db, id, Options{Token: claim.Token, Reason: "nobody knows"})
		expect(t, err == nil && token == claim.Token, "%v", err)
		_, err = Fail(ctx, db, id, Options{Token: token, Error: "too late"})
		expect(t, KindOf(err) == Held, "%v", err)
		record, err = Lookup(ctx, db, id, Options{})
		expect(t, err == nil && record.Status == "held" && record.LastError == "nobody knows" && record.ExpiresAt.IsZero(), "%v %v", err, record)
		record, err = Replay(ctx, db, id, Options{})
		expect(t, record == nil && err == nil, "%v %v", err, record)
	})
}

func TestTheOtherCalls(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		id := fresh()
		for _, outcome := range []Kind{Claimed, Replayed} {
			record, err := Run(ctx, db, id, Options{NoComparison: true, Command: "INSERT INTO client_go.work SELECT $1->>'key' RETURNING key",
				Args: map[string]string{"key": id.Key}, Answer: &Answer{Status: 201, Header: http.Header{"X-A": {"b"}}}})
			must(err)
			expect(t, record.Outcome == outcome && record.ResponseBody == id.Key, "%v", record)
			answer := record.Answer()
			expect(t, answer.Status == 201 && answer.Header.Get("X-A") == "b" && string(answer.Body) == id.Key, "%v", answer)
		}
		id = fresh()
		for _, first := range []bool{true, false} {
			must(Transaction(ctx, db, func(tx *sql.Tx) error {
				was, err := Once(ctx, tx, id, Options{})
				expect(t, was == first, "%v", was)
				return err
			}))
		}
		id = fresh()
		done, err := RecordFailure(ctx, db, id, Options{Error: "out of stock", RetryIn: time.Minute})
		expect(t, done && err == nil, "%v", err)
		claim, err := Claim(ctx, db, id, Options{NoComparison: true, Lease: time.Minute, Wait: time.Millisecond, TTL: time.Hour, Note: "n",
			WaitFor: "any"})
		expect(t, err == nil && claim.Outcome == InProgress && claim.Rival == "retry" && claim.RetryAfterMS > 50000, "%v %v", err, claim)
		id = fresh()
		claim, err = Claim(ctx, db, id, Options{NoComparison: true, Lease: time.Minute, HoldIfAbandoned: true})
		must(err)
		_, err = Release(ctx, db, id, Options{Token: claim.Token})
		must(err)
		claim = begin(t, db, id)
		until, err := Checkpoint(ctx, db, id, Options{RecoveryPoint: "charged", Lease: time.Millisecond, Token: claim.Token,
			State: json.RawMessage(`{"b": 2}`)})
		expect(t, err == nil && !until.IsZero(), "%v", err)
		for found := false; !found; { // until the lease has lapsed
			claims, err := ClaimAbandoned(ctx, db, ID{Operation: id.Operation}, Options{Lease: time.Minute, MaxRows: 100})
			must(err)
			for _, claim := range claims {
				found = found || claim.ID == id && claim.RecoveryPoint == "charged" && string(claim.State) == `{"b": 2}` && claim.Attempt == 2
			}
		}
	})
}

// Whatever is in the tables is read exactly: tokens beyond 2^53, times, and what is NULL.
func TestRecordsAreReadExactly(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		id := fresh()
		var token int64
		var until time.Time
		must(db.QueryRow(`SELECT token, locked_until FROM idempotency.claim($1::text, $2::text, $3::text, lease => '1 h',
			note => 'retry_after_ms', state => '{"retry_after_ms": 9007199254740993}')`, id.Scope, id.Operation, id.Key).Scan(&token, &until))
		record, err := Lookup(ctx, db, id, Options{})
		must(err)
		expect(t, record.Token == token && token > 1<<50 && record.LockedUntil.Equal(until) && record.CompletedAt.IsZero(), "%v", record)
		expect(t, string(record.State) == `{"retry_after_ms": 9007199254740993}` && record.Note == "retry_after_ms", "%v", record)
		expect(t, record.ResponseBytes == nil && !record.CreatedAt.IsZero() && record.Attempt == 1, "%v", record)
	})
}

// Other languages record headers as an object, or as numbers.
func TestHeadersOfOthers(t *testing.T) {
	for _, headers := range []string{`{"x-n": 1000000, "Link": ["a", "b"]}`, `[["x-n", 1000000], ["Link", "a"], ["Link", "b"]]`} {
		id := fresh()
		must(Transaction(ctx, pools[0].DB, func(tx *sql.Tx) error {
			_, err := Claim(ctx, tx, id, uncompared)
			must(err)
			_, err = tx.Exec(`SELECT idempotency.complete($1, $2, $3, 200, response_headers => $4)`, id.Scope, id.Operation, id.Key, headers)
			return err
		}))
		record, err := Replay(ctx, pools[0].DB, id, Options{})
		must(err)
		expect(t, fmt.Sprint(record.Answer().Header) == "map[Link:[a b] X-N:[1000000]]", "%v", record.Answer().Header)
	}
}

// What cannot be read as bytes is an error, and never another body.
func TestByteaOutput(t *testing.T) {
	for _, body := range []string{"abcd", "\x00", "null"} {
		id := fresh()
		do(pools[0].DB, id, uncompared, &Answer{Status: 200, Body: []byte(body)})
		tx, err := pools[0].Begin()
		must(err)
		defer tx.Rollback()
		_, err = tx.Exec("SET LOCAL bytea_output = 'escape'")
		must(err)
		record, err := Replay(ctx, tx, id, Options{})
		expect(t, err != nil, "%q came as %v", body, record)
	}
}

func TestLostConnection(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		for _, when := range []string{"query", "query, swallowed", "COMMIT"} {
			err := Transaction(ctx, db, func(tx *sql.Tx) error {
				var pid int
				must(tx.QueryRow("SELECT pg_backend_pid()").Scan(&pid))
				_, err := pools[0].Exec("SELECT pg_terminate_backend($1, 60000)", pid)
				must(err)
				if when != "COMMIT" {
					_, err = Claim(ctx, tx, fresh(), uncompared)
				}
				if when == "query, swallowed" {
					return nil
				}
				return err
			})
			expect(t, KindOf(err) == Unavailable, "lost at %s: %v is %s", when, err, KindOf(err))
		}
		must(db.Ping()) // by another connection
	})
	nobody, err := sql.Open("postgres", "host=127.0.0.1 port=1 sslmode=disable")
	must(err)
	_, err = Claim(ctx, nobody, fresh(), Options{NoComparison: true, Lease: time.Minute})
	expect(t, KindOf(err) == Unavailable, "%v", err)
}

// COMMIT of a transaction that has failed succeeds, and has rolled back.
func TestSwallowedError(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		err := Transaction(ctx, db, func(tx *sql.Tx) error {
			tx.Exec("SELECT 1/0")
			return nil
		})
		expect(t, err != nil, "the transaction was rolled back, and nobody was told")
	})
}

// ---- work that leaves the database ----

func leased(db *sql.DB, id ID, lease time.Duration, work Work) (*Record, *Answer, error) {
	return RunLeased(ctx, db, id, Options{NoComparison: true, Lease: lease, Step: "charge", State: map[string]int{"n": 1}}, work)
}

func TestLeasedByWhatIsKnown(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		id := fresh()
		claim, answer, err := leased(db, id, time.Minute, func(context.Context, *Record) (*Answer, error) {
			return nil, fmt.Errorf("not reached: %w", ErrNothingHappened)
		})
		expect(t, err == nil && answer == nil && claim.Outcome == Failed, "%v %v", err, claim)
		claim, answer, err = leased(db, id, time.Minute, func(_ context.Context, claim *Record) (*Answer, error) {
			key, err := EffectKey(ctx, db, id, Options{Step: "charge"})
			expect(t, err == nil && key == claim.EffectKey && claim.Attempt == 2 && string(claim.State) == `{"n": 1}`, "%v %v", err, claim)
			answer := JSON(201, map[string]int{"a": 1})
			answer.Book = func(ctx context.Context, tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, "INSERT INTO client_go.work VALUES ($1::text)", id.Key)
				return err
			}
			return answer, nil
		})
		expect(t, err == nil && claim.Outcome == Claimed && answer.Status == 201, "%v %v", err, claim)
		var rows int
		must(db.QueryRow("SELECT count(*) FROM client_go.work WHERE key = $1::text", id.Key).Scan(&rows))
		expect(t, rows == 1, "not booked")
		claim, _, err = leased(db, id, time.Minute, nil)
		expect(t, err == nil && claim.Outcome == Replayed && claim.ResponseBody == `{"a":1}`, "%v %v", err, claim)

		booked := func(err error) Work {
			return func(context.Context, *Record) (*Answer, error) {
				return &Answer{Status: 200, Book: func(context.Context, *sql.Tx) error { return err }}, nil
			}
		}
		for what, work := range map[string]Work{
			"error":     func(context.Context, *Record) (*Answer, error) { return nil, errors.New("time-out") },
			"panic":     func(context.Context, *Record) (*Answer, error) { panic("a fault") },
			"no answer": func(context.Context, *Record) (*Answer, error) { return nil, nil },
			"bad book": func(context.Context, *Record) (*Answer, error) {
				return &Answer{Status: 200, Book: func(context.Context, *sql.Tx) error { panic("a fault") }}, nil
			},
			"no record":  booked(errors.New("it happened and cannot be booked")),
			"no text":    func(context.Context, *Record) (*Answer, error) { return nil, errors.New("a\x00b\xff") },
			"large text": func(context.Context, *Record) (*Answer, error) { return nil, errors.New(strings.Repeat("x", 5<<20)) },
		} {
			id := fresh()
			claim, _, err := leased(db, id, time.Minute, work)
			expect(t, claim.Outcome == Held && (err != nil) == (what == "no record"), "%s: %v %v", what, err, claim)
			record, err := Lookup(ctx, db, id, Options{})
			expect(t, err == nil && record.Status == "held" && record.LastError != "", "%s: %v %v", what, err, record)
			expect(t, what != "no answer" || strings.Contains(record.LastError, what), "%s: %v", what, record)
		}
	})
}

func TestHeartbeat(t *testing.T) {
	db, id := pools[0].DB, fresh()
	renewed := func() time.Time {
		record, err := Lookup(ctx, db, id, Options{})
		must(err)
		return record.LockedUntil.Time
	}
	_, _, err := leased(db, id, 2*time.Second, func(working context.Context, claim *Record) (*Answer, error) {
		for before := renewed(); !renewed().After(before); {
			time.Sleep(10 * time.Millisecond)
		}
		_, err := db.Exec("SELECT idempotency.forget($1, $2, $3, force => true)", id.Scope, id.Operation, id.Key)
		must(err)
		<-working.Done() // the test hangs if the work is not stopped
		return nil, working.Err()
	})
	expect(t, KindOf(err) == StaleClaim || KindOf(err) == NotClaimed, "%v", err)
}

func TestCompleter(t *testing.T) {
	db, id := pools[0].DB, fresh()
	id.Operation = "completed " + id.Key
	_, err := Claim(ctx, db, id, Options{NoComparison: true, Lease: time.Millisecond, State: map[string]int{"n": 5}})
	must(err)
	until, stop := context.WithCancel(ctx)
	done := make(chan string, 1)
	Completer(until, db, id.Operation, Options{}, func(_ context.Context, claim *Record) (*Answer, error) {
		expect(t, claim.LockedUntil.Sub(claim.CreatedAt.Time) > 50*time.Second, "the lease is still that of the dead: %v", claim)
		done <- string(claim.State)
		stop() // and what was begun is finished
		return &Answer{Status: 200}, nil
	}, func(err error) { t.Error(err) })
	expect(t, <-done == `{"n": 5}`, "another state")
	record, err := Replay(ctx, db, id, Options{})
	expect(t, err == nil && record.ResponseStatus == 200, "%v %v", err, record)
}

// ---- HTTP ----

func TestParseKey(t *testing.T) {
	for line, want := range map[string]string{
		`k`: "k", `"k"`: "k", ` "k" `: "k", `"k";p=1`: "k", `"k"; p="x;\"y"; q`: "k",
		`"a\"b\\"`: `a"b\`, `"a, b"`: "a, b", `a/b:c=`: "a/b:c=",
		`8e03978e-40d5-43dd-bc93-6894a57f9324`: "8e03978e-40d5-43dd-bc93-6894a57f9324",
		`"` + strings.Repeat("x", 255) + `"`:   strings.Repeat("x", 255),
		"":                                     "", `""`: "", `"k`: "", `"k"x`: "", `"a\n"`: "", `k, l`: "", `"k", "l"`: "",
		`"ü"`: "", "ü": "", `"k";=1`: "", "a b": "", "\"\x01\"": "",
		strings.Repeat("x", 256): "", `"` + strings.Repeat("x", 256) + `"`: "",
	} {
		key := ParseKey([]string{line})
		expect(t, key == want, "%s is %q", line, key)
	}
	expect(t, ParseKey([]string{"k", "k"}) == "" && ParseKey([]string{`"k`, `k"`}) == "" && ParseKey(nil) == "", "not one line")
}

func send(handler http.Handler, method, path, key, body string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(method, path, strings.NewReader(body))
	if key != "" {
		request.Header.Set("Idempotency-Key", key)
	}
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, request)
	return recorder
}

func account(*http.Request) string { return "go" }

func TestWrapped(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		runs := 0
		handler := New(db, account).Once("POST /wrapped", Options{}, Wrapped(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			runs++
			_, err := Tx(r).Exec("INSERT INTO client_go.work VALUES ($1::text)", fmt.Sprint(fresh().Key))
			must(err)
			w.Header().Set("X-Run", fmt.Sprint(runs))
			if runs == 1 {
				w.WriteHeader(http.StatusServiceUnavailable)
			} else {
				w.WriteHeader(http.StatusCreated)
			}
			fmt.Fprintf(w, "run %d", runs)
		})))
		key := fresh().Key
		for _, wanted := range []string{"503 run 1 ", "201 run 2 ", "201 run 2 true"} {
			answer := send(handler, "POST", "/wrapped", key, "")
			got := fmt.Sprint(answer.Code, " ", answer.Body.String(), " ", answer.Header().Get("Idempotent-Replayed"))
			expect(t, got == wanted, "%s instead of %s", got, wanted)
		}
		answer := send(handler, "POST", "/wrapped", key, "")
		expect(t, answer.Header().Get("X-Run") == "2" && answer.Header().Get("Content-Type") == "text/plain; charset=utf-8", "%v", answer.Header())
	})
}

func TestMiddleware(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		api := New(db, account)
		api.LifetimeHeader, api.MaxBody = true, 100
		runs := 0
		handler := api.Once("POST /work/{id}", Options{}, func(tx *sql.Tx, r *http.Request) (*Answer, error) {
			runs++
			text, err := io.ReadAll(r.Body)
			must(err)
			if _, err := tx.Exec("INSERT INTO client_go.work VALUES ($1::text)", string(text)); err != nil {
				return nil, err
			}
			if strings.HasPrefix(string(text), "panic") {
				panic(http.ErrAbortHandler)
			}
			return &Answer{Header: http.Header{"X-Run": {fmt.Sprint(runs)}}, Body: append([]byte("done "), text...)}, nil
		})
		key := fresh().Key
		first := send(handler, "POST", "/work/1", key, key)
		expect(t, first.Code == 200 && first.Body.String() == "done "+key, "%v", first)
		again := send(handler, "POST", "/work/1", `"`+key+`"`, key)
		expect(t, again.Body.String() == first.Body.String() && again.Header().Get("Idempotent-Replayed") == "true" && runs == 1, "%v", again)
		expect(t, again.Header().Get("X-Run") == "1", "%v", again.Header())
		expires := first.Header().Get("Idempotency-Key-Expires")
		expect(t, expires != "" && again.Header().Get("Idempotency-Key-Expires") == expires, "%v", again.Header())
		expect(t, send(handler, "POST", "/work/2", key, key).Code == 422, "another path parameter")
		expect(t, send(handler, "GET", "/work/1", fresh().Key, "got").Code == 405 && runs == 1, "another method is another operation")
		missing := send(handler, "POST", "/work/1", "", key)
		expect(t, missing.Code == 400 && strings.Contains(missing.Header().Get("Link"), `rel="describedby"`), "%v", missing)
		expect(t, strings.Contains(missing.Body.String(), "#missing"), "%v", missing)
		malformed := send(handler, "POST", "/work/1", `"k`, key)
		expect(t, malformed.Code == 400 && strings.Contains(malformed.Body.String(), "#malformed"), "%v", malformed)
		expect(t, send(handler, "POST", "/work/1", key, strings.Repeat("x", 101)).Code == 413, "a large body")

		// The answer of a handler whose COMMIT fails is never sent; a serialization failure runs it again.
		runs = 0
		conflict := send(handler, "POST", "/work/1", fresh().Key, "conflict")
		expect(t, conflict.Code == 503 && conflict.Header().Get("Retry-After") == "1" && conflict.Header().Get("X-Run") == "", "%v", conflict)
		expect(t, runs == 5, "%d runs", runs)
		// An answer of 500 and more, and one that is returned as an error, are sent, undo everything, and are not recorded.
		for _, given := range []*Answer{JSON(503, "busy"), JSON(404, "no such order"), nil} {
			id := fresh()
			handler := api.Once("POST /undone", Options{}, func(tx *sql.Tx, _ *http.Request) (*Answer, error) {
				_, err := tx.Exec("INSERT INTO client_go.work VALUES ($1::text)", id.Key)
				must(err)
				if given != nil && given.Status == 404 {
					return nil, fmt.Errorf("wrapped: %w", given)
				}
				return given, nil
			})
			for i := 0; i < 2; i++ { // the second would be a replay, or fail, if anything were left of the first
				answer := send(handler, "POST", "/undone", id.Key, "")
				expect(t, given == nil && answer.Code == 500 || answer.Code == given.Status, "%v", answer)
				expect(t, answer.Header().Get("Idempotent-Replayed") == "", "%v", answer)
			}
		}
		// An error that is returned undoes everything.
		duplicate := send(handler, "POST", "/work/1", fresh().Key, key)
		expect(t, duplicate.Code == 500 && duplicate.Header().Get("X-Run") == "", "%v", duplicate)
		// So does a panic, which goes on to whoever hears it.
		func() {
			defer func() { expect(t, recover() == http.ErrAbortHandler, "the panic was lost") }()
			send(handler, "POST", "/work/1", "panic"+key, "panic"+key)
		}()
		var rows int
		must(db.QueryRow("SELECT count(*) FROM client_go.work WHERE key IN ('conflict', 'got', $1::text)", "panic"+key).Scan(&rows))
		record, err := Lookup(ctx, db, ID{"go", "POST /work/{id}", "panic" + key}, Options{})
		expect(t, rows == 0 && record == nil && err == nil, "%d rows, %v, %v", rows, record, err)
		// Without a key, where none is required, the handler has a transaction and no claim.
		api.Optional = true
		handler = api.Once("POST /optional", Options{}, func(tx *sql.Tx, _ *http.Request) (*Answer, error) {
			_, err := tx.Exec("INSERT INTO client_go.work VALUES ('optional')")
			return JSON(500, "undone"), err
		})
		for i := 0; i < 2; i++ {
			expect(t, send(handler, "POST", "/optional", "", "").Code == 500, "not run, or not undone")
		}
	})
}

// A route whose work leaves the database, and what is answered where there is nothing to replay.
func TestLeasedRoute(t *testing.T) {
	api, path := New(pools[0].DB, account), "/leased/"+fresh().Key
	api.LifetimeHeader, api.Optional = true, true
	works := map[string]Work{
		"done":    func(context.Context, *Record) (*Answer, error) { return JSON(201, 1), nil },
		"nothing": func(context.Context, *Record) (*Answer, error) { return nil, ErrNothingHappened },
		"unknown": func(context.Context, *Record) (*Answer, error) { return nil, errors.New("time-out") },
	}
	handler := api.Leased("POST "+path, Options{Lease: time.Minute}, func(r *http.Request) (any, error) {
		if r.Header.Get("Idempotency-Key") == "refused" {
			return nil, JSON(402, "no")
		}
		return 7, nil
	}, func(working context.Context, claim *Record) (*Answer, error) {
		expect(t, string(claim.State) == "7", "%s", claim.State)
		return works[claim.Key](working, claim)
	})
	first, second := send(handler, "POST", path, "done", ""), send(handler, "POST", path, "done", "")
	expires := first.Header().Get("Idempotency-Key-Expires")
	expect(t, first.Code == 201 && expires != "" && expires == second.Header().Get("Idempotency-Key-Expires"), "%v", first)
	expect(t, second.Code == 201 && second.Header().Get("Idempotent-Replayed") == "true", "%v", second)
	nothing, unknown := send(handler, "POST", path, "nothing", ""), send(handler, "POST", path, "unknown", "")
	expect(t, nothing.Code == 503 && nothing.Header().Get("Retry-After") == "1", "%v", nothing)
	expect(t, unknown.Code == 409 && strings.Contains(unknown.Body.String(), "#held"), "%v", unknown)
	expect(t, unknown.Header().Get("Retry-After") == "", "%v", unknown)
	expect(t, send(handler, "POST", path, "refused", "").Code == 402, "the state could not be made")
	expect(t, send(handler, "POST", path, "", "").Code == 400, "a key is needed, whatever Optional says")
}

// Of a pool of 4 two may wait, the others are told at once.
func TestCapOnWaiters(t *testing.T) {
	db, id := pools[1].DB, fresh()
	entered, leave := make(chan bool), make(chan bool)
	handler := New(db, account).Once("POST /wait", Options{Wait: 30 * time.Second}, func(*sql.Tx, *http.Request) (*Answer, error) {
		entered <- true
		<-leave
		return &Answer{}, nil
	})
	answers := make(chan int)
	post := func() { answers <- send(handler, "POST", "/wait", id.Key, "").Code }
	go post()
	<-entered
	for i := 0; i < 12; i++ {
		go post()
	}
	for i := 0; i < 10; i++ {
		code := <-answers
		expect(t, code == 409, "%d before the first has ended", code)
	}
	must(db.Ping())
	leave <- true
	for i := 0; i < 3; i++ {
		code := <-answers
		expect(t, code == 200, "%d of those that waited", code)
	}
}
