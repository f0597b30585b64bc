// Archives that are the same bytes for the same content: sorted, of root's, and with one time in all.
package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// mode is what matters of a file's mode, whatever the builder's umask is.
func mode(info fs.FileInfo) int64 {
	if info.IsDir() || info.Mode()&0o100 != 0 {
		return 0o755
	}
	return 0o644
}

// tarGz is an archive of what add adds.
func tarGz(add func(*tar.Writer) error) ([]byte, error) {
	var out bytes.Buffer
	compressed := gzip.NewWriter(&out)
	archive := tar.NewWriter(compressed)
	if err := add(archive); err != nil {
		return nil, err
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	err := compressed.Close()
	return out.Bytes(), err
}

func tarGzOf(files []string, at time.Time) ([]byte, error) {
	return tarGz(func(archive *tar.Writer) error {
		for _, file := range files {
			if err := addFile(archive, file, filepath.Base(file), at); err != nil {
				return err
			}
		}
		return nil
	})
}

func zipOf(files []string, at time.Time) ([]byte, error) {
	var out bytes.Buffer
	archive := zip.NewWriter(&out)
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			return nil, err
		}
		header := &zip.FileHeader{Name: filepath.Base(file), Method: zip.Deflate, Modified: at}
		header.SetMode(fs.FileMode(mode(info)))
		entry, err := archive.CreateHeader(header)
		if err != nil {
			return nil, err
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		if _, err := entry.Write(content); err != nil {
			return nil, err
		}
	}
	err := archive.Close()
	return out.Bytes(), err
}

// addTree adds what is in a directory, which WalkDir sorts, under a path that ends in a slash or is empty.
func addTree(archive *tar.Writer, dir, under string, at time.Time) error {
	return filepath.WalkDir(dir, func(file string, _ fs.DirEntry, err error) error {
		if err != nil || file == dir {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		return addFile(archive, file, under+filepath.ToSlash(name), at)
	})
}

// addFile adds a file, a directory alone, or a link.
func addFile(archive *tar.Writer, file, name string, at time.Time) error {
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode(info), ModTime: at, Format: tar.FormatPAX}
	var content []byte
	switch {
	case info.IsDir():
		header.Typeflag, header.Name = tar.TypeDir, name+"/"
	case info.Mode()&fs.ModeSymlink != 0:
		header.Typeflag, header.Mode = tar.TypeSymlink, 0o777
		if header.Linkname, err = os.Readlink(file); err != nil {
			return err
		}
	default:
		if content, err = os.ReadFile(file); err != nil {
			return err
		}
		header.Size = int64(len(content))
	}
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = archive.Write(content)
	return err
}
