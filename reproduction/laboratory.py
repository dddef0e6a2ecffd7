"""What the claims share: one world, models that are trained once and kept, and what they answer."""

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import yaml

from ..data.readers import read_mmeb_train
from ..eval.rerank import run_rerank
from ..eval.runner import evaluate, run_benchmark
from ..eval.tasks import Task, read_world_tasks
from ..files.writing import has_json, move_into_place, read_json, write_json, write_whole
from ..jobs.embedding import Embedder
from ..jobs.reranking import Reranker
from ..miniature.backbone import BackboneConfig, pretrain
from ..miniature.judge import JudgeConfig, train_judge
from ..miniature.one_word import OneWordConfig, instruct
from ..miniature.recipes import RECIPES, run_recipe
from ..miniature.teacher import train_teacher
from ..miniature.world import build, write_parquet
from ..mining.pipeline import Mining, MiningConfig
from ..trainers import alignment, contrastive, distillation, reranker
from ..trainers.resuming import last_checkpoint
from ..trainers.starting import load_model
from .findings import Hits

CLUSTER_NEGATIVES = 3  # a step has 64 pairs here, and 2,048 with the authors, whose clusters have 15
STAGES = {"distillation": distillation, "contrastive": contrastive, "alignment": alignment, "reranker": reranker}


class Laboratory:
    """Makes what a claim asks for unless it is there: every model and every measurement is a folder or file of `out`.

    Args:
        out (`Path`): folder of everything.
        settings (`dict`): sizes, with the keys of [`~unime.reproduction.settings.FULL`].
        seeds (`int`): how often stages are trained; backbone, judges, teacher and mined rows are the same for all.

    Example:

    ```python
    laboratory = Laboratory(Path("outputs/reproduction"), FULL, seeds=3)
    hits = laboratory.hits(laboratory.stage_2)
    ```
    """

    def __init__(self, out: Path, settings: dict, seeds: int):
        self.out = out
        self.settings = settings
        self.seeds = range(seeds)
        self._selected = {}  # by the judge's level: the mined rows that were checked against what is asked
        out.mkdir(parents=True, exist_ok=True)

    # the world
    @cached_property
    def world(self) -> Path:
        """The folder of the miniature world."""
        return build(self.out / "world", show_progress=None, **self.settings["world"])

    @cached_property
    def tasks(self) -> list[Task]:
        """What models are measured on."""
        return read_world_tasks(self.world)

    @cached_property
    def by_name(self) -> dict[str, Task]:
        """The tasks by their names."""
        return {task.name: task for task in self.tasks}

    def names(self, *kinds: str) -> list[str]:
        """The names of the tasks of some kinds."""
        return [task.name for task in self.tasks if task.kind in kinds]

    @property
    def mmeb(self) -> list[str]:
        """The tasks of MMEB's four kinds."""
        return self.names("Classification", "VQA", "Retrieval", "Grounding")

    @property
    def short_retrieval(self) -> list[str]:
        """Between pictures and short captions, as Flickr30K and COCO are."""
        return ["Shapes_t2i", "Shapes_i2t"]

    @property
    def long_retrieval(self) -> list[str]:
        """Between pictures and long captions, as ShareGPT4V and Urban1K are."""
        return ["Shapes_long_t2i", "Shapes_long_i2t"]

    @property
    def compositional(self) -> list[str]:
        """True captions against false ones, as in SugarCrepe."""
        return self.names("Compositional")

    # models that all seeds share
    @property
    def backbone(self) -> Path:
        """A stock VLM, pre-trained on the world."""
        folder = self.out / "backbone"
        if not (folder / "model.safetensors").exists():
            pretrain(self.world, BackboneConfig(output_dir=str(folder), **self.settings["backbone"]))
        return folder

    @property
    def instructed(self) -> Path:
        """The backbone after lessons in one word: what every stage starts from, and what claims call raw."""
        folder = self.out / "instructed"
        if not (folder / "model.safetensors").exists():
            args = OneWordConfig(output_dir=str(folder), **self.settings["instructed"])
            instruct(self.world, self.backbone, args)
        return folder

    @property
    def teacher(self) -> Path:
        """A text embedder."""
        return train_teacher(self.pairs, self.out / "teacher", **self.settings["teacher"])

    @property
    def pairs(self) -> Path:
        """The sentence pairs of the world, each with a text that is false."""
        return self.world / "nli" / "nli_for_simcse.csv"

    @property
    def pairs_alone(self) -> Path:
        """The sentence pairs without the false texts."""
        file = self.out / "pairs.csv"
        if not file.exists():
            columns = pa_csv.ConvertOptions(include_columns=["sent0", "sent1"])
            pairs = pa_csv.read_csv(self.pairs, convert_options=columns)
            write_whole(file, lambda draft: pa_csv.write_csv(pairs, draft))
        return file

    def judge(self, level: str = "best") -> Path:
        """A judge; its level says how long it was taught.

        Args:
            level (`str`, defaults to `"best"`): a key of the settings' `judges`.
        """
        folder = self.out / "judges" / level
        if not (folder / "model.safetensors").exists():
            settings = self.settings["judge"] | self.settings["judges"][level]
            train_judge(self.backbone, JudgeConfig(output_dir=str(folder), **settings))
        return folder

    def mined(self, level: str = "best") -> Path:
        """The rows that a judge chose among what the embedder of both stages, of the first seed, retrieved."""
        if level not in self._selected:
            self.judge(level)
            mining = self._mining(level)
            mining.run()
            self._selected[level] = mining.selected_path
        return self._selected[level]

    def rows_without_negatives(self) -> Path:
        """The training rows of the world without the wrong answers that some of them name."""
        folder = self.out / "rows-without-negatives"
        for path in sorted((self.world / "train").glob("*/*.parquet")):
            copy = folder / path.parent.name / path.name
            if not copy.exists():
                rows = pq.read_table(path, columns=["qry", "qry_image_path", "pos_text", "pos_image_path"])
                write_parquet(copy, rows.to_pydict())
        return folder

    def clusters(self) -> Path:
        """SaHa's clusters by the instructed backbone's own embeddings, before any training; no judge is asked."""
        changes = {"embedder_preset": "hierarchical", "cluster_size": CLUSTER_NEGATIVES}
        mining = self._mining_to("own", embedder=str(self.instructed), **changes)
        mining.embed()
        mining.saha()
        return mining.out / "saha"

    def _mining(self, level: str) -> Mining:
        """The mining of a judge's rows; judges of other levels judge what was retrieved for the best one."""
        folder = self.out / "mined" / level
        if level != "best" and not folder.exists():
            retrieved = self._mining("best")
            retrieved.embed()
            retrieved.retrieve()
            draft = folder.with_name(f"{level}.tmp")
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(retrieved.out, draft, ignore=shutil.ignore_patterns("scores", "judged*", "saha*"))
            move_into_place(draft, folder)

        return self._mining_to(level, embedder=str(self.stages_1_2(0)), judge=str(self.out / "judges" / level))

    def _mining_to(self, name: str, **changes) -> Mining:
        """The mining of a folder of `mined`, with changes of the recipe."""
        settings = yaml.safe_load((RECIPES / "mining" / "shapes.yaml").read_text(encoding="utf-8"))
        settings |= {
            "data": str(self.world / "train"),
            "image_root": str(self.world),
            "out": str(self.out / "mined" / name),
            "layout": "json",  # a claim changes the rows
        }
        return Mining(MiningConfig(**settings | changes | self.settings["mining"]))

    # models of each seed
    def stage_1(self, seed: int) -> Path:
        """The instructed backbone after stage 1 of UniME."""
        teacher = {"teacher": self.teacher, "teacher_embeddings": self.out / "teacher-embeddings"}
        return self._on_texts("stage-1", seed, data=self.pairs, **teacher)

    def texts_by_contrast(self, seed: int) -> Path:
        """The instructed backbone after contrastive training on the pairs of stage 1."""
        return self._on_texts("texts-by-contrast", seed, data=self.pairs_alone, baseline=True)

    def triplets_by_contrast(self, seed: int) -> Path:
        """The same with the false text of each pair, which distillation does not see."""
        return self._on_texts("triplets-by-contrast", seed, data=self.pairs, baseline=True)

    def _on_texts(self, name: str, seed: int, **changes) -> Path:
        return self.train(name, "distillation", "distillation", self.instructed, seed, **changes)

    def stage_2(self, seed: int) -> Path:
        """The instructed backbone after stage 2 of UniME alone."""
        return self.on_world("stage-2", self.instructed, seed)

    def stages_1_2(self, seed: int) -> Path:
        """The instructed backbone after both stages of UniME."""
        return self.on_world("stages-1-2", self.stage_1(seed), seed)

    def on_world(self, name: str, start: Path, seed: int, **changes) -> Path:
        """A model after contrastive training on the rows of the world."""
        changes = {"data": self.world / "train", "image_root": self.world, **changes}
        return self.train(name, "contrastive", "contrastive", start, seed, **changes)

    def on_mined(self, name: str, stage: str, recipe: str, start: Path, seed: int, level: str = "best", **changes):
        """A model after a stage on mined rows."""
        changes = {"data": self.mined(level), "image_root": self.world, **changes}
        return self.train(name, stage, recipe, start, seed, **changes)

    def train(self, name: str, stage: str, recipe: str, start: Path, seed: int, **changes) -> Path:
        """Runs a stage's recipe, going on from a checkpoint of an interrupted run, unless the result is there.

        Args:
            name (`str`): of the result.
            stage (`str`): a key of `STAGES`.
            recipe (`str`): a file of `recipes/shapes`, without its ending.
            start (`Path`): the model that is trained.
            seed (`int`): of the training.
            changes: options of the stage in place of the recipe's.

        Returns:
            `Path`: a folder with a finished model, and its log in `trainer_state.json`.
        """
        out = self.out / f"seed-{seed}" / name
        if out.exists():
            return out

        work = out.with_name(f"{name}.tmp")
        changes = {"seed": seed} | self.settings["stages"].get(recipe, {}) | changes

        run_recipe(STAGES[stage], recipe, start, work, changes)

        # the log stays, the checkpoints go; a folder that exists holds a finished model
        newest = last_checkpoint(work)
        if newest:
            shutil.copy(Path(newest) / "trainer_state.json", work / "trainer_state.json")
        for folder in work.glob("checkpoint-*"):
            shutil.rmtree(folder)
        move_into_place(work, out)
        return out

    def recipe(self, name: str) -> dict:
        """What a recipe of the miniature world says."""
        return yaml.safe_load((RECIPES / "shapes" / f"{name}.yaml").read_text(encoding="utf-8"))

    # measurements
    def hits(self, make) -> Hits:
        """What the embedders of all seeds answer rightly.

        Args:
            make (`Callable`): gives the embedder's folder for a seed.
        """
        by_seed = [self.measured(make(seed)) for seed in self.seeds]
        return stacked(by_seed)

    def raw_hits(self, preset: str = "summary") -> Hits:
        """What the instructed backbone answers rightly before any stage; the same for all seeds."""
        result = self.measured(self.instructed, preset)
        return stacked([result] * len(self.seeds))

    def measured(self, path: Path, preset: str | None = None) -> dict[str, list[int]]:
        """The rank of the first right answer to each query, by task, from a file where it was measured before.

        Args:
            path (`Path`): an embedder, or, with a preset, a stock VLM.
            preset (`str`, *optional*): how a stock VLM is read.
        """
        name = f"{path.name}-{preset}" if preset else path.name
        file = path.with_name(f"{name}.json")
        if not has_json(file):
            results = evaluate(load_model(path, preset), self.tasks, show_progress=False)
            write_json(file, {task: result["ranks"] for task, result in results.items()})
        return read_json(file)

    def reranked(
        self, embedder: Path, ranker: Path, strategy: str, top: int, **options
    ) -> dict[str, dict[str, list[int]]]:
        """Ranks by task `"before"` and `"after"` an embedder's best candidates are put in a reranker's order.

        Args:
            embedder, ranker (`Path`): folders of models.
            strategy (`str`), options: how the reranker ranks, as [`~unime.jobs.reranking.Reranker`] takes them.
            top (`int`): how many candidates.
        """
        folder = embedder.with_name(f"{embedder.name}-eval")
        result = run_benchmark("world", self.tasks, Embedder(embedder), folder, self.world)
        limit = self.settings["rerank_queries"]
        path = run_rerank(result, self.tasks, Reranker(ranker, strategy, **options), top, self.world, limit)

        before = {}
        for task, entry in read_json(result)["tasks"].items():
            before[task] = entry["ranks"][:limit]
        after = {task: entry["ranks"] for task, entry in read_json(path)["tasks"].items()}
        return {"before": before, "after": after}

    def training_rows(self, names: Sequence[str] | None = None):
        """The training rows of the world, or of some of its tasks."""
        return read_mmeb_train(self.world / "train", names, image_root=self.world)


def stacked(by_seed: list[dict[str, list[int]]]) -> Hits:
    """Ranks of each seed as hits `[S, Q]` of each task."""
    hits = {}
    for task in by_seed[0]:
        hits[task] = np.array([ranks[task] for ranks in by_seed]) == 1
    return hits
