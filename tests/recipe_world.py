"""A folder in which every recipe can be rehearsed as it stands: checkpoints without weights, and small data."""

import contextlib
import csv
import io
import json
import shutil
from pathlib import Path
from unittest import mock

import layouts
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from real_geometry import write_checkpoint, write_unime
from safetensors.torch import save_file

from unime import UniMEModel
from unime.miniature.teacher import train_teacher

STOCK = {  # repository -> the model whose geometry it has
    "Qwen/Qwen2-VL-2B-Instruct": "Qwen2-VL-2B-Instruct",
    "Qwen/Qwen2-VL-7B-Instruct": "Qwen2-VL-7B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct": "Qwen2.5-VL-7B-Instruct",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "llava-onevision-qwen2-7b-ov-hf",
    "llava-hf/llava-v1.6-mistral-7b-hf": "llava-v1.6-mistral-7b-hf",
    "microsoft/Phi-3.5-vision-instruct": "Phi-3.5-vision-instruct",
    "TianchengGu/UniME-V2-Qwen2VL-2B": "Qwen2-VL-2B-Instruct",
    "TianchengGu/UniME-V2-reranker-Qwen25VL-7B": "Qwen2.5-VL-7B-Instruct",
}
UNIME = {  # what an earlier training left -> the model it started from, and its preset
    "outputs/unime-phi3.5-v-stage1": ("microsoft/Phi-3.5-vision-instruct", "unime-phi3.5-v"),
    "outputs/unime-llava-1.6-stage1": ("llava-hf/llava-v1.6-mistral-7b-hf", "unime-llava-1.6"),
    "outputs/contrastive": ("outputs/backbone", "joint"),
    "outputs/quickstart/model": ("outputs/backbone", "joint"),
}
TINY = {  # the same -> the architecture of a tiny checkpoint
    "Qwen/Qwen2-VL-2B-Instruct": "qwen2_vl",
    "Qwen/Qwen2-VL-7B-Instruct": "qwen2_vl",
    "Qwen/Qwen2.5-VL-7B-Instruct": "qwen2_5_vl",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "llava_onevision",
    "llava-hf/llava-v1.6-mistral-7b-hf": "llava_next",
    "microsoft/Phi-3.5-vision-instruct": "phi3_v",
    "outputs/backbone": "qwen2_vl",
    "outputs/judge": "qwen2_vl",
}
SIZES = [(640, 480), (500, 375), (1024, 768), (333, 500)]  # of photographs
QUESTION = "<|image_1|>\nRepresent the given image with the following question: {}\n"
TARGET = "<|image_1|>\nRepresent the given image.\n"
# data set -> query, target; an image stands where there is a placeholder (spec/unime.md section 3.6)
TASKS = {
    "ImageNet_1K": ("<|image_1|>\nRepresent the given image for classification\n", "artichoke, globe artichoke {}"),
    "N24News": (
        "<|image_1|>\nRepresent the given news image with the following caption for domain classification: "
        "A dancer on a stage, number {}.\n",
        "Dance {}",
    ),
    "A-OKVQA": (QUESTION.format("What is prohibited in the shade of tree {}?"), "parking/standing {}"),
    "VisDial": (
        "Represent the given dialogue about an image, which is used for image retrieval: Q:is it sunny?\n"
        "A:yes, number {}\n",
        "<|image_1|>\nRepresent the given image\n",
    ),
    "CIRR": (
        "<|image_1|>\nGiven an image, find a similar everyday image with the described changes: show {} more dogs\n",
        TARGET,
    ),
    "MSCOCO_t2i": ("Find me an everyday image that matches the given caption: A man with {} red cars.\n", TARGET),
    "MSCOCO_i2t": (
        "<|image_1|>\nFind an image caption describing the given everyday image.\n",
        "A man is crossing street {} with a red car parked nearby.",
    ),
    "NIGHTS": ("<|image_1|>\nFind a day-to-day image that looks similar to the provided image.\n", TARGET),
    "WebQA": (
        "Find a Wikipedia image that answers this question: What colour is door {}?\n",
        "<|image_1|>\nRepresent the given Wikipedia image with related text information: House {}\n",
    ),
    "MSCOCO": (
        '<|image_1|>\nSelect the portion of the image that isolates the object labeled as "car {}"\n',
        "<|image_1|>\nRepresent the given cropped image of the object\n",
    ),
}
ROWS = 24  # of each data set
COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")


def write_images(root: Path):
    """Photographs of four sizes, one for each side of each row."""
    contents = []
    for number, size in enumerate(SIZES):
        buffer = io.BytesIO()
        Image.new("RGB", size, (60 * number, 120, 90)).save(buffer, "JPEG")
        contents.append(buffer.getvalue())
    for place, name in enumerate(TASKS):
        folder = root / "images" / name / "Train"
        folder.mkdir(parents=True)
        for number in range(2 * ROWS):
            (folder / f"{number}.jpg").write_bytes(contents[(place + number) % len(SIZES)])


def pairs() -> dict[str, list[tuple]]:
    """Rows of MMEB-train by data set: query, its image, target, its image."""
    rows = {}
    for name, (query, target) in TASKS.items():
        rows[name] = []
        for number in range(ROWS):
            images = [f"images/{name}/Train/{index}.jpg" for index in (number, ROWS + number)]
            texts = [text.replace("{}", str(number)) for text in (query, target)]
            row = []
            for text, image in zip(texts, images):
                row += [text, image if "<|image_1|>" in text else ""]
            rows[name].append(tuple(row))
    return rows


def judged_rows(rows: list[tuple], count: int) -> list[dict]:
    """Rows of UniME-V2's released layout: the next targets of the data set are the negatives."""
    judged = []
    for number, (query, query_image, target, target_image) in enumerate(rows):
        negatives = [rows[(number + step) % len(rows)][2:] for step in range(1, count + 1)]
        judged.append(
            {
                "query_text": query,
                "query_image": query_image,
                "pos_text": target,
                "pos_image": target_image,
                "query_pos_scores": 0.9,
                "hard_negatives": list(map(list, negatives)),
                "hard_negatives_scores": [round(0.5 - step / 50, 2) for step in range(count)],
            }
        )
    return judged


def write_mmeb_train(root: Path, rows: dict[str, list[tuple]]):
    """Both splits of MMEB-train."""
    for name, entries in rows.items():
        columns = {column: list(values) for column, values in zip(COLUMNS, zip(*entries))}
        for split in ("original", "diverse_instruction"):
            layouts.write_parquet(root / name / f"{split}-00000-of-00001.parquet", columns)


def write_clusters(root: Path, rows: dict[str, list[tuple]]):
    """SaHa's clusters: each row with the fifteen after it."""
    root.mkdir()
    for name, entries in rows.items():
        members = [dict(zip(COLUMNS, entry)) for entry in entries]
        clusters = []
        for number, member in enumerate(members):
            others = [members[(number + step) % len(members)] for step in range(1, 16)]
            clusters.append({**member, "neg_samples": others})
        (root / f"{name}_hard_negatives.json").write_text(json.dumps(clusters))


def write_nli(path: Path):
    """SimCSE's pairs of sentences."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sent0", "sent1", "hard_neg"])
        for number in range(240):
            writer.writerow([f"A man rides horse {number}.", f"A person is on horse {number}.", "Nobody is outside."])


def write_miniature(root: Path, world: Path):
    """The outputs of the quickstart, as far as recipes name them."""
    from unime.miniature.backbone import build_config, build_processor, build_tokenizer, world_texts

    shutil.copytree(world, root / "world")
    write_nli(root / "world" / "nli" / "nli_for_simcse.csv")
    tokenizer = build_tokenizer(world_texts(world))
    config = build_config(tokenizer)
    for name in ("backbone", "judge"):
        config.save_pretrained(root / name)
        build_processor(tokenizer).image_processor.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)

    # mined rows, whose images lie below the world
    from unime.data.readers import read_mmeb_train

    mined = []
    rows = read_mmeb_train(world / "train", image_root=world)
    for name in sorted(set(rows["dataset"])):
        entries = []
        for row in rows.filter(lambda row, name=name: row["dataset"] == name):
            sides = [row["query"], row["positive"]]
            images = [side["image"].removeprefix(f"{world}/") for side in sides]
            entries.append((sides[0]["text"], images[0], sides[1]["text"], images[1]))
        mined += [{**row, "dataset": name} for row in judged_rows(entries, 8)]
    (root / "mined" / "judged").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(mined), root / "mined" / "judged" / "rows-000000000.parquet")


def write_benchmarks(root: Path):
    """Every benchmark that a recipe names, in its own layout."""
    layouts.write_mmeb(root / "mmeb")
    layouts.write_mmeb(root / "mmeb-v2-image", instructions=True)
    (root / "mmeb-v2-image" / "image-tasks").mkdir()
    (root / "mmeb-v2-image" / "image-tasks" / "MMEB").symlink_to(root / "mmeb-v2-image")
    for name in ("flickr30k", "coco"):
        layouts.write_captioned(root / name)
    (root / "sharegpt4v").mkdir()
    layouts.write_sharegpt4v(root / "sharegpt4v")
    layouts.write_urban1k(root / "urban1k")
    layouts.write_sugarcrepe(root / "sugarcrepe")
    layouts.write_visdoc(root / "visdoc")
    layouts.write_video(root / "video" / "video-tasks")


def write_world(root: Path, world: Path) -> Path:
    """Writes the folder with checkpoints of real geometry.

    Args:
        root (`Path`): to write into.
        world (`Path`): a miniature world.
    """
    for name, model in STOCK.items():
        write_checkpoint(root / name, model)
    adapter = root / "TIGER-Lab" / "VLM2Vec-Qwen2VL-7B" / "lora"
    adapter.mkdir(parents=True)
    settings = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen2-VL-7B-Instruct"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))

    write_data(root, world)
    for name, (source, preset) in UNIME.items():
        write_unime(root / name, root / source, preset)
    write_benchmarks(root / "benchmarks-data")
    with contextlib.chdir(root):
        write_result(root)
    return root


def write_data(root: Path, world: Path):
    """The training data that recipes name."""
    rows = pairs()
    write_images(root / "MMEB-train")
    write_mmeb_train(root / "MMEB-train", rows)
    write_clusters(root / "saha-clusters", rows)
    judged = [row for entries in rows.values() for row in judged_rows(entries, 10)]
    (root / "train_data_Qwen25VL_7B_scores.json").write_text(json.dumps(judged))
    write_nli(root / "nli_for_simcse.csv")

    write_miniature(root / "outputs", world)


def write_tiny_world(root: Path, world: Path, tiny) -> Path:
    """The same training data with tiny checkpoints, which do train, under the same names.

    Args:
        root (`Path`): to write into.
        world (`Path`): a miniature world.
        tiny: the fixture; maps an architecture to the folder of a tiny checkpoint.
    """
    write_data(root, world)
    for name in ("backbone", "judge"):
        shutil.rmtree(root / "outputs" / name)
    for name, kind in TINY.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(tiny(kind)[0])

    for name, (source, preset) in UNIME.items():
        UniMEModel.from_backbone(root / source, preset).save_pretrained(root / name)
    train_teacher(root / "nli_for_simcse.csv", root / "outputs" / "teacher", epochs=0.1)
    return root


def write_result(root: Path):
    """A saved result of the embedder on SugarCrepe, for the reranker: every query's candidates as they stand."""
    from unime.eval.catalogue import read
    from unime.eval.runner import FORMAT

    source = {"data": "benchmarks-data/sugarcrepe", "image_root": None, "tasks": None, "partial": False, "cache": None}
    tasks, _ = read("sugarcrepe", source)
    arrays = {}
    for task in tasks:
        top = torch.tensor([list(task.options(number)) for number in range(len(task.queries))])
        arrays[f"{task.name}/top"] = top
        arrays[f"{task.name}/similarity"] = torch.zeros(top.shape)
    folder = root / "outputs" / "eval" / "sugarcrepe"
    folder.mkdir(parents=True)
    save_file(arrays, folder / "top.safetensors")
    result = {"format": FORMAT, "benchmark": "sugarcrepe", "model": "", "data": "", "source": source}
    (folder / "results.json").write_text(json.dumps({**result, "settings": {}, "tasks": {}, "means": {}}))


def command_of(recipe: Path) -> list[str]:
    """The words of the command line that rehearse a recipe, as `unime` takes them."""
    recipe_words = ["--config", str(recipe), "--rehearse"]
    if recipe.parent.name == "mining":
        return ["mine", "saha" if recipe.stem == "saha" else "run", *recipe_words]
    if recipe.parent.name == "eval":
        if recipe.stem == "rerank":
            recipe_words += ["--results", "outputs/eval"]
        return ["eval", recipe.stem, *recipe_words]
    return ["train", recipe.stem.split("-")[0], *recipe_words, "--rehearse_processes", "8"]


def rehearsed(recipe: Path, world: Path) -> tuple[str, int]:
    """What the rehearsal of a recipe prints in the folder of [`write_world`], and its exit status.

    It is that of a CPU with AMX, whichever this one is: on others the default precision is another.
    """
    from unime import cli

    status = 0
    output = io.StringIO()
    with_amx = mock.patch("torch.cpu.get_capabilities", return_value={"amx_bf16": True})
    with contextlib.chdir(world), contextlib.redirect_stdout(output), with_amx:
        try:
            cli.main(command_of(recipe))
        except SystemExit as stop:
            status = stop.code
    return output.getvalue(), status
