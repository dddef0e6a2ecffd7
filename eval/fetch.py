"""Where each benchmark comes from, how large it is, and getting it: the command `unime data fetch`."""

import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import requests
from huggingface_hub import snapshot_download
from tqdm.auto import tqdm

from ..checkpoints.opening import HUB_ERRORS
from ..files.addresses import make_folder
from ..files.writing import move_into_place, write_text
from ..jobs.faults import is_machine_fault
from .retrieval_sets import SHAREGPT4V
from .suites import SUGARCREPE, VISDOC

MOST = 50  # times its size that an archive may unpack to
SMALL = 64 * 2**20  # bytes that any archive may unpack to
# what broken archives raise, and archives of a kind that Python cannot read
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    RuntimeError,
    NotImplementedError,
    EOFError,
    ValueError,
    OSError,
    zlib.error,
)
SHOWN = 4  # places that are listed of a benchmark that has many
_COCO = "http://images.cocodataset.org/zips/val2017.zip"
_SUGARCREPE = "https://raw.githubusercontent.com/RAIVNLab/sugar-crepe/main/data"


@dataclass(frozen=True)
class Source:
    """Where a benchmark comes from.

    Args:
        size, license (`str`): for people.
        repos (`tuple`, *optional*): data sets of the Hub, as `(repository, patterns of files, folder)`.
        urls (`tuple`, *optional*): other files, as `(url, folder)`.
        note (`str`, *optional*): what else one has to know.
    """

    size: str
    license: str
    repos: tuple = ()
    urls: tuple = ()
    note: str = ""


def _visdoc_repos() -> tuple:
    """A repository for each task, from the owner that its group has."""
    owners = {"ViDoRe v1": "vidore", "ViDoRe v2": "vidore", "VisRAG": "openbmb", "OOD": "VLM2Vec"}
    patterns = ["queries/*.parquet", "corpus/*.parquet", "qrels/*.parquet"]
    repos = []
    for document_set in VISDOC.values():
        repos.append((f"{owners[document_set.group]}/{document_set.folder}", patterns, document_set.folder))
    return tuple(repos)


def _sugarcrepe_urls() -> tuple:
    """The files of captions, and the images that they are about."""
    urls = []
    for subset in SUGARCREPE:
        urls.append((f"{_SUGARCREPE}/{subset}.json", ""))
    urls.append((_COCO, "images"))
    return tuple(urls)


SOURCES = {
    "mmeb": Source(
        "tens of GB of images (images.zip)",
        "Apache-2.0; the images keep their own terms",
        repos=(("TIGER-Lab/MMEB-eval", ["*/test-*.parquet", "images.zip"], ""),),
    ),
    "mmeb-v2-image": Source(
        "7.0 GB, 15 GB unpacked",
        "Apache-2.0; the images keep their own terms",
        repos=(
            ("ziyjiang/MMEB_Test_Instruct", ["*/*.parquet"], ""),
            ("TIGER-Lab/MMEB-V2", ["image-tasks/mmeb_v1.tar.gz"], ""),
        ),
        note="images are then in image-tasks/MMEB: pass it as --image_root",
    ),
    "visdoc": Source(
        "about 33 GB",
        "each data set's own (ViDoRe v2: CC BY-NC-SA 4.0)",
        repos=_visdoc_repos(),
    ),
    "video": Source(
        "about 92 GB of frames",
        "Apache-2.0; the videos keep their own terms",
        repos=(("TIGER-Lab/MMEB-V2", ["video-tasks/*"], ""),),
        note="parts (video_qa.tar.gz-00 ...) have to be joined, and annotations found, if the repository lacks them: "
        "docs/evaluation.md has the layout",
    ),
    "flickr30k": Source(
        "141 MB",
        "Flickr's terms: research only",
        repos=(("royokong/flickr30k_test", ["data/*.parquet"], ""),),
    ),
    "coco": Source(
        "2.4 GB",
        "CC BY 4.0 (captions); Flickr's terms (images)",
        repos=(("royokong/coco_test", ["data/*.parquet"], ""),),
    ),
    "urban1k": Source(
        "81 MB",
        "CC BY-NC 4.0",
        repos=(("BeichenZhang/Urban1k", ["Urban1k.zip"], ""),),
    ),
    "sharegpt4v": Source(
        "1.5 GB of captions, and images of SA-1B, COCO and LLaVA-Pretrain",
        "CC BY-NC 4.0",
        repos=(("Lin-Chen/ShareGPT4V", [SHAREGPT4V], ""),),
        note="the images of its first 1,000 rows come from elsewhere; lay them beside the file, as it names them",
    ),
    "sugarcrepe": Source(
        "1 GB (COCO val2017)",
        "MIT (captions); CC BY 4.0 and Flickr's terms (images)",
        urls=_sugarcrepe_urls(),
        note="pass images/val2017 as --image_root",
    ),
}


def describe(name: str) -> str:
    """Where a benchmark comes from and how large it is, in words.

    Args:
        name (`str`): one of `SOURCES`.
    """
    source = SOURCES[name]
    places = []
    for repo, _, _ in source.repos:
        places.append(f"https://huggingface.co/datasets/{repo}")
    for url, _ in source.urls:
        places.append(url)

    lines = [f"{name}: {source.size}; license: {source.license}"]
    for place in places[:SHOWN]:
        lines.append(f"  {place}")

    # visual documents are two dozen repositories
    if len(places) > SHOWN:
        lines.append(f"  ... and {len(places) - SHOWN} more")

    if source.note:
        lines.append(f"  note: {source.note}")
    return "\n".join(lines)


def fetch(name: str, out) -> Path:
    """Downloads a benchmark into `<out>/<name>` and unpacks it, going on where it was interrupted.

    Args:
        name (`str`): one of `SOURCES`.
        out (`str` or `Path`): folder of all benchmarks.

    Returns:
        `Path`: the benchmark's folder.

    Raises:
        ValueError: the name is unknown, or a place cannot be reached; the message says which.

    Example:

    ```python
    folder = fetch("urban1k", "benchmarks-data")
    ```
    """
    if name not in SOURCES:
        raise ValueError(f"there is no benchmark {name!r}; there are {', '.join(SOURCES)}.")
    source = SOURCES[name]
    root = Path(out) / name

    # both go on where an earlier call was interrupted
    for repo, patterns, folder in source.repos:
        try:
            snapshot_download(repo, repo_type="dataset", allow_patterns=patterns, local_dir=root / folder)
        except HUB_ERRORS as error:
            raise ValueError(f"https://huggingface.co/datasets/{repo} is not available: {error}") from error

    for url, folder in source.urls:
        download(url, root / folder)

    # .cache is where the Hub's client keeps what it knows of its downloads
    for path in sorted(root.rglob("*")):
        if path.name.endswith((".zip", ".tar.gz")) and ".cache" not in path.parts:
            unpack(path)
    return root


def download(url: str, folder: Path) -> Path:
    """Downloads a file, going on where an earlier download was interrupted.

    Args:
        url (`str`): whose last part is the file's name.
        folder (`Path`): where the file goes; until it is whole, it is named `<file>.part`.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: the file is not available, the connection broke off, or what is there belongs to another file.
    """
    make_folder(folder)
    path = folder / url.rsplit("/", 1)[1]
    if path.exists():
        return path

    # ask for the bytes after those that an earlier call left
    partial = path.with_name(f"{path.name}.part")
    size = 0
    if partial.exists():
        size = partial.stat().st_size

    headers = {"Accept-Encoding": "identity"}  # sizes are those of the file, not of a compressed answer
    if size:
        headers["Range"] = f"bytes={size}-"

    try:
        with requests.get(url, headers=headers, stream=True, timeout=60) as response:
            if response.status_code == 416:  # no bytes come after these
                _check_complete(response, url, partial, size)
            else:
                response.raise_for_status()
                _append(response, url, partial, size)
    except requests.RequestException as error:
        raise ValueError(f"{url} is not available: {error}") from error

    move_into_place(partial, path)
    return path


def _check_complete(response: requests.Response, url: str, partial: Path, size: int):
    """The server has nothing after the bytes that are there: they must be the whole file."""
    whole = response.headers.get("Content-Range", "").rpartition("/")[2]
    if whole != str(size):
        raise ValueError(f"{partial} does not belong to {url} ({size:,} bytes of {whole}); remove it.")


def _append(response: requests.Response, url: str, partial: Path, size: int):
    """Writes an answer behind the bytes that are there, or over them, if the server sends the whole file again."""
    mode = "ab"
    if response.status_code != 206:  # not a part of the file
        mode = "wb"
        size = 0
    total = size + int(response.headers.get("Content-Length") or 0)  # 0 if the server does not say

    bar = tqdm(total=total or None, initial=size, desc=partial.stem, unit="B", unit_scale=True)
    with bar, open(partial, mode) as file:
        for block in response.iter_content(2**20):
            bar.update(file.write(block))

    written = partial.stat().st_size
    if written < total:
        raise ValueError(f"{url} broke off after {written:,} bytes; run the command again.")


def unpack(path: Path):
    """Unpacks an archive beside it, once, and whole or not at all.

    Nothing is written outside: `tarfile` refuses, `zipfile` cuts the path. Sums of what was packed are checked, links
    of a zip are refused, and so is what unpacks to more than `MOST` times its size.

    Args:
        path (`Path`): a `.zip` or `.tar.gz`.

    Raises:
        ValueError: the archive is broken or encrypted, would leave its folder, or unpacks to too much; the message
            names it.
    """
    done = path.with_name(f"{path.name}.unpacked")
    if done.exists():
        return
    print(f"unpacking {path}", flush=True)

    # into a folder of its own: what turns out to be broken at the end leaves nothing behind
    draft = path.with_name(f"{path.name}.unpacking")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()

    limit = max(SMALL, MOST * path.stat().st_size)
    try:
        if path.suffix == ".zip":
            _unpack_zip(path, draft, limit)
        else:
            _unpack_tar(path, draft, limit)
        _move_into(draft, path.parent)
    except _BROKEN as error:
        if is_machine_fault(error):  # such as a full disk, of which the archive is innocent
            raise
        raise ValueError(f"{path} cannot be unpacked: {error}; remove it and fetch it again.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)

    # what is said to be unpacked lies on the disk
    os.sync()
    write_text(done, "")


def _unpack_zip(path: Path, folder: Path, limit: int):
    """Unpacks a zip, whose sums `zipfile` checks."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        for member in members:
            if member.flag_bits & 1:
                raise ValueError(f"{member.filename} is encrypted")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"{member.filename} is a link")

        # `zipfile` reads no more of a member than the size that it states
        _check_size(sum(member.file_size for member in members), limit)
        archive.extractall(folder)


def _unpack_tar(path: Path, folder: Path, limit: int):
    """Unpacks a tar.gz, and reads it to the end, where the sum of all of it stands."""
    with gzip.open(path) as stream:
        size = 0
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                size += member.size
                _check_size(size, limit)
                archive.extract(member, folder, filter="data")

        # `tarfile` stops at the last member, before the sum
        while block := stream.read(2**20):
            size += len(block)
            _check_size(size, limit)


def _check_size(size: int, limit: int):
    if size > limit:
        raise ValueError(f"it unpacks to more than {limit:,} bytes, {MOST} times its own size")


def _move_into(draft: Path, folder: Path):
    """Moves everything below one folder to the same place below another."""
    for source in sorted(draft.rglob("*")):
        target = folder / source.relative_to(draft)
        if source.is_dir() and not source.is_symlink():
            target.mkdir(exist_ok=True)
        else:
            os.replace(source, target)
