"""Stage 1 of UniME: textual discriminative knowledge distillation (2504.17432 section 3.2).

accelerate launch -m unime.trainers.distillation --config recipes/unime/distillation.yaml

The teacher's embeddings are computed once, by a job that can be killed and goes on where it stopped, and are matched
to the texts by content. Only the language model trains; no image is ever seen.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset

from ..data.readers import read_text_pairs
from ..data.schema import Item
from ..jobs.embedding import as_text
from ..jobs.shards import processes, read_job, run_job
from ..vlm_unime import vision_parameters
from .adapters import vlm_of
from .contrastive import ContrastiveConfig, ContrastiveTrainer
from .losses import SimilarityDistillation
from .stage import run_command


@dataclass
class DistillationConfig(ContrastiveConfig):
    """Arguments of [`DistillationTrainer`], beside those of the contrastive baseline on the same pairs."""

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
    teacher: str | None = field(default=None, metadata={"help": "sentence-transformers model, folder or Hub id."})
    teacher_embeddings: str | None = field(
        default=None, metadata={"help": "Folder of the teacher's embeddings; output_dir/teacher by default."}
    )
    teacher_prompt: str = field(default="", metadata={"help": "Put before every text for the teacher."})
    teacher_batch_size: int = field(default=32, metadata={"help": "Texts of one batch of the teacher."})
    teacher_dtype: str | None = field(default=None, metadata={"help": "float32, bfloat16, ...; the model's own else."})
    teacher_trust_remote_code: bool = field(default=False, metadata={"help": "Run the code of its repository."})


class TeacherTable:
    """Teacher embeddings `[N, D]` by the content of their texts.

    Args:
        texts (`list[str]`): distinct texts.
        embeddings (`np.ndarray` `[N, D]`): in the same order.

    Raises:
        ValueError: their numbers differ.

    Example:

    ```python
    table = TeacherTable(["a cat", "a dog"], np.eye(2))
    table(torch.tensor([Item("a dog").content_hash]))  # [[0, 1]]
    ```
    """

    def __init__(self, texts: list[str], embeddings: np.ndarray):
        if len(texts) != len(embeddings):
            raise ValueError(f"{len(embeddings)} teacher embeddings for {len(texts)} texts.")
        self.rows = {Item(text).content_hash: row for row, text in enumerate(texts)}
        self.texts = texts
        self.embeddings = torch.from_numpy(np.asarray(embeddings))

    def __call__(self, hashes: torch.Tensor) -> torch.Tensor:
        """Embeddings `[n, D]` of texts.

        Args:
            hashes (`LongTensor` `[n]`): their content hashes.

        Raises:
            ValueError: a text has no embedding here.
        """
        rows = [self.rows.get(key) for key in hashes.tolist()]
        if None in rows:
            raise ValueError(f"{rows.count(None)} of {len(rows)} texts of a batch have no teacher embedding.")
        return self.embeddings[torch.tensor(rows)].to(hashes.device)


def encode_teacher(
    model: str, texts: list[str], out, prompt: str = "", batch_size: int = 32, **kwargs
) -> TeacherTable:
    """Embeds texts with any sentence-transformers model, once; a killed job goes on where it stopped.

    Args:
        model (`str`): folder or Hub id, such as `"nvidia/NV-Embed-v2"`.
        texts (`list[str]`): distinct texts.
        out: folder for the embeddings.
        prompt (`str`): put before every text.
        batch_size (`int`): texts of one batch.
        kwargs: for `SentenceTransformer`.

    Returns:
        [`TeacherTable`]: of all texts, on every rank.

    Raises:
        ValueError: the folder holds the embeddings of other texts or of another teacher.
    """
    state = processes()

    def load():
        from ..checkpoints.opening import open_sentence_transformer

        return open_sentence_transformer(model, state.device, **kwargs)

    def encode(shard, teacher):
        inputs = [as_text(text, teacher) for text in shard]
        embeddings = teacher.encode(inputs, prompt=prompt or None, batch_size=batch_size, show_progress_bar=False)
        return {"embeddings": embeddings.astype(np.float32)}

    run_job(
        out,
        texts,
        encode,
        {"model": str(model), "prompt": prompt},
        rank=state.process_index,
        world_size=state.num_processes,
        description="Teacher",
        failures=(),  # a text that cannot be embedded ends the job: the student needs all of them
        prepare=load,
    )

    # each rank has embedded its shards, and reads those of the others
    state.wait_for_everyone()
    return TeacherTable(texts, read_job(out)["embeddings"])


def distinct_texts(rows: Dataset) -> list[str]:
    """The texts of all pairs, in their order, each once.

    Args:
        rows (`Dataset`): with the columns of [`~unime.data.schema.Example`].
    """
    texts = {}  # a set that keeps the order
    for row in rows:
        texts[row["query"]["text"]] = None
        texts[row["positive"]["text"]] = None
    return list(texts)


class DistillationTrainer(ContrastiveTrainer):
    """Trains the language model so that its similarities between texts are the teacher's.

    The relation matrix spans the distinct texts of the whole batch, over all chunks and ranks.

    Args:
        model, args, train_dataset, kwargs: as in [`~unime.trainers.embedding_trainer.EmbeddingTrainer`]; items have no
            images.
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

    def __init__(
        self, model, args: DistillationConfig, train_dataset=None, teacher: TeacherTable | None = None, **kwargs
    ):
        if not args.baseline and teacher is None:
            raise ValueError("distillation needs the teacher's embeddings: pass `teacher`, or set `baseline`.")
        self.teacher = teacher
        negatives = None if args.baseline else 0  # the pairs alone are compared; a third column is for the baseline
        super().__init__(model, args, train_dataset=train_dataset, max_negatives=negatives, **kwargs)

        for parameter in vision_parameters(vlm_of(self.model)):
            parameter.requires_grad_(False)
        if not args.baseline:
            loss = SimilarityDistillation(
                temperature=args.temperature,
                direction=args.direction,
                diagonal=args.diagonal,
                teacher_temperature=args.teacher_temperature,
            )
            self.loss = self.at_all_widths(loss)

    def loss_of(self, embeddings, table):
        """The loss over the distinct texts of the whole batch."""
        if self.args.baseline:
            return super().loss_of(embeddings, table)

        # hashes of the content alone: a text may be the query of one row and the positive of another
        hashes = table.hashes ^ table.is_query  # [T]
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
        ValueError: the recipe names no teacher.
    """
    if args.baseline:
        return {}
    if args.teacher is None:
        raise ValueError("name the teacher, a sentence-transformers model (`teacher`), or set `baseline`.")

    options = {"trust_remote_code": args.teacher_trust_remote_code}
    if args.teacher_dtype:
        options["model_kwargs"] = {"dtype": args.teacher_dtype}
    teacher = encode_teacher(
        args.teacher,
        distinct_texts(rows),
        out=args.teacher_embeddings or f"{args.output_dir}/teacher",
        prompt=args.teacher_prompt,
        batch_size=args.teacher_batch_size,
        **options,
    )
    return {"teacher": teacher}


if __name__ == "__main__":
    main()
