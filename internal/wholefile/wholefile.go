// Package wholefile writes files that are never seen in part.
package wholefile

import (
	"io/fs"
	"os"
	"path/filepath"
)

// Next is what a file is called while it is written: a program that was killed may have left it.
func Next(file string) string { return file + ".new" }

// Write makes a file, and its directory. It goes by way of a second one, so that a full disk can't leave half of it.
func Write(file string, text []byte, mode fs.FileMode) error {
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = os.WriteFile(Next(file), text, mode)
	}
	if err == nil {
		err = os.Rename(Next(file), file)
	}
	return err
}
