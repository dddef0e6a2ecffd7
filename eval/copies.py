"""Copies among the candidates of a task: the same picture under two names is one candidate."""

from dataclasses import replace

from ..data.copies import named_by_content
from ..data.schema import Item
from .tasks import Task


def join_copies(task: Task) -> Task:
    """The task in which copies of a picture are one candidate, under the first name; a note says how many there were.

    A copy of a right candidate is right: as a candidate of its own it could only tie with the right one.

    Args:
        task ([`~unime.eval.tasks.Task`]).
    """
    renamed = named_by_content(task.corpus)

    # where each candidate goes: texts are part of it, as one picture may stand beside several
    place_of: dict[Item, int] = {}
    corpus = []
    places = []
    for item in task.corpus:
        content = renamed[item]
        if content not in place_of:
            place_of[content] = len(corpus)
            corpus.append(item)
        places.append(place_of[content])

    copies = len(task.corpus) - len(corpus)
    if not copies:
        return task

    candidates = []
    relevant = []
    gains = []
    for number in range(len(task.queries)):
        # a position among the whole corpus is a place in it
        position_of = range(len(corpus))
        if task.candidates is not None:
            position_of = {}
            for option in task.options(number):
                position_of.setdefault(places[option], len(position_of))
            candidates.append(list(position_of))

        # copies may have been judged apart: the best judgement is that of the picture
        gain_of: dict[int, float] = {}
        for right, gain in zip(task.right(number), task.gains_of(number)):
            position = position_of[places[right]]
            gain_of[position] = max(gain, gain_of.get(position, 0.0))
        relevant.append(list(gain_of))
        gains.append(list(gain_of.values()))

    # what the task left out stays so: queries with the whole corpus, and gains that are alike
    if task.candidates is None:
        candidates = None
    if not task.gains:
        gains = None

    note = f"{copies} candidates are copies of others under other names, and count once"
    notes = [*task.notes, note]
    return replace(task, corpus=corpus, candidates=candidates, relevant=relevant, gains=gains, notes=notes)
