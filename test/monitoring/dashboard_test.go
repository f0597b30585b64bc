// The dashboard's file, and the metrics that queries name.
package monitoring

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const dashboardFile = "../../deploy/chart/imds-guard/files/dashboard.json"

type panel struct {
	ID      int    `json:"id"`
	Type    string `json:"type"`
	Title   string `json:"title"`
	GridPos struct{ X, Y, W, H int }
	Targets []target `json:"targets"`
}

type target struct {
	RefID      string `json:"refId"`
	Expr       string `json:"expr"`
	Legend     string `json:"legendFormat"`
	Datasource struct{ UID string }
}

// query is what Grafana sends when nothing is narrowed down.
func (t target) query() string {
	return strings.NewReplacer("$cluster", ".*", "$node", ".*").Replace(t.timed())
}

// timed is the expression with durations in it.
func (t target) timed() string {
	return strings.NewReplacer("$__rate_interval", "5m", "$__range", "5m").Replace(t.Expr)
}

type dashboard struct {
	Title, UID string
	Templating struct {
		List []struct {
			Name       string `json:"name"`
			Definition string `json:"definition"`
		} `json:"list"`
	} `json:"templating"`
	Panels []panel `json:"panels"`
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal([]byte(readFile(t, dashboardFile)), &d); err != nil {
		t.Fatalf("reading %s: %v", dashboardFile, err)
	}
	return d
}

// queries are all that the dashboard asks.
func (d dashboard) queries() (queries []string) {
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			queries = append(queries, target.query())
		}
	}
	return queries
}

func TestDashboard(t *testing.T) {
	t.Parallel()
	d := readDashboard(t)
	variables := []string{"__rate_interval", "__range"}
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
	}
	ids, taken := map[int]string{}, map[[2]int]string{}
	used := regexp.MustCompile(`\$([a-z_]\w*)`) // not $1, which is label_replace's
	for _, p := range d.Panels {
		if other, ok := ids[p.ID]; ok {
			t.Errorf("%s and %s have the same id", p.Title, other)
		}
		ids[p.ID] = p.Title
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, ok := taken[[2]int{x, y}]; ok || x > 23 {
					t.Fatalf("%s lies on %q, or beside the page", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s asks nothing", p.Title)
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" {
				t.Errorf("%s asks the data source %q", p.Title, target.Datasource.UID)
			}
			for _, v := range used.FindAllStringSubmatch(target.Expr, -1) {
				if !slices.Contains(variables, v[1]) {
					t.Errorf("%s: there is no variable %s", p.Title, v[0])
				}
			}
			// A query that leaves the variables out shows other nodes than those chosen.
			for _, selector := range shown(target.timed()) {
				if selector != "kube_node_info" &&
					!(strings.Contains(selector, `cluster=~"$cluster"`) && strings.Contains(selector, `node=~"$node"`)) {
					t.Errorf("%s: %s is not narrowed down to the nodes chosen", p.Title, selector)
				}
			}
		}
	}
}

var (
	comments = regexp.MustCompile(`(?m)#.*$`)
	labels   = regexp.MustCompile(`\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)`)
	// named is a metric with its matchers, a function with the parenthesis after it, or a string.
	named    = regexp.MustCompile(`"[^"]*"|\b[a-zA-Z_:][a-zA-Z0-9_:]*(\s*\{[^}]*\}|\s*\()?`)
	keywords = []string{"and", "or", "unless", "offset", "bool", "by", "on"}
	// filter only says which of the results are shown.
	filter = regexp.MustCompile(`\b(and|unless) on \([^)]*\) \w+(\{[^}]*\})?`)
)

// shown are the selectors of an expression whose nodes a panel shows.
func shown(expr string) []string { return selectors(filter.ReplaceAllString(expr, "")) }

// selectors are the metrics that an expression names, with their matchers.
func selectors(expr string) (found []string) {
	expr = labels.ReplaceAllString(comments.ReplaceAllString(expr, ""), "")
	for _, name := range named.FindAllString(expr, -1) {
		if word := strings.TrimRight(name, " \n("); !strings.HasSuffix(name, "(") && !strings.HasPrefix(name, `"`) &&
			!slices.Contains(keywords, word) {
			found = append(found, name)
		}
	}
	return found
}

func TestSelectors(t *testing.T) {
	t.Parallel()
	got := selectors(`topk(10, sum by (le, family) (rate(a_total{b=~"c|d", e="f"}[5m]))) > 1e9 # not_this
		and on (node) max_over_time(g[1h] offset 30m) == 1 unless
		(h - on (x) i{j!=""}) or absent(k) or label_replace(l, "not_this", "", "nor_this", "")`)
	want := []string{`a_total{b=~"c|d", e="f"}`, "g", "h", `i{j!=""}`, "k", "l"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	got = shown(`a{b="c"} and on (d) e unless on (d, f) g{h=~"i"} or j`)
	if want := []string{`a{b="c"}`, "j"}; !slices.Equal(got, want) {
		t.Errorf("shown are %q, want %q", got, want)
	}
}
