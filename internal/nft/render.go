package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"strings"
)

// commentHashLen is how much of the hash stands in a comment: 128 bits, in 32
// characters, so that an alias of up to 95 bytes fits beside it (a comment holds
// 128, NFTNL_UDATA_COMMENT_MAXLEN).
const commentHashLen = 32

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

// Comment is what the table carries in the kernel: its owner's mark and the hash
// of its text. Two tables with the same comment were made from the same value, so
// an observer compares it instead of reading rules back, whose spelling nft
// changes.
func (t Table) Comment() string { return t.Alias + " " + t.Hash()[:commentHashLen] }

// ParseComment takes apart what Comment made. ok is false for any other text.
func ParseComment(comment string) (alias, hash string, ok bool) {
	i := strings.LastIndexByte(comment, ' ')
	if i < 0 || len(comment)-i-1 != commentHashLen {
		return "", "", false
	}
	if _, err := hex.DecodeString(comment[i+1:]); err != nil {
		return "", "", false
	}
	return comment[:i], comment[i+1:], true
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

// Addition is Script for tables that are not there, as far as is known; if one is,
// nft refuses the whole transaction (EEXIST). It spares their deletion, whose
// grace period nft waits for when it ends: 5 ms instead of 20.
func Addition(tables []Table) string {
	var b strings.Builder
	for _, t := range tables {
		// nft 1.0.6 makes no chains of a `create table` with a block.
		b.WriteString("create table " + string(t.Family) + " " + t.Name + " {\n\tcomment \"" + t.Comment() + "\"\n}\n")
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
