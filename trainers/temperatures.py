"""Temperatures that are learnt, one for each data set."""

import math

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..data.schema import content_hash
from .losses import (
    positive_number,
)


class DatasetTemperatures(nn.Module):
    """A learnable temperature for each data set, in float64; kept above 0.01, as CLIP (2103.00020) does.

    Args:
        names (`list[str]`): of the data sets.
        start (`float`): where all begin.
    """

    def __init__(self, names: list[str], start: float):
        super().__init__()
        self.names = sorted(set(names))
        self.index = {content_hash(name): row for row, name in enumerate(self.names)}
        value = math.log(positive_number("temperature", start))
        self.log_temperature = nn.Parameter(torch.full((len(self.names),), value, dtype=torch.float64))

    def forward(self, datasets: torch.Tensor) -> torch.Tensor:
        """Temperatures `[B]` of rows, from the hashes `[B]` of the names of their data sets."""
        rows = torch.tensor([self.index[key] for key in datasets.tolist()])
        return self.log_temperature[rows].exp().clamp(min=0.01).float().to(datasets.device)

    def values(self) -> dict[str, float]:
        """The temperatures by the names under which they are logged."""
        found = self.log_temperature.exp().clamp(min=0.01).tolist()
        return {f"temperature_{name}": value for name, value in zip(self.names, found)}


class LearnTemperatures(TrainerCallback, ExportableState):
    """Steps the temperatures with the optimizer. They are no part of the model; they and Adam's state travel in
    `trainer_state.json`. Every rank has their whole gradient, so nothing is reduced."""

    def __init__(self, temperatures: DatasetTemperatures, learning_rate: float):
        self.temperatures = temperatures
        self.optimizer = torch.optim.Adam(temperatures.parameters(), lr=learning_rate)

    def on_train_begin(self, args, state, control, **kwargs):
        if (saved := state.stateful_callbacks.get(type(self).__name__)) and state.global_step:
            found = saved["attributes"]
            with torch.no_grad():
                self.temperatures.log_temperature.copy_(torch.tensor(found["logs"], dtype=torch.float64))
            moments = {key: torch.tensor(value, dtype=torch.float64) for key, value in found["moments"].items()}
            moments["step"] = moments["step"].float()
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": {0: moments} if moments else {}})

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict:
        moments = self.optimizer.state_dict()["state"].get(0, {})
        found = {"logs": self.temperatures.log_temperature.tolist()}
        found["moments"] = {key: value.tolist() for key, value in moments.items()}
        return {"args": {}, "attributes": found}
