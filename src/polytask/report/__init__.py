"""Results to facts, and facts to HTML, Markdown and the terminal."""
