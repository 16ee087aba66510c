package garbage

import (
	"testing"
	"time"
)

// TestJudge looks at one owner at the times given, in seconds, with a grace of 30.
func TestJudge(t *testing.T) {
	type look struct {
		at    int
		facts Facts
		want  Verdict
	}
	ended := func(node Node, heard string) Facts { return Facts{Ended, node, heard} }
	for name, looks := range map[string][]look{
		"live":                    {{0, Facts{Live, There, "1"}, Keep}, {600, Facts{Live, Gone, ""}, Keep}},
		"ended, the node answers": {{0, ended(There, "1"), Wait}, {29, ended(There, "2"), Wait}, {30, ended(There, "2"), Free}},
		"ended, the node is silent": {
			{0, ended(There, "1"), Wait}, {30, ended(There, "1"), Wait}, {86400, ended(There, "1"), Wait}, {86401, ended(There, "2"), Free},
		},
		"what was heard is not known":  {{0, ended(There, ""), Wait}, {60, ended(There, ""), Wait}, {61, ended(There, "7"), Wait}, {62, ended(There, "8"), Free}},
		"one look is not enough":       {{86400, ended(Gone, ""), Wait}},
		"the node goes":                {{0, ended(There, "1"), Wait}, {100, ended(Gone, ""), Wait}, {129, ended(Gone, ""), Wait}, {130, ended(Gone, ""), Free}},
		"the node goes and comes back": {{0, ended(Gone, ""), Wait}, {20, ended(There, "1"), Wait}, {40, ended(Gone, ""), Wait}, {69, ended(Gone, ""), Wait}, {70, ended(Gone, ""), Free}},
		"the node is not asked":        {{0, ended(Gone, ""), Wait}, {40, ended(Unasked, ""), Wait}, {41, ended(Gone, ""), Free}},
		"the API does not answer":      {{0, Facts{}, Wait}, {600, Facts{}, Wait}, {601, ended(There, "1"), Wait}, {640, ended(There, "2"), Free}},
		"live after all":               {{0, ended(There, "1"), Wait}, {40, Facts{Live, There, "2"}, Keep}, {41, ended(There, "3"), Wait}, {60, ended(There, "4"), Wait}, {71, ended(There, "4"), Free}},
		"the node of a live Pod goes":  {{0, Facts{Live, Gone, ""}, Keep}, {90, Facts{Live, Gone, ""}, Keep}},
		"absent, the node answers":     {{0, Facts{Absent, There, "1"}, Wait}, {86400, Facts{Absent, There, "2"}, Wait}},
		"absent, the node is gone":     {{0, Facts{Absent, Gone, ""}, Wait}, {30, Facts{Absent, Gone, ""}, Free}},
		"nameless":                     {{0, Facts{Nameless, There, "1"}, Keep}, {60, Facts{Nameless, There, "2"}, Keep}, {61, Facts{Nameless, Gone, ""}, Wait}, {91, Facts{Nameless, Gone, ""}, Free}},
		"nameless, not asked":          {{0, Facts{Nameless, Unasked, ""}, Wait}, {60, Facts{Nameless, Unasked, ""}, Wait}},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Unix(0, 0)
			var sight Sight
			for _, look := range looks {
				var got Verdict
				sight, got = Judge(begin.Add(time.Duration(look.at)*time.Second), 30*time.Second, sight, look.facts)
				if got != look.want {
					t.Fatalf("at %d: got %d, want %d", look.at, got, look.want)
				}
			}
		})
	}
}

// TestExplain: what people are told of an owner that was seen to be gone at 0, and
// its node, if it is gone, at 20.
func TestExplain(t *testing.T) {
	begin := time.Unix(0, 0)
	at := func(seconds int) time.Time { return begin.Add(time.Duration(seconds) * time.Second) }
	for name, tt := range map[string]struct {
		now   int
		facts Facts
		want  Reason
		until time.Time
	}{
		"live":                         {100, Facts{Live, There, "2"}, OwnerLives, time.Time{}},
		"nameless":                     {100, Facts{Nameless, There, "2"}, WithNode, time.Time{}},
		"nameless, its node just went": {40, Facts{Nameless, Gone, ""}, Grace, at(50)},
		"nameless, its node is gone":   {50, Facts{Nameless, Gone, ""}, Nobody, time.Time{}},
		"the owner is not asked":       {100, Facts{Unknown, There, "2"}, Unanswered, time.Time{}},
		"the node is not asked":        {100, Facts{Ended, Unasked, ""}, Unanswered, time.Time{}},
		"just ended":                   {29, Facts{Ended, There, "2"}, Grace, at(30)},
		"just ended, the node went":    {29, Facts{Ended, Gone, ""}, Grace, at(50)},
		"the node went later":          {49, Facts{Ended, Gone, ""}, Grace, at(50)},
		"the node is gone":             {50, Facts{Ended, Gone, ""}, Nobody, time.Time{}},
		"the node is silent":           {1000, Facts{Ended, There, "1"}, NodeSilent, time.Time{}},
		"the node was heard":           {30, Facts{Ended, There, "2"}, Nobody, time.Time{}},
		"absent":                       {1000, Facts{Absent, There, "2"}, NodeKeeps, time.Time{}},
		"absent, the node is gone":     {50, Facts{Absent, Gone, ""}, Nobody, time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, until := Explain(at(tt.now), 30*time.Second, Sight{Since: begin, NodeGone: at(20), Heard: "1"}, tt.facts)
			if got != tt.want || !until.Equal(tt.until) {
				t.Errorf("got %s until %v, want %s until %v", got, until, tt.want, tt.until)
			}
		})
	}
}
