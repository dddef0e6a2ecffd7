"""Whatever rows are in, they are read as they are: a real file of each kind, and the layouts of other projects."""

import csv
import io
import json
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import fresh_process, picture
from fake_hub import FakeHub

from unime.commands.data import main as data_main
from unime.data.check import check
from unime.data.item_sources import read_items
from unime.data.readers import Findings, iterate_examples, read_rows, rows_of_dataset, stream_rows
from unime.data.schema import Item, to_example
from unime.files import unpacked
from unime.images_unime import open_image

CAPTIONS = ["a dog", "a cat on a mat", "two birds"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Unpacked pictures lie in the test's folder."""
    from unime.data import images

    monkeypatch.setattr(unpacked, "UNPACKED", tmp_path / "unpacked")
    monkeypatch.setattr(images, "UNPACKED", tmp_path / "unpacked")
    monkeypatch.setattr(unpacked.unpack, "__defaults__", ("", tmp_path / "unpacked"))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(folder) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{seed}.png" for seed in range(len(CAPTIONS))]
    for seed, name in enumerate(names):
        (folder / name).write_bytes(png(seed))
    return names


def write_csv(path, rows: list[dict], delimiter=","):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_tar(path, members: dict[str, bytes]):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def with_images() -> datasets.Dataset:
    """A data set with an `Image` column, of pictures that were decoded."""
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [picture(seed) for seed in range(3)], "caption": CAPTIONS}
    return datasets.Dataset.from_dict(rows, features)


def jsonl(path):
    names = write_pictures(path)
    rows = [{"image": name, "caption": text} for name, text in zip(names, CAPTIONS)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path / "rows.jsonl"


def json_list(path):
    rows = [json.loads(line) for line in jsonl(path).read_text().splitlines()]
    (path / "rows.json").write_text(json.dumps(rows, indent=1))
    return path / "rows.json"


def json_by_lines(path):
    (path / "other.json").write_text(jsonl(path).read_text())
    return path / "other.json"


def comma(path):
    names = write_pictures(path)
    write_csv(path / "rows.csv", [{"image": name, "caption": text} for name, text in zip(names, CAPTIONS)])
    return path / "rows.csv"


def tabs(path):
    names = write_pictures(path)
    write_csv(path / "rows.tsv", [{"caption": text, "image": name} for name, text in zip(names, CAPTIONS)], "\t")
    return path / "rows.tsv"


def parquet(path):
    with_images().to_parquet(path / "rows.parquet")
    return path / "rows.parquet"


def parquet_of_bytes(path):
    table = pa.table({"image": [png(seed) for seed in range(3)], "text": CAPTIONS})
    pq.write_table(table, path / "bytes.parquet")
    return path / "bytes.parquet"


def arrow_stream(path):
    table = with_images().with_format("arrow")[:]
    with pa.ipc.new_stream(path / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    return path / "rows.arrow"


def arrow_file(path):
    table = with_images().with_format("arrow")[:]
    with pa.ipc.new_file(path / "rows.feather", table.schema) as writer:
        writer.write_table(table)
    return path / "rows.feather"


def captions_beside(path):
    names = write_pictures(path / "photos" / "deep")
    for name, text in zip(names, CAPTIONS):
        (path / "photos" / "deep" / name).with_suffix(".txt").write_text(f"{text}\n")
    return path / "photos"


def metadata_csv(path):
    names = write_pictures(path / "photos")
    write_csv(path / "photos" / "metadata.csv", [{"file_name": n, "caption": t} for n, t in zip(names, CAPTIONS)])
    return path / "photos"


def metadata_jsonl(path):
    names = write_pictures(path / "photos")
    rows = [{"file_name": name, "text": text} for name, text in zip(names, CAPTIONS)]
    (path / "photos" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path / "photos"


def webdataset(path):
    members = {}
    for seed, text in enumerate(CAPTIONS):
        members |= {f"s/{seed}.png": png(seed), f"s/{seed}.txt": text.encode(), f"s/{seed}.__index__": b"1"}
    write_tar(path / "shard-000.tar", members)
    return path / "shard-000.tar"


def tars_of_pairs(path):
    (path / "shards").mkdir()
    for seed, text in enumerate(CAPTIONS):
        members = {f"{seed}.positive.png": png(seed), f"{seed}.query.txt": text.encode()}
        write_tar(path / "shards" / f"{seed}.tar", members)
    return path / "shards"


def saved(path):
    with_images().save_to_disk(path / "saved")
    return path / "saved"


def saved_split(path):
    splits = {"train": with_images(), "test": with_images().select([0])}
    datasets.DatasetDict(splits).save_to_disk(path / "splits")
    return path / "splits"


SOURCES = [
    jsonl,
    json_list,
    json_by_lines,
    comma,
    tabs,
    parquet,
    parquet_of_bytes,
    arrow_stream,
    arrow_file,
    captions_beside,
    metadata_csv,
    metadata_jsonl,
    webdataset,
    tars_of_pairs,
    saved,
    saved_split,
]


def assert_captioned(examples):
    """Rows whose queries are the captions, and whose positives are the pictures of these numbers."""
    examples = list(examples)
    assert [example.query for example in examples] == [Item(text) for text in CAPTIONS]
    for seed, example in enumerate(examples):
        assert example.positive.text == ""
        assert np.array_equal(open_image(example.positive.image), picture(seed))


@pytest.mark.parametrize("write", SOURCES, ids=lambda write: write.__name__)
def test_captioned_pictures_are_read_from_every_source(tmp_path, write):
    source = write(tmp_path)
    assert_captioned(map(to_example, read_rows(source)))
    assert_captioned(example for _, example in iterate_examples(source))
    report = check(source)
    assert report["rows"] == 3 and report["images"]["distinct"] == 3 and not report["bad_rows"]
    assert sorted(report["columns"][next(iter(report["columns"]))].values()) == ["positive", "query"]


def test_a_split_is_named(tmp_path):
    assert len(read_rows(f"{saved_split(tmp_path)}:test")) == 1
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, test"):
        read_rows(f"{tmp_path}/splits:dev")


def test_a_picture_that_is_unpacked_twice_is_one_file(tmp_path):
    read_rows(parquet(tmp_path))
    read_rows(saved(tmp_path))
    assert len(list((tmp_path / "unpacked").rglob("*.png"))) == 3


def test_a_stream_writes_nothing_to_the_disk(tmp_path):
    rows = stream_rows(parquet(tmp_path))
    assert_captioned(map(to_example, rows))
    assert not (tmp_path / "unpacked").exists()


def test_labels_have_their_names(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"])})
    labelled = datasets.Dataset.from_dict({"image": [picture(0), picture(1)], "label": [1, 0]}, features)
    labelled.to_parquet(tmp_path / "labels.parquet")
    labelled.save_to_disk(tmp_path / "labels")
    for rows in (read_rows(tmp_path / "labels.parquet"), read_rows(tmp_path / "labels"), rows_of_dataset(labelled)):
        assert [to_example(row).positive for row in rows] == [Item("cat"), Item("dog")]

    # a folder for each label, as imagefolder has it
    for seed, label in enumerate(["cat", "dog"]):
        (tmp_path / "classes" / label).mkdir(parents=True)
        (tmp_path / "classes" / label / "x.png").write_bytes(png(seed))
    assert [to_example(row).positive for row in read_rows(tmp_path / "classes")] == [Item("cat"), Item("dog")]


def test_several_images_of_a_column(tmp_path):
    features = datasets.Features({"query": datasets.Value("string"), "positive": datasets.List(datasets.Image())})
    pages = datasets.Dataset.from_dict({"query": ["q"], "positive": [[picture(0), picture(1)]]}, features)
    pages.save_to_disk(tmp_path / "pages")
    (example,) = map(to_example, read_rows(tmp_path / "pages"))
    assert len(example.positive.images) == 2
    assert [np.array_equal(open_image(path), picture(i)) for i, path in enumerate(example.positive.images)] == [
        True
    ] * 2


def test_columns_are_named_by_the_user(tmp_path):
    names = write_pictures(tmp_path)
    write_csv(tmp_path / "shop.csv", [{"title": "a", "thumb": names[0], "sku": "1", "other": "b", "q": "find"}])
    columns = ["query.text=title", "query.instruction=q", "positive.image=thumb", "negative=other", "dataset=sku"]
    (example,) = map(to_example, read_rows(tmp_path / "shop.csv", columns=columns))
    assert example.query == Item("a", instruction="find") and example.negatives == [Item("b")]
    assert example.positive == Item(image=str(tmp_path / names[0])) and example.dataset == "1"

    with pytest.raises(ValueError, match=r"shop.csv, row 0 \(line 2\): lacks the columns \['name'\] of --columns"):
        read_rows(tmp_path / "shop.csv", columns=["query=name", "positive=thumb"])
    with pytest.raises(ValueError, match="--columns queries=title: write what a row has"):
        read_rows(tmp_path / "shop.csv", columns=["queries=title"])
    with pytest.raises(ValueError, match="--columns query=... positive=... says which columns they are"):
        read_rows(tmp_path / "shop.csv")


LAYOUTS = {
    "anchor": ({"anchor": "q", "positive": "p", "negative_1": "m", "negative_2": "n"}, ["m", "n"], None),
    "triplet": ({"query": "q", "positive": "p", "negative": "n"}, ["n"], None),
    "scored": ({"sentence1": "q", "sentence2": "p", "score": 0.75}, [], 0.75),
    "labelled": ({"sentence1": "q", "sentence2": "p", "label": 1}, [], None),
    "answered": ({"question": "q", "answer": "p"}, [], None),
    "listed": ({"query": "q", "docs": ["n", "p"], "labels": [0, 1]}, ["n"], None),
    "graded list": ({"query": "q", "docs": ["n", "p"], "scores": [0.25, 0.75]}, ["n"], 0.75),
    "swift, old": ({"query": "q", "response": "p", "rejected_response": ["m", "n"]}, ["m", "n"], None),
    "swift": (
        {
            "messages": [{"role": "user", "content": "q"}],
            "positive_messages": [[{"role": "user", "content": "p"}]],
            "negative_messages": [[{"role": "user", "content": "n"}]],
        },
        ["n"],
        None,
    ),
    "sharegpt": ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "p"}]}, [], None),
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "p"},
            ]
        },
        [],
        None,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_other_projects_are_recognised(tmp_path, name):
    row, negatives, score = LAYOUTS[name]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "rows.parquet")
    for file in ("rows.jsonl", "rows.parquet"):
        (example,) = map(to_example, read_rows(tmp_path / file))
        assert (example.query, example.positive) == (Item("q"), Item("p"))
        assert example.negatives == list(map(Item, negatives)) and example.positive_score == score


def test_pairs_that_are_none_are_left_out_and_counted(tmp_path):
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (1, 0, 1)]
    write_csv(tmp_path / "pairs.csv", rows)
    findings = Findings()
    assert len(read_rows(tmp_path / "pairs.csv", findings=findings)) == 2
    assert findings.notes == {"rows whose label says that they are not pairs, which are left out": 1}
    write_csv(tmp_path / "stars.csv", [{"sentence1": "a", "sentence2": "b", "score": 5}])
    with pytest.raises(ValueError, match=r"stars.csv, row 0 \(line 2\): the score 5.0 is not a number in \[0, 1\]"):
        read_rows(tmp_path / "stars.csv")


def test_conversations_about_pictures(tmp_path):
    write_pictures(tmp_path)
    turns = [("human", "<image>\nWhat?"), ("gpt", "a dog"), ("human", "Where?"), ("gpt", "at home")]
    llava = {"image": "0.png", "conversations": [{"from": role, "value": text} for role, text in turns]}
    swift = {
        "messages": [{"role": "user", "content": "from <image> to <image>"}],
        "images": ["0.png", "1.png"],
        "positive_messages": [[{"role": "user", "content": "<image>"}]],
        "positive_images": [["2.png"]],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(llava) + "\n" + json.dumps(swift))
    first, second, third = map(to_example, read_rows(tmp_path / "rows.jsonl"))

    image = [str(tmp_path / f"{number}.png") for number in range(3)]
    assert (first.query, first.positive) == (Item("What?", image[0]), Item("a dog"))
    assert (second.query, second.positive) == (Item("Where?", image[0]), Item("at home"))
    assert third.query == Item("from <|image_1|> to <|image_2|>", image[0], (image[1],))
    assert third.positive == Item(image=image[2])


JUDGED = [{"query-id": "1", "corpus-id": f"d{number}", "score": score} for number, score in ((1, 2), (2, 1), (3, 0))]


def write_beir(folder):
    folder.mkdir()
    documents = [
        {"_id": "d1", "title": "Dogs", "text": "bark"},
        {"_id": "d2", "text": "mew"},
        {"_id": "d3", "text": "x"},
    ]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "1", "text": "who barks"}) + "\n")
    (folder / "qrels").mkdir()
    write_csv(folder / "qrels" / "test.tsv", JUDGED, "\t")


def test_corpus_queries_and_qrels(tmp_path):
    write_beir(tmp_path / "dogs")
    first, second = map(to_example, read_rows(tmp_path / "dogs"))
    assert first.query == second.query == Item("who barks")
    assert (first.positive, second.positive) == (Item("Dogs bark"), Item("mew"))
    assert (first.positive_score, second.positive_score) == (1.0, 0.5)
    assert first.other_positives == [Item("mew")] and first.negatives == second.negatives == [Item("x")]

    (tmp_path / "dogs" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\td9\t1\n")
    with pytest.raises(ValueError, match=r"test.tsv, row 0 \(line 2\): there is no document 'd9' in the corpus"):
        read_rows(tmp_path / "dogs")


def test_rows_with_several_positives_scores_and_weights(tmp_path):
    row = {
        "query": "q",
        "positives": [{"text": "a", "score": 1}, {"text": "b", "score": 0.5}],
        "negatives": [{"text": "n", "score": 0.25}],
        "weight": 2,
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    first, second = map(to_example, read_rows(tmp_path / "rows.jsonl"))
    assert (first.positive, first.other_positives, first.positive_score) == (Item("a"), [Item("b")], 1)
    assert (second.positive, second.other_positives, second.positive_score) == (Item("b"), [Item("a")], 0.5)
    assert first.negatives == [Item("n")] and first.negative_scores == [0.25] and first.weight == 2

    bad = [
        ({"positives": []}, "lacks ['positive']"),
        ({"positive": "p", "positives": ["a"]}, "has both 'positive' and 'positives'"),
        ({"positives": ["a", {"text": "b", "score": 1}]}, "1 of 2 items have a score"),
        ({"positive": "p", "weight": -1}, "the weight -1 is not a number from 0"),
        ({"positive": ["a", "b"]}, "Several right answers are 'positives'"),
    ]
    (tmp_path / "bad.jsonl").write_text("\n".join(json.dumps({"query": "q", **row}) for row, _ in bad))
    findings = Findings()
    with pytest.raises(ValueError, match="holds no row that can be used"):
        read_rows(tmp_path / "bad.jsonl", findings=findings)
    for problem, (_, message) in zip(findings.problems, bad, strict=True):
        assert message in problem.reason


def test_pictures_stay_inside_their_root_also_by_absolute_paths(tmp_path):
    names = write_pictures(tmp_path / "photos")
    rows = [{"query": "q", "positive": {"image": str(tmp_path / "photos" / name)}} for name in names]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(read_rows(tmp_path / "rows.jsonl", image_root=tmp_path / "photos")) == 3
    (tmp_path / "else").mkdir()
    with pytest.raises(ValueError, match="leaves the image root"):
        read_rows(tmp_path / "rows.jsonl", image_root=tmp_path / "else")


def test_broken_sources_are_named(tmp_path):
    (tmp_path / "broken.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "broken.arrow").write_bytes(b"no arrow")
    (tmp_path / "empty").mkdir()
    (tmp_path / "lonely").mkdir()
    (tmp_path / "lonely" / "x.png").write_bytes(png(0))
    for name, message in (
        ("broken.tar", "broken.tar is not a tar that can be read"),
        ("broken.arrow", "broken.arrow is not an Arrow file"),
        ("empty", "holds no rows that are known"),
        ("lonely", "x.png: has no caption"),
        ("rows.xlsx", "does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            read_rows(tmp_path / name)


FROM_HUB = """
import json, sys
from unime.data.readers import read_rows, stream_rows
from unime.data.schema import to_example
from unime.images_unime import open_image
rows = {name: read_rows(name) for name in ("me/pictures", "me/pictures:default:test", "me/dogs")}
sizes = [open_image(to_example(row).positive.image).size for row in rows["me/pictures"]]
streamed = [to_example(row) for row in stream_rows("me/pictures:train")]
errors = []
for name in ("me/nothing", "me/pictures:dev"):
    try:
        read_rows(name)
    except ValueError as error:
        errors.append(str(error))
print(json.dumps({
    "queries": {name: [to_example(row).query.text for row in table] for name, table in rows.items()},
    "sizes": sizes,
    "streamed": [[example.query.text, example.positive.image[:5]] for example in streamed],
    "errors": errors,
}))
"""


def test_data_sets_of_the_hub(tmp_path):
    with_images().to_parquet(tmp_path / "train.parquet")
    with_images().select([1]).to_parquet(tmp_path / "test.parquet")
    write_beir(tmp_path / "dogs")
    beir = {
        "corpus.jsonl": (tmp_path / "dogs" / "corpus.jsonl").read_bytes(),
        "queries.jsonl": (tmp_path / "dogs" / "queries.jsonl").read_bytes(),
        "qrels/test.jsonl": b"\n".join(json.dumps(row).encode() for row in JUDGED) + b"\n",
    }
    card = """---
configs:
- {config_name: default, data_files: [{split: test, path: qrels/test.jsonl}]}
- {config_name: corpus, data_files: [{split: corpus, path: corpus.jsonl}]}
- {config_name: queries, data_files: [{split: queries, path: queries.jsonl}]}
---
"""
    with FakeHub() as hub:
        hub.repos["datasets/me/pictures"] = {
            f"data/{split}-00000-of-00001.parquet": (tmp_path / f"{split}.parquet").read_bytes()
            for split in ("train", "test")
        }
        hub.repos["datasets/me/dogs"] = {**beir, "README.md": card.encode()}
        online = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        found = fresh_process(FROM_HUB, HF_HOME=str(tmp_path / "home"), **online)

    assert found["queries"]["me/pictures"] == CAPTIONS
    assert found["queries"]["me/pictures:default:test"] == CAPTIONS[1:2]
    assert found["queries"]["me/dogs"] == ["who barks"] * 2
    assert found["sizes"] == [[64, 48]] * 3 and found["streamed"] == [[text, "data:"] for text in CAPTIONS]
    assert "me/nothing does not exist here, and as a data set of the Hub it cannot be read" in found["errors"][0]
    assert "dev" in found["errors"][1]


def test_a_picture_beside_a_question_belongs_to_it(tmp_path):
    picture(0).save(tmp_path / "a.png")
    for name in ("question", "anchor", "text1"):
        (tmp_path / "rows.csv").write_text(f"{name},answer,photo\nwhat is it,a blob,a.png\nand now,nothing,\n")
        rows = read_rows(tmp_path / "rows.csv")
        assert rows[0]["query"]["text"] == "what is it" and rows[0]["query"]["image"].endswith("a.png")
        assert rows[1]["query"]["text"] == "and now" and rows[1]["query"]["image"] == ""
        with pytest.raises(ValueError, match="is a row of a query and its answer"):
            list(read_items([str(tmp_path / "rows.csv")]))


def test_a_picture_that_may_be_of_either_is_asked_about(tmp_path, capsys):
    picture(0).save(tmp_path / "a.png")
    path = tmp_path / "rows.csv"
    path.write_text("query,positive,image,id\nwhat is it,a blob,a.png,7\n")
    with pytest.raises(ValueError, match=r"row 0 \(line 2\): has 'image' beside 'query' and 'positive'"):
        read_rows(path)

    # where its cell is empty it is only said that it is not read
    path.write_text("query,positive,image,id\nwhat is it,a blob,,7\n")
    data_main(["check", str(path)])
    printed = capsys.readouterr().out
    assert "not read: image, id" in printed and "image seems to name pictures: --columns query.image=image" in printed

    path.write_text("query,positive,image\nwhat is it,a blob,a.png\n")
    (row,) = read_rows(path, columns=["query.image=image", "query.text=query", "positive=positive"])
    assert row["query"]["image"].endswith("a.png") and row["positive"]["text"] == "a blob"


def test_items_of_tables_are_known_by_the_names_that_pairs_have(tmp_path):
    picture(0).save(tmp_path / "a.png")
    path = tmp_path / "rows.csv"
    for head, text in (("photo,label", ""), ("img,title", "red"), ("picture,prompt", "red")):
        path.write_text(f"{head}\na.png,red\n")
        ((_, item),) = read_items([str(path)])
        assert item.image.endswith("a.png") and item.text == text
    path.write_text("place,name\na.png,red\n")
    with pytest.raises(ValueError, match=r"has the columns \['place', 'name'\], of which none is known as an item's"):
        list(read_items([str(path)]))
    with pytest.raises(ValueError, match="--columns names the columns of pairs; --column positive"):
        list(read_items([str(path)], columns=["positive.image=place"]))
    items = list(read_items([str(path)], column="positive", columns=["query=name", "positive.image=place"]))
    assert [item.image.endswith("a.png") for _, item in items] == [True]


def test_hints_for_mistakes_in_tables(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("photo;caption\na.png;red\nb.png;blue\n")
    with pytest.raises(ValueError, match="separated by semicolons"):
        read_rows(path)
    findings = Findings()
    with pytest.raises(ValueError, match=r"of its 2 bad rows the first are\n.*\(line 2\) \(and 1 more\): lacks"):
        read_rows(path, findings=findings)
    with pytest.raises(ValueError, match="several with blanks between them"):
        read_rows(path, columns=["query=photo,positive=caption"])
