"""Two machines, as far as one has them: two network namespaces joined by a veth pair, under `torchrun --nnodes 2`."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, save_backbone

ADDRESSES = ("10.231.77.1", "10.231.77.2")  # they exist in the namespaces alone
PORT = "29517"
WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
import test_two_machines as t
t.work(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
torch.distributed.barrier()  # no rank ends while a thread of its group is still busy
torch.distributed.destroy_process_group()
"""


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def reason_against() -> str | None:
    """Why no namespace can be made here."""
    if shutil.which("ip") is None:
        return "there is no command `ip`"
    if os.geteuid() != 0:
        return "namespaces are made by root alone"
    name = f"unime-try-{os.getpid()}"
    tried = run("ip", "netns", "add", name)
    if tried.returncode != 0:
        return f"the system makes no namespace: {tried.stderr.strip()}"
    run("ip", "netns", "del", name)
    return None


REASON = reason_against()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module")
def machines():
    """The names of two namespaces; each has one interface, whose name is that of the namespace."""
    names = [f"unime{letter}{os.getpid() % 100_000}" for letter in "ab"]
    with ExitStack() as stack:
        for name in names:
            assert run("ip", "netns", "add", name).returncode == 0
            stack.callback(run, "ip", "netns", "del", name)
        assert run("ip", "link", "add", names[0], "type", "veth", "peer", "name", names[1]).returncode == 0

        for name, address in zip(names, ADDRESSES):
            assert run("ip", "link", "set", name, "netns", name).returncode == 0
            for command in (f"addr add {address}/24 dev {name}", f"link set {name} up", "link set lo up"):
                assert run("ip", "-n", name, *command.split()).returncode == 0
        yield names


def work(folder: Path, out: Path, kind: str):
    """What each process does: trains, evaluates and mines, or is killed in the middle, or goes on."""
    from test_gradient_cache import rows
    from transformers import TrainerCallback

    from unime import UniMEModel
    from unime.mining.pipeline import Mining, MiningConfig
    from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer

    class Killed(TrainerCallback):
        """The second machine goes away, its launcher with it, when the third step begins."""

        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2 and args.process_index == 1:
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

    args = ContrastiveConfig(
        output_dir=str(out / "training"),
        max_steps=3,
        save_steps=2,
        save_strategy="steps" if kind != "whole" else "no",
        per_device_train_batch_size=2,
        batch_tokens=200,
        learning_rate=1e-3,
        warmup_steps=0,
        logging_steps=1,
        use_cpu=True,
        ddp_backend="gloo",
        ddp_timeout=120,
        bf16=False,
        disable_tqdm=True,
    )
    data = rows(folder, 12)
    model = UniMEModel.from_backbone(folder / "backbone")
    trainer = ContrastiveTrainer(model, args, train_dataset=data, eval_dataset=data)
    if kind == "killed":
        trainer.add_callback(Killed())
    trainer.train(resume_from_checkpoint=kind == "resumed")
    assert args.world_size == 2

    figures = {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}
    figures["evaluation"] = trainer.evaluate()["eval_loss"]
    if kind == "whole":
        settings = {
            "data": str(folder / "world" / "train"),
            "image_root": str(folder / "world"),
            "out": str(out / "mined"),
            "subsets": ["Shapes_t2i"],
            "rows_per_subset": 8,
            "embedder": str(folder / "backbone"),
            "embedder_preset": "summary",
            "judge": str(folder / "backbone"),
            "top_k": 4,
            "num_negatives": 2,
            "delta": "none",
            "fallback": "judge_lowest",
            "embed_shard": 4,
            "judge_shard": 3,
        }
        Mining(MiningConfig(**settings)).run()
    if trainer.is_world_process_zero():
        (out / f"{kind}.json").write_text(json.dumps(figures))


def start(folder: Path, out: Path, kind: str, options: list[str], prefix=(), interface: str = "lo"):
    """A launcher, and the file that it prints into."""
    command = [*prefix, sys.executable, "-m", "torch.distributed.run", *options]
    command += [str(folder / "worker.py"), str(ROOT / "tests"), str(folder), str(out), kind]
    # the name of the host leads nowhere between these machines
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": interface, "TP_SOCKET_IFNAME": interface}
    log = out / f"{kind}-{interface}.log"
    with open(log, "w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment), log


def ending(process, log: Path) -> tuple[int, str]:
    """How a launcher ends, and what it has printed."""
    try:
        code = process.wait(timeout=400)
    finally:
        process.kill()
    return code, log.read_text()


def launch_on_two(machines, folder: Path, out: Path, kind: str) -> list[tuple[int, str]]:
    """How the launchers of both machines end, and what they print."""
    out.mkdir(exist_ok=True)
    launchers = []
    for rank, name in enumerate(machines):
        options = ["--nnodes", "2", "--node-rank", str(rank), "--master-addr", ADDRESSES[0], "--master-port", PORT]
        launchers.append(start(folder, out, kind, options, ("ip", "netns", "exec", name), name))
    return [ending(*launcher) for launcher in launchers]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """The folder of a run of two processes on one machine, with what the others read."""
    folder = tmp_path_factory.mktemp("machines")
    save_backbone(folder / "backbone")
    (folder / "worker.py").write_text(WORKER)
    (folder / "world").symlink_to(world)
    out = folder / "alone"
    out.mkdir()
    code, output = ending(*start(folder, out, "whole", ["--nproc-per-node", "2", "--standalone"]))
    assert code == 0, output[-4000:]
    return folder


def figures_of(path: Path) -> dict:
    return json.loads(path.read_text())


def test_two_machines_train_evaluate_and_mine_as_one(machines, alone):
    from unime.jobs.shards import read_job

    endings = launch_on_two(machines, alone, alone / "two", "whole")
    assert all(code == 0 for code, _ in endings), endings
    expected, found = (figures_of(alone / name / "whole.json") for name in ("alone", "two"))
    assert len(expected["losses"]) == 3
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-6)
    assert found["evaluation"] == pytest.approx(expected["evaluation"], abs=1e-6)

    for job in ("neighbours", "scores"):
        expected, found = (read_job(alone / name / "mined" / job) for name in ("alone", "two"))
        assert expected.keys() == found.keys() and len(expected["row"]) > 0
        for key, values in expected.items():
            assert np.allclose(values, found[key], atol=1e-6, equal_nan=True), (job, key)


def test_a_machine_that_goes_away_ends_the_run_which_then_goes_on(machines, alone):
    out = alone / "killed"
    (code, output), (other_code, _) = launch_on_two(machines, alone, out, "killed")
    assert code > 0 and "Error" in output, output[-2000:]
    assert other_code != 0 and not (out / "killed.json").exists()

    endings = launch_on_two(machines, alone, out, "resumed")
    assert all(code == 0 for code, _ in endings), endings
    expected, found = figures_of(alone / "alone" / "whole.json"), figures_of(out / "resumed.json")
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-6)
    assert found["evaluation"] == pytest.approx(expected["evaluation"], abs=1e-6)
