package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"

	"github.com/weftnet/weft/internal/hint"
	"github.com/weftnet/weft/internal/linux"
)

// nftProgram is a nft that runs in a namespace and waits for its one script. It
// has done nothing before the script has its end: left alone, or orphaned by our
// death, it reads an empty one and ends.
type nftProgram struct {
	cmd    *exec.Cmd
	script io.WriteCloser
	stderr bytes.Buffer
}

// startNFT starts the program; it inherits the namespace of the thread that does.
func (d *Dataplane) startNFT(ns *linux.NS) (*nftProgram, error) {
	p := &nftProgram{cmd: exec.Command(d.nft, "-f", "-")}
	p.cmd.Stderr = &p.stderr
	var err error
	if p.script, err = p.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start nft: %w", err)
	}
	err = ns.Do(p.cmd.Start)
	if errors.Is(err, exec.ErrNotFound) {
		return nil, &hint.Error{Field: "nft", Value: d.nft, Problem: "the program is not installed", Err: err, Remedy: "install the package nftables"}
	}
	if err != nil {
		return nil, fmt.Errorf("start nft: %w", err)
	}
	return p, nil
}

// run gives the program its script, one transaction, and waits for its end.
func (p *nftProgram) run(script string) error {
	_, err := io.WriteString(p.script, script)
	if errors.Is(err, syscall.EPIPE) {
		err = nil // it has ended already, and says below why
	}
	err = errors.Join(err, p.script.Close())
	if waitErr := p.cmd.Wait(); waitErr != nil {
		return nftError(waitErr, p.stderr.String())
	}
	if err != nil {
		return fmt.Errorf("write script for nft: %w", err)
	}
	return nil
}

// abandon ends a program that got no script.
func (p *nftProgram) abandon() {
	_ = p.cmd.Process.Kill() // it may have ended by itself
	_ = p.cmd.Wait()         // says that it was killed
}

// expectTables starts nft where tables are to be set, beside what there is to do
// before: it takes three to four milliseconds to load, most of what it takes at
// all. The session waits for it in script or close.
func (s *session) expectTables(v *view) {
	if v.nft != nil {
		return
	}
	var p *nftProgram
	var err error
	started := make(chan struct{})
	go func() {
		p, err = s.d.startNFT(v.ns)
		close(started)
	}()
	v.nft = func() (*nftProgram, error) {
		<-started
		return p, err
	}
}

// script runs one nft transaction in the namespace of a view.
func (s *session) script(v *view, script string) error {
	if err := s.step("nft"); err != nil {
		return err
	}
	start := v.nft
	v.nft = nil
	if start == nil {
		start = func() (*nftProgram, error) { return s.d.startNFT(v.ns) }
	}
	p, err := start()
	if err != nil {
		return err
	}
	return p.run(script)
}

// nftError explains what nft said; the first line tells what and where.
func nftError(err error, stderr string) error {
	first, _, _ := strings.Cut(strings.TrimSpace(stderr), "\n")
	if strings.Contains(stderr, "File exists") {
		return fmt.Errorf("%w: %s", errRace, first)
	}
	if strings.Contains(stderr, "Operation not supported") || strings.Contains(stderr, "No such file or directory") {
		return &hint.Error{
			Field: "nft", Problem: "the kernel lacks something the rules need", Err: fmt.Errorf("%w: %s", err, first),
			Remedy: "load the modules: modprobe -a nf_tables nft_chain_nat nft_masq nft_ct nf_tables_bridge",
		}
	}
	return fmt.Errorf("run nft: %w: %s", err, first)
}
