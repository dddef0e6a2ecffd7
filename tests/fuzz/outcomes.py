"""What may come out of a case of the campaign: the right value or a clear error. Anything else is a finding."""

import faulthandler
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, settings

OK = "ok"
CLEAR = "clear error"
VAGUE = "vague error"  # of a kind that we raise, but it does not say where
TRACEBACK = "traceback"  # of a kind that we do not raise
WRONG = "silently wrong"
HANG = "hang"
HOLE = "hole"  # foreign code ran, or a file outside of its folder was read or written
CLASSES = (OK, CLEAR, VAGUE, TRACEBACK, WRONG, HANG, HOLE)

ERRORS = (ValueError, OSError, SystemExit)  # what users are told: bad input, files, and the end of a command
SECONDS = 30  # after which a case counts as a hang; the slowest takes two
DEADLINE = 300  # seconds after which the whole process ends
CORPUS = Path(__file__).parent / "corpus"


class Outcome(NamedTuple):
    """The class of what came out, and what there is to say about it."""

    kind: str
    detail: str = ""

    @property
    def is_right(self) -> bool:
        return self.kind in (OK, CLEAR)


class Ground(SimpleNamespace):
    """What the cases of a kind share: folders, models, what they compute; named by nothing but its type in errors."""

    __repr__ = object.__repr__


class Wrong(Exception):
    """A value came out, and it is not the right one."""


class Hole(Exception):
    """Something happened that no input may cause."""


class Hang(BaseException):
    """A case did not end. It is no `Exception`, so that nothing under test catches it."""


def observe(action: Callable[[], object], names: Sequence[str], errors: tuple = ERRORS) -> Outcome:
    """Runs an action, which raises [`Wrong`] or [`Hole`] where it finds one, and says what came out.

    Args:
        action: what is tried.
        names (`Sequence[str]`): a clear error has one of these in its message: a file, a row, an item.
        errors (`tuple`): the types of a clear error.
    """
    try:
        with _watched():
            action()
    except Hang as error:
        return Outcome(HANG, str(error))
    except Wrong as error:
        return Outcome(WRONG, str(error))
    except Hole as error:
        return Outcome(HOLE, str(error))
    except errors as error:
        message = str(error)
        is_clear = any(name in message for name in names)
        return Outcome(CLEAR if is_clear else VAGUE, f"{type(error).__name__}: {message}")
    except Exception as error:
        return Outcome(TRACEBACK, f"{type(error).__name__}: {error}")
    return Outcome(OK)


@contextmanager
def _watched() -> Iterator[None]:
    """Ends what runs inside when it takes far too long."""

    def stop(*_):
        raise Hang(f"no end after {SECONDS} seconds")

    # a loop in C does not see the alarm: then the whole process ends, and prints where it was
    previous = signal.signal(signal.SIGALRM, stop)
    faulthandler.dump_traceback_later(DEADLINE, exit=True)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, previous)


def assert_right(outcome: Outcome, case: dict):
    """Fails unless the outcome is the right value or a clear error."""
    assert outcome.is_right, f"{outcome.kind}: {outcome.detail}\n{json.dumps(case)[:2000]}"


def short(cases: int) -> settings:
    """So many cases, the same ones in every run."""
    return settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def as_text(content: bytes) -> str:
    """Bytes as JSON can hold them, one character each."""
    return content.decode("latin-1")


def as_bytes(text: str) -> bytes:
    return text.encode("latin-1")


# the corpus: inputs that were once handled wrongly, one file each
def write_case(kind: str, case: dict) -> Path:
    """Adds a case to the corpus, under a name that follows from its content."""
    text = json.dumps(case, indent=1, sort_keys=True)
    path = CORPUS / kind / f"{blake2b(text.encode(), digest_size=5).hexdigest()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def read_corpus(kind: str) -> list[dict]:
    """The cases of a kind."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((CORPUS / kind).glob("*.json"))]
