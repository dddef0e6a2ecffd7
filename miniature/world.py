"""The miniature world: real images drawn on the spot, in MMEB's on-disk layout, with every MMEB task kind.

    python -m unime.miniature.world --out outputs/world --seed 0

writes, deterministically,

    train/<Subset>/original-00000-of-00001.parquet   qry, qry_image_path, pos_text, pos_image_path, and of a negative
                                                     neg_text, neg_image_path
    eval/<Subset>/test-00000-of-00001.parquet        qry_text, qry_img_path, tgt_text[], tgt_img_path[]; first is right
    pretrain/generative.parquet                      task, query, candidates, answer: the backbone's lessons
    compositional/<subset>.json                      SugarCrepe's layout: filename, caption, negative_caption
    nli/nli_for_simcse.csv                           sent0, sent1, hard_neg
    images/...                                       PNG files, shared by the above
    truth/<Subset>.json                              of each training row, what its target shows
    truth/test/pictures.json                         of each picture of a test scene, what it shows
    world.json                                       task kinds and sizes; written last: it means "complete"
    contact_sheet.png                                a page for a person to check

Train and test share no content: a scene's content (what it shows, not where exactly) belongs to one split for good,
and the handwritten digits of the test images are scans that no training image uses.
"""

import argparse
import csv
import random
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from ..eval.suites import SUGARCREPE
from ..files.writing import has_json, read_json, write_json, write_whole
from . import scenes
from .generative import make_generative
from .instructions import IMAGE
from .sources import Digits, Painter, Source
from .tasks import KINDS, Row, make_row, with_candidates

VERSION = 5  # of the files; a world of another version is refused
EXAMPLES = 3  # of each task on the contact sheet
CELL = (400, 150)  # width and height of an example there, in pixels


def build(
    out,
    seed: int = 0,
    train_rows: int = 3000,
    test_rows: int = 150,
    pretrain_rows: int = 26400,
    show_progress: bool | None = True,
) -> Path:
    """Writes the world unless a complete one with the same settings is there already.

    Args:
        out (`str` or `Path`): folder to write.
        seed (`int`, defaults to 0): everything follows from it.
        train_rows (`int`, defaults to 3000): training rows of each task.
        test_rows (`int`, defaults to 150): test queries of each task; evaluation lists have up to 100 candidates.
        pretrain_rows (`int`, defaults to 26400): generative examples for the miniature backbone.
        show_progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar; with None on a terminal
            only, where it is gone at the end.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: the folder holds a world made with other settings.

    Example:

    ```python
    world = build("outputs/world", train_rows=100, test_rows=50, pretrain_rows=500)
    ```
    """
    root = Path(out)
    settings = {
        "version": VERSION,
        "seed": seed,
        "train_rows": train_rows,
        "test_rows": test_rows,
        "pretrain_rows": pretrain_rows,
    }
    if _is_complete(root, settings):
        return root

    painter = Painter(root)
    test_painter = Painter(root)
    digits = Digits()
    examples = {}
    total = len(KINDS) * (train_rows + test_rows) + pretrain_rows
    disable = None if show_progress is None else not show_progress  # tqdm's None: unless there is a terminal
    with tqdm(total=total, desc="Drawing the world", unit="row", disable=disable, leave=bool(show_progress)) as bar:
        # every split of a task has random numbers of its own: more rows of one task change no other
        for task in KINDS:
            source = Source(random.Random(f"{seed}:{task}:False"), False, painter, digits)
            rows = _make_rows(task, source, train_rows, bar)
            write_train(root, task, rows)

            source = Source(random.Random(f"{seed}:{task}:True"), True, test_painter, digits)
            rows = _make_rows(task, source, test_rows, bar)
            write_eval(root, task, rows, source.rng)
            examples[task] = rows[:EXAMPLES]

        source = Source(random.Random(f"{seed}:generative"), False, painter, digits)
        write_generative(root, _make_generative_rows(source, pretrain_rows, bar))

    write_compositional(root, test_painter, test_rows, seed)
    write_json(root / "truth" / "test" / "pictures.json", test_painter.descriptions)
    write_nli(root, max(2 * train_rows, 100), seed)
    write_contact_sheet(root, examples)

    # last: where it is, the world is complete
    write_json(root / "world.json", {"settings": settings, "tasks": KINDS})
    return root


def _is_complete(root: Path, settings: dict) -> bool:
    """Whether a folder holds the world with these settings.

    Raises:
        ValueError: it holds one with others.
    """
    path = root / "world.json"
    if not has_json(path):
        return False

    present = read_json(path)["settings"]
    if present != settings:
        raise ValueError(
            f"{path} holds a world made with {present}, not {settings}; choose another folder or delete it."
        )
    return True


def _make_rows(task: str, source: Source, count: int, bar: tqdm) -> list[Row]:
    """The rows of one split of a task."""
    rows = []
    for _ in range(count):
        rows.append(make_row(task, source))
        bar.update()
    return rows


def _make_generative_rows(source: Source, count: int, bar: tqdm) -> list[dict]:
    """The rows that the backbone is pre-trained on."""
    rows = []
    for _ in range(count):
        rows.append(make_generative(source))
        bar.update()
    return rows


# writing
def write_parquet(path: Path, columns: dict):
    """Writes columns by name, and the folders above them."""
    write_whole(path, lambda draft: pq.write_table(pa.table(columns), draft))


def write_train(root: Path, task: str, rows: list[Row]):
    """Writes the training rows of a task in MMEB's columns, and what their targets show."""
    sides = {
        ("qry", "qry_image_path"): [row.query for row in rows],
        ("pos_text", "pos_image_path"): [row.target for row in rows],
        ("neg_text", "neg_image_path"): [row.near or ("", "") for row in rows],  # empty where there is none
    }
    columns = {}
    for names, items in sides.items():
        columns |= dict(zip(names, zip(*items)))

    write_parquet(root / "train" / task / "original-00000-of-00001.parquet", columns)
    write_json(root / "truth" / f"{task}.json", [row.content for row in rows])


def write_eval(root: Path, task: str, rows: list[Row], rng: random.Random):
    """Writes the test rows of a task in MMEB's columns, with candidates that `rng` draws."""
    columns = {"qry_text": [], "qry_img_path": [], "tgt_text": [], "tgt_img_path": []}
    for row, candidates in zip(rows, with_candidates(task, rows, rng)):
        query_text, query_image = row.query
        texts, images = zip(*candidates)
        columns["qry_text"].append(query_text)
        columns["qry_img_path"].append(query_image)
        columns["tgt_text"].append(list(texts))
        columns["tgt_img_path"].append(list(images))

    write_parquet(root / "eval" / task / "test-00000-of-00001.parquet", columns)


def write_generative(root: Path, rows: list[dict]):
    """Writes the rows that the backbone is pre-trained on."""
    columns = {}
    for name in rows[0]:
        columns[name] = [row[name] for row in rows]
    write_parquet(root / "pretrain" / "generative.parquet", columns)


def write_compositional(root: Path, painter: Painter, count: int, seed: int):
    """Writes `count` true and false captions of test scenes for each subset of SugarCrepe, in its layout."""
    rng = random.Random(f"{seed}:compositional")
    subsets = {}

    # a negative that says the same as the caption is left out, so some subsets take more scenes than others
    while len(subsets) < len(SUGARCREPE) or min(map(len, subsets.values())) < count:
        scene = scenes.sample(scenes.pair, rng, test=True)
        caption = scenes.caption(scene)
        for subset, negative in scenes.negatives(scene, rng).items():
            rows = subsets.setdefault(subset, [])
            if len(rows) < count and negative != caption:
                filename = Path(painter.scene(scene)).name
                rows.append({"filename": filename, "caption": caption, "negative_caption": negative})

    for subset, rows in subsets.items():
        by_number = {str(number): row for number, row in enumerate(rows)}
        write_json(root / "compositional" / f"{subset}.json", by_number)


def write_nli(root: Path, count: int, seed: int):
    """Writes `count` texts of training scenes, each with one of its meaning and one that is false."""
    rng = random.Random(f"{seed}:nli")
    layouts = (scenes.one, scenes.pair, scenes.pair, scenes.crowd, scenes.quarters)

    (root / "nli").mkdir(exist_ok=True)
    with open(root / "nli" / "nli_for_simcse.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sent0", "sent1", "hard_neg"))
        for _ in range(count):
            scene = scenes.sample(rng.choice(layouts), rng, test=False)
            writer.writerow((scenes.describe(scene), scenes.paraphrase(scene), scenes.contradiction(scene, rng)))


# the contact sheet
def write_contact_sheet(root: Path, examples: dict[str, list[Row]]):
    """Draws a page with a line for each task: its examples, each with query and target side by side."""
    width, height = CELL
    sheet = Image.new("RGB", (width * EXAMPLES + 10, height * len(examples) + 10), "white")
    for line, (task, rows) in enumerate(examples.items()):
        for column, row in enumerate(rows):
            x = 10 + column * width
            y = 8 + line * height
            ImageDraw.Draw(sheet).text((x, y), f"{KINDS[task]} / {task}", fill="black")
            _draw_side(sheet, root, row.query, x, y, "navy")
            _draw_side(sheet, root, row.target, x + width // 2, y, "darkgreen")

    sheet.save(root / "contact_sheet.png")


def _draw_side(sheet: Image.Image, root: Path, side: tuple[str, str], x: int, y: int, colour: str):
    """A query or a target of the example that begins at `y`: its picture, and its text below."""
    text, path = side
    bottom = y + CELL[1] - 14
    y += 16  # the line above names the task
    if path:
        picture = Image.open(root / path)
        sheet.paste(picture, (x, y))
        y += picture.height + 2

    # no more lines, of 13 pixels each, than there is room for
    lines = textwrap.wrap(text.replace(IMAGE, ""), 32)[: (bottom - y) // 13]
    ImageDraw.Draw(sheet).multiline_text((x, y), "\n".join(lines), fill=colour, spacing=2)


def main(arguments=None):
    """The command `python -m unime.miniature.world`."""
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
