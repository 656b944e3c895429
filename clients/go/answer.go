package idempotency

import (
	"bytes"
	"context"
	"database/sql"
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

// Error makes it an error as well: an answer that undoes the work and is not recorded.
func (a *Answer) Error() string { return fmt.Sprintf("answered with %d: %s", a.Status, a.Body) }

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

// Answer is what was recorded, by whatever language: headers as pairs, or as an object whose values may be lists; strings or numbers.
func (r *Record) Answer() *Answer {
	answer := &Answer{Status: r.ResponseStatus, Header: http.Header{}, Body: []byte(r.ResponseBody)}
	if r.ResponseBytes != nil {
		answer.Body = r.ResponseBytes
	}
	var pairs [][]any
	var object map[string]any
	if decode(r.ResponseHeaders, &pairs) != nil && decode(r.ResponseHeaders, &object) == nil {
		for name, value := range object {
			pairs = append(pairs, []any{name, value})
		}
	}
	for _, pair := range pairs {
		values, several := pair[1].([]any)
		if !several {
			values = pair[1:]
		}
		for _, value := range values {
			answer.Header.Add(fmt.Sprint(pair[0]), fmt.Sprint(value))
		}
	}
	return answer
}

func decode(text []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber() // 1000000 is not 1e+06
	return decoder.Decode(into)
}
