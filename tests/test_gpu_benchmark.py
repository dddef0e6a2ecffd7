"""The benchmark for whoever has a GPU runs in small on a CPU, so that it works where nobody could try it."""

import sys

import pytest
from conftest import ROOT


@pytest.fixture
def gpu(monkeypatch):
    pytest.importorskip("sentence_transformers")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    return gpu


def test_every_part_gives_rows_of_one_table(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny"])
    gpu.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert tuple(header) == gpu.COLUMNS and all(len(row) == len(header) for row in rows)

    table = [dict(zip(header, row)) for row in rows]
    for backbone in ("Qwen2-VL tiny", "Qwen3-VL tiny"):
        cells = {row["work"]: row for row in table if row["backbone"] == backbone}
        for work in (
            "contrastive step, LoRA, batch 2",
            "contrastive step, full, batch 2",
            "encode 6 mixed items, sdpa",
        ):
            assert float(cells[work]["seconds"]) >= 0 and cells[work]["of peak"].endswith("%")
        assert float(cells["encode 6 mixed items, sdpa"]["ratio"]) > 0
        assert "pair by pair" in cells["judge 2 x 3 pairs, half images"]["beside it"]
        assert float(cells["encode 6 items in float32, cpu and CPU"]["beside it"]) == 0, "the same device twice"


def test_shapes_are_those_of_two_billion_parameters(gpu):
    import torch
    from transformers import AutoModelForImageTextToText

    from unime.miniature.backbone import build_tokenizer

    tokenizer = build_tokenizer(["a"])
    for config, parameters in ((gpu.qwen2_vl(tokenizer), 2_208_985_600), (gpu.qwen3_vl(tokenizer), 2_127_532_032)):
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        model.tie_weights()
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_a_gpu_is_asked_for(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    assert "there is no GPU here; --tiny runs small shapes" in capsys.readouterr().err
