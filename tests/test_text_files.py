"""Files of rows as people's programs write them: encodings, quotes, broken lists, and every odd value of a row."""

import codecs
import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unime.commands.data import main
from unime.data import json_lists
from unime.data.check import check
from unime.data.item_sources import read_items
from unime.data.readers import Findings, read_mmeb_train, read_rows, read_text_pairs
from unime.data.schema import Item, to_example
from unime.data.texts import parse_json, read_text
from unime.eval.mmeb_v2 import _Builder

PAIRS = [("a", "b"), ("caf\u00e9 \u4e2d", "d")]
ROWS = {
    "rows.jsonl": "".join(json.dumps({"query": a, "positive": b}, ensure_ascii=False) + "\n" for a, b in PAIRS),
    "rows.json": json.dumps([{"query": a, "positive": b} for a, b in PAIRS], ensure_ascii=False, indent=1),
    "rows.csv": "sent0,sent1\r\n" + "".join(f"{a},{b}\r\n" for a, b in PAIRS),
}


def read(path):
    """The good rows of a file as pairs of texts, and its bad rows as (number of row and line, reason)."""
    findings = Findings()
    rows = [to_example(row) for row in read_rows(path, findings=findings)]
    pairs = [(row.query.text, row.positive.text) for row in rows]
    return pairs, [(problem.where.partition(f"{path}, ")[2], problem.reason) for problem in findings.problems]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marked_files_are_read_like_unmarked_ones(tmp_path, name, encoding):
    path = tmp_path / name
    path.write_bytes(ROWS[name].encode(encoding))
    assert read(path) == (PAIRS, [])


@pytest.mark.parametrize("big", [codecs.BOM_UTF16_BE + "sent0,sent1\na,b\n".encode("utf-16-be")])
def test_both_orders_of_utf_16_are_read(tmp_path, big):
    (tmp_path / "rows.csv").write_bytes(big)
    assert read(tmp_path / "rows.csv") == ([("a", "b")], [])


@pytest.mark.parametrize("name", ROWS)
def test_a_line_of_another_encoding_is_one_bad_row(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(ROWS[name].replace(" \u4e2d", "").encode("latin-1"))
    pairs, problems = read(path)
    line = {"rows.jsonl": 2, "rows.json": 6, "rows.csv": 3}[name]
    assert pairs == PAIRS[:1]
    assert [where for where, _ in problems] == [f"row 1 (line {line})"]
    assert "is the byte 0xe9, no UTF-8; save the file as UTF-8" in problems[0][1]
    with pytest.raises(ValueError, match=rf"{name}, row 1 \(line {line}\): character .* 0xe9"):
        read_rows(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sent0,sent1\na,b\n".encode("utf-32"), "line 1: the file is UTF-32"),
        ("sent0,sent1\na,b\n".encode("utf-16-le"), "line 1: there is a zero byte"),
        (b"sent0,sent1\na,b\nc\0,d\n", "line 3: there is a zero byte"),
    ],
)
def test_other_encodings_are_named_with_file_and_line(tmp_path, content, message):
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"rows.csv, {message}"):
        read_rows(tmp_path / "rows.csv", findings=Findings())


def test_a_damaged_line_of_utf_16_is_one_bad_row(tmp_path):
    lines = [codecs.BOM_UTF16_LE, *(line.encode("utf-16-le") for line in ("sent0,sent1\n", "a,b\n", "c,d\n", "e,f\n"))]
    for number, odd in ((3, b"\x41\xd8"), (4, b"\x41")):
        content = [*lines[:number], odd, *lines[number:]] if number < 4 else [*lines, odd]
        (tmp_path / "rows.csv").write_bytes(b"".join(content))
        pairs, problems = read(tmp_path / "rows.csv")
        assert ("a", "b") in pairs and ("e", "f") in pairs and len(problems) == 1


def test_items_and_texts_of_marked_files(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "a.txt").write_bytes("first\n\nsecond \u4e2d\n".encode(encoding))
        (tmp_path / "a.jsonl").write_bytes('"first"\n{"text": "second \u4e2d", "id": 7}\n'.encode(encoding))
        items = list(read_items([str(tmp_path / "a.txt"), str(tmp_path / "a.jsonl")]))
        first, second = Item("first"), Item("second \u4e2d")
        assert items == [("a.txt:1", first), ("a.txt:3", second), ("1", first), ("7", second)]
        assert read_text(tmp_path / "a.txt") == "first\n\nsecond \u4e2d\n"

    (tmp_path / "latin.txt").write_bytes(b"first\ncaf\xe9\n")
    with pytest.raises(ValueError, match="latin.txt, line 2: character 4 is the byte 0xe9"):
        list(read_items([str(tmp_path / "latin.txt")]))
    (tmp_path / "bad.jsonl").write_text('"first"\n{"text": \n')
    with pytest.raises(ValueError, match="bad.jsonl, line 2: is not JSON: Expecting value"):
        list(read_items([str(tmp_path / "bad.jsonl")]))


def test_a_folder_passes_over_no_picture(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    os.symlink("nowhere.png", tmp_path / "photos" / "b.png")
    os.symlink("d.png", tmp_path / "photos" / "c.png")
    os.symlink("c.png", tmp_path / "photos" / "d.png")
    (tmp_path / "photos" / "e.png").mkdir()
    names = [name for name, _ in read_items([str(tmp_path / "photos")])]
    assert names == ["a.png", "b.png", "c.png", "d.png"]
    (tmp_path / "photos" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"photos/caf\\udce9.png: its name, .* is not UTF-8; rename it"):
        list(read_items([str(tmp_path / "photos")]))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "txt"])
def test_a_pipe_is_never_waited_for(tmp_path, suffix):
    pipe = tmp_path / f"rows.{suffix}"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=f"rows.{suffix} is not a file"):
        list(read_items([str(pipe)])) if suffix == "txt" else check(pipe)


# CSV
def csv_file(folder, *lines):
    (folder / "rows.csv").write_text("\n".join(lines) + "\n", newline="")
    return folder / "rows.csv"


def test_rows_of_another_number_of_cells_are_bad(tmp_path):
    path = csv_file(tmp_path, "sent0,sent1,hard_neg", "Well, I think so,yes,no", "a,b,c", "only one", "", 'd,"e, f",g')
    pairs, problems = read(path)
    assert pairs == [("a", "b"), ("d", "e, f")]
    assert [where for where, _ in problems] == ["row 0 (line 2)", "row 2 (line 4)"]
    assert problems[0][1].startswith("has 4 cells where the header has 3; a cell with a comma stands in quotes")
    assert problems[1][1].startswith("has 1 cells where the header has 3")
    with pytest.raises(ValueError, match=r"rows.csv, row 0 \(line 2\): has 4 cells"):
        read_text_pairs(path)


def test_a_quote_that_never_closes_is_named_with_its_line(tmp_path):
    rest = [f"a{number},b{number}" for number in range(50)]
    for line in ('"he said,hello', 'x,"he said hello', '"two\nlines","he ""said"" hello'):
        path = csv_file(tmp_path, "sent0,sent1", "first,row", line, *rest)
        opening = 3 + line.count("\n")
        pairs, ((where, reason),) = read(path)
        assert pairs == [("first", "row")] and where == "row 1 (line 3)"
        assert reason.startswith(f"has a quote that opens in line {opening} and never closes")
        assert f"to the end, line {opening + 50}" in reason


def test_a_quote_that_closes_within_a_cell_costs_one_row(tmp_path):
    path = csv_file(tmp_path, "sent0,sent1", 'a,"b', 'c,d"e', 'say "hi",fine', '"he ""said""",x')
    pairs, ((where, reason),) = read(path)
    assert pairs == [('say "hi"', "fine"), ('he "said"', "x")] and where == "row 0 (line 2)"
    assert reason.startswith("has a quote that opens in line 2 and closes in line 3 within a cell")


def test_long_cells_and_odd_headers(tmp_path):
    long = "x" * 200_000
    assert read(csv_file(tmp_path, "sent0,sent1,", f"{long},y,0")) == ([(long, "y")], [])
    for header, message in (
        ("sent0,sent0", "'sent0' more than once"),
        ('sent0,"sent1', "line 1: the header has a quote"),
    ):
        with pytest.raises(ValueError, match=message):
            read(csv_file(tmp_path, header, "a,b"))


@given(st.lists(st.lists(st.text(st.sampled_from('ab,"\n\r ')), min_size=2, max_size=2), max_size=6))
@settings(max_examples=150, deadline=None)
def test_what_the_csv_module_writes_is_read_back(tmp_path_factory, rows):
    import csv

    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("sent0", "sent1"), ("first", "row"), *rows])
    pairs, problems = read(path)
    good = [(a, b) for a, b in rows if a.strip() and b.strip()]
    assert pairs == [("first", "row"), *good] and len(problems) == len(rows) - len(good)
    assert all("an item needs a text" in reason for _, reason in problems)


# rows
GOOD = {"query": "good", "positive": "row"}
MMEB = {"qry": "q", "qry_image_path": "", "pos_text": "p", "pos_image_path": ""}
DEEP = "[" * 100_000 + "]" * 100_000
JUDGED = {"query_text": "q", "query_image": "", "pos_text": "p", "pos_image": "", "query_pos_scores": 1}
BAD = {
    "a number as a sentence": ({"sent0": 5, "sent1": "x"}, "must be a string, not 5"),
    "a list as a negative": ({**MMEB, "neg_text": ["a"]}, "must be a string, not ['a']"),
    "a list as a path": ({**MMEB, "neg_text": "n", "neg_image_path": [1]}, "must be a string, not [1]"),
    "a long path": ({"query": "q", "positive": {"image": "x" * 5000}}, "cannot be followed: File name too long"),
    "a zero byte in a path": ({**GOOD, "query": {"image": "a\0.png"}}, "cannot be followed"),
    "half a character in a name": ({**GOOD, "dataset": "\ud800"}, "surrogates not allowed"),
    "half a character in a sentence": ({"sent0": "\ud800", "sent1": "p"}, "surrogates not allowed"),
    "deep nesting": ('{"query":' + DEEP + "}", "nested too deeply"),
    "a deep name": ('{"query": "q", "positive": "p", "dataset": ' + "[" * 500 + "]" * 500 + "}", "not [[["),
    "a long number": ('{"query": "q", "positive_score": ' + "9" * 5000 + "}", "more than 4,300 digits"),
    "queries of negatives": (
        {**GOOD, "negatives": ["a", "b"], "negative_queries": ["x"]},
        "2 negatives for 1 queries",
    ),
    "an object of negatives": ({**GOOD, "negatives": {"a": 1}}, "'negatives' must be a list"),
    "a wrong pair": (
        {**JUDGED, "hard_negatives": [5], "hard_negatives_scores": [0.5]},
        "pair of text and image, not 5",
    ),
    "no layout": (
        {"question": "q"},
        "lacks 'query' and 'positive', or the columns of another layout",
    ),
    "no JSON": ("{broken", "is not JSON: Expecting property name"),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path, case, suffix):
    line, reason = BAD[case]
    if isinstance(line, dict):
        line = json.dumps(line)
    lines = [json.dumps(GOOD), line, json.dumps(GOOD)]
    path = tmp_path / f"rows{suffix}"
    path.write_text("\n".join(lines) if suffix == ".jsonl" else "[" + ",\n".join(lines) + "]")
    if case == "no JSON" and suffix == ".json":
        with pytest.raises(ValueError, match=r"row 1 \(line 2\): the file is broken off in this row"):
            check(path)
        return
    report = check(path)
    (problem,) = report["bad_rows"]
    assert report["rows"] == 2 and problem["where"] == f"{path}, row 1 (line 2)" and reason in problem["reason"]
    with pytest.raises(ValueError, match=r"row 1 \(line 2\): "):
        read_rows(path)


def test_links_in_a_circle_are_a_bad_row(tmp_path):
    os.symlink("b.png", tmp_path / "a.png")
    os.symlink("a.png", tmp_path / "b.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD) + '\n{"query": "q", "positive": {"image": "a.png"}}\n')
    report = check(tmp_path / "rows.jsonl")
    assert report["rows"] == 1 and "symbolic links" in report["bad_rows"][0]["reason"]


def test_names_that_are_no_utf_8_are_errors_that_can_be_printed(tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "rows.jsonl").write_text('{"query": {"image": "a.png"}, "positive": "p"}\n')
    with pytest.raises(SystemExit, match="the name of a folder is not UTF-8"):
        main(["check", str(folder / "rows.jsonl")])
    (tmp_path / os.fsdecode(b"caf\xe9.csv")).write_text("sent0,sent1\na,b\n")
    with pytest.raises(SystemExit, match=r"caf.*\.csv, row 0 \(line 2\): character 4 is the byte 0xe9"):
        main(["check", str(tmp_path / os.fsdecode(b"caf\xe9.csv"))])
    (folder / "texts.jsonl").write_text(json.dumps(GOOD) + "\n")
    main(["check", str(folder / "texts.jsonl")])
    assert r"caf\udce9/texts.jsonl: 1 row," in capsys.readouterr().out


def test_a_file_without_a_good_row_says_why(tmp_path):
    path = csv_file(tmp_path, "asked,told", *(f"q{number},a" for number in range(7)))
    with pytest.raises(SystemExit) as ended:
        main(["check", str(path)])
    message = str(ended.value)
    assert "rows.csv holds no row that can be used; of its 7 bad rows the first are" in message
    assert message.count("lacks 'query'") == 1 and "row 0 (line 2) (and 6 more): lacks 'query'" in message

    # reasons that differ, the first five
    path = csv_file(tmp_path, "sent0,sent1", *(f"q,a{',x' * number}" for number in range(1, 8)))
    with pytest.raises(SystemExit) as ended:
        main(["check", str(path)])
    listed = [f"row {number} (line {number + 2}): " in str(ended.value) for number in range(6)]
    assert listed == [True] * 5 + [False]


def test_parquet_files_that_are_none_and_bytes_that_are_no_text(tmp_path):
    (tmp_path / "rows.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match="rows.parquet cannot be read from row 0 on"):
        read_rows(tmp_path / "rows.parquet", findings=Findings())
    texts = pa.Array.from_buffers(pa.utf8(), 3, pa.array([b"good", b"caf\xe9", b"good"]).buffers())
    pq.write_table(pa.table({"sent0": texts, "sent1": ["a", "b", "c"]}), tmp_path / "rows.parquet")
    pairs, ((where, reason),) = read(tmp_path / "rows.parquet")
    assert pairs == [("good", "a"), ("good", "c")] and where == "row 1" and "0xe9" in reason


def test_a_misspelled_subset_is_refused_with_the_names_that_exist(tmp_path, world):
    with pytest.raises(ValueError, match="has no data set Shapes_t2x; it has Digits_label, "):
        read_mmeb_train(world / "train", ["Shapes_t2i", "Shapes_t2x"], image_root=world)
    rows = [{**GOOD, "dataset": name} for name in ("A", "B")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(read_rows(tmp_path / "rows.jsonl", subsets=["A"])) == 1
    with pytest.raises(ValueError, match="rows.jsonl has no data set C, a; it has A, B"):
        read_rows(tmp_path / "rows.jsonl", subsets=["A", "C", "a"])
    (tmp_path / "X_hard_negatives.json").write_text(json.dumps([{**MMEB, "neg_samples": []}]))
    with pytest.raises(ValueError, match="has no data set x; it has X"):
        read_rows(tmp_path, subsets=["x"])


# lists
def test_a_broken_list_is_read_once_and_no_more_of_it_than_one_row_may_have(tmp_path, monkeypatch):
    (tmp_path / "rows.json").write_text('[{"a": 1}, {"a": "' + "x" * 10_000)
    monkeypatch.setattr(json_lists._Pieces.__init__, "__defaults__", (100,))
    more = json_lists._Pieces.more
    lengths = []

    def counted(self):
        result = more(self)
        lengths.append(len(self.text))
        return result

    monkeypatch.setattr(json_lists._Pieces, "more", counted)
    with pytest.raises(ValueError, match=r"row 1 \(line 1\): the file is broken off in this row"):
        list(json_lists.json_list(tmp_path / "rows.json"))
    assert sum(lengths) == (tmp_path / "rows.json").stat().st_size and max(lengths) == 100

    lengths.clear()
    monkeypatch.setattr(json_lists, "MOST", 1000)
    with pytest.raises(ValueError, match="the file is broken off in this row"):
        list(json_lists.json_list(tmp_path / "rows.json"))
    assert sum(lengths) <= 1200


TEXTS = st.text(st.sampled_from('a"\\[]{},:\n\u00e9'))
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=12
)


@given(st.lists(VALUES, max_size=3), st.integers(1, 9), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_list_is_read_back_in_pieces_of_any_size(tmp_path_factory, rows, size, escape):
    path = tmp_path_factory.mktemp("list") / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=escape, indent=1))
    defaults = json_lists._Pieces.__init__.__defaults__
    json_lists._Pieces.__init__.__defaults__ = (size,)
    try:
        assert [row for _, row in json_lists.json_list(path)] == rows
    finally:
        json_lists._Pieces.__init__.__defaults__ = defaults


def test_values_of_rows_are_shown_in_a_few_words():
    assert parse_json('{"a": [1, 2]}') == {"a": [1, 2]}
    deep = sys.getrecursionlimit() * 100
    for text, message in (("[" * deep, "nested too deeply"), ("1" * 5000, "4,300 digits"), ("", "Expecting value")):
        with pytest.raises(ValueError, match=message):
            parse_json(text)


def test_annotations_of_benchmarks_are_read_like_rows(tmp_path):
    (tmp_path / "data").mkdir()
    builder = _Builder(tmp_path, "K700", "CLS")
    builder.path = tmp_path / "data" / "rows.jsonl"
    builder.path.write_bytes(codecs.BOM_UTF8 + b'{"a": 1}\n{"a": "caf\xe9"}\n')
    rows = builder.rows()
    assert next(rows) == {"a": 1}
    with pytest.raises(ValueError, match="rows.jsonl, row 1: character 11 is the byte 0xe9"):
        next(rows)


def test_nothing_may_follow_a_list(tmp_path):
    path = tmp_path / "rows.json"
    row = '{"query_text": "q"}'
    path.write_text(f"[{row}]\n \n")
    assert [element for _, element in json_lists.json_list(path)] == [{"query_text": "q"}], "but spaces may"
    path.write_text(f"[{row}]\n[{row}]")
    with pytest.raises(ValueError, match=r"rows.json \(line 2\): something follows the end of the list"):
        list(json_lists.json_list(path))
