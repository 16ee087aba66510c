package netstate

// Verb says what an operation does. The order of the constants is the order in
// which operations run: what goes away first, from the top of the stack down,
// then what comes, from the bottom up.
type Verb int

// Verbs of operations.
const (
	DelTable Verb = iota + 1
	DelRule
	DelRoute
	DelFDB
	DelAddr
	// DelLink operations of one side follow each other, so that whoever runs
	// them can delete the links together.
	DelLink
	// AddLink makes a link with everything the kernel takes on the way; a veth
	// pair has one, for both its ends.
	AddLink
	// SetLink changes the attributes named by Op.Fields.
	SetLink
	// SetPort changes the master (FieldMaster) and the port settings (FieldPort).
	SetPort
	SetSysctl
	AddAddr
	// SetUp sets IFF_UP; taking a link down is a SetLink.
	SetUp
	AddRoute
	AddRule
	AddFDB
	SetTable
)

// Fields is a set of link attributes.
type Fields uint16

// Attributes of a link.
const (
	FieldMAC Fields = 1 << iota
	FieldMTU
	FieldTxQueueLen
	FieldPromisc
	FieldAllMulticast
	FieldMaster
	FieldPort
	FieldAddrGenMode
	FieldGroup
	FieldAlias
	FieldBridge
	FieldBCQueueLen
	FieldUp
)

// Has says whether all of g are in f.
func (f Fields) Has(g Fields) bool { return f&g == g }

// Op is one step from one state to another. It is a comparable value that
// refers to its object by index.
type Op struct {
	Side Side
	Verb Verb
	// Index is the place of the object in the normalized state of Op's side: in
	// the observed one for what is deleted, in the wanted one for all else.
	Index int
	// Fields are the attributes an AddLink, SetLink or SetPort gives the link.
	Fields Fields
	// Text says the step as one would type it.
	Text string
}

// String gives the side and the step.
func (o Op) String() string { return string(o.Side) + ": " + o.Text }

// Deletes says whether the step takes something away. The kernel may take more
// along than it was told (routes go with their addresses), so a run that
// contains such a step must look again.
func (o Op) Deletes() bool { return o.Verb <= DelLink }
