package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

// A pod's UID is found in its cgroup's name, with both drivers, in each QoS class, below a kubelet's own root, and for a static
// pod, whose UID has no dashes.
func TestPodOfName(t *testing.T) {
	const uid = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
	for name, want := range map[string]string{
		"pod" + uid: uid,
		"kubepods-pod0a1b2c3d_4e5f_6071_8293_a4b5c6d7e8f9.slice":                    uid,
		"kubepods-burstable-pod0a1b2c3d_4e5f_6071_8293_a4b5c6d7e8f9.slice":          uid,
		"kubelet-kubepods-besteffort-pod0a1b2c3d_4e5f_6071_8293_a4b5c6d7e8f9.slice": uid,
		"pod0a1b2c3d4e5f60718293a4b5c6d7e8f9":                                       "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
		"kubepods-burstable-pod0a1b2c3d4e5f60718293a4b5c6d7e8f9.slice":              "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
		"kubepods-burstable.slice":                                                  "",
		"burstable":                                                                 "",
		"pod" + uid + "x":                                                           "",
		"podman":                                                                    "",
		"cri-containerd-0a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9.scope": "",
	} {
		if got := podOf(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// Pods are found on both levels. Whatever is inside a pod's cgroup belongs to that pod, even a cgroup that it has given another
// pod's name: otherwise a privileged pod could be let through as that pod, or ask in its name.
func TestPodsBelow(t *testing.T) {
	directory := t.TempDir()
	const one, two = "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"
	guaranteed, burstable := filepath.Join(directory, "pod"+one), filepath.Join(directory, "burstable", "pod"+two)
	for _, path := range []string{filepath.Join(guaranteed, "container", "pod"+two), filepath.Join(burstable, "container", "init.scope")} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	id := func(path string) uint64 {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		id, err := idOf(f)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	ids, err := Pods(directory)
	if err != nil || len(ids) != 2 || ids[one] != id(guaranteed) || ids[two] != id(burstable) {
		t.Errorf("%v, %v", ids, err)
	}
	if _, err := Pods(filepath.Join(directory, "gone")); err == nil {
		t.Error("no error without the directory")
	}
}
