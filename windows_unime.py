"""Lists that are too long for one prompt: windows of neighbours are put in order one after the other."""

import re
from collections.abc import Callable


def window_places(count: int, window: int, stride: int, from_below: bool = True) -> list[range]:
    """The places of a list that each window shows, in the order in which they are shown.

    Args:
        count (`int`): candidates in the list.
        window (`int`): most candidates of a window, at least 2.
        stride (`int`): how far a window moves, at least 1.
        from_below (`bool`, defaults to `True`): from the end of the list to its beginning, so that the best of the
            list rise to its top in one pass; otherwise from the beginning to the end.

    Returns:
        `list[range]`: a single window where the list is not longer; none for fewer than two candidates.

    Example:

    ```python
    window_places(7, window=4, stride=2)  # [range(3, 7), range(1, 5), range(0, 4)]
    ```
    """
    if window < 2 or stride < 1:
        raise ValueError(f"a window needs 2 candidates and a stride of 1 at least, got {window} and {stride}.")
    if count < 2:
        return []

    # the last window begins where the list does
    starts = list(range(max(0, count - window), 0, -stride))
    starts.append(0)
    places = [range(start, min(start + window, count)) for start in starts]
    if from_below:
        return places
    return [range(count - place.stop, count - place.start) for place in places]


def order_in_windows(count: int, places: list[range], order_of: Callable[[list[int]], list[int]]) -> list[int]:
    """The candidates of a list, best first, after every window has been put in order once.

    Args:
        count (`int`): candidates in the list.
        places (`list[range]`): from [`window_places`].
        order_of (`Callable`): takes the candidates of a window in their present order, and returns them best first.
    """
    order = list(range(count))
    for place in places:
        shown = order[place.start : place.stop]
        order[place.start : place.stop] = order_of(shown)
    return order


def read_order(answer: str, count: int) -> list[int] | None:
    """The order that an answer such as `[2] > [1] > [3]` gives to a window.

    Args:
        answer (`str`): what the model wrote.
        count (`int`): candidates in the window.

    Returns:
        their places in the window, best first; `None` if the answer does not name each of them once.

    Example:

    ```python
    read_order("[2] > [1]", 2)  # [1, 0]
    ```
    """
    number = r"\[(\d+)\]"
    match = re.search(r"\s*>\s*".join([number] * count), answer)
    if match is None:
        return None
    order = [int(text) - 1 for text in match.groups()]
    return order if sorted(order) == list(range(count)) else None


__all__ = ["order_in_windows", "read_order", "window_places"]
