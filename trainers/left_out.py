"""What a training could not read: noted on its way, reported at its end."""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..data.sieve import BadItem
from ..files.writing import write_text

BAD_ITEMS = "bad_items.json"  # in the output folder
HOPELESS = 16  # if so many items of a step cannot be read and no row is left, the fault is not in the items


def refuse_empty(rows: int, bad_items: list[BadItem]):
    """Stops a training of which a whole step cannot be read: a disk that is gone, or a model of another kind.

    Args:
        rows (`int`): of the step, on all ranks, that could be read.
        bad_items (`list[BadItem]`): of the step, on all ranks.

    Raises:
        ValueError: there is no row, and many items are bad.
    """
    if rows == 0 and len(bad_items) >= HOPELESS:
        first = bad_items[0]
        raise ValueError(
            f"no row of a step can be read; the first of {len(bad_items)} bad items is {first.item}: {first.reason}"
        )


class LeftOut(TrainerCallback, ExportableState):
    """The items that could not be read, with the reasons; they travel in `trainer_state.json`, for runs that go on."""

    def __init__(self):
        self.reasons: dict[str, str] = {}

    def note(self, bad_items: Iterable[BadItem]):
        """Adds items; each counts once."""
        for item, reason in bad_items:
            self.reasons.setdefault(item, reason)

    def on_train_begin(self, args, state, control, **kwargs):
        """Takes over those that the run had met before it was interrupted."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if saved and state.global_step:  # a run that starts anew has met none
            self.note(saved["attributes"]["reasons"].items())

    def state(self) -> dict:
        """What `Trainer` writes into `trainer_state.json`."""
        return {"args": {}, "attributes": {"reasons": dict(self.reasons)}}

    def report(self, path: Path):
        """Says what was left out, and lists all of it in a file."""
        listed = [{"item": item, "reason": reason} for item, reason in self.reasons.items()]
        write_text(path, json.dumps(listed, indent=1, ensure_ascii=False))

        # the warning names one: there may be thousands
        first = listed[0]
        warnings.warn(
            f"{len(listed)} items could not be read and were left out, see {path}; the first: {first['item']}: "
            f"{first['reason']}",
            stacklevel=2,
        )
