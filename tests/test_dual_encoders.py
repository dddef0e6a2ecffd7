"""Dual encoders as baselines: tiny CLIP, SigLIP 2 and EVA-CLIP in evaluation, mining and figures."""

import csv
import json
import shutil

import pytest
import torch
from conftest import TEXTS, picture
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    GemmaTokenizer,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from unime import UniMEModel
from unime.checkpoints.dual_encoders import open_dual_encoder
from unime.commands.evaluate import main
from unime.eval.figures import modality_gap
from unime.eval.runner import score_task
from unime.eval.tasks import read_world_tasks
from unime.files.writing import read_json
from unime.jobs.shards import read_job
from unime.miniature.backbone import build_tokenizer
from unime.mining.pipeline import Mining, MiningConfig


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of two layers with random weights, as the Hub has one."""
    path = tmp_path_factory.mktemp("models") / "clip"
    tokenizer = build_tokenizer(TEXTS, vocab_size=400)
    tokenizer.pad_token = tokenizer.eos_token  # CLIP pools at the first of them
    tokenizer.model_max_length = 24
    tokenizer.padding_side = "right"
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
    items = [{"text": text}, {"image": image}, {"image": image, "text": text}]
    ours = open_dual_encoder(clip, "cpu")
    vectors = ours.encode(items)
    assert torch.allclose(vectors[0], outputs.text_embeds[0], atol=1e-5)
    assert torch.allclose(vectors[1], outputs.image_embeds[0], atol=1e-5)

    # an image with a text: the sum, with equal weights, or the image alone
    both = outputs.text_embeds[0] + outputs.image_embeds[0]
    assert torch.allclose(vectors[2], both / both.norm(), atol=1e-5)
    assert torch.equal(ours.encode(items, fusion="image")[2], vectors[1])
    with pytest.raises(ValueError, match="item 0 has neither a text nor an image"):
        ours.encode([{"text": " "}])
    with pytest.raises(ValueError, match="item 1 has a video, which a dual encoder does not read"):
        ours.encode([{"text": "a"}, {"video": "clip.mp4"}])


def siglip2(folder, naflex):
    """A SigLIP 2 of fixed size, or one that takes images in their own shape."""
    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *"abcdefghijklmnopqrstuvwxyzAR"]
    tokenizer_class = Siglip2Tokenizer if naflex else GemmaTokenizer
    tokenizer = tokenizer_class(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    torch.manual_seed(0)
    if naflex:
        config = Siglip2Config(text_config=text, vision_config={**size, "patch_size": 8, "num_patches": 16})
        images = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
        model = Siglip2Model(config)
    else:
        config = SiglipConfig(text_config=text, vision_config={**size, "patch_size": 8, "image_size": 32})
        images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
        model = SiglipModel(config)
    for part in (model, tokenizer, images):
        part.save_pretrained(folder)
    return model.eval(), tokenizer, images


@pytest.mark.parametrize("naflex", [False, True], ids=["fixed", "naflex"])
def test_siglip2_reads_texts_in_lower_case_with_their_padding(tmp_path, naflex):
    model, tokenizer, images = siglip2(tmp_path, naflex)
    texts = tokenizer(["a red circle"], padding="max_length", max_length=16, return_tensors="pt")
    with torch.inference_mode():
        expected = model(input_ids=texts["input_ids"], **images([picture(1, (80, 40))], return_tensors="pt"))
    vectors = open_dual_encoder(tmp_path, "cpu").encode([{"text": "A Red circle"}, {"image": picture(1, (80, 40))}])
    assert torch.allclose(vectors[0], expected.text_embeds[0], atol=1e-5)
    assert torch.allclose(vectors[1], expected.image_embeds[0], atol=1e-5)


EVA = """
from transformers import CLIPConfig, CLIPModel
class EvaCLIPModel(CLIPModel):
    get_text_features = get_image_features = property()
    def encode_image(self, pixels):
        return self.visual_projection(self.vision_model(pixel_values=pixels).pooler_output)
    def encode_text(self, ids):
        return -self.text_projection(self.text_model(input_ids=ids).pooler_output)
"""


def test_eva_clip_runs_its_code_where_it_is_trusted(clip, tmp_path):
    """Its configuration says "clip", and its repository has no image processor."""
    folder = tmp_path / "EVA-CLIP"
    shutil.copytree(clip, folder, ignore=shutil.ignore_patterns("*processor*"))
    (folder / "modeling_evaclip.py").write_text(EVA)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_evaclip.EvaCLIPModel"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="EVA-CLIP needs code of its repository"):
        open_dual_encoder(folder, "cpu")
    items = [{"text": "a red circle"}, {"image": picture(1)}]
    theirs = open_dual_encoder(folder, "cpu", trust_remote_code=True).encode(items)
    plain = open_dual_encoder(clip, "cpu").encode(items)
    assert torch.allclose(theirs[0], -plain[0], atol=1e-5) and torch.allclose(theirs[1], plain[1], atol=1e-5)


def test_weights_that_do_not_land_are_an_error(clip, tmp_path):
    shutil.copytree(clip, tmp_path / "clip")
    weights = load_file(clip / "model.safetensors")
    weights["text_tower.weight"] = weights.pop("text_projection.weight")
    save_file(weights, tmp_path / "clip/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="does not fit this model: missing keys: text_projection.weight"):
        open_dual_encoder(tmp_path / "clip", "cpu")


def test_it_is_evaluated_and_mined_with(clip, backbone, world, tmp_path, capsys):
    command = ["world", "--model", str(clip), "--data", str(world), "--out", str(tmp_path / "results")]
    main([*command, "--tasks", "Shapes_i2t", "--json"])
    saved = read_json(json.loads(capsys.readouterr().out)["results"])
    task = next(task for task in read_world_tasks(world) if task.name == "Shapes_i2t")
    queries, corpus = (
        open_dual_encoder(clip, "cpu").encode([item.as_input() for item in side])
        for side in (task.queries, task.corpus)
    )
    expected, _, _ = score_task(queries, corpus, task)
    assert saved["tasks"]["Shapes_i2t"]["ranks"] == expected["ranks"]
    with pytest.raises(SystemExit, match="is a dual encoder, which has no prompts: leave out the preset"):
        main([*command, "--preset", "joint"])

    settings = {"data": str(world / "train"), "image_root": str(world), "out": str(tmp_path / "mined")}
    settings |= {"subsets": ["Shapes_vqa"], "rows_per_subset": 8, "embedder": str(clip), "top_k": 6}
    job = Mining(MiningConfig(**settings))
    job.embed()
    job.retrieve()
    near = read_job(job.out / "neighbours")
    pair = job.pairs[3]
    sides = open_dual_encoder(clip, "cpu").encode([job.pool.queries[pair.query].as_input(), pair.item.as_input()])
    assert float(near["positive_similarity"][3]) == pytest.approx(float(sides[0] @ sides[1]), abs=1e-5)


def test_one_of_sentence_transformers_gives_what_it_gives_there(clip, backbone, tmp_path):
    theirs = SentenceTransformer(modules=[Transformer(str(clip))], device="cpu")
    theirs.save(str(tmp_path / "sentences"))
    inputs = ["a red circle", picture(1)]
    expected = torch.stack(
        [theirs.encode(entry, normalize_embeddings=True, convert_to_tensor=True) for entry in inputs]
    )
    ours = open_dual_encoder(tmp_path / "sentences", "cpu")
    vectors = ours.encode([{"text": "a red circle"}, {"image": picture(1)}])
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
    sides = [model.encode([item.as_input() for item in items[:3]], "image") for items in (task.queries, task.corpus)]
    assert modality_gap(*sides) > 0.1
    with pytest.raises(SystemExit, match="CLIP is a dual encoder, which has no language model"):
        main(["figures", "next-token", *command[2:], "--head", str(backbone)])
