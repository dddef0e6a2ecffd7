"""What a run of several steps says: one line a step, with what it does, what came of it and how long it took."""

import sys
import time
from contextlib import contextmanager
from pathlib import Path

from ..files.writing import has_json, read_json, write_json


class Step:
    """One step of a run.

    Args:
        title (`str`): what it does.

    Attributes:
        result (`str`): what came of it; the body of the step says so.
    """

    def __init__(self, title: str):
        self.title = title
        self.result = "done before"


class Progress:
    """Prints a line for each step, and notes the seconds of each in a file, so that a resumed run reports the whole.

    Args:
        path (`Path`): of the file.

    Example:

    ```python
    progress = Progress(folder / "seconds.json")
    with progress.step("Draw the world") as step:
        world = build(folder / "world")
        step.result = "18 tasks"
    # Draw the world: 18 tasks, 29 s
    ```
    """

    def __init__(self, path: Path):
        self.path = path
        self.seconds = read_json(path) if has_json(path) else {}

    @property
    def total(self) -> float:
        """Seconds of all steps so far."""
        return sum(self.seconds.values())

    @contextmanager
    def step(self, title: str):
        """The title is printed when the step begins, the rest of its line when it ends.

        Its seconds count also where it is interrupted.
        """
        print(title, end="", flush=True)
        step = Step(title)
        start = time.perf_counter()
        try:
            yield step
        finally:
            seconds = self.seconds.get(title, 0) + time.perf_counter() - start
            self.seconds[title] = round(seconds, 1)
            write_json(self.path, self.seconds)

        # on a terminal a bar may have been drawn over the title
        again = f"\r{title}" if sys.stdout.isatty() else ""
        print(f"{again}: {step.result}, {seconds:.0f} s", flush=True)
