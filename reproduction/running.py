"""Running claims one after the other, each with a file of its own, and putting the files together."""

import json
import time
from pathlib import Path

from ..files.writing import has_json, read_json, write_json
from ..jobs.shards import fingerprint
from .claims import CLAIMS, in_order
from .laboratory import Laboratory

FORMAT = 1
SUMMARY = "reproduction.json"


def reproduce(out: Path, names: list[str], seeds: int, settings: dict, say=print) -> Path:
    """Measures claims that are not measured yet, and writes everything that is into `reproduction.json`.

    What is made on the way stays in the folder, so that an interrupted run goes on where it stopped, and claims may be
    measured in several runs, one after the other.

    Args:
        out (`Path`): folder of everything.
        names (`list[str]`): keys of `CLAIMS`.
        seeds (`int`): how often stages are trained.
        settings (`dict`): `FULL`, `QUICK` or one's own.
        say (`Callable`): takes lines about the progress.

    Returns:
        `Path`: the file.

    Raises:
        ValueError: the folder holds a reproduction of another size.
    """
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(out, settings)
    laboratory = Laboratory(out, settings, seeds)

    # the cheapest first, as CLAIMS has them
    missing = []
    for name in CLAIMS:
        if name in names and not _is_measured(out, name, seeds):
            missing.append(name)

    pace = Pace()
    for number, name in enumerate(missing, 1):
        say(f"{name} ({number} of {len(missing)}, {pace.estimate(missing[number - 1 :])}): {CLAIMS[name].text}")
        start = time.perf_counter()
        finding = CLAIMS[name].run(laboratory)
        seconds = time.perf_counter() - start

        pace.add(name, seconds)
        write_json(out / f"{name}.json", {**finding.as_dict(), "seeds": seeds, "seconds": round(seconds, 1)})
        say(f"{name} {finding.verdict}, {seconds / 60:.1f} minutes")
    return merge(out)


def merge(out: Path, others: list[Path] = ()) -> Path:
    """Puts what is measured into `reproduction.json`.

    Args:
        out (`Path`): folder of a reproduction.
        others (`list[Path]`): folders of others of the same size, such as of other machines; a claim that is measured
            in several is taken from the one with the most seeds, `out` first.

    Raises:
        ValueError: a folder holds a reproduction of another size.
    """
    claims = {}
    for folder in (out, *others):
        if read_json(folder / "settings.json") != read_json(out / "settings.json"):
            raise ValueError(f"{folder} holds a reproduction of another size than {out}.")
        for name, claim in CLAIMS.items():
            if not has_json(folder / f"{name}.json"):
                continue
            measured = read_json(folder / f"{name}.json")
            if name not in claims or measured["seeds"] > claims[name]["seeds"]:
                described = {"claim": claim.text, "source": claim.source, "tried": claim.tried}
                claims[name] = {**described, "folder": str(folder), **measured}

    content = {"format": FORMAT, "settings": read_json(out / "settings.json")}
    content["claims"] = {name: claims[name] for name in in_order(claims)}
    write_json(out / SUMMARY, content)
    return out / SUMMARY


def _is_measured(out: Path, name: str, seeds: int) -> bool:
    """Whether a claim has been measured with as many seeds, or more."""
    return has_json(out / f"{name}.json") and read_json(out / f"{name}.json")["seeds"] >= seeds


def _check_settings(out: Path, settings: dict):
    """Notes the settings of a folder, and refuses others."""
    path = out / "settings.json"
    settings = json.loads(json.dumps(settings))  # as they are read again
    if not has_json(path):
        write_json(path, settings)
    if read_json(path) != settings:
        raise ValueError(
            f"{out} holds a reproduction of another size ({fingerprint([json.dumps(settings)])}); "
            "choose another folder with --out, or delete it."
        )


class Pace:
    """How much longer it may take: the minutes of the claims that are left, at the pace of those that are done."""

    def __init__(self):
        self.expected = 0.0  # minutes
        self.taken = 0.0

    def add(self, name: str, seconds: float):
        """Notes how long a claim took."""
        self.expected += CLAIMS[name].minutes
        self.taken += seconds / 60

    def estimate(self, names: list[str]) -> str:
        """About how long these claims will take."""
        minutes = sum(CLAIMS[name].minutes for name in names)
        if self.expected:
            minutes *= self.taken / self.expected
        return f"about {minutes:.0f} minutes left"
