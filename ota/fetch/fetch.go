package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

var (
	// ErrChanged: the file is another one than at the beginning.
	ErrChanged = errors.New("the file on the server has changed")
	// ErrStatus: the server has refused, and would again.
	ErrStatus = errors.New("the server refuses")
	// ErrAnswer: what the server says makes no sense.
	ErrAnswer = errors.New("unexpected answer of the server")
	// ErrRanges: the server sends whole files only.
	ErrRanges = errors.New("the server sends no parts of files")
)

// Options say how patient to be. The zero value is what Android's client does
// (specs/payload.md 14).
type Options struct {
	Header  http.Header   // of each request, such as Authorization
	Retries int           // in a row without a byte; 0: 20
	Wait    time.Duration // before the first retry; it doubles up to a minute; 0: a second
	// Stall is how long nothing may come; 0: 30 s.
	Stall time.Duration
	// OnRetry, if not nil, is told why, and how long the wait is.
	OnRetry func(err error, wait time.Duration)
}

const (
	mostRedirects = 10
	longestWait   = time.Minute
	connectTime   = 30 * time.Second
)

// Source is a file on a server. Its methods may be called by several goroutines.
type Source struct {
	url    string
	o      Options
	client *http.Client

	size      int64  // 0: not known
	validator string // "": none
	ranges    bool
}

// Open asks the server for a byte, to learn what it tells of the file.
func Open(ctx context.Context, address string, o Options) (*Source, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("expected an http or https URL") // which may have a password in it
	}
	if o.Retries == 0 {
		o.Retries = 20
	}
	if o.Wait == 0 {
		o.Wait = time.Second
	}
	if o.Stall == 0 {
		o.Stall = 30 * time.Second
	}
	s := &Source{url: address, o: o, client: newClient()}
	err = s.retry(ctx, func() error { return s.learn(ctx) })
	return s, err
}

func newClient() *http.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: connectTime}).DialContext
	t.DisableCompression = true
	return &http.Client{Transport: t, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
		if len(via) > mostRedirects {
			return fmt.Errorf("%w: expected at most %d redirects", ErrStatus, mostRedirects)
		}
		return nil
	}}
}

// Size is the file's, in bytes; 0: the server does not tell.
func (s *Source) Size() int64 { return s.size }

// Close lets go of idle connections.
func (s *Source) Close() error {
	s.client.CloseIdleConnections()
	return nil
}

func (s *Source) learn(ctx context.Context) error {
	r, err := s.get(ctx, 0, 1)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if e := r.Header.Get("ETag"); e != "" && !strings.HasPrefix(e, "W/") {
		s.validator = e
	} else {
		s.validator = r.Header.Get("Last-Modified")
	}
	if s.ranges = r.StatusCode == http.StatusPartialContent; !s.ranges {
		s.size = max(0, r.ContentLength)
		return nil
	}
	_, _, s.size, err = contentRange(r)
	return err
}

// get asks for n bytes from off; n of 0 is all of the rest.
func (s *Source) get(ctx context.Context, off, n int64) (*http.Response, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range s.o.Header {
		q.Header[k] = v
	}
	last := ""
	if n > 0 {
		last = strconv.FormatInt(off+n-1, 10)
	}
	q.Header.Set("Range", fmt.Sprintf("bytes=%d-%s", off, last))
	if s.validator != "" {
		q.Header.Set("If-Range", s.validator)
	}
	q.Header.Set("Accept-Encoding", "identity")
	r, err := s.client.Do(q)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the address
		}
		return nil, err
	}
	if err := s.check(r); err != nil {
		_ = r.Body.Close()
		return nil, err
	}
	return r, nil
}

// check refuses answers that are none, and those of another file.
func (s *Source) check(r *http.Response) error {
	switch c := r.StatusCode; {
	case c == http.StatusOK || c == http.StatusPartialContent:
	case c >= 500 || c == http.StatusTooManyRequests || c == http.StatusRequestTimeout || c == http.StatusTooEarly:
		return &temporary{fmt.Errorf("%w, but may not next time: %s", ErrStatus, r.Status), retryAfter(r)}
	default:
		return fmt.Errorf("%w: expected the file, found %s", ErrStatus, r.Status)
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fmt.Errorf("%w: expected the file as it is, found it in encoding %q", ErrAnswer, e)
	}
	return s.same(r)
}

func (s *Source) same(r *http.Response) error {
	size := max(0, r.ContentLength)
	if r.StatusCode == http.StatusPartialContent {
		var err error
		if _, _, size, err = contentRange(r); err != nil {
			return err
		}
	}
	if s.size > 0 && size > 0 && size != s.size {
		return fmt.Errorf("%w: expected %d bytes, found %d: start again", ErrChanged, s.size, size)
	}
	now := r.Header.Get("Last-Modified")
	if strings.HasPrefix(s.validator, `"`) {
		now = r.Header.Get("ETag")
	}
	if s.validator != "" && now != "" && now != s.validator {
		return fmt.Errorf("%w: expected that of %s, found that of %s: start again", ErrChanged, s.validator, now)
	}
	return nil
}

// temporary is worth another try.
type temporary struct {
	err  error
	wait time.Duration // that the server asks for
}

func (t *temporary) Error() string { return t.err.Error() }
func (t *temporary) Unwrap() error { return t.err }

func retryAfter(r *http.Response) time.Duration {
	n, err := strconv.Atoi(r.Header.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(n)*time.Second, longestWait)
}

// contentRange reads "bytes 0-99/1000"; a size of "*" is 0.
func contentRange(r *http.Response) (from, to, size int64, err error) {
	text := r.Header.Get("Content-Range")
	bad := func() (int64, int64, int64, error) {
		return 0, 0, 0, fmt.Errorf("%w: expected a Content-Range of bytes, found %q", ErrAnswer, text)
	}
	rest, isBytes := strings.CutPrefix(text, "bytes ")
	span, total, hasTotal := strings.Cut(rest, "/")
	first, last, hasLast := strings.Cut(span, "-")
	if !isBytes || !hasTotal || !hasLast {
		return bad()
	}
	from, err1 := strconv.ParseInt(first, 10, 64)
	to, err2 := strconv.ParseInt(last, 10, 64)
	if total != "*" {
		size, err = strconv.ParseInt(total, 10, 64)
	}
	if err = errors.Join(err, err1, err2); err != nil || from < 0 || to < from || size < 0 || size > 0 && to >= size {
		return bad()
	}
	return from, to, size, nil
}

// final tells errors that another try does not mend.
func final(err error) bool {
	var t *temporary
	if errors.As(err, &t) {
		return false
	}
	for _, e := range []error{ErrChanged, ErrStatus, ErrAnswer, ErrRanges, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// retry calls f until it succeeds, or has failed too often, or for good.
func (s *Source) retry(ctx context.Context, f func() error) error {
	for try := 0; ; try++ {
		err := f()
		if err == nil || ctx.Err() != nil || final(err) || try >= s.o.Retries {
			return errors.Join(err, ctx.Err())
		}
		if err := s.pause(ctx, try, err); err != nil {
			return err
		}
	}
}

// pause waits longer each time, and not at the same time as everybody else.
func (s *Source) pause(ctx context.Context, try int, why error) error {
	wait := min(s.o.Wait<<min(try, 16), longestWait)
	wait = wait/2 + rand.N(wait/2+1)
	var t *temporary
	if errors.As(why, &t) {
		wait = max(wait, t.wait)
	}
	if s.o.OnRetry != nil {
		s.o.OnRetry(why, wait)
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// From gives the file from byte off to its end.
func (s *Source) From(ctx context.Context, off int64) (io.ReadCloser, error) {
	return &reader{s: s, ctx: ctx, at: off}, nil
}

// ReadAt implements io.ReaderAt, one request a call.
func (s *Source) ReadAt(p []byte, off int64) (n int, err error) {
	if !s.ranges || s.size == 0 {
		return 0, fmt.Errorf("%w, or does not tell their size: give the URL of a payload.bin, or download the zip", ErrRanges)
	}
	want := p[:max(0, min(int64(len(p)), s.size-off))]
	if len(want) > 0 {
		r := &reader{s: s, ctx: context.Background(), at: off, n: int64(len(want))}
		n, err = io.ReadFull(r, want)
		_ = r.Close()
	}
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// reader reads on over any number of connections.
type reader struct {
	s   *Source
	ctx context.Context
	at  int64
	n   int64 // bytes that are asked for at once; 0: all of the rest

	body  io.ReadCloser
	watch *time.Timer
	tries int // since the last byte
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if r.s.size > 0 && r.at >= r.s.size {
			return 0, io.EOF // which asking for would be an error of
		}
		n, err := r.readOnce(p)
		if n > 0 {
			r.at += int64(n)
			r.tries = 0
			return n, nil
		}
		if err == io.EOF && r.s.size == 0 {
			return 0, io.EOF
		}
		r.disconnect()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if r.ctx.Err() != nil || final(err) || r.tries >= r.s.o.Retries {
			return 0, errors.Join(err, r.ctx.Err())
		}
		r.tries++
		if err := r.s.pause(r.ctx, r.tries-1, err); err != nil {
			return 0, err
		}
	}
}

// readOnce reads from the connection there is, or from a new one.
func (r *reader) readOnce(p []byte) (int, error) {
	if r.body == nil {
		if err := r.connect(); err != nil {
			return 0, err
		}
	}
	r.watch.Reset(r.s.o.Stall)
	return r.body.Read(p)
}

func (r *reader) connect() error {
	ctx, cancel := context.WithCancelCause(r.ctx)
	stalled := &temporary{err: fmt.Errorf("nothing has come for %v", r.s.o.Stall)}
	r.watch = time.AfterFunc(r.s.o.Stall, func() { cancel(stalled) })
	a, err := r.s.get(ctx, r.at, r.n)
	if err == nil {
		err = r.align(a)
	}
	if err != nil {
		r.watch.Stop()
		if context.Cause(ctx) == stalled {
			err = stalled
		}
		cancel(nil)
		return err
	}
	r.body = &connection{a.Body, ctx, cancel}
	return nil
}

// align makes sure that the answer's first byte is the one that is wanted.
func (r *reader) align(a *http.Response) error {
	from := int64(0)
	if a.StatusCode == http.StatusPartialContent {
		var err error
		if from, _, _, err = contentRange(a); err != nil {
			return errors.Join(err, a.Body.Close())
		}
		if from != r.at {
			return errors.Join(fmt.Errorf("%w: expected bytes from %d, found %d", ErrAnswer, r.at, from), a.Body.Close())
		}
	}
	for left := r.at - from; left > 0; {
		n, err := io.CopyN(io.Discard, a.Body, min(left, 1<<20))
		if err != nil {
			return errors.Join(err, a.Body.Close())
		}
		left -= n
		r.watch.Reset(r.s.o.Stall)
	}
	return nil
}

func (r *reader) disconnect() {
	if r.body != nil {
		r.watch.Stop()
		_ = r.body.Close()
		r.body = nil
	}
}

// Close implements io.Closer.
func (r *reader) Close() error {
	r.disconnect()
	return nil
}

// connection is a body that tells why it was cut.
type connection struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (c *connection) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if err != nil && err != io.EOF && context.Cause(c.ctx) != nil {
		err = context.Cause(c.ctx)
	}
	return n, err
}

func (c *connection) Close() error {
	defer c.cancel(nil)
	return c.ReadCloser.Close()
}
