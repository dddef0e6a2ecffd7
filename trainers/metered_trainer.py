"""What all stages share: metrics averaged into the logs, and schedules whose decay is a share of all steps."""

from collections import defaultdict

from transformers import Trainer, TrainingArguments, set_seed


class MeteredTrainer(Trainer):
    """A `Trainer` whose subclasses append to `self._metrics["train" | "eval"][name]`; logs show the means."""

    loss_is_scaled_for_ga = False  # the loss is a mean over one batch; Trainer divides by the accumulation steps

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.can_return_loss, self.label_names = True, []
        self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}

    def log(self, logs: dict, start_time: float | None = None):
        measured = next((key for key in logs if key.endswith("_runtime") and key != "train_runtime"), None)
        mode, prefix = ("eval", measured.removesuffix("runtime")) if measured else ("train", "")
        for name, values in self._metrics[mode].items():
            logs[prefix + name] = sum(values) / len(values)
        self._metrics[mode].clear()
        super().log(logs, start_time)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        resolve_decay(self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)


def adapted(model, peft_config, seed: int):
    """The model in an adapter, whose random start belongs to the seed; the model itself without a configuration."""
    if peft_config is None:
        return model
    from peft import get_peft_model

    set_seed(seed)
    return get_peft_model(model, peft_config)


def resolve_decay(args: TrainingArguments, steps: int):
    """Reads `num_decay_steps` below 1 as a share of all steps (as `warmup_steps` is); refuses what does not fit."""
    decay = (args.lr_scheduler_kwargs or {}).get("num_decay_steps")
    if decay is None:
        return
    if 0 < decay < 1:
        decay = int(decay * steps)
        args.lr_scheduler_kwargs = {**args.lr_scheduler_kwargs, "num_decay_steps": decay}
    if args.get_warmup_steps(steps) + decay > steps:
        raise ValueError(f"warm-up and {decay} decay steps do not fit into {steps} steps.")
