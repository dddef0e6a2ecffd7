"""A training as one line that a person reads: a bar on a terminal while it runs, and nothing elsewhere."""

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback


class TrainingBar(TrainerCallback):
    """A bar with the steps and the loss of a training, which is gone when the training ends.

    Args:
        title (`str`): what is trained.

    Attributes:
        steps (`int`): that the training has taken, those before it was interrupted included.
        loss (`float`, *optional*): the last that was logged; None before that.

    Example:

    ```python
    bar = TrainingBar("Training the embedder")
    bar.attach(trainer)
    trainer.train()
    print(f"{bar.steps} steps, loss {bar.loss:.3f}")
    ```
    """

    def __init__(self, title: str):
        self.title = title
        self.steps = 0
        self.loss = None
        self.bar = None

    def attach(self, trainer: Trainer):
        """Shows the progress of a trainer in place of the trainer's own bar and log lines."""
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(self)

    def on_train_begin(self, args, state, control, **kwargs):
        """Opens the bar where the training goes on."""
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.title,
            unit="step",
            leave=False,
            disable=None if state.is_world_process_zero else True,  # None: unless there is a terminal
        )

    def on_step_end(self, args, state, control, **kwargs):
        """Moves the bar."""
        self.steps = state.global_step
        self.bar.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Shows the loss beside the bar."""
        if "loss" in (logs or {}):
            self.loss = float(logs["loss"])
            self.bar.set_postfix(loss=f"{self.loss:.3f}")

    def on_train_end(self, args, state, control, **kwargs):
        """Takes the bar away."""
        self.bar.close()
