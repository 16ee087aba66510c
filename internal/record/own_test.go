package record

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestOwn(t *testing.T) {
	dir, run := t.TempDir(), t.TempDir()
	first, err := Open(dir, run)
	if err != nil {
		t.Fatal(err)
	}
	release, err := first.Own(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := Open(dir, run) // as another process would
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := second.Own(short); !errors.Is(err, ErrOwned) {
		t.Errorf("two own the records: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	})
	again, err := second.Own(t.Context()) // waits
	if err != nil {
		t.Fatal(err)
	}
	if err := again(); err != nil {
		t.Fatal(err)
	}
	if ids, err := first.IDs(); err != nil || len(ids) > 0 {
		t.Errorf("the lock counts as a record: %v (%v)", ids, err)
	}
}
