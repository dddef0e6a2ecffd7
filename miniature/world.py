"""The miniature world: real images drawn on the spot, in MMEB's on-disk layout, with every MMEB task kind.

    python -m unime.miniature.world --out outputs/world --seed 0

writes, deterministically,

    train/<Subset>/original-00000-of-00001.parquet   qry, qry_image_path, pos_text, pos_image_path
    eval/<Subset>/test-00000-of-00001.parquet        qry_text, qry_img_path, tgt_text[], tgt_img_path[]; first is right
    pretrain/generative.parquet                      stage, task, query, candidates, answer: the backbone's lessons
    compositional/<subset>.json                      SugarCrepe's layout: filename, caption, negative_caption
    nli/nli_for_simcse.csv                           sent0, sent1, hard_neg
    images/...                                       PNG files, shared by the above
    truth/<Subset>.json                              of each training row, what its target shows
    world.json                                       task kinds and sizes; written last: it means "complete"
    contact_sheet.png                                a page for a person to check

Train and test share no content: a scene's content (what it shows, not where exactly) belongs to one split for good,
and the handwritten digits of the test images are scans that no training image uses.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageOps
from tqdm.auto import tqdm

from . import scenes

IMAGE = "<|image_1|>\n"
TARGET = f"{IMAGE}Represent the given image.\n"
KINDS = {
    "Shapes_object": "Classification",
    "Digits_label": "Classification",
    "Shapes_vqa": "VQA",
    "Shapes_t2i": "Retrieval",
    "Shapes_i2t": "Retrieval",
    "Shapes_change": "Retrieval",
    "Shapes_same": "Retrieval",
    "Digits_same": "Retrieval",
    "Shapes_long_t2i": "Retrieval",
    "Shapes_long_i2t": "Retrieval",
    "Shapes_crop": "Grounding",
}
CANDIDATES = 100


@dataclass
class Row:
    """One query with its target; `content` tells targets apart, `near` is a distractor that must be there."""

    query: tuple[str, str]
    target: tuple[str, str]
    content: str
    near: tuple[str, str] | None = None


class Painter:
    """Draws pictures into one folder, each content-addressed so that equal pictures share a file."""

    def __init__(self, root: Path):
        self.root = root
        (root / "images").mkdir(parents=True, exist_ok=True)

    def save(self, image: Image.Image) -> str:
        path = f"images/{hashlib.blake2b(image.tobytes() + str(image.size).encode(), digest_size=8).hexdigest()}.png"
        if not (self.root / path).exists():
            image.save(self.root / "images" / "drawing.png", compress_level=1)
            os.replace(
                self.root / "images" / "drawing.png", self.root / path
            )  # a picture is there whole or not at all
        return path

    def scene(self, scene: scenes.Scene) -> str:
        return self.save(scenes.draw(scene))


class Digits:
    """scikit-learn's bundled scans of handwritten digits, 8 x 8 pixels; every fourth is for the test split."""

    def __init__(self):
        from sklearn.datasets import load_digits

        bunch = load_digits()
        scans = [
            (int(digit), Image.fromarray((scan * 15.9).astype("uint8")))
            for scan, digit in zip(bunch.images, bunch.target)
        ]
        self.scans = {test: [entry for i, entry in enumerate(scans) if (i % 4 == 0) == test] for test in (True, False)}

    def one(self, rng, test: bool) -> tuple[int, Image.Image]:
        """A digit and its scan, 32 x 32 pixels."""
        digit, scan = rng.choice(self.scans[test])
        return digit, scan.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")

    def two(self, rng, test: bool) -> tuple[str, Image.Image, Image.Image]:
        """Two scans side by side, and again smaller and in yellow, with a name for the pair."""
        chosen = [rng.randrange(len(self.scans[test])) for _ in range(2)]
        scans = [self.scans[test][number][1].resize((32, 32), Image.Resampling.BICUBIC) for number in chosen]
        image, other = Image.new("L", (64, 32)), Image.new("L", (64, 32))
        for place, scan in enumerate(scans):
            image.paste(scan, (32 * place, 0))
            other.paste(scan.resize((28, 28)), (32 * place + 2, 2))
        return f"scans {chosen}", image.convert("RGB"), ImageOps.colorize(other, "black", "yellow")


def digit_words(digit: int) -> str:
    return f"the digit {scenes.NUMBERS[digit]}"


def make_row(task: str, rng, test: bool, paint: Painter, digits: Digits) -> Row:
    """One example of a task. Instructions are MMEB's own strings for the task they stand for."""
    if task == "Digits_label":
        digit, image = digits.one(rng, test)
        query = (f"{IMAGE}Represent the given image for classification\n", paint.save(image))
        return Row(query, (digit_words(digit), ""), digit_words(digit))
    if task == "Digits_same":
        name, image, other = digits.two(rng, test)
        text = f"{IMAGE}Find a day-to-day image that looks similar to the provided image.\n"
        return Row((text, paint.save(image)), (TARGET, paint.save(other)), name)
    if task == "Shapes_object":
        scene = scenes.sample(scenes.one, rng, test)
        label = scenes.label(scene)
        return Row((f"{IMAGE}Identify the object shown in the image\n", paint.scene(scene)), (label, ""), label)
    if task == "Shapes_vqa":
        scene = scenes.sample(rng.choice((scenes.one, scenes.pair, scenes.crowd, scenes.quarters)), rng, test)
        question, answer = rng.choice(scenes.questions(scene))
        text = f"{IMAGE}Represent the given image with the following question: {question}\n"
        return Row((text, paint.scene(scene)), (answer, ""), answer)
    if task in ("Shapes_t2i", "Shapes_i2t"):
        scene = scenes.sample(rng.choice((scenes.pair, scenes.pair, scenes.pair, scenes.crowd)), rng, test)
        words, picture = scenes.caption(scene), paint.scene(scene)
        if task == "Shapes_t2i":
            text = f"Find me an everyday image that matches the given caption: {words}\n"
            return Row((text, ""), (TARGET, picture), words)
        return Row(
            (f"{IMAGE}Find an image caption describing the given everyday image.\n", picture), (words, ""), words
        )
    if task in ("Shapes_long_t2i", "Shapes_long_i2t"):
        scene = scenes.sample(scenes.quarters, rng, test)
        words, picture = scenes.long_caption(scene), paint.scene(scene)
        if task == "Shapes_long_t2i":
            text = f"Find me an everyday image that matches the given caption: {words}\n"
            return Row((text, ""), (TARGET, picture), words)
        return Row(
            (f"{IMAGE}Find an image caption describing the given everyday image.\n", picture), (words, ""), words
        )
    if task == "Shapes_same":
        scene = scenes.sample(scenes.pair, rng, test)
        other = scenes.restyle(scene, rng)
        text = f"{IMAGE}Find a day-to-day image that looks similar to the provided image.\n"
        return Row((text, paint.scene(scene)), (TARGET, paint.scene(other)), scene.content)
    if task == "Shapes_change":
        while True:
            scene = scenes.sample(scenes.pair, rng, test)
            words, edited = scenes.change(scene, rng)
            if scenes.is_test(edited.content) == test:
                break
        text = f"{IMAGE}Given an image, find a similar everyday image with the described changes: {words}\n"
        picture = paint.scene(scene)
        return Row((text, picture), (TARGET, paint.scene(edited)), edited.content, near=(TARGET, picture))
    if task == "Shapes_crop":
        scene = scenes.sample(scenes.pair, rng, test)
        image, (wanted, other) = scenes.draw(scene), rng.sample(scene.things, 2)
        crops = [
            (f"{IMAGE}Represent the given cropped image of the object.\n", paint.save(scenes.crop(image, t)))
            for t in (wanted, other)
        ]
        text = f'{IMAGE}Select the portion of the image that isolates the object labeled as "{wanted.label}"\n'
        return Row((text, paint.save(image)), crops[0], f"{wanted.label} on {scene.background}", near=crops[1])
    raise ValueError(f"unknown task {task!r}")


def label_space(task: str) -> list[tuple[str, str]] | None:
    """The closed label set of a classification or VQA task."""
    if task == "Digits_label":
        return [(digit_words(digit), "") for digit in range(10)]
    if task == "Shapes_object":
        return [(label, "") for label in scenes.labels()]
    if task == "Shapes_vqa":
        return [(answer, "") for answer in scenes.answers()]
    return None


def with_candidates(task: str, rows: list[Row], rng) -> list[list[tuple[str, str]]]:
    """A candidate list for each row: its target, its near miss, then targets of other content, all distinct."""
    labels, lists = label_space(task), []
    for row in rows:
        pool = labels or list({other.content: other.target for other in rows if other.content != row.content}.values())
        first = [row.target] + [row.near] * (row.near is not None)
        rest = [target for target in pool if target not in first]
        lists.append(first + rng.sample(rest, min(CANDIDATES - len(first), len(rest))))
    return lists


# what the backbone is pre-trained on
FIRST_STAGE = 0.25  # share of the generative rows that show one thing only: seeing is learnt there
GENERATIVE = {"caption": 36, "question": 42, "detail": 11, "summary": 6, "match": 3, "pick": 2}


def make_generative(rng, paint: Painter, digits: Digits, first_stage: bool) -> dict:
    """One generative example: a caption, an answer, a one-word summary, a yes/no match or a pick among candidates."""
    task = (
        rng.choice(("caption", "question")) if first_stage else rng.choices(list(GENERATIVE), GENERATIVE.values())[0]
    )

    def row(text, picture, answer, candidates=()):
        options = [{"text": option, "image": ""} for option in candidates]
        return {
            "stage": int(not first_stage),
            "task": task,
            "query": {"text": text, "image": picture},
            "candidates": options,
            "answer": answer,
        }

    if task == "caption" and rng.random() < 0.08:
        digit, image = digits.one(rng, False)
        return row("Describe the image.", paint.save(image), digit_words(digit))
    layouts = {
        "detail": [scenes.quarters],
        "pick": [scenes.pair],
        "question": [scenes.pair, scenes.pair, scenes.crowd, scenes.quarters],
    }
    make = (
        scenes.one
        if first_stage
        else rng.choice(
            layouts.get(task, [scenes.one, scenes.pair, scenes.pair, scenes.pair, scenes.crowd, scenes.crowd])
        )
    )
    scene = scenes.sample(make, rng, False)
    picture, main = paint.scene(scene), scene.things[0]
    if task == "detail":
        return row("Describe the image in detail.", picture, scenes.long_caption(scene))
    if task == "question":
        question, answer = rng.choice(scenes.questions(scene))
        return row(question, picture, answer)
    words = scenes.caption(scene)
    if task == "caption":
        return row("Describe the image.", picture, words)
    if task == "summary":
        answer = rng.choice((main.colour, main.shape))
        if rng.random() < 0.4:
            return row(f"{words}\nSummary above sentence in one word:", "", answer)
        return row("Summary above image in one word:", picture, answer)
    text = f"{IMAGE}Find an image caption describing the given everyday image.\n"
    if task == "match":
        shown = words
        if rng.random() < 0.5:
            near = scenes.negatives(scene, rng) if scene.layout == "pair" and rng.random() < 0.5 else None
            shown = rng.choice(list(near.values())) if near else scenes.caption(scenes.sample(scenes.pair, rng, False))
        return row(text, picture, "Yes" if shown == words else "No", [shown])
    options = sorted(
        {scenes.caption(scenes.sample(scenes.pair, rng, False)) for _ in range(rng.randint(1, 4))} | {words}
    )
    rng.shuffle(options)
    return row(text, picture, f"Ans: ({options.index(words) + 1})", options)


# writing
def write_parquet(path: Path, columns: dict):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_train(root: Path, task: str, rows: list[Row]):
    columns = {
        "qry": [row.query[0] for row in rows],
        "qry_image_path": [row.query[1] for row in rows],
        "pos_text": [row.target[0] for row in rows],
        "pos_image_path": [row.target[1] for row in rows],
    }
    write_parquet(root / "train" / task / "original-00000-of-00001.parquet", columns)


def write_json(path: Path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_eval(root: Path, task: str, rows: list[Row], rng):
    lists = with_candidates(task, rows, rng)
    columns = {
        "qry_text": [row.query[0] for row in rows],
        "qry_img_path": [row.query[1] for row in rows],
        "tgt_text": [[text for text, _ in candidates] for candidates in lists],
        "tgt_img_path": [[image for _, image in candidates] for candidates in lists],
    }
    write_parquet(root / "eval" / task / "test-00000-of-00001.parquet", columns)


def write_compositional(root: Path, paint: Painter, count: int, seed: int):
    rng, subsets = random.Random(f"{seed}:compositional"), {}
    while len(subsets) < 7 or min(map(len, subsets.values())) < count:
        scene = scenes.sample(scenes.pair, rng, True)
        for subset, negative in scenes.negatives(scene, rng).items():
            rows = subsets.setdefault(subset, [])
            if len(rows) < count and negative != scenes.caption(scene):
                filename = Path(paint.scene(scene)).name
                rows.append({"filename": filename, "caption": scenes.caption(scene), "negative_caption": negative})
    for subset, rows in sorted(subsets.items()):
        write_json(root / "compositional" / f"{subset}.json", {str(i): row for i, row in enumerate(rows)})


def write_nli(root: Path, count: int, seed: int):
    rng = random.Random(f"{seed}:nli")
    (root / "nli").mkdir(exist_ok=True)
    with open(root / "nli" / "nli_for_simcse.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sent0", "sent1", "hard_neg"))
        for _ in range(count):
            scene = scenes.sample(
                rng.choice((scenes.one, scenes.pair, scenes.pair, scenes.crowd, scenes.quarters)), rng, False
            )
            texts = (scenes.describe(scene), scenes.paraphrase(scene), scenes.contradiction(scene, rng))
            writer.writerow(texts)


def write_contact_sheet(root: Path, shown: dict[str, list[Row]]):
    """A page with three examples a task: query picture, target picture, and the words below."""
    width, height, per_row = 400, 150, 3
    sheet = Image.new("RGB", (width * per_row + 10, height * len(shown) + 10), "white")
    pen = ImageDraw.Draw(sheet)
    for r, (task, rows) in enumerate(shown.items()):
        for c, row in enumerate(rows[:per_row]):
            x, y = 10 + c * width, 8 + r * height
            pen.text((x, y), f"{KINDS[task]} / {task}", fill="black")
            for i, (text, image) in enumerate((row.query, row.target)):
                left, top = x + i * width // 2, y + 16
                if image:
                    picture = Image.open(root / image)
                    sheet.paste(picture, (left, top))
                    top += picture.height + 2
                lines = textwrap.wrap(text.replace(IMAGE, ""), 32)[: (y + height - 14 - top) // 13]
                pen.multiline_text((left, top), "\n".join(lines), fill=("navy", "darkgreen")[i], spacing=2)
    sheet.save(root / "contact_sheet.png")


def build(
    out,
    seed: int = 0,
    train_rows: int = 3000,
    test_rows: int = 150,
    pretrain_rows: int = 26400,
    show_progress: bool = True,
) -> Path:
    """Writes the world unless a complete one with the same settings is there already.

    Args:
        out (`str` or `Path`): folder to write.
        seed (`int`): everything follows from it.
        train_rows, test_rows (`int`): rows of each task; evaluation lists have up to 100 candidates.
        pretrain_rows (`int`): generative examples for the miniature backbone.

    Returns:
        `Path`: the folder.
    """
    root = Path(out)
    settings = {
        "version": 4,
        "seed": seed,
        "train_rows": train_rows,
        "test_rows": test_rows,
        "pretrain_rows": pretrain_rows,
    }
    done = root / "world.json"
    if done.exists():
        found = json.loads(done.read_text(encoding="utf-8"))["settings"]
        if found == settings:
            return root
        raise ValueError(
            f"{done} holds a world made with {found}, not {settings}; choose another folder or delete it."
        )
    paint, digits, shown = Painter(root), Digits(), {}
    total = len(KINDS) * (train_rows + test_rows) + pretrain_rows
    with tqdm(total=total, desc="Drawing the world", unit="row", disable=not show_progress) as bar:
        for task in KINDS:
            for test, count in ((False, train_rows), (True, test_rows)):
                rng, rows = random.Random(f"{seed}:{task}:{test}"), []
                for _ in range(count):
                    rows.append(make_row(task, rng, test, paint, digits))
                    bar.update()
                if test:
                    write_eval(root, task, rows, rng)
                    shown[task] = rows[:3]
                else:
                    write_train(root, task, rows)
                    write_json(root / "truth" / f"{task}.json", [row.content for row in rows])
        rng = random.Random(f"{seed}:generative")
        rows = []
        for number in range(pretrain_rows):
            rows.append(make_generative(rng, paint, digits, first_stage=number < FIRST_STAGE * pretrain_rows))
            bar.update()
    write_parquet(root / "pretrain" / "generative.parquet", {key: [row[key] for row in rows] for key in rows[0]})
    write_compositional(root, paint, test_rows, seed)
    write_nli(root, max(2 * train_rows, 100), seed)
    write_contact_sheet(root, shown)
    write_json(done, {"settings": settings, "tasks": KINDS})
    return root


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Write the miniature world.")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-rows", type=int, default=3000, help="training rows of each task")
    parser.add_argument("--test-rows", type=int, default=150, help="test queries of each task")
    parser.add_argument("--pretrain-rows", type=int, default=26400, help="generative examples")
    options = vars(parser.parse_args(arguments))
    root = build(**options)
    print(f"{root}: {len(KINDS)} tasks, contact sheet at {root / 'contact_sheet.png'}")


if __name__ == "__main__":
    main()
