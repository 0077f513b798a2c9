package dbus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"
)

func TestTypes(t *testing.T) {
	for sig, want := range map[string][]string{
		"": nil, "s": {"s"}, "sa{sv}": {"s", "a{sv}"}, "a(ii)aas": {"a(ii)", "aas"}, "(s(yv))h": {"(s(yv))", "h"}, "a{ya{s(oo)}}": {"a{ya{s(oo)}}"},
	} {
		if got, err := types(sig); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: expected %q, found %q, %v", sig, want, got, err)
		}
	}
	for _, sig := range []string{"a", "(", "()", "(s", ")", "{sv}", "a{", "a{s", "a{sv", "a{svs}", "a{vs}", "a{(s)s}", "z", "s\x00", "m", strings.Repeat("s", 256), strings.Repeat("a", 33) + "s", strings.Repeat("(", 33) + "s" + strings.Repeat(")", 33)} {
		if _, err := types(sig); !errors.Is(err, ErrSignature) {
			t.Errorf("%.40q: expected ErrSignature, found %v", sig, err)
		}
	}
}

func TestPaths(t *testing.T) {
	for path, want := range map[string]bool{"/": true, "/a": true, "/org/x_1": true, "": false, "a": false, "/a/": false, "//": false, "/a-b": false, "/a//b": false, "/ä": false} {
		if ValidPath(path) != want {
			t.Errorf("%q: expected %v", path, want)
		}
	}
}

// sample is a message with a value of each kind that can be sent.
func sample() (*Message, []any) {
	m := &Message{Type: MethodCall, Serial: 7, Path: "/a/b", Interface: "a.b", Member: "M", Destination: ":1.2", Sender: ":1.3"}
	return m, []any{byte(1), true, int32(-2), uint32(3), int64(-4), uint64(5), 6.5, "s\u00fc\u00df", ObjectPath("/x"), Signature("a{sv}"), Of("inside"),
		[]string{"a", "bc"}, map[string]string{"k": "v"}, map[string]Variant{"n": Of(uint64(9)), "b": Of(byte(1))}, Struct{"t", byte(2), uint64(8)}, []string{}}
}

func TestRoundTrip(t *testing.T) {
	m, args := sample()
	b, err := m.marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	if want := "ybiuxtdsogvasa{ss}a{sv}(syt)as"; m.Signature != want {
		t.Errorf("expected %s, found %s", want, m.Signature)
	}
	r := bytes.NewReader(b)
	got, err := readMessage(r)
	if err != nil || r.Len() != 0 {
		t.Fatalf("%v, %d bytes left", err, r.Len())
	}
	found, err := got.Args()
	want := []any{byte(1), true, int32(-2), uint32(3), int64(-4), uint64(5), 6.5, "s\u00fc\u00df", ObjectPath("/x"), Signature("a{sv}"), Variant{"s", "inside"},
		[]any{"a", "bc"}, []any{Entry{"k", "v"}}, []any{Entry{"b", Variant{"y", byte(1)}}, Entry{"n", Variant{"t", uint64(9)}}}, []any{"t", byte(2), uint64(8)}, []any{}}
	if err != nil || !reflect.DeepEqual(found, want) {
		t.Errorf("expected %v, found %v, %v", want, found, err)
	}
	got.Body, got.order = nil, nil
	if !reflect.DeepEqual(got, m) {
		t.Errorf("expected %+v, found %+v", m, got)
	}
	for i := range b {
		if _, err := readMessage(bytes.NewReader(b[:i])); err == nil {
			t.Errorf("expected an error of its first %d bytes", i)
		}
	}
}

// Text that a bus would hang up for is mended.
func TestMended(t *testing.T) {
	b, err := (&Message{Type: Signal, Serial: 1, Path: "/", Interface: "a.b", Member: "S"}).marshal([]any{"a\x00b\xffc"})
	if err != nil {
		t.Fatal(err)
	}
	m, err := readMessage(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := m.Args(); err != nil || got[0] != "a\uFFFDb\uFFFDc" {
		t.Errorf("found %q, %v", got, err)
	}
	if _, err := (&Message{}).marshal([]any{struct{}{}}); !errors.Is(err, ErrFormat) {
		t.Errorf("expected ErrFormat, found %v", err)
	}
}

func TestBigEndian(t *testing.T) {
	b := []byte{'B', 2, 1, 1, 0, 0, 0, 6, 0, 0, 0, 9, 0, 0, 0, 16, 5, 1, 'u', 0, 0, 0, 0, 3, 8, 1, 'g', 0, 2, 'u', 'q', 0, 0, 0, 0, 7, 1, 2}
	m, err := readMessage(bytes.NewReader(b))
	if err != nil || m.ReplySerial != 3 || m.Serial != 9 {
		t.Fatalf("found %+v, %v", m, err)
	}
	if got, err := m.Args(); err != nil || !reflect.DeepEqual(got, []any{uint32(7), uint16(258)}) {
		t.Errorf("found %v, %v", got, err)
	}
}

func TestRefused(t *testing.T) {
	m, args := sample()
	good, err := m.marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(b []byte) []byte{
		"order":        func(b []byte) []byte { b[0] = 'x'; return b },
		"type 0":       func(b []byte) []byte { b[1] = 0; return b },
		"version":      func(b []byte) []byte { b[3] = 2; return b },
		"serial":       func(b []byte) []byte { b[8] = 0; return b },
		"long":         func(b []byte) []byte { b[7] = 8; return b },
		"long fields":  func(b []byte) []byte { b[15] = 0xff; return b },
		"field 0":      func(b []byte) []byte { b[16] = 0; return b },
		"field's type": func(b []byte) []byte { b[18] = 's'; return b },
		"path":         func(b []byte) []byte { b[24] = 'x'; return b },
		"padding":      func(b []byte) []byte { b[29] = 1; return b },
		"no path":      func(b []byte) []byte { b[16] = 77; return b },
		"NUL":          func(b []byte) []byte { b[26] = 0; return b },
	} {
		if _, err := readMessage(bytes.NewReader(spoil(bytes.Clone(good)))); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: expected ErrFormat, found %v", name, err)
		}
	}
	for sig, body := range map[string]string{
		"b": "\x02\x00\x00\x00", "s": "\xff\xff\xff\xffa\x00", "as": "\xff\xff\x00\x00", "ai": "\x03\x00\x00\x00abc", "y": "", "yy": "a", "": "x", "u": "abc",
		"g": "\x01z\x00", "v": "\x00\x00", "o": "\x01\x00\x00\x00x\x00", "(y": "a", "yu": "a\x00\x00\x01abcd", "a{sv}": "\x01\x00\x00\x00\x00\x00\x00\x00a",
		"vy": strings.Repeat("\x01v\x00", 70) + "\x01y\x00aa",
	} {
		m := &Message{Signature: sig, Body: []byte(body), order: binary.LittleEndian}
		if got, err := m.Args(); err == nil {
			t.Errorf("%s of %q: expected an error, found %v", sig, body, got)
		}
	}
}

// What is too long is read past, and the next message is read.
func TestTooLong(t *testing.T) {
	long, err := (&Message{Type: MethodCall, Serial: 1, Path: "/", Member: "M", Sender: ":1.1"}).marshal([]any{strings.Repeat("x", MaxBody)})
	if err != nil {
		t.Fatal(err)
	}
	header, err := (&Message{Type: MethodCall, Serial: 1, Path: "/" + strings.Repeat("x", maxFields), Member: "M"}).marshal([]any{"x"})
	if err != nil {
		t.Fatal(err)
	}
	short, err := (&Message{Type: MethodCall, Serial: 2, Path: "/", Member: "M"}).marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(bytes.Join([][]byte{long, header, short}, nil))
	first, err1 := readMessage(r)
	second, err2 := readMessage(r)
	third, err3 := readMessage(r)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	if !first.TooLong || first.Body != nil || first.Sender != ":1.1" || second.Type != 0 || third.Serial != 2 {
		t.Errorf("found %+v, %+v, %+v", first, second, third)
	}
	if _, err := first.Args(); !errors.Is(err, ErrFormat) {
		t.Errorf("expected ErrFormat, found %v", err)
	}
}

// FuzzMessage: any bytes are a message that can be sent again, or an error.
func FuzzMessage(f *testing.F) {
	m, args := sample()
	b, err := m.marshal(args)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := readMessage(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrSignature) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("expected an error of this package, found %v", err)
			}
			return
		}
		args, err := m.Args()
		if err != nil || m.Type == 0 {
			return
		}
		for _, a := range args {
			if s, ok := a.(float64); ok && math.IsNaN(s) || signatureOf(a) == "" {
				return // not equal to itself, or not for sending
			}
		}
		again := *m
		out, err := again.marshal(args)
		if err != nil {
			return // has something inside that is not for sending
		}
		back, err := readMessage(bytes.NewReader(out))
		if err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		if got, err := back.Args(); err != nil || !reflect.DeepEqual(got, args) {
			t.Errorf("expected %v, found %v, %v", args, got, err)
		}
	})
}
