package idempotency

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"math/rand"
	"net"
	"reflect"
	"time"
)

// Kind is what to do about an error. TooLarge is permanent: never "try again". Other is a fault of the program.
type Kind string

const (
	StaleClaim, NotClaimed, OtherCompletion, LeftOpen Kind = "stale_claim", "not_claimed", "other_completion", "left_open"
	IsHeld, Redacted, TooLarge, BadRequest            Kind = "held", "redacted", "too_large", "bad_request"
	Retry, WaitTimeout, Unavailable, Other            Kind = "retry", "wait_timeout", "unavailable", "other"
)

var kinds = map[string]Kind{
	"IK001": StaleClaim, "IK002": NotClaimed, "IK003": OtherCompletion, "IK004": LeftOpen, "IK005": IsHeld, "IK006": Redacted,
	"40001": Retry, "40P01": Retry, "55P03": WaitTimeout, "54000": TooLarge, "22": BadRequest, "08": Unavailable,
	"57P01": Unavailable, "57P02": Unavailable, "57P03": Unavailable, "53300": Unavailable, "25006": Unavailable,
}

var lost = []error{driver.ErrBadConn, sql.ErrConnDone, io.EOF, io.ErrUnexpectedEOF, context.Canceled}

// The error of lib/pq or pgx, however it is wrapped.
func coded(err error) (e interface{ SQLState() string }) { errors.As(err, &e); return e }

// SQLState is the code of a server's error, or "".
func SQLState(err error) string {
	if e := coded(err); e != nil {
		return e.SQLState()
	}
	return ""
}

// KindOf tells an error by its SQLSTATE, or the class of it, or as a lost connection. A request that was given up counts as one.
func KindOf(err error) Kind {
	if state := SQLState(err); len(state) == 5 {
		if kind := kinds[state] + kinds[state[:2]]; kind != "" { // of the code, or of its class
			return kind
		}
		return Other
	}
	for _, one := range lost {
		if errors.Is(err, one) {
			return Unavailable
		}
	}
	var network net.Error                   // includes a deadline that has passed
	var pgx interface{ SafeToRetry() bool } // pgx: a connection that is closed, and the like
	if errors.As(err, &network) || errors.As(err, &pgx) {
		return Unavailable
	}
	return Other
}

// Reason of StaleClaim: taken_over, completed or forgotten. It travels as the name of a constraint, Constraint in lib/pq and ConstraintName
// in pgx.
func Reason(err error) string {
	if e := reflect.Indirect(reflect.ValueOf(coded(err))); e.Kind() == reflect.Struct {
		for _, name := range []string{"Constraint", "ConstraintName"} {
			if field := e.FieldByName(name); field.IsValid() {
				return field.String()
			}
		}
	}
	return ""
}

func (k Kind) in(kinds ...Kind) bool {
	for _, one := range kinds {
		if k == one {
			return true
		}
	}
	return false
}

// Again runs fn until it gets no error of these kinds, five times at most, with growing pauses that rivals do not share.
func Again(ctx context.Context, fn func() error, kinds ...Kind) error {
	for attempt := 1; ; attempt++ {
		err := fn()
		if attempt == 5 || !KindOf(err).in(kinds...) {
			return err
		}
		select {
		case <-time.After(10*time.Millisecond + time.Duration(rand.Int63n(int64(40*time.Millisecond)<<attempt))):
		case <-ctx.Done():
			return err
		}
	}
}

// Transaction is BEGIN, fn, COMMIT; all of it again where the server asks for that. Where fn panics it is rolled back, too.
func Transaction(ctx context.Context, db *sql.DB, fn func(*sql.Tx) error) error {
	return Again(ctx, func() error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback() // nothing after COMMIT; the driver gives up a connection on which it fails
		if err := fn(tx); err != nil {
			return err
		}
		return tx.Commit()
	}, Retry)
}
