"""Temperatures that are learnt, one for each data set."""

import math

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..data.schema import content_hash
from .losses import positive_number

LOWEST = 0.01  # as in CLIP (2103.00020), whose logits are scaled by at most 100


class DatasetTemperatures(nn.Module):
    """A learnable temperature for each data set, in float64; never below 0.01, as in CLIP (2103.00020).

    The lowest temperature is a floor, not a trap: the gradient still passes there, and [`hold`] keeps the parameter
    from sinking further, so that a temperature rises again as soon as the loss asks for it.

    Args:
        names (`list[str]`): of the data sets; repeated ones count once.
        start (`float`): where all begin.

    Raises:
        ValueError: `start` is not above 0.

    Example:

    ```python
    temperatures = DatasetTemperatures(["MSCOCO", "VQA"], start=0.02)
    rows = temperatures(torch.tensor([content_hash("VQA"), content_hash("VQA"), content_hash("MSCOCO")]))  # [3]
    ```
    """

    def __init__(self, names: list[str], start: float):
        super().__init__()
        self.names = sorted(set(names))
        self.index = {content_hash(name): row for row, name in enumerate(self.names)}
        value = math.log(positive_number("temperature", start))
        self.log_temperature = nn.Parameter(torch.full((len(self.names),), value, dtype=torch.float64))

    def forward(self, datasets: torch.Tensor) -> torch.Tensor:
        """Temperatures of rows.

        Args:
            datasets (`LongTensor` `[B]`): hashes of the names of the rows' data sets.

        Returns:
            `FloatTensor` `[B]`, on the device of `datasets`.

        Raises:
            KeyError: a hash belongs to none of the data sets.
        """
        rows = torch.tensor([self.index[key] for key in datasets.tolist()])
        logs = self.log_temperature[rows]  # [B]

        # the floor is added as a constant: a clamp would have no gradient below it
        below = (logs.clamp(min=math.log(LOWEST)) - logs).detach()
        return (logs + below).exp().float().to(datasets.device)

    def hold(self):
        """Puts temperatures that an optimizer took below the lowest back to it."""
        with torch.no_grad():
            self.log_temperature.clamp_(min=math.log(LOWEST))

    def values(self) -> dict[str, float]:
        """The temperatures by the names under which they are logged."""
        temperatures = self.log_temperature.exp().clamp(min=LOWEST).tolist()
        return {f"temperature_{name}": value for name, value in zip(self.names, temperatures)}


class LearnTemperatures(TrainerCallback, ExportableState):
    """Steps the temperatures with the optimizer. They are not a part of the model; they and Adam's state travel in
    `trainer_state.json`. Every rank has their whole gradient, so nothing is reduced.

    Args:
        temperatures (`DatasetTemperatures`): the temperatures.
        learning_rate (`float`): Adam's.
    """

    def __init__(self, temperatures: DatasetTemperatures, learning_rate: float):
        self.temperatures = temperatures
        self.optimizer = torch.optim.Adam(temperatures.parameters(), lr=learning_rate)

    def on_train_begin(self, args, state, control, **kwargs):
        """Takes over the temperatures of the checkpoint where a run is resumed."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if not saved or not state.global_step:
            return

        attributes = saved["attributes"]
        with torch.no_grad():
            self.temperatures.log_temperature.copy_(torch.tensor(attributes["logs"], dtype=torch.float64))

        moments = {key: torch.tensor(value, dtype=torch.float64) for key, value in attributes["moments"].items()}
        moments["step"] = moments["step"].float()  # Adam's counter is of that type
        adam = self.optimizer.state_dict()
        adam["state"] = {0: moments}
        self.optimizer.load_state_dict(adam)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Steps them just before the optimizer steps the model."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.temperatures.hold()

    def state(self) -> dict:
        """What `Trainer` writes into `trainer_state.json`."""
        moments = self.optimizer.state_dict()["state"].get(0, {})
        attributes = {
            "logs": self.temperatures.log_temperature.tolist(),
            "moments": {key: value.tolist() for key, value in moments.items()},
        }
        return {"args": {}, "attributes": attributes}
