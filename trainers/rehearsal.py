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
from .metered_trainer import keep_instructions, resolve_decay
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
        rows_a_batch = args.per_device_train_batch_size * processes
        batches = math.ceil(rows / rows_a_batch)
        steps_an_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))

        # max_steps, where it is set, goes before the epochs
        steps = math.ceil(args.num_train_epochs * steps_an_epoch)
        if args.max_steps > 0:
            steps = args.max_steps

        rows_a_step = rows_a_batch * args.gradient_accumulation_steps
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

    # the stages that embed run a gradient cache, and change how the model reads
    cached = issubclass(trainer_class, EmbeddingTrainer)
    keep_instructions(processor, args)
    if cached:
        trainer_class.keep_reading(args, processor)
    settings = {name: getattr(args, name, None) for name in ("resolution", "max_length", "benchmark")}
    how = reading(model, given, settings)
    rehearsal.warnings += changes(model, how, source["path"])

    # an adapter is as weightless as what it is put on
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

    # equal items of a batch are run once, and all processes share their candidates
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

    # of equally large ones the first by name, so that a rehearsal says the same each time
    names = rows["dataset"][:]
    largest = max(sorted(set(names)), key=names.count)
    numbers = [number for number, name in enumerate(names) if name == largest]
    return rows.select(numbers[:count])


def sample_rows(rows: Dataset, count: int = SAMPLE) -> Dataset:
    """Some rows, in turns from each data set: its first, then its second, ..."""
    numbers_of = {}
    for number, name in enumerate(rows["dataset"]):
        numbers_of.setdefault(name, []).append(number)

    # sorted, the n-th rows of all data sets stand together
    places = []
    for order, numbers in enumerate(numbers_of.values()):
        for place, number in enumerate(numbers[:count]):
            places.append((place, order, number))

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
    if args.bf16:
        precision = "bfloat16"
    elif args.fp16:
        precision = "float16"

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
    boundary = getattr(collator, "length_boundary", None)  # the reranker's collator has none
    chunks = plan_chunks(lengths, args.batch_tokens, boundary=boundary)

    # each sequence of a chunk is padded to its longest
    padded = []
    for chunk in chunks:
        longest = max(lengths[index] for index in chunk)
        padded.append(longest * len(chunk))

    images = []  # tokens of each
    for entry in distinct:
        images += entry.prepared.image_tokens

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
    general = set()
    for parent in type(args).__mro__[1:]:
        general.update(getattr(parent, "__dataclass_fields__", ()))

    # the temperature is of interest in each stage that has one, whoever declares it
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

    # schedulers want an optimizer; this one has nothing to train
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    warmup = args.get_warmup_steps(steps)
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, warmup, steps, args.lr_scheduler_kwargs)

    moments = {"first": 0, "end of warm-up": warmup, "a quarter": steps // 4, "half": steps // 2}
    moments |= {"three quarters": 3 * steps // 4, "last": steps - 1}

    # the schedule itself tells the rate of any step, without the steps before it
    rows = []
    for moment, step in moments.items():
        rate = args.learning_rate * scheduler.lr_lambdas[0](step)
        rows.append({"moment": moment, "step": step + 1, "learning rate": f"{rate:.3g}"})
    return rows


def _adapter(model, peft_config) -> list[dict]:
    """The layers that got an adapter, by part and name."""
    if peft_config is None:
        return []

    # each adapted layer has one lora_A
    counts = {}  # (part, name of the layer) -> how many
    for name, component in estimates.part_names(vlm_of(model)).items():
        if ".lora_A." not in name:
            continue
        layer = name.split(".lora_A.")[0].rpartition(".")[2]
        key = (component.replace("_", " "), layer)
        counts[key] = counts.get(key, 0) + 1

    # PEFT writes its own start as True
    start = peft_config.init_lora_weights
    if start is True:
        start = "kaiming"

    settings = {
        "adapter": "DoRA" if peft_config.use_dora else "LoRA",
        "r": peft_config.r,
        "alpha": peft_config.lora_alpha,
        "dropout": f"{peft_config.lora_dropout:g}",
        "start": str(start),
    }
    rows = []
    for (component, layer), count in counts.items():
        rows.append({"part": component, "layers": layer, "count": count, **settings})
    return rows


def _passes(vlm, forwards: int) -> dict[str, int]:
    """Passes over the language model and the vision tower in a step, in units of a forward.

    A backward is as much as two forwards where the weights train, and as one where gradients only pass through.
    """
    component_of = estimates.part_names(vlm)
    passes = {}
    for name, components in (("language", ("language_model",)), ("vision", ("vision_tower", "projector"))):
        trained = []
        for key, component in component_of.items():
            if component in components and vlm.get_parameter(key).requires_grad:
                trained.append(key)

        # an adapter's own matrices are so small that they do not count
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

    # the gradient cache may keep the graphs of several chunks
    budget = args.batch_tokens
    if cached:
        budget = max(budget, args.graph_tokens)

    # a chunk is at most as large as the budget, or one sequence that is larger
    prepared = [entry.prepared for entry in distinct]
    lengths = [entry.length for entry in prepared]
    with_graph = max([min(budget, sum(lengths)), *lengths])
    checkpointing = bool(args.activation_checkpointing or args.gradient_checkpointing)
    half_precision = bool(args.bf16 or args.fp16)
    graph = estimates.activation_bytes(vlm, with_graph, half_precision, checkpointing)

    # checkpointing runs a forward again, and so does the gradient cache for what it keeps no graph of
    forwards = 1 + checkpointing
    if cached and with_graph < sum(lengths):
        forwards += 1
    passes = _passes(vlm, forwards)

    flops = estimates.forward_flops(vlm, processor, prepared)
    a_step = 0
    for name, forward in flops.items():
        a_step += forward * passes[name]
    a_step *= args.gradient_accumulation_steps

    return {
        "weights": estimates.gib(weights),
        "gradients and optimizer": estimates.gib(state),
        "graph of the largest chunk": estimates.gib(graph),
        "together": estimates.gib(weights + state + graph),
        "forward of a batch, language model": estimates.tera(flops["language"]),
        "forward of a batch, vision": estimates.tera(flops["vision"]),
        "passes over the language model": passes["language"],
        "passes over the vision tower": passes["vision"],
        "a step": estimates.tera(a_step),
    }
