"""Files and folders at an address that fsspec knows (`s3://`, `gs://`, `hf://`, `memory://`, ...), or on this machine.

[`to_path`] makes of either what has the methods of a `Path`. What a library can only read from a disk is fetched once
into a cache with [`local_copy`].
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from huggingface_hub.constants import HF_HOME

CACHE = Path(os.environ.get("UNIME_CACHE") or Path(HF_HOME) / "unime")  # what may be deleted at any time
COPIES = "copies"  # folder of the cache with copies of what lies at addresses
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")  # a file is there when all of it is
_MARKS = ("size", "ETag", "etag", "LastModified", "last_modified", "mtime", "created", "blob_id", "generation")


def is_address(path) -> bool:
    """Whether a path is an address of fsspec rather than one of this machine; `file://` is of this machine."""
    scheme, separator, _ = str(path).partition("://")
    return bool(separator) and scheme not in ("file", "local")


def to_path(path):
    """A path of this machine as a `Path`; an address as what has its methods.

    Args:
        path (`str`, `Path` or what this returns).

    Raises:
        ValueError: fsspec does not know the address, or lacks a package for it; the message says which.

    Example:

    ```python
    to_path("s3://bucket/mined") / "judged"
    ```
    """
    if isinstance(path, Path):
        return path
    if not isinstance(path, str):
        return path  # made by this function

    if not is_address(path):
        return Path(path.partition("://")[2] or path)

    from upath import UPath

    # a listing that is remembered would hide what other processes write
    try:
        address = UPath(path, use_listings_cache=False)
        address.fs  # noqa: B018
    except (ImportError, ValueError) as error:
        raise ValueError(f"{path} cannot be opened: {error}") from error
    return address


def send(path, writer: Callable[[Path], object]):
    """Lets `writer` write a file of this machine, and puts it at an address whole.

    Stores of objects show a file when all of it has arrived; elsewhere it is sent under another name and renamed.

    Args:
        path: an address, of [`to_path`].
        writer: called with the path that it is to write to.
    """
    with tempfile.TemporaryDirectory(prefix="unime-") as folder:
        draft = Path(folder) / path.name
        writer(draft)

        # stores of objects have no renaming: it would be a copy
        if path.protocol in STORES:
            path.fs.put_file(str(draft), path.path)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        path.fs.put_file(str(draft), unfinished.path)
        path.fs.mv(unfinished.path, path.path)


def local_copy(path) -> Path:
    """A file on this machine: itself, or a copy of what lies at an address, fetched where it is new or has changed.

    Args:
        path (`str`, `Path`, or of [`to_path`]): a file.

    Raises:
        FileNotFoundError: there is no file at the address.
    """
    path = to_path(path)
    if isinstance(path, Path):
        return path

    info = path.fs.info(path.path)
    return _copy_of(path.fs, path.path, _folder_of(str(path.parent)) / path.name, info)


def local_folder_copy(path) -> Path:
    """As [`local_copy`], of a folder with all that is below it.

    Args:
        path (`str`, `Path`, or of [`to_path`]): a folder.

    Raises:
        ValueError: a file would lie outside of the copy by its name.
    """
    path = to_path(path)
    if isinstance(path, Path):
        return path

    # where copies of this store lie
    folder = _folder_of(str(path))
    root = path.path.rstrip("/")
    for name, info in path.fs.find(root, detail=True).items():
        below = PurePosixPath(name).relative_to(root)

        # a store may name its files as it likes
        if ".." in below.parts:
            raise ValueError(f"{path}: the name {name!r} leads out of the folder.")
        _copy_of(path.fs, name, folder / below, info)
    return folder


def _folder_of(address: str) -> Path:
    """Where copies of what lies in a folder are kept."""
    digest = hashlib.blake2b(address.rstrip("/").encode(), digest_size=8).hexdigest()
    return CACHE / COPIES / digest


def _copy_of(fs, name: str, copy: Path, info: dict) -> Path:
    """A copy of a file, which is made anew where the store says that the file is another."""

    # what the store says of a file changes with the file
    marks = json.dumps({mark: str(info[mark]) for mark in _MARKS if info.get(mark) is not None})
    noted = copy.with_name(f".{copy.name}.marks")
    if copy.exists() and noted.exists() and noted.read_text() == marks:
        return copy

    # several processes may fetch at once: each moves a whole file into place
    copy.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=copy.parent) as folder:
        draft = Path(folder) / copy.name
        fs.get_file(name, str(draft))
        noted.unlink(missing_ok=True)
        os.replace(draft, copy)
        (Path(folder) / "marks").write_text(marks)
        os.replace(Path(folder) / "marks", noted)
    return copy


def remove_folder(path):
    """Removes a folder with all that is below it, if it is there."""
    path = to_path(path)
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.fs.rm(path.path, recursive=True)


def make_folder(path):
    """Makes a folder with those above it, if it is not there; stores of objects have none.

    Raises:
        ValueError: there is a file in its place, or in the place of one above it.
    """
    if not isinstance(path, Path) and path.protocol in STORES:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        place = next(place for place in (path, *path.parents) if place.exists())
        raise ValueError(f"{place} is a file where a folder is needed; name another place, or remove it.") from error


def fetched(path):
    """A file or folder on this machine: what is named, or a copy of what lies at an address.

    Data sets of the Hub stay as they are named: readers fetch them themselves.

    Raises:
        ValueError: there is nothing at the address.
    """
    if not is_address(path) or str(path).startswith("hf://"):
        return path

    # a file, or all of a folder
    address = to_path(str(path))
    if address.fs.isfile(address.path):
        return local_copy(address)
    if not address.fs.isdir(address.path):
        raise ValueError(f"{path} does not exist.")
    return local_folder_copy(address)
