"""Small copies of public benchmarks, in their exact layouts."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import picture

from unime.eval.suites import MMEB, SUGARCREPE, VIDEO, VISDOC


def write_parquet(path: Path, columns: dict):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed, (40, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def write_picture(path: Path, seed: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed))


def write_mmeb(
    root: Path, names=tuple(MMEB), queries: int = 3, candidates: int = 4, instructions: bool = False
) -> Path:
    """MMEB-eval: a folder a data set, targets first; with `instructions` the columns of MMEB-V2's image set."""
    for name in names:
        for i in range(queries):
            write_picture(root / "images" / name / f"{i}.png", i)
        said = MMEB[name].instruction
        texts = [[f"{name} {(i + j) % candidates}" for j in range(candidates)] for i in range(queries)]
        columns = {
            "qry_text": [f"query {i}" if instructions else f"<|image_1|>\n{said} query {i}" for i in range(queries)],
            "qry_img_path": [f"images/{name}/{i}.png" for i in range(queries)],
            "tgt_text": texts,
            "tgt_img_path": [[""] * candidates] * queries,
        }
        if instructions:
            columns |= {"qry_inst": [f"<|image_1|> {said}"] * queries, "tgt_inst": [""] * queries}
        folder = {"ImageNet-1K": "ImageNet_1K", "Place365": "Places365"}.get(name, name)
        write_parquet(root / folder / "test-00000-of-00001.parquet", columns)
    return root


def write_captioned(root: Path, images: int = 4, captions: int = 6) -> Path:
    """royokong/flickr30k_test and coco_test: pictures in Parquet, five captions or more each."""
    columns = {
        "image": [{"bytes": png(i), "path": f"{i}.png"} for i in range(images)],
        "text": [[f"picture {i} said {c}" for c in range(captions)] for i in range(images)],
    }
    write_parquet(root / "data" / "test-00000-of-00001.parquet", columns)
    return root


def write_urban1k(root: Path, count: int = 3) -> Path:
    for i in range(count):
        write_picture(root / "Urban1k" / "image" / f"{i}.jpg", i)
        caption = root / "Urban1k" / "caption" / f"{i}.txt"
        caption.parent.mkdir(exist_ok=True)
        caption.write_text(f"street {i}\nsecond line\n")
    return root


def write_sharegpt4v(root: Path, count: int = 3) -> Path:
    rows = []
    for i in range(count):
        write_picture(root / "sam" / "images" / f"{i}.jpg", i)
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"scene {i}\nin detail"}]
        rows.append({"id": str(i), "image": f"sam/images/{i}.jpg", "conversations": turns})
    (root / "share-captioner_coco_lcs_sam_1246k_1107.json").write_text(json.dumps(rows))
    return root


def write_sugarcrepe(root: Path, pairs: int = 3) -> Path:
    for name in SUGARCREPE:
        rows = {}
        for i in range(pairs):
            write_picture(root / "images" / "val2017" / f"{i:012}.jpg", i)
            rows[str(i)] = {"filename": f"{i:012}.jpg", "caption": f"{name} {i}", "negative_caption": f"no {name} {i}"}
        (root / f"{name}.json").write_text(json.dumps(rows))
    return root


def write_visdoc(root: Path, names=tuple(VISDOC), pages: int = 4) -> Path:
    """BEIR's three tables; query `i` wants page `i`, and a little page `i + 1`."""
    for name in names:
        _, folder, split = VISDOC[name]
        kind = str if split == "train" else int
        queries = range(3)
        page = {"bytes": None, "path": None}
        tables = {
            "corpus": {
                "corpus-id": [kind(i) for i in range(pages)],
                "image": [page | {"bytes": png(i), "path": f"{i}.png"} for i in range(pages)],
            },
            "queries": {"query-id": [kind(i) for i in queries], "query": [f"question {i}" for i in queries]},
            "qrels": {
                "query-id": [kind(i) for i in queries for _ in range(3)],
                "corpus-id": [kind((i + j) % pages) for i in queries for j in range(3)],
                "score": [score for _ in queries for score in (2.0, 1.0, 0.0)],
            },
        }
        for table, columns in tables.items():
            write_parquet(root / folder / table / f"{split}-00000-of-00001.parquet", columns)
    return root


def write_video(root: Path) -> Path:
    """MMEB-V2's videos: annotations in data/, frames in frames/video_<kind>/<task>/<video>/."""
    options = ["A. red", "B. blue"]
    rows = {
        "k700": [{"video_id": "v0", "pos_text": "run"}, {"video_id": "v1", "pos_text": "swim"}],
        "hmdb51": [{"video_id": "v0", "pos_text": "run"}, {"video_id": "v1", "pos_text": "swim"}],
        "ucf101": [{"video_id": "v0", "pos_text": "run"}, {"video_id": "v1", "pos_text": "swim"}],
        "breakfast": [{"video_id": "v0", "pos_text": "tea"}, {"video_id": "v1", "pos_text": "milk"}],
        "ssv2": [{"video_id": "v0", "pos_text": "push", "neg_text": ["pull", "lift"]}],
        "didemo": [{"video": "v0.mp4", "caption": "a dog"}, {"video": "v1.mp4", "caption": "a cat"}],
        "msr-vtt": [{"video_id": "v0", "video": "v0.mp4", "caption": "a dog"}],
        "msvd": [{"video_id": "v0", "video": "v0.avi", "caption": ["a dog", "a puppy"]}],
        "vatex": [{"videoID": "v0", "enCap": ["a dog"]}],
        "youcook2-val": [{"id": "v0", "video_path": "v0.mp4", "sentence": "stir"}],
        "qvhighlight": [{"query": "the jump", "video_path": "x/v0.mp4"}],
        "charades_sta": [{"query": "the jump", "video_path": "v0.mp4"}],
        "momentseeker_1k6": [
            {
                "query": "the jump",
                "input_frames": given,
                "positive_frames": [{"output_path": "a/p.mp4"}],
                "negative_frames": [{"output_path": "a/n.mp4"}],
            }
            for given in ("", "q.jpg", "a/p.mp4")
        ],
        "video-mme": [{"question": "What?", "videoID": "v0", "options": options, "answer": "B"}],
        "nextqa": [{"video": "v0", "question": "why", "answer": 4, **{f"a{i}": f"reason {i}" for i in range(5)}}],
        "egoschema": [{"video_idx": "v0", "question": "What?", "answer": "1", "option": options}],
        "activitynetqa": [{"video_name": "v0", "question": "is it", "answer": "no"}],
    }
    (root / "data" / "mvbench").mkdir(parents=True)
    for name, own in rows.items():
        (root / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    asked = [{"question": "What?", "video": "v0.mp4", "candidates": ["red", "blue"], "answer": "blue"}]
    (root / "data" / "mvbench" / "action.json").write_text(json.dumps(asked))
    for kind, names in VIDEO.items():
        for name in names:
            home = root / "frames" / f"video_{kind.lower()}" / {"SmthSmthV2": "SSv2"}.get(name, name)
            folders = ["v0", "v1"]
            folders = {
                "QVHighlight": ["v0/query", "v0/positive", "v0/negative_1"],
                "Charades-STA": ["v0/query", "v0/positive", "v0/negative_1"],
                "MomentSeeker": ["video_frames/a_p", "video_frames/a_n"],
                "MVBench": ["action/v0.mp4"],
                "ActivityNetQA": ["v_v0"],
            }.get(name, folders)
            for number, folder in enumerate(folders):
                for frame in (1, 2, 10):
                    write_picture(home / folder / f"frame_{frame}.jpg", 10 * number + frame)
    write_picture(root / "frames" / "video_mret" / "MomentSeeker" / "query_q.jpg", 3)
    return root
