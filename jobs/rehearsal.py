"""A rehearsal: what a run would read, feed and cost, as a person checks it before it costs anything."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..files.writing import write_text

INDENT = "  "


@dataclass
class Rehearsal:
    """What a command would do, gathered with a model that has no weights. It is printed, or written as JSON.

    Args:
        command (`str`): the command, such as `"unime train alignment"`.
        facts (`dict[str, dict | list[dict]]`): by heading: names with their values, or the rows of a table. A row with
            a `prompt` is printed as that prompt below its other values.
        warnings (`list[str]`): what may not be meant so.
        errors (`list[str]`): what will fail, or leaves the method without what it needs.

    Example:

    ```python
    rehearsal = Rehearsal("unime train alignment", {"Rows": {"rows": 50, "data sets": 17}})
    print(rehearsal.text())
    ```
    """

    command: str
    facts: dict = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def include(self, other: "Rehearsal"):
        """Takes in the facts, warnings and errors of another."""
        self.facts |= other.facts
        self.warnings += other.warnings
        self.errors += other.errors

    def text(self) -> str:
        """The whole rehearsal as a person reads it."""
        lines = [f"Rehearsal of {self.command}: nothing was loaded but configuration, tokenizer and processor."]
        for heading, facts in self.facts.items():
            lines += ["", heading]
            lines += _pairs(facts) if isinstance(facts, dict) else _rows(facts)

        # what is wrong stands at the end, where a terminal shows it
        for heading, messages in (("Warnings", self.warnings), ("Errors", self.errors)):
            lines += ["", f"{heading}: {len(messages) or 'none'}"]
            for message in messages:
                lines.append(f"{INDENT}- {message}")
        return "\n".join(lines)

    def as_dict(self) -> dict:
        """The same for a program: `command`, the facts by heading, `warnings` and `errors`."""
        return {"command": self.command, **self.facts, "warnings": self.warnings, "errors": self.errors}

    def finish(self, json_file: str | None = None, as_json: bool = False):
        """Prints the rehearsal, writes it as JSON where that is asked for, and ends the program where it found errors.

        Args:
            json_file (`str`, *optional*): where to write it as JSON.
            as_json (`bool`, defaults to `False`): print JSON in the place of the text.

        Raises:
            SystemExit: with status 1, if there are errors.
        """
        content = json.dumps(self.as_dict(), indent=1, ensure_ascii=False)
        if json_file:
            write_text(Path(json_file), content)
        print(content if as_json else self.text(), flush=True)
        if self.errors:
            sys.exit(1)


def readable(value) -> str:
    """A value as a table shows it: numbers with separators, and a word where there is nothing."""
    if value is None:
        return "none"
    if isinstance(value, bool):  # which Python takes for a whole number
        return "yes" if value else "no"

    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"

    if isinstance(value, (list, tuple)):
        return ", ".join(map(readable, value)) or "none"
    return str(value)


def _pairs(facts: dict) -> list[str]:
    """Names and values in two columns."""
    width = max(map(len, facts), default=0)
    return [f"{INDENT}{name:<{width}}  {readable(value)}".rstrip() for name, value in facts.items()]


def _rows(rows: list[dict]) -> list[str]:
    """The rows of a table under their column names, or prompts."""
    if not rows:
        return [f"{INDENT}none"]
    if "prompt" in rows[0]:
        return _prompts(rows)

    columns = list(rows[0])
    cells = [columns]
    for row in rows:
        cells.append([readable(row[column]) for column in columns])

    # numbers end where their column ends, words begin where it begins
    lines = []
    for line in cells:
        padded = []
        for index, column in enumerate(columns):
            width = max(len(row[index]) for row in cells)
            is_number = isinstance(rows[0][column], (int, float)) and not isinstance(rows[0][column], bool)
            padded.append(line[index].rjust(width) if is_number else line[index].ljust(width))
        lines.append((INDENT + "  ".join(padded)).rstrip())
    return lines


def _prompts(rows: list[dict]) -> list[str]:
    """Prompts, each under its other values; a line break of a prompt is shown, and breaks the line."""
    lines = []
    for row in rows:
        values = [readable(value) for name, value in row.items() if name not in ("prompt", "images")]
        lines.append(INDENT + ", ".join(values))
        for image in row.get("images", ()):
            lines.append(f"{INDENT * 3}{image}")

        # whether a prompt ends with a line break changes its embedding
        for line in row["prompt"].replace("\n", "\\n\n").removesuffix("\n").split("\n"):
            lines.append(f"{INDENT * 2}| {line}".rstrip())
    return lines
