"""Training survives its data: no small last step, and what cannot be read is left out alike on every rank."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from conftest import ROOT, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import TrainerCallback

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.commands.data import main as data_command
from unime.data.collators import EmbeddingCollator
from unime.data.samplers import HomogeneousSampler, StepBatches
from unime.data.schema import Example, Item, to_dataset, to_example
from unime.data.sieve import Sieve
from unime.trainers.alignment import AlignmentConfig, AlignmentTrainer
from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.reranker import RerankerCollator, RerankerConfig, RerankerTrainer

TRAINERS = {
    "contrastive": (ContrastiveTrainer, ContrastiveConfig, UniMEModel),
    "alignment": (AlignmentTrainer, AlignmentConfig, UniMEModel),
    "reranker": (RerankerTrainer, RerankerConfig, UniMERerankerForCausalLM),
}


# whole steps
@given(st.integers(0, 60), st.integers(1, 7), st.integers(1, 4), st.booleans())
@settings(max_examples=200, deadline=None)
def test_steps_are_whole_and_shared_out_evenly(count, batch_size, ranks, drop_last):
    order = [(7 * row) % 61 for row in range(count)]
    if drop_last and count < batch_size * ranks:
        with pytest.raises(ValueError, match="dataloader_drop_last leaves none"):
            StepBatches(order, batch_size, ranks, drop_last)
        return
    batches = StepBatches(order, batch_size, ranks, drop_last)
    shards = [list(BatchSamplerShard(batches, ranks, rank)) for rank in range(ranks)]
    steps = max(1, count // (batch_size * ranks))
    assert [len(shard) for shard in shards] == [steps] * ranks and len(batches) == steps * ranks

    read = []
    for step in range(steps):
        sizes = [len(shard[step]) for shard in shards]
        is_last = step == steps - 1
        assert max(sizes) - min(sizes) <= 1
        assert sizes == [batch_size] * ranks or (is_last and not drop_last and sum(sizes) < 2 * batch_size * ranks)
        for shard in shards:
            read += shard[step]
    assert read == (order[: steps * batch_size * ranks] if drop_last else order)


def test_the_order_within_whole_steps_is_that_of_the_sampler():
    sampler = HomogeneousSampler(["a"] * 10 + ["b"] * 9, block_size=4)
    batches = StepBatches(sampler, batch_size=2, ranks=2)
    batches.set_epoch(3)
    assert sampler.epoch == 3
    assert [row for batch in batches for row in batch] == list(sampler)


def examples(folder, count=18, bad=()):
    """Rows of image and text; the image of those in `bad` is broken."""
    rows = []
    for number in range(count):
        path = folder / f"{number}.png"
        picture(number, (32, 32)).save(path)
        if number in bad:
            path.write_text("no image")
        negatives = [Item(f"answer {(number + n) % count} of {number}") for n in (1, 2)]
        query = Item(f"question {number}", str(path))
        rows.append(Example(query, Item(f"answer {number}"), negatives, 0.9, [0.4, 0.2], "ab"[number % 2]))
    return rows


def trainer_of(stage, backbone, rows, out, callbacks=(), **changes):
    trainer_class, config, model_class = TRAINERS[stage]
    options = {
        "output_dir": str(out),
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "bf16": False,
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "seed": 5,
        **changes,
    }
    model = model_class.from_backbone(backbone)
    return trainer_class(model, config(**options), train_dataset=to_dataset(rows), callbacks=list(callbacks))


def recorded(trainer):
    """Makes the trainer note the queries of every batch that it reads, in a list that is returned."""
    batches = []
    collate = trainer.data_collator

    def noting(rows):
        batches.append([row["query"]["text"] for row in rows])
        return collate(rows)

    trainer.data_collator = noting
    return batches


@pytest.mark.parametrize("stage", TRAINERS)
@pytest.mark.parametrize("homogeneous", [True, False], ids=["homogeneous", "mixed"])
def test_the_last_rows_of_an_epoch_join_the_step_before_them(backbone, tmp_path, stage, homogeneous):
    rows = examples(tmp_path)
    for drop_last, sizes in ((False, [8, 10]), (True, [8, 8])):
        options = {"homogeneous_batches": homogeneous, "dataloader_drop_last": drop_last, "num_train_epochs": 2}
        trainer = trainer_of(stage, backbone, rows, tmp_path / "out", eval_strategy="no", **options)
        batches = recorded(trainer)
        trainer.train()
        assert list(map(len, batches)) == sizes * 2 and trainer.state.global_step == 4
        assert batches[:2] != batches[2:], "each epoch has an order of its own"
        if not drop_last:
            assert len(set(batches[0] + batches[1])) == 18
        assert homogeneous == (len({int(text.split()[1]) % 2 for text in batches[0]}) == 1)


def test_two_rows_over_no_longer_weigh_a_whole_step(backbone, tmp_path):
    """34 rows in blocks of 32: the loss over two rows alone was 0.67 where the others had 3.5."""
    rows = [replace(example, negatives=[], negative_scores=[]) for example in examples(tmp_path, 34)]
    options = {"per_device_train_batch_size": 32, "temperature": 10.0, "false_negative_margin": None}
    options["learning_rate"] = 1e-6  # both steps see the same model
    trainer = trainer_of("contrastive", backbone, rows, tmp_path / "out", num_hard_negatives=0, max_steps=2, **options)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # at so high a temperature every loss is the logarithm of the number of candidates
    assert losses == pytest.approx([3.526, 3.526], abs=0.02)


def test_an_evaluation_has_no_small_last_batch(backbone, tmp_path):
    rows = examples(tmp_path)
    trainer = trainer_of("contrastive", backbone, rows, tmp_path / "out", per_device_eval_batch_size=8)
    batches = recorded(trainer)
    trainer.evaluate(to_dataset(rows))
    assert list(map(len, batches)) == [8, 10]


# bad items
def test_the_sieve_leaves_out_what_cannot_be_read():
    tried = []

    def read(role, item):
        tried.append((role, item.text))
        if item.text.startswith("bad"):
            raise ValueError(f"{item.text} in {role}")

    good = Example(Item("q"), Item("p"), [Item("n0"), Item("bad n"), Item("n1")], 0.9, [0.3, 0.2, 0.1], "d")
    rows = [good, replace(good, query=Item("bad q")), replace(good, positive=Item("bad p"))]
    sieve = Sieve(read)
    assert sieve.rest(rows) == rows
    sieve.search(rows)
    sieve.search(rows)
    assert len(tried) == len(set(tried)) == 7
    assert sieve.rest(rows) == [replace(good, negatives=[Item("n0"), Item("n1")], negative_scores=[0.3, 0.1])]
    assert [entry.reason for entry in sieve.bad_items(rows)] == [
        "bad n in document",
        "bad q in query",
        "bad p in document",
    ]


def broken_rows(folder):
    """Rows with a truncated image, one of 227:1, one that is too long, and a broken negative; and the good ones."""
    rows = examples(folder, 9, bad=(2,))
    content = (folder / "3.png").read_bytes()
    (folder / "3.png").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (2270, 10)).save(folder / "4.png")
    Image.new("RGB", (1200, 1200)).save(folder / "5.png")
    rows[5] = replace(rows[5], query=replace(rows[5].query, text="question 5 " + "word " * 30))
    broken = Item(image=str(folder / "2.png"))
    rows[6] = replace(rows[6], negatives=[broken, *rows[6].negatives], negative_scores=[0.8, 0.4, 0.2])
    good = [row for number, row in enumerate(rows) if number not in (2, 3, 4, 5)]
    good[2] = replace(rows[6], negatives=rows[6].negatives[1:], negative_scores=[0.4, 0.2])
    return rows, good


REASONS = {"cannot be read": 3, "aspect ratio": 1, "above the limit of": 1}
LIMIT = 210  # tokens: a list about a small image fits, a question about a large one with a long text does not


@pytest.mark.parametrize("kind", ["embedder", "reranker"])
def test_a_batch_is_that_of_its_good_rows(backbone, tmp_path, kind):
    rows, good = broken_rows(tmp_path)
    if kind == "embedder":
        processor = UniMEModel.from_backbone(backbone).processor
        make = lambda: EmbeddingCollator(processor, max_length=60)  # noqa: E731
    else:
        processor = UniMERerankerForCausalLM.from_backbone(backbone).processor
        args = RerankerConfig(output_dir=str(tmp_path), max_length=LIMIT)
        make = lambda: RerankerCollator(processor, args)  # noqa: E731
    collator = make()
    for _ in range(2):  # the second time, the bad items are known
        output = collator(list(to_dataset(rows)))
        batch, bad_items = output["batch"], output.get("bad_items")
        if kind == "embedder":
            bad_items = batch.bad_items
        reasons = " | ".join(entry.reason for entry in bad_items)
        assert len(bad_items) == 5 and {reason: reasons.count(reason) for reason in REASONS} == REASONS
        expected = make()(list(to_dataset(good)))["batch"]
        if kind == "embedder":
            assert batch.hashes.tolist() == expected.hashes.tolist()
            assert batch.negatives.tolist() == expected.negatives.tolist()
            chunks, expected_chunks = batch.chunks, expected.chunks
        else:
            chunks = [chunk["inputs"] for chunk in batch]
            expected_chunks = [chunk["inputs"] for chunk in expected]
        assert len(chunks) == len(expected_chunks)
        for chunk, other in zip(chunks, expected_chunks):
            assert chunk.keys() == other.keys() and all((chunk[name] == other[name]).all() for name in chunk)
    assert [len(collator.bad_items(row)) for row in to_dataset(rows)] == [0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_rows_of_items_that_are_a_sum_are_trained_in_one_prompt(backbone, tmp_path):
    processor = UniMEModel.from_backbone(backbone).processor
    rows = list(to_dataset(examples(tmp_path, 2)))
    chunks = {}
    for fusion in ("joint", "sum"):
        processor.fusion = fusion
        chunks[fusion] = EmbeddingCollator(processor)(rows)["batch"].chunks
    for chunk, other in zip(chunks["sum"], chunks["joint"], strict=True):
        assert torch.equal(chunk["input_ids"], other["input_ids"])


@pytest.mark.parametrize("stage", TRAINERS)
def test_training_leaves_bad_items_out_and_lists_them(backbone, tmp_path, stage):
    rows = examples(tmp_path, bad=(3, 11))
    trainer = trainer_of(stage, backbone, rows, tmp_path / "out", num_train_epochs=2)
    with pytest.warns(UserWarning, match="2 items could not be read and were left out, see .*bad_items.json"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert [entry["items_left_out"] for entry in trainer.state.log_history if "loss" in entry][-1] == 2
    listed = json.loads((tmp_path / "out" / "bad_items.json").read_text())
    assert sorted(Path(entry["item"].split("'")[-2]).name for entry in listed) == ["11.png", "3.png"]
    assert all("cannot be read" in entry["reason"] for entry in listed)

    trainer = trainer_of(stage, backbone, rows, tmp_path / "stop", bad_items="stop")
    with pytest.raises(ValueError, match=r"after step \d, .* cannot be read: .*png.*unime data check --model"):
        trainer.train()
    with pytest.raises(ValueError, match="bad_items must be one of leave_out, stop, got 'go'"):
        ContrastiveConfig(output_dir=str(tmp_path), bad_items="go")


def test_a_step_without_any_good_row(backbone, tmp_path):
    few = examples(tmp_path, 3, bad=range(3))
    trainer = trainer_of("contrastive", backbone, few, tmp_path / "out", max_steps=2, learn_temperatures=True)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    with pytest.warns(UserWarning, match="3 items could not be read"):
        trainer.train()
    assert all((before[name] == weight).all() for name, weight in trainer.model.state_dict().items())

    many = examples(tmp_path, 18, bad=range(18))
    for stage in ("contrastive", "reranker"):
        trainer = trainer_of(stage, backbone, many, tmp_path / "out", per_device_train_batch_size=18)
        with pytest.raises(ValueError, match="no row of a step can be read; the first of 18 bad items"):
            trainer.train()


@pytest.mark.parametrize("kind", ["embedder", "reranker"])
def test_the_check_finds_before_what_training_would_meet(backbone, tmp_path, kind, capsys):
    rows, _ = broken_rows(tmp_path)
    lines = []
    for row in rows:
        items = {"query": row.query, "positive": row.positive}
        entry = {name: {"text": item.text, "image": Path(item.image).name} for name, item in items.items()}
        entry["negatives"] = [{"text": item.text, "image": Path(item.image).name} for item in row.negatives]
        lines.append(json.dumps({**entry, "positive_score": 0.9, "negative_scores": row.negative_scores}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))

    options = ["--model", str(backbone), "--preset", "joint", "--no-images", "--report", str(tmp_path / "report.json")]
    limit = 60
    if kind == "reranker":
        limit = LIMIT
        options.append("--as-reranker")
    with pytest.raises(SystemExit) as ended:
        data_command(["check", str(tmp_path / "rows.jsonl"), *options, "--max-length", str(limit)])
    assert ended.value.code == 1 and "items that the model cannot read: 5" in capsys.readouterr().out

    stage = {"embedder": "alignment", "reranker": "reranker"}[kind]
    trainer = trainer_of(stage, backbone, rows, tmp_path / "out", max_length=limit, max_steps=1)
    trainer.model.processor.use_preset("joint")
    with pytest.warns(UserWarning, match="5 items could not be read"):
        trainer.train()
    report = json.loads((tmp_path / "report.json").read_text())
    listed = {entry["item"]: entry["reason"] for entry in report["bad_items"]}
    assert listed == trainer.left_out.reasons and report["rows"] == 9 and not report["bad_rows"]

    with pytest.raises(SystemExit, match="unime data check: .*nowhere is not a folder here"):
        data_command(["check", str(tmp_path / "rows.jsonl"), "--model", str(tmp_path / "nowhere")])


# two ranks
class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def run_two_ranks(backbone, folder):
    """What each of two ranks does; its findings go to a file."""
    from transformers.trainer_utils import get_last_checkpoint

    two = {
        "per_device_train_batch_size": 4,
        "ddp_backend": "gloo",
        "use_cpu": True,
        "num_train_epochs": 2,
        "optim": "sgd",
    }
    rank = int(os.environ["RANK"])
    found = {}
    for stage in TRAINERS:
        # rank 0 reads broken rows in one step, and in another it has nothing else
        rows = [to_example(row) for row in to_dataset(examples(folder / "images", 18, bad=BAD))]
        trainer = trainer_of(stage, backbone, rows, folder / stage, homogeneous_batches=False, **two)
        batches = recorded(trainer)
        trainer.train()
        found[stage] = {
            "batches": batches,
            "steps": trainer.state.global_step,
            "bad": dict(trainer.left_out.reasons),
            "sum": {name: float(weight.double().abs().sum()) for name, weight in trainer.model.named_parameters()},
        }
        if rank == 0:
            torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), folder / f"{stage}.pt")

        # an interrupted run goes on in the middle of the second epoch, with the same order
        broken = folder / f"{stage}-broken"
        trainer_of(stage, backbone, rows, broken, [StopAt(3)], homogeneous_batches=True, **two).train()
        again = trainer_of(stage, backbone, rows, broken, homogeneous_batches=True, **two)
        resumed = recorded(again)
        again.train(resume_from_checkpoint=get_last_checkpoint(str(broken)))
        whole = trainer_of(stage, backbone, rows, folder / f"{stage}-whole", homogeneous_batches=True, **two)
        unbroken = recorded(whole)
        whole.train()
        weights = zip(again.model.parameters(), whole.model.parameters())
        found[stage]["resumed"] = [resumed[-1], unbroken[-1]]
        found[stage]["equal"] = all(bool((a == b).all()) for a, b in weights)
        found[stage]["noted"] = [sorted(again.left_out.reasons), sorted(whole.left_out.reasons)]

        stopping = trainer_of(stage, backbone, rows, folder / "stop", bad_items="stop", **two)
        try:
            stopping.train()
        except ValueError as error:
            found[stage]["stopped"] = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps(found))


BAD = (0, 2, 3, 12, 17)  # among them all four rows of rank 0 in the first step
WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
torch.set_num_threads(1)
import test_survival
test_survival.run_two_ranks(Path(sys.argv[2]), Path(sys.argv[3]))
torch.distributed.barrier()  # no rank ends while a thread of its group is still busy
torch.distributed.destroy_process_group()
"""


def test_two_ranks_stay_in_step_over_bad_items(backbone, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(tmp_path / "worker.py")]
    command += [str(ROOT / "tests"), str(backbone), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]

    for stage in TRAINERS:
        zero, one = (rank[stage] for rank in ranks)
        assert zero["steps"] == one["steps"] == 4
        assert [list(map(len, rank["batches"])) for rank in (zero, one)] == [[4, 5, 4, 5]] * 2
        assert zero["bad"] == one["bad"] and len(zero["bad"]) == len(BAD) and zero["sum"] == one["sum"]
        assert zero["stopped"] == one["stopped"] and "(bad_items: stop; " in zero["stopped"]
        for rank in (zero, one):
            assert rank["resumed"][0] == rank["resumed"][1] and rank["equal"]
            assert rank["noted"][0] == rank["noted"][1]

        # one process over the good rows of the same steps ends with the same weights
        rows = {row.query.text: row for row in examples(tmp_path / "images", 18, bad=BAD)}
        bad = {f"question {number}" for number in BAD}
        assert set(zero["batches"][0]) <= bad, "one rank has a step without any row"
        steps = [[*a, *b] for a, b in zip(zero["batches"], one["batches"])]
        alone = trainer_of(stage, backbone, list(rows.values()), tmp_path / "alone", max_steps=4, optim="sgd")
        good_steps = iter([[rows[text] for text in step if text not in bad] for step in steps])
        collate = alone.data_collator
        alone.data_collator = lambda _, collate=collate, good=good_steps: collate(list(to_dataset(next(good))))
        alone.train()
        expected = torch.load(tmp_path / f"{stage}.pt", weights_only=True)
        start = alone.model.from_backbone(backbone).state_dict()
        moved = max(float((expected[name] - weight).abs().max()) for name, weight in start.items())
        for name, weight in alone.model.state_dict().items():
            assert float((weight - expected[name]).abs().max()) <= 1e-4 * moved, (stage, name)
