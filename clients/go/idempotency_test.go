// The client against a real database, that of PG*, by each driver and protocol: what goes wrong where such lines are written by hand.
// What needs two processes, a pooler or a lost answer is in ../conformance.
package idempotency_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
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

func do(db *sql.DB, id ID, request Request, answer *Answer) (claim *Record) {
	must(Transaction(ctx, db, func(tx *sql.Tx) (err error) {
		if claim, err = Claim(ctx, tx, id, request); err == nil && claim.Outcome == Claimed {
			_, err = Complete(ctx, tx, id, answer)
		}
		return err
	}))
	return claim
}

func TestAnswersComeBackByteForByte(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		bodies := [][]byte{[]byte("{\"a\": 1.10}\r\n"), {}, nil, {0, 255, '"', '\\', 'x', 0x5c}, []byte("na\u00efve\x00"), []byte(`\x00`)}
		for _, body := range bodies {
			for _, kind := range []string{"application/json", "application/octet-stream"} {
				id := fresh()
				header := http.Header{"Content-Type": {kind}, "Link": {"</a>; rel=a", "</b>; rel=b"}, "Set-Cookie": {"a=b"}, "Date": {"now"}}
				do(db, id, Body([]byte("{}")), &Answer{Status: 201, Header: header, Body: body})
				replay := do(db, id, Body([]byte("{}")), nil)
				expect(t, replay.Outcome == Replayed, "%v", replay)
				answer := replay.Answer()
				expect(t, answer.Status == 201 && bytes.Equal(answer.Body, body), "%q came back as %q", body, answer.Body)
				expect(t, fmt.Sprint(answer.Header) == fmt.Sprint(http.Header{"Content-Type": {kind}, "Link": header["Link"]}), "%v", answer.Header)
			}
		}
	})
}

// pgx's simple protocol writes nil bytes as '\x', which is no NULL.
func TestNoBodyIsNULL(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		id := fresh()
		do(db, id, NoComparison, &Answer{Status: 204})
		var null bool
		must(db.QueryRow(`SELECT response_bytes IS NULL AND response_body IS NULL AND fingerprint IS NULL
			FROM idempotency.lookup($1::text, $2::text, $3::text)`, id.Scope, id.Operation, id.Key).Scan(&null))
		expect(t, null, "something was recorded where nothing was given")
	})
}

func TestRequestThatWasForgotten(t *testing.T) {
	_, err := Claim(ctx, pools[0].DB, fresh(), Body(nil), Lease(time.Minute))
	expect(t, err != nil, "nil was taken for a request")
	_, err = Claim(ctx, pools[0].DB, fresh(), Request{}, Lease(time.Minute))
	expect(t, err != nil, "no request was taken for one")
	claim, err := Claim(ctx, pools[0].DB, fresh(), NoComparison, Lease(time.Minute))
	expect(t, err == nil && claim.Outcome == Claimed && claim.Token > 0, "%v", err)
}

func TestComparison(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		id, value := fresh(), Body([]byte(`{"n": 1, "a": "b"}`))
		do(db, id, value, &Answer{})
		expect(t, do(db, id, Body([]byte(`{ "a": "b", "n": 1.0}`)), nil).Outcome == Replayed, "another spelling is another request")
		expect(t, do(db, id, value.With(map[string]string{"id": "7"}), nil).Outcome == Mismatch, "path parameters do not count")
		var same bool
		must(db.QueryRow(`SELECT fingerprint = idempotency.fingerprint('{"n": 1, "a": "b"}')
			FROM idempotency.lookup($1::text, $2::text, $3::text)`, id.Scope, id.Operation, id.Key).Scan(&same))
		expect(t, same, "the request was encoded twice")
		// What jsonb refuses is compared by its bytes, and is no error.
		for _, body := range []string{`{"a": "\u0000"}`, `{"a": "\ud800"}`, `{"a": 1e200000}`, "\xff\x00", ""} {
			id, request := fresh(), Body([]byte(body))
			expect(t, do(db, id, request, &Answer{}).Outcome == Claimed, "%q", body)
			expect(t, do(db, id, request, nil).Outcome == Replayed, "%q", body)
			expect(t, do(db, id, Body([]byte(body+" x")), nil).Outcome == Mismatch, "%q", body)
		}
	})
}

func TestErrorsAreToldApart(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		id := fresh()
		claim, err := Claim(ctx, db, id, NoComparison, Lease(time.Minute), State(json.RawMessage(`{"n": [1]}`)))
		must(err)
		_, err = Extend(ctx, db, id, Token(claim.Token))
		must(err)
		record, err := Lookup(ctx, db, id)
		expect(t, err == nil && record.Status == "in_progress" && string(record.State) == `{"n": [1]}`, "%v %v", err, record)
		_, err = Complete(ctx, db, id, &Answer{Status: 200, Body: make([]byte, 5<<20)}, Token(claim.Token))
		expect(t, KindOf(err) == TooLarge, "%v", err)
		must(Transaction(ctx, db, func(tx *sql.Tx) error {
			_, err := Complete(ctx, tx, id, &Answer{Status: 200}, Token(claim.Token), RefuseRepeat())
			return err
		}))
		_, err = Complete(ctx, db, id, &Answer{Status: 200}, Token(claim.Token), RefuseRepeat())
		expect(t, KindOf(fmt.Errorf("wrapped: %w", err)) == StaleClaim && Reason(err) == "completed", "%v, reason %q", err, Reason(err))
		_, err = Complete(ctx, db, id, &Answer{Status: 201}, Token(claim.Token))
		expect(t, KindOf(err) == OtherCompletion, "%v", err)
		err = Fail(ctx, db, fresh(), "never claimed")
		expect(t, KindOf(err) == NotClaimed, "%v", err)
		_, err = Claim(ctx, db, fresh(), NoComparison)
		expect(t, KindOf(err) == LeftOpen, "a claim without a lease outside of a transaction: %v", err)
		_, err = Claim(ctx, db, fresh(), NoComparison, Lease(-time.Second))
		expect(t, KindOf(err) == BadRequest, "%v", err)
		id = fresh()
		claim, err = Claim(ctx, db, id, NoComparison, Lease(time.Minute))
		must(err)
		token, err := Hold(ctx, db, id, "nobody knows", Token(claim.Token))
		expect(t, err == nil && token == claim.Token, "%v", err)
		err = Fail(ctx, db, id, "too late", Token(token))
		expect(t, KindOf(err) == IsHeld, "%v", err)
		record, err = Lookup(ctx, db, id)
		expect(t, err == nil && record.Status == "held" && record.LastError == "nobody knows", "%v %v", err, record)
		record, err = Replay(ctx, db, id)
		expect(t, record == nil && err == nil, "%v %v", err, record)
	})
}

func TestTheOtherCalls(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		id := fresh()
		for _, outcome := range []Outcome{Claimed, Replayed} {
			record, err := Run(ctx, db, id, NoComparison, "INSERT INTO client_go.work SELECT $1->>'key' RETURNING key",
				Args(json.RawMessage(`{"key": "`+id.Key+`"}`)))
			must(err)
			expect(t, record.Outcome == outcome && record.ResponseBody == id.Key, "%v", record)
		}
		id = fresh()
		for _, first := range []bool{true, false} {
			must(Transaction(ctx, db, func(tx *sql.Tx) error {
				was, err := Once(ctx, tx, id)
				expect(t, was == first, "%v", was)
				return err
			}))
		}
		id = fresh()
		done, err := RecordFailure(ctx, db, id, "out of stock", RetryIn(time.Minute))
		expect(t, done && err == nil, "%v", err)
		claim, err := Claim(ctx, db, id, NoComparison, Lease(time.Minute), Wait(time.Millisecond), TTL(time.Hour), Note("n"), WaitFor("any"))
		expect(t, err == nil && claim.Outcome == InProgress && claim.Rival == "retry" && claim.RetryAfterMS > 50000, "%v %v", err, claim)
		id = fresh()
		claim, err = Claim(ctx, db, id, NoComparison, Lease(time.Minute), HoldIfAbandoned())
		must(err)
		must(Release(ctx, db, id, Token(claim.Token)))
		claim, err = Claim(ctx, db, id, NoComparison, Lease(time.Minute))
		must(err)
		until, err := Checkpoint(ctx, db, id, "charged", Lease(time.Millisecond), Token(claim.Token), State(json.RawMessage(`{"b": 2}`)))
		expect(t, err == nil && !until.IsZero(), "%v", err)
		for found := false; !found; { // until the lease has lapsed
			claims, err := ClaimAbandoned(ctx, db, id.Operation, 100, Lease(time.Minute))
			must(err)
			for _, claim := range claims {
				found = found || claim.ID == id && claim.RecoveryPoint == "charged" && string(claim.State) == `{"b": 2}` && claim.Attempt == 2
			}
		}
	})
}

// Other languages record headers as an object, or as numbers.
func TestHeadersOfOthers(t *testing.T) {
	id := fresh()
	must(Transaction(ctx, pools[0].DB, func(tx *sql.Tx) error {
		_, err := Claim(ctx, tx, id, NoComparison)
		must(err)
		_, err = tx.Exec(`SELECT idempotency.complete($1, $2, $3, 200, response_headers => '{"x-n": 1000000, "Link": ["a", "b"]}')`,
			id.Scope, id.Operation, id.Key)
		return err
	}))
	record, err := Replay(ctx, pools[0].DB, id)
	must(err)
	expect(t, fmt.Sprint(record.Answer().Header) == "map[Link:[a b] X-N:[1000000]]", "%v", record.Answer().Header)
}

// What cannot be read as bytes is an error, and never another body.
func TestByteaOutput(t *testing.T) {
	id := fresh()
	do(pools[0].DB, id, NoComparison, &Answer{Status: 200, Body: []byte("abcd")})
	tx, err := pools[0].Begin()
	must(err)
	defer tx.Rollback()
	_, err = tx.Exec("SET LOCAL bytea_output = 'escape'")
	must(err)
	_, err = Replay(ctx, tx, id)
	expect(t, err != nil && strings.Contains(err.Error(), "bytea_output"), "%v", err)
}

func TestLostConnection(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		for _, when := range []string{"query", "COMMIT"} {
			err := Transaction(ctx, db, func(tx *sql.Tx) error {
				var pid int
				must(tx.QueryRow("SELECT pg_backend_pid()").Scan(&pid))
				_, err := pools[0].Exec("SELECT pg_terminate_backend($1, 60000)", pid)
				must(err)
				if when == "query" {
					_, err = Claim(ctx, tx, fresh(), NoComparison)
				}
				return err
			})
			expect(t, KindOf(err) == Unavailable, "lost at %s: %v is %s", when, err, KindOf(err))
		}
		must(db.Ping()) // by another connection
	})
	nobody, err := sql.Open("postgres", "host=127.0.0.1 port=1 sslmode=disable")
	must(err)
	_, err = Claim(ctx, nobody, fresh(), NoComparison, Lease(time.Minute))
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

func leased(db *sql.DB, id ID, lease time.Duration, do func(context.Context, *Record) (*Answer, error)) (*Record, *Answer, error) {
	return RunLeased(ctx, db, id, NoComparison, map[string]int{"n": 1}, Job{Lease: lease, Step: "charge", Do: do})
}

func TestLeasedByWhatIsKnown(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		id := fresh()
		claim, answer, err := leased(db, id, time.Minute, func(context.Context, *Record) (*Answer, error) {
			return nil, fmt.Errorf("not reached: %w", ErrNothingHappened)
		})
		expect(t, err == nil && answer == nil && claim.Outcome == Failed, "%v %v", err, claim)
		claim, answer, err = leased(db, id, time.Minute, func(_ context.Context, claim *Record) (*Answer, error) {
			key, err := EffectKey(ctx, db, id, "charge")
			expect(t, err == nil && key == claim.EffectKey && claim.Attempt == 2 && string(claim.State) == `{"n": 1}`, "%v %v", err, claim)
			answer := JSONAnswer(201, map[string]int{"a": 1})
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

		booked := func(err error) func(context.Context, *Record) (*Answer, error) {
			return func(context.Context, *Record) (*Answer, error) {
				return &Answer{Status: 200, Book: func(context.Context, *sql.Tx) error { return err }}, nil
			}
		}
		for what, work := range map[string]func(context.Context, *Record) (*Answer, error){
			"error":     func(context.Context, *Record) (*Answer, error) { return nil, errors.New("time-out") },
			"panic":     func(context.Context, *Record) (*Answer, error) { panic("a fault") },
			"no answer": func(context.Context, *Record) (*Answer, error) { return nil, nil },
			"bad book": func(context.Context, *Record) (*Answer, error) {
				return &Answer{Status: 200, Book: func(context.Context, *sql.Tx) error { panic("a fault") }}, nil
			},
			"no record": booked(errors.New("it happened and cannot be booked")),
		} {
			id := fresh()
			claim, _, err := leased(db, id, time.Minute, work)
			expect(t, claim.Outcome == Held && (err != nil) == (what == "no record" || what == "bad book"), "%s: %v %v", what, err, claim)
			record, err := Lookup(ctx, db, id)
			expect(t, err == nil && record.Status == "held" && record.LastError != "", "%s: %v %v", what, err, record)
		}
	})
}

func TestHeartbeat(t *testing.T) {
	db, id := pools[0].DB, fresh()
	renewed := func() time.Time {
		record, err := Lookup(ctx, db, id)
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
	_, err := Claim(ctx, db, id, NoComparison, Lease(time.Millisecond), State(json.RawMessage(`{"n": 5}`)))
	must(err)
	until, stop := context.WithCancel(ctx)
	done := make(chan string, 1)
	Completer(until, db, id.Operation, Job{Lease: time.Minute, Do: func(_ context.Context, claim *Record) (*Answer, error) {
		done <- string(claim.State)
		stop() // and what was begun is finished
		return &Answer{Status: 200}, nil
	}}, func(err error) { t.Error(err) })
	expect(t, <-done == `{"n": 5}`, "another state")
	record, err := Replay(ctx, db, id)
	expect(t, err == nil && record.ResponseStatus == 200, "%v %v", err, record)
}

// ---- HTTP ----

func TestParseKey(t *testing.T) {
	for line, want := range map[string]string{
		`k`: "k", `"k"`: "k", ` "k" `: "k", `"k";p=1`: "k", `"k"; p="x;\"y"; q`: "k",
		`"a\"b\\"`: `a"b\`, `"a, b"`: "a, b", `a/b:c=`: "a/b:c=",
		`8e03978e-40d5-43dd-bc93-6894a57f9324`: "8e03978e-40d5-43dd-bc93-6894a57f9324", `"` + strings.Repeat("x", 255) + `"`: strings.Repeat("x", 255),
		"": "", `""`: "", `"k`: "", `"k"x`: "", `"a\n"`: "", `k, l`: "", `"k", "l"`: "",
		`"ü"`: "", "ü": "", `"k";=1`: "", "a b": "", "\"\x01\"": "",
		strings.Repeat("x", 256): "",
	} {
		key, problem := ParseKey([]string{line})
		expect(t, key == want && (problem == "malformed") == (want == ""), "%s is %q, %s", line, key, problem)
	}
	_, problem := ParseKey([]string{"k", "k"})
	expect(t, problem == "malformed", "two lines: %s", problem)
	_, problem = ParseKey(nil)
	expect(t, problem == "missing", "no line: %s", problem)
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

func TestMiddleware(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		api := &API{DB: db, Scope: func(*http.Request) string { return "go" }, LifetimeHeader: true, MaxBody: 100}
		runs := 0
		handler := api.Once("/work/{id}")(HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
			runs++
			if Tx(r.Context()) == nil {
				w.WriteHeader(http.StatusTeapot)
				return nil
			}
			var body bytes.Buffer
			body.ReadFrom(r.Body)
			w.Header().Add("X-Run", fmt.Sprint(runs))
			_, err := Tx(r.Context()).Exec("INSERT INTO client_go.work VALUES ($1::text)", body.String())
			if err == nil && strings.HasPrefix(body.String(), "panic") {
				panic(http.ErrAbortHandler)
			}
			fmt.Fprint(w, "done ", body.String())
			return err
		}))
		key := fresh().Key
		first := send(handler, "POST", "/work/1", key, key)
		expect(t, first.Code == 200 && first.Body.String() == "done "+key, "%v", first)
		again := send(handler, "POST", "/work/1", `"`+key+`"`, key)
		expect(t, again.Body.String() == first.Body.String() && again.Header().Get("Idempotent-Replayed") == "true" && runs == 1, "%v", again)
		expect(t, again.Header().Get("X-Run") == "1" && again.Header().Get("Content-Type") == first.Header().Get("Content-Type"), "%v", again.Header())
		expires := first.Header().Get("Idempotency-Key-Expires")
		expect(t, expires != "" && again.Header().Get("Idempotency-Key-Expires") == expires, "%v", again.Header())
		expect(t, send(handler, "POST", "/work/2", key, key).Code == 422, "another path parameter")
		expect(t, send(handler, "GET", "/work/1", key, key).Code == http.StatusTeapot, "GET was touched")
		missing := send(handler, "POST", "/work/1", "", key)
		expect(t, missing.Code == 400 && strings.Contains(missing.Header().Get("Link"), `rel="describedby"`), "%v", missing)
		expect(t, send(handler, "POST", "/work/1", key, strings.Repeat("x", 101)).Code == 413, "a large body")

		// The answer of a handler whose COMMIT fails is never sent; a serialization failure runs it again.
		runs = 0
		conflict := send(handler, "POST", "/work/1", fresh().Key, "conflict")
		expect(t, conflict.Code == 503 && conflict.Header().Get("Retry-After") == "1" && conflict.Header().Get("X-Run") == "", "%v", conflict)
		expect(t, runs == 5, "%d runs", runs)
		expect(t, first.Header().Get("Content-Type") == "text/plain; charset=utf-8", "%v", first.Header())
		// An answer of 500 and more, and one that is returned as an error, are sent, undo everything, and are not recorded.
		for _, given := range []*Answer{JSONAnswer(503, "busy"), JSONAnswer(404, "no such order")} {
			id := fresh()
			handler := api.Once("/undone")(HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
				_, err := Tx(r.Context()).Exec("INSERT INTO client_go.work VALUES ($1::text)", id.Key)
				must(err)
				if given.Status == 404 {
					return fmt.Errorf("wrapped: %w", given)
				}
				given.ServeHTTP(w, r)
				return nil
			}))
			for i := 0; i < 2; i++ { // the second would be a replay, or fail, if anything were left of the first
				answer := send(handler, "POST", "/undone", id.Key, "")
				expect(t, answer.Code == given.Status && answer.Header().Get("Idempotent-Replayed") == "", "%v", answer)
			}
		}
		// An error that is returned undoes everything, what was written to the answer as well.
		duplicate := send(handler, "POST", "/work/1", fresh().Key, key)
		expect(t, duplicate.Code == 500 && duplicate.Header().Get("X-Run") == "", "%v", duplicate)
		// So does a panic, which goes on to whoever hears it.
		func() {
			defer func() { expect(t, recover() == http.ErrAbortHandler, "the panic was lost") }()
			send(handler, "POST", "/work/1", "panic"+key, "panic"+key)
		}()
		var rows int
		must(db.QueryRow("SELECT count(*) FROM client_go.work WHERE key IN ('conflict', $1::text)", "panic"+key).Scan(&rows))
		record, err := Lookup(ctx, db, ID{"go", "POST /work/{id}", "panic" + key})
		expect(t, rows == 0 && record == nil && err == nil, "%d rows, %v, %v", rows, record, err)
	})
}

// Of a pool of 4 two may wait, the others are told at once.
func TestCapOnWaiters(t *testing.T) {
	db, id := pools[1].DB, fresh()
	api := &API{DB: db, Scope: func(*http.Request) string { return "go" }}
	entered, leave := make(chan bool), make(chan bool)
	handler := api.Once("/wait", Wait(30*time.Second))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		entered <- true
		<-leave
	}))
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
