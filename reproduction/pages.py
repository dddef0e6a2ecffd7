"""The page of a reproduction, as Markdown and as HTML."""

import base64
import html
import shutil
from pathlib import Path

from ..files.writing import read_json, write_text
from .claims import CLAIMS, in_order

INTRODUCTION = (
    "What the three papers claim, re-enacted on the [miniature world](architecture.md) by "
    "[`unime reproduce`](training.md#the-papers-claims): small models on drawn pictures, trained by the same code as "
    "the real ones. It shows whether an effect is there, not how large it is on photographs. Nothing here is the "
    "benchmarks of these names: *MMEB* are drawn tasks of its four kinds (classification, questions, retrieval, "
    "grounding), *short* and *long retrieval* those of pictures and captions, *compositional* those of SugarCrepe's "
    "kinds. *Raw* is a backbone before any of the [stages](training.md), and after lessons in one word, which stand "
    "for the instructions that chat models were tuned with: half of them under a system sentence, in wordings that "
    "are not the papers', and half in one turn with the summary prompt. Summary, joint and hierarchical are "
    "[prompts](prompts.md). Test tasks have 400 queries, and had 150 when most of what was tried was "
    "measured. Settings of F1, F2, F9 and F11 were changed after a first measurement, on the same queries; the "
    "intervals do not account for that.\n\n"
    "A difference *holds* if its whole 95 % interval is above the bound that is asked, and the difference itself as "
    "large as is asked; it *does not hold* if the whole interval is below the bound, or above it and the difference "
    "too small; else it *cannot be told*. A claim holds if all of its differences do, and does not if one of them "
    "does not."
)


def write_pages(summary: Path, markdown: Path) -> list[Path]:
    """Writes a page for `reproduction.json`, with the pictures beside it.

    Args:
        summary (`Path`): written by [`~unime.reproduction.running.reproduce`].
        markdown (`Path`): the page; its HTML version, which holds its pictures, has the same name.

    Returns:
        the two files.
    """
    claims = read_json(summary)["claims"]
    markdown.parent.mkdir(parents=True, exist_ok=True)
    for claim in claims.values():
        for picture in claim["pictures"]:
            source = Path(claim["folder"]) / picture
            target = markdown.parent / f"{markdown.stem}-{picture}"
            if source.resolve() != target.resolve():
                shutil.copy(source, target)

    page = markdown.with_suffix(".html")
    write_text(markdown, to_markdown(claims, markdown.stem))
    write_text(page, to_html(claims))
    return [markdown, page]


# Markdown
def to_markdown(claims: dict[str, dict], stem: str = "reproduction") -> str:
    """The page as Markdown.

    Args:
        claims (`dict`): those of `reproduction.json`.
        stem (`str`): with which the names of the pictures begin.
    """
    lines = ["# The papers' claims in miniature", "", INTRODUCTION, ""]
    lines += ["| claim | what it says | source | verdict |", "|---|---|---|---|"]
    for name, claim in claims.items():
        lines.append(f"| {name} | {claim['claim']} | {claim['source']} | {claim['verdict']} |")

    if missing := _missing(claims):
        lines += ["", missing]

    for name, claim in claims.items():
        lines += ["", f"## {name}: {claim['claim']}", ""]
        lines += [f"*{claim['source']}.* {claim['measured']} Seeds: {claim['seeds']}.", ""]
        lines += _markdown_table(*_comparisons(claim))
        if claim["table"]:
            lines += ["", *_markdown_table(*_figures(claim))]
        for note in claim["notes"]:
            lines += ["", note]
        if claim["tried"]:
            lines += ["", "What was tried:", "", *(f"- {attempt}" for attempt in claim["tried"])]
        for picture in claim["pictures"]:
            lines += ["", f"![{name}: {claim['claim']}]({stem}-{picture})"]
    return "\n".join(lines) + "\n"


def _missing(claims: dict[str, dict]) -> str:
    """Which claims have not been measured, if there are any."""
    missing = [name for name in in_order(CLAIMS) if name not in claims]
    return f"Not measured yet: {', '.join(missing)}." if missing else ""


def _markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _comparisons(claim: dict) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of what a claim says."""
    rows = []
    for comparison in claim["comparisons"]:
        digits = 1 if comparison["unit"] == "points" else 4
        ours = f"{comparison['ours']:+.{digits}f} {comparison['unit']}".strip()
        interval = "none, of one seed"
        if comparison["low"] is not None:
            interval = f"[{comparison['low']:+.{digits}f}, {comparison['high']:+.{digits}f}]"
        asked = f"above {comparison['least']:g}"
        if comparison["aim"]:
            asked += f", at least {comparison['aim']:g}"
        rows.append([comparison["name"], ours, interval, asked, comparison["paper"] or "-", comparison["verdict"]])
    return ["difference", "ours", "95 % interval", "asked", "paper", "verdict"], rows


def _figures(claim: dict) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of further figures."""
    columns: dict[str, None] = {}
    for row in claim["table"].values():
        columns |= dict.fromkeys(row)
    rows = []
    for name, row in claim["table"].items():
        rows.append([name, *(row.get(column, "-") for column in columns)])
    return ["", *columns], rows


# HTML
STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.3em .6em;text-align:left}"
    "img{max-width:100%}"
)


def to_html(claims: dict[str, dict]) -> str:
    """The page as one HTML file, with its pictures in it."""
    title = "The papers' claims in miniature"
    parts = [f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"]
    rows = []
    for name, claim in claims.items():
        rows.append([name, claim["claim"], claim["source"], claim["verdict"]])
    parts.append(_html_table(["claim", "what it says", "source", "verdict"], rows))
    parts.append(f"<p>{_missing(claims)}</p>")

    for name, claim in claims.items():
        parts.append(f"<h2>{name}: {html.escape(claim['claim'])}</h2>")
        measured = f"{claim['source']}. {claim['measured']} Seeds: {claim['seeds']}."
        parts.append(f"<p>{html.escape(measured)}</p>")
        parts.append(_html_table(*_comparisons(claim)))
        if claim["table"]:
            parts.append(_html_table(*_figures(claim)))
        for note in claim["notes"]:
            parts.append(f"<p>{html.escape(note)}</p>")
        if claim["tried"]:
            attempts = "".join(f"<li>{html.escape(attempt)}</li>" for attempt in claim["tried"])
            parts.append(f"<p>What was tried:</p><ul>{attempts}</ul>")
        for picture in claim["pictures"]:
            data = base64.b64encode((Path(claim["folder"]) / picture).read_bytes()).decode()
            parts.append(f'<img alt="{name}" src="data:image/png;base64,{data}">')
    return "\n".join(parts) + "\n"


def _html_table(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = ["<table>", "<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>")
    return "\n".join([*lines, "</table>"])
