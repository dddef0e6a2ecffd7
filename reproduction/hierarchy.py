"""What the hierarchical prompt and SaHa's clusters are worth: claims F7 and F8."""

from pathlib import Path
from statistics import mean

from ..files.writing import read_json
from .findings import Finding, compare, percent
from .laboratory import Laboratory


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
        "under the strings of the data set alone (joint, which ask for no word: stage 2 of F3) and under the "
        "hierarchical prompt.",
        comparisons,
        table,
        notes=["The paper has 43.3 for the raw Qwen2-VL-2B with the hierarchical prompt."],
    )


def clusters_beat_batches(laboratory: Laboratory) -> Finding:
    """F8: SaHa's clusters beat in-batch negatives at equal compute, under the hierarchical prompt."""
    by_chance = laboratory.hits(lambda seed: in_mixed_batches(laboratory, seed))
    clusters = laboratory.hits(lambda seed: in_clusters(laboratory, seed))

    tasks = laboratory.mmeb
    table = {
        "in-batch": {"MMEB's kinds": percent(by_chance, tasks)},
        "SaHa's clusters": {"MMEB's kinds": percent(clusters, tasks)},
    }
    return Finding(
        "Two contrastive trainings from the raw backbone with as many pairs in a step and as many steps: batches "
        "drawn by chance from all tasks, and batches of SaHa's clusters, which are of several tasks, too. The "
        "backbone itself finds the clusters, before any training. The wrong answers that some rows name are left out "
        "of both: clusters have none.",
        [compare("clusters over batches by chance", clusters, by_chance, tasks)],
        table,
        notes=["The abstract says that the sampling beats in-batch negatives; its README has 67.1 for SaHa (2B)."],
    )


def in_batch(laboratory: Laboratory, seed: int) -> Path:
    """An embedder of the hierarchical prompt, trained with the negatives of batches of one task."""
    return laboratory.on_world("hierarchical", laboratory.instructed, seed, preset="hierarchical")


def in_mixed_batches(laboratory: Laboratory, seed: int) -> Path:
    """The same with batches of all tasks, and no negatives but those of the batch."""
    return laboratory.on_world(
        "by-chance",
        laboratory.instructed,
        seed,
        preset="hierarchical",
        data=laboratory.rows_without_negatives(),
        homogeneous_batches=False,
    )


def in_clusters(laboratory: Laboratory, seed: int) -> Path:
    """An embedder of the hierarchical prompt, trained on SaHa's clusters with as many pairs a step."""
    settings = laboratory.recipe("contrastive") | laboratory.settings["stages"].get("contrastive", {})
    clusters = laboratory.clusters()
    return laboratory.on_world(
        "clusters",
        laboratory.instructed,
        seed,
        preset="hierarchical",
        data=clusters,
        # clusters of several tasks make one step, as in the released sampler
        homogeneous_batches=False,
        per_device_train_batch_size=max(1, round(settings["per_device_train_batch_size"] / mean_size(clusters))),
    )


def mean_size(clusters: Path) -> float:
    """Rows of a cluster, on average: many tasks have not enough owners to fill them."""
    sizes = []
    for path in clusters.glob("*_hard_negatives.json"):
        sizes += [1 + len(row["neg_samples"]) for row in read_json(path)]
    return mean(sizes)
