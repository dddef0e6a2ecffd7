"""The reranker's stage: its sequences, its loss against one written out, and what it learns."""

import copy
import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, picture
from peft import LoraConfig

from unime import UniMERerankerForCausalLM
from unime.data.schema import Example, Item, to_dataset
from unime.trainers.muon import MuonWithAdamW
from unime.trainers.reranker import RerankerCollator, RerankerConfig, RerankerTrainer, _hardest_first


def rows(folder, count=6, negatives=4):
    picture(0).save(folder / "0.png")
    examples = []
    for i in range(count):
        query = Item(f"Find number {i}", str(folder / "0.png") if i % 2 else "")
        others = [Item(f"the number {(i + n + 1) % 9}") for n in range(negatives)]
        scores = [0.1, 0.5, 0.3, 0.2][:negatives]
        examples.append(Example(query, Item(f"the number {i}"), others, 0.9, scores, "A"))
    return to_dataset(examples)


def config(folder, **changes):
    return RerankerConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 6,
            "max_steps": 2,
            "batch_tokens": 10**6,
            "bf16": False,
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            **changes,
        }
    )


def decoded(reranker, batch):
    found = []
    for chunk in batch:
        for row, ids in enumerate(chunk["inputs"]["input_ids"]):
            answer = chunk["answers"][row]
            answer = answer[answer != -100]
            assert ids[len(ids) - len(answer) :].tolist() == answer.tolist(), "the answer ends the sequence"
            found.append((chunk["kinds"][row], reranker.processor.tokenizer.decode(ids), answer))
    return found


def test_sequences_hold_text_and_images_and_the_right_answers(reranker, tmp_path):
    data = rows(tmp_path)
    collator = RerankerCollator(reranker.processor, config(tmp_path, vary_length=False, list_negatives=3))
    sequences = decoded(reranker, collator(data)["batch"])
    tokenizer = reranker.processor.tokenizer
    assert Counter(kind for kind, _, _ in sequences) == {"yes": 6, "no": 6, "list": 6}
    for kind, text, answer in sequences:
        number = int(text.split("Find number ")[1][0])
        assert ("<|image_pad|>" in text) == (number % 2 == 1)
        assert tokenizer.decode(answer).endswith("<|im_end|>")
        if kind == "yes":
            assert f"Candidate:the number {number}<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>" in text
        elif kind == "no":  # the second negative has the highest score
            assert f"Candidate:the number {(number + 2) % 9}<|im_end|>\n<|im_start|>assistant\nNo<|im_end|>" in text
        else:
            place = int(text.split("Ans: (")[1][0])
            assert f"({place}) the number {number}" in text and "(4)" in text and "(5)" not in text


@pytest.mark.parametrize("objective, kinds", [("pairwise", {"yes": 6, "no": 6}), ("listwise", {"list": 6})])
def test_an_objective_alone_has_its_own_sequences_only(reranker, tmp_path, objective, kinds):
    data = rows(tmp_path)
    collator = RerankerCollator(reranker.processor, config(tmp_path, objective=objective))
    assert Counter(kind for kind, _, _ in decoded(reranker, collator(data)["batch"])) == kinds


def test_what_would_do_nothing_is_not_an_option(tmp_path):
    for name, value in (("graph_tokens", 10), ("matryoshka_dims", [16]), ("benchmark", "mmeb")):
        with pytest.raises(TypeError, match=name):
            config(tmp_path, **{name: value})
    with pytest.raises(ValueError, match="objective"):
        config(tmp_path, objective="triplets")


def test_muon_trains_a_reranker(reranker, tmp_path):
    trainer = RerankerTrainer(copy.deepcopy(reranker), config(tmp_path, muon=True), train_dataset=rows(tmp_path))
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, MuonWithAdamW)


def test_places_and_lengths_of_lists_are_uniform_and_depend_on_row_and_seed(reranker, tmp_path):
    collator = RerankerCollator(reranker.processor, config(tmp_path, list_negatives=3))
    places, lengths = Counter(), Counter()
    for i in range(300):
        others = [Item(f"other {n}") for n in range(3)]
        *_, (_, entry, answer) = collator._sequences(Example(Item(f"q{i}"), Item("right"), others, dataset="A"))
        length = entry.prompt.count("other ")
        lengths[length] += 1
        place = int(reranker.processor.tokenizer.decode(answer).split("(")[1][0])
        if length == 3:
            places[place] += 1
    assert all(70 < lengths[n] < 130 for n in (1, 2, 3)) and all(12 < places[n] < 40 for n in (1, 2, 3, 4))
    one = collator._sequences(Example(Item("q"), Item("right"), others, dataset="A"))[-1]
    random.seed(1)
    again = collator._sequences(Example(Item("q"), Item("right"), others, dataset="A"))[-1]
    assert one[1].prompt == again[1].prompt and one[2] == again[2]


def test_long_lists_lose_candidates_never_the_query_or_the_positive(reranker, tmp_path):
    long = [Item("x" * 60 + str(n)) for n in range(5)]
    example = Example(Item("the query"), Item("the positive"), long, 0.9, [0.5, 0.4, 0.3, 0.2, 0.1], "A")
    full = RerankerCollator(reranker.processor, config(tmp_path, vary_length=False))._sequences(example)[-1][1]
    limit = full.length - 30
    cut = RerankerCollator(reranker.processor, config(tmp_path, vary_length=False, max_length=limit))
    _, entry, answer = cut._sequences(example)[-1]
    assert entry.length + len(answer) <= limit
    assert all(word in entry.prompt for word in ("the query", "the positive", "x" * 60 + "0"))
    assert 0 < entry.prompt.count("x" * 60) < 5
    pair = Example(Item("q" * 20), Item("p" * 60), [Item("n" * 60)], dataset="A")
    lengths = [entry.length for _, entry, _ in cut._sequences(pair)]
    tight = RerankerCollator(reranker.processor, config(tmp_path, max_length=max(lengths[:2]) + 1))
    with pytest.raises(ValueError, match=f"q.*: a list of two candidates takes {lengths[2]} tokens, above the limit"):
        tight._sequences(pair)


def test_rows_without_negatives_give_a_yes_only(reranker, tmp_path):
    collator = RerankerCollator(reranker.processor, config(tmp_path))
    copies = Example(Item("q"), Item("right"), [Item("right")], dataset="A")
    assert [kind for kind, _, _ in collator._sequences(copies)] == ["yes"], "a copy of the positive is no negative"

    # nor is a copy of its picture under another name
    for name in ("right.png", "copy.png", "again.bmp"):
        picture(0).save(tmp_path / name)
    right, copy, again = [Item(image=str(tmp_path / name)) for name in ("right.png", "copy.png", "again.bmp")]
    negatives = [copy, Item("other"), again, Item("other")]
    assert _hardest_first(Example(Item("q"), right, negatives, dataset="A")) == [Item("other")]


def test_the_loss_is_the_sum_of_three_means(reranker, tmp_path):
    data, args = rows(tmp_path, 4), config(tmp_path, per_device_train_batch_size=4, batch_tokens=200)
    trainer = RerankerTrainer(reranker, args, train_dataset=data)
    batch = RerankerCollator(reranker.processor, args)(data)["batch"]
    assert len(batch) > 1
    expected = dict.fromkeys(("yes", "no", "list"), 0.0)
    for row in data:
        collator = RerankerCollator(reranker.processor, config(tmp_path))
        for chunk in collator([row])["batch"]:
            with torch.no_grad():
                logits = reranker(**chunk["inputs"]).logits.double()
            for i, kind in enumerate(chunk["kinds"]):
                answer = chunk["answers"][i]
                answer = answer[answer != -100]
                scores = F.log_softmax(logits[i, -len(answer) - 1 : -1], dim=-1)
                expected[kind] -= float(scores[torch.arange(len(answer)), answer].mean()) / 4
    reranker.eval()
    with torch.no_grad():
        found = sum(trainer._chunk_loss(reranker, chunk, "eval") for chunk in batch)
    assert float(found) == pytest.approx(sum(expected.values()), rel=1e-5)


def gradients(backbone, data, folder, **changes):
    reranker, found = UniMERerankerForCausalLM.from_backbone(backbone), {}
    args = config(folder, max_steps=1, optim="sgd", learning_rate=0.0, max_grad_norm=0, warmup_steps=0, **changes)
    trainer = RerankerTrainer(reranker, args, train_dataset=data)
    step = trainer.create_optimizer().step

    def remember(*arguments, **options):
        found.update({name: p.grad.clone() for name, p in reranker.named_parameters() if p.grad is not None})
        return step(*arguments, **options)

    trainer.optimizer.step = remember
    trainer.train()
    return found


def test_chunks_and_accumulation_do_not_change_the_gradient(backbone, tmp_path):
    """Rows with all three kinds, so that the means over two halves average to the mean over the whole."""
    data = rows(tmp_path, 4)
    whole = gradients(backbone, data, tmp_path, per_device_train_batch_size=4)
    scale = max(float(value.abs().max()) for value in whole.values())
    for changes in (
        {"per_device_train_batch_size": 4, "batch_tokens": 150},
        {"per_device_train_batch_size": 4, "activation_checkpointing": True},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ):
        other = gradients(backbone, data, tmp_path, **changes)
        assert whole.keys() == other.keys()
        assert max(float((whole[name] - other[name]).abs().max()) for name in whole) <= 1e-5 * scale


WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
import test_reranker_training as t
backbone, folder = Path(sys.argv[2]), Path(sys.argv[3])
data = t.rows(folder, 4)
found = t.gradients(
    backbone, data, folder / "out", per_device_train_batch_size=2, batch_tokens=150, ddp_backend="gloo", use_cpu=True
)
assert torch.distributed.get_world_size() == 2
if torch.distributed.get_rank() == 0:
    torch.save(found, folder / "found.pt")
torch.distributed.barrier()  # no rank ends while a thread of its group is still busy
torch.distributed.destroy_process_group()
"""


def test_two_processes_equal_one(backbone, tmp_path):
    """Two gloo ranks with half the rows each, in several chunks, images in some of them."""
    whole = gradients(backbone, rows(tmp_path, 4), tmp_path, per_device_train_batch_size=4)
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(tmp_path / "worker.py")]
    command += [str(ROOT / "tests"), str(backbone), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    scale = max(float(value.abs().max()) for value in whole.values())
    assert whole.keys() == found.keys()
    assert max(float((whole[name] - found[name]).abs().max()) for name in whole) <= 1e-5 * scale


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_training_teaches_to_choose(backbone, tmp_path, lora):
    data = rows(tmp_path, 8)
    reranker = UniMERerankerForCausalLM.from_backbone(backbone)
    peft = LoraConfig(r=8, target_modules="all-linear", exclude_modules=r".*visual.*") if lora else None
    args = config(tmp_path, max_steps=40, learning_rate=1e-2 if lora else 3e-3, per_device_train_batch_size=8)
    trainer = RerankerTrainer(reranker, args, train_dataset=data, peft_config=peft)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["loss"] < 0.6 * logs[0]["loss"]
    assert {f"{what}_{kind}" for what in ("loss", "accuracy") for kind in ("yes", "no", "list")} <= logs[0].keys()


def test_the_command_trains_and_saves_a_reranker(backbone, tmp_path):
    from unime.trainers.reranker import main

    examples = [
        {
            "query_text": f"q{i}",
            "query_image": "",
            "pos_text": f"p{i}",
            "pos_image": "",
            "query_pos_scores": 0.9,
            "hard_negatives": [["n1", ""], ["n2", ""]],
            "hard_negatives_scores": [0.2, 0.3],
        }
        for i in range(4)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(examples))
    options = {
        "model_name_or_path": backbone,
        "data": tmp_path / "rows.json",
        "output_dir": tmp_path / "out",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "bf16": False,
        "save_strategy": "no",
        "warmup_steps": 0,
        "use_cpu": True,
    }
    main([word for key, value in options.items() for word in (f"--{key}", str(value))])
    trained = UniMERerankerForCausalLM.from_pretrained(tmp_path / "out")
    plain = UniMERerankerForCausalLM.from_backbone(backbone)
    assert not torch.equal(trained.score("q1", ["p1", "n1"]), plain.score("q1", ["p1", "n1"]))
