"""UniME-V2's reranker: pairwise and listwise training in one (2510.13515).

accelerate launch -m unime.trainers.reranker --config recipes/unime-v2/reranker.yaml
"""

import os
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ..batching_unime import plan_chunks
from ..data.collators import Fed
from ..data.copies import named_by_content
from ..data.schema import Example, Item, content_hash, to_example
from ..data.sieve import BadItem, Sieve
from ..items_unime import PreparedItem
from ..processing_unime import UniMEProcessor
from ..prompts_unime import LISTWISE_ANSWER, one_of
from .adapters import adapted
from .left_out import refuse_empty
from .metered_trainer import MeteredTrainer
from .sharding import in_lockstep
from .stage import read_mined_rows, run_command
from .stage_config import StageConfig

KINDS = ("yes", "no", "list")  # of training sequences
OBJECTIVES = {"pairwise": ("yes", "no"), "listwise": ("list",), "both": KINDS}
IGNORED = -100  # in place of an id: not a part of the answer
UNLIMITED = 2**31  # tokens


@dataclass
class RerankerConfig(StageConfig):
    """Arguments of [`RerankerTrainer`]; the defaults are the paper's (2510.13515 table 8)."""

    learning_rate: float = field(default=2e-5, metadata={"help": "Initial learning rate."})
    list_negatives: int = field(default=5, metadata={"help": "Most negatives beside the positive in a list (x)."})
    vary_length: bool = field(
        default=True, metadata={"help": "Draw the number of negatives of each list from 1 to list_negatives."}
    )
    objective: str = field(
        default="both",
        metadata={"help": "What is trained: pairwise (Yes or No), listwise (the number of the best), or both."},
    )
    homogeneous_batches: bool = field(default=False, metadata={"help": "Fill each batch from one data set."})

    def __post_init__(self):
        one_of("objective", self.objective, *OBJECTIVES)
        super().__post_init__()


class Question(NamedTuple):
    """One training sequence: a question that the reranker reads, and the answer that it should give.

    Args:
        kind (`str`): `"yes"`, `"no"` or `"list"`.
        prompt (`PreparedItem`): the question.
        answer (`list[int]`): token ids of the answer, with those that end the turn.
    """

    kind: str
    prompt: PreparedItem
    answer: list[int]


class RerankerCollator:
    """Turns rows into up to three sequences each: the positive (Yes), the hardest negative (No), and a list.

    The hardest negative, and those of the list, are the ones with the highest judge scores, or the first where there
    are no scores. The positive's place in the list, and the list's length, depend on the row and the seed alone: each
    place is as likely, and a resumed run draws the same. Lists that are too long lose their easiest candidates.

    Items that cannot be read are left out: a row without its query or positive is no row, nor is one of which a list
    of two candidates is above the limit of tokens; without a negative it has one less.

    Args:
        processor (`UniMEProcessor`): of the reranker.
        args (`RerankerConfig`): of the training.

    Example:

    ```python
    collator = RerankerCollator(reranker.processor, RerankerConfig(output_dir="out"))
    chunks = collator([rows[0], rows[1]])["batch"]
    ```
    """

    def __init__(self, processor: UniMEProcessor, args: RerankerConfig):
        self.processor = processor
        self.args = args
        self.sieve = Sieve(self._read)
        self.unfit: dict[tuple, str] = {}  # rows that cannot be read although each of their items can

    def __call__(self, rows: Sequence[dict]) -> dict:
        """Makes a batch.

        Returns:
            `dict` with `"batch"`, a list of chunks of at most `batch_tokens` padded tokens, and `"bad_items"`, the
            `BadItem`s that were left out. Each chunk is a dict with the model's `"inputs"`, padded on the left; the
            `"answers"` `[N, A]`, ids with -100 before them; `"weights"` `[N]` with which the sequences' losses add up
            to three means; and the `"kinds"` of the sequences.
        """
        examples = list(map(to_example, rows))
        try:
            batch = self._batch(self._fitting(examples))
        except ValueError:
            # an item or a row cannot be read; if all can, the batch fails once more
            self._search(examples)
            batch = self._batch(self._fitting(examples))
        return {"batch": batch, "bad_items": self._bad_items(examples)}

    def bad_items(self, row: dict) -> list[BadItem]:
        """What of a row cannot be read, which may be the row as a whole; empty where nothing is wrong with it."""
        example = to_example(row)
        self._search([example])
        return self._bad_items([example])

    def _search(self, examples: list[Example]):
        """Finds the items, and then the rows, that cannot be read."""
        self.sieve.search(examples)
        for example in self.sieve.rest(examples):
            try:
                self._sequences(example)
            except ValueError as error:
                self.unfit[_key(example)] = str(error)

    def _fitting(self, examples: list[Example]) -> list[Example]:
        """The rows that can be read, without the items that cannot."""
        return [example for example in self.sieve.rest(examples) if _key(example) not in self.unfit]

    def _bad_items(self, examples: list[Example]) -> list[BadItem]:
        bad_items = self.sieve.bad_items(examples)

        # of a row that is too long as a whole no item is at fault: its query stands for it
        for example in self.sieve.rest(examples):
            if _key(example) in self.unfit:
                bad_items.append(BadItem(str(example.query), self.unfit[_key(example)]))
        return bad_items

    def _read(self, role: str, item: Item):
        """Reads an item in the shortest question; a `ValueError` where that fails."""
        question = self.processor.question(item.as_input(), ".")
        prepared = self.processor.prepare(
            [question], max_length=self.args.max_length, names=[str(item)], resolution=self.args.resolution
        )

        # images are decoded only here, and a file may be damaged behind its header
        self.processor.collate(prepared)

    def _batch(self, examples: list[Example]) -> list[dict]:
        """The chunks of some rows."""
        questions = []
        for example in examples:
            questions.extend(self._sequences(example))
        counts = Counter(question.kind for question in questions)  # means are over the batch, not over a chunk

        # the longest, which hold the images, come last
        lengths = [question.prompt.length + len(question.answer) for question in questions]
        plan = plan_chunks(lengths, self.args.batch_tokens)
        chunks = []
        for indices in reversed(plan):
            chunk = [questions[index] for index in indices]
            chunks.append(self._collate(chunk, counts))
        return chunks

    def _collate(self, questions: list[Question], counts: dict[str, int]) -> dict:
        """The tensors of some sequences; `counts` says how many of each kind the whole batch has."""
        longest = max(len(question.answer) for question in questions)
        answers = torch.full((len(questions), longest), IGNORED)  # [N, A]
        weights = torch.empty(len(questions))  # [N]

        # answers end together, as the sequences do, which are padded on the left
        prompts = []
        for row, question in enumerate(questions):
            answers[row, longest - len(question.answer) :] = torch.tensor(question.answer)
            weights[row] = 1 / counts[question.kind]  # the losses of each kind add up to their mean
            prompts.append(replace(question.prompt, written=tuple(question.answer)))  # the model reads the answer too

        inputs = dict(self.processor.collate(prompts, padding_side="left"))
        kinds = [question.kind for question in questions]
        return {"inputs": inputs, "answers": answers, "weights": weights, "kinds": kinds}

    def preview(self, row: dict, read: dict) -> tuple[list[Fed], list[str]]:
        """The questions of a row, without decoding an image, and what is wrong with it: a rehearsal reads rows so.

        Args:
            row (`dict`): with the columns of [`~unime.data.schema.Example`].
            read (`dict`): the rows that were read before, to which this one is added.

        Returns:
            the questions, of the kinds yes, no and list; or none, and a message that names the row.
        """
        example = to_example(row)
        key = (example.query, example.positive)
        try:
            if key not in read:
                read[key] = self._sequences(example)
        except (ValueError, OSError) as error:
            return [], [f"a row of {example.dataset or 'a data set without a name'}: {error}"]

        # in training the answer is a part of the sequence
        fed = []
        for question in read[key]:
            prepared = replace(question.prompt, written=tuple(question.answer))
            fed.append(Fed(question.kind, (question.kind, key), prepared))
        return fed, []

    def _sequences(self, example: Example) -> list[Question]:
        """The sequences of a row that the objective has; without a negative there is only the first."""
        positive = example.positive.as_input()
        negatives = [negative.as_input() for negative in _hardest_first(example)]
        kinds = OBJECTIVES[self.args.objective]

        questions = []
        if "yes" in kinds:
            questions.append(self._question("yes", example, [positive], "Yes"))

        # the hardest negative comes first
        if "no" in kinds and negatives:
            questions.append(self._question("no", example, negatives[:1], "No"))
        if "list" in kinds and negatives:
            questions.append(self._list_question(example, positive, negatives))
        return questions

    def _list_question(self, example: Example, positive: dict, negatives: list[dict]) -> Question:
        """A list of the positive and some negatives, of which the positive's number is the answer."""
        # a generator for each row, so that a resumed run draws the same
        row = f"{_without_folder(example.query)}:{_without_folder(example.positive)}"
        generator = random.Random(f"{self.args.seed}:{row}")
        count = min(self.args.list_negatives, len(negatives))
        if self.args.vary_length:
            count = generator.randint(1, count)
        place = generator.random()  # of the positive, as a share of the list

        limit = self.args.max_length or self.processor.max_length
        while True:
            candidates = negatives[:count]
            index = int(place * (count + 1))
            candidates.insert(index, positive)
            question = self._question("list", example, candidates, f"{LISTWISE_ANSWER}{index + 1})")
            length = question.prompt.length
            if length + len(question.answer) <= limit:  # the model reads both
                return question

            # without its last negative it would not be a list
            if count == 1:
                raise ValueError(
                    f"{example.query}: a list of two candidates takes {length} tokens, above the limit of {limit}; "
                    "lower the resolution or raise `max_length`."
                )
            count -= 1

    def _question(self, kind: str, example: Example, candidates: list[dict], answer: str) -> Question:
        """A judge's question about candidates, with the answer that ends the turn."""
        query = example.query.as_input()
        max_length = self.args.max_length
        if kind == "list":
            question = self.processor.rerank_messages(query, candidates, "listwise")
            max_length = UNLIMITED  # the caller takes candidates from a list that is too long
        else:
            question = self.processor.question(query, *candidates)

        (prompt,) = self.processor.prepare(
            [question], max_length=max_length, names=[str(example.query)], resolution=self.args.resolution
        )
        return Question(kind, prompt, self.processor.answer_ids(answer))


def _key(example: Example) -> tuple:
    """What tells rows apart."""
    return example.query, example.positive, tuple(example.negatives)


def _without_folder(item: Item) -> int:
    """A hash of an item that stays the same when its image is moved to another folder."""
    return content_hash(f"{len(item.text)}:{item.text}{os.path.basename(item.image)}")


def _hardest_first(example: Example) -> list[Item]:
    """The negatives by their judge scores, each once, without copies of the positive, also under other names."""

    def sort_key(index: int) -> float:
        if index >= len(example.negative_scores):
            return 0.0  # without scores, the order of the row stays: sorting is stable
        return -example.negative_scores[index]

    # a copy of a picture under another name is the same candidate
    renamed = named_by_content([example.positive, *example.negatives])
    contents = {renamed[example.positive]}

    order = sorted(range(len(example.negatives)), key=sort_key)
    negatives = []
    for index in order:
        negative = example.negatives[index]
        if renamed[negative] not in contents:
            contents.add(renamed[negative])
            negatives.append(negative)
    return negatives


class RerankerTrainer(MeteredTrainer):
    """Trains a reranker on the sum of three means: "Yes" for positives, "No" for the hardest negatives, and the number
    of the positive in a list. Only the answer, with the token that ends the turn, is trained.

    A step runs its sequences in chunks of at most `batch_tokens` padded tokens, each forward and backward by itself:
    the loss is a sum over sequences, so that their gradients add up.

    Args:
        model (`UniMERerankerForCausalLM`, possibly wrapped by PEFT, or a name): the reranker.
        args (`RerankerConfig`), train_dataset, eval_dataset: as in `Trainer`; rows have the columns of
            [`~unime.data.schema.Example`].
        kwargs: as in [`~unime.trainers.metered_trainer.MeteredTrainer`].

    Example:

    ```python
    rows = read_judged("train_data_Qwen25VL_7B_scores.json", image_root="MMEB-train")
    reranker = UniMERerankerForCausalLM.from_backbone("Qwen/Qwen2.5-VL-7B-Instruct")
    RerankerTrainer(reranker, RerankerConfig(output_dir="out"), train_dataset=rows).train()
    ```
    """

    paper = "2510.13515"

    config_class = RerankerConfig
    reranks = True

    @classmethod
    def check_reading(cls, processor):
        """Refuses a preset whose answers are others than those that are trained: two words, and a number."""
        judging = processor.rules.judging
        if judging is not None and (judging.words is None or judging.lists is None or judging.lists.turn is not None):
            raise ValueError(
                f"the preset {processor.preset!r} is asked and scored in a way of its own, which this training (two "
                "answers, and the number of the best of a list) would undo; train with the preset of a plain VLM, "
                "`preset='summary'`."
            )

    @classmethod
    def made_trainable(cls, model, args, peft_config):
        """The model in its adapter, if it gets one."""
        return adapted(model, peft_config, args.seed)

    @classmethod
    def collator_for(cls, model, args, processor) -> RerankerCollator:
        """What makes batches of the rows."""
        return RerankerCollator(processor, args)

    @classmethod
    def shortages(cls, args, rows, batch_candidates) -> list[str]:
        """Data sets whose rows have fewer negatives than a list takes."""
        return rows.with_fewer_negatives(args.list_negatives, "list_negatives")

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Runs the chunks of a batch, each forward and backward, and returns the loss of the whole."""
        model.train()
        self.adopt_engine(model)
        for chunk in inputs["batch"]:
            self.count(items=len(chunk["kinds"]), tokens=int(chunk["inputs"]["attention_mask"].sum()))

        # the batch itself was counted: what follows may have chunks that only keep ranks in step
        chunks = self._chunks(inputs)
        total = 0.0
        for number, chunk in enumerate(chunks):
            last = number == len(chunks) - 1
            with self._reducing(model, last):
                with self.compute_loss_context_manager():
                    loss = self._chunk_loss(model, chunk, "train") / self.current_gradient_accumulation_steps
                self.backward(loss, last)
            total = total + loss.detach()

        # all ranks stop, or none
        finite = torch.isfinite(total).long()
        if dist.is_initialized():
            dist.all_reduce(finite, dist.ReduceOp.MIN)
        if not finite:
            raise ValueError(f"the loss is {total.item()} after step {self.state.global_step}.")
        return total

    def _reducing(self, model, last: bool):
        """A context for a chunk: under DDP, only the backward of the last one reduces the gradients."""
        if last or self.in_lockstep:
            return nullcontext()
        return self.accelerator.no_sync(model)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss of an evaluation batch; there are neither logits nor labels."""
        with torch.no_grad(), self.compute_loss_context_manager():
            total = 0.0
            for chunk in self._chunks(inputs):
                total = total + self._chunk_loss(model, chunk, "eval")
        return total, None, None

    def _chunks(self, inputs: dict) -> list[dict]:
        """The chunks to run: those of the batch, weighted over all ranks, and what only keeps ranks in step."""
        batch = inputs["batch"]
        bad_items = self.leave_out(inputs.get("bad_items", []))  # a collator of one's own may have none
        refuse_empty(self._weigh(batch), bad_items)

        def spare(with_image: bool) -> dict:
            inputs = self.spare_inputs(with_image, padding_side="left")
            answers = inputs["input_ids"][:, -1:]  # [1, 1]
            return {"inputs": inputs, "answers": answers, "weights": torch.zeros(1), "kinds": []}

        if not self.in_lockstep:
            return batch or [spare(with_image=False)]  # other ranks wait for a backward
        return in_lockstep(
            batch, has_images=lambda chunk: "pixel_values" in chunk["inputs"], spare=spare, device=self.args.device
        )

    def _weigh(self, batch: list[dict]) -> int:
        """Makes the weights those of means over all ranks, which may have other numbers of sequences each.

        Returns:
            `int`: how many sequences all ranks have.
        """
        kinds = list(chain.from_iterable(chunk["kinds"] for chunk in batch))
        if not dist.is_initialized():
            return len(kinds)

        counts = torch.tensor([kinds.count(kind) for kind in KINDS], device=self.args.device)
        totals = counts.clone()
        dist.all_reduce(totals)

        # DDP averages over ranks: where all have as many, nothing changes
        scales = dist.get_world_size() * counts / totals.clamp(min=1)
        scale_of = dict(zip(KINDS, scales.tolist()))
        for chunk in batch:
            chunk["weights"] = chunk["weights"] * torch.tensor([scale_of[kind] for kind in chunk["kinds"]])
        return int(totals.sum())

    def _chunk_loss(self, model, chunk: dict, mode: str) -> torch.Tensor:
        """The weighted cross-entropies of some sequences: each the mean over its answer's tokens."""
        device = self.args.device
        inputs = {key: value.to(device, non_blocking=True) for key, value in chunk["inputs"].items()}
        answers = chunk["answers"].to(device, non_blocking=True)  # [N, A]
        weights = chunk["weights"].to(device, non_blocking=True)  # [N]

        # the logits before each token of the answers; padding is on the left, so all answers end in the same place
        output = model(**inputs, use_cache=False, logits_to_keep=answers.shape[1] + 1)
        logits = output.logits[:, :-1].float()  # [N, A, V]
        losses = F.cross_entropy(logits.transpose(1, 2), answers, ignore_index=IGNORED, reduction="none")  # [N, A]
        is_answer = answers != IGNORED  # [N, A]
        sequence_losses = losses.sum(1) / is_answer.sum(1)  # [N]

        # an answer is right if each of its tokens is the likeliest
        correct = ((logits.argmax(-1) == answers) | ~is_answer).all(1)  # [N]
        for kind, loss, hit in zip(chunk["kinds"], sequence_losses.detach(), correct):
            self._metrics[mode][f"loss_{kind}"].append(loss)
            self._metrics[mode][f"accuracy_{kind}"].append(hit)
        return (weights * sequence_losses).sum()


def main(arguments=None):
    """The command of this stage."""
    run_command(RerankerTrainer, RerankerConfig, read_mined_rows, arguments, reranker=True)


if __name__ == "__main__":
    main()
