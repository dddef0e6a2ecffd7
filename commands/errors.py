"""How a command ends when its user made a mistake: with one line, and no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..jobs.faults import one_line_disk_faults


@contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Ends the program with one line on stderr, and status 1, where what runs inside cannot go on.

    `ValueError` is what our own checks raise, `OSError` what files and networks raise; any other error is a defect of
    the program, and keeps its traceback.

    Args:
        program (`str`): the command, which the line begins with: `"unime search"`.

    Raises:
        SystemExit: in the place of `ValueError` and `OSError`.

    Example:

    ```python
    with one_line_errors("unime search"):
        index = read_index("nowhere.parquet")  # prints: unime search: nowhere.parquet does not exist; ...
    ```
    """
    try:
        with one_line_disk_faults(program):
            yield
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split("\n"))
        raise SystemExit(f"{program}: {message}") from error
