"""Opens trapped checkpoints by every door of the package, with or without the trust, and prints what happened.

    python trust_doors.py HOME VARIANT TRUST OUT

`HOME` and its variants are made by `test_trust.py`. Each door is a line of the JSON that comes last: the files of code
that ran, and the error.
"""

import builtins
import json
import os
import sys
from pathlib import Path

home, variant, trust, out = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True", Path(sys.argv[4])
markers = out / "markers"
os.environ["MARKERS"] = str(markers)
builtins.input = lambda *question: "y"  # a loader that asks is a loader that runs the code

# an import by name must not find the files of a checkpoint in the working directory either
os.chdir(home / variant / "embedder")
sys.path.insert(0, "")

from sentence_transformers import CrossEncoder, SentenceTransformer  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor  # noqa: E402

from unime import UniMEModel, UniMEProcessor, UniMERerankerForCausalLM, open_checkpoint  # noqa: E402
from unime.checkpoints.conversion import convert, export, merge  # noqa: E402
from unime.commands import convert as conversion  # noqa: E402
from unime.commands import demo, encode, evaluate, figures, mine, rerank, search  # noqa: E402
from unime.data.schema import Item  # noqa: E402
from unime.eval.mteb_models import UniMECrossEncoder, UniMEEncoder  # noqa: E402
from unime.jobs.embedding import Embedder  # noqa: E402
from unime.jobs.reranking import Reranker  # noqa: E402
from unime.mining import judging  # noqa: E402
from unime.mining.settings import MiningConfig  # noqa: E402
from unime.trainers import contrastive, distillation  # noqa: E402

embedder = str(home / variant / "embedder")
reranker = str(home / variant / "reranker")
backbone = str(home / variant / "backbone")
adapter = str(home / variant / "adapter")
image = str(home / "pictures" / "picture.png")
rows = str(home / "rows.jsonl")
texts = str(home / "texts.jsonl")
world = str(home / "world")
item = [Item("a")]

said = {"trust_remote_code": True} if trust else {}
flag = ["--trust-remote-code"] if trust else []
other = ["--trust_remote_code"] if trust else []  # the other spelling


def encode_as(library: str, *options):
    encode.main([image, "--model", embedder, "--out", str(out / f"{library}.parquet"), "--library", library, *options])


def mine_with(library: str, *options):
    arguments = ["--data", rows, "--out", str(out / "mined" / library), "--embedder", embedder]
    mine.main(["embed", *arguments, "--embedder-library", library, *options])


def open_judge():
    judging.open_judge(MiningConfig(data=rows, out=str(out / "judged"), judge=reranker, **said))


def train(stage, model: str, data: str, *options):
    folder = str(out / stage.__name__)
    arguments = ["--model_name_or_path", model, "--data", data, "--output_dir", folder]
    arguments += ["--max_steps", "1", "--per_device_train_batch_size", "2"]
    arguments += ["--use_cpu", "true", "--bf16", "false", "--report_to", "none"]
    stage.main([*arguments, *options])


def open_page():
    demo._launch = lambda blocks, options: "nowhere"
    demo.page = lambda photos, *rest: photos.refresh() and Page()
    demo.main(["--images", str(home / "pictures"), "--model", embedder, "--cache", str(out / "cache"), *flag])


class Page:
    def block_thread(self):
        """Shows nothing."""


draw = ["next-token", "--models", embedder, "--head", backbone, "--data", world, "--out", str(out / "figure.png")]
measure = ["world", "--model", embedder, "--data", world, "--out", str(out / "eval")]
teacher = ["--teacher", embedder, *(["--teacher-trust-remote-code"] if trust else [])]
doors = {
    "UniMEModel": lambda: UniMEModel.from_pretrained(embedder, **said).encode("a"),
    "UniMERerankerForCausalLM": lambda: UniMERerankerForCausalLM.from_pretrained(reranker, **said).score("a", ["b"]),
    "UniMEModel.from_backbone": lambda: UniMEModel.from_backbone(backbone, **said).encode("a"),
    "UniMERerankerForCausalLM.from_backbone": lambda: UniMERerankerForCausalLM.from_backbone(backbone, **said),
    "UniMEProcessor": lambda: UniMEProcessor.from_pretrained(embedder, **said),
    "UniMEProcessor.from_backbone": lambda: UniMEProcessor.from_backbone(backbone, **said),
    "AutoModel": lambda: AutoModel.from_pretrained(embedder, **said).encode("a"),
    "AutoModelForCausalLM": lambda: AutoModelForCausalLM.from_pretrained(reranker, **said).score("a", ["b"]),
    "AutoProcessor": lambda: AutoProcessor.from_pretrained(embedder, **said),
    "open_checkpoint": lambda: open_checkpoint(embedder, **said).encode("a"),
    "adapter": lambda: open_checkpoint(adapter, **said).encode("a"),
    "convert": lambda: convert(backbone, out / "converted", **said),
    "export": lambda: export(embedder, out / "exported", **said),
    "merge": lambda: merge(adapter, out / "merged", **said),
    "SentenceTransformer": lambda: SentenceTransformer(embedder, device="cpu", **said).encode("a"),
    "CrossEncoder": lambda: CrossEncoder(reranker, device="cpu", **said).predict([("a", "b")]),
    "Embedder": lambda: Embedder(embedder, **said).encode(item, "query"),
    "Embedder, sentence-transformers": lambda: Embedder(embedder, "sentence-transformers", **said).encode(
        item, "query"
    ),
    "Reranker": lambda: Reranker(reranker, **said).scores("a", ["b"], [0.0]),
    "teacher": lambda: distillation.encode_teacher(embedder, ["a", "b"], out / "teacher", **said),
    "UniMEEncoder": lambda: UniMEEncoder(embedder, **said).model.encode("a"),
    "UniMECrossEncoder": lambda: UniMECrossEncoder(reranker, **said).model.score("a", ["b"]),
    "unime encode": lambda: encode_as("unime", *flag),
    "unime encode, sentence-transformers": lambda: encode_as("sentence-transformers", *other),
    "unime search": lambda: search.main([str(home / f"{variant}.parquet"), "a", "--model", embedder, *flag]),
    "unime rerank": lambda: rerank.main([image, "--query", "a", "--reranker", reranker, *other]),
    "unime eval": lambda: evaluate.main([*measure, *other]),
    "unime eval figures": lambda: figures.main([*draw, *flag]),
    "unime demo": open_page,
    "unime convert": lambda: conversion.main(["convert", backbone, str(out / "c"), *flag]),
    "unime export": lambda: conversion.main(["export", embedder, str(out / "e"), *other]),
    "unime merge": lambda: conversion.main(["merge", adapter, str(out / "m"), *flag]),
    "unime mine": lambda: mine_with("unime", *flag),
    "unime mine, sentence-transformers": lambda: mine_with("sentence-transformers", *other),
    "judge of unime mine": open_judge,
    "unime train contrastive": lambda: train(contrastive, embedder, rows, *flag),
    "unime train distillation": lambda: train(distillation, backbone, texts, *other, *teacher),
}

results = {}
for name, door in doors.items():
    markers.write_text("")
    error = ""
    try:
        door()
    except (Exception, SystemExit) as failure:
        error = f"{type(failure).__name__}: {failure}"
    results[name] = {"ran": markers.read_text().split(), "error": error}
print()
print(json.dumps(results))
