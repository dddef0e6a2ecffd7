"""Jobs at addresses of fsspec: the bytes of a folder, on a memory file system and on a real S3 server."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from test_pipeline import contents, settings

from unime import cli
from unime.commands.index import read_index
from unime.files import addresses
from unime.files.addresses import fetched, is_address, local_copy, to_path
from unime.files.writing import read_json, write_json, write_whole
from unime.jobs.shards import read_errors, read_job, run_job
from unime.mining.settings import MiningConfig

pytest.importorskip("upath", reason="universal-pathlib is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of copies."""
    monkeypatch.setattr(addresses, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A server of S3 on this machine, with one bucket; the environment says where it is."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer(
        "127.0.0.1", 0, verbose=False
    )
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("DEFAULT_REGION", "us-east-1")):
            patch.setenv(f"AWS_{name}", value)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def address(request):
    """A folder at an address."""
    if request.param == "memory":
        return f"memory://{request.node.name}"
    return f"{request.getfixturevalue('s3')}/{request.node.name}"


def remote_contents(address: str) -> dict[str, bytes]:
    """Every file below an address."""
    root = to_path(address)
    return {name[len(root.path.rstrip("/")) + 1 :]: root.fs.cat_file(name) for name in root.fs.find(root.path)}


def work(rows):
    if "7" in rows:
        raise ValueError("seven is bad")
    return {"value": np.array([int(row) for row in rows])}


ROWS = [str(number) for number in range(9)]


def test_a_job_at_an_address_has_the_bytes_of_a_folder_and_goes_on(address, tmp_path):
    done = []

    def noting(rows):
        done.extend(rows)
        if "4" in rows and len(done) < 9:
            raise KeyboardInterrupt
        return work(rows)

    job = (f"{address}/job", ROWS, noting, {"k": 1})
    with pytest.raises(KeyboardInterrupt):
        run_job(*job, shard_size=4)
    run_job(*job, shard_size=4)
    assert done.count("1") == 1, "the shard that was finished is not made again"
    run_job(tmp_path / "job", ROWS, work, {"k": 1}, shard_size=4)
    assert remote_contents(f"{address}/job") == contents(tmp_path / "job")
    assert read_job(f"{address}/job")["value"].tolist() == [0, 1, 2, 3, 4, 5, 6, 8]
    assert read_errors(f"{address}/job")[0]["reason"] == "seven is bad"
    with pytest.raises(ValueError, match="settings.k: 1 there, 2 now"):
        run_job(f"{address}/job", ROWS, work, {"k": 2}, shard_size=4)

    # damage is found there, too
    path = to_path(f"{address}/job") / "rows-000000004.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:60])
    with pytest.raises(ValueError, match="rows-000000004.*Run the job again"):
        read_job(f"{address}/job")
    run_job(f"{address}/job", ROWS, work, {"k": 1}, shard_size=4)
    assert path.read_bytes() == whole


def test_a_writer_that_fails_leaves_what_was_there(address):
    path = f"{address}/a.json"
    write_json(path, {"a": 1})

    def fail(draft):
        draft.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_whole(path, fail)
    assert read_json(path) == {"a": 1}
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}, "a copy of an earlier content does not count"
    with pytest.raises(ValueError, match="none.json cannot be read"):
        read_json(f"{address}/none.json")


def test_folders_are_fetched_once_and_again_where_they_changed(address):
    root = to_path(address)
    for name, text in (("a.txt", "one"), ("below/b.txt", "two")):
        write_whole(root / name, lambda draft, text=text: draft.write_text(text))
    folder = fetched(address)
    files = [folder / "a.txt", folder / "below" / "b.txt"]
    assert [file.read_text() for file in files] == ["one", "two"]

    before = [file.stat().st_ino for file in files]
    write_whole(root / "a.txt", lambda draft: draft.write_text("other"))
    assert fetched(address) == folder and files[0].read_text() == "other"
    assert [file.stat().st_ino == inode for file, inode in zip(files, before)] == [False, True]
    with pytest.raises(ValueError, match="does not exist"):
        fetched(f"{address}/none")


def test_addresses_and_paths_are_told_apart(tmp_path):
    (tmp_path / "a").write_text("x")
    assert to_path(f"file://{tmp_path}/a") == tmp_path / "a" == local_copy(f"file://{tmp_path}/a")
    assert is_address("s3://b/c") and not is_address("/a/b") and not is_address(Path("a"))
    assert fetched("hf://datasets/owner/name") == "hf://datasets/owner/name"
    with pytest.raises(ValueError, match="nowhere://x cannot be opened: .*nowhere"):
        to_path("nowhere://x")
    with pytest.raises(ValueError, match="needs a folder of this machine; `out` is s3://b/c"):
        MiningConfig(index="ivfpq", out="s3://b/c")


def test_the_commands_work_on_a_bucket(s3, world, backbone, tmp_path, monkeypatch):
    """Data and results of `unime mine`, `encode` and `eval` in a bucket: the bytes of those on the disk."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world, tmp_path / "world")
    bucket = to_path(f"{s3}/commands")
    bucket.fs.put(str(tmp_path / "world"), bucket.path + "/world", recursive=True)
    picture(1).save("a.png")

    for root in ("here", str(bucket)):
        data = "." if root == "here" else root
        recipe = settings(Path("unused"), backbone, f"{root}/mined", rows_per_subset=4, layout="parquet")
        recipe |= {"data": f"{data}/world/train", "image_root": f"{data}/world"}
        Path("mine.json").write_text(json.dumps(recipe))
        eval_out = ["--out", f"{root}/eval"]
        for line in (
            ["mine", "run", "--config", "mine.json"],
            ["mine", "saha", "--config", "mine.json"],
            ["encode", "a.png", "--model", str(backbone), "--out", f"{root}/index.parquet"],
            ["eval", "world", "--model", str(backbone), "--data", f"{data}/world", "--tasks", "Shapes_vqa", *eval_out],
        ):
            cli.main(line)

    here = contents(tmp_path / "here")
    there = {name: content for name, content in remote_contents(str(bucket)).items() if not name.startswith("world")}
    assert here.keys() == there.keys() and "mined/judged/rows-000000000.parquet" in here
    differing = {name for name in here if here[name] != there[name]}
    assert all(name.endswith("results.json") for name in differing), "which name the folder of the data"
    assert len(read_index(f"{bucket}/index.parquet").names) == 1
