package nbd

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func small(name string) Export {
	return Export{Name: name, Backend: &disk{content: noise[:10000]}}
}

func fromHex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The bytes of the protocol's document.
func TestNegotiationBytes(t *testing.T) {
	c := dial(t, Options{}, small("disk"))
	c.send(fromHex(t, "49484156454f5054 00000003 00000000"))
	c.expect(fromHex(t, "0003e889045565a9 00000003 00000002 00000008 00000004 6469736b"))
	c.expect(fromHex(t, "0003e889045565a9 00000003 00000001 00000000"))
	c.send(fromHex(t, "49484156454f5054 00000008 00000000"))
	c.expect(fromHex(t, "0003e889045565a9 00000008 00000001 00000000"))
	c.send(fromHex(t, "49484156454f5054 00000007 0000000c 00000004 6469736b 0001 0003"))
	c.expect(fromHex(t, "0003e889045565a9 00000007 00000003 0000000c 0000 0000000000002710 0187"))
	c.expect(fromHex(t, "0003e889045565a9 00000007 00000003 0000000e 0003 00000001 00001000 02000000"))
	c.expect(fromHex(t, "0003e889045565a9 00000007 00000001 00000000"))
	c.send(fromHex(t, "25609513 0000 0000 0102030405060708 0000000000000001 00000002"))
	c.expect(append(fromHex(t, "668e33ef 0001 0001 0102030405060708 0000000a 0000000000000001"), noise[1:3]...))
	c.send(fromHex(t, "25609513 0000 0001 0102030405060708 0000000000000000 00000002 ffff"))
	c.expect(fromHex(t, "668e33ef 0001 8001 0102030405060708 00000006 00000001 0000"))
	c.bye()
}

func TestExportName(t *testing.T) {
	for _, zeroes := range []bool{false, true} {
		ours, theirs := net.Pipe()
		c := &client{t, ours, serve(theirs, &table{list: []Export{small("disk")}}, Options{})}
		c.expect(appendHello(nil))
		if zeroes {
			c.send32(0) // an old client: no zeroes is the exception
		} else {
			c.send32(flagFixedNewstyle | flagNoZeroes)
		}
		c.option(optExportName, []byte("disk"))
		c.expect(fromHex(t, "0000000000002710 0107"))
		if zeroes {
			c.expect(make([]byte, 124))
		}
		if got := c.read(false, 5, 100); !bytes.Equal(got, noise[5:105]) {
			t.Error("content differs")
		}
		c.bye()
	}
	c := dial(t, Options{}, small("disk"))
	c.option(optExportName, []byte("other"))
	c.expectEnd()
	if err := <-c.failed; !errors.Is(err, ErrUnknownExport) {
		t.Errorf("expected ErrUnknownExport, found %v", err)
	}
}

func TestSeveralExports(t *testing.T) {
	a, b := small("a"), Export{Name: "b", Description: "the second", Backend: &disk{content: noise[100:5000]}}
	c := dial(t, Options{}, a, b)
	c.option(optList, nil)
	if got := c.reply(optList, repServer); !bytes.Equal(got, text("a")) {
		t.Errorf("found %q", got)
	}
	if got := c.reply(optList, repServer); !bytes.Equal(got, append(text("b"), "the second"...)) {
		t.Errorf("found %q", got)
	}
	c.reply(optList, repAck)
	for _, unknown := range []string{"", "c", "A"} {
		c.option(optInfo, infoData(unknown))
		c.reply(optInfo, repErrUnknown)
		c.option(optGo, infoData(unknown))
		c.reply(optGo, repErrUnknown)
	}
	c.option(optInfo, infoData("b", infoName, infoDescription, infoName, 77))
	if got := c.reply(optInfo, repInfo); binary.BigEndian.Uint64(got[2:]) != 4900 {
		t.Errorf("expected the size of b, found %x", got)
	}
	if got := c.reply(optInfo, repInfo); string(got) != "\x00\x01b" {
		t.Errorf("expected the name, found %q", got)
	}
	if got := c.reply(optInfo, repInfo); string(got) != "\x00\x02the second" {
		t.Errorf("expected the description, found %q", got)
	}
	c.reply(optInfo, repAck)
	if open := c.exports.open.Load(); open != 0 {
		t.Errorf("expected nothing open after INFO, found %d", open)
	}
	c.option(optGo, infoData("b"))
	c.reply(optGo, repInfo)
	c.reply(optGo, repAck)
	if got := c.read(false, 0, 100); !bytes.Equal(got, noise[100:200]) {
		t.Error("content differs")
	}
	c.bye()
}

func TestAbort(t *testing.T) {
	for _, data := range []string{"", "why not"} {
		c := dial(t, Options{}, small("disk"))
		c.option(optAbort, []byte(data))
		c.reply(optAbort, repAck)
		c.expectEnd()
		if err := <-c.failed; !errors.Is(err, ErrAborted) {
			t.Errorf("expected ErrAborted, found %v", err)
		}
	}
}

// What is refused leaves the negotiation as it was.
func TestRefusedOptions(t *testing.T) {
	c := dial(t, Options{}, small("disk"))
	for _, r := range []struct {
		o    option
		data []byte
		want optionReply
	}{
		{4, nil, repErrUnsup},
		{optStartTLS, nil, repErrUnsup},
		{11, []byte("later"), repErrUnsup},
		{1 << 31, nil, repErrUnsup},
		{optList, []byte{0}, repErrInvalid},
		{optStructuredReply, []byte{0}, repErrInvalid},
		{optListMetaContext, queries("disk"), repErrInvalid}, // without structured replies
		{optSetMetaContext, queries("disk", contextName), repErrInvalid},
		{optInfo, nil, repErrInvalid},
		{optGo, infoData("disk")[:5], repErrInvalid},
		{optGo, append(infoData("disk"), 0), repErrInvalid},
		{optGo, infoData("disk", 1, 2)[:11], repErrInvalid},
		{optGo, binary.BigEndian.AppendUint32(nil, 1<<31), repErrInvalid},
		{optGo, infoData("\xff\xfe"), repErrInvalid},
		{optGo, infoData(strings.Repeat("x", maxName+1)), repErrInvalid},
		{optGo, infoData(strings.Repeat("x", maxName)), repErrUnknown},
		{optGo, make([]byte, MaxOption+1), repErrTooBig},
		{optList, make([]byte, maxSkip), repErrTooBig},
	} {
		c.option(r.o, r.data)
		c.reply(r.o, r.want)
	}
	c.option(optGo, infoData("disk"))
	c.reply(optGo, repInfo)
	c.reply(optGo, repAck)
	c.bye()
}

func TestMetaContext(t *testing.T) {
	c := dial(t, Options{}, small("disk"), small("other"))
	c.option(optStructuredReply, nil)
	c.reply(optStructuredReply, repAck)
	for _, m := range []struct {
		o     option
		data  []byte
		found bool
	}{
		{optListMetaContext, queries("disk"), true},
		{optListMetaContext, queries("disk", "base:"), true},
		{optListMetaContext, queries("disk", "qemu:", contextName), true},
		{optListMetaContext, queries("disk", "base:other"), false},
		{optSetMetaContext, queries("disk"), false},
		{optSetMetaContext, queries("disk", "base:", "x-y:z"), false},
		{optSetMetaContext, queries("disk", "x", contextName, contextName), true},
	} {
		c.option(m.o, m.data)
		if m.found {
			if got := c.reply(m.o, repMetaContext); string(got[4:]) != contextName {
				t.Errorf("expected %s, found %q", contextName, got)
			}
		}
		c.reply(m.o, repAck)
	}
	for _, bad := range [][]byte{nil, queries("disk", "a")[:14], append(queries("disk", "a"), 0), binary.BigEndian.AppendUint32(text("disk"), 1<<31)} {
		c.option(optListMetaContext, bad)
		c.reply(optListMetaContext, repErrInvalid)
	}
	c.option(optListMetaContext, queries("nosuch"))
	c.reply(optListMetaContext, repErrUnknown)
	// The context is that of another export than the one chosen in the end.
	c.option(optGo, infoData("other"))
	c.reply(optGo, repInfo)
	c.reply(optGo, repAck)
	r := request{cmd: cmdBlockStatus, handle: 1, length: 4096}
	c.ask(r)
	if got := c.structured(r); got.errno != EINVAL {
		t.Errorf("expected EINVAL, found %d", got.errno)
	}
	c.bye()
}

// A client that does not speak the protocol is hung up on.
func TestHostileNegotiation(t *testing.T) {
	for name, say := range map[string][]byte{
		"Flags":     {0, 0, 0, 4},
		"Magic":     append([]byte{0, 0, 0, 3}, make([]byte, 16)...),
		"HTTP":      []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"Long":      append([]byte{0, 0, 0, 3}, optionHead(optList, maxSkip+1)...),
		"Longest":   append([]byte{0, 0, 0, 3}, optionHead(99, 1<<32-1)...),
		"LongName":  append([]byte{0, 0, 0, 3}, optionHead(optExportName, MaxOption+1)...),
		"Unstarted": append([]byte{0, 0, 0, 3}, rawRequest(request{})...),
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			s := serve(theirs, &table{list: []Export{small("disk")}}, Options{})
			go func() { _, _ = ours.Write(say) }() // as far as it is taken
			b, err := io.ReadAll(ours)
			if err != nil || len(b) != helloSize {
				t.Errorf("expected a greeting and the end, found %x, %v", b, err)
			}
			if err := <-s.failed; !errors.Is(err, ErrProtocol) {
				t.Errorf("expected ErrProtocol, found %v", err)
			}
		})
	}
}

func TestThousandsOfOptions(t *testing.T) {
	c := dial(t, Options{}, small("disk"))
	for range MaxOptions {
		c.option(99, nil)
		c.reply(99, repErrUnsup)
	}
	c.expectEnd()
	if err := <-c.failed; !errors.Is(err, ErrProtocol) {
		t.Errorf("expected ErrProtocol, found %v", err)
	}
}

// Whoever stops in the middle of anything is waited for, but not for long.
func TestNegotiationDeadline(t *testing.T) {
	for name, say := range map[string]func(*client){
		"Nothing":    func(*client) {},
		"HalfHeader": func(c *client) { c.send(optionHead(optList, 0)[:9]) },
		"HalfData":   func(c *client) { c.send(append(optionHead(optGo, 100), 1, 2, 3)) },
		"Dripping": func(c *client) {
			for _, b := range bytes.Repeat(optionHead(99, 0), 1000) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
		"NeverReads": func(c *client) { _, _ = c.Write(bytes.Repeat(optionHead(99, 0), 100)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				c := dial(t, Options{}, small("disk"))
				said := make(chan struct{})
				go func() { defer close(said); say(c) }()
				err := <-c.failed
				if took := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || took > NegotiationTime+time.Second {
					t.Errorf("expected the deadline, found %v after %v", err, took)
				}
				_ = c.Close()
				<-said
			})
		})
	}
}

// A negotiation that has ended well leaves no deadline behind.
func TestPatienceAfterwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := connect(t, small("").Backend, false, Options{})
		time.Sleep(24 * time.Hour)
		if got := c.read(false, 0, 10); !bytes.Equal(got, noise[:10]) {
			t.Error("content differs")
		}
		c.bye()
	})
}

// The client is gone between the server's choice and its answer.
func TestGoneAtGo(t *testing.T) {
	c := dial(t, Options{}, small("disk"))
	c.option(optGo, infoData("disk"))
	_ = c.Close()
	<-c.failed
	if open := c.exports.open.Load(); open != 0 {
		t.Errorf("expected the export released, found %d open", open)
	}
}
