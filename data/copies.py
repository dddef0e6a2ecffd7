"""Copies: the same picture under several names, which is one candidate wherever answers are compared.

Copies have equal pixels, whatever their files are called and in whichever format they are. Near copies, which differ
in size, compression or small details, count only where they are asked for.
"""

from collections.abc import Iterable

import numpy as np

from ..files.identity import look_of, picture_identities
from .schema import Item

Identity = tuple[str, str]


def named_by_content(items: Iterable[Item], near: int | None = None) -> dict[Item, Item]:
    """Items whose pictures are called by what they show, so that copies are equal and hash alike.

    Args:
        items (`Iterable[Item]`): any number of them.
        near (`int`, *optional*): take pictures for equal whose perceptual hashes differ in at most so many of 192
            bits.

    Returns:
        `dict[Item, Item]`: for each item one with its text, and the identity of its picture in place of the path.
    """
    items = list(items)
    pictures = picture_identities(path for item in items for path in item.images)
    if near is not None:
        pictures = _joined(pictures, near)

    return {item: item.with_images(pictures) for item in items}


def identities_of(items: Iterable[Item], near: int | None = None) -> dict[Item, Identity]:
    """What makes two candidates one: equal pictures, and texts equal but for case, spacing and placeholders.

    Args:
        items, near: as in [`named_by_content`].

    Returns:
        `dict[Item, tuple]`: for each item a text and a picture's identity.
    """
    return {item: renamed.identity for item, renamed in named_by_content(items, near).items()}


def _joined(pictures: dict[str, str], near: int) -> dict[str, str]:
    """The identities of pictures by their paths, near copies with that of the first of them."""
    looks = {}
    for path, identity in pictures.items():
        if identity not in looks:
            looks[identity] = look_of(path)
    looks = {identity: look for identity, look in looks.items() if look is not None}  # flat pictures have none

    # near copies of near copies are one, too
    leaders = list(range(len(looks)))
    hashes = np.array(list(looks.values()), bool).reshape(len(looks), -1)  # [P, 192]
    for first, second in near_pairs(hashes, near):
        leaders[_leader(leaders, second)] = _leader(leaders, first)

    # every picture of a group has the identity of its leader
    names = list(looks)
    merged = {}
    for place, name in enumerate(names):
        merged[name] = names[_leader(leaders, place)]
    return {path: merged.get(identity, identity) for path, identity in pictures.items()}


def _leader(leaders: list[int], place: int) -> int:
    """The place that stands for all that were joined with one."""
    while leaders[place] != place:
        # the way is halved for whoever asks next
        leaders[place] = leaders[leaders[place]]
        place = leaders[place]
    return place


def near_pairs(hashes: np.ndarray, near: int) -> Iterable[tuple[int, int]]:
    """Pairs of rows that differ in at most `near` bits, each pair at least once.

    Two such rows agree in one of `near + 1` pieces, so that only rows with an equal piece are compared.

    Args:
        hashes (bool array `[P, bits]`): a row for each picture.
        near (`int`): from 0, less than the number of bits.
    """
    for columns in np.array_split(np.arange(hashes.shape[1]), near + 1):
        rows_of: dict[bytes, list[int]] = {}
        for row, piece in enumerate(np.packbits(hashes[:, columns], axis=1)):
            rows_of.setdefault(piece.tobytes(), []).append(row)

        for rows in rows_of.values():
            for place, first in enumerate(rows[:-1]):
                others = np.array(rows[place + 1 :])
                distances = (hashes[others] != hashes[first]).sum(1)
                for second in others[distances <= near].tolist():
                    yield first, second
