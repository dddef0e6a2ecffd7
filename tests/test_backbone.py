"""The miniature backbone: its tokenizer, and labels that cover the answer alone."""

import pyarrow.parquet as pq
import torch

from unime.miniature.backbone import (
    GenerativeCollator,
    build_processor,
    build_tokenizer,
    world_texts,
)


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
