"""The miniature text teacher: a small sentence-transformers model, trained on the miniature world's sentence pairs.

    python -m unime.miniature.teacher --pairs outputs/world/nli/nli_for_simcse.csv --out outputs/teacher

It stands for NV-Embed-v2: it knows which texts mean the same, and has never seen an image.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

from ..files.writing import move_into_place
from ..jobs.notices import silence_alarms
from .backbone import build_tokenizer


def train_teacher(pairs, out, epochs: float = 8, seed: int = 0) -> Path:
    """Trains on triplets of a text, one with its meaning and one that is false, unless the result is there.

    Args:
        pairs (`str` or `Path`): CSV with `sent0`, `sent1`, `hard_neg`, as the miniature world has it.
        out (`str` or `Path`): folder for the model, written when it is done.
        epochs (`float`, defaults to 8): passes over the pairs.
        seed (`int`, defaults to 0): of weights and order.

    Returns:
        `Path`: the folder, with a model that sentence-transformers loads.

    Example:

    ```python
    train_teacher("outputs/world/nli/nli_for_simcse.csv", "outputs/teacher")
    ```
    """
    out = Path(out)
    if out.exists():
        return out

    with open(pairs, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    # the weights are random
    set_seed(seed)
    tokenizer = _build_tokenizer(rows)
    bert = BertModel(_build_config(tokenizer))

    # moved into place at the end: a folder that exists holds a finished model
    with tempfile.TemporaryDirectory() as folder:
        bert.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = _train(folder, rows, epochs, seed)
        model.save_pretrained(f"{out}.tmp")
    move_into_place(f"{out}.tmp", out)
    return out


def _build_tokenizer(rows: list[dict]) -> PreTrainedTokenizerFast:
    """The backbone's kind of tokenizer for the texts of all columns, with the frame that BERT puts around a text."""
    texts = []
    for row in rows:
        texts += row.values()

    tokenizer = build_tokenizer(texts, vocab_size=400)
    tokenizer.add_special_tokens({"cls_token": "<|im_start|>", "sep_token": "<|im_end|>"})
    tokenizer.padding_side = "right"
    tokenizer.chat_template = None
    return tokenizer


def _build_config(tokenizer: PreTrainedTokenizerFast) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=160,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _train(folder: str, rows: list[dict], epochs: float, seed: int):
    """A sentence-transformers model from the BERT in a folder, trained on triplets."""
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses, models
    from sentence_transformers.training_args import SentenceTransformerTrainingArguments

    transformer = models.Transformer(folder)
    model = SentenceTransformer(modules=[transformer, models.Pooling(128)], device=_device())

    # the loss takes columns by their order
    names = dict(zip(rows[0], ("anchor", "positive", "negative")))
    triplets = Dataset.from_list(rows).rename_columns(names)
    args = SentenceTransformerTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=128,
        num_train_epochs=epochs,
        learning_rate=1e-3,
        warmup_steps=20,
        save_strategy="no",
        logging_steps=100,
        seed=seed,
        use_cpu=_device() == "cpu",
    )

    loss = losses.MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model=model, args=args, train_dataset=triplets, loss=loss).train()
    return model


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def main(arguments=None):
    """The command `python -m unime.miniature.teacher`."""
    parser = argparse.ArgumentParser(description="Train the miniature text teacher.")
    parser.add_argument("--pairs", required=True, help="CSV with sent0, sent1, hard_neg")
    parser.add_argument("--out", required=True, help="folder for the model")
    options = parser.parse_args(arguments)
    silence_alarms()
    print(train_teacher(**vars(options)))


if __name__ == "__main__":
    main()
