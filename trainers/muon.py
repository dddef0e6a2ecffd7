"""Muon for the matrices of a model and AdamW for everything else, as one optimizer."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import AdamW, Optimizer


class MuonWithAdamW(Optimizer):
    """Trains the matrices of a model's layers with Muon, and all its other parameters with AdamW.

    Muon (https://kellerjordan.github.io/posts/muon) makes the update of a matrix orthogonal, so that rare directions
    are learnt as fast as common ones: a model that starts from nothing needs far fewer steps. Its updates are scaled
    to the size of AdamW's (2502.16982), so that both take the same learning rate and weight decay.

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
        from torch.optim import Muon  # since torch 2.9

        # of LoRA adapters everything is a matrix
        self.optimizers = {}
        if matrices:
            self.optimizers["muon"] = Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        if others:
            self.optimizers["adamw"] = AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        super().__init__([*matrices, *others], {"lr": lr})
        self._share_groups()

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
