package witness

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	own   = "11111111-0000-0000-0000-000000000000"
	other = "22222222-0000-0000-0000-000000000000"
)

// writePod writes what a container of the pod has printed, as containerd does.
func writePod(t *testing.T, pods, pod, life string, lines ...string) {
	t.Helper()
	directory := filepath.Join(pods, pod, "main")
	if err := os.MkdirAll(directory, 0o755); err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, line := range lines {
		text += Stamp() + " stdout F " + line + "\n"
	}
	if err := os.WriteFile(filepath.Join(directory, life+".log"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// The log of an earlier pod of the same name stays on the disk for a while: its answers are not the later one's.
func TestEarlierPodOfTheSameName(t *testing.T) {
	pods := t.TempDir()
	writePod(t, pods, "default_asker_"+other, "0", Asks(other, "10.244.0.2"), Answered("10.244.0.2:1000"), Counted(20, 13))
	writePod(t, pods, "default_asker_"+own, "0", Asks(own, "10.244.0.3"), Counted(10, 0))
	if a := ReadPod(pods, own); a.Attempts != 10 || a.Answers != 0 || a.FirstAnswer != "" {
		t.Errorf("the later pod has %+v", a)
	}
	if a := ReadPod(pods, other); a.Attempts != 20 || a.Answers != 13 || !strings.Contains(a.FirstAnswer, "10.244.0.2:1000") {
		t.Errorf("the earlier pod has %+v", a)
	}
}

// Each life of the container counts from 0.
func TestLivesAddUp(t *testing.T) {
	pods := t.TempDir()
	writePod(t, pods, "default_asker_"+own, "0", Asks(own, "10.244.0.3"), Counted(10, 0), Counted(20, 2))
	// An answer is written at once, the count up to a second later.
	writePod(t, pods, "default_asker_"+own, "1", Asks(own, "10.244.0.4"), Counted(5, 0), Answered("10.244.0.4:1"))
	if a := ReadPod(pods, own); a.Attempts != 25 || a.Answers != 3 {
		t.Errorf("got %+v", a)
	}
}

func TestConnections(t *testing.T) {
	const ip = "10.244.0.3"
	account := Account{UID: own, lives: []life{{at(10), ip}, {at(20), "10.244.0.9"}}}
	connection := func(second int, client string) string {
		return at(second).Format(time.RFC3339Nano) + " connection " + client + "\n"
	}
	request := func(second int, client, uid string) string {
		return at(second).Format(time.RFC3339Nano) + " request " + client + " pod=" + uid + " GET /a b\n"
	}
	for _, tt := range []struct {
		name, log string
		want      int
	}{
		{"its address, before it was there", connection(9, ip+":1"), 0},
		{"its address, while it asked", connection(10, ip+":1"), 1},
		{"its first address, after it had another one", connection(20, ip+":1"), 0},
		{"its second address", connection(20, "10.244.0.9:1"), 1},
		{"an address that begins like its own", connection(10, ip+"0:1"), 0},
		{"a request in its name, once", connection(11, ip+":1") + request(11, ip+":1", own), 1},
		{"its address, and a request in another's name", connection(11, ip+":1") + request(11, ip+":1", other), 0},
		{"a request in its name, before its first line", connection(9, ip+":1") + request(9, ip+":1", own), 1},
		{"a request in nobody's name, such as curl's", connection(11, ip+":1") + request(11, ip+":1", ""), 1},
		{"an address and port used again", connection(8, ip+":1") + request(8, ip+":1", other) + connection(11, ip+":1"), 1},
		{"a line that is being written", connection(11, ip+":1") + at(11).Format(time.RFC3339Nano), 1},
	} {
		if got := account.Connections(tt.log); got != tt.want {
			t.Errorf("%s: got %d connections, want %d", tt.name, got, tt.want)
		}
	}
}

func at(second int) time.Time { return time.Date(2026, 1, 1, 0, 0, second, 0, time.UTC) }

// What is written is what is read.
func TestLines(t *testing.T) {
	pods := t.TempDir()
	writePod(t, pods, "default_asker_"+own, "0", Asks(own, "10.244.0.3"))
	account := ReadPod(pods, own)
	const client = "10.244.0.3:4711"
	log := Connected(client) + "\n"
	if got := account.Connections(log); got != 1 {
		t.Errorf("a connection: got %d", got)
	}
	if got := account.Connections(log + Requested(client, other, "GET", "/") + "\n"); got != 0 {
		t.Errorf("another's request: got %d", got)
	}
	if got := ConnectionsFrom(log+Requested(client, other, "GET", "/")+"\n", "10.244."); got != 1 {
		t.Errorf("from all pods: got %d", got)
	}
}
