"""Lessons in one word: the backbone learns to do what a system prompt says, as chat models do.

    python -m unime.miniature.one_word --world outputs/world --backbone outputs/backbone --out outputs/instructed

An MLLM of billions of parameters was tuned to follow instructions before anyone embeds with it; the miniature backbone
answers questions, and has never seen a system prompt. Here it learns to say a word of what is right for a query of the
training rows, or a word of a target: under a system sentence, in one of several wordings, and as often in one turn
without one ("Summary above image in one word:"). The words of "From Generator to Embedder" are none of these wordings.
No two items are compared, and a quarter of the lessons are those that the backbone had before.
"""

import argparse
import random
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset

from ..data.readers import read_mmeb_train
from ..data.schema import PLACEHOLDER
from ..files.writing import read_json
from ..jobs.notices import silence_alarms
from ..modeling_unime import UniMERerankerForCausalLM
from . import scenes
from .backbone import BackboneConfig, BackboneTrainer, GenerativeCollator, train_and_save

REHEARSED = 0.25  # share of lessons that the backbone had before
SYSTEMS = (
    "Say what you are shown or told with a single word.",
    "You are given an image or a text. Reply with one word that sums it up.",
    "Answer in one word. For an image, name what is in it. For a text, name what it is about.",
    "Sum up every image in one word, and every sentence in one word.",
    "Given a picture or a sentence, tell its meaning in only one word.",
)
REQUESTS = (
    "Answer in one word.",
    "Sum this up in one word.",
    "Describe the given image or text in a word.",
    "Which single word says it?",
    "Give one word for the given text or picture.",
)
SUMMARY = "Summary above {kind} in one word:"  # in one turn, as the backbone has been asked before

# what a word may be: what a picture shows, in place of how a sentence begins
WORDS = {*scenes.COLOURS, *scenes.SHAPES, *map(scenes.plural, scenes.SHAPES), *scenes.SIZES, *scenes.BACKGROUNDS}
WORDS |= {*scenes.NUMBERS, "above", "below", "left", "right", "top", "bottom"}


@dataclass
class OneWordConfig(BackboneConfig):
    """`TrainingArguments` with the defaults of the lessons in one word."""

    output_dir: str | None = field(default="outputs/instructed", metadata={"help": "Where the checkpoint goes."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    max_steps: int = field(default=800, metadata={"help": "Steps."})


def make_rows(world: Path, count: int, seed: int) -> list[dict]:
    """Lessons in one word, from the training rows of a world.

    Args:
        world (`Path`): written by [`~unime.miniature.world.build`].
        count (`int`): number of lessons.
        seed (`int`): everything random follows from it.

    Returns:
        `list[dict]`: as rows of `pretrain/generative.parquet`, with the `system` sentence of the chat, if any.
    """
    rng = random.Random(f"{seed}:one word")
    pairs = []
    for path in sorted((world / "truth").glob("*.json")):
        rows = read_mmeb_train(world / "train", [path.stem], image_root=world)
        for row, content in zip(rows, read_json(path)):
            words = words_of(content)
            if words:
                pairs.append((row["query"], row["positive"], words))

    lessons = []
    for query, target, words in rng.choices(pairs, k=count):
        lesson = _in_one_turn(target) if rng.random() < 0.5 else _under_a_system_sentence(query, target, rng)
        lessons.append({**lesson, "candidates": [], "answer": rng.choice(words)})
    return lessons


def words_of(content: str) -> list[str]:
    """The words of a content that stand for something in the picture, each once."""
    words = content.replace("|", " ").replace(",", " ").replace(".", " ").split()
    return [word for word in dict.fromkeys(words) if word in WORDS]


def _in_one_turn(target: dict) -> dict:
    """A target's picture, or its text, with the request behind it."""
    if target["image"]:
        return _lesson(target["image"], f"\n{SUMMARY.format(kind='image')}")
    return _lesson("", f"{target['text']}\n{SUMMARY.format(kind='sentence')}")


def _under_a_system_sentence(query: dict, target: dict, rng: random.Random) -> dict:
    """A query with a request, or a bare target."""
    system = rng.choice(SYSTEMS)
    item, request = rng.choice(((query, rng.choice(REQUESTS)), (target, "")))
    text = (item["text"] or "").replace(PLACEHOLDER, "").strip()

    # an image stands on a line of its own
    lines = [part for part in (text, request) if part]
    if item["image"]:
        lines.insert(0, "")
    return _lesson(item["image"] or "", "\n".join(lines), system)


def _lesson(image: str, text: str, system: str = "") -> dict:
    return {"task": "one word", "query": {"text": text, "image": image}, "system": system}


def instruct(world, backbone, args: OneWordConfig) -> Path:
    """Trains a backbone on lessons in one word among those that it had, going on where it was interrupted.

    Args:
        world (`str` or `Path`): written by [`~unime.miniature.world.build`].
        backbone (`str` or `Path`): written by [`~unime.miniature.backbone.pretrain`].
        args ([`OneWordConfig`]): settings of the training; the checkpoint goes to its `output_dir`.

    Returns:
        `Path`: the folder with a stock checkpoint; `model.safetensors` is written last.

    Example:

    ```python
    instruct("outputs/world", "outputs/backbone", OneWordConfig(output_dir="outputs/instructed", max_steps=100))
    ```
    """
    world = Path(world)
    model = UniMERerankerForCausalLM.from_backbone(backbone)

    total = args.max_steps * args.per_device_train_batch_size
    rehearsed = int(total * REHEARSED)
    rows = make_rows(world, total - rehearsed, args.seed)
    before = pq.read_table(world / "pretrain" / "generative.parquet").to_pylist()
    for row in random.Random(args.seed).choices(before, k=rehearsed):
        rows.append({**row, "system": ""})

    collator = GenerativeCollator(model.processor, world)
    trainer = BackboneTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), data_collator=collator)
    train_and_save(trainer, model.processor)
    return Path(args.output_dir)


def main(arguments=None):
    """The command `python -m unime.miniature.one_word`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=Path("outputs/world"))
    parser.add_argument("--backbone", type=Path, default=Path("outputs/backbone"))
    parser.add_argument("--out", type=Path, default=Path("outputs/instructed"))
    options = parser.parse_args(arguments)
    silence_alarms()
    print(instruct(options.world, options.backbone, OneWordConfig(output_dir=str(options.out))))


if __name__ == "__main__":
    main()
