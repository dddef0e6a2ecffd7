"""The benchmarks by name, and how each is read."""

from pathlib import Path

from .mmeb_v2 import read_video, read_visdoc
from .retrieval_sets import read_retrieval
from .tasks import Task, read_mmeb, read_sugarcrepe, read_world_tasks

STEPS = {
    "mmeb": "the 36 data sets of MMEB",
    "mmeb-v2-image": "the same with the texts of MMEB-V2",
    "visdoc": "MMEB-V2's visual documents",
    "video": "MMEB-V2's videos",
    "retrieval": "Flickr30K, COCO, ShareGPT4V-1k and Urban1K, both ways",
    "sugarcrepe": "SugarCrepe's seven subsets",
    "world": "the miniature world",
    "rerank": "the best candidates of a saved result, by a reranker",
}


def read(benchmark: str, source: dict) -> tuple[list[Task], object]:
    """Reads a benchmark as a results file says it was read: tasks, and the folders that image paths start from.

    Args:
        benchmark (`str`): one of `STEPS`.
        source (`dict`): `data`, `image_root`, `tasks`, `partial` and `cache`.
    """
    if missing := {"data", "image_root", "tasks", "partial", "cache"} - source.keys():
        raise ValueError(f"it is not known how {benchmark} was read: {sorted(missing)} are missing.")
    data, images, tasks = source["data"], source["image_root"], source["tasks"]
    cache = source["cache"] or Path(data) / "images"
    if benchmark in ("mmeb", "mmeb-v2-image"):
        return read_mmeb(data, tasks, images, source["partial"]), images or data
    if benchmark == "visdoc":
        return read_visdoc(data, tasks, cache, source["partial"]), cache
    if benchmark == "video":
        return read_video(data, tasks, source["partial"]), data
    if benchmark == "retrieval":
        return read_retrieval(data, tasks, cache, images), (data, cache, *([images] if images else []))
    if benchmark == "sugarcrepe":
        found = read_sugarcrepe(data, images or Path(data) / "images" / "val2017")
    else:
        found = read_world_tasks(data)
    if unknown := sorted(set(tasks or ()) - {task.name for task in found}):
        raise ValueError(f"{data} has no data sets {unknown}; it has {', '.join(task.name for task in found)}.")
    return [task for task in found if not tasks or task.name in tasks], images or data
