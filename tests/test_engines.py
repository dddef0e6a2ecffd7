"""Jobs on a real Ray cluster of two nodes on this machine: the bytes of `local`, whatever dies meanwhile."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import picture
from engine_work import ROWS, once, this_node, work
from test_pipeline import contents, settings

from unime import cli
from unime.jobs.choices import EngineSettings
from unime.jobs.engines import RayEngine, open_engine
from unime.jobs.shards import read_errors, read_job, run_job

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with room for one worker each, and this process as a driver."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **NODE})
    cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_results_and_errors_are_the_bytes_of_local(cluster, tmp_path):
    run_job(tmp_path / "local", ROWS, work, {"k": 1}, shard_size=5)
    with RayEngine(num_workers=2) as engine:
        run_job(tmp_path / "ray", ROWS, work, {"k": 1}, shard_size=5, engine=engine)
        assert len(engine.actors) == 2
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert read_errors(tmp_path / "ray") == [{"row": 7, "key": "7", "reason": "seven is bad"}]


def test_a_killed_worker_is_replaced_and_its_shard_done_again(cluster, tmp_path):
    loads = tmp_path / "loads"
    loads.mkdir()

    def load():
        (loads / str(os.getpid())).touch()
        return 2

    def deadly(rows, factor):
        if "4" in rows and once(tmp_path, "killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"value": np.array([factor * int(row) for row in rows])}

    with RayEngine(num_workers=1) as engine:
        run_job(tmp_path / "job", ROWS, deadly, {}, shard_size=2, prepare=load, engine=engine)
        assert len(list(loads.iterdir())) == 2, "the first worker and its successor, each once"

        # the model stays for the next job
        run_job(tmp_path / "next", ROWS, deadly, {}, shard_size=2, prepare=load, engine=engine)
        assert len(list(loads.iterdir())) == 2
    assert read_job(tmp_path / "job")["value"].tolist() == [2 * int(row) for row in ROWS]


def test_a_shard_that_fails_three_times_is_reported_and_the_rest_goes_on(cluster, tmp_path, capsys):
    calls = tmp_path / "calls"
    calls.mkdir()

    def broken(rows):
        if "4" in rows:
            (calls / str(len(list(calls.iterdir())))).touch()
            raise RuntimeError("a defect")
        return work(rows)

    with RayEngine(num_workers=2) as engine:
        job = (tmp_path / "job", ROWS[:7], broken, {"k": 1})
        with pytest.raises(ValueError, match="1 of 4 shards failed, the first is rows 4 to 5: RuntimeError: a defect"):
            run_job(*job, shard_size=2, engine=engine)
        assert len(list(calls.iterdir())) == 3 and len(list((tmp_path / "job").glob("rows-*"))) == 3
        assert "rows 4 to 5" in capsys.readouterr().err
        run_job(tmp_path / "job", ROWS[:7], work, {"k": 1}, shard_size=2, engine=engine)
    run_job(tmp_path / "local", ROWS[:7], work, {"k": 1}, shard_size=2)
    assert contents(tmp_path / "job") == contents(tmp_path / "local")


def test_a_model_that_cannot_be_loaded_ends_the_job(cluster, tmp_path):
    def refuse():
        raise OSError("no weights there")

    with RayEngine(num_workers=1) as engine:
        with pytest.raises(OSError, match="no weights there"):
            run_job(tmp_path, ROWS, lambda rows, model: {}, {}, prepare=refuse, engine=engine)
        with pytest.raises(RuntimeError, match="3 workers in a row died"):
            run_job(tmp_path, ROWS, lambda rows, model: {}, {}, prepare=lambda: os._exit(1), engine=engine)
        with pytest.raises(ValueError, match="shares out the shards by itself"):
            run_job(tmp_path, ROWS, work, {}, world_size=2, engine=engine)
    assert not list(tmp_path.glob("rows-*"))


def test_a_node_may_go_and_another_come(cluster, tmp_path):
    second = cluster.list_all_nodes()[-1]
    second_id = second.node_id

    def working(rows):
        # a worker on the node that goes waits for its end
        if this_node() == second_id and once(tmp_path, "there"):
            signal.pause()
        return work(rows)

    class Leaving(RayEngine):
        def _outcome(self, *rest):
            if (tmp_path / "there").exists() and once(tmp_path, "removed"):
                cluster.remove_node(second)
                cluster.add_node(**NODE)
            return super()._outcome(*rest)

    with Leaving() as engine:
        run_job(tmp_path / "job", ROWS * 4, working, {"k": 1}, shard_size=1, engine=engine)
    run_job(tmp_path / "local", ROWS * 4, work, {"k": 1}, shard_size=1)
    assert (tmp_path / "removed").exists()
    assert contents(tmp_path / "job") == contents(tmp_path / "local")


DRIVER = """
import os, signal, sys
from pathlib import Path
from unime.jobs import shards
from unime.jobs.engines import RayEngine
from engine_work import ROWS, work
out, address, kill_at = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
write = shards.Shard.write
def writing(self, *rest):
    if self.first == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, *rest)
shards.Shard.write = writing
with RayEngine(num_workers=1, address=address) as engine:
    shards.run_job(out, ROWS, work, {"k": 1}, shard_size=2, engine=engine)
"""


def test_a_killed_driver_goes_on_where_it_was(cluster, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "job"), cluster.address, "4"]
    killed = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    present = contents(tmp_path / "job")
    assert present.keys() == {"manifest.json", "rows-000000000.safetensors", "rows-000000002.safetensors"}
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "job").glob("rows-*"))]

    with RayEngine(num_workers=1) as engine:
        run_job(tmp_path / "job", ROWS, work, {"k": 1}, shard_size=2, engine=engine)
    run_job(tmp_path / "local", ROWS, work, {"k": 1}, shard_size=2)
    assert contents(tmp_path / "job") == contents(tmp_path / "local")
    again = [path.stat().st_mtime_ns for path in sorted((tmp_path / "job").glob("rows-*"))]
    assert again[:2] == times, "what was written is not made again"


def test_the_commands_give_the_bytes_of_local(cluster, world, backbone, tmp_path, monkeypatch):
    recipe = settings(world, backbone, "mined", rows_per_subset=4)
    lines = (
        ["mine", "run", "--config", "mine.json"],
        ["encode", "a.png", "--model", str(backbone), "--out", "index.npz"],
        ["eval", "world", "--model", str(backbone), "--data", str(world), "--tasks", "Shapes_vqa", "--out", "eval"],
    )
    engine = ["--engine", "ray", "--address", cluster.address, "--num-workers", "1"]
    for name, options in (("local", []), ("ray", engine)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        picture(1).save("a.png")
        Path("mine.json").write_text(json.dumps(recipe))
        for line in lines:
            cli.main([*line, *options])

    local, ray = contents(tmp_path / "local"), contents(tmp_path / "ray")
    assert "mined/judged/rows-000000000.parquet" in local and len(local) > 20
    assert {name for name in local if local[name] != ray.get(name)} <= {"index.npz"}
    first, second = (np.load(tmp_path / name / "index.npz")["embedding"] for name in ("local", "ray"))
    assert (first == second).all(), "an npz file keeps the time at which it was made"


def test_options_of_ray_without_ray_are_refused():
    with pytest.raises(ValueError, match="`num_workers` is a setting of Ray: add --engine ray"):
        open_engine(EngineSettings(num_workers=2))
    with open_engine(EngineSettings()) as engine:
        assert engine is None
