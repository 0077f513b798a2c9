package control

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrMessage: the message does not have the form that the protocol asks for.
	ErrMessage = errors.New("malformed control message")
	// ErrCommand: no command of that name.
	ErrCommand = errors.New("unknown control command")
	// ErrRefused: the daemon answered fail.
	ErrRefused = errors.New("refused by snapuserd")
	// ErrReply: the daemon's answer is not one that the protocol knows.
	ErrReply = errors.New("unexpected reply of snapuserd")
	// ErrPassive: the daemon answers, but it is leaving.
	ErrPassive = errors.New("snapuserd is about to leave")
)

// MaxMessage is the length in bytes of the longest request.
const MaxMessage = 512

// The commands. Those with a comma are extensions: the word after the comma is
// the first argument on the wire.
const (
	Init          = "init"
	Start         = "start"
	DeviceName    = "get_device_name"
	InitiateMerge = "initiate_merge"
	GetStatus     = "getstatus"
	MergePercent  = "merge_percent"
	PauseMerge    = "pause_merge"
	ResumeMerge   = "resume_merge"
	Delete        = "delete"
	Query         = "query"
	Stop          = "stop"
	Detach        = "detach"
	Supports      = "supports"
	Create        = "create"
	UpdateVerify  = "update-verify"
	List          = "cowbird,list"
	DetailsOf     = "cowbird,status"
	MergeAt       = "cowbird,merge"
	Pause         = "cowbird,pause"
	Resume        = "cowbird,resume"
	Reason        = "cowbird,reason"
)

// The replies.
const (
	Success = "success"
	Fail    = "fail"
	Active  = "active"
	Passive = "passive"
)

// SocketHandOff is a feature that Android's init asks for: the daemon of the running
// system can do without a control socket until one is handed over to it.
const SocketHandOff = "second_stage_socket_handoff"

// anyArgs stands for a command whose arguments do not matter.
const anyArgs = -1

// argsOf is a switch and not a map so that it needs no memory.
func argsOf(command string) (n int, known bool) {
	switch command {
	case MergePercent, PauseMerge, ResumeMerge, Query, Stop, Detach, List, Reason:
		return 0, true
	case Start, DeviceName, InitiateMerge, GetStatus, Delete, Supports, DetailsOf, Pause, Resume:
		return 1, true
	case MergeAt:
		return 2, true
	case Init:
		return 4, true
	case Create, UpdateVerify:
		return anyArgs, true
	}
	return 0, false
}

// Request is a parsed message.
type Request struct {
	Command string
	Args    []string
}

// Parse reads a message. The error wraps ErrCommand or ErrMessage; in the
// latter case the request's Command is filled in where it could be found out.
func Parse(message []byte) (Request, error) {
	if len(message) == 0 || len(message) > MaxMessage {
		return Request{}, fmt.Errorf("%w: expected 1 to %d bytes, found %d", ErrMessage, MaxMessage, len(message))
	}
	fields := strings.Split(string(message), ",")
	r := Request{Command: fields[0], Args: fields[1:]}
	if r.Command == "cowbird" && len(r.Args) > 0 {
		r.Command, r.Args = r.Command+","+r.Args[0], r.Args[1:]
	}
	return r, r.check()
}

func (r Request) check() error {
	want, known := argsOf(r.Command)
	if !known {
		return fmt.Errorf("%w: %q", ErrCommand, r.Command)
	}
	if want != anyArgs && len(r.Args) != want {
		return fmt.Errorf("%w: %s: expected %d arguments, found %d", ErrMessage, r.Command, want, len(r.Args))
	}
	for i, a := range r.Args {
		if a == "" && want != anyArgs {
			return fmt.Errorf("%w: %s: argument %d is empty", ErrMessage, r.Command, i+1)
		}
	}
	return nil
}

// Format makes a message and refuses what the protocol cannot carry.
func Format(command string, args ...string) (string, error) {
	for _, a := range args {
		if strings.Contains(a, ",") {
			return "", fmt.Errorf("%w: %q: expected no comma, for the protocol has no way to send one; use a path or a name without", ErrMessage, a)
		}
	}
	message := strings.Join(append([]string{command}, args...), ",")
	if len(message) > MaxMessage {
		return "", fmt.Errorf("%w: %s: expected at most %d bytes with all arguments, found %d; use shorter paths", ErrMessage, command, MaxMessage, len(message))
	}
	return message, Request{Command: command, Args: args}.check()
}
