package idempotency

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Job is work that leaves the database: the claim is committed first, with a lease, and what became of the work is recorded afterwards.
//
// Do says by its end what is known. An answer, a refusal such as 402 as well, is recorded, in one transaction with what its Book
// writes. ErrNothingHappened, wrapped or not, lets the next attempt do it. Any other error, or a panic, means that nobody knows, and the
// key is held for a person. The context ends when the claim is lost, and not when the client hangs up.
type Job struct {
	Lease time.Duration
	Step  string // of the effect key
	Do    func(ctx context.Context, claim *Record) (*Answer, error)
}

var ErrNothingHappened = errors.New("nothing happened")

// A context that does not end: what became of the work has to be recorded.
type detached struct{ context.Context }

func (detached) Deadline() (deadline time.Time, ok bool) { return }
func (detached) Done() <-chan struct{}                   { return nil }
func (detached) Err() error                              { return nil }

var waiting sync.Map // *sql.DB: *atomic.Int64

// A claim that waits keeps its connection, so only half of the pool may; who comes then does not wait.
func capped(ctx context.Context, pool *sql.DB, db Querier, id ID, request Request, options []Option) (*Record, error) {
	counter, _ := waiting.LoadOrStore(pool, new(atomic.Int64))
	waiters, size := counter.(*atomic.Int64), pool.Stats().MaxOpenConnections
	var allowed []Option
	for _, o := range options {
		if o.name == "wait" {
			defer waiters.Add(-1)
			if waiters.Add(1) > int64(size/2) && size > 0 {
				continue
			}
		}
		allowed = append(allowed, o)
	}
	return Claim(ctx, db, id, request, allowed...)
}

// RunLeased claims and does the work. The outcome is Claimed with the work's answer, Failed, Held, or what the claim got.
func RunLeased(ctx context.Context, db *sql.DB, id ID, request Request, state any, job Job, options ...Option) (
	claim *Record, answer *Answer, err error) {

	ctx = detached{ctx}
	encoded, err := json.Marshal(state)
	attempt := make([]byte, 16) // if the answer to the claim is lost, the same id gets the same token
	if _, e := rand.Read(attempt); e != nil || err != nil {
		return nil, nil, fmt.Errorf("idempotency: no state (%v), or no random number (%v)", err, e)
	}
	options = append([]Option{Lease(job.Lease), State(encoded), ClaimID(fmt.Sprintf("%x", attempt))}, options...)
	err = Again(ctx, func() (err error) { claim, err = capped(ctx, db, db, id, request, options); return }, Unavailable, Retry)
	if err == nil && claim.Outcome == Claimed {
		answer, err = finish(ctx, db, claim, job)
	}
	return claim, answer, err
}

// Completer drives on what others have left behind, until the context ends, and then finishes what it has begun. It takes two at a
// time, because both begin at once.
func Completer(ctx context.Context, db *sql.DB, operation string, job Job, report func(error)) {
	for ctx.Err() == nil {
		claims, err := ClaimAbandoned(ctx, db, operation, 2, Lease(job.Lease))
		if err != nil {
			report(err) // such as a database that is down: later, then
		}
		var all sync.WaitGroup
		for _, claim := range claims {
			all.Add(1)
			go func(claim *Record) {
				defer all.Done()
				if _, err := finish(detached{ctx}, db, claim, job); err != nil {
					report(err)
				}
			}(claim)
		}
		all.Wait()
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func finish(ctx context.Context, db *sql.DB, claim *Record, job Job) (answer *Answer, err error) {
	// What a repeat finds settled was settled by the call whose answer was lost, or is somebody else's by now.
	settle := func(outcome Outcome, why error) error {
		claim.Outcome, claim.LastError = outcome, why.Error()
		err := Again(ctx, func() (err error) {
			if outcome == Failed {
				return Fail(ctx, db, claim.ID, why.Error(), Token(claim.Token))
			}
			_, err = Hold(ctx, db, claim.ID, why.Error(), Token(claim.Token))
			return err
		}, Unavailable, Retry)
		if KindOf(err).in(StaleClaim, NotClaimed, IsHeld) {
			return nil
		}
		return err
	}
	err = Again(ctx, func() (err error) { claim.EffectKey, err = EffectKey(ctx, db, claim.ID, job.Step); return }, Unavailable)
	if err != nil {
		return nil, err
	}
	answer, lost, err := do(ctx, db, claim, job)
	switch {
	case lost != nil:
		return nil, lost // not the owner any more: there is nothing to record
	case errors.Is(err, ErrNothingHappened):
		return nil, settle(Failed, err)
	case err != nil:
		return nil, settle(Held, err)
	}
	err = Again(ctx, func() error {
		return Transaction(ctx, db, func(tx *sql.Tx) (err error) {
			if answer.Book != nil {
				err = guarded(func() error { return answer.Book(ctx, tx) })
			}
			if err == nil {
				_, err = Complete(ctx, tx, claim.ID, answer, Token(claim.Token), RefuseRepeat())
			}
			return err
		})
	}, Unavailable)
	if Reason(err) == "completed" { // the answer to COMMIT was lost, or a person was faster: what is recorded is what counts
		record, err := Replay(ctx, db, claim.ID)
		if record != nil {
			claim.Outcome, answer = Replayed, record.Answer()
		}
		return answer, err
	}
	if err != nil && !KindOf(err).in(Unavailable, StaleClaim) {
		settle(Held, err) // it was done and cannot be recorded: nobody may do it once more because the lease ends
	}
	return answer, err
}

// The work, while a heartbeat renews the lease three times in its length. Who has lost the claim is stopped; who cannot reach
// the database goes on, and tries at the next beat.
func do(ctx context.Context, db *sql.DB, claim *Record, job Job) (answer *Answer, lost, err error) {
	working, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		defer close(ended)
		for {
			select {
			case <-time.After(job.Lease / 3):
			case <-working.Done():
				return
			}
			if _, err := Extend(working, db, claim.ID, Token(claim.Token)); KindOf(err).in(StaleClaim, NotClaimed, IsHeld) {
				ended <- err
				stop()
				return
			}
		}
	}()
	err = guarded(func() (err error) { answer, err = job.Do(working, claim); return err })
	if err == nil && answer == nil {
		err = errors.New("the work gave no answer")
	}
	stop()
	return answer, <-ended, err
}

// A panic is an error like others: nobody knows how far it got.
func guarded(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return fn()
}
