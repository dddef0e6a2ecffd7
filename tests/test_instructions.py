"""A default instruction is saved with a model, and is used wherever nobody gives one, in training as in use."""

import json

import pytest
import torch
from conftest import picture
from sentence_transformers import CrossEncoder, SentenceTransformer

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.checkpoints.cards import read_card
from unime.checkpoints.conversion import export
from unime.cli import main as unime
from unime.commands.demo import Photos, page
from unime.commands.inputs import one_item
from unime.data.collators import EmbeddingCollator
from unime.data.schema import Example, Item, to_dataset
from unime.jobs.embedding import Embedder
from unime.jobs.prompts import reading
from unime.mining.pipeline import Mining
from unime.mining.settings import MiningConfig
from unime.processing_unime import Reading
from unime.serving.engines import EmbeddingEngine
from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.reranker import RerankerCollator, RerankerConfig

FIND, SHOW = "Find me an image of", "Represent the image."
BY_ROLE = {"query": FIND, "document": SHOW}
ITEMS = ["a ring", {"text": "a star", "image": picture(1)}, picture(2)]


@pytest.fixture(scope="module")
def folder(backbone, tmp_path_factory):
    """A saved embedder with instructions of both roles."""
    folder = tmp_path_factory.mktemp("instructed") / "model"
    UniMEModel.from_backbone(backbone, instructions=BY_ROLE).save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder):
    return UniMEModel.from_pretrained(folder)


@pytest.mark.parametrize("fusion", ["joint", "sum"])
def test_a_saved_model_reads_items_by_its_own_instructions(model, fusion):
    given = {role: model.encode(ITEMS, text, role=role, fusion=fusion) for role, text in BY_ROLE.items()}
    assert torch.equal(model.encode_query(ITEMS, fusion=fusion), given["query"])
    assert torch.equal(model.encode_document(ITEMS, fusion=fusion), given["document"])
    assert not torch.allclose(given["query"], given["document"])


def test_what_a_call_or_an_item_says_goes_before(model, embedder):
    plain = embedder.encode(ITEMS)
    assert torch.equal(model.encode(ITEMS, instruction=""), plain)
    assert torch.equal(model.encode(ITEMS, benchmark="mmeb"), embedder.encode(ITEMS, benchmark="mmeb"))

    own = {"text": "a ring", "instruction": "Name it."}
    assert torch.equal(model.encode(own), embedder.encode("a ring", "Name it."))
    both = model.encode(["a ring", "a star"], instruction=["Name it.", None])
    assert torch.equal(both, embedder.encode(["a ring", "a star"], instruction=["Name it.", FIND]))


def test_what_the_command_line_says_goes_before(model, embedder):
    item = one_item("a ring", None, "Name it.")
    expected = embedder.encode("a ring", instruction="Name it.")
    torch.testing.assert_close(model.encode(item), expected)
    with pytest.raises(ValueError):
        model.encode(one_item(None, None, "Name it."))


def test_a_chat_is_read_as_it_is(model, embedder):
    chat = [{"role": "user", "content": "a ring"}]
    assert torch.equal(model.encode([chat]), embedder.encode([chat]))


def test_one_text_is_that_of_both_roles(backbone):
    model = UniMEModel.from_backbone(backbone, instructions=FIND)
    assert torch.equal(model.encode_document(ITEMS), model.encode_document(ITEMS, instruction=FIND))


@pytest.mark.parametrize("wrong", [3, ["a"], {"candidate": "a"}, {"query": 3}])
def test_what_is_no_instruction_is_refused(backbone, wrong):
    with pytest.raises(ValueError, match="instructions must be a text"):
        UniMEModel.from_backbone(backbone, instructions=wrong)


@pytest.mark.parametrize("strategy", ["pointwise", "listwise"])
def test_a_reranker_reads_queries_by_its_own_instruction(backbone, reranker, tmp_path, strategy):
    UniMERerankerForCausalLM.from_backbone(backbone, instructions=BY_ROLE).save_pretrained(tmp_path)
    saved = UniMERerankerForCausalLM.from_pretrained(tmp_path)

    def scores(model, **settings):
        ranked = model.rank("red", ["a ring", {"image": picture(1)}], strategy, **settings)
        return pytest.approx([entry["score"] for entry in ranked], abs=1e-6)

    assert scores(saved).expected == scores(reranker, instruction=FIND) != scores(reranker).expected
    assert scores(saved, instruction="").expected == scores(reranker)
    assert scores(saved, benchmark="mmeb").expected == scores(reranker, benchmark="mmeb")


def test_a_reranker_with_words_of_its_own_has_one_too(tiny):
    path, _ = tiny("qwen3_vl")
    plain = UniMERerankerForCausalLM.from_backbone(path, "qwen3-vl-reranker").processor
    instructed = UniMERerankerForCausalLM.from_backbone(path, "qwen3-vl-reranker", instructions=FIND).processor
    assert instructed.question("red", "a ring") == plain.question("red", "a ring", instruction=FIND)
    on_benchmark = instructed.question("red", "a ring", benchmark="mmeb")
    assert on_benchmark == plain.question("red", "a ring", benchmark="mmeb")


def test_items_of_a_benchmark_are_not_taken_for_those_of_use(model, embedder):
    # equal prompts of both roles are embedded once, where they are equal
    assert embedder.processor.wording("document", "mmeb") == ("query", None)
    assert model.processor.wording("document", "mmeb") == ("query", "mmeb")
    assert model.processor.wording("document") == ("document", None)


def test_training_reads_as_use_does(model):
    row = Example(Item("a ring"), Item("a star"), (Item("a bell"),))
    (fed, problems) = EmbeddingCollator(model.processor, benchmark="mmeb").preview(row, {})
    assert problems == []
    query, positive, negative = [entry.prepared.prompt for entry in fed]
    assert FIND in query and SHOW in positive and SHOW in negative


def test_mining_embeds_rows_as_a_training_reads_them(model, folder, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"query": "a ring", "positive": "a star"}\n')
    mining = Mining(MiningConfig(data=str(tmp_path / "pairs.jsonl"), out=str(tmp_path / "out"), embedder=str(folder)))
    mining.embed()
    for name, item, instruction in (("queries", "a ring", FIND), ("candidates", "a star", SHOW)):
        expected = model.encode([item], instruction, benchmark="mmeb")
        assert torch.allclose(torch.from_numpy(mining.embeddings()[name][:1]), expected, atol=1e-6)


def test_a_reranker_is_trained_by_its_own_instruction(backbone, tmp_path):
    processor = UniMERerankerForCausalLM.from_backbone(backbone, instructions=FIND).processor
    row = Example(Item("a ring"), Item("a star"), (Item("a bell"),))
    fed, _ = RerankerCollator(processor, RerankerConfig(output_dir=str(tmp_path))).preview(row, {})
    assert len(fed) == 3 and all(FIND in entry.prepared.prompt for entry in fed)


def test_a_training_names_it_and_saves_it(model, backbone, tmp_path):
    rows = to_dataset(Example(Item(f"ring {n}"), Item(f"star {n}")) for n in range(4))
    args = ContrastiveConfig(
        output_dir=str(tmp_path), max_steps=1, bf16=False, save_strategy="no", query_instruction="Look for"
    )
    trainer = ContrastiveTrainer(model, args, train_dataset=rows)
    trainer.train()
    trainer.save_model()

    # the other role keeps what the model had
    saved = UniMEModel.from_pretrained(tmp_path)
    assert saved.processor.instructions == {"query": "Look for", "document": SHOW}
    card = (tmp_path / "README.md").read_text()
    assert "query that comes without one, except on a benchmark: `Look for`" in card

    args.query_instruction = ""
    ContrastiveTrainer(model, args, train_dataset=rows)
    assert model.processor.instructions == {"document": SHOW}


def test_the_card_and_the_rehearsal_show_it(model, folder):
    assert f"document that comes without one, except on a benchmark: `{SHOW}`" in read_card(folder).render()
    rows = {row["setting"]: row for row in reading(model, {}, {})}
    assert rows["default instruction of a query"]["value"] == FIND


def test_prompts_of_sentence_transformers_are_its_other_name(model, folder, tmp_path):
    sentences = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    assert sentences.prompts == BY_ROLE
    for theirs, ours in (
        (sentences.encode_query(ITEMS), model.encode_query(ITEMS)),
        (sentences.encode_document(ITEMS), model.encode_document(ITEMS)),
        (sentences.encode(ITEMS), model.encode(ITEMS)),
        (sentences.encode(ITEMS, prompt=""), model.encode(ITEMS, instruction="")),
    ):
        assert torch.allclose(torch.from_numpy(theirs), ours, atol=1e-5)

    # and back
    sentences.prompts["query"] = "Look for"
    sentences.save_pretrained(str(tmp_path))
    assert UniMEModel.from_pretrained(tmp_path).processor.instructions == {"query": "Look for", "document": SHOW}


def test_prompts_of_cross_encoders_are_its_other_name(backbone, tmp_path):
    UniMERerankerForCausalLM.from_backbone(backbone, instructions=FIND).save_pretrained(tmp_path / "saved")
    crosses = CrossEncoder(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    expected = UniMERerankerForCausalLM.from_pretrained(tmp_path / "saved").score("red", ["a ring"])
    assert torch.allclose(torch.from_numpy(crosses.predict([("red", "a ring")])), expected.float(), atol=1e-5)

    crosses.prompts["query"] = "Look for"
    crosses.save_pretrained(str(tmp_path / "again"))
    again = UniMERerankerForCausalLM.from_pretrained(tmp_path / "again")
    assert again.processor.default_instruction("query") == "Look for"


@pytest.mark.filterwarnings("ignore:sentence-transformers cannot be told")
def test_an_exported_model_keeps_it(tiny, tmp_path):
    path, _ = tiny("qwen2_vl")
    UniMEModel.from_backbone(path, instructions=BY_ROLE).save_pretrained(tmp_path / "unime")
    export(tmp_path / "unime", tmp_path / "stock", head=path)
    assert FIND in (tmp_path / "stock" / "templates" / "query.jinja").read_text()
    assert SHOW in (tmp_path / "stock" / "templates" / "document.jinja").read_text()
    assert UniMEModel.from_backbone(tmp_path / "stock").processor.instructions == BY_ROLE


def test_search_demo_and_server_use_it(model, folder, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        picture(number).save(photos / f"{number}.png")
    unime(["encode", str(photos), "--model", str(folder), "--out", str(tmp_path / "index.parquet")])
    capsys.readouterr()

    images = model.encode_document([photos / f"{number}.png" for number in range(3)])
    expected = (model.encode_query("a ring") @ images.T).max().item()
    unime(["search", str(tmp_path / "index.parquet"), "a ring", "--json", "--top", "1"])
    assert json.loads(capsys.readouterr().out)["similarity"] == pytest.approx(expected, abs=1e-5)

    blocks = page(Photos(photos, Embedder(folder), tmp_path / "cache"))
    assert FIND in [getattr(block, "placeholder", None) for block in blocks.blocks.values()]

    engine = EmbeddingEngine(model, 8192)
    parts = engine.prepare(["a ring"], Reading(), ["input 0"])
    vectors = engine.embeddings(parts, engine.run(parts.prepared))
    assert torch.allclose(vectors, model.encode_query(["a ring"]), atol=1e-6)
