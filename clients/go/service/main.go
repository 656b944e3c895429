// The conformance service (../../conformance/spec.md) on net/http, with lib/pq ("nethttp") or pgx ("nethttp-pgx").
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"example.com/idempotency"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/stdlib"
	_ "github.com/lib/pq"
)

var db *sql.DB

// Neither driver may keep a prepared statement on a connection that pgbouncer gives to somebody else.
func open(framework string) (*sql.DB, error) {
	if framework == "nethttp-pgx" {
		config, err := pgx.ParseConfig("")
		if err != nil {
			return nil, err
		}
		config.PreferSimpleProtocol = true
		return stdlib.OpenDB(*config), nil
	}
	return sql.Open("postgres", "binary_parameters=yes")
}

// Intervals are written as PostgreSQL reads them.
func interval(name string) (d time.Duration) {
	var microseconds int64
	must(db.QueryRow("SELECT (extract(epoch FROM $1::interval) * 1000000)::bigint", os.Getenv(name)).Scan(&microseconds))
	return time.Duration(microseconds) * time.Microsecond
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func user(r *http.Request) string {
	name := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if name == r.Header.Get("Authorization") {
		return ""
	}
	return name
}

func random() string {
	id := make([]byte, 16)
	_, err := rand.Read(id)
	must(err)
	return fmt.Sprintf("%x", id)
}

func problem(status int, title string) *idempotency.Answer {
	answer := idempotency.JSON(status, map[string]any{"title": title, "status": status})
	answer.Header.Set("Content-Type", "application/problem+json")
	return answer
}

// The body as an object; needed has to be in it.
func parse(r *http.Request, into any, needed string) error {
	body, err := io.ReadAll(r.Body)
	must(err)
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) != nil || json.Unmarshal(body, into) != nil || members == nil {
		return problem(http.StatusBadRequest, "The body is no such object")
	}
	if _, ok := members[needed]; needed != "" && !ok {
		return problem(http.StatusUnprocessableEntity, needed+" is missing")
	}
	return nil
}

// What the handlers do in the claim's transaction.
func insert(tx *sql.Tx, r *http.Request, item int64) (id int64, err error) {
	err = tx.QueryRowContext(r.Context(), "INSERT INTO shop.orders (account, item) VALUES ($1::text, $2::int) RETURNING id",
		user(r), item).Scan(&id)
	return id, err
}

func order(tx *sql.Tx, r *http.Request) (*idempotency.Answer, error) {
	var asked struct {
		Item    int64
		PauseMS int64 `json:"pause_ms"`
	}
	if err := parse(r, &asked, "item"); err != nil {
		return nil, err
	}
	if r.Header.Get("X-Fail") == "refuse" {
		return idempotency.JSON(http.StatusPaymentRequired, map[string]any{"refused": true}), nil
	}
	id, err := insert(tx, r, asked.Item)
	if err != nil {
		return nil, err
	}
	switch r.Header.Get("X-Fail") {
	case "throw":
		panic("the handler was asked to throw")
	case "503":
		return problem(http.StatusServiceUnavailable, "The handler was asked to answer so"), nil
	}
	time.Sleep(time.Duration(asked.PauseMS) * time.Millisecond)
	answer := idempotency.JSON(http.StatusCreated, map[string]any{"order": id})
	answer.Header.Set("Location", fmt.Sprintf("/orders/%d", id))
	answer.Header.Add("Link", "</a>; rel=a")
	answer.Header.Add("Link", "</b>; rel=b")
	answer.Header.Set("Set-Cookie", "session="+random())
	answer.Header.Set("X-Request", random())
	return answer, nil
}

func refund(tx *sql.Tx, r *http.Request) (*idempotency.Answer, error) {
	order, err := strconv.ParseInt(strings.Split(r.URL.Path, "/")[2], 10, 32)
	if err != nil {
		return nil, problem(http.StatusBadRequest, "No such order")
	}
	if err := parse(r, &struct{}{}, ""); err != nil {
		return nil, err
	}
	id, err := insert(tx, r, order)
	return idempotency.JSON(http.StatusCreated, map[string]any{"refund": id}), err
}

func blob(tx *sql.Tx, r *http.Request) (*idempotency.Answer, error) {
	answer := &idempotency.Answer{Status: http.StatusCreated, Header: http.Header{}}
	for _, name := range []string{"Content-Type", "Content-Encoding"} {
		if value := r.Header.Get(name); value != "" {
			answer.Header.Set(name, value)
		}
	}
	_, err := insert(tx, r, 0)
	if err == nil {
		answer.Body, err = io.ReadAll(r.Body)
	}
	return answer, err
}

// ---- charges ----

type chargeState struct {
	Account string `json:"account"`
	Amount  int64  `json:"amount"`
}

func stateOfCharge(r *http.Request) (any, error) {
	state := chargeState{Account: user(r)}
	asked := struct{ Amount int64 }{}
	err := parse(r, &asked, "amount")
	state.Amount = asked.Amount
	return state, err
}

// A request that did not reach the network has had no effect; of any other error nobody knows.
func ask(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, os.Getenv("NETWORK_URL")+path, bytes.NewReader(body))
	must(err)
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = fmt.Errorf("the network cannot be reached: %w", idempotency.ErrNothingHappened)
	}
	return response, err
}

func charge(ctx context.Context, claim *idempotency.Record) (*idempotency.Answer, error) {
	var state chargeState
	if err := json.Unmarshal(claim.State, &state); err != nil {
		return nil, err
	}
	before, err := ask(ctx, "GET", "/before?key="+claim.EffectKey, nil)
	if err != nil {
		return nil, err
	}
	before.Body.Close()
	seconds, err := strconv.ParseFloat(os.Getenv("NETWORK_TIMEOUT"), 64)
	if err != nil {
		seconds = 2
	}
	limited, cancel := context.WithTimeout(ctx, time.Duration(seconds*float64(time.Second)))
	defer cancel()
	body, err := json.Marshal(map[string]any{"key": claim.EffectKey, "amount": state.Amount})
	must(err)
	response, err := ask(limited, "POST", "/charges", body)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusPaymentRequired {
		return idempotency.JSON(http.StatusPaymentRequired, map[string]any{"declined": true}), nil
	}
	var charged struct{ Charge string }
	if response.StatusCode != http.StatusOK {
		page, _ := io.ReadAll(response.Body)
		return nil, fmt.Errorf("the network answered %s: %s", response.Status, page)
	}
	if err := json.NewDecoder(response.Body).Decode(&charged); err != nil {
		return nil, err
	}
	if after, err := ask(ctx, "GET", "/after?key="+claim.EffectKey, nil); err == nil {
		after.Body.Close()
	}
	answer := idempotency.JSON(http.StatusCreated, map[string]any{"charge": charged.Charge})
	answer.Book = func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO shop.payments (account, charge, amount) VALUES ($1::text, $2::text, $3::int)",
			state.Account, charged.Charge, state.Amount)
		return err
	}
	return answer, nil
}

// ---- GET ----

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	must(json.NewEncoder(w).Encode(value))
}

func count(r *http.Request, query string) (n int64) {
	must(db.QueryRowContext(r.Context(), query, user(r)).Scan(&n))
	return n
}

func visits(w http.ResponseWriter, r *http.Request) {
	_, err := db.ExecContext(r.Context(), "INSERT INTO shop.visits (account) VALUES ($1::text)", user(r))
	must(err)
	answer(w, map[string]any{"visits": count(r, "SELECT count(*) FROM shop.visits WHERE account = $1::text")})
}

func orders(w http.ResponseWriter, r *http.Request) {
	answer(w, map[string]any{"orders": count(r, "SELECT count(*) FROM shop.orders WHERE account = $1::text")})
}

func health(w http.ResponseWriter, r *http.Request) {
	var healthy bool
	err := db.QueryRowContext(r.Context(), "SELECT NOT EXISTS (SELECT FROM idempotency.health() WHERE status = 'critical')").Scan(&healthy)
	if err != nil || !healthy {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

// What every service has around its handlers: who is it, and an answer where one of them panics.
func outermost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				log.Printf("%s %s: %v", r.Method, r.URL.Path, p)
				problem(http.StatusInternalServerError, "Internal error").ServeHTTP(w, r)
			}
		}()
		if user(r) == "" && r.URL.Path != "/health" {
			problem(http.StatusUnauthorized, "Who is it?").ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func byMethod(get http.HandlerFunc, post http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			get(w, r)
		} else {
			post.ServeHTTP(w, r)
		}
	})
}

func main() {
	var err error
	db, err = open(os.Args[1])
	must(err)
	size, err := strconv.Atoi(os.Getenv("POOL_SIZE"))
	if err != nil {
		size = 5
	}
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	api := idempotency.New(db, func(r *http.Request) string { return "shop:" + user(r) })
	leased := idempotency.Options{Lease: interval("LEASE"), Step: "charge"}
	mux := http.NewServeMux()
	mux.Handle("/orders", byMethod(orders, api.Once("POST /orders", idempotency.Options{}, order)))
	mux.Handle("/waiting-orders", api.Once("POST /waiting-orders", idempotency.Options{Wait: interval("WAIT")}, order))
	mux.Handle("/orders/", api.Once("POST /orders/{id}/refunds", idempotency.Options{}, refund))
	mux.Handle("/blobs", api.Once("POST /blobs", idempotency.Options{}, blob))
	mux.Handle("/charges", api.Leased("POST /charges", leased, stateOfCharge, charge))
	mux.HandleFunc("/visits", visits)
	mux.HandleFunc("/health", health)
	go idempotency.Completer(context.Background(), db, "POST /charges", leased, charge, func(err error) { log.Print("completer: ", err) })
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	must(err)
	fmt.Println("listening")
	log.Fatal(http.Serve(listener, outermost(mux)))
}
