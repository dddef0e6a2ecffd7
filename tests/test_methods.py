"""The page of all settings is the present one, every departure has its reason, and every place in the code exists."""

import pkgutil
import runpy

import pytest
import yaml
from conftest import ROOT

PAGE = runpy.run_path(str(ROOT / "docs" / "settings.py"))
METHODS = ROOT / "docs" / "methods"
TABLES = yaml.safe_load((METHODS / "settings.yaml").read_text(encoding="utf-8"))
SENTENCES = yaml.safe_load((METHODS / "sentences.yaml").read_text(encoding="utf-8"))
PLACES = [row["code"] for method in SENTENCES for row in method["rows"] if "code" in row]


def test_the_page_is_the_present_one():
    assert (METHODS / "settings.md").read_text(encoding="utf-8") == PAGE["draw"](), "run `python docs/settings.py`"


def test_every_recipe_of_a_paper_is_on_the_page():
    recipes = {recipe for table in TABLES for recipe in table.get("recipes", [])}
    papers = ("unime", "saha", "unime-v2", "vlm2vec")
    paths = [path for name in papers for path in (ROOT / "recipes" / name).glob("*.yaml")]
    paths += [path for path in (ROOT / "recipes" / "mining").glob("*.yaml") if path.stem != "shapes"]
    assert recipes == {f"{path.parent.name}/{path.stem}" for path in paths}


@pytest.mark.parametrize(
    "ours, paper, released, owner",
    [
        ("1024", 1024, 512, "paper"),
        ("512", 1024, 512, "released"),
        ("256", 1024, 512, "ours"),
        ("5e-05", 5.0e-5, "-", "paper"),
        ("64", "not stated", "64 (VLM2Vec)", "released"),
        ("not stated", "not stated", "-", "ours"),
        ("{text}", "{text}", "the same", "paper"),
    ],
)
def test_a_value_belongs_to_whom_it_agrees_with(ours, paper, released, owner):
    assert PAGE["origin"](ours, {"paper": paper, "released": released}) == owner


def test_a_departure_without_a_reason_is_refused():
    row = {"setting": "steps", "paper": 1, "released": 2, "source": "x", "ours": "max_steps"}
    with pytest.raises(ValueError, match="steps is 2000, which is neither published value; give a reason"):
        PAGE["table_row"](row, ["unime-v2/alignment"])
    line = PAGE["table_row"]({**row, "reason": "longer"}, ["unime-v2/alignment"])
    assert line == "| steps | `1` | `2` | `2000` | x | **ours**: longer |"


def test_values_come_from_the_recipe_or_its_defaults():
    setting_of = PAGE["setting_of"]
    assert setting_of("unime-v2/alignment", "batch") == 1024 and setting_of("unime-v2/reranker", "batch") == 64
    assert setting_of("unime/contrastive", "shortage") == "mask"  # the default of the stage
    assert setting_of("unime/contrastive-released", "shortage") == "released"
    assert PAGE["looked_up"]("unime-llava-1.6.query.image").startswith("[INST] ")


@pytest.mark.parametrize("name", sorted(set(PLACES)))
def test_sentences_lead_to_code_that_exists(name):
    assert pkgutil.resolve_name(f"unime.{name}") is not None


def test_every_sentence_has_a_source_and_a_place_or_a_reason():
    assert len(PLACES) > 50
    for method in SENTENCES:
        for row in method["rows"]:
            assert row["sentence"] and row["source"]
            assert ("code" in row) != ("missing" in row), row["sentence"]
