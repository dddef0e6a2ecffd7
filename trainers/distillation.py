"""Stage 1 of UniME: textual discriminative knowledge distillation (2504.17432 section 3.2).

accelerate launch -m unime.trainers.distillation --config recipes/unime/distillation.yaml

The teacher's embeddings are computed once, by a job that can be killed and goes on where it stopped, and are matched
to the texts by content. Only the language model trains; no image is ever seen.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from ..data.readers import read_text_pairs
from ..vlm_unime import vision_parameters
from .adapters import vlm_of
from .contrastive import ContrastiveConfig, ContrastiveTrainer
from .losses import SimilarityDistillation
from .stage import run_command
from .teacher import TeacherTable, encode_teacher
from .teacher_files import SUFFIXES, read_teacher_embeddings


@dataclass
class DistillationConfig(ContrastiveConfig):
    """Arguments of [`DistillationTrainer`], beside those of the contrastive baseline on the same pairs."""

    benchmark: str | None = field(default=None, metadata={"help": "None: texts have the preset's usual prompt."})
    temperature: float = field(default=0.05, metadata={"help": "Temperature of the student's similarity rows."})
    num_hard_negatives: int | None = field(default=0, metadata={"help": "Of the baseline, as in its stage."})
    false_negative_margin: float | None = field(default=None, metadata={"help": "Of the baseline, as in its stage."})
    teacher_temperature: float | None = field(default=None, metadata={"help": "The teacher's; the same by default."})
    direction: str = field(
        default="teacher_student", metadata={"help": "teacher_student, student_teacher (as printed), symmetric."}
    )
    diagonal: str = field(default="masked", metadata={"help": "masked, or kept (as printed)."})
    baseline: bool = field(
        default=False, metadata={"help": "Train contrastively on the pairs instead: the paper's comparison."}
    )
    teacher: str | None = field(
        default=None, metadata={"help": "nvidia/NV-Embed-v2, or a sentence-transformers model: folder or Hub id."}
    )
    teacher_embeddings: str | None = field(
        default=None,
        metadata={
            "help": "Where the teacher's embeddings are kept, output_dir/teacher by default; or a .parquet, .npz or "
            ".safetensors file of texts and vectors, or a finished folder, that take the place of the teacher."
        },
    )
    teacher_prompt: str = field(
        default="", metadata={"help": "Put before every text for the teacher: NV-Embed's instruction."}
    )
    teacher_append_eos: bool = field(
        default=False, metadata={"help": "Put the teacher's EOS behind every text; NV-Embed always does."}
    )
    teacher_padding_side: str | None = field(
        default=None, metadata={"help": "left or right; the tokenizer's own by default. NV-Embed pads right."}
    )
    teacher_max_length: int | None = field(
        default=None, metadata={"help": "Tokens of a text for the teacher; its own by default (NV-Embed: 4096)."}
    )
    teacher_batch_size: int = field(default=32, metadata={"help": "Texts of one batch of the teacher."})
    teacher_dtype: str | None = field(
        default=None, metadata={"help": "float32, bfloat16, ...; NV-Embed: bfloat16, others: the model's own."}
    )
    teacher_quantization: str | None = field(
        default=None, metadata={"help": "nf4 or int8: the teacher on a small GPU."}
    )
    teacher_trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code of its repository; NV-Embed needs none."}
    )


def distinct_texts(rows: Dataset) -> list[str]:
    """The texts of all pairs, in their order, each once.

    Args:
        rows (`Dataset`): with the columns of [`~unime.data.schema.Example`].
    """
    return list(text_rows(rows))


def text_rows(rows: Dataset) -> dict[str, int]:
    """The texts of all pairs, in their order, each with the number of the row that has it first.

    Args:
        rows (`Dataset`): with the columns of [`~unime.data.schema.Example`].
    """
    texts = {}
    for number, row in enumerate(rows):
        texts.setdefault(row["query"]["text"], number)
        texts.setdefault(row["positive"]["text"], number)
    return texts


class DistillationTrainer(ContrastiveTrainer):
    """Trains the language model so that its similarities between texts are the teacher's.

    The relation matrix spans the distinct texts of the whole batch, over all chunks and ranks.

    Args:
        args, kwargs: as in [`~unime.trainers.embedding_trainer.EmbeddingTrainer`]; items have no images.
        teacher (`TeacherTable`, *optional*): needed unless `args.baseline`.

    Raises:
        ValueError: the teacher is missing.

    Example:

    ```python
    rows = read_text_pairs("nli_for_simcse.csv")
    teacher = encode_teacher("nvidia/NV-Embed-v2", distinct_texts(rows), "teacher")
    DistillationTrainer(model, DistillationConfig(output_dir="out"), train_dataset=rows, teacher=teacher).train()
    ```
    """

    trains_images = False

    config_class = DistillationConfig

    def __init__(self, *args, teacher: TeacherTable | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        args = self.args
        if not args.baseline and teacher is None:
            raise ValueError("distillation needs the teacher's embeddings: pass `teacher`, or set `baseline`.")
        self.teacher = teacher

        # the baseline keeps the contrastive loss
        if not args.baseline:
            loss = SimilarityDistillation(
                temperature=args.temperature,
                direction=args.direction,
                diagonal=args.diagonal,
                teacher_temperature=args.teacher_temperature,
            )
            self.loss = self.at_all_widths(loss)

    @classmethod
    def made_trainable(cls, model, args, peft_config):
        """Only the language model trains."""
        model = super().made_trainable(model, args, peft_config)
        for parameter in vision_parameters(vlm_of(model)):
            parameter.requires_grad_(False)
        return model

    @classmethod
    def negatives_used(cls, args) -> int | None:
        """The pairs alone are compared; a third column is for the baseline."""
        return None if args.baseline else 0

    @classmethod
    def shortages(cls, args, rows, batch_candidates) -> list[str]:
        """As in the contrastive stage for the baseline; the similarities of texts need no negatives."""
        return super().shortages(args, rows, batch_candidates) if args.baseline else []

    def loss_of(self, embeddings, table):
        """The loss over the distinct texts of the whole batch."""
        if self.args.baseline:
            return super().loss_of(embeddings, table)

        # hashes of the content alone: a text may be the query of one row and the positive of another
        hashes = table.hashes ^ table.is_query  # [T]

        # torch's `unique` does not tell where a value comes first
        _, first = np.unique(hashes.cpu().numpy(), return_index=True)
        distinct = torch.from_numpy(np.sort(first)).to(embeddings.device)  # [N], in the order of the table
        teacher = self.teacher(hashes[distinct]).to(embeddings.device)  # [N, D']
        return self.loss(embeddings[distinct], teacher)


def main(arguments=None):
    """The command of this stage: embeds the texts with the teacher where that is not done yet, and trains."""
    run_command(DistillationTrainer, DistillationConfig, read_pairs, arguments, prepare=prepare_teacher)


def read_pairs(stage, args: DistillationConfig) -> Dataset:
    """Pairs of texts, in any layout that [`~unime.data.readers.read_text_pairs`] knows."""
    return read_text_pairs(stage.data, stage.rows_per_subset)


def prepare_teacher(rows: Dataset, args: DistillationConfig) -> dict:
    """The trainer's `teacher`, where it needs one: made here, it is done before the student needs the memory.

    Raises:
        ValueError: the recipe names no teacher, or its embeddings cannot be used.
    """
    if args.baseline:
        return {}

    # a file takes the place of the teacher; a folder does so only where no teacher could fill it
    place = args.teacher_embeddings
    is_file = place is not None and (Path(place).suffix in SUFFIXES or Path(place).is_file())
    if is_file or (place is not None and args.teacher is None):
        return {"teacher": read_teacher_embeddings(place, text_rows(rows))}

    if args.teacher is None:
        raise ValueError(
            "name the teacher, nvidia/NV-Embed-v2 or a sentence-transformers model (`teacher`), or a file of its "
            "embeddings (`teacher_embeddings`), or set `baseline`."
        )

    teacher = encode_teacher(
        args.teacher,
        distinct_texts(rows),
        out=place or f"{args.output_dir}/teacher",
        batch_size=args.teacher_batch_size,
        prompt=args.teacher_prompt,
        append_eos=args.teacher_append_eos,
        padding_side=args.teacher_padding_side,
        max_length=args.teacher_max_length,
        dtype=args.teacher_dtype,
        quantization=args.teacher_quantization,
        trust_remote_code=args.teacher_trust_remote_code,
    )
    return {"teacher": teacher}


if __name__ == "__main__":
    main()
