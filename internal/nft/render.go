package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
)

// commentPrefix begins the comment of every table of ours; the hash follows.
const commentPrefix = "weft:"

// ID names a table in its namespace.
type ID struct {
	Family Family
	Name   string
}

// ID gives the name t is known by.
func (t Table) ID() ID { return ID{Family: t.Family, Name: t.Name} }

// String gives the canonical text of t: the same value always gives the same
// text, chains and rules in the order given, because their order has meaning.
// nft accepts it as it is.
func (t Table) String() string { return t.text("") }

// Hash is the SHA-256 of the canonical text in hex.
func (t Table) Hash() string {
	sum := sha256.Sum256([]byte(t.String()))
	return hex.EncodeToString(sum[:])
}

// Comment is the comment the table carries in the kernel. Two tables with the
// same comment were made from the same text, so an observer compares it instead
// of reading rules back, whose spelling nft changes.
func (t Table) Comment() string { return commentPrefix + t.Hash() }

// Owned says whether a table with this comment is one of ours.
func Owned(comment string) bool {
	hash, ok := strings.CutPrefix(comment, commentPrefix)
	if !ok || len(hash) != hex.EncodedLen(sha256.Size) {
		return false
	}
	_, err := hex.DecodeString(hash)
	return err == nil
}

// Script is the input of one `nft -f -`, and so one transaction: every table of
// replace is as given, with nothing older left in it, and those named by remove
// are gone. It takes the same effect whatever was there before; empty input
// gives an empty script.
func Script(replace []Table, remove ...ID) string {
	var b strings.Builder
	for _, id := range remove {
		writeClear(&b, id)
	}
	for _, t := range replace {
		writeClear(&b, t.ID())
		b.WriteString(t.text(t.Comment()))
	}
	return b.String()
}

// writeClear removes the table if it is there. The add comes first because nft
// 1.0.6 has no `destroy` and `delete` of an absent table fails the transaction.
func writeClear(b *strings.Builder, id ID) {
	name := string(id.Family) + " " + id.Name + "\n"
	b.WriteString("add table " + name)
	b.WriteString("delete table " + name)
}

func (t Table) text(comment string) string {
	var b strings.Builder
	b.WriteString("table " + string(t.Family) + " " + t.Name + " {\n")
	if comment != "" {
		b.WriteString("\tcomment \"" + comment + "\"\n")
	}
	for _, c := range t.Chains {
		c.write(&b)
	}
	b.WriteString("}\n")
	return b.String()
}

func (c Chain) write(b *strings.Builder) {
	b.WriteString("\tchain " + c.Name + " {\n")
	if c.Hook != "" {
		policy := c.Policy
		if policy == "" {
			policy = "accept"
		}
		// The priority is a number: nft 1.0.6 knows names such as dstnat in some
		// hooks only and refuses the whole file otherwise.
		b.WriteString("\t\ttype " + c.Type + " hook " + c.Hook + " priority " + strconv.Itoa(c.Priority) + "; policy " + policy + ";\n")
	}
	for _, r := range c.Rules {
		b.WriteString("\t\t" + string(r) + "\n")
	}
	b.WriteString("\t}\n")
}
