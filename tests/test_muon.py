"""Muon and AdamW as one optimizer: the steps are those of the two by themselves, also after a resume."""

import copy

import pytest
import torch
from torch import nn

from unime.data.readers import read_mmeb_train
from unime.trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.embedding_trainer import EmbeddingConfig
from unime.trainers.muon import Muon, MuonWithAdamW, orthogonal, split_parameters


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = {
        "embed_tokens": nn.Embedding(7, 6),
        "proj": nn.Linear(6, 4),
        "norm": nn.LayerNorm(4),
        "merger": nn.Linear(4, 4),
    }
    return nn.ModuleDict(layers)


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    tokens = (torch.arange(5) * (step + 1)) % 7
    return model["merger"](model["norm"](model["proj"](model["embed_tokens"](tokens)))).pow(3).sum()


def train(model: nn.Module, optimizers: list, steps: range):
    for step in steps:
        loss_of(model, step).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_matrices_of_layers_are_muons_and_the_rest_is_adamws():
    model = small_model()
    model["proj"].bias.requires_grad_(False)
    matrices, others = split_parameters(model)
    assert [id(parameter) for parameter in matrices] == [id(model["proj"].weight)]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in matrices + others} == {id(parameter) for parameter in trainable}


@pytest.mark.parametrize("shape", [(3, 6, 6), (2, 5, 9), (2, 9, 5), (1, 1, 4)])
def test_orthogonal_keeps_singular_vectors_and_evens_singular_values(shape):
    """Newton-Schulz maps a singular value by an odd polynomial, five times, and leaves its vectors alone."""
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64) * 10
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    values = values / values.norm(dim=1, keepdim=True)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonal(matrices), left @ torch.diag_embed(values) @ right, rtol=1e-9, atol=1e-9)

    in_float32 = orthogonal(matrices.float())
    assert in_float32.dtype == torch.float32
    torch.testing.assert_close(in_float32.double(), orthogonal(matrices), rtol=1e-4, atol=1e-4)


def test_muon_is_torchs_but_for_its_rounding():
    """torch multiplies in bfloat16, whose rounding is all that may differ; matrices of one shape are told apart."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (4, 6), (6, 4), (3, 3))]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    starts = [parameter.detach().clone() for parameter in ours]
    optimizers = (
        (ours, Muon(ours, lr=1e-2, weight_decay=0.1)),
        (theirs, torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")),
    )
    for parameters, optimizer in optimizers:
        for step in range(3):
            optimizer.zero_grad()
            sum(((parameter - step) ** 3).sum() for parameter in parameters).backward()
            optimizer.step()

    for mine, reference, start in zip(ours, theirs, starts):
        moved = (reference - start).norm()
        assert (mine - reference).norm() < 0.02 * moved


def test_both_take_the_steps_that_they_take_by_themselves():
    together = small_model()
    apart = copy.deepcopy(together)
    train(together, [MuonWithAdamW(*split_parameters(together), lr=1e-2)], range(6))

    matrices, others = split_parameters(apart)
    muon = Muon(matrices, lr=1e-2, weight_decay=0.01)
    adamw = torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.01)
    train(apart, [muon, adamw], range(6))
    for mine, reference in zip(together.parameters(), apart.parameters()):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_a_schedule_reaches_both(factor):
    model = small_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = MuonWithAdamW(*split_parameters(model), lr=1e-2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor)
    train(model, [optimizer], range(1))
    rates = {name: part.param_groups[0]["lr"] for name, part in optimizer.optimizers.items()}
    assert rates == {"muon": 1e-2 * factor, "adamw": 1e-2 * factor}
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters())]
    assert all(moved) if factor else not any(moved)


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped():
    whole = small_model()
    train(whole, [MuonWithAdamW(*split_parameters(whole), lr=1e-2)], range(6))

    first = small_model()
    optimizer = MuonWithAdamW(*split_parameters(first), lr=1e-2)
    train(first, [optimizer], range(3))
    second = small_model(seed=1)
    second.load_state_dict(first.state_dict())
    resumed = MuonWithAdamW(*split_parameters(second), lr=1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(second, [resumed], range(3, 6))
    for mine, reference in zip(second.parameters(), whole.parameters()):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize("by_launch", [False, True])
def test_deepspeed_is_refused(by_launch, tmp_path, monkeypatch):
    if by_launch:
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="muon does not go with DeepSpeed"):
        EmbeddingConfig(output_dir=str(tmp_path), muon=True, deepspeed=None if by_launch else "zero2.json")


def test_the_setting_reaches_the_optimizer(embedder, world, tmp_path):
    args = ContrastiveConfig(output_dir=str(tmp_path), muon=True, learning_rate=3e-3, adam_beta2=0.9, report_to="none")
    trainer = ContrastiveTrainer(embedder, args, train_dataset=read_mmeb_train(world / "train", image_root=world))
    parts = trainer.create_optimizer().optimizers
    assert parts["muon"].param_groups[0]["lr"] == 3e-3
    assert parts["adamw"].param_groups[0]["betas"] == (0.9, 0.9)
    assert sum(len(part.param_groups[0]["params"]) for part in parts.values()) == len(list(embedder.parameters()))


@pytest.mark.parametrize("part", ["matrices", "others"])
def test_one_of_the_two_may_have_nothing_to_train(part):
    """Of LoRA adapters everything is a matrix."""
    together = small_model()
    apart = copy.deepcopy(together)
    matrices, others = split_parameters(together)
    frozen = others if part == "matrices" else matrices
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = [parameter.clone() for parameter in frozen]
    optimizer = MuonWithAdamW(*split_parameters(together), lr=1e-2, weight_decay=0.0)
    train(together, [optimizer], range(3))

    matrices, others = split_parameters(apart)
    expected = Muon(matrices, lr=1e-2, weight_decay=0.0)
    trained = matrices
    if part == "others":
        expected = torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
        trained = others
    still = [parameter for parameter in apart.parameters() if not any(parameter is other for other in trained)]
    for parameter in still:
        parameter.requires_grad_(False)
    train(apart, [expected], range(3))

    for ours, reference in zip(together.parameters(), apart.parameters()):
        torch.testing.assert_close(ours, reference)
    for parameter, value in zip(frozen, before):
        assert torch.equal(parameter, value)
