"""Copies among the candidates of a task: the same picture under two names is one candidate."""

from dataclasses import replace

from ..files.identity import picture_identities
from .tasks import Task


def join_copies(task: Task) -> Task:
    """The task in which copies of a picture are one candidate, under the first name; a note says how many there were.

    A copy of a right candidate is right: as a candidate of its own it could only tie with the right one.

    Args:
        task ([`~unime.eval.tasks.Task`]).
    """
    pictures = picture_identities(item.image for item in task.corpus if item.image)

    # where each candidate goes
    place_of: dict[tuple[str, str], int] = {}
    corpus = []
    places = []
    for item in task.corpus:
        identity = (item.text, pictures.get(item.image, ""))
        if identity not in place_of:
            place_of[identity] = len(corpus)
            corpus.append(item)
        places.append(place_of[identity])

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
            options = list(dict.fromkeys(places[option] for option in task.options(number)))
            position_of = {place: position for position, place in enumerate(options)}
            candidates.append(options)

        gain_of: dict[int, float] = {}
        for right, gain in zip(task.right(number), task.gains_of(number)):
            position = position_of[places[right]]
            gain_of[position] = max(gain, gain_of.get(position, 0.0))
        relevant.append(list(gain_of))
        gains.append(list(gain_of.values()))

    note = f"{copies} candidates are copies of others under other names, and count once"
    return replace(
        task,
        corpus=corpus,
        candidates=candidates if task.candidates is not None else None,
        relevant=relevant,
        gains=gains if task.gains else None,
        notes=[*task.notes, note],
    )
