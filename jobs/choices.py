"""What several commands take: words of which an option is one, and who works; a file that loads at once."""

from dataclasses import dataclass, field

LIBRARIES = ("unime", "sentence-transformers")
DTYPES = ("auto", "bfloat16", "float16", "float32")  # "auto" is the checkpoint's own
STRATEGIES = ("pointwise", "listwise", "fused")
MEASURED_STRATEGIES = (*STRATEGIES, "generate")  # a written answer has no scores, but an evaluation can count it
ENGINES = ("local", "ray")


@dataclass
class EngineSettings:
    """Who does the shards of long jobs."""

    engine: str = field(
        default="local",
        metadata={"help": "who does the shards: this process (and those of a launch), or Ray", "choices": ENGINES},
    )
    num_workers: int | None = field(
        default=None,
        metadata={"help": "ray: how many workers; by default as many as the cluster has room for", "least": 1},
    )
    gpus_per_worker: float | None = field(
        default=None, metadata={"help": "ray: by default 1 where the cluster has GPUs, else 0", "least": 0}
    )
    address: str | None = field(
        default=None,
        metadata={"help": "ray: of a running cluster, or auto; by default one is started on this machine"},
    )
