"""The miniature judge: the backbone learns to say whether a candidate meets a query of the miniature world.

    python -m unime.miniature.judge --backbone outputs/backbone --out outputs/judge

An MLLM of billions of parameters judges without training; one of a few million has to be taught. The lessons begin
with captions that are false in one word, go on with single things, and end with near misses of all tasks.
"""

import argparse
import random
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, SequentialSampler
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..jobs.notices import silence_alarms
from ..modeling_unime import UniMERerankerForCausalLM
from .backbone import IGNORED, BackboneConfig, BackboneTrainer, train_and_save
from .lessons import Lesson, make_lesson, make_list
from .packing import LONGEST_LIST, Packed
from .sources import Digits

COMPARE_UNTIL = 0.15  # share of the lessons up to which only captions are compared with pictures
SINGLE_UNTIL = 0.25  # and up to which there are single things
NEAR_FROM = 0.4  # share of the lessons from which there are near misses
SLOPE = 2.5  # how the level grows with the share after that
HARDEST = 2.9  # and how far
LISTS = 0.25  # share of lessons that are lists, once there are whole scenes
LONG = 0.18  # share of batches with captions of several sentences: among short ones these would mostly see padding
DESCRIBE = 0.3  # weight of saying right texts word by word: without it, what the backbone can describe is forgotten
SO_FAR = 1.0  # weight of saying at each token of a text whether it is right so far: an error is told where it stands


class Lessons(Dataset):
    """Lesson number `n` is a function of the seed and `n`, and grows harder with `n`.

    Args:
        count (`int`): number of lessons.
        candidates (`int`): of each lesson, but for captions, which are short: these are twice as many.
        seed (`int`): everything random follows from it.
        batch (`int`): lessons of a batch, which are about short captions or about long ones.
    """

    def __init__(self, count: int, candidates: int, seed: int, batch: int):
        self.count = count
        self.candidates = candidates
        self.seed = seed
        self.batch = batch
        self.digits = Digits()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Lesson:
        rng = random.Random(f"{self.seed}:{number}")
        level = self._level(number)
        long = random.Random(f"{self.seed}:batch:{number // self.batch}").random() < LONG
        if level > 1 and rng.random() < LISTS:
            return make_list(rng, self.digits, level, rng.randint(2, LONGEST_LIST), long)
        return make_lesson(rng, self.digits, level, self.candidates, long)

    def _level(self, number: int) -> float:
        """How hard a lesson is, as [`~unime.miniature.lessons.make_lesson`] takes it."""
        share = number / self.count
        if share < COMPARE_UNTIL:
            return 0.0
        if share < SINGLE_UNTIL:
            return 0.5
        if share < NEAR_FROM:
            return 1.5
        return min(2 + SLOPE * (share - NEAR_FROM), HARDEST)


class JudgeTrainer(BackboneTrainer):
    """Cross-entropy of the first token of each answer; in training, that of right texts beside it."""

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        vlm = self.accelerator.unwrap_model(model).vlm

        # each image runs through the tower once, and its features go wherever it stands
        encoder_outputs = {}
        if inputs["order"]:
            features = vlm.get_image_features(**inputs["images"], return_dict=True).pooler_output
            joined = BaseModelOutputWithPooling(pooler_output=[features[place] for place in inputs["order"]])
            joined.deepstack_features = []
            encoder_outputs["mm_encoder_outputs"] = {"image": joined}

        output = vlm.model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            position_ids=inputs["position_ids"],
            use_cache=False,
            output_hidden_states=True,
            **encoder_outputs,
        )
        hidden = output.last_hidden_state  # [B, L, H]

        row, end = inputs["ends"].T
        logits = vlm.lm_head(hidden[row, end])  # [C, V]
        losses = F.cross_entropy(logits.float(), inputs["answers"], reduction="none")  # [C]
        loss = (losses * inputs["weights"]).sum()

        # below the added layers, which compare what is expected there with what is written
        described = inputs["words"] != IGNORED  # [B, L]
        if model.training and described.any():
            layers = vlm.config.text_config.num_hidden_layers - self.args.added_layers
            expecting = vlm.model.language_model.norm(output.hidden_states[layers][described])  # [W, H]
            logits = vlm.lm_head(expecting)  # [W, V]
            loss = loss + DESCRIBE * F.cross_entropy(logits.float(), inputs["words"][described])

        # of all words only No and Yes, in this order, are compared, so that what comes next is not disturbed
        decided = inputs["so_far"] != IGNORED  # [B, L]
        if model.training and decided.any():
            logits = hidden[decided] @ vlm.lm_head.weight[inputs["verdicts"]].T  # [T, 2]
            loss = loss + SO_FAR * F.cross_entropy(logits.float(), inputs["so_far"][decided])
        return loss


@dataclass
class JudgeConfig(BackboneConfig):
    """`TrainingArguments` with the defaults of the miniature judge."""

    output_dir: str | None = field(default="outputs/judge", metadata={"help": "Where the checkpoint goes."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    per_device_train_batch_size: int = field(default=12, metadata={"help": "Lessons a step."})
    candidates: int = field(default=8, metadata={"help": "Candidates of a lesson."})
    added_layers: int = field(default=2, metadata={"help": "Layers on top of the backbone's, one at least."})
    max_steps: int = field(default=3600, metadata={"help": "Steps."})
    warmup_steps: float = field(default=50, metadata={"help": "Warm-up steps."})


def add_layers(model: UniMERerankerForCausalLM, count: int):
    """Puts layers on top that change nothing at first: copies of the last one whose outputs are zero.

    The backbone's last layer knows which word is next in a true text. Whether that is what the text says, and what
    follows for the answer, takes layers above it.

    Raises:
        ValueError: there are to be none; texts are described below the first of them.
    """
    if count < 1:
        raise ValueError(f"a judge has at least one layer above its backbone's, got added_layers {count}.")

    text_config = model.vlm.config.text_config
    layers = model.vlm.model.language_model.layers
    for _ in range(count):
        layer = deepcopy(layers[-1])
        layer.self_attn.layer_idx = len(layers)
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
        layers.append(layer)
        text_config.layer_types = [*text_config.layer_types, text_config.layer_types[-1]]
    text_config.num_hidden_layers = len(layers)


def train_judge(backbone, args: JudgeConfig) -> Path:
    """Trains a judge from the miniature backbone, going on where it was interrupted.

    Args:
        backbone (`str` or `Path`): written by [`~unime.miniature.backbone.pretrain`].
        args ([`JudgeConfig`]): settings of the training; the judge goes to its `output_dir`.

    Returns:
        `Path`: the folder with a stock checkpoint; `model.safetensors` is written last.

    Example:

    ```python
    train_judge("outputs/backbone", JudgeConfig(output_dir="outputs/judge", max_steps=600))
    ```
    """
    model = UniMERerankerForCausalLM.from_backbone(backbone)
    add_layers(model, args.added_layers)
    batch = args.per_device_train_batch_size
    lessons = Lessons(args.max_steps * batch, args.candidates, args.seed, batch)
    trainer = JudgeTrainer(model=model, args=args, train_dataset=lessons, data_collator=Packed(model))
    train_and_save(trainer, model.processor)
    return Path(args.output_dir)


def main(arguments=None):
    """The command `python -m unime.miniature.judge`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, default=Path("outputs/backbone"))
    parser.add_argument("--out", type=Path, default=Path("outputs/judge"))
    parser.add_argument("--steps", type=int, default=JudgeConfig.max_steps)
    options = parser.parse_args(arguments)
    silence_alarms()
    print(train_judge(options.backbone, JudgeConfig(output_dir=str(options.out), max_steps=options.steps)))


if __name__ == "__main__":
    main()
