"""What one tower for both modalities is worth: claim F12, against a small CLIP on the same rows."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing
from torch.optim import AdamW
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, set_seed

from ..checkpoints.dual_encoders import DualEncoder, open_dual_encoder
from ..data.schema import Item
from ..eval.figures import embedding_map, modality_gap
from ..files.writing import has_json, move_into_place, read_json, write_json
from ..images_unime import open_image
from ..miniature.backbone import build_tokenizer, world_texts
from ..trainers.starting import load_model
from .findings import Finding, compare_values
from .laboratory import Laboratory

PAIRS = 150  # of each task, that gap and precision are measured on
TRAINED = ("Shapes_i2t", "Shapes_long_i2t")  # pictures with captions, short and long
LIMIT = 77  # tokens of CLIP's text tower
CLIP_SCALE = 100  # what CLIP's similarities are multiplied by at the end of its training


def one_tower_closes_the_gap(laboratory: Laboratory) -> Finding:
    """F12: the modality gap is smaller than a dual encoder's, and long captions lose nothing where that is cut."""
    figures = {"one tower": [], "two towers": []}
    for seed in laboratory.seeds:
        ours = laboratory.stages_1_2(seed)
        figures["one tower"].append(_measured(laboratory, ours, load_model))
        figures["two towers"].append(_measured(laboratory, dual_encoder(laboratory, seed), _open))

    def of(model: str, name: str) -> list[float]:
        return [figure[name] for figure in figures[model]]

    comparisons = [
        compare_values(
            "modality gap: two towers over one",
            of("two towers", "gap"),
            of("one tower", "gap"),
            "0.6 to 0.8 over less",
            unit="distance",
        ),
        compare_values(
            "what a caption behind the limit loses: two towers over one",
            of("two towers", "loss"),
            of("one tower", "loss"),
            unit="points",
        ),
    ]
    table = {}
    for model in figures:
        table[model] = {name: f"{sum(of(model, name)) / len(laboratory.seeds):.3f}" for name in figures[model][0]}

    picture = _draw(laboratory)
    return Finding(
        "A CLIP of two small towers, trained from nothing on the pictures and captions of the world at the "
        "temperature that CLIP's own training ends with (0.01), beside the embedder of both stages, trained at 0.05. "
        "The gap is the distance of the centres of pictures and captions. A caption "
        f"whose background is told again and again before its things is longer than {LIMIT} tokens: the loss is that "
        "of precision@1 against the caption told once.",
        comparisons,
        table,
        [picture.name],
    )


def _open(path: Path) -> DualEncoder:
    return open_dual_encoder(path, "cpu")


# measuring
def _measured(laboratory: Laboratory, path: Path, load) -> dict[str, float]:
    """Gap and precision of a model, from a file where they were measured before."""
    file = path.with_name(f"{path.name}-gap.json")
    if has_json(file):
        return read_json(file)

    model = load(path)
    images, captions = _pairs(laboratory, "Shapes_long_i2t")
    rows = _encoded(model, images, "query")
    columns = _encoded(model, captions, "document")
    once = _precision(rows, columns)
    late = _precision(rows, _encoded(model, [lengthened(caption) for caption in captions], "document"))

    figures = {"gap": modality_gap(rows, columns), "precision": 100 * once, "behind the limit": 100 * late}
    figures["loss"] = figures["precision"] - figures["behind the limit"]
    write_json(file, figures)
    return figures


def lengthened(caption: Item) -> Item:
    """A long caption whose first sentence, about the background, is told until the rest is behind CLIP's limit."""
    first, rest = caption.text.split(". ", 1)
    return Item(f"{first}. " * 16 + rest)


def _pairs(laboratory: Laboratory, name: str) -> tuple[list[Item], list[Item]]:
    """Pictures and captions of a test task."""
    task = laboratory.by_name[name]
    images = task.queries[:PAIRS]
    captions = []
    for candidates, relevant in list(zip(task.candidates, task.relevant))[:PAIRS]:
        captions.append(task.corpus[candidates[relevant[0]]])
    return images, captions


def _encoded(model, items: list[Item], role: str) -> torch.Tensor:
    """Unit-norm embeddings `[N, D]`."""
    inputs = [item.as_input() for item in items]
    if isinstance(model, DualEncoder):
        return model.encode(inputs, fusion="image")
    encode = model.encode_query if role == "query" else model.encode_document
    return encode(inputs).float().cpu()


def _precision(rows: torch.Tensor, columns: torch.Tensor) -> float:
    """The share of rows whose match is above all others."""
    scores = rows @ columns.T  # [N, N]
    wrong = scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), -torch.inf)
    return float((scores.diagonal() > wrong.max(dim=1).values).float().mean())


def _draw(laboratory: Laboratory) -> Path:
    """The map of pictures and captions of both models, of the first seed."""
    images, captions = _pairs(laboratory, "Shapes_i2t")
    models = {
        "one tower": load_model(laboratory.stages_1_2(0)),
        "two towers": _open(dual_encoder(laboratory, 0)),
    }
    panels = {}
    for title, model in models.items():
        rows = _encoded(model, images, "query")
        panels[title] = {"pictures": rows, "captions": _encoded(model, captions, "document")}
    return embedding_map(panels, laboratory.out / "F12.png")


# training
def dual_encoder(laboratory: Laboratory, seed: int) -> Path:
    """A small CLIP, trained by contrast on the pictures and captions of the world unless it is there."""
    out = laboratory.out / f"seed-{seed}" / "two-towers"
    if out.exists():
        return out

    set_seed(seed)
    processor = _build_processor(laboratory)
    model = CLIPModel(_build_config(processor))
    rows = laboratory.training_rows(TRAINED)
    _train(model, processor, rows, seed, **laboratory.settings["two_towers"])

    draft = out.with_name("two-towers.tmp")
    model.save_pretrained(draft)
    processor.save_pretrained(draft)
    move_into_place(draft, out)
    return out


def _build_processor(laboratory: Laboratory) -> CLIPProcessor:
    tokenizer = build_tokenizer(world_texts(laboratory.world))
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = LIMIT

    # CLIP pools at the first token of the end, which padding repeats; the id 2 has another meaning to it
    tokenizer.eos_token = tokenizer.pad_token
    ending = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {ending[0]}", special_tokens=[ending])
    images = CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})
    return CLIPProcessor(images, tokenizer)


def _build_config(processor: CLIPProcessor) -> CLIPConfig:
    """Towers of about the backbone's size."""
    size = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 3}
    tokenizer = processor.tokenizer
    text = {
        **size,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LIMIT,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.eos_token_id,
    }
    vision = {**size, "image_size": 48, "patch_size": 8}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=192)


def _train(model: CLIPModel, processor: CLIPProcessor, rows, seed: int, steps: int, batch: int):
    """CLIP's symmetric contrastive loss over batches of pictures with their captions."""
    # CLIP learns its temperature, from 0.07 down to a limit of 0.01; the few steps here would hardly leave 0.07
    model.logit_scale.data.fill_(math.log(CLIP_SCALE))
    model.logit_scale.requires_grad = False

    optimizer = AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        numbers = torch.randint(len(rows), (batch,), generator=generator).tolist()
        picked = [rows[number] for number in numbers]
        images = [open_image(row["query"]["image"]) for row in picked]
        texts = [row["positive"]["text"] for row in picked]
        inputs = processor(text=texts, images=images, padding=True, truncation=True, return_tensors="pt")

        logits = model(**inputs).logits_per_image  # [B, B]
        targets = torch.arange(len(logits))
        loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
