// Renders conversations by a template of Go's, as Ollama does: JSON in, a list of texts out.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var input struct {
		Template      string
		Conversations [][]message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		panic(err)
	}
	parsed := template.Must(template.New("").Parse(input.Template))
	texts := []string{}
	for _, messages := range input.Conversations {
		var text strings.Builder
		if err := parsed.Execute(&text, map[string]any{"Messages": messages}); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
