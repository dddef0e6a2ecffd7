"""Files of every room: written whole, named safely, told apart by what they hold."""

import errno
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unime.commands.index import read_index
from unime.files import identity
from unime.files.identity import FRESH, Digests, file_identity, look_of, picture_identity
from unime.files.names import file_name, model_name, text_of_file_name
from unime.files.writing import read_arrays, read_json, write_arrays, write_json, write_text, write_whole


# writing
def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"é": "\udcff"})
    assert read_json(path) == {"é": "\udcff"}, "names of files may hold what UTF-8 has no bytes for"

    def full(draft):
        draft.write_text("half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: .*a\.json.$"):
        write_whole(path, full)
    assert read_json(path) == {"é": "\udcff"} and os.listdir(tmp_path) == ["a.json"]


def test_files_lie_on_the_disk_before_they_are_moved_and_their_folder_after(tmp_path, monkeypatch):
    steps = []
    sync, move = os.fsync, os.replace

    def note_sync(descriptor):
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def note_move(source, target):
        steps.append("moved")
        move(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_move)
    write_text(tmp_path / "a.txt", "all of it")
    draft, moved, folder = steps
    assert draft.endswith(".part") and moved == "moved" and folder == str(tmp_path)


def test_arrays_come_back_with_their_notes_and_equal_files_have_equal_bytes(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.zeros((0, 4), np.float32)}
    notes = {str(number): "x" for number in range(9)}
    for name in ("one", "two"):
        write_arrays(tmp_path / name, arrays, notes)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back, read_notes = read_arrays(tmp_path / "one", ["a"])
    assert back.keys() == {"a"} and (back["a"] == arrays["a"]).all() and read_notes == notes


@pytest.mark.parametrize(
    "content, reason", [(b"", "it is empty"), (bytes(500), "it holds zeros"), (b"{", ""), (b"\xff\xfe\x00", "")]
)
def test_damaged_files_are_named(content, reason, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(content)
    for read in (read_json, read_arrays):
        with pytest.raises(ValueError, match=f"x cannot be read: {reason}"):
            read(path)


# names
@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_every_name_is_a_file_of_its_own_in_its_folder(first, second):
    for text in (first, second):
        name = file_name(text)
        assert os.path.dirname(os.path.normpath(os.path.join("folder", name))) == "folder" and "\0" not in name
        assert text_of_file_name(name) == text
    assert (file_name(first) == file_name(second)) == (first == second)


def test_usual_names_stay_and_others_are_escaped(tmp_path, monkeypatch):
    assert file_name("VisualNews_i2t") == "VisualNews_i2t" and file_name("図 (1)") == "図 (1)"
    assert file_name("../../x") == "%2E.%2F..%2Fx" and file_name("..") == "%2E%2E" and file_name("50%") == "50%25"
    assert text_of_file_name("100%_hard") == "100%_hard", "a name that is not ours"
    with pytest.raises(ValueError, match="too long for a file"):
        file_name("x" * 201)
    monkeypatch.chdir(tmp_path)
    assert model_name(".") == model_name(tmp_path) == tmp_path.name and model_name("owner/model") == "model"


# identity
def aged(path, seconds=10):
    """The file as if it had been written a while ago."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))
    return path


@pytest.fixture
def digests(tmp_path, monkeypatch):
    """A memory of digests of its own, in which no file is too fresh to be remembered."""
    monkeypatch.setattr(identity, "FRESH", 0)
    monkeypatch.setattr(identity, "DIGESTS", Digests(tmp_path / "cache" / "files.sqlite3"))
    return identity.DIGESTS


def test_a_file_is_what_it_holds(tmp_path, digests):
    path, copy = tmp_path / "a.bmp", tmp_path / "b.bmp"
    picture(1).save(path)
    copy.write_bytes(path.read_bytes())
    before = file_identity(path)
    assert before == file_identity(copy)

    # another picture of as many bytes, with the time of the old one, in the same inode and in a new one
    status = path.stat()
    for write in (
        lambda: picture(2).save(path),
        lambda: (picture(3).save(tmp_path / "new.bmp"), os.replace(tmp_path / "new.bmp", path)),
    ):
        write()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns
        assert file_identity(path) != before
        before = file_identity(path)
    os.rename(path, tmp_path / "moved.bmp")
    assert file_identity(tmp_path / "moved.bmp") == before


def test_files_are_read_once_and_by_verify_again(tmp_path, digests, monkeypatch):
    path = tmp_path / "a.png"
    picture(1).save(path)
    name = file_identity(path)
    monkeypatch.setattr(identity, "_digest_of_file", lambda path: "read again")
    assert file_identity(path) == name
    digests.flush()
    later = Digests(digests.path)
    monkeypatch.setattr(identity, "DIGESTS", later)
    assert file_identity(path) == name, "another process knows it"
    monkeypatch.setattr(identity, "DIGESTS", Digests(digests.path))
    identity.verify_files()
    assert file_identity(path) == "read again"


def test_a_file_that_was_just_written_is_not_remembered(tmp_path, digests, monkeypatch):
    monkeypatch.setattr(identity, "FRESH", 10**9 * 3600)
    assert FRESH == 2 * 10**9
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = file_identity(path)
    path.write_text("two")
    assert file_identity(path) != before and not digests._memory


def test_a_memory_that_cannot_be_used_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "broken").write_bytes(b"no database" * 500)
    (tmp_path / "x").write_text("x")
    for place in (tmp_path / "file" / "files.sqlite3", tmp_path / "broken"):
        monkeypatch.setattr(identity, "DIGESTS", Digests(place))
        monkeypatch.setattr(identity, "FRESH", 0)
        assert file_identity(tmp_path / "x") == identity.digest_of(b"x")
        identity.DIGESTS.flush()


def test_a_worker_of_a_data_loader_opens_the_memory_anew(tmp_path, digests):
    (tmp_path / "x").write_bytes(b"x")
    name = file_identity(tmp_path / "x")
    digests.flush()
    connection = digests._database
    with digests._lock, multiprocessing.get_context("fork").Pool(1) as workers:  # a thread may hold it just then
        assert workers.apply(_read_in_worker, (tmp_path / "x",)) == (name, True)
    assert digests._database is connection and file_identity(tmp_path / "x") == name


def _read_in_worker(path):
    is_fresh = identity.DIGESTS._database is None
    identity.DIGESTS._memory.clear()
    return file_identity(path), is_fresh


def test_nothing_is_waited_for_and_nothing_is_raised(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert file_identity(tmp_path / "pipe") == "not a file" and file_identity("a\0b") == "missing"
    assert file_identity(tmp_path / "none") == "missing" == file_identity(tmp_path / "pipe" / "x")
    (tmp_path / "frames").mkdir()
    os.symlink("nowhere", tmp_path / "frames" / "1.png")
    before = file_identity(tmp_path / "frames")
    picture(1).save(tmp_path / "frames" / "2.bmp")
    middle = file_identity(tmp_path / "frames")
    picture(2).save(tmp_path / "frames" / "2.bmp")
    assert len({before, middle, file_identity(tmp_path / "frames")}) == 3


def test_a_picture_is_its_pixels(tmp_path):
    image = picture(1)
    names = ("a.png", "b.bmp", "c.tiff")
    for name in names:
        image.save(tmp_path / name)
    turn = Image.Exif()
    turn[0x0112] = 6  # upright after a quarter turn
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=turn)
    picture(2).save(tmp_path / "other.png")
    same = {picture_identity(tmp_path / name) for name in (*names, "turned.png")}
    assert len(same) == 1 and picture_identity(tmp_path / "other.png") not in same
    (tmp_path / "x.png").write_bytes(b"no picture")
    assert picture_identity(tmp_path / "x.png") == file_identity(tmp_path / "x.png")
    assert picture_identity("none/a.png") != picture_identity("none/b.png"), "what is not there is not the same"


def test_near_copies_look_alike(tmp_path):
    smooth = picture(5, (8, 6)).resize((320, 240), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.png")
    smooth.resize((160, 120)).save(tmp_path / "small.jpg", quality=80)
    picture(6, (8, 6)).resize((320, 240), Image.Resampling.BICUBIC).save(tmp_path / "b.png")
    Image.new("RGB", (30, 30), "red").save(tmp_path / "red.png")
    first, small, other = (look_of(tmp_path / name) for name in ("a.png", "small.jpg", "b.png"))
    assert (first != small).sum() <= 12 < 40 < (first != other).sum()
    assert look_of(tmp_path / "red.png") is None and look_of(tmp_path / "none.png") is None


# a full disk
_FULL = """
import resource, sys
from unime.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # what writes of a larger file meet, as on a full disk
main(sys.argv[1:])
"""


def test_a_full_disk_is_one_line_in_commands_that_save_models(backbone, tmp_path):
    for arguments in (["convert", str(backbone), str(tmp_path / "out")],):
        done = subprocess.run([sys.executable, "-c", _FULL, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("unime convert: ")
        assert "File too large" in done.stderr


def test_every_librarys_word_for_a_full_disk_is_one_line():
    import torch
    from safetensors.torch import save_file

    from unime.jobs.faults import one_line_disk_faults

    tensor = torch.zeros(300_000)
    writers = {
        "torch": lambda: torch.save(tensor, "/dev/full"),
        "plain": lambda: Path("/dev/full").write_bytes(bytes(10_000)),
        "safetensors": lambda: save_file({"a": tensor}, "/proc/none/a"),
    }
    for name, write in writers.items():
        with pytest.raises(SystemExit, match="unime try: ") as ended, one_line_disk_faults("unime try"):
            write()
        assert "\n" not in ended.value.code, name
    with pytest.raises(RuntimeError, match="size of tensor"), one_line_disk_faults("unime try"):
        tensor + torch.zeros(2)


@pytest.mark.parametrize("read", [read_json, read_arrays, read_index])
def test_a_pipe_in_the_place_of_a_file_is_refused(read, tmp_path):
    """Nobody may ever write into it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe.* is not a file"):
        read(tmp_path / "pipe")
