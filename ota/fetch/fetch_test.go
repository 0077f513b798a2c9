package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(b)
	return b
}

var content = noise(300_000)

// serve gives a file as net/http does.
func serve(w http.ResponseWriter, r *http.Request, b []byte) {
	w.Header().Set("ETag", fmt.Sprintf(`"%x"`, len(b)+int(b[0])))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// hangUp ends the connection.
func hangUp(t *testing.T, w http.ResponseWriter) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	_ = c.Close()
}

func options() Options {
	return Options{Wait: time.Millisecond, Stall: 100 * time.Millisecond, Retries: 5}
}

// start serves by a handler, and counts requests.
func start(t *testing.T, h http.HandlerFunc) (url string, requests *atomic.Int32) {
	t.Helper()
	requests = &atomic.Int32{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { requests.Add(1); h(w, r) }))
	t.Cleanup(s.Close)
	return s.URL, requests
}

func open(t *testing.T, url string) *Source {
	t.Helper()
	s, err := Open(t.Context(), url, options())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func readFrom(t *testing.T, s *Source, off int64) ([]byte, error) {
	t.Helper()
	r, err := s.From(t.Context(), off)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Whatever a server does to the line, the bytes are those of the file.
func TestServers(t *testing.T) {
	var count atomic.Int32
	for name, h := range map[string]http.HandlerFunc{
		"good": func(w http.ResponseWriter, r *http.Request) { serve(w, r, content) },
		"without ranges": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(content)
		},
		"drops": func(w http.ResponseWriter, r *http.Request) {
			c := &cutting{ResponseWriter: w, left: 70_000}
			serve(c, r, content)
			if c.left == 0 {
				hangUp(t, w)
			}
		},
		"drops without ranges": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content[:min(len(content), 60_000*int(count.Add(1)))])
			hangUp(t, w)
		},
		"stalls": func(w http.ResponseWriter, r *http.Request) {
			c := &cutting{ResponseWriter: w, left: 120_000}
			serve(c, r, content)
			if c.left == 0 {
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
				case <-time.After(5 * time.Second):
				}
			}
		},
		"busy": func(w http.ResponseWriter, r *http.Request) {
			if count.Add(1)%3 != 0 {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			serve(w, r, content)
		},
		"redirects": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/there" {
				http.Redirect(w, r, "/there", http.StatusFound)
				return
			}
			serve(w, r, content)
		},
	} {
		t.Run(name, func(t *testing.T) {
			count.Store(0)
			url, _ := start(t, h)
			s := open(t, url)
			for _, off := range []int64{0, 123_456, int64(len(content)) - 1, int64(len(content))} {
				got, err := readFrom(t, s, off)
				if err != nil || !bytes.Equal(got, content[off:]) {
					t.Errorf("from %d: expected %d bytes, found %d, %v", off, len(content)-int(off), len(got), err)
				}
			}
		})
	}
}

// cutting stops to write.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	n := min(len(p), c.left)
	c.left -= n
	k, err := c.ResponseWriter.Write(p[:n])
	if err == nil && n < len(p) {
		err = errors.New("cut")
	}
	return k, err
}

// Another file in place of the first is noticed, and bytes are not mixed.
func TestChanged(t *testing.T) {
	other := bytes.Clone(content)
	other[0]++
	for name, second := range map[string][]byte{"another": other, "shorter": content[:200_000]} {
		var change atomic.Bool
		url, _ := start(t, func(w http.ResponseWriter, r *http.Request) {
			if change.Load() {
				serve(w, r, second)
				return
			}
			serve(&cutting{ResponseWriter: w, left: 50_000}, r, content)
			if r.Header.Get("Range") != "bytes=0-0" {
				change.Store(true)
				hangUp(t, w)
			}
		})
		got, err := readFrom(t, open(t, url), 0)
		if !errors.Is(err, ErrChanged) || !bytes.Equal(got, content[:len(got)]) {
			t.Errorf("%s: expected ErrChanged behind good bytes, found %d bytes, %v", name, len(got), err)
		}
	}
}

// What cannot get better is not tried again.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		h        http.HandlerFunc
		want     error
		requests int32
	}{
		"missing":   {http.NotFound, ErrStatus, 1},
		"forbidden": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, ErrStatus, 1},
		"loop":      {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, ErrStatus, 11},
		"encoded": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(content)
		}, ErrAnswer, 1},
		"garbage": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 5-1/x")
			w.WriteHeader(http.StatusPartialContent)
		}, ErrAnswer, 1},
		"always busy": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, ErrStatus, 6},
	} {
		url, requests := start(t, c.h)
		if _, err := Open(t.Context(), url, options()); !errors.Is(err, c.want) || requests.Load() != c.requests {
			t.Errorf("%s: expected %v after %d requests, found %v after %d", name, c.want, c.requests, err, requests.Load())
		}
	}
	for _, bad := range []string{"ftp://x/y", "payload.bin", "http://user:secret@", "http://%zz"} {
		if _, err := Open(t.Context(), bad, options()); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: expected an error without the address, found %v", bad, err)
		}
	}
	// Other bytes than were asked for.
	url, _ := start(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") != "bytes=0-0" {
			r.Header.Set("Range", "bytes=7-")
		}
		serve(w, r, content)
	})
	if _, err := readFrom(t, open(t, url), 100); !errors.Is(err, ErrAnswer) {
		t.Errorf("other bytes: expected ErrAnswer, found %v", err)
	}
}

// A server that is gone is given up after some tries; whoever waits can be called off.
func TestGone(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	address := strings.Replace(s.URL, "http://", "http://user:secret@", 1)
	s.Close()
	o, retries := options(), 0
	o.OnRetry = func(error, time.Duration) { retries++ }
	if _, err := Open(t.Context(), address, o); err == nil || strings.Contains(err.Error(), "secret") || retries != o.Retries {
		t.Errorf("expected an error without the password after %d tries, found %v after %d", o.Retries, err, retries)
	}
	o.Wait = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, address, o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("expected to be called off, found %v", err)
	}
}

func TestReadAt(t *testing.T) {
	url, _ := start(t, func(w http.ResponseWriter, r *http.Request) { serve(w, r, content) })
	s := open(t, url)
	if s.Size() != int64(len(content)) {
		t.Errorf("expected %d bytes, found %d", len(content), s.Size())
	}
	b := make([]byte, 1000)
	if n, err := s.ReadAt(b, 5000); n != 1000 || err != nil || !bytes.Equal(b, content[5000:6000]) {
		t.Errorf("expected 1000 bytes, found %d, %v", n, err)
	}
	if n, err := s.ReadAt(b, int64(len(content))-10); n != 10 || err != io.EOF || !bytes.Equal(b[:10], content[len(content)-10:]) {
		t.Errorf("at the end: expected 10 bytes and EOF, found %d, %v", n, err)
	}
	if n, err := s.ReadAt(b, int64(len(content))+10); n != 0 || err != io.EOF {
		t.Errorf("behind the end: expected EOF, found %d, %v", n, err)
	}
	url, _ = start(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content) })
	if _, err := open(t, url).ReadAt(b, 0); !errors.Is(err, ErrRanges) {
		t.Errorf("without ranges: expected ErrRanges, found %v", err)
	}
}

// Nothing is left behind by readers that are closed early.
func TestLeaks(t *testing.T) {
	url, _ := start(t, func(w http.ResponseWriter, r *http.Request) { serve(w, r, content) })
	s := open(t, url)
	_ = s.Close()
	before := runtime.NumGoroutine()
	for range 20 {
		r, err := s.From(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
			t.Error(err)
		}
		_ = r.Close()
	}
	_ = s.Close()
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before+2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("expected %d goroutines, found %d", before, runtime.NumGoroutine())
		}
	}
}
