"""Data files, sound and damaged, and what a plain reading of their bytes gives.

A case is `{"suffix", "content", "sound", "through"}`: the bytes of a file, how many rows in it are known to be good (0
where the file itself was damaged), and what reads it:

- `rows` and `check`: `read_rows` and `unime data check` on the file;
- `folder`: `read_rows` on a folder of MMEB-train (`.parquet`) or of SaHa's clusters (`.json`);
- `items`: the sources of `unime encode`.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from outcomes import Hole, Outcome, Wrong, as_bytes, as_text, observe
from PIL import Image

from unime.data.check import check
from unime.data.findings import Findings
from unime.data.item_sources import read_items
from unime.data.readers import read_rows
from unime.data.schema import PLACEHOLDER
from unime.files.unpacked import UNPACKED

SUFFIXES = {
    "rows": (".jsonl", ".json", ".csv", ".tsv", ".parquet"),
    "check": (".jsonl", ".json", ".csv", ".parquet"),
    "folder": (".parquet", ".json"),
    "items": (".jsonl", ".txt"),
}
FOLDERS = {".parquet": "mmeb/words/original-00000-of-00001.parquet", ".json": "clusters/words_hard_negatives.json"}
PICTURES = ("a.png", "folder.png", "fifo.png", "loop.png", "missing.png", "../secret.png", "/etc/hostname")
DIGITS = "@digits@"  # stands for a number of 5,000 digits
DEPTH = "@depth@"  # stands for brackets in brackets
RAW = {f'"{DIGITS}"': "9" * 5000, f'"{DEPTH}"': "[" * 5000 + "]" * 5000}  # what Python's json would not write

# values
words = st.sampled_from(
    ["a dog", "caf\u00e9", "\u72ac", "two\nlines", 'a "quote"', "x, y", "<|im_end|>", f"{PLACEHOLDER}\nred"]
)
texts = words | st.text(min_size=1, max_size=8).filter(lambda text: text.strip() and _is_plain(text))
pictures = st.sampled_from(PICTURES)
odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.sampled_from(["", " ", "\x00", "\ud800", "x" * 5000, "y" * 140_000, DIGITS, DEPTH, PLACEHOLDER]),
    st.lists(st.none() | st.integers() | words, max_size=3),
    st.dictionaries(st.sampled_from(["text", "image", "", "other"]), st.none() | st.integers() | pictures, max_size=2),
)
scores = st.floats(0, 1)


def _is_plain(text: str) -> bool:
    """Whether every format can hold a text as it is."""
    return not set(text) & set("\x00\r") and text.isprintable()


# rows by layout
@st.composite
def own_rows(draw) -> dict:
    row = {"query": draw(texts), "positive": {"text": draw(texts), "image": draw(st.sampled_from(["", "a.png"]))}}
    if draw(st.booleans()):
        row["negatives"] = draw(st.lists(texts, min_size=1, max_size=3))
        row["negative_scores"] = [draw(scores) for _ in row["negatives"]]
        row["positive_score"] = draw(scores)
    return row


@st.composite
def judged_rows(draw) -> dict:
    pairs = [[draw(texts), ""] for _ in range(draw(st.integers(0, 3)))]
    return {
        "query_text": draw(texts),
        "query_image": draw(st.sampled_from(["", "a.png"])),
        "pos_text": draw(texts),
        "pos_image": "",
        "query_pos_scores": draw(scores),
        "hard_negatives": pairs,
        "hard_negatives_scores": [draw(scores) for _ in pairs],
    }


mmeb_rows = st.fixed_dictionaries(
    {
        "qry": texts,
        "qry_image_path": st.sampled_from(["", "a.png"]),
        "pos_text": texts,
        "pos_image_path": st.just(""),
    }
)
pair_rows = st.fixed_dictionaries({"sent0": texts, "sent1": texts, "hard_neg": texts | st.just("")})
cluster_rows = st.builds(
    lambda row, members: {**row, "neg_samples": members}, mmeb_rows, st.lists(mmeb_rows, max_size=2)
)
item_rows = st.fixed_dictionaries({"text": texts, "image": st.sampled_from(["", "a.png"])})


def layouts(through: str, suffix: str) -> tuple:
    """The layouts that a file may have."""
    if through == "items":
        return (item_rows,)
    if through == "folder":
        return (mmeb_rows,) if suffix == ".parquet" else (cluster_rows,)
    if suffix == ".json":
        return (judged_rows(),)
    if suffix in (".csv", ".tsv"):
        return (mmeb_rows, pair_rows)
    return (own_rows(), mmeb_rows, pair_rows)


@st.composite
def spoiled(draw, row: dict) -> dict:
    """A row with one field of another type or value, or without it."""
    name = draw(st.sampled_from(sorted(row)))
    if draw(st.integers(0, 4)) == 0:
        return {key: value for key, value in row.items() if key != name}
    return {**row, name: draw(odd_values | pictures)}


# files
@st.composite
def cases(draw, _=None) -> dict:
    through = draw(st.sampled_from(["rows", "rows", "check", "folder", "items"]))
    suffix = draw(st.sampled_from(SUFFIXES[through]))
    layout = draw(st.sampled_from(layouts(through, suffix)))
    rows = draw(st.lists(layout, min_size=1, max_size=6))

    # some rows are spoiled, the others are to be read
    spoiled_places = draw(st.sets(st.integers(0, len(rows) - 1), max_size=2))
    for place in spoiled_places:
        rows[place] = draw(spoiled(rows[place]))
    sound = len(rows) - len(spoiled_places)

    if suffix == ".parquet":
        content = draw(parquet_files(rows))
        sound = 0  # a column of another type spoils all rows
    elif suffix in (".csv", ".tsv"):
        content = draw(tables(rows, "\t" if suffix == ".tsv" else ","))
        sound = 0  # cells are damaged, and a quote may run into the next row
    elif suffix == ".txt":
        content = draw(encoded("\n".join(_as_cell(row.get("text")) for row in rows)))
        sound = 0  # a text may be several lines
    else:
        text = json_text(rows, suffix, ensure_ascii=draw(st.booleans()))
        content = draw(encoded(text))

    if draw(st.integers(0, 2)) == 0:
        content = draw(damaged(content))
        sound = 0
    if through == "items":
        sound = 0  # the first bad row ends it
    return {"suffix": suffix, "content": as_text(content), "sound": sound, "through": through}


def json_text(rows: list[dict], suffix: str, ensure_ascii: bool) -> str:
    lines = []
    for row in rows:
        line = json.dumps(row, ensure_ascii=ensure_ascii)
        for mark, raw in RAW.items():
            line = line.replace(mark, raw)
        lines.append(line)
    return "\n".join(lines) + "\n" if suffix == ".jsonl" else "[" + ",\n".join(lines) + "]"


@st.composite
def encoded(draw, text: str) -> bytes:
    """A text in UTF-8, or as Windows writes it; half characters stay half characters."""
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"]))
    return text.encode(encoding, errors="surrogatepass")


@st.composite
def tables(draw, rows: list[dict], delimiter: str) -> bytes:
    """A CSV file, of which cells and quotes may be odd."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=draw(st.sampled_from(["\n", "\r\n"])))
    names = list(rows[0])
    writer.writerow(names)
    for row in rows:
        cells = [_as_cell(row.get(name, "")) for name in names]
        cells += [""] * draw(st.sampled_from([0, 0, 0, 0, 1]))
        writer.writerow(cells[: len(cells) - draw(st.sampled_from([0, 0, 0, 0, 1]))])

    # a quote too many, somewhere
    text = file.getvalue()
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(text)))
        text = text[:place] + '"' + text[place:]
    return draw(encoded(text))


def _as_cell(value) -> str:
    return value if isinstance(value, str) else str(value)


@st.composite
def parquet_files(draw, rows: list[dict]) -> bytes:
    """A Parquet file with columns of the usual types, or one of another type."""
    names = sorted(set().union(*rows))
    columns = {name: _column([row.get(name) for row in rows]) for name in names}

    name = draw(st.sampled_from(names))
    other = draw(st.sampled_from([None, None, pa.large_string(), pa.dictionary(pa.int8(), pa.string()), pa.binary()]))
    if other is not None and pa.types.is_string(columns[name].type):
        columns[name] = pa.array(columns[name].to_pylist(), other)

    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression=draw(st.sampled_from(["none", "snappy"])))
    return buffer.getvalue()


def _column(values: list) -> pa.Array:
    """Values as Parquet stores them, or, where it cannot, as binary texts."""
    try:
        column = pa.array(values)
        pq.write_table(pa.table({"column": column}), io.BytesIO())
    except (pa.ArrowException, UnicodeError, TypeError, OverflowError):
        column = pa.array([str(value).encode("utf-8", "replace") for value in values])
    return column


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Bytes as a bad disk, a broken transfer or an editor leaves them."""
    damage = draw(st.sampled_from(["flip", "truncate", "zero", "insert", "double", "latin-1", "empty"]))
    start = draw(st.integers(0, max(0, len(content) - 1)))
    end = start + draw(st.integers(1, 40))
    if damage == "flip":
        return content[:start] + bytes(255 - byte for byte in content[start : start + 1]) + content[start + 1 :]
    if damage == "truncate":
        return content[:start]
    if damage == "zero":
        return content[:start] + bytes(len(content[start:end])) + content[end:]
    if damage == "insert":
        return content[:start] + draw(st.binary(min_size=1, max_size=4)) + content[start:]
    if damage == "double":
        return content[:end] + content[start:]
    if damage == "latin-1":
        return content.decode("utf-8", "replace").encode("latin-1", "replace")
    return b""


# a plain reading
def plain_rows(content: bytes, suffix: str) -> Iterator[dict | None]:
    """The rows of a file by the standard libraries, `None` for one that is none; ends with `ValueError` where the file
    ends in the middle."""
    if suffix == ".parquet":
        yield from pq.read_table(io.BytesIO(content)).to_pylist()
    elif suffix == ".jsonl":
        for line in _plain_lines(content):
            yield _plain_row(line)
    elif suffix == ".txt":
        for line in _plain_lines(content):
            yield {"text": (line if isinstance(line, str) else line.decode("utf-8")).strip()}
    elif suffix == ".json":
        yield from _plain_list(_plain_text(content))
    else:
        yield from _plain_table(_plain_text(content), "\t" if suffix == ".tsv" else ",")


def _plain_text(content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def _plain_lines(content: bytes) -> list[bytes | str]:
    """Lines that are not empty; those of UTF-8 as bytes, since each may be damaged by itself."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        lines = re.split("\r\n|\r|\n", content.decode("utf-16"))
    else:
        lines = re.split(b"\r\n|\r|\n", content.removeprefix(b"\xef\xbb\xbf"))
    return [line for line in lines if line.strip()]


def _plain_row(line) -> dict | None:
    try:
        row = json.loads(line if isinstance(line, str) else line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if isinstance(row, str):
        return {"text": row}
    return row if isinstance(row, dict) else None


def _plain_list(text: str) -> list:
    try:
        rows = json.loads(text)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if not isinstance(rows, list):
        raise ValueError("not a list")
    return [row if isinstance(row, dict) else None for row in rows]


def _plain_table(text: str, delimiter: str) -> Iterator[dict | None]:
    limit = csv.field_size_limit(10**9)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    finally:
        csv.field_size_limit(limit)

    lines = [cells for cells in lines if cells]
    header, *lines = lines or [[]]
    for cells in lines:
        yield dict(zip(header, cells)) if len(cells) == len(header) else None


def plain_texts(row: dict) -> list[str]:
    """The texts of a row, whatever its layout: query, positive, negatives."""
    if "query" in row:
        values = [row["query"], row.get("positive"), *_as_list(row.get("negatives"))]
    elif "sent0" in row:
        values = [row["sent0"], row.get("sent1")]
        if row.get("hard_neg"):
            values.append(row["hard_neg"])
    elif "query_text" in row:
        values = [row["query_text"], row.get("pos_text")]
        for pair in _as_list(row.get("hard_negatives")):
            values.append(pair[0] if pair else "")
    elif "qry" in row:
        members = _as_list(row.get("neg_samples"))
        values = [row["qry"], row.get("pos_text"), *(member.get("pos_text") for member in members)]
    else:
        values = [row.get("text")]
    return [_plain_item(value) for value in values]


def _as_list(value) -> list:
    """A list as it is; anything else has no elements, and its row is bad in any case."""
    return value if isinstance(value, list) else []


def _plain_item(value) -> str:
    """The text of an item without the placeholder, which is dropped where there is no image."""
    if isinstance(value, dict):
        value = value.get("text")
    return _without_placeholder(value if isinstance(value, str) else "")


def _without_placeholder(text: str) -> str:
    return text.replace(PLACEHOLDER + "\n", "").replace(PLACEHOLDER, "")


# trying a case
class Reading(NamedTuple):
    """What a reader made of a file."""

    count: int  # of rows
    problems: list[str]  # where bad rows stand
    rows: list[list[str]] | None  # the texts of each row, where the reader gives them
    pictures: list[str]


def prepare(folder: Path) -> Path:
    """A folder with pictures of all sorts below it, and one outside that no row may reach."""
    root = folder / "data"
    (root / "folder.png").mkdir(parents=True)
    Image.new("RGB", (32, 32), "red").save(root / "a.png")
    Image.new("RGB", (32, 32), "blue").save(folder / "secret.png")
    os.mkfifo(root / "fifo.png")
    os.symlink("loop.png", root / "loop.png")
    return root


def outcome_of(case: dict, root: Path) -> Outcome:
    """Reads the file of a case, and compares with a plain reading."""
    path = root / f"rows{case['suffix']}"
    if case["through"] == "folder":
        path = root / FOLDERS[case["suffix"]]
        path.parent.mkdir(parents=True, exist_ok=True)

    path.write_bytes(as_bytes(case["content"]))
    try:
        return observe(lambda: _try(case, path, root), [path.name])
    finally:
        path.unlink()


def _try(case: dict, path: Path, root: Path):
    reading = _read(case["through"], path, root)
    for where in reading.problems:
        if path.name not in where or not re.search(r"(row|line) \d", where):
            raise Wrong(f"a bad row is not named by file and row: {where}")
    for name in reading.pictures:
        # pictures that a file holds in itself are unpacked into the cache
        if not (Path(name).is_relative_to(root.resolve()) or Path(name).is_relative_to(UNPACKED)):
            raise Hole(f"{name} lies outside of {root}")
    if reading.count < case["sound"]:
        raise Wrong(f"{reading.count} rows were read, {case['sound']} are good; bad: {reading.problems}")
    _compare(reading, as_bytes(case["content"]), case["suffix"])


def _read(through: str, path: Path, root: Path) -> Reading:
    if through == "check":
        report = check(path)
        return Reading(report["rows"], [problem["where"] for problem in report["bad_rows"]], None, [])
    if through == "items":
        items = [item for _, item in read_items([str(path)])]
        texts_of_items = [[_without_placeholder(item.text)] for item in items]
        return Reading(len(items), [], texts_of_items, [item.image for item in items if item.image])

    findings = Findings()
    if through == "folder":
        rows = read_rows(root / Path(FOLDERS[path.suffix]).parts[0], image_root=root, findings=findings)
    else:
        rows = read_rows(path, findings=findings)

    texts_of_rows = []
    names = []
    for row in rows:
        items = [row["query"], row["positive"], *row["negatives"]]
        texts_of_rows.append([_without_placeholder(item["text"]) for item in items])
        names += [item["image"] for item in items if item["image"]]
    return Reading(len(rows), [problem.where for problem in findings.problems], texts_of_rows, names)


def _compare(reading: Reading, content: bytes, suffix: str):
    """Every row of the file is either read as it stands there, or named as bad."""
    try:
        plain = list(plain_rows(content, suffix))
    except (ValueError, OSError, pa.ArrowException) as error:
        if not reading.problems:
            raise Wrong(f"the file is broken ({error}), and nothing is said") from error
        return

    count = reading.count + len(reading.problems)
    if count != len(plain):
        raise Wrong(f"{len(plain)} rows in the file; {reading.count} were read, and these are bad: {reading.problems}")

    # rows are read in their order, so that each is the next in the file or one after it
    remaining = iter(plain)
    for row_texts in reading.rows or []:
        if not any(other is not None and plain_texts(other) == row_texts for other in remaining):
            raise Wrong(f"no such row stands in the file: {row_texts}")
