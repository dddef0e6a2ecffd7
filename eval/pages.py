"""Tables of a report as Markdown and as a page of HTML."""

import html
from dataclasses import dataclass, field


@dataclass
class Table:
    """A table of a report: its first column is left-aligned, the others hold numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


# forms
def to_markdown(tables: list[Table]) -> str:
    """The tables in GitHub's Markdown."""
    parts = ["# Evaluation"]
    for table in tables:
        parts.append(f"## {table.title}")
        if table.rows:
            lines = [table.head, ["---"] + ["---:"] * (len(table.head) - 1), *table.rows]
            parts.append(
                "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
            )
        parts += ["\n".join(f"- {note}" for note in table.notes)] * bool(table.notes)
    return "\n\n".join(parts) + "\n"


_STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1b1b1b}
div{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:#fff}
tr.own td{background:#eef4ff;font-weight:600}li{color:#555;font-size:13px}"""


def to_html(tables: list[Table]) -> str:
    """The tables as one page that needs nothing else."""

    def cell(text, tag):
        return f"<{tag}>{html.escape(text.replace('**', ''))}</{tag}>"

    parts = []
    for table in tables:
        parts.append(f"<h2>{html.escape(table.title)}</h2>")
        if table.rows:
            head = "".join(cell(text, "th") for text in table.head)
            rows = ""
            for row in table.rows:
                own = " class=own" if row[0].startswith("**") else ""
                rows += f"<tr{own}>{''.join(cell(text, 'td') for text in row)}</tr>\n"
            parts.append(f"<div><table><tr>{head}</tr>\n{rows}</table></div>")
        parts.append("<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in table.notes) + "</ul>")
    body = "\n".join(parts)
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>Evaluation</title>\n<style>{_STYLE}</style>\n"
        f"<h1>Evaluation</h1>\n{body}\n</html>\n"
    )
