"""Dual encoders beside our models in figures: a tiny CLIP, of transformers and of sentence-transformers."""

import csv

import pytest
import torch
from conftest import TEXTS, picture
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from unime import UniMEModel
from unime.commands.evaluate import main
from unime.eval.dual_encoders import open_dual_encoder
from unime.eval.figures import modality_gap
from unime.eval.tasks import read_world_tasks
from unime.miniature.backbone import build_tokenizer


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of two layers with random weights, as the Hub has one."""
    path = tmp_path_factory.mktemp("models") / "clip"
    tokenizer = build_tokenizer(TEXTS, vocab_size=400)
    tokenizer.pad_token = tokenizer.eos_token  # CLIP pools at the first of them
    tokenizer.model_max_length = 24
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(tokenizer), "max_position_embeddings": 24}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 8}, projection_dim=16)
    CLIPModel(config).save_pretrained(path)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(path)
    return path


def test_its_towers_embed_texts_and_images(clip):
    model, image, text = CLIPModel.from_pretrained(clip).eval(), picture(1), "a red circle"
    processor = CLIPProcessor.from_pretrained(clip, backend="pil")
    inputs = processor(text=[text], images=[image], return_tensors="pt", padding="max_length", max_length=24)
    with torch.inference_mode():
        outputs = model(**inputs)
    items = [{"text": text}, {"image": image}, {"image": image, "text": "and what a text tower cannot see"}]
    vectors = open_dual_encoder(clip, "cpu").encode_query(items)
    assert torch.allclose(vectors[0], outputs.text_embeds[0], atol=1e-5)
    assert torch.allclose(vectors[1], outputs.image_embeds[0], atol=1e-5) and torch.equal(vectors[1], vectors[2])
    with pytest.raises(ValueError, match="item 0 has neither a text nor an image"):
        open_dual_encoder(clip, "cpu").encode_query([{"text": " "}])


def test_one_of_sentence_transformers_gives_what_it_gives_there(clip, backbone, tmp_path):
    theirs = SentenceTransformer(modules=[Transformer(str(clip))], device="cpu")
    theirs.save(str(tmp_path / "sentences"))
    inputs = ["a red circle", picture(1)]
    expected = torch.stack(
        [theirs.encode(entry, normalize_embeddings=True, convert_to_tensor=True) for entry in inputs]
    )
    ours = open_dual_encoder(tmp_path / "sentences", "cpu")
    vectors = ours.encode_document([{"text": "a red circle"}, {"image": picture(1)}])
    assert torch.allclose(vectors, expected, atol=1e-5)
    assert open_dual_encoder(backbone, "cpu") is None, "a VLM has one tower for both"


def test_the_map_shows_its_modality_gap_beside_ours(clip, backbone, world, tmp_path):
    UniMEModel.from_backbone(backbone).save_pretrained(tmp_path / "ours")
    command = ["figures", "map", "--models", str(clip), str(tmp_path / "ours"), "--names", "CLIP", "ours"]
    command += ["--data", str(world), "--task", "Shapes_i2t", "--count", "6", "--out", str(tmp_path / "map.png")]
    main(command)
    with open(tmp_path / "map.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["CLIP"] * 12 + ["ours"] * 12
    with Image.open(tmp_path / "map.png") as figure:
        assert figure.width > figure.height

    # the two clouds of points stand apart as far as the embeddings do
    task = next(task for task in read_world_tasks(world) if task.name == "Shapes_i2t")
    model = open_dual_encoder(clip, "cpu")
    sides = [model.encode_query([item.as_input() for item in items[:3]]) for items in (task.queries, task.corpus)]
    assert modality_gap(*sides) > 0.1
    with pytest.raises(SystemExit, match="CLIP is a dual encoder, which has no language model"):
        main(["figures", "next-token", *command[2:], "--head", str(backbone)])
