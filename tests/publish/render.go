// Renders an ollama template: text/template with the values and types that ollama gives to it.
// Reads {"template": text, "cases": [{messages, tools, think}]} and writes a JSON list of texts.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type types []string

func (t *types) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*t = types{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(t))
}
func (t types) String() string { return strings.Join(t, ", ") }

type properties struct{ inner map[string]property }

func (p *properties) UnmarshalJSON(b []byte) error { return json.Unmarshal(b, &p.inner) }
func (p *properties) ToMap() map[string]property   { return p.inner }

type property struct {
	Type        types       `json:"type"`
	Items       any         `json:"items"`
	Description string      `json:"description"`
	Enum        []any       `json:"enum"`
	Properties  *properties `json:"properties"`
	Required    []string    `json:"required"`
}
type tool struct {
	Type     string `json:"type"`
	Function struct {
		Name        string `json:"name"`
		Description string `json:"description"`
		Parameters  struct {
			Type       string              `json:"type"`
			Required   []string            `json:"required"`
			Properties map[string]property `json:"properties"`
		} `json:"parameters"`
	} `json:"function"`
}
type call struct {
	ID       string `json:"id"`
	Function struct {
		Name      string         `json:"name"`
		Arguments map[string]any `json:"arguments"`
	} `json:"function"`
}
type message struct {
	Role       string `json:"role"`
	Content    string `json:"content"`
	Thinking   string `json:"thinking"`
	ToolCalls  []call `json:"tool_calls"`
	ToolName   string `json:"tool_name"`
	ToolCallID string `json:"tool_call_id"`
}
type conversation struct {
	Messages []*message `json:"messages"`
	Tools    []tool     `json:"tools"`
	Think    *bool      `json:"think"`
}

func main() {
	var in struct {
		Template string         `json:"template"`
		Cases    []conversation `json:"cases"`
	}
	must(json.NewDecoder(os.Stdin).Decode(&in))
	funcs := template.FuncMap{"json": func(v any) string { b, _ := json.Marshal(v); return string(b) }}
	t, err := template.New("").Option("missingkey=zero").Funcs(funcs).Parse(in.Template)
	must(err)
	out := []string{}
	for _, c := range in.Cases {
		var text strings.Builder
		system := []string{}
		for _, m := range c.Messages {
			if m.Role == "system" {
				system = append(system, m.Content)
			}
		}
		must(t.Execute(&text, map[string]any{
			"System": strings.Join(system, "\n\n"), "Messages": c.Messages, "Tools": c.Tools, "Response": "",
			"Think": c.Think != nil && *c.Think, "IsThinkSet": c.Think != nil,
		}))
		out = append(out, text.String())
	}
	must(json.NewEncoder(os.Stdout).Encode(out))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
