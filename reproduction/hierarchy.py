"""What the hierarchical prompt and SaHa's clusters are worth: claims F7 and F8."""

from pathlib import Path

from .findings import Finding, compare, percent
from .laboratory import Laboratory

CLUSTER = 16  # rows of a cluster: an anchor with its 15 negatives


def hierarchical_prompt_lifts(laboratory: Laboratory) -> Finding:
    """F7: the hierarchical prompt lifts a raw MLLM above one-level prompts, and lifts in-batch fine-tuning."""
    one_level = {preset: laboratory.raw_hits(preset) for preset in ("summary", "joint")}
    hierarchical = laboratory.raw_hits("hierarchical")
    plain_tuned = laboratory.hits(laboratory.stage_2)
    hierarchical_tuned = laboratory.hits(lambda seed: in_batch(laboratory, seed))

    tasks = laboratory.mmeb
    comparisons = []
    for preset, hits in one_level.items():
        comparisons.append(compare(f"raw: hierarchical over {preset}", hierarchical, hits, tasks))
    comparisons.append(compare("tuned: hierarchical over joint", hierarchical_tuned, plain_tuned, tasks, "+4.8"))

    table = {}
    for name, hits in (*one_level.items(), ("hierarchical", hierarchical)):
        table[f"raw, {name}"] = {"MMEB's kinds": percent(hits, tasks)}
    table["tuned, joint"] = {"MMEB's kinds": percent(plain_tuned, tasks)}
    table["tuned, hierarchical"] = {"MMEB's kinds": percent(hierarchical_tuned, tasks)}
    return Finding(
        "The raw backbone under each prompt, and after the same contrastive training with the negatives of the batch "
        "under the strings of the data set alone (joint) and under the hierarchical prompt.",
        comparisons,
        table,
        notes=["The paper has 43.3 for the raw Qwen2-VL-2B with the hierarchical prompt."],
    )


def clusters_beat_batches(laboratory: Laboratory) -> Finding:
    """F8: SaHa's clusters beat in-batch negatives at equal compute, under the hierarchical prompt."""
    mixed = laboratory.hits(lambda seed: in_batch(laboratory, seed, of_one_task=False))
    batches = laboratory.hits(lambda seed: in_batch(laboratory, seed))
    clusters = laboratory.hits(lambda seed: in_clusters(laboratory, seed))

    tasks = laboratory.mmeb
    table = {
        "in-batch, of all tasks": {"MMEB's kinds": percent(mixed, tasks)},
        "in-batch, of one task": {"MMEB's kinds": percent(batches, tasks)},
        "SaHa's clusters": {"MMEB's kinds": percent(clusters, tasks)},
    }
    return Finding(
        "Three contrastive trainings from the same backbone with as many pairs in a step and as many steps: batches "
        "drawn by chance from all tasks, or from one, and batches of SaHa's clusters, which are of several tasks.",
        [
            compare("clusters over batches of all tasks", clusters, mixed, tasks),
            compare("clusters over batches of one task", clusters, batches, tasks),
        ],
        table,
        notes=["The abstract says that the sampling beats in-batch negatives; its README has 67.1 for SaHa (2B)."],
    )


def in_batch(laboratory: Laboratory, seed: int, of_one_task: bool = True) -> Path:
    """An embedder of the hierarchical prompt, trained with the negatives of batches by chance."""
    if of_one_task:
        return laboratory.on_world("hierarchical", laboratory.backbone, seed, preset="hierarchical")

    changes = {"preset": "hierarchical", "homogeneous_batches": False}
    return laboratory.on_world("hierarchical-mixed", laboratory.backbone, seed, **changes)


def in_clusters(laboratory: Laboratory, seed: int) -> Path:
    """An embedder of the hierarchical prompt, trained on SaHa's clusters with as many pairs a step."""
    settings = laboratory.settings["stages"].get("contrastive", {})
    pairs = settings.get(
        "per_device_train_batch_size", laboratory.recipe("contrastive")["per_device_train_batch_size"]
    )
    return laboratory.on_world(
        "clusters",
        laboratory.backbone,
        seed,
        preset="hierarchical",
        data=laboratory.clusters(),
        # clusters of several tasks make one step, as in the released sampler
        homogeneous_batches=False,
        per_device_train_batch_size=max(1, pairs // CLUSTER),
    )
