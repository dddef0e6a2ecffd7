"""The rehearsal of a training: what it reads, feeds, trains and costs, from a model without weights."""

import math
from dataclasses import dataclass
from itertools import chain

import torch
from datasets import Dataset
from transformers import get_scheduler

from ..batching_unime import plan_chunks
from ..data.collators import Fed
from ..images_unime import read_size
from ..jobs import estimates
from ..jobs.prompts import changes, examples, reading
from ..jobs.rehearsal import Rehearsal
from .adapters import vlm_of, without_adapter
from .embedding_trainer import EmbeddingTrainer
from .metered_trainer import resolve_decay
from .row_counts import RowCounts

SAMPLE = 256  # rows that are read beside those of the batch: some of every data set


@dataclass(frozen=True)
class Plan:
    """How long a training is.

    Args:
        processes (`int`): that train together.
        rows_a_step (`int`): of all processes and accumulated batches.
        steps (`int`): optimizer steps.
        epochs (`float`): passes over the rows.
    """

    processes: int
    rows_a_step: int
    steps: int
    epochs: float

    @classmethod
    def of(cls, args, rows: int, processes: int) -> "Plan":
        """The plan of a training on so many rows, with `Trainer`'s arithmetic."""
        batches = math.ceil(rows / (args.per_device_train_batch_size * processes))
        steps_an_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
        steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_an_epoch)
        rows_a_step = args.per_device_train_batch_size * processes * args.gradient_accumulation_steps
        return cls(processes, rows_a_step, steps, steps / steps_an_epoch)


def rehearse(
    trainer_class, model, args, rows: Dataset, peft_config, source: dict, given: dict, processes: int
) -> Rehearsal:
    """Rehearses a stage.

    Args:
        trainer_class: of the stage.
        model: as the stage opens it, without weights.
        args: the stage's training arguments.
        rows (`Dataset`): the training rows.
        peft_config (*optional*): of the adapter.
        source (`dict`): arguments with which the model was loaded: `path`, `dtype` and `quantization`.
        given (`dict[str, str]`): where each setting was given.
        processes (`int`): of the launch.

    Returns:
        [`~unime.jobs.rehearsal.Rehearsal`]
    """
    rehearsal = Rehearsal(f"unime train {trainer_class.__name__.removesuffix('Trainer').lower()}")
    processor = model.processor
    cached = issubclass(trainer_class, EmbeddingTrainer)
    if cached:
        trainer_class.keep_reading(args, processor)
    settings = {name: getattr(args, name, None) for name in ("resolution", "max_length", "benchmark")}
    how = reading(model, given, settings)
    rehearsal.warnings += changes(model, how, source["path"])

    with torch.device("meta"):
        model = trainer_class.made_trainable(model, args, peft_config)
    collator = trainer_class.collator_for(without_adapter(model), args, processor)
    counts = RowCounts.of(rows)
    plan = Plan.of(args, counts.rows, processes)

    # the rows of a batch, and some of every data set
    read = {}
    batch, problems = _fed(collator, batch_rows(rows, args), read)
    sample, more_problems = _fed(collator, sample_rows(rows), read)
    rehearsal.errors += dict.fromkeys([*problems, *more_problems])
    distinct = list({entry.key: entry for entry in batch}.values())
    candidates = sum(not entry.kind.startswith("query") for entry in distinct)
    rehearsal.errors += trainer_class.shortages(args, counts, candidates * plan.processes)

    rehearsal.facts = {
        "Model": _model(model, source, args),
        "How items are read": how,
        "Rows": {"rows": counts.rows, "data sets": len(counts.data_sets)},
        "Data sets": counts.data_sets,
        "Prompts": examples(chain(sample, batch), processor, lambda image: read_size(image, str(image))),
        "A batch of one process": _batch(distinct, batch, args, collator),
        "Training": _training(plan, args),
        "Learning rate": learning_rates(args, plan.steps),
        "Trained parameters": estimates.parameters(vlm_of(model)),
        "Adapter": _adapter(model, peft_config),
        "Estimates for one process": _costs(model, processor, distinct, args, source, cached),
    }
    return rehearsal


def batch_rows(rows: Dataset, args) -> Dataset:
    """Rows of one batch of one process: spread over all rows, or the first of the largest data set."""
    count = min(args.per_device_train_batch_size, len(rows))
    if not args.homogeneous_batches:
        return rows.select([number * len(rows) // count for number in range(count)])

    names = rows["dataset"][:]
    largest = max(sorted(set(names)), key=names.count)
    numbers = [number for number, name in enumerate(names) if name == largest]
    return rows.select(numbers[:count])


def sample_rows(rows: Dataset, count: int = SAMPLE) -> Dataset:
    """Some rows, in turns from each data set: its first, then its second, ..."""
    numbers_of = {}
    for number, name in enumerate(rows["dataset"]):
        numbers_of.setdefault(name, []).append(number)

    # the n-th rows of all data sets stand together
    places = []
    for order, numbers in enumerate(numbers_of.values()):
        places += [(place, order, number) for place, number in enumerate(numbers[:count])]
    return rows.select([number for _, _, number in sorted(places)[:count]])


def _fed(collator, rows: Dataset, read: dict) -> tuple[list[Fed], list[str]]:
    """What some rows become, and what is wrong with those that cannot be read; `read` has what was read before."""
    fed = []
    problems = []
    for row in rows:
        entries, messages = collator.preview(row, read)
        fed += entries
        problems += messages
    return fed, problems


def _model(model, source: dict, args) -> dict:
    """What is trained, and in which precision."""
    vlm = vlm_of(model)
    precision = "float32"
    if args.bf16 or args.fp16:
        precision = "bfloat16" if args.bf16 else "float16"
    return {
        "checkpoint": str(source["path"]),
        "architecture": vlm.config.model_type,
        "width": vlm.config.get_text_config().hidden_size,
        "layers": vlm.config.get_text_config().num_hidden_layers,
        "weights": source["quantization"] or source["dtype"] or "float32",
        "computed in": precision,
    }


def _batch(distinct: list[Fed], fed: list[Fed], args, collator) -> dict:
    """Tokens, images and chunks of a batch."""
    lengths = [entry.prepared.length for entry in distinct]
    boundary = getattr(collator, "length_boundary", None)
    chunks = plan_chunks(lengths, args.batch_tokens, boundary=boundary)
    padded = [max(lengths[index] for index in chunk) * len(chunk) for chunk in chunks]

    images = [tokens for entry in distinct for tokens in entry.prepared.image_tokens]
    return {
        "rows": args.per_device_train_batch_size,
        "sequences": len(fed),
        "of them distinct": len(distinct),
        "tokens": sum(lengths),
        "longest sequence": max(lengths, default=0),
        "images": len(images),
        "image tokens": sum(images),
        "chunks": len(chunks),
        "padded tokens of a chunk at most": args.batch_tokens,
        "padded tokens of the largest": max(padded, default=0),
    }


def _training(plan: Plan, args) -> dict:
    """Batch, steps and epochs, and the settings of the stage itself."""
    facts = {
        "processes": plan.processes,
        "rows a step": plan.rows_a_step,
        "steps": plan.steps,
        "epochs": round(plan.epochs, 2),
        "batches of one data set": args.homogeneous_batches,
    }

    # what the stage has beside the arguments of every training
    general = {field for parent in type(args).__mro__[1:] for field in getattr(parent, "__dataclass_fields__", ())}
    for name in type(args).__dataclass_fields__:
        if name not in general or name == "temperature":
            facts[name] = getattr(args, name)
    return facts


def learning_rates(args, steps: int) -> list[dict]:
    """The learning rate at a few steps, from the scheduler that the training will use.

    Args:
        args: of the training.
        steps (`int`): how many it has.
    """
    resolve_decay(args, steps)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    warmup = args.get_warmup_steps(steps)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, warmup, steps, args.lr_scheduler_kwargs)

    moments = {"first": 0, "end of warm-up": warmup, "a quarter": steps // 4, "half": steps // 2}
    moments |= {"three quarters": 3 * steps // 4, "last": steps - 1}
    rows = []
    for moment, step in moments.items():
        rate = args.learning_rate * scheduler.lr_lambdas[0](step)
        rows.append({"moment": moment, "step": step + 1, "learning rate": f"{rate:.3g}"})
    return rows


def _adapter(model, peft_config) -> list[dict]:
    """The layers that got an adapter, by part and name."""
    if peft_config is None:
        return []

    groups = {}
    vlm = vlm_of(model)
    parts = estimates.part_names(vlm)
    for name in parts:
        if ".lora_A." not in name:
            continue
        layer = name.split(".lora_A.")[0]
        key = (parts[name].replace("_", " "), layer.rpartition(".")[2])
        groups[key] = groups.get(key, 0) + 1

    kind = "DoRA" if peft_config.use_dora else "LoRA"
    start = peft_config.init_lora_weights
    settings = {
        "adapter": kind,
        "r": peft_config.r,
        "alpha": peft_config.lora_alpha,
        "dropout": f"{peft_config.lora_dropout:g}",
        "start": "kaiming" if start is True else str(start),
    }
    return [{"part": part, "layers": layer, "count": count, **settings} for (part, layer), count in groups.items()]


def _passes(vlm, forwards: int) -> dict[str, int]:
    """Passes over the language model and the vision tower in a step, in units of a forward.

    A backward is as much as two forwards where the weights train, and as one where gradients only pass through.
    """
    passes = {}
    for name, parts in (("language", ("language_model",)), ("vision", ("vision_tower", "projector"))):
        names = [key for key, part in estimates.part_names(vlm).items() if part in parts]
        trained = [key for key in names if vlm.get_parameter(key).requires_grad]
        if any("lora_" not in key for key in trained):
            passes[name] = forwards + 2
        elif trained:
            passes[name] = forwards + 1
        else:
            passes[name] = 1  # features of a frozen tower are computed once
    return passes


def _costs(model, processor, distinct: list[Fed], args, source: dict, cached: bool) -> dict:
    """Memory of one process, and arithmetic of its share of a step; docs/rehearsal.md has the formulas."""
    vlm = vlm_of(model)
    trained = sum(parameter.numel() for parameter in vlm.parameters() if parameter.requires_grad)
    weights = estimates.weight_bytes(vlm, source["dtype"] or "float32", source["quantization"])
    state = trained * (estimates.GRADIENT_BYTES + estimates.ADAM_BYTES)

    # a chunk is at most as large as the budget, or one sequence that is larger
    prepared = [entry.prepared for entry in distinct]
    lengths = [entry.length for entry in prepared]
    budget = max(args.batch_tokens, args.graph_tokens if cached else 0)
    with_graph = max([min(budget, sum(lengths)), *lengths])
    checkpointing = bool(args.activation_checkpointing or args.gradient_checkpointing)
    graph = estimates.activation_bytes(vlm, with_graph, bool(args.bf16 or args.fp16), checkpointing)

    flops = estimates.forward_flops(vlm, processor, prepared)
    forwards = 1 + checkpointing
    if cached and with_graph < sum(lengths):
        forwards += 1  # of the gradient cache, without a graph
    passes = _passes(vlm, forwards)
    total = sum(flops[part] * passes[part] for part in flops) * args.gradient_accumulation_steps
    return {
        "weights": estimates.gib(weights),
        "gradients and optimizer": estimates.gib(state),
        "graph of the largest chunk": estimates.gib(graph),
        "together": estimates.gib(weights + state + graph),
        "forward of a batch, language model": estimates.tera(flops["language"]),
        "forward of a batch, vision": estimates.tera(flops["vision"]),
        "passes over the language model": passes["language"],
        "passes over the vision tower": passes["vision"],
        "a step": estimates.tera(total),
    }
