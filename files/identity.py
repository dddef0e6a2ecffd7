"""Whether two files are the same, and whether a file has changed: one notion for all jobs.

A file is what it holds: a digest of its bytes. It is read once, and its digest remembered under device, inode, size
and times of change; a file that differs in any of these is read again. So a picture that was replaced is noticed
although its size and its time are the old ones, and a folder that was moved is still the same data.
"""

import atexit
import hashlib
import os
import re
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ..images_unime import DATA_URI, open_image
from .addresses import CACHE

FRESH = 2 * 10**9  # nanoseconds for which a file may be written again without a new time of change
FLUSHED = 1000  # digests that are written to the disk at once
WORKERS = 4  # pictures that are decoded at a time
NOISE = 4  # levels of colour that a lossy format adds to what is flat
MISSING = "missing"
SPECIAL = "not a file"  # a pipe or a device, which are never waited for
UNREADABLE = "unreadable"
_FRAGMENT = re.compile(r".*#(page|fps|frames)=[^#/]*", re.DOTALL)


# identities
def file_of(path) -> str:
    """The path of the file itself, without a page of it or how it is sampled: `report.pdf` of `report.pdf#page=3`."""
    path = os.fspath(path)
    file, mark, _ = path.rpartition("#")
    return file if mark and _FRAGMENT.fullmatch(path) and not os.path.exists(path) else path


def file_identity(path) -> str:
    """What tells a file apart from every other: a digest of its bytes; of a folder, of the names and bytes in it.

    Args:
        path (`str` or `Path`): a file, or a folder of frames.

    Returns:
        `str`: 32 hexadecimal digits; `MISSING`, `SPECIAL` or `UNREADABLE` where there is nothing to read.

    Example:

    ```python
    file_identity("photos/1.png") == file_identity("copies/1.png")
    ```
    """
    # a page, or a video that is sampled in a way of its own
    fragment = os.fspath(path)[len(file_of(path)) :]
    if fragment:
        identity = file_identity(file_of(path))
        is_there = identity not in (MISSING, SPECIAL, UNREADABLE)
        return digest_of(f"{identity}{fragment}".encode()) if is_there else identity

    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return _folder_identity(path)
        if not stat.S_ISREG(status.st_mode):
            return SPECIAL

        # a digest of the same file is remembered, in this process and in others
        return DIGESTS.get(_stamp(status), lambda: _digest_of_file(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a path with a NUL is one of no file
        return MISSING
    except OSError:
        return UNREADABLE  # whoever opens it will say why


def picture_identity(path, image: Image.Image | None = None) -> str:
    """What tells a picture apart: a digest of its pixels as a model sees them, whatever the file's name and format.

    Args:
        path (`str` or `Path`): an image; a video, or a folder of frames, is told apart by its bytes.
        image (`PIL.Image.Image`, *optional*): what `open_image` made of the file, where it was decoded already.

    Returns:
        `str`: of an image that cannot be decoded, its [`file_identity`].
    """
    if DATA_URI.match(os.fspath(path)):
        return _digest_of_pixels(path, digest_of(os.fspath(path).encode()), image)

    identity = file_identity(path)
    if identity in (MISSING, SPECIAL, UNREADABLE) or os.path.isdir(path):
        return f"{identity}:{path}"  # of files that cannot be looked at, each is its own

    # under the digest of the bytes: a file that was moved or copied is not decoded again
    return DIGESTS.get(f"pixels:{identity}", lambda: _digest_of_pixels(path, identity, image))


def picture_identities(paths: Iterable[str]) -> dict[str, str]:
    """As [`picture_identity`], of many files, several at a time."""
    paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(WORKERS) as workers:
        identities = dict(zip(paths, workers.map(picture_identity, paths)))
    DIGESTS.flush()  # for the other processes of a launch
    return identities


def look_of(path) -> np.ndarray | None:
    """A perceptual hash: where colours rise from left to right, in 8 x 8 places of a picture shrunk to 9 x 8.

    Copies in another size or format differ in few of the 192 bits, other pictures in many. Pictures of one colour have
    no such hash.

    Args:
        path (`str` or `Path`): an image.

    Returns:
        bool `[192]`; None where there is no picture.
    """
    identity = file_identity(path)
    if identity in (MISSING, SPECIAL, UNREADABLE) or os.path.isdir(path):
        return None
    digits = DIGESTS.get(f"look:{identity}", lambda: _difference_hash(path))
    if not digits:
        return None
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8)).astype(bool)


def _stamp(status: os.stat_result) -> str | None:
    """What a file's digest is remembered under; None while the file may still be written."""
    changed = max(status.st_mtime_ns, status.st_ctime_ns)

    # a second write within one tick of the clock leaves the time as it is
    if time.time_ns() - changed < FRESH:
        return None

    marks = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return "file:" + ":".join(map(str, marks))


def _digest_of_file(path) -> str:
    """A digest of all bytes of a file."""
    digest = _blake()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _blake():
    return hashlib.blake2b(digest_size=16)


def digest_of(content: bytes) -> str:
    """The identity that a file of this content has."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _folder_identity(path) -> str:
    """A digest of the names of a folder's files and of what they hold."""
    digest = _blake()
    for name in sorted(os.listdir(path)):
        # with its length, or `a` and `bc` would be the same as `ab` and `c`
        encoded = os.fsencode(name)
        digest.update(f"{len(encoded)}:".encode() + encoded)
        digest.update(_entry_identity(os.path.join(path, name)).encode())
    return digest.hexdigest()


def _entry_identity(path) -> str:
    """The identity of a file in a folder of frames; folders in it do not count."""
    return "folder" if os.path.isdir(path) else file_identity(path)


def _digest_of_pixels(path, otherwise: str, image: Image.Image | None) -> str:
    """A digest of a picture's size and pixels."""
    try:
        image = image or open_image(path)
    except ValueError:
        return otherwise
    return digest_of(f"{image.width}x{image.height}:".encode() + image.tobytes())


def _difference_hash(path) -> str:
    """The bits of [`look_of`] in hexadecimal digits; empty where there is no picture."""
    try:
        image = open_image(path)
    except ValueError:
        return ""

    pixels = np.asarray(image.resize((9, 8), Image.Resampling.BOX), np.int16)  # [8, 9, 3]
    rises = pixels[:, 1:] > pixels[:, :-1] + NOISE  # [8, 8, 3]

    # all flat pictures have this hash, and are not copies of each other
    if not rises.any():
        return ""
    return np.packbits(rises).tobytes().hex()


# what was read before
class Digests:
    """Digests that were computed before, in memory and in a file that all processes share.

    The file only saves time: where it cannot be read or written, files are read instead.

    Args:
        path (`Path`): the file, an SQLite database.
    """

    def __init__(self, path: Path):
        self.path = path
        self.trusted = True  # whether digests of earlier processes count

        self._memory: dict[str, str] = {}
        self._unwritten: dict[str, str] = {}
        self._database: sqlite3.Connection | None = None
        self._is_broken = False
        self._lock = threading.Lock()
        atexit.register(self.flush)
        os.register_at_fork(after_in_child=self._start_anew)

    def _start_anew(self):
        """In the worker of a data loader: neither a lock nor a connection may be shared with the parent."""
        self._lock = threading.Lock()
        self._database = None
        self._unwritten = {}  # the parent writes them

    def get(self, key: str | None, compute: Callable[[], str]) -> str:
        """The digest under a key, computed where nobody remembers it; without a key, computed always."""
        if key is None:
            return compute()

        # what was looked up before is remembered, also from an earlier process
        with self._lock:
            digest = self._memory.get(key)
            if not digest:
                digest = self._look_up(key) if self.trusted else None

        # without the lock, so that threads read files at the same time
        if digest is None:
            digest = compute()
            with self._lock:
                self._unwritten[key] = digest
        self._memory[key] = digest

        # many are written at once
        if len(self._unwritten) >= FLUSHED:
            self.flush()
        return digest

    def flush(self):
        """Writes new digests to the file, for other processes."""
        with self._lock:
            rows = list(self._unwritten.items())
            self._unwritten = {}
            if rows:
                self._ask("INSERT OR REPLACE INTO digests VALUES (?, ?)", rows)

    def _look_up(self, key: str) -> str | None:
        for row in self._ask("SELECT digest FROM digests WHERE key = ?", [(key,)]):
            return row[0]
        return None

    def _ask(self, statement: str, rows: list[tuple]) -> list[tuple]:
        """What the database answers; nothing where it does not work."""
        if self._is_broken:
            return []

        try:
            if self._database is None:
                self._database = self._open()

            # an INSERT of many rows is one transaction, or each would wait for the disk
            with self._database as transaction:
                if len(rows) == 1:
                    return transaction.execute(statement, rows[0]).fetchall()
                transaction.executemany(statement, rows)
        except (sqlite3.Error, OSError):
            self._is_broken = True  # a full disk, for example: files are read instead from now on
        return []

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)

        # any thread may use it, one at a time: whoever asks has the lock
        database = sqlite3.connect(self.path, timeout=10, check_same_thread=False)
        database.execute("CREATE TABLE IF NOT EXISTS digests (key TEXT PRIMARY KEY, digest TEXT)")
        return database


DIGESTS = Digests(CACHE / "files.sqlite3")


def verify_files():
    """Makes this process read every file it asks for once, whatever earlier processes remember of it (`--verify`)."""
    DIGESTS.trusted = False
