"""Where each benchmark comes from, how large it is, and getting it: the command `unime data fetch`."""

import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import requests
from huggingface_hub import snapshot_download
from tqdm.auto import tqdm

from ..checkpoints.opening import HUB_ERRORS
from ..jobs.shards import write_text
from .suites import SUGARCREPE, VISDOC

_COCO = "http://images.cocodataset.org/zips/val2017.zip"
_CREPE = "https://raw.githubusercontent.com/RAIVNLab/sugar-crepe/main/data"


@dataclass(frozen=True)
class Source:
    """Where a benchmark comes from.

    Args:
        size, licence (`str`): for people.
        repos (`tuple`): data sets of the Hub, as `(repository, patterns of files, folder)`.
        urls (`tuple`): other files, as `(url, folder)`.
        note (`str`): what else has to be known.
    """

    size: str
    licence: str
    repos: tuple = ()
    urls: tuple = ()
    note: str = ""


def _visdoc() -> tuple:
    owners = {"ViDoRe v1": "vidore", "ViDoRe v2": "vidore", "VisRAG": "openbmb", "OOD": "VLM2Vec"}
    patterns = ["queries/*.parquet", "corpus/*.parquet", "qrels/*.parquet"]
    return tuple((f"{owners[group]}/{folder}", patterns, folder) for group, folder, _ in VISDOC.values())


SOURCES = {
    "mmeb": Source(
        "tens of GB of images (images.zip)",
        "Apache-2.0; the images keep their own terms",
        (("TIGER-Lab/MMEB-eval", ["*/test-*.parquet", "images.zip"], ""),),
    ),
    "mmeb-v2-image": Source(
        "7.0 GB, 15 GB unpacked",
        "Apache-2.0; the images keep their own terms",
        (
            ("ziyjiang/MMEB_Test_Instruct", ["*/*.parquet"], ""),
            ("TIGER-Lab/MMEB-V2", ["image-tasks/mmeb_v1.tar.gz"], ""),
        ),
        note="images are then in image-tasks/MMEB: pass it as --image_root",
    ),
    "visdoc": Source("about 33 GB", "each data set's own (ViDoRe v2: CC BY-NC-SA 4.0)", _visdoc()),
    "video": Source(
        "about 92 GB of frames",
        "Apache-2.0; the videos keep their own terms",
        (("TIGER-Lab/MMEB-V2", ["video-tasks/*"], ""),),
        note="parts (video_qa.tar.gz-00 ...) have to be joined, and annotations found, if the repository lacks them: "
        "docs/evaluation.md has the layout",
    ),
    "flickr30k": Source(
        "141 MB", "Flickr's terms: research only", (("royokong/flickr30k_test", ["data/*.parquet"], ""),)
    ),
    "coco": Source(
        "2.4 GB", "CC BY 4.0 (captions); Flickr's terms (images)", (("royokong/coco_test", ["data/*.parquet"], ""),)
    ),
    "urban1k": Source("81 MB", "CC BY-NC 4.0", (("BeichenZhang/Urban1k", ["Urban1k.zip"], ""),)),
    "sharegpt4v": Source(
        "1.5 GB of captions, and images of SA-1B, COCO and LLaVA-Pretrain",
        "CC BY-NC 4.0",
        (("Lin-Chen/ShareGPT4V", ["share-captioner_coco_lcs_sam_1246k_1107.json"], ""),),
        note="the images of its first 1,000 rows come from elsewhere; lay them beside the file, as it names them",
    ),
    "sugarcrepe": Source(
        "1 GB (COCO val2017)",
        "MIT (captions); CC BY 4.0 and Flickr's terms (images)",
        urls=(*((f"{_CREPE}/{name}.json", "") for name in SUGARCREPE), (_COCO, "images")),
        note="pass images/val2017 as --image_root",
    ),
}


def describe(name: str) -> str:
    """Where a benchmark comes from and how large it is, in words."""
    source = SOURCES[name]
    places = [f"https://huggingface.co/datasets/{repo}" for repo, *_ in source.repos] + [url for url, _ in source.urls]
    shown = places[:4] + [f"... and {len(places) - 4} more"] * (len(places) > 4)
    lines = [f"{name}: {source.size}; licence: {source.licence}", *(f"  {place}" for place in shown)]
    return "\n".join(lines + [f"  note: {source.note}"] * bool(source.note))


def fetch(name: str, out) -> Path:
    """Downloads a benchmark into `<out>/<name>` and unpacks it, going on where it was interrupted.

    Raises:
        ValueError: the name is unknown, or a place cannot be reached; the message says which.
    """
    if name not in SOURCES:
        raise ValueError(f"there is no benchmark {name!r}; there are {', '.join(SOURCES)}.")
    home = Path(out) / name
    for repo, patterns, folder in SOURCES[name].repos:
        try:
            snapshot_download(repo, repo_type="dataset", allow_patterns=patterns, local_dir=home / folder)
        except HUB_ERRORS as error:
            raise ValueError(f"https://huggingface.co/datasets/{repo} cannot be had: {error}") from error
    for url, folder in SOURCES[name].urls:
        download(url, home / folder)
    for path in sorted(home.rglob("*")):
        if path.name.endswith((".zip", ".tar.gz")) and ".cache" not in path.parts:
            unpack(path)
    return home


def download(url: str, folder: Path) -> Path:
    """Downloads a file, going on with what is there of it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / url.rsplit("/", 1)[1]
    part = path.with_name(f"{path.name}.part")
    if path.exists():
        return path
    have = part.stat().st_size if part.exists() else 0
    try:
        wanted = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=wanted, stream=True, timeout=60) as answer:
            whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status_code != 416 or whole != str(have):  # else all of it is there
                if answer.status_code == 416:
                    raise ValueError(f"{part} does not belong to {url} ({have:,} bytes of {whole}); remove it.")
                answer.raise_for_status()
                have = have if answer.status_code == 206 else 0
                total = have + int(answer.headers.get("Content-Length") or 0)
                bar = tqdm(total=total or None, initial=have, desc=path.name, unit="B", unit_scale=True)
                with bar, open(part, "ab" if have else "wb") as file:
                    for block in answer.iter_content(2**20):
                        bar.update(file.write(block))
                if total > part.stat().st_size:
                    raise ValueError(f"{url} broke off after {part.stat().st_size:,} bytes; run the command again.")
    except requests.RequestException as error:
        raise ValueError(f"{url} cannot be had: {error}") from error
    part.rename(path)
    return path


def unpack(path: Path):
    """Unpacks an archive beside it, once. Nothing is written outside: `tarfile` refuses, `zipfile` cuts the path.

    Raises:
        ValueError: the archive is broken, or would leave its folder; the message names it.
    """
    done = path.with_name(f"{path.name}.unpacked")
    if done.exists():
        return
    print(f"unpacking {path}", flush=True)
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(path.parent)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(path.parent, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}; remove it and fetch it again.") from error
    write_text(done, "")
