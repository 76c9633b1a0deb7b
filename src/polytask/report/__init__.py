"""Results to facts, and facts to HTML, Markdown and the terminal."""

from polytask.report.facts import collect as collect
from polytask.report.html import write_html as write_html
from polytask.report.markdown import to_markdown as to_markdown
from polytask.report.terminal import to_terminal as to_terminal
