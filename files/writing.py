"""Writing files whole or not at all, and reading back what was written.

Whatever a job leaves goes through [`write_whole`]: a reader, a killed process and a power cut never meet half a file.
"""

import contextlib
import errno
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .addresses import local_copy, make_folder, send, to_path

NOTES = "notes"  # under which a file of arrays says what it is


def write_whole(path, writer: Callable[[Path], object]):
    """Lets `writer` write beside the file and moves the result into place, when it lies on the disk; folders are made.

    Args:
        path (`str` or `Path`): the file, or its address (see [`~unime.files.addresses.to_path`]).
        writer: called with the path that it is to write to. If it fails, nothing remains of what it wrote.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; an earlier file is then as it was.
    """
    path = to_path(path)
    if not isinstance(path, Path):
        return send(path, writer)
    make_folder(path.parent)

    # the name is of this process alone, in the same folder: a move within a disk is all or nothing
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        writer(draft)
        move_into_place(draft, path)
    except OSError as error:
        # in the middle of a write it names no file, and elsewhere the draft
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def move_into_place(draft, path):
    """Gives a finished file or folder its name, when all of it lies on the disk.

    Args:
        draft (`str` or `Path`): what was written, on the same disk.
        path (`str` or `Path`): its name from now on.
    """
    if os.path.isdir(draft):
        os.sync()  # its files, however many they are
    else:
        _sync(draft)
    os.replace(draft, path)

    # some file systems cannot sync a folder; the file is whole in any case
    with contextlib.suppress(OSError):
        _sync(Path(path).parent)


def write_bytes(path, content: bytes):
    """As [`write_whole`], for bytes."""
    write_whole(path, lambda draft: draft.write_bytes(content))


def write_text(path, text: str):
    """As [`write_whole`], for a text."""
    # names of files may hold what UTF-8 has no bytes for; in JSON such an escape is the same text
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path, content):
    """As [`write_whole`], for what JSON can say."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))


def write_json_lines(path, rows: Iterable):
    """As [`write_whole`], with one JSON value a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_arrays(path, arrays: dict[str, np.ndarray], notes: dict[str, str] | None = None):
    """As [`write_whole`], for arrays as a safetensors file.

    Args:
        path (`str` or `Path`): the file.
        arrays (`dict[str, np.ndarray]`): by name.
        notes (`dict[str, str]`, *optional*): what the file says of itself; [`read_arrays`] returns it.
    """
    # one entry, since safetensors writes several in a random order
    metadata = {NOTES: json.dumps(notes or {}, sort_keys=True)}

    # not `save_file`, whose errors of a full disk are not an OSError
    write_bytes(path, save(arrays, metadata=metadata))


def _sync(path):
    """Waits until a file, or the list of a folder's files, lies on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path):
    """What a JSON file says.

    Raises:
        ValueError: it is missing, empty, cut short or otherwise not JSON; the message names it.
    """
    _refuse_pipe(path)
    try:
        return json.loads(local_copy(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {_why(path, error)}.") from error


def has_json(path, kind: type = dict) -> bool:
    """Whether a JSON file is there and whole; one that is damaged is reported on stderr, for it is made again.

    Args:
        path (`str` or `Path`): the file.
        kind (`type`, defaults to `dict`): of what it holds, else `list` or `float`.
    """
    if not to_path(path).exists():
        return False

    # a program that was killed by hand may have left half a file
    try:
        content = read_json(path)
        if not isinstance(content, kind):
            raise ValueError(f"{path} holds another kind of JSON.")
    except ValueError as error:
        print(f"{error} It is made again.", file=sys.stderr, flush=True)
        return False
    return True


def read_arrays(path, names: Sequence[str] | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a safetensors file.

    Args:
        path (`str` or `Path`): the file.
        names (`Sequence[str]`, *optional*): which arrays to read; all by default.

    Returns:
        `(arrays, notes)`: those of the names that are there, and what the file says of itself.

    Raises:
        ValueError: it is missing, empty, cut short or otherwise not such a file; the message names it.
    """
    _refuse_pipe(path)
    arrays = {}
    try:
        with safe_open(local_copy(path), "numpy") as file:
            metadata = file.metadata() or {}  # None where there is none
            notes = json.loads(metadata.get(NOTES, "{}"))

            for name in file.keys():  # noqa: SIM118
                if names is None or name in names:
                    arrays[name] = file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {_why(path, error)}.") from error
    return arrays, notes


def mapped_array(path, name: str) -> np.ndarray:
    """One array of a safetensors file, mapped into memory: what is not looked at is not read.

    Args:
        path (`str` or `Path`): the file.
        name (`str`): of the array.
    """
    # of safetensors' readers, the one for torch maps the file
    with safe_open(local_copy(path), "pt") as file:
        return file.get_tensor(name).numpy()


def _refuse_pipe(path):
    """Raises `ValueError` for a pipe or a device, opening which could wait for ever."""
    path = to_path(path)
    if isinstance(path, Path) and path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} cannot be read: it is not a file.")


def _why(path, error: Exception) -> str:
    """Why a file cannot be read, in words for people."""
    try:
        with open(local_copy(path), "rb") as file:
            head = file.read(4096)
    except OSError as reason:
        return reason.strerror or str(reason)

    # a parser says of these only that the first character is wrong
    if not head:
        return "it is empty"
    if not head.strip(b"\0"):
        return "it holds zeros, as after a power cut"
    return str(error) or type(error).__name__
