package idempotency

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Work leaves the database: the claim is committed first, with a lease, and what became of the work is recorded afterwards.
//
// It says by its end what is known. An answer, a refusal such as 402 as well, is recorded, in one transaction with what its Book
// writes. ErrNothingHappened, wrapped or not, lets the next attempt do it. Any other error, or a panic, means that nobody knows, and the
// key is held for a person. The context ends when the claim is lost, and not when the client hangs up.
type Work func(ctx context.Context, claim *Record) (*Answer, error)

// ErrNothingHappened is the error of Work that has had no effect.
var ErrNothingHappened = errors.New("nothing happened")

// A context that does not end, since what became of the work has to be recorded; with the values of the request's.
type detached struct{ context.Context }

func (detached) Deadline() (deadline time.Time, ok bool) { return }
func (detached) Done() <-chan struct{}                   { return nil }
func (detached) Err() error                              { return nil }

var waiting sync.Map // *sql.DB: *atomic.Int64

// A claim that waits keeps its connection, so only half of the pool may; who comes then does not wait.
func capped(ctx context.Context, pool *sql.DB, db Querier, id ID, o Options) (*Record, error) {
	if size := pool.Stats().MaxOpenConnections; size > 0 && o.Wait > 0 {
		counter, _ := waiting.LoadOrStore(pool, new(atomic.Int64))
		waiters := counter.(*atomic.Int64)
		defer waiters.Add(-1)
		if waiters.Add(1) > int64(size/2) {
			o.Wait = 0
		}
	}
	return Claim(ctx, db, id, o)
}

// RunLeased claims, by a Lease, and does the work. The outcome is Claimed with the work's answer, Failed, Held, or what the claim got.
func RunLeased(ctx context.Context, db *sql.DB, id ID, o Options, work Work) (claim *Record, answer *Answer, err error) {
	ctx = detached{ctx}
	attempt := make([]byte, 16) // if the answer to the claim is lost, the same id gets the same token
	if _, err := rand.Read(attempt); err != nil {
		return nil, nil, err
	}
	asked := o
	asked.ClaimID, asked.Step = fmt.Sprintf("%x", attempt), ""
	err = again(ctx, loss, func() (err error) { claim, err = capped(ctx, db, db, id, asked); return })
	if err == nil && claim.Outcome == Claimed {
		claim.ID = id
		answer, err = finish(ctx, db, claim, o, work)
	}
	return claim, answer, err
}

// Completer drives on what others have left behind, one after the other, until the context ends, and then finishes what it has begun.
// Several may run at once. The Lease is a minute unless another is given.
func Completer(ctx context.Context, db *sql.DB, operation string, o Options, work Work, report func(error)) {
	if o.Lease == 0 {
		o.Lease = time.Minute
	}
	for ctx.Err() == nil {
		claims, err := ClaimAbandoned(ctx, db, ID{Operation: operation}, Options{Lease: o.Lease, MaxRows: 1})
		for _, claim := range claims {
			_, err = finish(detached{ctx}, db, claim, o, work)
		}
		if err != nil {
			report(err) // such as a database that is down: later, then
		}
		if len(claims) == 0 {
			pause(ctx, time.Second)
		}
	}
}

// The work, and what becomes of it. A panic is an error like others: nobody knows how far it got.
func finish(ctx context.Context, db *sql.DB, claim *Record, o Options, work Work) (answer *Answer, err error) {
	defer func() {
		if p := recover(); p != nil {
			answer, err = nil, settle(ctx, db, claim, Held, fmt.Errorf("panic: %v", p))
		}
	}()
	id, own, step := claim.ID, Options{Token: claim.Token}, Options{Step: o.Step}
	if err = again(ctx, loss, func() (err error) { claim.EffectKey, err = EffectKey(ctx, db, id, step); return }); err != nil {
		return nil, err
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	lost := make(chan error, 1)
	go func() { // three beats to a lease; who cannot reach the database goes on, and tries at the next
		for pause(working, o.Lease/3); working.Err() == nil; pause(working, o.Lease/3) {
			if _, err := Extend(working, db, id, own); gone[KindOf(err)] {
				lost <- err
				stop()
			}
		}
	}()
	answer, err = work(working, claim)
	stop()
	switch {
	case len(lost) > 0: // not the owner any more: there is nothing to record
		return nil, <-lost
	case errors.Is(err, ErrNothingHappened):
		return nil, settle(ctx, db, claim, Failed, err)
	case err != nil:
		return nil, settle(ctx, db, claim, Held, err)
	case answer == nil:
		return nil, settle(ctx, db, claim, Held, errors.New("the work gave no answer"))
	}
	done := Options{Token: claim.Token, Answer: answer, RefuseRepeat: true}
	err = again(ctx, loss, func() error {
		return Transaction(ctx, db, func(tx *sql.Tx) (err error) {
			// In this order: a repeat of what was committed learns that from Complete, and not from a unique key of Book's.
			if claim.ExpiresAt, err = Complete(ctx, tx, id, done); err == nil && answer.Book != nil {
				err = answer.Book(ctx, tx)
			}
			return err
		})
	})
	if Reason(err) == "completed" { // the answer to COMMIT was lost, or a person was faster: what is recorded is what counts
		var record *Record
		if record, err = Replay(ctx, db, id, Options{}); record != nil {
			*claim = *record
			claim.ID, claim.Outcome = id, Replayed
		}
	} else if err != nil && KindOf(err) != Unavailable && KindOf(err) != StaleClaim {
		settle(ctx, db, claim, Held, err) // it was done and cannot be recorded: nobody may do it once more because the lease ends
	}
	return answer, err
}

// Failed or Held, and why. An error may quote what it has not understood, and not everything is a text for PostgreSQL.
func settle(ctx context.Context, db *sql.DB, claim *Record, outcome Kind, why error) error {
	text := strings.ReplaceAll(strings.ToValidUTF8(fmt.Sprintf("%.1000s", why), "?"), "\x00", "?")
	claim.Outcome, claim.LastError = outcome, text
	err := again(ctx, loss, func() (err error) {
		if outcome == Failed {
			_, err = Fail(ctx, db, claim.ID, Options{Token: claim.Token, Error: text})
		} else {
			_, err = Hold(ctx, db, claim.ID, Options{Token: claim.Token, Reason: text})
		}
		return err
	})
	if gone[KindOf(err)] {
		return nil
	}
	return err
}
