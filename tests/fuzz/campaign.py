"""The campaign at length: new cases of every kind until the time is up, and what came out, by class.

    python tests/fuzz/campaign.py --minutes 60
    python tests/fuzz/campaign.py --cases 3000 --kinds rows items

Each round has a seed of its own: `--seed N --cases 50` repeats the round with the number N. Of cases that are handled
wrongly in the same way the smallest is written to the corpus, where the tests try it from then on.
"""

import argparse
import importlib
import json
import os
import re
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for what all tests share
os.environ["TQDM_DISABLE"] = "1"

import conftest  # noqa: F401 (one thread, no network)
from hypothesis import HealthCheck, Phase, given, seed, settings
from outcomes import CLASSES, Outcome, write_case
from transformers.utils import logging

KINDS = {"rows": "row_files", "items": "odd_items", "checkpoints": "damaged_checkpoints", "jobs": "broken_jobs"}
ROUND = 50  # cases of a kind, before it is the next one's turn
MEMORY = 3  # GB that no case may need


class Findings:
    """What came out so far, of distinct cases, and the smallest case of each fault."""

    def __init__(self, kinds: list[str]):
        self.start = time.monotonic()
        self.outcomes = {kind: Counter() for kind in kinds}
        self.seen = set()
        self.faults = {}  # what is alike in outcomes of one fault -> size of its smallest case, and its file

    def add(self, kind: str, case: dict, outcome: Outcome, number: int):
        text = json.dumps(case, sort_keys=True)
        if (kind, text) in self.seen:
            return
        self.seen.add((kind, text))
        self.outcomes[kind][outcome.kind] += 1
        if not outcome.is_right:
            self._keep(kind, case, outcome, number)

    def _keep(self, kind: str, case: dict, outcome: Outcome, number: int):
        fault = (kind, outcome.kind, _alike(outcome.detail))
        size = len(json.dumps(case))
        old_size, old_path = self.faults.get(fault, (None, None))
        if old_size is not None and old_size <= size:
            return

        path = write_case(kind, case)
        if old_path is None:
            print(f"\n{kind}, seed {number}: {outcome.kind}: {outcome.detail[:300]}\n  {path}", flush=True)
        elif old_path != path:
            old_path.unlink()
        self.faults[fault] = (size, path)

    def wrong(self, kind: str) -> int:
        counts = self.outcomes[kind]
        return counts.total() - counts["ok"] - counts["clear error"]

    def line(self) -> str:
        """Progress, in one line."""
        parts = [f"{kind} {counts.total()} ({self.wrong(kind)} wrong)" for kind, counts in self.outcomes.items()]
        return f"{time.monotonic() - self.start:.0f} s, {peak_memory():.1f} GB: {', '.join(parts)}"

    def table(self) -> str:
        """Markdown: a line for each kind, a column for each class."""
        lines = [f"| kind | cases | {' | '.join(CLASSES)} |", "|---|" + "---|" * (len(CLASSES) + 1)]
        for kind, counts in self.outcomes.items():
            cells = " | ".join(str(counts[name]) for name in CLASSES)
            lines.append(f"| {kind} | {counts.total()} | {cells} |")
        return "\n".join(lines)


def _alike(detail: str) -> str:
    """What two outcomes of one fault have in common: their message without names and numbers."""
    return re.sub(r"'.*?'|0x\w+|\d+|\[.*?\]|/\S+", "", detail)[:60]


def peak_memory() -> float:
    """The most memory that this process or one of its children ever held, in GB."""
    parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(parent, children) * 1024 / 1e9


def run_round(kind: str, module, ground, number: int, findings: Findings):
    """Tries new cases of a kind, the same ones for the same number."""

    @seed(number)
    @settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=module.cases(ground))
    def attempt(case):
        findings.add(kind, case, module.outcome_of(case, ground), number)

    attempt()
    print(f"\r{findings.line()}", end="", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--cases", type=int, help="of each kind, after which that kind is done")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first round")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    print(f"seed {options.seed}")

    findings = Findings(options.kinds)
    with tempfile.TemporaryDirectory() as folder:
        modules = {kind: importlib.import_module(KINDS[kind]) for kind in options.kinds}
        grounds = {kind: module.prepare(Path(folder) / kind) for kind, module in modules.items()}

        number = options.seed
        while time.monotonic() - findings.start < 60 * options.minutes:
            counts = {kind: findings.outcomes[kind].total() for kind in options.kinds}
            todo = [kind for kind in options.kinds if not options.cases or counts[kind] < options.cases]
            if not todo:
                break
            for kind in todo:
                run_round(kind, modules[kind], grounds[kind], number, findings)
            number += 1

    kills = sum(getattr(ground, "kills", 0) for ground in grounds.values())
    print(f"\n\n{findings.table()}\n\nkills {kills}, peak memory {peak_memory():.1f} GB")
    wrong = sum(findings.wrong(kind) for kind in options.kinds)
    if wrong:
        raise SystemExit(f"{wrong} cases were handled wrongly")
    if peak_memory() > MEMORY:
        raise SystemExit(f"a case needed more than {MEMORY} GB")


if __name__ == "__main__":
    main()
