"""The settings of `unime mine`; a file that loads at once."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..data.choices import SOURCES, SPLITS
from ..files.addresses import is_address
from ..files.names import file_name
from ..jobs.checks import check_options, check_settings
from ..jobs.choices import DTYPES, LIBRARIES, EngineSettings

if TYPE_CHECKING:
    from ..jobs.embedding import Embedder

POOLS = ("global", "dataset")
INDICES = ("exact", "flat", "ivf", "ivfpq")
LAYOUTS = ("parquet", "json")
JUDGED = ("query", "candidates", "show_progress")  # arguments of `score` that the judge sets
QUERY_KINDS = ("caption", "question", "passage", "keywords")
FALLBACKS = ("drop", "judge_lowest", "released")


@dataclass
class MiningConfig(EngineSettings):
    """Settings of `unime mine`; the defaults are UniME-V2's (2510.13515 section 3)."""

    data: str | None = field(default=None, metadata={"help": "Rows: a file, a folder, or a data set of the Hub."})
    out: str | None = field(default=None, metadata={"help": "Folder for all results."})
    image_root: str | None = field(
        default=None, metadata={"help": "Where image paths start; by default the data's folder."}
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "Which columns to take for what (query=caption positive=image); recognised by default."},
    )
    allow_urls: bool = field(
        default=False, metadata={"help": "Fetch images that rows name by https:// addresses (public ones)."}
    )
    subsets: list[str] | None = field(default=None, metadata={"help": "Data sets to take; all by default."})
    split: str = field(
        default="original", metadata={"help": "MMEB-train: original or diverse_instruction.", "choices": SPLITS}
    )
    rows_per_subset: int | None = field(
        default=None, metadata={"help": "At most that many rows of each data set.", "least": 1}
    )
    mined_per_subset: int | None = field(
        default=None,
        metadata={"help": "Mine for that many pairs of each data set; the others are candidates only.", "least": 1},
    )
    near_copies: int | None = field(
        default=None,
        metadata={
            "help": "Pictures are one whose perceptual hashes differ in at most that many of 192 bits; by default "
            "those with equal pixels.",
            "least": 0,
        },
    )
    retry_failed: bool = field(default=False, metadata={"help": "Do shards with failed rows once more."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code of the repositories of embedder and judge; read it first."}
    )
    verify: bool = field(
        default=False, metadata={"help": "Read every file anew, whatever is remembered of files of its size and time."}
    )

    rehearse: bool = field(
        default=False,
        metadata={"help": "Print what would be done, from configuration, tokenizer and processor alone, and end."},
    )
    rehearse_json: str | None = field(default=None, metadata={"help": "Rehearse, and write it to this file as JSON."})

    # embed
    embedder: str | None = field(default=None, metadata={"help": "Folder or repository of the embedder."})
    embedder_library: str = field(
        default="unime", metadata={"help": "unime or sentence-transformers.", "choices": LIBRARIES}
    )
    embedder_preset: str | None = field(
        default=None, metadata={"help": "Preset by which it reads items; its own by default."}
    )
    embedder_dtype: str = field(default="auto", metadata={"help": "auto is the checkpoint's own.", "choices": DTYPES})
    embedder_options: dict | str | None = field(
        default_factory=dict, metadata={"help": "For encode: batch_tokens, ..."}
    )
    embed_shard: int = field(default=1024, metadata={"help": "Items of one shard.", "least": 1})

    # retrieve
    top_k: int = field(default=50, metadata={"help": "Potential hard negatives of each pair.", "least": 1})
    pool: str = field(
        default="global",
        metadata={"help": "Candidates of all data sets (global) or of the pair's own (dataset).", "choices": POOLS},
    )
    delta: str = field(
        default="positive",
        metadata={"help": "Candidates must be less similar than the positive (positive), than a number, or none."},
    )
    index: str = field(
        default="exact",
        metadata={
            "help": "exact, or of FAISS flat and ivf, which hold the corpus in memory, and ivfpq, which does not.",
            "choices": INDICES,
        },
    )
    ivf_lists: int | None = field(
        default=None, metadata={"help": "Cells of ivf and ivfpq; 4 sqrt(N) by default.", "least": 1}
    )
    ivf_probes: int = field(default=32, metadata={"help": "Cells that ivf and ivfpq look into.", "least": 1})
    short_list: int = field(
        default=4, metadata={"help": "ivfpq: how many times top_k candidates are scored exactly.", "least": 1}
    )
    recall_queries: int = field(
        default=1000, metadata={"help": "ivfpq: queries over which its recall is measured.", "least": 1}
    )
    retrieve_shard: int = field(default=8192, metadata={"help": "Pairs of one shard.", "least": 1})

    # judge
    judge: str | None = field(
        default=None, metadata={"help": "Folder or repository of the judge, or its name on the server."}
    )
    judge_preset: str | None = field(
        default=None, metadata={"help": "Preset by which it is asked; its own by default."}
    )
    judge_dtype: str = field(default="auto", metadata={"help": "auto is the checkpoint's own.", "choices": DTYPES})
    judge_options: dict | str | None = field(
        default_factory=dict, metadata={"help": "For score: answer_format, resolution, batch_tokens, ..."}
    )
    judge_shard: int = field(default=32, metadata={"help": "Pairs of one shard.", "least": 1})
    server: str | None = field(default=None, metadata={"help": "An OpenAI-compatible server that judges instead."})
    server_options: dict | str | None = field(
        default_factory=dict, metadata={"help": "concurrency, timeout, attempts, key_variable, ..."}
    )

    # select
    num_negatives: int = field(default=10, metadata={"help": "Hard negatives of each row.", "least": 1})
    margin: str = field(default="0.01", metadata={"help": "beta of s <= s_pos - beta, or released."})
    stride: int = field(default=5, metadata={"help": "Step of the cyclic sampling.", "least": 1})
    repeat: bool = field(
        default=False,
        metadata={"help": "Where fewer candidates are allowed than num_negatives, repeat them, as the paper does."},
    )
    fallback: str = field(
        default="drop",
        metadata={"help": "Where no candidate is allowed: drop, judge_lowest or released.", "choices": FALLBACKS},
    )
    seed: int = field(default=0, metadata={"help": "Of random choices."})
    name: str = field(default="judged", metadata={"help": "Name of the selected rows, and of the page."})
    layout: str = field(
        default="parquet",
        metadata={"help": "A folder of Parquet files, or one file of JSON as UniME-V2 has.", "choices": LAYOUTS},
    )
    select_shard: int = field(default=65_536, metadata={"help": "parquet: judged pairs of one file.", "least": 1})

    # saha
    cluster_size: int = field(default=15, metadata={"help": "Negatives of a cluster.", "least": 1})
    pool_multiplier: int = field(
        default=3, metadata={"help": "Owners looked at, for each that is selected.", "least": 1}
    )
    label_datasets: list[str] | None = field(
        default=None, metadata={"help": "Data sets whose targets are labels; measured by default."}
    )

    # inspect
    count: int = field(default=20, metadata={"help": "Rows on the page.", "least": 1})

    def __post_init__(self):
        # options come from the command line as JSON
        for name in ("embedder_options", "judge_options", "server_options"):
            value = getattr(self, name)
            if isinstance(value, str):
                value = _parsed(name, value)
            setattr(self, name, {} if value is None else value)

        # numbers, or words that stand for a rule
        self.delta = str(self.delta)
        self.margin = str(self.margin)
        check_settings(self)
        if file_name(self.name) != self.name:
            raise ValueError(f"`name` is {self.name!r}; it is the name of a file in `out`, not a path.")

        # FAISS maps its lists from a disk
        if self.index == "ivfpq" and self.out and is_address(self.out):
            raise ValueError(f"`index: ivfpq` needs a folder of this machine; `out` is {self.out}.")

        # a mistyped option is an error now, too; what knows them takes seconds to load
        if self.embedder_library == "unime" and self.embedder_options:
            from ..jobs.embedding import TAKEN
            from ..modeling_unime import UniMEModel

            check_options("`embedder_options`", self.embedder_options, [UniMEModel.encode], TAKEN)
        if self.server and self.judge_preset is not None:
            raise ValueError("`judge_preset` is for a judge on this machine; a server words what it is asked.")
        if self.judge_preset is not None:
            from ..prompts_unime import resolve_preset

            resolve_preset(self.judge_preset)
        if self.server and (self.judge_options or self.server_options):
            from .judging import ServerJudge

            options = {**self.judge_options, **self.server_options}
            check_options("`server_options`", options, [ServerJudge], ("url", "model"))
        elif self.judge_options:
            from ..modeling_unime import UniMERerankerForCausalLM

            methods = [UniMERerankerForCausalLM.score]
            check_options("`judge_options`", self.judge_options, methods, JUDGED)

        # a number that cannot be read is an error now rather than after hours of embedding
        if self.delta not in ("positive", "none"):
            float(self.delta)
        if self.margin != "released":
            float(self.margin)

    def make_embedder(self) -> "Embedder":
        """The embedder of queries and candidates, not loaded yet.

        Raises:
            ValueError: none is named.
        """
        from ..jobs.embedding import Embedder

        if self.embedder is None:
            raise ValueError("`embedder` is missing: a folder or repository.")
        return Embedder(
            self.embedder,
            self.embedder_library,
            self.embedder_preset,
            self.embedder_dtype,
            self.trust_remote_code,
            **self.embedder_options,
        )


def _parsed(name: str, text: str) -> dict:
    """A setting that is a JSON object."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"`{name}` is not JSON ({error}); write '{{\"resolution\": 336}}'.") from error


@dataclass
class QueriesConfig:
    """Settings of `unime mine queries`, which lets an MLLM write queries for a corpus of pictures or texts."""

    data: str | None = field(default=None, metadata={"help": f"The corpus: {SOURCES}."})
    out: str | None = field(default=None, metadata={"help": "Folder for all results."})
    model: str | None = field(
        default=None, metadata={"help": "The VLM that writes: a folder or repository, or its name on the server."}
    )
    judge: str | None = field(default=None, metadata={"help": "The VLM that judges; the one that writes by default."})
    server: str | None = field(
        default=None, metadata={"help": "An OpenAI-compatible server that writes and judges instead."}
    )
    count: int = field(default=3, metadata={"help": "Queries of each kind for each item.", "least": 1})
    kinds: list[str] | None = field(
        default=None, metadata={"help": "caption and question (of pictures), passage and keywords (of texts); all."}
    )
    own_kinds: dict | str | None = field(
        default_factory=dict,
        metadata={
            "help": 'Further ones by name: {"of": "image" or "text", "instruction": ..., "request": ...}, and '
            '"document", put before the text of an answer.'
        },
    )
    threshold: float = field(default=0.5, metadata={"help": "Queries that the judge scores lower are left out."})
    new_tokens: int = field(default=160, metadata={"help": "Longest answer, in tokens.", "least": 1})
    dtype: str = field(default="auto", metadata={"help": "auto is the checkpoint's own.", "choices": DTYPES})
    judge_options: dict | str | None = field(
        default_factory=dict, metadata={"help": "For score: answer_format, resolution, ..."}
    )
    server_options: dict | str | None = field(
        default_factory=dict, metadata={"help": "concurrency, timeout, attempts, resolution, key_variable, ..."}
    )
    shard: int = field(default=32, metadata={"help": "Items of one shard.", "least": 1})
    retry_failed: bool = field(default=False, metadata={"help": "Do shards with failed rows once more."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code of the models' repositories; read it first."}
    )

    def __post_init__(self):
        for name in ("own_kinds", "judge_options", "server_options"):
            value = getattr(self, name)
            if isinstance(value, str):
                value = _parsed(name, value)
            setattr(self, name, {} if value is None else value)
        check_settings(self)

        # a mistyped kind is an error now rather than after hours of writing
        for name, kind in self.own_kinds.items():
            _check_kind(name, kind)
        known = (*QUERY_KINDS, *self.own_kinds)
        unknown = sorted(set(self.kinds or ()) - set(known))
        if unknown:
            raise ValueError(f"`kinds` has {', '.join(unknown)}; there are {', '.join(known)}.")


def _check_kind(name: str, kind):
    """Checks a kind of query of the user's own.

    Raises:
        ValueError: something is missing, unknown or no text; the message names it.
    """
    place = f"`own_kinds`: {name}"
    if name in QUERY_KINDS:
        raise ValueError(f"{place} is the name of one that exists; choose another.")
    if not isinstance(kind, dict) or set(kind) - {"document"} != {"of", "instruction", "request"}:
        raise ValueError(f"{place} must have `of`, `instruction` and `request`, and may have `document`.")
    if kind["of"] not in ("image", "text"):
        raise ValueError(f"{place} is of {kind['of']!r}; it must be 'image' or 'text'.")
    for key in sorted(set(kind) - {"of"}):
        if not isinstance(kind[key], str) or not kind[key].strip():
            raise ValueError(f"{place} has no text as its `{key}`.")
