"""The benchmarks by name, and how each is read."""

from pathlib import Path

from .copies import join_copies
from .mmeb_v2 import read_video, read_visdoc
from .pairs import read_pairs
from .retrieval_sets import read_retrieval
from .tasks import Task, read_mmeb, read_sugarcrepe, read_world_tasks

SOURCE = ("data", "image_root", "tasks", "partial", "cache")  # what has to be known of how a benchmark is read
PAIRS = ("corpus", "both_ways", "columns", "allow_urls")  # likewise, for pairs


def read(benchmark: str, source: dict) -> tuple[list[Task], object]:
    """Reads a benchmark as a results file says it was read; copies of a picture are one candidate.

    Args:
        benchmark (`str`): one of `BENCHMARKS`.
        source (`dict`): `data` (its folder), `image_root` (where image paths start, or None), `tasks` (names, or None
            for all), `partial` (leave out missing tasks) and `cache` (where images are unpacked, or None); for pairs
            also those of `PAIRS` (see [`~unime.eval.pairs.read_pairs`]) that were given.

    Returns:
        `(tasks, image_root)`: and the folder, or folders, that image paths start from.

    Raises:
        ValueError: `source` lacks a key, or a task is unknown; and what the readers raise.

    Example:

    ```python
    source = {"data": "outputs/world", "image_root": None, "tasks": None, "partial": False, "cache": None}
    tasks, image_root = read("world", source)
    ```
    """
    if missing := set(SOURCE) - source.keys():
        raise ValueError(f"it is not known how {benchmark} was read: {sorted(missing)} are missing.")

    tasks, image_root = _read(benchmark, source)
    return list(map(join_copies, tasks)), image_root


def _read(benchmark: str, source: dict) -> tuple[list[Task], object]:
    """The tasks as the files have them, and where image paths start."""
    data = source["data"]
    image_root = source["image_root"]
    names = source["tasks"]
    cache = source["cache"] or Path(data) / "images"

    # these readers select the tasks themselves, and read no others
    if benchmark in ("mmeb", "mmeb-v2-image"):
        return read_mmeb(data, names, image_root, source["partial"]), image_root or data
    if benchmark == "visdoc":
        return read_visdoc(data, names, cache, source["partial"]), cache
    if benchmark == "video":
        return read_video(data, names, source["partial"]), data
    if benchmark == "retrieval":
        roots = [data, cache]
        if image_root:
            roots.append(image_root)
        return read_retrieval(data, names, cache, image_root), tuple(roots)

    if benchmark == "pairs":
        options = {name: source[name] for name in PAIRS if name in source}
        tasks = read_pairs(data, names, image_root, **options)
        return tasks, image_root or _folder_of(data)

    # these read all of their tasks, which is quick
    if benchmark == "sugarcrepe":
        tasks = read_sugarcrepe(data, image_root or Path(data) / "images" / "val2017")
    else:
        tasks = read_world_tasks(data)
    return _selected(tasks, names, data), image_root or data


def _folder_of(data):
    """The folder of a file of rows, or the folder of rows that it is."""
    path = Path(data)
    return path if path.is_dir() else path.parent


def _selected(tasks: list[Task], names: list[str] | None, data) -> list[Task]:
    """The tasks that are named; all without names."""
    if not names:
        return tasks

    available = [task.name for task in tasks]
    if unknown := sorted(set(names) - set(available)):
        raise ValueError(f"{data} has no data sets {unknown}; it has {', '.join(available)}.")
    return [task for task in tasks if task.name in names]
