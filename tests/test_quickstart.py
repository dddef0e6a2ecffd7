"""The quickstart at a fraction of its size: killed twice, it goes on, and leaves the files that it promises."""

import json
import os
import signal
import subprocess
import sys

from PIL import Image

TINY = {
    "world": {"train_rows": 16, "test_rows": 6, "pretrain_rows": 48},
    "backbone": {
        "max_steps": 4,
        "warmup_steps": 1,
        "save_steps": 2,
        "per_device_train_batch_size": 8,
        "bf16": False,
    },
    "training": {
        "max_steps": 4,
        "warmup_steps": 1,
        "save_steps": 2,
        "per_device_train_batch_size": 8,
        "bf16": False,
    },
}
RUN = """
import json, os, signal, sys
from pathlib import Path
from transformers import Trainer, TrainerCallback
from unime.examples import quickstart
kill_at = sys.argv[3].split()
class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if [Path(args.output_dir).name, str(state.global_step)] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
start = Trainer.train
def train(self, *args, **kwargs):
    self.add_callback(Kill())
    print("resumed from", kwargs.get("resume_from_checkpoint"), flush=True)
    return start(self, *args, **kwargs)
Trainer.train = train
quickstart.run(Path(sys.argv[1]), json.loads(sys.argv[2]))
"""


def run(out, kill_at=""):
    command = [sys.executable, "-c", RUN, str(out), json.dumps(TINY), kill_at]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "HF_MODULES_CACHE": str(out / "modules")},
    )


def test_quickstart_survives_two_kills_and_keeps_its_promises(tmp_path):
    for kill_at in ("backbone 3", "training 3"):
        assert run(tmp_path, kill_at).returncode == -signal.SIGKILL
    last = run(tmp_path)
    assert last.returncode == 0, last.stdout[-3000:] + last.stderr[-5000:]
    assert "checkpoint-2" in last.stdout, "training went on from its checkpoint"
    home = tmp_path / "quickstart"
    results = json.loads((home / "results.json").read_text())
    assert results.keys() == {"base", "tuned", "seconds"} and results["seconds"] > 0
    assert results["base"].keys() == results["tuned"].keys() >= {"Shapes_t2i", "Digits_label", "swap_obj"}
    assert "text to image: the right answer is number" in last.stdout and "image to text" in last.stdout
    assert "Shapes_t2i" in last.stdout and "precision@1" in last.stdout
    for name in ("similarity.png", "search.png"):
        assert len(Image.open(home / name).convert("RGB").getcolors(1 << 24)) > 20
    before = (home / "model" / "model.safetensors").stat().st_mtime_ns
    assert run(tmp_path).returncode == 0, "a finished run is not repeated"
    assert (home / "model" / "model.safetensors").stat().st_mtime_ns == before
