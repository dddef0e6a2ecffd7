"""The miniature judge: the backbone learns to say whether a candidate meets a query of the miniature world.

    python -m unime.miniature.judge --backbone outputs/backbone --out outputs/judge

An MLLM of billions of parameters judges without training; one of a few million has to be taught. The lessons begin
with single things and end with near misses. All candidates of a query are read in one sequence: each sees the query
and itself only, and stands where it would stand alone, so the answers are those of the judge's ordinary prompt.
"""

import argparse
import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, SequentialSampler
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..modeling_unime import UniMERerankerForCausalLM
from ..prompts_unime import POINTWISE
from .backbone import BackboneConfig, GenerativeTrainer, last_checkpoint
from .lessons import Lesson, make_lesson
from .sources import Digits

SINGLE, WHOLE = 0.15, 0.4  # share of the lessons up to which there are single things, and no near misses
SLOPE, HARDEST = 1.5, 2.2  # how the level grows with the share after that, and how far
DESCRIBE = 0.3  # weight of saying right texts word by word: without it, what the backbone can describe is forgotten


class Lessons(Dataset):
    """Lesson number `n` is a function of the seed and `n`, and grows harder with `n`."""

    def __init__(self, count: int, candidates: int, seed: int):
        self.count, self.candidates, self.seed, self.digits = count, candidates, seed, Digits()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Lesson:
        share = number / self.count
        level = 0.5 if share < SINGLE else 1.5 if share < WHOLE else min(2 + SLOPE * (share - WHOLE), HARDEST)
        return make_lesson(random.Random(f"{self.seed}:{number}"), self.digits, level, self.candidates)


class Packed:
    """Lessons -> one sequence each: the query's prompt up to where candidates differ, then every candidate's rest.

    Gives `input_ids` `[B, L]`, `attention_mask` `[B, 1, L, L]` (added to the attention's scores), `position_ids`
    `[3, B, L]`, `words` `[B, L]` (the next token of candidates that are right and have no image, else -100), `ends`
    (where each candidate's answer is due), `answers`, `images` (their pixels and grids), and `order`: which image
    stands at each place.
    """

    def __init__(self, model: UniMERerankerForCausalLM):
        self.processor, self.rope = model.processor, model.vlm.model.get_rope_index
        tokenizer = self.processor.tokenizer
        _, yes, no = POINTWISE["yes_no"]
        self.answers = [tokenizer(word)["input_ids"][0] for word in (no, yes)]

    def __call__(self, lessons: list[Lesson]) -> dict:
        images, sequences = {}, []
        for lesson in lessons:
            turns = [self.processor.rerank_messages(lesson.query, [item], "pointwise") for item in lesson.candidates]
            prepared = self.processor.prepare(turns)
            for entry in prepared:
                images.update((id(image), image) for image in entry.images)
            sequences.append(prepared)
        places = {key: place for place, key in enumerate(images)}
        pixels = self.processor.image_processor(list(images.values()), return_tensors="pt") if images else {}
        rows = [self._row(lesson, prepared, places, pixels) for lesson, prepared in zip(lessons, sequences)]
        width = max(len(row["ids"]) for row in rows)
        return {
            "input_ids": torch.stack([F.pad(row["ids"], (0, width - len(row["ids"]))) for row in rows]),
            "attention_mask": torch.stack([_padded(row["mask"], width) for row in rows])[:, None],
            "position_ids": torch.stack(
                [F.pad(row["positions"], (0, width - len(row["ids"]))) for row in rows], dim=1
            ),
            "words": torch.stack([F.pad(row["words"], (0, width - len(row["ids"])), value=-100) for row in rows]),
            "ends": torch.tensor([(number, end) for number, row in enumerate(rows) for end in row["ends"]]),
            "answers": torch.tensor([self.answers[right] for lesson in lessons for right in lesson.right]),
            "images": dict(pixels),
            "order": [place for row in rows for place in row["order"]],
        }

    def _row(self, lesson, prepared, places, pixels) -> dict:
        """One lesson: ids `[l]`, mask `[l, l]`, positions `[3, l]`, words `[l]`, ends, and the images in order."""
        grids = pixels.get("image_grid_thw")
        whole = []  # the whole prompt of each candidate: ids and positions
        for entry in prepared:
            counts = iter(entry.image_tokens)
            image = self.processor.image_token_id
            repeats = [next(counts) if token == image else 1 for token in entry.input_ids]
            ids = torch.repeat_interleave(torch.tensor(entry.input_ids), torch.tensor(repeats))
            own = [places[id(picture)] for picture in entry.images]
            positions, _ = self.rope(
                input_ids=ids[None],
                mm_token_type_ids=(ids == image).int()[None],
                attention_mask=torch.ones_like(ids)[None],
                image_grid_thw=grids[own] if own else None,
            )
            whole.append((ids, positions[:, 0], own))
        shared = _common([ids.tolist() for ids, *_ in whole])
        seen = len(set.intersection(*(set(own) for *_, own in whole)))  # the query's image
        if len(whole[0][2]) > seen:  # a candidate's image looks like any other until it is filled in
            starts = torch.nonzero(whole[0][0] == self.processor.image_token_id)[:, 0]
            shared = min(shared, int(starts[sum(prepared[0].image_tokens[:seen])]))
        ids, positions, ends, order = [whole[0][0][:shared]], [whole[0][1][:, :shared]], [], whole[0][2][:seen]
        spans, words = [shared], [torch.full((shared,), -100)]
        for (own_ids, own_positions, own), right in zip(whole, lesson.right):
            ids.append(own_ids[shared:])
            said = own_ids[shared + 1 :] if right and len(own) == seen else torch.full((len(ids[-1]) - 1,), -100)
            words.append(F.pad(said, (0, 1), value=-100))
            positions.append(own_positions[:, shared:])
            order = order + own[seen:]
            spans.append(len(own_ids) - shared)
            ends.append(sum(spans) - 1)
        owner = torch.repeat_interleave(torch.arange(len(spans)), torch.tensor(spans))  # [l]
        sees = (owner[:, None] == owner[None]) | (owner[None] == 0)
        mask = torch.where(sees.tril(), 0.0, torch.finfo(torch.float32).min)
        return {
            "ids": torch.cat(ids),
            "mask": mask,
            "positions": torch.cat(positions, 1),
            "words": torch.cat(words),
            "ends": ends,
            "order": order,
        }


def _common(rows: list[list[int]]) -> int:
    """How many ids all rows begin with, at least one less than the shortest has."""
    least = min(map(len, rows)) - 1
    return next((place for place in range(least) if len({row[place] for row in rows}) > 1), least)


def _padded(mask: torch.Tensor, width: int) -> torch.Tensor:
    """A mask `[width, width]`; padding sees the first token, so that its softmax is defined."""
    added = width - len(mask)
    mask = F.pad(mask, (0, added, 0, added), value=torch.finfo(torch.float32).min)
    mask[:, 0] = 0.0
    return mask


class JudgeTrainer(GenerativeTrainer):
    """Cross-entropy of the first token of each candidate's answer; in training, that of right texts beside it."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        vlm = self.accelerator.unwrap_model(model).vlm
        images, order = inputs["images"], inputs["order"]
        seen = {}
        if order:
            features = vlm.get_image_features(**images, return_dict=True).pooler_output
            joined = BaseModelOutputWithPooling(pooler_output=[features[place] for place in order])
            joined.deepstack_features = []
            seen["mm_encoder_outputs"] = {"image": joined}
        hidden = vlm.model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            position_ids=inputs["position_ids"],
            use_cache=False,
            **seen,
        ).last_hidden_state  # [B, L, H]
        row, end = inputs["ends"].T
        loss = F.cross_entropy(vlm.lm_head(hidden[row, end]).float(), inputs["answers"])
        said = inputs["words"] != -100
        if model.training and said.any():
            loss = loss + DESCRIBE * F.cross_entropy(vlm.lm_head(hidden[said]).float(), inputs["words"][said])
        return loss


@dataclass
class JudgeConfig(BackboneConfig):
    """`TrainingArguments` with the defaults of the miniature judge."""

    output_dir: str | None = field(default="outputs/judge", metadata={"help": "Where the checkpoint goes."})
    per_device_train_batch_size: int = field(default=12, metadata={"help": "Lessons a step."})
    candidates: int = field(default=8, metadata={"help": "Candidates of a lesson."})
    max_steps: int = field(default=3600, metadata={"help": "Steps."})
    warmup_steps: float = field(default=50, metadata={"help": "Warm-up steps."})


def train_judge(backbone, args: JudgeConfig) -> Path:
    """Trains a judge from the miniature backbone, going on where it was interrupted; a stock checkpoint comes out."""
    out = Path(args.output_dir)
    model = UniMERerankerForCausalLM.from_backbone(backbone)
    model.vlm.set_attn_implementation({"text_config": "eager", "vision_config": model.vision_attention})
    lessons = Lessons(args.max_steps * args.per_device_train_batch_size, args.candidates, args.seed)
    trainer = JudgeTrainer(model=model, args=args, train_dataset=lessons, data_collator=Packed(model))
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    model.processor.image_processor.save_pretrained(out)
    model.processor.tokenizer.save_pretrained(out)
    model.vlm.save_pretrained(out)
    return out


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, default=Path("outputs/backbone"))
    parser.add_argument("--out", type=Path, default=Path("outputs/judge"))
    parser.add_argument("--steps", type=int, default=JudgeConfig.max_steps)
    options = parser.parse_args(arguments)
    print(train_judge(options.backbone, JudgeConfig(output_dir=str(options.out), max_steps=options.steps)))


if __name__ == "__main__":
    main()
