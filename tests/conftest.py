"""Tiny models and a tiny world, made in code and shared by the session. Nothing here touches a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Sums depend in their last bits on how many threads share them, which a busy machine may decide differently each time.
# Here and in every process that a test starts there is one, so that equal bits may be asked for.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import HealthCheck, settings
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration
from transformers.utils import logging

# How long an example takes is a matter of what else the machine does. The examples are the same in every run, so that
# what passed passes; `make fuzz` looks for new ones.
settings.register_profile("unime", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unime")

VERBOSITY = logging.get_verbosity()  # of transformers
ROOT = Path(__file__).resolve().parent.parent
TEXTS = [
    "user assistant system Summary above image and sentence in one word: Query: Candidate: Candidates: Ans: ( Yes No",
    "I will provide you with a query and a candidate. Find me an image of a red circle left of a blue star.",
    "Represent the given image with the following question: What is in the top left? 1 2 3 4 5 6 7 8 9 0",
]


@pytest.fixture(scope="session", autouse=True)
def one_seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_environment():
    """`--quiet` and other options of commands act on the rest of their process, which goes on here."""
    before = dict(os.environ)
    logging.set_verbosity(VERBOSITY)  # a fixture of the module may have run a command too
    yield
    logging.set_verbosity(VERBOSITY)
    os.environ.clear()
    os.environ.update(before)


def save_backbone(path: Path, dropout: float = 0.0, seed: int = 0) -> Path:
    """Writes a stock Qwen2-VL checkpoint with random weights, hidden size 48, in the layout of the Hub."""
    from unime.miniature.backbone import build_config, build_processor, build_tokenizer

    tokenizer = build_tokenizer(TEXTS, vocab_size=400)
    config = build_config(tokenizer, hidden_size=96, layers=2, vision_size=48, vision_layers=2)
    config.text_config.attention_dropout = dropout
    torch.manual_seed(seed)
    Qwen2VLForConditionalGeneration(config).save_pretrained(path)
    build_processor(tokenizer).image_processor.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture
def embedder(backbone):
    from unime import UniMEModel

    return UniMEModel.from_backbone(backbone)


@pytest.fixture
def reranker(backbone):
    from unime import UniMERerankerForCausalLM

    return UniMERerankerForCausalLM.from_backbone(backbone)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """A world of a few rows a task, with fewer than 100 candidates where tasks draw them from the rows."""
    from unime.miniature.world import build

    return build(tmp_path_factory.mktemp("world"), train_rows=16, test_rows=12, pretrain_rows=64, show_progress=False)


def picture(seed: int, size=(64, 48)) -> Image.Image:
    """Random pixels."""
    pixels = torch.randint(
        0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    return Image.fromarray(pixels.numpy())


def fresh_process(code: str, *arguments, timeout: int = 240, **environment) -> dict:
    """Runs code in a new interpreter outside the checkout and returns the JSON that it prints last."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def launch_stage(stage: str, recipe: dict, folder: Path, *options):
    """Runs `accelerate launch -m unime.trainers.<stage>` in one CPU process on a recipe, and returns how it ended."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", f"unime.trainers.{stage}", "--config", str(folder / "recipe.yaml"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder, check=False)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny(kind)`: folder of a tiny checkpoint as the Hub holds it, and the stock model that was written there."""
    from tiny_checkpoints import write

    made = {}

    def make(kind):
        if kind not in made:
            path = tmp_path_factory.mktemp("tiny") / kind
            made[kind] = (path, write(path, kind))
        return made[kind]

    return make


TINY_QUICKSTART = {
    "world": {"train_rows": 16, "test_rows": 30, "pretrain_rows": 48},
    "backbone": {"max_steps": 4, "warmup_steps": 1, "save_steps": 2, "per_device_train_batch_size": 8, "bf16": False},
    "training": {"max_steps": 4, "warmup_steps": 1, "save_steps": 2, "per_device_train_batch_size": 8, "bf16": False},
}
_QUICKSTART = """
import json, os, signal, sys
from pathlib import Path
from unime.jobs.notices import silence_alarms
silence_alarms()
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


def run_quickstart(out: Path, kill_at: str = ""):
    """Runs the quickstart at a fraction of its size; `kill_at` is a training and the step after which it is killed."""
    # in the folder that it is called from, as `make quickstart` has it
    command = [sys.executable, "-c", _QUICKSTART, out.name, json.dumps(TINY_QUICKSTART), kill_at]
    env = {**os.environ, "HF_MODULES_CACHE": str(out.parent / "modules")}
    return subprocess.run(command, cwd=out.parent, capture_output=True, text=True, timeout=500, env=env, check=False)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory) -> Path:
    """What such a quickstart leaves in `outputs`, after it was killed twice.

    What it wrote last to stdout and stderr is in `../said.txt` and `../errors.txt`.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return train_miniature(tmp_path_factory.mktemp("miniature"))

    # the first of several test processes trains it for all
    folder = tmp_path_factory.getbasetemp().parent / "miniature"
    with FileLock(f"{folder}.lock"):
        if not (folder / "errors.txt").exists():
            folder.mkdir(exist_ok=True)
            train_miniature(folder)
    return folder / "outputs"


def train_miniature(folder: Path) -> Path:
    """Runs the tiny quickstart below a folder, killed twice."""
    out = folder / "outputs"
    for kill_at in ("backbone 3", "training 3"):
        assert run_quickstart(out, kill_at).returncode == -signal.SIGKILL
    last = run_quickstart(out)
    assert last.returncode == 0, last.stdout[-3000:] + last.stderr[-5000:]
    (out.parent / "said.txt").write_text(last.stdout)
    (out.parent / "errors.txt").write_text(last.stderr)
    return out
