"""Signs that a training does not go as its user wants, each said once, with what to do about it.

They go to stderr, a line each; `--quiet` leaves them out. docs/troubleshooting.md lists them all.
"""

import math
from statistics import fmean

from transformers import TrainerCallback

from ..jobs.notices import notice
from .row_counts import RowCounts

FEW_ROWS = 8  # in a batch, below which a query meets few answers of others
FEW_LABELS = 4  # rows of a batch for each distinct answer, from which most rows share theirs
ONE_ANSWER = 0.9  # share of a data set's rows with the same answer
ENDED = 1e-4  # of the loss, below which nothing is learnt any more
EXPLODED = 3.0  # times the first loss
LEARNT_LITTLE = 0.9  # of the first loss at the end
WINDOW = 3  # log entries that agree
KNOWS_ITS_ROWS = 0.5  # precision@1 on rows of the training, from which a model has learnt them
GAP = 0.3  # of precision@1 between these and held-out rows, from which it has learnt them by heart


def symptoms_of_rows(counts: RowCounts, batch: int, temperature: float | None, homogeneous: bool = True) -> list[str]:
    """What is wrong with rows and batches before the training begins.

    Args:
        counts ([`~unime.trainers.row_counts.RowCounts`]): of the rows.
        batch (`int`): rows of one batch of all processes.
        temperature (`float`, *optional*): of a contrastive loss; None where answers of other rows are not used.
        homogeneous (`bool`, defaults to `True`): whether all rows of a batch are of one data set.

    Returns:
        `list[str]`: a line each.
    """
    lines = []
    for row in counts.data_sets:
        name = row["data set"]
        share = row["commonest"] / row["rows"]
        if share >= ONE_ANSWER and row["rows"] > 1:
            lines.append(
                f"{name}: {share:.0%} of the rows have the same positive, so that there is little to tell apart; are "
                "`query` and `positive` the right columns (unime data check)?"
            )
        elif homogeneous and temperature is not None and row["candidates"] * FEW_LABELS <= min(batch, row["rows"]):
            lines.append(
                f"{name}: {row['candidates']} distinct positives in batches of {batch} rows: they are labels, and a "
                "query meets no more than these; a smaller batch learns as much, and other data sets in the batch add "
                "answers (homogeneous_batches: false)."
            )

    # few answers are soon told apart
    if temperature is not None and batch < FEW_ROWS:
        lines.append(
            f"a batch has {batch} rows, so that a query meets {batch - 1} answers of others, soon told apart at "
            f"temperature {temperature:g}; raise per_device_train_batch_size (batch_tokens bounds the memory), or "
            "add mined negatives (unime mine)."
        )
    return lines


def fit_symptoms(training: float, held_out: float) -> list[str]:
    """What the precision@1 of rows that were trained on says beside that of held-out ones.

    Args:
        training (`float`): of a sample of the rows that were trained on.
        held_out (`float`): of as many rows that were not.
    """
    figures = f"precision@1 is {training:.3f} on a sample of the training rows and {held_out:.3f} on held-out rows"
    if training < KNOWS_ITS_ROWS:
        return [
            f"{figures}: the model has not learnt its own rows yet (underfitting); train for longer, raise "
            "learning_rate, or start from a better model."
        ]
    if training - held_out > GAP:
        return [
            f"{figures}: it knows its rows by heart (overfitting); stop earlier (--early_stopping), take more rows, "
            "or train less of the model (--use_peft)."
        ]
    return []


class Symptoms(TrainerCallback):
    """Watches the loss of a training.

    Args:
        lines (`list[str]`): to say at its beginning, from [`symptoms_of_rows`].
    """

    def __init__(self, lines: list[str]):
        self.lines = lines
        self.losses: list[float] = []
        self.said: set[str] = set()

    def on_train_begin(self, args, state, control, **kwargs):
        """Says what is known beforehand."""
        for line in self.lines:
            self._say(state, line, line)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Looks at the last losses."""
        if "loss" not in (logs or {}):
            return
        self.losses.append(float(logs["loss"]))
        first, last = self.losses[0], self.losses[-WINDOW:]

        # what a single entry shows may be chance
        if len(self.losses) < WINDOW:
            return
        if all(loss < ENDED for loss in last):
            self._say(
                state,
                "ended",
                "the loss is 0: the batches are told apart already; take more rows a batch or mined negatives (unime "
                "mine), and look whether queries give their answers away (unime data check).",
            )
        elif len(self.losses) > WINDOW and all(not loss < EXPLODED * max(first, ENDED) for loss in last):
            self._say(
                state,
                "exploded",
                f"the loss went from {first:.3g} to {last[-1]:.3g}; lower learning_rate (it is "
                f"{args.learning_rate:g}), or warm up for longer (warmup_steps).",
            )

    def on_train_end(self, args, state, control, **kwargs):
        """Looks at the whole training, and at its last measurement."""
        if len(self.losses) >= 2 * WINDOW:
            first, last = fmean(self.losses[:WINDOW]), fmean(self.losses[-WINDOW:])
            if math.isfinite(last) and LEARNT_LITTLE * first < last < EXPLODED * first:
                self._say(
                    state,
                    "learnt little",
                    f"the loss only went from {first:.3g} to {last:.3g}: train for longer (num_train_epochs), raise "
                    f"learning_rate (it is {args.learning_rate:g}), or start from a better model.",
                )

    def _say(self, state, kind: str, line: str):
        """A line, once for each kind, by one process."""
        if kind not in self.said and state.is_world_process_zero:
            notice(f"unime train: {line}")
        self.said.add(kind)
