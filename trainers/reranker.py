"""UniME-V2's reranker: pairwise and listwise training in one (2510.13515).

accelerate launch -m unime.trainers.reranker --config recipes/unime-v2/reranker.yaml
"""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ..batching_unime import plan_chunks
from ..data.schema import Example, to_example
from ..items_unime import PreparedItem
from ..processing_unime import UniMEProcessor
from ..prompts_unime import LISTWISE_ANSWER
from .adapters import adapted
from .embedding_trainer import EmbeddingConfig
from .metered_trainer import MeteredTrainer
from .sharding import in_lockstep
from .stage import read_mined_rows, run_command

KINDS = ("yes", "no", "list")


@dataclass
class RerankerConfig(EmbeddingConfig):
    """Arguments of [`RerankerTrainer`]; the defaults are the paper's (2510.13515 table 8)."""

    learning_rate: float = field(default=2e-5, metadata={"help": "Initial learning rate."})
    list_negatives: int = field(default=5, metadata={"help": "Most negatives beside the positive in a list (x)."})
    vary_length: bool = field(
        default=True, metadata={"help": "Draw the number of negatives of each list from 1 to list_negatives."}
    )
    homogeneous_batches: bool = field(default=False, metadata={"help": "Fill each batch from one data set."})


class RerankerCollator:
    """Turns rows into up to three sequences each: the positive (Yes), the hardest negative (No), and a list.

    The hardest negative, and those of the list, are the ones with the highest judge scores, or the first where there
    are no scores. The positive's place in the list, and the list's length, depend on the row and the seed alone: each
    place is as likely, and a resumed run draws the same. Lists that are too long lose their easiest candidates.

    Args:
        processor (`UniMEProcessor`): of the reranker.
        args (`RerankerConfig`).
    """

    def __init__(self, processor: UniMEProcessor, args: RerankerConfig):
        self.processor, self.args = processor, args

    def __call__(self, rows: Sequence[dict]) -> dict:
        sequences = []  # (kind, prepared prompt, ids of the answer)
        for row in rows:
            sequences += self._sequences(to_example(row))
        share = {kind: sum(own == kind for own, _, _ in sequences) for kind in KINDS}
        entries = [replace(entry, written=tuple(answer)) for _, entry, answer in sequences]
        lengths = [entry.length for entry in entries]
        chunks = plan_chunks(lengths, self.args.batch_tokens)[::-1]  # the longest, which hold the images, come last
        batch = []
        for chunk in chunks:
            tensors = dict(self.processor.collate([entries[i] for i in chunk], padding_side="left"))
            longest = max(len(sequences[i][2]) for i in chunk)
            answers = torch.full((len(chunk), longest), -100)
            for row, i in enumerate(chunk):
                answer = sequences[i][2]
                answers[row, longest - len(answer) :] = torch.tensor(answer)
            kinds = [sequences[i][0] for i in chunk]
            weights = torch.tensor([1 / share[kind] for kind in kinds])
            batch.append({"inputs": tensors, "answers": answers, "weights": weights, "kinds": kinds})
        return {"batch": batch}

    def _sequences(self, example: Example) -> list[tuple[str, PreparedItem, list[int]]]:
        query, positive = example.query.as_input(), example.positive.as_input()
        ranked = sorted(  # stable: without scores, the order of the row
            range(len(example.negatives)),
            key=lambda i: -example.negative_scores[i] if i < len(example.negative_scores) else 0.0,
        )
        others = [example.negatives[i] for i in ranked if example.negatives[i] != example.positive]
        others = [negative.as_input() for negative in dict.fromkeys(others)]
        found = [("yes", *self._prompt(query, [positive], "pointwise", "Yes", example))]
        if not others:
            return found
        found.append(("no", *self._prompt(query, others[:1], "pointwise", "No", example)))
        draw = random.Random(f"{self.args.seed}:{example.query.content_hash}:{example.positive.content_hash}")
        most = min(self.args.list_negatives, len(others))
        count = draw.randint(1, most) if self.args.vary_length else most
        place = draw.random()
        limit = self.args.max_length or self.processor.max_length
        while True:
            candidates = others[:count]
            index = int(place * (count + 1))
            candidates.insert(index, positive)
            entry, answer = self._prompt(
                query, candidates, "listwise", f"{LISTWISE_ANSWER}{index + 1})", example, 2**31
            )
            if entry.length + len(answer) <= limit:
                return [*found, ("list", entry, answer)]
            if count == 1:
                raise ValueError(
                    f"{example.query}: a list of two candidates takes {entry.length} tokens, above the limit of "
                    f"{limit}; lower the resolution or raise `max_length`."
                )
            count -= 1

    def _prompt(self, query, candidates, strategy, answer, example, max_length=None):
        """The prompt of a judge's question, and the ids of the answer with which the turn ends."""
        messages = self.processor.rerank_messages(query, candidates, strategy)
        (entry,) = self.processor.prepare(
            [messages],
            max_length=max_length or self.args.max_length,
            names=[str(example.query)],
            resolution=self.args.resolution,
        )
        return entry, self.processor.answer_ids(answer)


class RerankerTrainer(MeteredTrainer):
    """Trains a reranker on the sum of three means: "Yes" for positives, "No" for the hardest negatives, and the number
    of the positive in a list. Only the answer, with the token that ends the turn, is trained.

    A step runs its sequences in chunks of at most `batch_tokens` padded tokens, each forward and backward by itself.

    Args:
        model (`UniMERerankerForCausalLM`, possibly wrapped by PEFT).
        args (`RerankerConfig`), train_dataset, eval_dataset: rows have the columns of
            [`~unime.data.schema.Example`].
        peft_config (`peft.PeftConfig`, *optional*): wrap the model in an adapter.
    """

    paper = "2510.13515"

    def __init__(self, model, args, train_dataset=None, processing_class=None, peft_config=None, **kwargs):
        processor = processing_class or model.processor
        model = adapted(model, peft_config, args.seed)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processor,
            data_collator=kwargs.pop("data_collator", None) or RerankerCollator(processor, args),
            **kwargs,
        )

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        self.adopt_engine(model)
        self.count(
            sum(len(chunk["kinds"]) for chunk in inputs["batch"]),
            sum(int(chunk["inputs"]["attention_mask"].sum()) for chunk in inputs["batch"]),
        )
        chunks, total = self._chunks(inputs["batch"]), 0.0
        for number, chunk in enumerate(chunks):
            last = number == len(chunks) - 1
            with nullcontext() if last or self.is_deepspeed_enabled else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self._chunk_loss(model, chunk, "train") / self.current_gradient_accumulation_steps
                self.backward(loss, last)
            total = total + loss.detach()
        finite = torch.isfinite(total).long()
        if dist.is_initialized():  # all ranks stop, or none
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        if not finite:
            raise ValueError(f"the loss is {total.item()} after step {self.state.global_step}.")
        return total

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad(), self.compute_loss_context_manager():
            return sum(self._chunk_loss(model, chunk, "eval") for chunk in self._chunks(inputs["batch"])), None, None

    def _chunks(self, batch: list[dict]) -> list[dict]:
        """The chunks to run: of the batch, and what only keeps ranks in step."""
        if not self.is_deepspeed_enabled:
            return batch

        def spare(with_image):
            inputs = self.spare_inputs(with_image, padding_side="left")
            return {"inputs": inputs, "answers": inputs["input_ids"][:, -1:], "weights": torch.zeros(1), "kinds": []}

        return in_lockstep(batch, lambda chunk: "pixel_values" in chunk["inputs"], spare, self.args.device)

    def _chunk_loss(self, model, chunk, mode: str):
        """The weighted cross-entropies of some sequences: each the mean over its answer's tokens."""
        device = self.args.device
        answers, weights = chunk["answers"].to(device), chunk["weights"].to(device)  # [N, A], [N]
        inputs = {key: value.to(device) for key, value in chunk["inputs"].items()}
        logits = (
            model(**inputs, use_cache=False, logits_to_keep=answers.shape[1] + 1).logits[:, :-1].float()
        )  # [N, A, V]
        losses = F.cross_entropy(logits.transpose(1, 2), answers, ignore_index=-100, reduction="none")  # [N, A]
        trained = answers != -100
        each = losses.sum(1) / trained.sum(1)  # [N]
        right = ((logits.argmax(-1) == answers) | ~trained).all(1)
        for kind, loss, hit in zip(chunk["kinds"], each.tolist(), right.tolist()):
            self._metrics[mode][f"loss_{kind}"].append(loss)
            self._metrics[mode][f"accuracy_{kind}"].append(float(hit))
        return (weights * each).sum()


def main(arguments=None):
    """The command of this stage."""
    run_command(RerankerTrainer, RerankerConfig, read_mined_rows, arguments, reranker=True)


if __name__ == "__main__":
    main()
