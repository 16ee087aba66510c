// Package version holds the one version all programs of weft carry.
package version

// Text is the version, set at link time by the Makefile
// (-X github.com/weftnet/weft/internal/version.Text=...).
var Text = "dev"
