// The ledger's file, through which it outlives the agent.

package attempts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/imds-guard/imds-guard/internal/wholefile"
)

// mostBytes is the largest file that is read: more than a full ledger needs, and less than the agent has memory for.
const mostBytes = 16 << 20

// Load replaces the ledger's contents with what an earlier agent saved. Without a file, or with one that can't be read, which
// is an error, the ledger stays as it is.
func (l *Ledger) Load(file string, now time.Time) error {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var s state
	if err == nil {
		defer f.Close()
		err = json.NewDecoder(io.LimitReader(f, mostBytes)).Decode(&s)
	}
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return fmt.Errorf("reading what was counted before: %w", err)
	}
	for _, p := range s.Pods {
		p.Alive = now // presumed alive until the pods are listed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = s
	return nil
}

// check finds what would make the program crash later.
func (s state) check() error {
	for _, c := range s.Counters {
		if c == nil {
			return errors.New("it has an empty counter")
		}
	}
	for _, p := range s.Pods {
		if p == nil {
			return errors.New("it has an empty pod")
		}
	}
	for _, g := range s.Gone {
		if g == nil {
			return errors.New("it has an empty workload")
		}
	}
	if s.Counters == nil || s.Pods == nil || s.Gone == nil {
		return errors.New("it is incomplete")
	}
	return nil
}

// Save writes the file if anything has changed since the last time.
func (l *Ledger) Save(file string) error {
	text, err := l.marshal()
	if text == nil && err == nil {
		return nil
	}
	if err == nil {
		err = wholefile.Write(file, text, 0o600)
	}
	if err != nil {
		l.mu.Lock()
		l.changed = true
		l.mu.Unlock()
		return fmt.Errorf("saving what was counted: %w", err)
	}
	return nil
}

// marshal returns nil if there is nothing new.
func (l *Ledger) marshal() ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.changed {
		return nil, nil
	}
	l.changed = false
	return json.Marshal(l.state)
}
