"""Tables of a report as Markdown and as a page of HTML."""

import html
from dataclasses import dataclass, field


@dataclass
class Table:
    """A table of a report: its first column is left-aligned, the others hold numbers.

    Args:
        title (`str`): its heading.
        head (`list[str]`): names of the columns.
        rows (`list[list[str]]`): cells; a first cell in `**bold**` marks a row of our own results.
        notes (`list[str]`, *optional*): sentences below the table.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def to_markdown(tables: list[Table]) -> str:
    """The tables in GitHub's Markdown; one without rows is its title and notes.

    Example:

    ```python
    print(to_markdown([Table("Means", ["model", "VQA"], [["**ours**", "51.0"]], ["In percent."])]))
    ```
    """
    blocks = ["# Evaluation"]
    for table in tables:
        blocks.append(f"## {table.title}")
        if table.rows:
            blocks.append(_markdown_table(table))
        if table.notes:
            blocks.append("- " + "\n- ".join(table.notes))
    return "\n\n".join(blocks) + "\n"


def _markdown_table(table: Table) -> str:
    """Head, rule and rows; the rule aligns all columns but the first to the right."""
    rule = ["---"] + ["---:"] * (len(table.head) - 1)
    lines = []
    for cells in (table.head, rule, *table.rows):
        # a bar inside a cell would end it
        escaped = [cell.replace("|", "\\|") for cell in cells]
        lines.append("| " + " | ".join(escaped) + " |")
    return "\n".join(lines)


_STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#1b1b1b}
div{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:#fff}
tr.own td{background:#eef4ff;font-weight:600}li{color:#555;font-size:13px}"""


def to_html(tables: list[Table]) -> str:
    """The tables as one page that loads nothing else."""
    blocks = []
    for table in tables:
        blocks.append(f"<h2>{html.escape(table.title)}</h2>")
        if table.rows:
            blocks.append(_html_table(table))

        notes = ""
        for note in table.notes:
            notes += f"<li>{html.escape(note)}</li>"
        blocks.append(f"<ul>{notes}</ul>")

    body = "\n".join(blocks)
    return (
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>Evaluation</title>\n<style>{_STYLE}</style>\n"
        f"<h1>Evaluation</h1>\n{body}\n</html>\n"
    )


def _html_table(table: Table) -> str:
    """Head and rows, in a block that scrolls sideways."""
    lines = [f"<div><table><tr>{_html_cells(table.head, 'th')}</tr>"]
    for row in table.rows:
        # our own results stand out by colour; the stars that mark them are Markdown
        opening = "<tr>"
        if row[0].startswith("**"):
            opening = "<tr class=own>"
        lines.append(f"{opening}{_html_cells(row, 'td')}</tr>")

    lines.append("</table></div>")
    return "\n".join(lines)


def _html_cells(texts: list[str], tag: str) -> str:
    """The cells of one row."""
    cells = ""
    for text in texts:
        cells += f"<{tag}>{html.escape(text.replace('**', ''))}</{tag}>"
    return cells
