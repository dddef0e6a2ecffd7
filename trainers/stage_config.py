"""What every stage takes: batches, lengths, the optimizer, and what to do with items that cannot be read."""

import os
import warnings
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from ..devices_unime import fast_bfloat16
from ..prompts_unime import one_of

SAVE_SHARE = 0.1  # of all steps, after which a checkpoint is saved: a short run reaches it, too


@dataclass
class StageConfig(TrainingArguments):
    """Arguments of every stage, beside those of `TrainingArguments`.

    `remove_unused_columns` is always off, and these defaults differ from those of `TrainingArguments`: `learning_rate`
    1e-4, `logging_steps` 10, `warmup_steps` 0.1 (a share), `save_steps` 0.1 (a share), `save_total_limit` 2, `bf16`
    where it is faster, `ddp_find_unused_parameters` on (a chunk without images leaves the vision tower idle).

    Args:
        batch_tokens (`int`, defaults to 8192): most padded tokens of one chunk, which bound the memory of a step.
        max_length (`int`, *optional*): cut texts so that items have at most that many tokens.
        resolution (`str`, *optional*): resolution policy of training images; the processor's by default.
        query_instruction (`str`, *optional*): instruction of queries that come without one, in training and, as it is
            saved with the model, in use; the model's by default, `""` for none.
        homogeneous_batches (`bool`, defaults to `True`): fill each batch from one data set.
        bad_items (`str`, defaults to `"leave_out"`): what to do with items that cannot be read: `"leave_out"` goes on
            without them and lists them at the end, `"stop"` stops all ranks at the first.
        muon (`bool`, defaults to `False`): train the matrices inside the layers with Muon and the rest with AdamW; see
            [`~unime.trainers.muon.MuonWithAdamW`].
        token_budget (`int`, *optional*): the earlier name of `batch_tokens`; deprecated.
    """

    learning_rate: float = field(default=1e-4, metadata={"help": "Initial learning rate."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps, or a share of all steps if below 1."})
    ddp_find_unused_parameters: bool | None = field(default=True, metadata={"help": "See torch's DDP."})
    batch_tokens: int = field(
        default=8192, metadata={"help": "Most padded tokens of one chunk: bounds the memory of a step."}
    )
    token_budget: int | None = field(default=None, metadata={"help": "Earlier name of batch_tokens."})
    max_length: int | None = field(
        default=None, metadata={"help": "Cut texts so that items have at most that many tokens."}
    )
    resolution: str | None = field(
        default=None, metadata={"help": "Resolution policy of training images; the processor's by default."}
    )
    query_instruction: str | None = field(
        default=None,
        metadata={"help": "Put before queries that come without an instruction, and saved with the model."},
    )
    homogeneous_batches: bool = field(default=True, metadata={"help": "Fill each batch from one data set."})
    bad_items: str = field(
        default="leave_out",
        metadata={"help": "Items that cannot be read: leave_out (and list them at the end), or stop."},
    )
    muon: bool = field(
        default=False,
        metadata={"help": "Muon for the matrices inside the layers, AdamW for the rest: for models that start small."},
    )
    save_steps: float = field(
        default=SAVE_SHARE, metadata={"help": "Save every so many steps, or every such share of all steps if below 1."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints are kept."})
    bf16: bool | None = field(
        default=None, metadata={"help": "bfloat16 mixed precision; by default where it is faster."}
    )
    dataloader_pin_memory: bool = field(default_factory=torch.cuda.is_available, metadata={"help": "Pin host memory."})

    def __post_init__(self):
        if self.token_budget is not None:
            warnings.warn("`token_budget` is now called `batch_tokens`.", FutureWarning, stacklevel=3)
            self.batch_tokens = self.token_budget
            self.token_budget = None  # a saved and read configuration does not warn again

        one_of("bad_items", self.bad_items, "leave_out", "stop")
        launched_by_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
        if self.muon and (self.deepspeed is not None or launched_by_deepspeed):
            raise ValueError("muon does not go with DeepSpeed, which shares out what Muon must see whole.")
        self._check_sampling()
        self.remove_unused_columns = False  # a row is a nested example, not arguments of the model
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 is None:
            self.bf16 = fast_bf16() and not self.fp16
        self._keep_the_best()

        # it checks what is set above
        super().__post_init__()

    def _keep_the_best(self):
        """Lets the best model be found: it is saved whenever it is measured, and its measure has one spelling."""
        if self.load_best_model_at_end and self.eval_strategy == "steps" and self.save_steps == SAVE_SHARE:
            self.save_steps = self.eval_steps or self.logging_steps

        # the logs' spelling, eval/NAME/precision@1, is eval_NAME/precision@1 where transformers looks
        if self.metric_for_best_model and self.metric_for_best_model.startswith("eval/"):
            self.metric_for_best_model = self.metric_for_best_model.removeprefix("eval/")

    def _check_sampling(self):
        """Refuses orders of rows that are not ours to give.

        Raises:
            ValueError: rows are to be grouped by length, or to come in their order and by data set.
        """
        strategy = self.train_sampling_strategy
        if strategy not in ("random", "sequential"):
            raise ValueError(
                f"train_sampling_strategy {strategy!r} does not apply to rows of several items; items of about equal "
                "length already share a forward pass (batch_tokens)."
            )
        if strategy == "sequential" and self.homogeneous_batches:
            raise ValueError("train_sampling_strategy 'sequential' needs homogeneous_batches: false.")


def fast_bf16() -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones here: on a recent GPU, and on some CPUs."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return fast_bfloat16()
