"""Exported checkpoints in other hands: their chat templates, and sentence-transformers without our code."""

import json

import numpy as np
import pytest
from conftest import picture
from jinja2 import TemplateError

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.checkpoints.conversion import export
from unime.checkpoints.exports import judge_template, preset_template
from unime.items_unime import judge_messages

TEXT, IMAGE = 'a "red" {circle}\\n — 🔴', picture(41, (56, 56))
KINDS = [
    ("qwen2_vl", "summary"),
    ("qwen2_vl", "joint"),
    ("qwen2_vl", "hierarchical"),
    ("qwen2_vl", "unime-v2-qwen2-vl"),
    ("qwen2_vl", "saha-qwen2-vl"),
    ("qwen2_vl", "vlm2vec-qwen2-vl"),
    ("llava_next", "unime-llava-1.6"),
    ("llava_onevision", "unime-v2-llava-onevision"),
    ("phi3_v", "unime-phi3.5-v"),
    ("qwen3_vl", "summary"),
]


def items():
    found, image = [([{"type": "image"}], IMAGE)], [{"type": "image"}]
    for text in (TEXT, "a ring\n"):
        words = [{"type": "text", "text": text}]
        found += [(words, text), (image + words, {"image": IMAGE, "text": text})]
    return found


def render(processor, template, messages):
    return processor.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)


def tokens(processor, rendered):
    """What a server makes of a rendered prompt: the template has said all, nothing is put before it."""
    return processor.tokenizer(rendered, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind, preset", KINDS)
def test_templates_give_the_tokens_of_our_own_prompts(tiny, kind, preset):
    processor = UniMEModel.from_backbone(tiny(kind)[0], preset=preset, fusion="joint").processor
    for role in ("query", "document"):
        template = preset_template(processor, role)
        for content, item in items():
            found = render(processor, template, [{"role": "user", "content": content}])
            (own,) = processor.prepare([item], role=role)
            assert own.prompt in found
            if kind != "phi3_v":  # whose special tokens swallow spaces, which its own processor makes up for
                assert tokens(processor, found) == own.input_ids
        assert render(processor, template, [{"role": "user", "content": TEXT}]) == render(
            processor, template, [{"role": "user", "content": items()[1][0]}]
        )
        for content, message in (
            ([{"type": "image"}] * 2, "an item has at most one image"),
            ([{"type": "audio"}], "an item has a text, an image, or both"),
            ([{"type": "image"}, {"type": "text", "text": "<image>\nWhat?"}], "does not place its image by itself"),
        ):
            with pytest.raises(TemplateError, match=message):
                render(processor, template, [{"role": "user", "content": content}])


@pytest.mark.parametrize("kind", ["qwen2_vl", "llava_onevision", "qwen3_vl"])
def test_the_judge_s_template_gives_the_tokens_of_its_own_prompts(tiny, kind):
    processor = UniMERerankerForCausalLM.from_backbone(tiny(kind)[0]).processor
    template = judge_template(processor)
    for content, query in items():
        for other, candidate in items():
            found = render(
                processor, template, [{"role": "query", "content": content}, {"role": "document", "content": other}]
            )
            (own,) = processor.prepare([judge_messages(query, [candidate])])
            assert tokens(processor, found) == own.input_ids


@pytest.mark.parametrize("preset", ["summary", "joint", "unime-llava-1.6"])
def test_an_exported_embedder_is_a_sentence_transformer(tiny, tmp_path, preset):
    from sentence_transformers import SentenceTransformer

    path, _ = tiny("llava_next")
    UniMEModel.from_backbone(path, preset, fusion="joint", anyres_padding="even").save_pretrained(tmp_path / "unime")
    export(tmp_path / "unime", tmp_path / "stock", head=path)
    items = ["a red circle", {"image": picture(41, (56, 56))}, {"image": picture(42, (56, 84)), "text": "Find it."}]
    ours = UniMEModel.from_pretrained(tmp_path / "unime").encode(items, fusion="joint").numpy()
    theirs = SentenceTransformer(str(tmp_path / "stock"), device="cpu").encode(items)
    assert np.abs(ours - theirs).max() <= 1e-5


def test_an_export_refuses_what_sentence_transformers_cannot_add_up(tiny, tmp_path):
    from sentence_transformers import SentenceTransformer

    path, _ = tiny("llava_next")
    model = UniMEModel.from_backbone(path)
    model.save_pretrained(tmp_path / "unime")
    export(tmp_path / "unime", tmp_path / "stock", head=path)
    theirs = SentenceTransformer(str(tmp_path / "stock"), device="cpu")
    items = ["a red circle", {"image": picture(41, (56, 56))}]
    assert np.abs(model.encode(items).numpy() - theirs.encode(items)).max() <= 1e-5
    with pytest.raises(TemplateError, match="the sum of two embeddings: embed them apart"):
        theirs.encode([{"image": picture(41, (56, 56)), "text": "Find it."}])


def test_an_exported_reranker_is_a_cross_encoder(tiny, tmp_path):
    from sentence_transformers import CrossEncoder

    path, _ = tiny("llava_next")
    UniMERerankerForCausalLM.from_backbone(path).save_pretrained(tmp_path / "unime")
    export(tmp_path / "unime", tmp_path / "stock")
    query, candidates = "a red circle", ["a star", IMAGE, {"image": picture(42, (56, 84)), "text": "a ring"}]
    shown = {"image": picture(43, (56, 56)), "text": query}
    ours = UniMERerankerForCausalLM.from_pretrained(tmp_path / "unime")
    theirs = CrossEncoder(str(tmp_path / "stock"), device="cpu")
    assert type(theirs[0]).__module__.startswith("sentence_transformers.")
    for asked, given in ((query, candidates), (shown, candidates[:1])):  # LLaVA-NeXT takes one image a prompt
        found = theirs.predict([(asked, candidate) for candidate in given])
        assert np.abs(ours.score(asked, given).numpy() - found).max() <= 1e-5
    with pytest.raises(TemplateError, match="one image at a time"):
        theirs.predict([(shown, IMAGE)])


def test_templates_lie_beside_the_checkpoint(tiny, tmp_path):
    path, _ = tiny("qwen2_vl")
    UniMEModel.from_backbone(path, "hierarchical").save_pretrained(tmp_path / "unime")
    with pytest.warns(UserWarning, match="prompts that differ by role"):
        export(tmp_path / "unime", tmp_path / "stock", head=path)
    processor = UniMEModel.from_pretrained(tmp_path / "unime").processor
    for role in ("query", "document"):
        text = (tmp_path / "stock" / "templates" / f"{role}.jinja").read_text(encoding="utf-8")
        assert text == preset_template(processor, role)
    assert not (tmp_path / "stock" / "modules.json").exists()
    UniMERerankerForCausalLM.from_backbone(path).save_pretrained(tmp_path / "judge")
    export(tmp_path / "judge", tmp_path / "judge-stock")
    assert (tmp_path / "judge-stock" / "templates" / "judge.jinja").exists()
    kinds = [
        entry["type"].rpartition(".")[2] for entry in json.loads((tmp_path / "judge-stock/modules.json").read_text())
    ]
    assert kinds == ["Transformer", "LogitScore"]


def test_an_export_names_no_code_that_it_has_not(tiny, tmp_path):
    path, _ = tiny("llava_next")
    for model_class, name, head in ((UniMEModel, "embedder", path), (UniMERerankerForCausalLM, "judge", None)):
        model_class.from_backbone(path).save_pretrained(tmp_path / name)
        saved = json.loads((tmp_path / name / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert saved["auto_map"] == {"AutoProcessor": "processing_unime.UniMEProcessor"}
        export(tmp_path / name, tmp_path / f"{name}-stock", head=head)
        for file in (tmp_path / f"{name}-stock").glob("*.json"):
            assert "auto_map" not in json.loads(file.read_text(encoding="utf-8")), file.name

    # what vLLM reads of a judge, and no more
    score = json.loads((tmp_path / "judge-stock/1_LogitScore/config.json").read_text(encoding="utf-8"))
    assert sorted(score) == ["false_token_id", "true_token_id"]
