"""Measured while it trains: retrieval of each data set, losses of each, early stopping, resuming, and symptoms."""

import json
from types import SimpleNamespace

import pytest
from test_trainer import SETTINGS

from unime import UniMEModel
from unime.cli import main
from unime.data.readers import read_mmeb_train, read_rows
from unime.eval.pairs import read_pairs
from unime.eval.runner import evaluate
from unime.trainers import contrastive
from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.row_counts import RowCounts
from unime.trainers.stage_parser import StageParser
from unime.trainers.symptoms import Symptoms, fit_symptoms, symptoms_of_rows

NAMES = ["Shapes_t2i", "Shapes_object"]  # one answer a query, and three labels for all


@pytest.fixture(scope="module")
def pairs(world, tmp_path_factory):
    """A file of rows: the two data sets of the world."""
    rows = read_mmeb_train(world / "train", NAMES, image_root=world)
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = []
    for number, row in enumerate(rows):
        items = {side: {key: row[side][key] for key in ("text", "image")} for side in ("query", "positive")}
        if row["dataset"] == NAMES[1]:
            items["positive"] = f"the label {number % 3}"
        lines.append(json.dumps({**items, "dataset": row["dataset"]}))

    # a query with two right answers
    lines.append(json.dumps({**json.loads(lines[0]), "positive": "another right answer"}))
    path.write_text("\n".join(lines))
    return path


def test_an_evaluation_measures_what_eval_pairs_measures(backbone, world, pairs, tmp_path):
    rows = read_rows(pairs, world)
    settings = {**SETTINGS, "benchmark": None, "per_device_eval_batch_size": 3, "output_dir": str(tmp_path)}
    model = UniMEModel.from_backbone(backbone)
    trainer = ContrastiveTrainer(model, ContrastiveConfig(**settings), train_dataset=rows, eval_dataset=rows)
    measured = trainer.evaluate()

    expected = evaluate(model.eval(), read_pairs(pairs, image_root=world), show_progress=False)
    assert set(expected) == set(NAMES) and expected["Shapes_object"]["candidates"] == 3
    assert expected["Shapes_t2i"]["map"] != expected["Shapes_t2i"]["mrr"]
    for name, result in expected.items():
        for measure in ("precision@1", "recall@5", "recall@10", "mrr", "ndcg@10", "map"):
            assert measured[f"eval_{name}/{measure}"] == pytest.approx(result[measure], abs=1e-6), (name, measure)
    mean = sum(expected[name]["mrr"] for name in NAMES) / 2
    assert measured["eval_mrr"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("homogeneous", [True, False])
def test_the_loss_of_each_data_set_is_logged(homogeneous, backbone, world, pairs, tmp_path):
    rows = read_rows(pairs, world)
    settings = {**SETTINGS, "max_steps": 4, "logging_steps": 1, "save_strategy": "no", "output_dir": str(tmp_path)}
    args = ContrastiveConfig(**settings, homogeneous_batches=homogeneous)
    trainer = ContrastiveTrainer(UniMEModel.from_backbone(backbone), args, train_dataset=rows)
    trainer.train()

    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    present = [[name for name in NAMES if f"loss/{name}" in entry] for entry in entries]
    assert {name for names in present for name in names} == set(NAMES)
    mixed = sum(len(names) == 2 for names in present)
    assert mixed <= 1 if homogeneous else mixed >= 3  # what fills no batch of its own is mixed at the end of an epoch
    for entry, names in zip(entries, present):
        losses = [entry[f"loss/{name}"] for name in names]
        assert min(losses) - 1e-3 <= entry["loss"] <= max(losses) + 1e-3  # the log rounds


def run(backbone, world, pairs, out, *options):
    """The command of the stage, in this process."""
    arguments = ["--model", str(backbone), "--preset", "joint", "--data", str(pairs), "--image_root", str(world)]
    arguments += [
        "--output_dir",
        str(out),
        "--max_steps",
        "6",
        "--per_device_train_batch_size",
        "8",
        "--bf16",
        "false",
    ]
    arguments += ["--report_to", "none", "--disable_tqdm", "true", "--logging_steps", "1"]
    contrastive.main([*arguments, *options])


def state_of(folder) -> dict:
    return json.loads((folder / "trainer_state.json").read_text())


def test_a_training_is_measured_stops_early_and_keeps_its_best(backbone, world, pairs, tmp_path):
    options = ["--eval_data", str(pairs), "--eval_steps", "1", "--early_stopping", "2", "--learning_rate", "1.0"]
    run(backbone, world, pairs, tmp_path / "out", *options, "--metric_for_best_model", "eval/Shapes_t2i/precision@1")
    last = max((tmp_path / "out").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    state = state_of(last)
    values = [entry["eval_Shapes_t2i/precision@1"] for entry in state["log_history"] if "eval_loss" in entry]
    assert state["best_metric"] == max(values)
    assert len(values) < 6 or values.index(max(values)) >= 3, "it went on although nothing got better"
    model = UniMEModel.from_pretrained(tmp_path / "out")
    best = UniMEModel.from_pretrained(state["best_model_checkpoint"])
    assert (model.encode("a red ring") == best.encode("a red ring")).all()

    for options, message in (
        (["--eval_data", str(pairs), "--holdout", "2"], "both name rows to measure on"),
        (["--early_stopping", "2"], "needs rows to measure on"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(backbone, world, pairs, tmp_path / "other", *options)


def test_rows_of_the_training_are_measured_beside_those_that_were_held_out(backbone, world, pairs, tmp_path, capsys):
    # measured on the very rows that it trains on, so that both figures are those of one model and one set
    run(backbone, world, pairs, tmp_path / "out", "--eval_data", str(pairs), "--eval_steps", "6", "--save_steps", "6")
    (state,) = (tmp_path / "out").glob("checkpoint-*")
    (held_out,) = [entry for entry in state_of(state)["log_history"] if "eval_loss" in entry]
    expected = f"{held_out['eval_precision@1']:.3f}"
    line = f"precision@1 is {expected} on a sample of the training rows and {expected} on held-out rows: the model"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    "training, held_out, word", [(0.1, 0.1, "underfitting"), (0.9, 0.3, "overfitting"), (0.9, 0.8, None)]
)
def test_what_two_precisions_say(training, held_out, word):
    lines = fit_symptoms(training, held_out)
    assert lines == [] if word is None else word in lines[0]


def test_an_interrupted_training_says_where_it_stands_and_goes_on(
    backbone, world, pairs, tmp_path, capsys, monkeypatch
):
    run(backbone, world, pairs, tmp_path / "whole")

    # Ctrl-C in the fourth step
    step = ContrastiveTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(ContrastiveTrainer, "training_step", interrupted)
        run(backbone, world, pairs, out)
    printed = capsys.readouterr().err
    assert end.value.code == 130 and f"stopped after step 3 of 6; {out}/checkpoint-3 is saved" in printed

    # with other settings it is another training
    with pytest.raises(SystemExit, match=r"learning_rate was 0.0001 and is 0.5\. Start anew with --fresh"):
        run(backbone, world, pairs, out, "--learning_rate", "0.5")

    run(backbone, world, pairs, out)
    assert f"goes on from {out}/checkpoint-3; --fresh starts anew" in capsys.readouterr().err
    whole, resumed = UniMEModel.from_pretrained(tmp_path / "whole"), UniMEModel.from_pretrained(out)
    assert (whole.encode("a red ring") - resumed.encode("a red ring")).abs().max() < 1e-5
    assert state_of(out / "checkpoint-6")["log_history"][0]["step"] == 1

    # anew: the checkpoints of the other learning rate are gone
    run(backbone, world, pairs, out, "--learning_rate", "0.5", "--fresh", "--max_steps", "2", "--quiet")
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert "unime train" not in capsys.readouterr().err


def test_help_shows_the_stage_first_and_everything_on_request(capsys):
    parser = StageParser(ContrastiveConfig, "unime train contrastive")
    text = parser.format_help()
    assert text.startswith("usage: unime train contrastive --config RECIPE.yaml")
    places = [text.index(f"  {name}") for name in ("--eval_data", "--num_hard_negatives", "--output_dir", "--lora_r")]
    assert places == sorted(places) and "--adam_beta1" not in text and "--output-dir" not in text
    with pytest.raises(SystemExit) as end:
        parser.parse_args_and_config(["--help-all"])
    everything = capsys.readouterr().out
    assert end.value.code == 0 and "--adam_beta1" in everything and len(everything) > 2 * len(text)

    with pytest.raises(SystemExit) as end:
        main(["train", "alignment", "--help"])
    assert end.value.code == 0 and "--judge_temperature" in capsys.readouterr().out


def test_symptoms_of_rows(world, pairs):
    counts = RowCounts.of(read_rows(pairs, world))
    commonest = {row["data set"]: (row["commonest"], row["candidates"]) for row in counts.data_sets}
    assert commonest == {"Shapes_t2i": (1, 17), "Shapes_object": (6, 3)}

    (line,) = symptoms_of_rows(counts, 64, 0.02)
    assert line.startswith("Shapes_object: 3 distinct positives in batches of 64 rows: they are labels")
    (line,) = symptoms_of_rows(counts, 4, 0.02)
    assert "a query meets 3 answers of others" in line and "temperature 0.02" in line
    assert symptoms_of_rows(counts, 4, None) == []

    same = RowCounts([{"data set": "x", "rows": 10, "candidates": 2, "commonest": 9}])
    (line,) = symptoms_of_rows(same, 64, None)
    assert line.startswith("x: 90% of the rows have the same positive")
    nine = RowCounts([{"data set": "x", "rows": 400, "candidates": 9, "commonest": 50}])
    (line,) = symptoms_of_rows(nine, 64, 0.02)
    assert line.startswith("x: 9 distinct positives in batches of 64 rows: they are labels")
    assert symptoms_of_rows(nine, 64, 0.02, homogeneous=False) == []


@pytest.mark.parametrize(
    "losses, expected",
    [
        ([2.0, 0.5, 0.0, 0.0, 0.0, 0.0], ["the loss is 0: "]),
        ([1.0, 2.0, 3.5, 4.0, 5.0], ["the loss went from 1 to 5; lower learning_rate (it is 0.1)"]),
        ([2.0, 2.1, 2.0, 1.9, 2.0, 1.95], ["the loss only went from 2.03 to 1.95: train for longer"]),
        ([2.0, 1.8, 1.6, 1.2, 0.9, 0.7], []),
        ([2.0, 9.0, 1.6, 9.0, 0.9, 0.7], []),  # single entries are chance
    ],
)
def test_symptoms_of_the_loss_are_said_once(losses, expected, capsys):
    symptoms = Symptoms([])
    state = SimpleNamespace(is_world_process_zero=True)
    args = SimpleNamespace(learning_rate=0.1)
    for loss in losses:
        symptoms.on_log(args, state, None, logs={"loss": loss})
    symptoms.on_train_end(args, state, None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected):
        assert line.startswith(f"unime train: {start}")
