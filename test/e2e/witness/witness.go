// Package witness is what the asking pods and the metadata service write down, and how it is read afterwards. Both tell pods
// apart by UID: a name is the next test's pod's too, and an address is given away again, after a reboot from the first one on.
package witness

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Header is where an asking pod says its UID to the metadata service.
const Header = "X-E2e-Pod"

// Stamp begins each line. Pods and service have one clock, their machine's.
func Stamp() string { return time.Now().UTC().Format(time.RFC3339Nano) }

// Asks is the first line of an asking pod, before its first packet.
func Asks(uid, ip string) string { return fmt.Sprintf("%s asks as %s from %s", Stamp(), uid, ip) }

// Answered is the line for an answer, with the pod's side of the connection.
func Answered(local string) string { return fmt.Sprintf("%s ANSWER to %s", Stamp(), local) }

// Counted is the line with all that was counted so far.
func Counted(attempts, answers int) string {
	return fmt.Sprintf("%s attempts=%d answers=%d", Stamp(), attempts, answers)
}

// Connected is the metadata service's line for a new connection.
func Connected(client string) string { return fmt.Sprintf("%s connection %s", Stamp(), client) }

// Requested is its line for a request on that connection.
func Requested(client, uid, method, path string) string {
	return fmt.Sprintf("%s request %s pod=%s %s %s", Stamp(), client, uid, method, path)
}

// Account is what a pod says of itself, in all of its containers' lives.
type Account struct {
	UID               string
	Attempts, Answers int
	FirstAnswer       string // its line

	lives []life
}

// life is a container's: from when on it asked, and the address that the pod had then.
type life struct {
	began time.Time
	ip    string
}

var (
	asksLine  = regexp.MustCompile(`(\S+) asks as (\S+) from (\S*)$`)
	countLine = regexp.MustCompile(`attempts=(\d+) answers=(\d+)$`)
)

// ReadPod reads the log of the pod with this UID, below a node's /var/log/pods.
func ReadPod(pods, uid string) Account {
	a := Account{UID: uid}
	// NAMESPACE_NAME_UID, and in it one file for each life of the container. No name has a _ in it.
	files, _ := filepath.Glob(filepath.Join(pods, "*_*_"+uid, "main", "*.log*"))
	slices.Sort(files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // deleted with its pod
		}
		attempts, counted, seen := 0, 0, 0
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\n")
			if strings.Contains(line, " ANSWER to ") {
				if seen++; a.FirstAnswer == "" {
					a.FirstAnswer = line
				}
			} else if m := countLine.FindStringSubmatch(line); m != nil {
				attempts, _ = strconv.Atoi(m[1])
				counted, _ = strconv.Atoi(m[2])
			} else if m := asksLine.FindStringSubmatch(line); m != nil && m[2] == uid {
				if began, err := time.Parse(time.RFC3339Nano, m[1]); err == nil {
					a.lives = append(a.lives, life{began, m[3]})
				}
			}
		}
		a.Attempts += attempts
		a.Answers += max(seen, counted)
	}
	slices.SortFunc(a.lives, func(x, y life) int { return x.began.Compare(y.began) })
	return a
}

// Connections returns how many connections of the pod's reached the metadata service, by the service's log. A request says
// whose it is. A connection without one has only its address: it is the pod's if it came while the pod had that address and
// asked from it.
func (a Account) Connections(log string) int {
	type connection struct {
		at      time.Time
		ip, pod string
	}
	var all []connection
	latest := map[string]int{} // by the client's address and port, which are used again as well
	for line := range strings.Lines(log) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		switch client := fields[2]; fields[1] {
		case "connection":
			at, err := time.Parse(time.RFC3339Nano, fields[0])
			ip, _, errClient := net.SplitHostPort(client)
			if err != nil || errClient != nil {
				continue
			}
			latest[client] = len(all)
			all = append(all, connection{at: at, ip: ip})
		case "request":
			if i, ok := latest[client]; ok && len(fields) > 3 {
				all[i].pod = strings.TrimPrefix(fields[3], "pod=")
			}
		}
	}
	count := 0
	for _, c := range all {
		if c.pod == a.UID || c.pod == "" && a.had(c.ip, c.at) {
			count++
		}
	}
	return count
}

// had tells whether the pod asked from this address at that time.
func (a Account) had(ip string, at time.Time) bool {
	for i, l := range a.lives {
		ended := i+1 < len(a.lives) && !at.Before(a.lives[i+1].began)
		if l.ip == ip && !at.Before(l.began) && !ended {
			return true
		}
	}
	return false
}

// ConnectionsFrom returns how many connections have come from addresses that begin like this, whosever they were.
func ConnectionsFrom(log, prefix string) int {
	count := 0
	for line := range strings.Lines(log) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[1] == "connection" && strings.HasPrefix(fields[2], prefix) {
			count++
		}
	}
	return count
}
