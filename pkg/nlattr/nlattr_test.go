package nlattr

import (
	"bytes"
	"testing"
)

// Attributes are read whether the last one is padded or not, and nothing is read behind them.
func TestAttributesWithoutPadding(t *testing.T) {
	for size := range 9 {
		value := bytes.Repeat([]byte{9}, size)
		list, err := List(append([]byte{byte(4 + size), 0, 1, 0}, value...))
		if err != nil || len(list) != 1 || list[0].Attr.Type != 1 || !bytes.Equal(list[0].Value, value) {
			t.Errorf("%d bytes: %+v, %v", size, list, err)
		}
	}
}
