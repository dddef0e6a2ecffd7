"""What `Trainer` and TRL's trainers accept and return, for ours."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi
from peft import LoraConfig
from transformers.hyperparameter_search import ALL_HYPERPARAMETER_SEARCH_BACKENDS
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.trainer_utils import HPSearchBackend

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.data.samplers import HomogeneousStream
from unime.data.schema import Example, Item, to_dataset, to_example
from unime.trainers.alignment import AlignmentTrainer
from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.distillation import DistillationConfig, DistillationTrainer
from unime.trainers.reranker import RerankerConfig, RerankerTrainer

COLOURS = ["red", "blue", "green", "white", "black", "grey", "pink"]
ROWS = [{"query": f"a {colour} circle", "positive": {"text": f"the {colour}"}} for colour in COLOURS]
SETTINGS = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 3,
    "max_steps": 2,
    "save_strategy": "no",
    "logging_steps": 1,
    "bf16": False,
    "disable_tqdm": True,
    "warmup_steps": 0,
}


def arguments(folder, config_class=ContrastiveConfig, **settings):
    return config_class(output_dir=str(folder), **{**SETTINGS, **settings})


def weight_of(trainer) -> torch.Tensor:
    return trainer.accelerator.unwrap_model(trainer.model).get_input_embeddings().weight.detach().clone()


# figures
def test_predict_has_the_figures_of_its_rows_and_leaves_none_behind(embedder, tmp_path):
    trainer = ContrastiveTrainer(embedder, arguments(tmp_path), eval_dataset=ROWS[:4])
    before = trainer.evaluate()
    predicted = trainer.predict(ROWS)
    after = trainer.evaluate()

    names = {name.removeprefix("eval_") for name in before} - {"epoch"}
    assert {"loss", "positive_similarity", "distinct_items", "padded_share"} <= names
    assert {name.removeprefix("test_") for name in predicted.metrics} == names
    assert before["eval_positive_similarity"] == after["eval_positive_similarity"]
    assert before["eval_distinct_items"] == after["eval_distinct_items"]
    assert before["eval_positive_similarity"] != predicted.metrics["test_positive_similarity"]


def test_an_evaluation_that_failed_leaves_no_figures(embedder, tmp_path):
    trainer = ContrastiveTrainer(embedder, arguments(tmp_path), eval_dataset=ROWS[:3])
    expected = trainer.evaluate()["eval_positive_similarity"]
    step = trainer.prediction_step
    trainer.prediction_step = lambda *given, **options: step(*given, **options) and 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.evaluate(ROWS[3:])
    trainer.prediction_step = step
    assert trainer.evaluate()["eval_positive_similarity"] == expected


def test_predictions_are_the_embeddings_of_queries_and_positives(embedder, tmp_path):
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction)
        queries, positives = prediction.predictions
        return {"similarity": float((queries * positives).sum(1).mean())}

    copies = [*ROWS, {"query": "the colour of blood", "positive": {"text": "the red"}}]
    trainer = ContrastiveTrainer(
        embedder, arguments(tmp_path, benchmark=None), eval_dataset=copies, compute_metrics=compute_metrics
    )
    figures = trainer.evaluate()
    queries, positives = seen[0].predictions
    np.testing.assert_allclose(queries, embedder.encode_query([row["query"] for row in copies]), atol=1e-5)
    texts = [row["positive"]["text"] for row in copies]
    np.testing.assert_allclose(positives, embedder.encode_document(texts), atol=1e-5)
    assert figures["eval_similarity"] == pytest.approx((queries * positives).sum(1).mean(), abs=1e-6)

    # equal positives have equal labels, others have not
    labels = seen[0].label_ids
    assert len(labels) == 8 and len(set(labels)) == 7 and labels[0] == labels[7]
    np.testing.assert_array_equal(trainer.predict(copies).predictions[0], queries)


def test_metrics_that_would_never_be_called_are_refused(reranker, tmp_path):
    with pytest.raises(ValueError, match="RerankerTrainer has no predictions for `compute_metrics`"):
        RerankerTrainer(reranker, arguments(tmp_path, RerankerConfig), train_dataset=ROWS, compute_metrics=len)


def test_a_reranker_predicts_and_evaluates(reranker, tmp_path):
    trainer = RerankerTrainer(reranker, arguments(tmp_path, RerankerConfig), eval_dataset=ROWS[:2])
    predicted = trainer.predict(ROWS[:2])
    measured = trainer.evaluate()
    assert predicted.metrics["test_loss_yes"] == measured["eval_loss_yes"] > 0


# rows
def test_rows_may_be_a_list_of_dicts_or_examples(backbone, tmp_path):
    examples = [Example(Item(row["query"]), Item(row["positive"]["text"])) for row in ROWS]
    weights = []
    for rows in (ROWS, examples, to_dataset(examples)):
        trainer = ContrastiveTrainer(UniMEModel.from_backbone(backbone), arguments(tmp_path), train_dataset=rows)
        trainer.train()
        weights.append(weight_of(trainer))
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, {"query": "a"}], "train_dataset, row 7: lacks positive"),
        ([{"query": "a", "positive": 3}], "row 0: an item is a text"),
        ([{"query": "a", "positive": {"image": object()}}], "row 0: an item is a text, or has 'text' and 'image'"),
        ([{"query": "a", "positive": " "}], "row 0: an item needs a text"),
        ([{"query": "a", "positive": {"picture": "a.png"}}], "row 0: an item is a text"),
        ("rows.jsonl", "train_dataset must be a Dataset"),
    ],
)
def test_rows_of_a_list_are_checked(embedder, tmp_path, rows, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ContrastiveTrainer(embedder, arguments(tmp_path), train_dataset=rows)


def stream_of(rows):
    return Dataset.from_list(rows).to_iterable_dataset()


@pytest.mark.parametrize("homogeneous", [True, False])
def test_a_stream_trains_as_the_same_rows_in_its_order(backbone, tmp_path, homogeneous):
    rows = [{**row, "dataset": "ab"[number % 2]} for number, row in enumerate(ROWS[:6] + ROWS[:2])]
    settings = {"homogeneous_batches": homogeneous}
    trainer = ContrastiveTrainer(
        UniMEModel.from_backbone(backbone), arguments(tmp_path, **settings), train_dataset=stream_of(rows)
    )
    trainer.train()

    # the same batches, written down
    order = [0, 2, 4, 6, 1, 3, 5, 7] if homogeneous else list(range(8))
    settings = {"homogeneous_batches": False, "train_sampling_strategy": "sequential"}
    reference = ContrastiveTrainer(
        UniMEModel.from_backbone(backbone),
        arguments(tmp_path, **settings),
        train_dataset=[rows[index] for index in order],
    )
    reference.train()
    assert torch.equal(weight_of(trainer), weight_of(reference))
    trainer.save_model()
    assert trainer.evaluate(stream_of(rows[:4]))["eval_loss"] > 0


def test_blocks_of_a_stream_are_of_one_data_set_and_lose_no_row():
    rows = [{"dataset": "abc"[number % 3], "number": number} for number in range(20)]
    order = list(HomogeneousStream(rows, block_size=4))
    assert sorted(row["number"] for row in order) == list(range(20))
    for start in (0, 4, 8):
        assert len({row["dataset"] for row in order[start : start + 4]}) == 1


def test_temperatures_of_a_stream_are_refused(embedder, tmp_path):
    with pytest.raises(ValueError, match="learn_temperatures must know all data sets"):
        ContrastiveTrainer(embedder, arguments(tmp_path, learn_temperatures=True), train_dataset=stream_of(ROWS))


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance", "sequential"])
def test_orders_that_do_not_apply_are_refused(tmp_path, strategy):
    with pytest.raises(ValueError, match=f"train_sampling_strategy '{strategy}'"):
        arguments(tmp_path, train_sampling_strategy=strategy)
    assert arguments(tmp_path, train_sampling_strategy="sequential", homogeneous_batches=False)


def test_a_row_needs_a_query_and_a_positive_only():
    example = to_example({"query": "a", "positive": {"text": None, "image": "b.png"}, "negatives": ["c"]})
    assert example == Example(Item("a"), Item(image="b.png"), [Item("c")])
    assert to_example(example) is example


# models and arguments
@pytest.mark.parametrize("trainer_class", [ContrastiveTrainer, AlignmentTrainer, RerankerTrainer])
def test_a_name_will_do_for_a_model_and_arguments_may_be_left_out(backbone, tmp_path, monkeypatch, trainer_class):
    monkeypatch.chdir(tmp_path)
    trainer = trainer_class(str(backbone), train_dataset=ROWS)
    assert isinstance(trainer.args, trainer_class.config_class)
    assert trainer.args.output_dir == f"{backbone.name}-{trainer_class.__name__.removesuffix('Trainer')}"
    is_reranker = trainer_class is RerankerTrainer
    assert isinstance(trainer.model, UniMERerankerForCausalLM if is_reranker else UniMEModel)
    assert trainer.model.dtype == torch.float32 and trainer.processing_class is trainer.model.processor


def test_arguments_come_in_the_order_of_trainer(embedder, tmp_path):
    args = arguments(tmp_path)
    collator = ContrastiveTrainer.collator_for(embedder, args, embedder.processor)
    trainer = ContrastiveTrainer(embedder, args, collator, ROWS, ROWS[:2])
    assert trainer.data_collator is collator and len(trainer.train_dataset) == 7 and len(trainer.eval_dataset) == 2


def test_model_init_makes_the_model_anew_with_its_adapter(backbone, tmp_path):
    trials = []

    def model_init(trial):
        trials.append(trial)
        return UniMEModel.from_backbone(backbone)

    trainer = ContrastiveTrainer(
        args=arguments(tmp_path, learning_rate=1e-2),
        train_dataset=ROWS,
        model_init=model_init,
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
    )
    results = []
    for _ in range(2):
        trainer.train()
        adapter = {name: weight for name, weight in trainer.model.state_dict().items() if "lora_B" in name}
        results.append(adapter)
        assert trainer.model.processor is trainer.processing_class
    assert trials == [None, None, None]
    assert results[0] and all(weight.abs().sum() > 0 for weight in results[0].values())
    assert all(torch.equal(weight, results[1][name]) for name, weight in results[0].items())

    for wrong in ({}, {"model": UniMEModel.from_backbone(backbone), "model_init": model_init}):
        with pytest.raises(ValueError, match="either `model` or `model_init`"):
            ContrastiveTrainer(args=arguments(tmp_path), train_dataset=ROWS, **wrong)


def test_distillation_without_a_teacher_is_refused(embedder, tmp_path):
    with pytest.raises(ValueError, match="distillation needs the teacher's embeddings"):
        DistillationTrainer(embedder, arguments(tmp_path, DistillationConfig), train_dataset=ROWS)


# TRL
def test_trl_trains_the_reranker(reranker, tmp_path):
    from trl import SFTConfig, SFTTrainer

    content = [{"type": "text", "text": "a red circle"}]
    row = {
        "prompt": [{"role": "user", "content": content}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": "Yes"}]}],
    }
    args = SFTConfig(str(tmp_path), max_steps=2, learning_rate=1e-2, report_to=[], use_cpu=True, bf16=False)
    args.save_strategy = "no"
    tokenizer = reranker.processor.tokenizer
    trainer = SFTTrainer(reranker, args, train_dataset=Dataset.from_list([row] * 8), processing_class=tokenizer)
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    before = reranker.vlm(**batch).loss.item()

    # it trains through a head of its own, which never has all logits
    assert trainer.model(**batch, fused_lm_head=True).loss.item() == pytest.approx(before, abs=1e-5)
    trainer.train()
    assert reranker.vlm(**batch).loss.item() < before


# reports
class Writer:
    """TensorBoard's writer, or Weights & Biases' module, that only remembers names and values."""

    def __init__(self):
        self.logged = {}
        self.run = SimpleNamespace(summary={})

    def add_scalar(self, name, value, step):
        self.logged[name, step] = value

    def log(self, values):
        step = values.pop("train/global_step")
        self.logged |= {(name, step): value for name, value in values.items()}

    def flush(self):
        pass

    close = add_text = flush


def test_tensorboard_and_wandb_get_the_same_names(embedder, tmp_path, monkeypatch):
    for name in ("tensorboardX", "wandb"):
        module = ModuleType(name)
        module.SummaryWriter = None
        monkeypatch.setitem(sys.modules, name, module)
    integrations = sys.modules[TensorBoardCallback.__module__]
    for name in ("is_tensorboard_available", "is_wandb_available"):
        monkeypatch.setattr(integrations, name, lambda: True)
    boards = [TensorBoardCallback(Writer()), WandbCallback()]
    boards[1]._wandb, boards[1]._initialized = Writer(), True
    writers = [boards[0].tb_writer, boards[1]._wandb]
    monkeypatch.setattr(WandbCallback, "on_train_end", lambda *given, **options: None)
    monkeypatch.setattr(TensorBoardCallback, "on_train_begin", lambda *given, **options: None)

    rows = [*ROWS, {"query": "a", "positive": {"image": str(tmp_path / "missing.png")}}]
    settings = {"eval_strategy": "steps", "eval_steps": 1, "learn_temperatures": True}
    trainer = ContrastiveTrainer(
        embedder, arguments(tmp_path, **settings), train_dataset=rows, eval_dataset=ROWS[:3], callbacks=boards
    )
    with pytest.warns(UserWarning, match="could not be read"):
        trainer.train()

    tensorboard, wandb = (dict(writer.logged) for writer in writers)
    summary = {f"train/{name}" for name in writers[1].run.summary}
    assert {key: value for key, value in tensorboard.items() if key[0] not in summary} == wandb
    names = {name for name, step in wandb}
    assert {"train/loss", "eval/loss", "train/positive_similarity", "eval/positive_similarity"} <= names
    assert "train/items_left_out" in names and "eval/items_left_out" not in names
    assert not any(name.startswith("train/eval") for name in names)


# the Hub
def test_push_to_hub_sends_the_model_with_our_card(embedder, tmp_path, monkeypatch):
    sent = {}

    def upload_folder(self, **options):
        sent.update(options)
        return SimpleNamespace(commit_url="")

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **options: SimpleNamespace(repo_id=f"me/{name}"))
    args = arguments(tmp_path / "out", push_to_hub=True, hub_model_id="shapes")
    trainer = ContrastiveTrainer(embedder, args, train_dataset=ROWS)
    trainer.train()
    trainer.push_to_hub()
    assert sent["repo_id"] == "me/shapes" and sent["folder_path"] == str(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "`contrastive` stage" in card and "temperature" in card
    assert UniMEModel.from_pretrained(tmp_path / "out").processor.preset == embedder.processor.preset


def test_several_devices_of_one_process_are_refused(embedder, tmp_path):
    """`Trainer` would use them with `DataParallel`, which takes the batch's table of items apart."""
    settings = arguments(tmp_path)
    settings._n_gpu = 2  # what transformers finds on a machine with two
    with pytest.raises(ValueError, match="several GPUs in one process are not supported: start with `accelerate"):
        ContrastiveTrainer(embedder, settings, train_dataset=ROWS)


# a search for hyperparameters
class TwoTrials:
    """A backend that tries two rates of learning, as a library would."""

    def ensure_available(self):
        """It is there."""

    def default_hp_space(self, trial):
        return trial

    def run(self, trainer, n_trials, direction, space):
        objectives = []
        for values in space:
            for name, value in trainer.hp_space(values).items():
                setattr(trainer.args, name, value)
            trainer.train()
            objectives.append(trainer.compute_objective(trainer.evaluate()))
        return objectives


def test_a_search_compares_losses_of_models_that_start_alike(embedder, backbone, tmp_path, monkeypatch):
    monkeypatch.setitem(ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.RAY, TwoTrials)
    settings = arguments(tmp_path, learning_rate=1e-3, eval_strategy="no")
    trainer = ContrastiveTrainer(
        args=settings,
        model_init=lambda: UniMEModel.from_backbone(backbone),
        train_dataset=ROWS,
        eval_dataset=ROWS,
    )
    space = [{"learning_rate": 0.0}, {"learning_rate": 1e-2}, {"learning_rate": 0.0}]
    still, moved, again = trainer.hyperparameter_search(lambda trial: trial, backend="ray", space=space)
    assert still == again != moved
    untrained = ContrastiveTrainer(UniMEModel.from_backbone(backbone), settings, eval_dataset=ROWS)
    assert still == pytest.approx(untrained.evaluate()["eval_loss"], abs=1e-5)
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    assert names.count("ChooseOrder") == 1

    with pytest.raises(ValueError, match="temperature: loss and batches are made once"):
        trainer.hyperparameter_search(lambda trial: trial, backend="ray", space=[{"temperature": 0.5}])
