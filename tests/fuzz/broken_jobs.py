"""Long jobs that are killed, run out of disk or find their files damaged, and what they leave when run again.

A case is `{"job", "troubles"}`. Each trouble befalls one run of the job, or its folder between two runs; the last run
is left alone. What is in the folder then equals, byte for byte, what an undisturbed run leaves; or a run that met a
full disk or a damaged file ended with an error that names a file of it.

A run is a forked child. "At event n" counts what it does with files of the job's folder: to open, rename, remove them.
"At byte n" is the place in a file where the disk is full, or the process killed in the middle of a write.
"""

import errno
import io
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from conftest import picture, save_backbone
from hypothesis import strategies as st
from outcomes import ERRORS, Ground, Outcome, Wrong, observe
from tiny_checkpoints import write

from unime import UniMEModel
from unime.checkpoints.conversion import export
from unime.commands import encode
from unime.data.schema import Item
from unime.eval.runner import run_benchmark
from unime.eval.tasks import Task
from unime.jobs.embedding import Embedder
from unime.jobs.shards import read_job, run_job
from unime.mining.pipeline import Mining, MiningConfig
from unime.trainers.distillation import encode_teacher

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.listdir", "os.scandir")
DAMAGES = ("missing", "empty", "cut", "zeroed", "replaced")
ERROR = 3  # exit status of a child whose job ended with an error
WORDS = ["red", "blue", "green", "white", "circle", "star", "square", "ring", "left", "right", "above", "below"]


# jobs: each writes below `out` only
def run_plain(ground: Ground, out: Path):
    """A job whose work is a plain function, with a row that fails."""

    def work(rows):
        if "green" in rows:
            raise ValueError("green is not to be had")
        return {"lengths": np.array([len(row) for row in rows])}

    run_job(out / "job", WORDS, work, {"unit": "characters"}, shard_size=3)
    read_job(out / "job")


def run_encode(ground: Ground, out: Path):
    """`unime encode` over texts and pictures, one of which is broken."""
    sources = [str(ground.folder / "texts.jsonl"), str(ground.folder / "pictures")]
    encode.encode(sources, Embedder(ground.model), out / "index.npz", shard_size=2)


def run_mining(ground: Ground, out: Path):
    """`unime mine run` and `saha`."""
    mining = Mining(
        MiningConfig(
            data=str(ground.folder / "pairs.csv"),
            out=str(out / "mined"),
            embedder=str(ground.model),
            judge=str(ground.folder / "backbone"),
            top_k=3,
            num_negatives=2,
            delta="none",
            fallback="judge_lowest",
            embed_shard=4,
            retrieve_shard=3,
            judge_shard=2,
        )
    )
    mining.run()
    mining.saha()


def run_teacher(ground: Ground, out: Path):
    """The teacher's embeddings of the distillation stage."""
    encode_teacher(str(ground.folder / "teacher"), WORDS, out / "teacher")


def run_evaluation(ground: Ground, out: Path):
    """`unime eval` of a task."""
    queries = [Item(f"a {word}") for word in WORDS[:4]]
    corpus = [Item(word) for word in WORDS[:6]] + [Item(image=str(ground.folder / "pictures" / "1.png"))]
    task = Task("words", "Retrieval", queries, corpus, None, [[0], [1], [2], [3]])
    run_benchmark("words", [task], Embedder(ground.model), out / "eval", ground.folder, shard_size=3)


JOBS = {"plain": run_plain, "encode": run_encode, "mining": run_mining, "evaluation": run_evaluation}
JOBS["teacher"] = run_teacher


# cases
def cases(_=None):
    events = st.integers(0, 40) | st.integers(0, 250)
    troubles = st.one_of(
        st.fixed_dictionaries({"kind": st.just("kill"), "event": events}),
        st.fixed_dictionaries({"kind": st.just("kill"), "event": events}),
        st.fixed_dictionaries({"kind": st.just("kill"), "byte": st.integers(0, 3000)}),
        st.fixed_dictionaries({"kind": st.just("full"), "event": events}),
        st.fixed_dictionaries({"kind": st.just("full"), "byte": st.integers(0, 3000)}),
        st.fixed_dictionaries({"kind": st.just("read-only"), "event": events}),
        st.fixed_dictionaries({"kind": st.sampled_from(DAMAGES), "file": st.integers(0, 30)}),
    )
    jobs = st.sampled_from(["plain", "plain", *JOBS])
    return st.fixed_dictionaries({"job": jobs, "troubles": st.lists(troubles, min_size=1, max_size=3)})


# trying a case
def prepare(folder: Path) -> Ground:
    """A model, small data, and what undisturbed runs leave."""
    (folder / "pictures").mkdir(parents=True)
    for number in range(3):
        picture(number).save(folder / "pictures" / f"{number}.png")
    (folder / "pictures" / "broken.png").write_bytes(b"no picture")
    (folder / "texts.jsonl").write_text("".join(f'"a {word}"\n' for word in WORDS[:5]), encoding="utf-8")
    pairs = [f"a {word} thing,one {other}" for word, other in pairwise(WORDS[:9])]
    (folder / "pairs.csv").write_text("\n".join(["sent0,sent1", *pairs]), encoding="utf-8")

    save_backbone(folder / "backbone")
    model = folder / "model"
    UniMEModel.from_backbone(folder / "backbone").save_pretrained(model)
    write(folder / "teacher-vlm", "llava_next")
    UniMEModel.from_backbone(folder / "teacher-vlm", "summary").save_pretrained(folder / "teacher-unime")
    export(folder / "teacher-unime", folder / "teacher", head=folder / "teacher-vlm")
    ground = Ground(folder=folder, model=model, whole={}, kills=0)
    for name, job in JOBS.items():
        out = folder / "out"
        out.mkdir()
        run(partial(job, ground, out), out, {})
        ground.whole[name] = contents(out)
        shutil.rmtree(out)
    return ground


def outcome_of(case: dict, ground: Ground) -> Outcome:
    """Runs the job of a case through its troubles, and once more; every run has the same folder."""
    out = ground.folder / "out"
    out.mkdir()
    try:
        return observe(lambda: _try(case, ground, out), [str(out)])
    finally:
        shutil.rmtree(out)


def _try(case: dict, ground: Ground, out: Path):
    job = partial(JOBS[case["job"]], ground, out)
    for trouble in case["troubles"]:
        if trouble["kind"] in DAMAGES:
            _damage(out, trouble)
        else:
            # an error that names a file is right, and the job goes on from there
            try:
                ground.kills += run(job, out, trouble)
            except ERRORS as error:
                if str(out) not in str(error):
                    raise

    run(job, out, {})
    whole = ground.whole[case["job"]]
    result = contents(out)
    if case["job"] == "evaluation" and any(trouble["kind"] in DAMAGES for trouble in case["troubles"]):
        # results that are there are not made again: what they were made from is not looked at
        whole = {name: content for name, content in whole.items() if "/items/" not in name}
        result = {name: content for name, content in result.items() if name in whole}
    _compare(result, whole)


def _damage(out: Path, trouble: dict):
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    if not paths:
        return

    path = paths[trouble["file"] % len(paths)]
    content = path.read_bytes()
    if trouble["kind"] == "missing":
        path.unlink()
        return
    half = len(content) // 2
    damaged = {"empty": b"", "cut": content[:half], "zeroed": bytes(len(content)), "replaced": b"<html></html>"}
    path.write_bytes(damaged[trouble["kind"]])


def contents(out: Path) -> dict[str, bytes]:
    """Every finished file; drafts of killed processes, ours and safetensors', may lie about."""
    files = {}
    for path in out.rglob("*"):
        if path.is_file() and not path.name.endswith(".part") and not path.name.startswith(".tmp"):
            files[str(path.relative_to(out))] = path.read_bytes()
    return files


def _compare(result: dict[str, bytes], whole: dict[str, bytes]):
    missing = sorted(whole.keys() - result.keys())
    surplus = sorted(result.keys() - whole.keys())
    different = [name for name in whole if name in result and whole[name] != result[name]]
    if missing or surplus or different:
        raise Wrong(f"not what an undisturbed run leaves: missing {missing}, surplus {surplus}, different {different}")


def run(job: Callable[[], object], out: Path, trouble: dict) -> bool:
    """Runs a job in a child that meets a trouble; whether it was killed. An error of the child is raised here."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        _run_in_child(job, out, trouble, write_end)

    os.close(write_end)
    try:
        with os.fdopen(read_end, encoding="utf-8", errors="replace") as file:
            message = file.read()
        _, status = os.waitpid(child, 0)
    except BaseException:  # the watch over this case has ended it
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise

    if os.WIFSIGNALED(status) and trouble.get("kind") != "kill":
        raise RuntimeError(f"the job died of signal {os.WTERMSIG(status)}")
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == ERROR:
        name, _, text = message.partition(": ")
        for kind in ERRORS:
            if kind.__name__ == name:
                raise kind(text)
        raise RuntimeError(message)
    return os.WIFSIGNALED(status)


def _run_in_child(job: Callable[[], object], out: Path, trouble: dict, write_end: int):
    """Never returns. What the job prints is not kept."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.stdout = sys.stderr = io.StringIO()
    try:
        _set_trouble(out, trouble)
        job()
    except BaseException as error:
        kind = next((kind.__name__ for kind in ERRORS if isinstance(error, kind)), type(error).__name__)
        os.write(write_end, f"{kind}: {error}".encode("utf-8", "replace")[:4000])
        os._exit(ERROR)
    os._exit(0)


def _set_trouble(out: Path, trouble: dict):
    """Lets the trouble happen to this process."""
    if "byte" in trouble:
        # past its limit a file takes no byte more: an error, or, where the signal is not ignored, the end
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if trouble["kind"] == "kill" else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (trouble["byte"], trouble["byte"]))
    elif trouble:
        sys.addaudithook(_Hook(str(out), trouble))


class _Hook:
    """Counts what the process does with files of a folder, and strikes at a certain event."""

    def __init__(self, folder: str, trouble: dict):
        self.folder = folder
        self.kind = trouble["kind"]
        self.remaining = trouble["event"]

    def __call__(self, event: str, arguments: tuple):
        if event not in EVENTS or not self._is_inside(arguments):
            return
        if self.kind != "kill" and not _writes(event, arguments):
            return

        self.remaining -= 1
        if self.remaining >= 0:
            return
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        number = errno.ENOSPC if self.kind == "full" else errno.EROFS
        raise OSError(number, os.strerror(number), str(arguments[0]))

    def _is_inside(self, arguments: tuple) -> bool:
        path = arguments[0]
        return isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.folder)


def _writes(event: str, arguments: tuple) -> bool:
    """Whether an event changes something on the disk."""
    if event != "open":
        return event not in ("os.listdir", "os.scandir")
    return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
