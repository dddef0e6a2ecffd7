"""Muon for the matrices of a model and AdamW for everything else, as one optimizer."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial that pulls singular values towards one
ITERATIONS = 5


class Muon(Optimizer):
    """Momentum whose update of each matrix is made orthogonal (https://kellerjordan.github.io/posts/muon).

    `torch.optim.Muon` multiplies in bfloat16 everywhere, which a CPU without AMX does a hundred times slower than in
    float32. Here a CPU multiplies in float32, so that its results do not depend on its make either, and matrices of
    one shape are multiplied together.

    Args:
        params (`Sequence[nn.Parameter]`): each of two dimensions.
        lr (`float`): learning rate; updates are scaled to the size of AdamW's (2502.16982).
        momentum (`float`, defaults to 0.95): Nesterov's.
        weight_decay (`float`, defaults to 0.01): decoupled, as AdamW's.
    """

    def __init__(self, params: Sequence[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One update of all matrices; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]

            # matrices of a shape are multiplied together, which is faster than one by one
            for alike in _by_shape(parameters):
                self._step_together(alike, group)
        return loss

    def _step_together(self, parameters: list[nn.Parameter], group: dict):
        """One update of matrices of one shape."""
        updates = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)

            buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
            updates.append(parameter.grad.lerp(buffer, group["momentum"]))

        # an orthogonal matrix has a root mean square of 1 / sqrt(longer side), AdamW's update one of about 0.2
        rate = group["lr"] * 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, update in zip(parameters, orthogonal(torch.stack(updates))):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-rate)


def _by_shape(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters that can be stacked, in one list each."""
    groups = {}
    for parameter in parameters:
        groups.setdefault((parameter.shape, parameter.dtype, parameter.device), []).append(parameter)
    return list(groups.values())


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices of the same singular vectors, with singular values of about one (0.7 to 1.2): Newton-Schulz.

    Args:
        matrices (`Tensor` `[N, rows, columns]`): of any scale.

    Returns:
        `Tensor` `[N, rows, columns]`, of the same type.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if is_tall else matrices  # [N, m, n], m <= n
    wide = wide.to(torch.bfloat16 if matrices.is_cuda else torch.promote_types(matrices.dtype, torch.float32))
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=1e-7)

    for _ in range(ITERATIONS):
        products = wide @ wide.mT  # [N, m, m]
        factor = torch.baddbmm(products, products, products, beta=b, alpha=c)
        wide = torch.baddbmm(wide, factor, wide, beta=a)

    result = wide.mT if is_tall else wide
    return result.to(matrices.dtype)


class MuonWithAdamW(Optimizer):
    """Trains the matrices of a model's layers with Muon, and all its other parameters with AdamW.

    [`Muon`] makes the update of a matrix orthogonal, so that rare directions are learnt as fast as common ones: a
    model that starts from nothing needs far fewer steps. Its updates are as large as AdamW's, so that both take the
    same learning rate and weight decay.

    Args:
        matrices (`Sequence[nn.Parameter]`): each of two dimensions.
        others (`Sequence[nn.Parameter]`): of any shape; one of the two may be empty.
        lr (`float`): learning rate of both.
        betas (`tuple[float, float]`, defaults to `(0.9, 0.95)`): AdamW's.
        weight_decay (`float`, defaults to 0.01): of both.

    Example:

    ```python
    matrices, others = split_parameters(model)
    trainer = Trainer(model, args, train_dataset=rows, optimizers=(MuonWithAdamW(matrices, others, lr=1e-3), None))
    ```
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.01,
    ):
        # of LoRA adapters everything is a matrix
        self.optimizers = {}
        if matrices:
            self.optimizers["muon"] = Muon(matrices, lr=lr, weight_decay=weight_decay)
        if others:
            self.optimizers["adamw"] = AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        super().__init__([*matrices, *others], {"lr": lr})
        self._share_groups()

    @classmethod
    def of(cls, model: nn.Module, args) -> "MuonWithAdamW":
        """The optimizer of a model's trainable parameters, with the rates of a training.

        Args:
            model (`nn.Module`): a VLM, or a wrapper of one.
            args (`TrainingArguments`): `learning_rate`, AdamW's betas and `weight_decay` are taken.
        """
        matrices, others = split_parameters(model)
        return cls(matrices, others, args.learning_rate, (args.adam_beta1, args.adam_beta2), args.weight_decay)

    def _share_groups(self):
        """Lets schedulers, which write into the groups, reach those of both optimizers."""
        self.param_groups = []
        for optimizer in self.optimizers.values():
            self.param_groups += optimizer.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        """One update of all parameters; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers.values():
            optimizer.step()
        return loss

    def state_dict(self) -> dict:
        """The states of both optimizers, by their names."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state_dict: dict):
        """Takes the states of both optimizers."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state_dict[name])
        self._share_groups()


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters of a VLM that Muon is for, the matrices inside its layers, and the others.

    The matrices between a Qwen-VL's tower and language model are four times as wide as its others, and orthogonal
    updates of them would take longer than all others together: AdamW trains them too.

    Args:
        model (`nn.Module`): a VLM, or a wrapper of one.
    """
    # rows of an embedding are looked up, not multiplied; the head has as many
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}

    matrices = []
    others = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_inside = id(parameter) not in looked_up and "lm_head" not in name and "merger" not in name
        if parameter.ndim == 2 and is_inside:
            matrices.append(parameter)
        else:
            others.append(parameter)
    return matrices, others
