//go:build !failpoint

package chain

// failpoint is for tests of the whole agent, see failpoint.go.
func failpoint() func(step string) error { return nil }
