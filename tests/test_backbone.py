"""The miniature backbone: its tokenizer, and labels that cover the answer alone."""

import pyarrow.parquet as pq
import torch
from datasets import Dataset

from unime.configuration_unime import UniMERerankerConfig
from unime.miniature.backbone import (
    BackboneConfig,
    BackboneTrainer,
    GenerativeCollator,
    build_config,
    build_processor,
    build_tokenizer,
    world_texts,
)
from unime.modeling_unime import UniMERerankerForCausalLM


def test_tokenizer_encodes_any_string_and_keeps_qwens_special_tokens(world):
    tokenizer = build_tokenizer(world_texts(world))
    for text in ("a red circle", "Zürich, 北京 — 42%", "\n\n  x"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ids = tokenizer("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|im_end|>")["input_ids"]
    assert len(ids) == 7
    assert len(tokenizer(" red circle")["input_ids"]) == 2, "the world's words are tokens"


def test_labels_are_the_answer_and_nothing_else(world):
    tokenizer = build_tokenizer(world_texts(world))
    rows = pq.read_table(world / "pretrain" / "generative.parquet").to_pylist()
    by_task = {row["task"]: row for row in rows}
    assert {"caption", "question"} <= set(by_task)
    chosen = list(by_task.values())
    batch = GenerativeCollator(build_processor(tokenizer), world)(chosen)
    for labels, ids, row in zip(batch["labels"], batch["input_ids"], chosen):
        answer = tokenizer(row["answer"] + "<|im_end|>")["input_ids"]
        assert labels[labels >= 0].tolist() == answer == ids[-len(answer) :].tolist()
        assert "assistant\n" + row["answer"] in tokenizer.decode(ids)
    assert torch.equal(batch["labels"] >= 0, batch["labels"] == batch["input_ids"])


def test_the_loss_is_that_of_the_whole_sequences(world, tmp_path):
    """Only the logits of answers are computed, and the loss is the one that transformers takes over all of them."""
    tokenizer = build_tokenizer(world_texts(world))
    processor = build_processor(tokenizer)
    rows = Dataset(pq.read_table(world / "pretrain" / "generative.parquet"))
    collator = GenerativeCollator(processor, world)
    torch.manual_seed(0)
    model = UniMERerankerForCausalLM(UniMERerankerConfig(vlm_config=build_config(tokenizer)))
    args = BackboneConfig(output_dir=str(tmp_path), report_to="none")
    trainer = BackboneTrainer(model=model, args=args, train_dataset=rows, data_collator=collator)

    batch = collator([rows[number] for number in range(12)])
    assert len({int((labels >= 0).sum()) for labels in batch["labels"]}) > 1, "answers of several lengths"
    torch.testing.assert_close(trainer.compute_loss(model, batch), model(**batch).loss, rtol=1e-5, atol=1e-6)
