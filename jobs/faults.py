"""What a command says where a disk is full, or a folder cannot be written to."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

# a full disk or too many open files are nobody's row
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
PLACES = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)

# how libraries say that a write failed which do not raise an OSError: safetensors, and torch.save
_SIGNS = ("os error", "I/O error", "PytorchStreamWriter failed", "unexpected pos")


def is_machine_fault(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, is the machine's and no row's: a full disk, too many open files."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in MACHINE:
            return True
        error = error.__cause__
    return False


def is_disk_fault(error: BaseException) -> bool:
    """Whether an error says that something could not be written."""
    if isinstance(error, OSError):
        return error.errno in (*MACHINE, *PLACES)
    return isinstance(error, (SafetensorError, RuntimeError)) and any(sign in str(error) for sign in _SIGNS)


@contextmanager
def one_line_disk_faults(program: str) -> Iterator[None]:
    """Ends the program with one line on stderr, and status 1, where something could not be written.

    Args:
        program (`str`): the command, which the line begins with: `"unime train"`.

    Raises:
        SystemExit: in the place of such an error.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_fault(error):
            raise

        # a library's own words seldom say that the disk is full
        message = " ".join(str(error).split())
        if is_machine_fault(error) or isinstance(error, RuntimeError):
            message += " (is the disk full, or the folder read-only?)"
        raise SystemExit(f"{program}: {message}") from error
