"""Checkpoints of others wherever a model of ours goes: measured, exported, trained, saved and mined with."""

import json
import math
import shutil

import pytest
import torch
from conftest import fresh_process, picture
from test_adapters import stock_adapter
from test_cross_attention import write_mllama
from test_embedding_gemma import write_gemma
from test_families import write_jina
from test_published_rerankers import WORDS
from tiny_checkpoints import write

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.checkpoints.conversion import export
from unime.commands.evaluate import main
from unime.data.readers import read_judged
from unime.data.schema import Example, Item, to_dataset, to_example
from unime.files.writing import read_json
from unime.mining.pipeline import Mining, MiningConfig
from unime.prompts_unime import CHECKPOINTS, PRESETS
from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer

# a checkpoint of each preset, as a tiny one of its backbone
EMBEDDERS = {
    "UniME-Phi3.5-V-4.2B": "phi3_v",
    "UniME-LLaVA-1.6-7B": "llava_next",
    "UniME-LLaVA-OneVision-7B": "llava_onevision",
    "UniME-V2-Qwen2VL-2B": "qwen2_vl",
    "UniME-V2-LLaVA-OneVision-8B": "llava_onevision",
    "VLM2Vec-Qwen2VL-2B": "adapter",
    "VLM2Vec-Full": "phi3_v",
    "VLM2Vec-LLaVa-Next": "llava_next",
    "LLaVE-2B": "llava_onevision",
    "B3_Qwen2_2B": "adapter",
    "SaHa-Qwen2-VL-2B-Instruct": "qwen2_vl",
    "gme-Qwen2-VL-2B-Instruct": "qwen2_vl",
    "RzenEmbed": "qwen2_vl",
    "Ops-MM-embedding-v1-2B": "qwen2_vl",
    "Unite-Base-Qwen2-VL-2B": "qwen2_vl",
    "Qwen3-VL-Embedding-2B": "qwen3_vl",
    "WeMM-Embedding-2B": "qwen3_5",
    "LamRA-Ret": "qwen2_vl",
    "LamRA-Ret-Qwen2.5VL-7b": "qwen2_5_vl",
    "e5-v": "llava_next",
    "mmE5-mllama-11b-instruct": "mllama",
    "MoCa-Qwen25VL-3B": "qwen2_5_vl",
    "nomic-embed-multimodal-3b": "qwen2_5_vl",
    "jina-embeddings-v4": "jina",
    "jina-embeddings-v4-vllm-code": "qwen2_5_vl",
    "jina-embeddings-v4-vllm-text-matching": "qwen2_5_vl",
    "embeddinggemma-2": "gemma",
}
RERANKERS = {
    "UniME-V2-reranker-Qwen25VL-7B": "qwen2_5_vl",
    "LamRA-Rank": "qwen2_vl",
    "LamRA-Rank-Qwen2.5VL-7b": "qwen2_5_vl",
    "Qwen3-VL-Reranker-2B": "qwen3_vl",
    "MonoQwen2-VL-v0.1": "qwen2_vl",
    "LightOn-rerank-LW-2B": "qwen3_5",
}
TEXTS = ["a red circle", "a blue star"]

# of every backbone, pooling, attention, fusion and kind of score
SAVED = (
    "UniME-LLaVA-OneVision-7B",
    "VLM2Vec-Qwen2VL-2B",
    "VLM2Vec-Full",
    "Qwen3-VL-Embedding-2B",
    "WeMM-Embedding-2B",
    "e5-v",
    "mmE5-mllama-11b-instruct",
    "MoCa-Qwen25VL-3B",
    "jina-embeddings-v4",
    "embeddinggemma-2",
    "LamRA-Rank-Qwen2.5VL-7b",
    "Qwen3-VL-Reranker-2B",
    "MonoQwen2-VL-v0.1",
    "LightOn-rerank-LW-2B",
)


@pytest.fixture(scope="module")
def published(tmp_path_factory, tiny):
    """`published(name)`: the folder of a tiny checkpoint, named as its repository is."""
    home = tmp_path_factory.mktemp("published")

    def make(name: str):
        folder = home / name
        kind = (EMBEDDERS | RERANKERS)[name]
        if folder.exists():
            return folder
        if kind == "adapter":
            stock_adapter(tiny("qwen2_vl")[0], folder, "qwen2_vl", dora=True, old=True)
        elif kind in ("mllama", "jina", "gemma"):
            folder.mkdir()
            {"mllama": write_mllama, "jina": write_jina, "gemma": write_gemma}[kind](folder)
        elif name in RERANKERS:
            write(folder, kind, texts=WORDS)
        else:
            shutil.copytree(tiny(kind)[0], folder)
        return folder

    return make


@pytest.fixture(scope="module")
def saved(tmp_path_factory, published):
    """`saved(name)`: a folder with the model of ours that a checkpoint is, some items, and what it makes of them."""
    home = tmp_path_factory.mktemp("saved")
    results = {}
    for number in range(2):
        picture(number, (56, 56)).save(home / f"{number}.png")
    images = [{"image": str(home / f"{number}.png")} for number in range(2)]

    def make(name: str):
        if name not in results:
            reranks = name in RERANKERS
            model = (UniMERerankerForCausalLM if reranks else UniMEModel).from_backbone(published(name))
            items = images if name == "MonoQwen2-VL-v0.1" else TEXTS  # which reads images alone
            results[name] = (items, model.score("a star", items) if reranks else model.encode(items))
            model.save_pretrained(home / name)
        return home / name, *results[name]

    return make


def test_there_is_a_checkpoint_of_every_preset():
    names = {repository.split("/")[1]: checkpoint.preset for repository, checkpoint in CHECKPOINTS.items()}
    tested = {names[name] for name in (*EMBEDDERS, *RERANKERS)}
    # of these the head, the other opening and the template are in test_published_rerankers.py
    tested |= {"jina-reranker-m0", "lighton-rerank-lw-4b", "lighton-rerank-pw"}
    assert tested == set(names.values()) <= set(PRESETS)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_embedder_is_measured(name, published, world, tmp_path, capsys):
    line = ["world", "--model", str(published(name)), "--data", str(world), "--tasks", "Shapes_t2i", "--json"]
    if "V2-Qwen2VL" in name:  # at its own resolution, 2,304 tokens an image
        line += ["--options", '{"resolution": 112}']
    main([*line, "--out", str(tmp_path)])
    *_, results = capsys.readouterr().out.splitlines()
    task = read_json(json.loads(results)["results"])["tasks"]["Shapes_t2i"]
    assert len(task["ranks"]) == task["queries"] > 0


@pytest.mark.filterwarnings("ignore:sentence-transformers cannot be told")
@pytest.mark.parametrize("name", [name for name, kind in EMBEDDERS.items() if kind != "gemma"])
def test_an_embedder_is_exported(name, saved, published, tiny, tmp_path):
    folder, _, embeddings = saved(name)
    head = tiny("qwen2_vl")[0] if EMBEDDERS[name] == "adapter" else published(name)
    export(folder, tmp_path / "stock", head=head)
    again = UniMEModel.from_backbone(tmp_path / "stock")
    assert again.processor.preset == UniMEModel.from_pretrained(folder, weights=False).processor.preset
    assert (again.encode(TEXTS) - embeddings).abs().max() <= 1e-6


@pytest.mark.parametrize("name", EMBEDDERS)
def test_training_starts_from_an_embedder(name, saved, tmp_path):
    """A step changes the language model, whatever the preset pools and however it looks at images."""
    examples = []
    for number, text in enumerate(("a ring", "a star left of it")):
        picture(number, (56, 56)).save(tmp_path / f"{number}.png")
        examples.append(Example(Item(text), Item(image=str(tmp_path / f"{number}.png")), dataset="A"))
    rows = to_dataset(examples)
    arguments = ContrastiveConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=2,
        learning_rate=0.1,
        temperature=1.0,
        warmup_steps=0,
        optim="sgd",
        resolution=112,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    trainer = ContrastiveTrainer(str(saved(name)[0]), arguments, train_dataset=rows)
    before = {key: weight.clone() for key, weight in trainer.model.vlm.get_decoder().named_parameters()}
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 1 and math.isfinite(losses[0])
    after = dict(trainer.model.vlm.get_decoder().named_parameters())
    assert any((after[key] != weight).any() for key, weight in before.items())


ALONE = """
import json, sys, torch
from transformers import AutoModel, AutoModelForCausalLM
torch.set_num_threads(1)
found = {}
for name, folder, items, reranks in json.loads(sys.argv[1]):
    kind = AutoModelForCausalLM if reranks else AutoModel
    model = kind.from_pretrained(folder, trust_remote_code=True)
    found[name] = (model.score("a star", items) if reranks else model.encode(items)).tolist()
assert "unime" not in sys.modules
print(json.dumps(found))
"""


def test_saved_ones_give_the_same_in_a_process_without_the_package(saved, tmp_path):
    expected = {}
    listed = []
    for name in SAVED:
        folder, items, expected[name] = saved(name)
        listed.append((name, str(folder), items, name in RERANKERS))
    found = fresh_process(ALONE, json.dumps(listed), HF_MODULES_CACHE=str(tmp_path))
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert (torch.tensor(values) - expected[name]).abs().max() <= 1e-5, name


def test_vlm2vec_finds_negatives_that_lamra_judges(published, world, tmp_path):
    settings = {
        "data": str(world / "train"),
        "image_root": str(world),
        "out": str(tmp_path),
        "subsets": ["Shapes_t2i"],
    }
    settings |= {"rows_per_subset": 6, "top_k": 3, "num_negatives": 2, "delta": "none", "fallback": "judge_lowest"}
    settings |= {"embedder": str(published("VLM2Vec-Qwen2VL-2B")), "judge": str(published("LamRA-Rank"))}
    mining = Mining(MiningConfig(**settings))
    mining.run()
    report = json.loads((tmp_path / "judged.report.json").read_text())
    assert report["written"] == len(mining.pool.pairs) > 0 and report["failed"] == {}

    # in LamRA's words
    row, *_ = (to_example(entry) for entry in read_judged(tmp_path / "judged", world))
    judge = UniMERerankerForCausalLM.from_backbone(published("LamRA-Rank"))
    scores = judge.score(row.query.as_input(), [item.as_input() for item in (row.positive, *row.negatives)])
    assert (scores - torch.tensor([row.positive_score, *row.negative_scores])).abs().max() <= 1e-5
