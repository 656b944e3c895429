package idempotency

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"sort"
	"unicode/utf8"
)

// Answer is what was answered, or is to be.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	Book   func(context.Context, *sql.Tx) error // of a Job: rows beside it, written once
}

// JSONAnswer is an answer with a value as its body.
func JSONAnswer(status int, value any) *Answer {
	body, err := json.Marshal(value)
	if err != nil {
		panic(err) // a type that is no JSON
	}
	return &Answer{Status: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: body}
}

// ServeHTTP sends it.
func (a *Answer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	for name, values := range a.Header {
		w.Header()[name] = values
	}
	if a.Status == 0 {
		a.Status = http.StatusOK
	}
	w.WriteHeader(a.Status)
	w.Write(a.Body) // if the client is gone, it will ask again
}

var (
	// About the connection, the moment or the session: never replayed.
	passing = regexp.MustCompile(`(?i)^(set-cookie|date|content-length|connection|transfer-encoding|keep-alive|server|idempotent-replayed)$`)
	textual = regexp.MustCompile(`(?i)^text/|[/+](json|xml)\b`)
)

// As text where it is text, so that a person can read the row; as bytes otherwise.
func (a *Answer) options() []Option {
	pairs := [][2]string{}
	for name, values := range a.Header {
		for _, value := range values {
			if !passing.MatchString(name) {
				pairs = append(pairs, [2]string{name, value})
			}
		}
	}
	// A map has no order, and the same completion has to be the same.
	sort.SliceStable(pairs, func(i, j int) bool { return pairs[i][0] < pairs[j][0] })
	header, _ := json.Marshal(pairs)
	options := []Option{option("response_status", "int", a.Status), option("response_headers", "text::jsonb", string(header))}
	text := textual.MatchString(a.Header.Get("Content-Type")) && a.Header.Get("Content-Encoding") == ""
	switch {
	case len(a.Body) == 0:
		return options
	case text && utf8.Valid(a.Body) && bytes.IndexByte(a.Body, 0) < 0:
		return append(options, option("response_body", "text", string(a.Body)))
	}
	return append(options, option("response_bytes", "bytea", a.Body))
}

// Answer is what was recorded.
func (r *Record) Answer() *Answer {
	body := []byte(r.ResponseBytes)
	if body == nil {
		body = []byte(r.ResponseBody)
	}
	return &Answer{Status: r.ResponseStatus, Header: http.Header(r.ResponseHeaders).Clone(), Body: body}
}

type hexadecimal []byte // as PostgreSQL has it in JSON: "\\x00ff"

func (h *hexadecimal) UnmarshalJSON(text []byte) (err error) {
	if bytes.HasPrefix(text, []byte(`"`)) {
		*h, err = hex.DecodeString(string(bytes.Trim(text, `"\\x`)))
	}
	return err
}

// Headers as they were recorded, by whatever language: pairs, or an object whose values may be lists; strings or numbers.
type headers http.Header

func (h *headers) UnmarshalJSON(text []byte) error {
	var recorded any
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber() // 1000000 is not 1e+06
	err := decoder.Decode(&recorded)
	*h = headers{}
	add := func(name, value any) { http.Header(*h).Add(fmt.Sprint(name), fmt.Sprint(value)) }
	switch recorded := recorded.(type) {
	case []any:
		for _, pair := range recorded {
			add(pair.([]any)[0], pair.([]any)[1])
		}
	case map[string]any:
		for name, value := range recorded {
			values, ok := value.([]any)
			if !ok {
				values = []any{value}
			}
			for _, one := range values {
				add(name, one)
			}
		}
	}
	return err
}
