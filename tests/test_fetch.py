"""`unime data fetch`: where benchmarks come from, and getting them from a Hub and a server in this process."""

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fake_hub import FakeHub

from unime.cli import main
from unime.eval import fetch
from unime.eval.fetch import SOURCES, describe, download, unpack


def test_every_benchmark_says_where_it_comes_from_and_how_large_it_is(capsys):
    main(["data", "fetch"])
    text = capsys.readouterr().out
    assert all(f"{name}: {source.size}" in text and source.license in text for name, source in SOURCES.items())
    assert "https://huggingface.co/datasets/TIGER-Lab/MMEB-eval" in describe("mmeb")
    assert "val2017.zip" in describe("sugarcrepe") or "... and 4 more" in describe("sugarcrepe")
    with pytest.raises(SystemExit, match="there is no benchmark 'imagenet'"):
        main(["data", "fetch", "imagenet"])


def zipped(files: dict) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_data_set_of_the_hub_is_downloaded_and_unpacked(tmp_path):
    with FakeHub() as hub:
        hub.repos["datasets/BeichenZhang/Urban1k"] = {
            "Urban1k.zip": zipped({"Urban1k/image/1.jpg": "x", "Urban1k/caption/1.txt": "a street"}),
            "unwanted.bin": b"0",
        }
        env = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [sys.executable, "-m", "unime.cli", "data", "fetch", "urban1k", "--out", str(tmp_path / "data")]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    home = tmp_path / "data" / "urban1k"
    assert (home / "Urban1k" / "caption" / "1.txt").read_text() == "a street" and str(home) in done.stdout
    assert not (home / "unwanted.bin").exists() and "CC BY-NC 4.0" in done.stdout


def test_a_hub_out_of_reach_is_an_error_that_says_where_the_data_is(tmp_path):
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "unime.cli", "data", "fetch", "flickr30k", "--out", str(tmp_path / "data")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "unime data fetch: https://huggingface.co/datasets/royokong/flickr30k_test is not available" in done.stderr


@pytest.fixture
def server():
    """Serves `content` in ranges, and breaks off after `limit` bytes."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            """Keeps the test output clean."""

        def do_GET(self):
            content, start = self.server.content, 0
            if span := self.headers.get("Range"):
                start = int(span.removeprefix("bytes=").rstrip("-"))
            self.server.ranges.append(start)
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : start + self.server.limit])

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.content, serving.limit, serving.ranges = os.urandom(5000), 10**9, []
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving
    serving.shutdown()
    serving.server_close()


def test_downloads_go_on_where_they_broke_off(server, tmp_path):
    url, server.limit = f"http://127.0.0.1:{server.server_port}/file.bin", 2000
    with pytest.raises(ValueError, match="file.bin (broke off|is not available)"):
        download(url, tmp_path)
    assert not (tmp_path / "file.bin").exists()
    server.limit = 10**9
    have = (tmp_path / "file.bin.part").stat().st_size
    assert download(url, tmp_path).read_bytes() == server.content and server.ranges == [0, have]
    download(url, tmp_path)
    assert len(server.ranges) == 2, "what is there is not fetched again"


def test_archives_are_unpacked_once_and_cannot_leave_their_folder(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (("inside.txt", b"1"), ("../outside.txt", b"2")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    (tmp_path / "home").mkdir()
    path = path.rename(tmp_path / "home" / "a.tar.gz")
    with pytest.raises(ValueError, match="a.tar.gz cannot be unpacked: .*outside"):
        unpack(path)
    assert not (tmp_path / "outside.txt").exists()
    archive = tmp_path / "home" / "b.zip"
    archive.write_bytes(zipped({"rows.json": json.dumps([1])}))
    unpack(archive)
    (tmp_path / "home" / "rows.json").write_text("mine")
    unpack(archive)
    assert (tmp_path / "home" / "rows.json").read_text() == "mine"
    (tmp_path / "home" / "c.zip").write_bytes(b"PK half of it")
    with pytest.raises(ValueError, match="c.zip cannot be unpacked: .* fetch it again"):
        unpack(tmp_path / "home" / "c.zip")


def zip_of(*members: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in members:
            archive.writestr(member, content)
    return buffer.getvalue()


def link_in_zip() -> bytes:
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zip_of((zipfile.ZipInfo("a.txt"), b"1"), (link, b"/etc/passwd"))


def encrypted_zip() -> bytes:
    """A zip whose member is marked as encrypted, in its header and in the list at the end."""
    content = bytearray(zipped({"secret.txt": "x" * 20}))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    return bytes(content)


def changed_zip() -> bytes:
    content = zipped({"a.txt": "1", "b.txt": "the right text"})
    return content.replace(b"the right text", b"the wrong text")


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.bin", bytes(2_000_000))
    return buffer.getvalue()


def tar_of(member: tarfile.TarInfo, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def link_in_tar(kind: bytes, target: str) -> bytes:
    link = tarfile.TarInfo("link.jpg")
    link.type = kind
    link.linkname = target
    return tar_of(link)


def changed_tar() -> bytes:
    """A tar.gz of which the sum at its end is not that of its content."""
    content = bytearray(tar_of(tarfile.TarInfo("a.txt"), b"1"))
    content[-8] ^= 1
    return bytes(content)


BAD_ARCHIVES = {
    "a sum of a zip": (".zip", changed_zip, "Bad CRC-32 for file 'b.txt'"),
    "an encrypted member": (".zip", encrypted_zip, "secret.txt is encrypted"),
    "a link in a zip": (".zip", link_in_zip, "link.jpg is a link"),
    "a bomb": (".zip", bomb, "unpacks to more than"),
    "a sum of a tar": (".tar.gz", changed_tar, "CRC check failed"),
    "a link out of a tar": (".tar.gz", lambda: link_in_tar(tarfile.SYMTYPE, "../../secret"), "outside"),
    "a link to a root": (".tar.gz", lambda: link_in_tar(tarfile.SYMTYPE, "/etc/passwd"), "absolute path"),
    "a hard link out": (".tar.gz", lambda: link_in_tar(tarfile.LNKTYPE, "../secret"), "outside"),
    "a device": (".tar.gz", lambda: link_in_tar(tarfile.CHRTYPE, ""), "special file"),
    "half of a tar": (".tar.gz", lambda: changed_tar()[:60], "cannot be unpacked"),
}


@pytest.mark.parametrize("name", BAD_ARCHIVES)
def test_a_bad_archive_is_named_and_leaves_nothing(name, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "SMALL", 10_000)
    ending, made, reason = BAD_ARCHIVES[name]
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / f"bad{ending}"
    path.write_bytes(made())
    with pytest.raises(ValueError, match=f"bad{ending} cannot be unpacked: .*remove it and fetch it again") as caught:
        unpack(path)
    assert reason in str(caught.value)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "neither a part nor a mark"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["home", "secret"]


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "a/../../outside.txt", "..\\outside.txt"])
def test_a_path_of_a_zip_stays_below_its_folder(name, tmp_path):
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "a.zip"
    path.write_bytes(zipped({name: "x"}))
    unpack(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["home"]
    written = [entry for entry in path.parent.rglob("*") if entry.is_file() and entry.read_bytes() == b"x"]
    assert len(written) == 1 and "outside.txt" in written[0].name


def test_a_part_that_is_longer_than_the_file_is_not_taken_for_it(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"0" * 6000)
    with pytest.raises(ValueError, match=r"file.bin.part does not belong to .* \(6,000 bytes of 5000\); remove it"):
        download(f"http://127.0.0.1:{server.server_port}/file.bin", tmp_path)
    (tmp_path / "file.bin.part").write_bytes(server.content)
    path = download(f"http://127.0.0.1:{server.server_port}/file.bin", tmp_path)
    assert path.read_bytes() == server.content, "all of it was there"
