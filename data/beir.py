"""MTEB's and BEIR's layout: documents, queries, and judgements of which documents are right for a query.

A folder has `corpus.jsonl`, `queries.jsonl` and `qrels/train.tsv` (or these as Parquet, in folders); a data set of the
Hub has configurations of these names. A row is a query with all its right documents; those that were judged and found
wrong are its negatives.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from datasets import get_dataset_split_names, load_dataset

from .findings import Findings, Located
from .tables import TABLES, dataset_rows, file_rows
from .texts import shown

_IDS = ("_id", "id", "corpus-id", "query-id")
_QUERY = ("query-id", "query_id", "qid", "query")
_DOCUMENT = ("corpus-id", "corpus_id", "docid", "doc_id", "document-id")
_SPLITS = ("train", "dev", "validation", "test")  # the first of these is read where none is named


def corpus_rows(folder: Path, findings: Findings | None) -> Iterator[Located]:
    """Rows of a folder.

    Args:
        folder (`Path`): with `corpus`, `queries` and `qrels`.
        findings ([`~unime.data.findings.Findings`], *optional*): takes bad rows.

    Raises:
        ValueError: there are no qrels, or these name a query or document that is not there; the message says where.
    """
    judged = _qrels_of(folder)
    corpus = _items(_table(folder, "corpus", findings))
    queries = _items(_table(folder, "queries", findings))
    yield from _rows(judged, queries, corpus, folder.name, findings)


def hub_corpus_rows(name: str, split: str, configs: list[str]) -> Iterator[Located]:
    """As [`corpus_rows`], of a data set of the Hub.

    Args:
        name (`str`): of the data set.
        split (`str`): of the judgements; the first of train, dev, validation and test by default.
        configs (`list[str]`): its configurations.
    """
    judgements = "qrels" if "qrels" in configs else "default"

    def rows(config: str, wanted: str = "") -> Iterator[Located]:
        splits = get_dataset_split_names(name, config)
        chosen = wanted or next((one for one in (config, *_SPLITS) if one in splits), splits[0])
        if chosen not in splits:
            raise ValueError(f"{name}:{config} has no split {chosen!r}; it has {', '.join(splits)}.")
        return dataset_rows(load_dataset(name, config, split=chosen), f"{name}:{config}:{chosen}", name)

    judged = list(rows(judgements, split))
    yield from _rows(judged, _items(rows("queries")), _items(rows("corpus")), name.split("/")[1], None)


def _qrels_of(folder: Path) -> list[Located]:
    """The judgements of a folder: a file `qrels.tsv`, or one of a split in `qrels`."""
    for suffix in TABLES:
        if (folder / f"qrels{suffix}").exists():
            return list(file_rows(folder / f"qrels{suffix}", None))

    files = {path.stem.split("-")[0]: path for path in sorted((folder / "qrels").glob("*")) if path.suffix in TABLES}
    for split in (*_SPLITS, *files):
        if split in files:
            return list(file_rows(files[split], None))
    raise ValueError(f"{folder} has a corpus and queries, but no qrels.tsv, and no file in qrels.")


def _table(folder: Path, name: str, findings: Findings | None) -> Iterator[Located]:
    """The rows of a table, which is a file or a folder of Parquet files."""
    for suffix in TABLES:
        if (folder / f"{name}{suffix}").exists():
            yield from file_rows(folder / f"{name}{suffix}", findings)
            return
    for path in sorted((folder / name).glob("*.parquet")):
        yield from file_rows(path, findings)


def _items(rows: Iterable[Located]) -> dict[str, dict]:
    """Items by their ids. A title stands before its text, as BEIR has it."""
    items = {}
    for located in rows:
        row = located.row
        key = next((row[name] for name in _IDS if row.get(name) is not None), None)
        if key is None:
            raise ValueError(f"{located.where}: has no _id; it has {shown(list(row))}.")

        words = [row[name].strip() for name in ("title", "text") if isinstance(row.get(name), str)]
        item = {"text": " ".join(word for word in words if word), "image": row.get("image")}
        items[str(key)] = {name: value for name, value in item.items() if value}
    return items


def _rows(
    judged: Iterable[Located], queries: dict, corpus: dict, dataset: str, findings: Findings | None
) -> Iterator[Located]:
    """A row for each query that has a right document."""
    by_query: dict[str, list[tuple[str, float, str]]] = {}
    highest = 0.0
    for located in judged:
        row = located.row
        query = _of(row, _QUERY)
        document = _of(row, _DOCUMENT)
        if query is None or document is None:
            raise ValueError(f"{located.where}: has no query-id and corpus-id; it has {shown(list(row))}.")
        try:
            score = float(row.get("score", 1))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{located.where}: the score {shown(row['score'])} is not a number.") from error
        highest = max(highest, score)
        by_query.setdefault(query, []).append((document, score, located.where))

    for query, documents in by_query.items():
        where = documents[0][2]
        if query not in queries:
            raise ValueError(f"{where}: there is no query {shown(query)}.")

        # grades are scores from 0 to 1
        row = {"query": queries[query], "positives": [], "negatives": []}
        for document, score, place in documents:
            if document not in corpus:
                raise ValueError(f"{place}: there is no document {shown(document)} in the corpus.")
            entry = corpus[document]
            if highest > 1:
                entry = {**entry, "score": max(score, 0.0) / highest}
            row["positives" if score > 0 else "negatives"].append(entry)
        if row["positives"]:
            yield Located(where, dataset, row)


def _of(row: dict, names: Iterable[str]) -> str | None:
    """The first of some columns that a row has, as a text: ids may be numbers."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    return None if value is None else str(value)
