"""The quickstart at a fraction of its size: killed twice, it goes on, and leaves the files that it promises."""

import json

from conftest import run_quickstart
from PIL import Image


def test_quickstart_survives_two_kills_and_keeps_its_promises(miniature):
    home = miniature / "quickstart"
    said = (miniature.parent / "said.txt").read_text()
    assert "checkpoint-2" in said, "training went on from its checkpoint"
    results = json.loads((home / "results.json").read_text())
    assert results.keys() == {"base", "tuned", "seconds"} and results["seconds"] > 0
    assert results["base"].keys() == results["tuned"].keys() >= {"Shapes_t2i", "Digits_label", "swap_obj"}
    assert "A picture for a caption: the right answer is number" in said and "A caption for a picture: " in said
    assert "answer and judge: done before, " in said and ": 4 steps, " in said
    assert (miniature.parent / "errors.txt").read_text() == "", "other libraries have nothing to say"
    queries = json.loads((home / "gallery.json").read_text())["queries"]
    assert len(queries) == 3 and all(query["right"] for query in queries)
    assert "Shapes_t2i" in said and "precision@1" in said
    for name in ("similarity.png", "search.png"):
        assert len(Image.open(home / name).convert("RGB").getcolors(1 << 24)) > 20
    before = (home / "model" / "model.safetensors").stat().st_mtime_ns
    assert run_quickstart(miniature).returncode == 0, "a finished run is not repeated"
    assert (home / "model" / "model.safetensors").stat().st_mtime_ns == before
