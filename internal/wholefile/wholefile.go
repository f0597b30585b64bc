// Package wholefile writes files atomically: nobody ever sees a part of one.
package wholefile

import (
	"io/fs"
	"os"
	"path/filepath"
)

// Next returns a file's name while it is being written. A program that is killed may leave it behind.
func Next(file string) string { return file + ".new" }

// Write writes a file, and makes its directory. It writes a second file first and renames it, so that a full disk can't leave
// half of one.
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
