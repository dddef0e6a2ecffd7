"""Ranking heads, which give a score in the place of logits."""

import copy
from itertools import pairwise

from torch import nn


def ranking_head(widths: list[int]) -> nn.Sequential:
    """Linear layers with a ReLU between them.

    Args:
        widths (`list[int]`): of what goes in, of the layers in between, and of what comes out.
    """
    layers = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]

    # nothing follows the score
    return nn.Sequential(*layers[:-1])


def with_ranking_head(stock_class, width: int):
    """The class of a VLM whose output head is a ranking head, so that weights are loaded into it.

    Args:
        stock_class: the class of the VLM.
        width (`int`): of the language model.
    """

    def build(self, config, *args, **kwargs):
        stock_class.__init__(self, config, *args, **kwargs)
        self.lm_head = ranking_head([width, width, 1])

    # transformers knows what weights were called in older files by the name of the class
    body = {"__init__": build, "__module__": stock_class.__module__}
    return type(stock_class.__name__, (stock_class,), body)


def untied(config):
    """A copy of a VLM's configuration for a ranking head, which has no row for each word as the embedding has."""
    config = copy.deepcopy(config)

    # transformers looks in either of them
    config.tie_word_embeddings = False
    config.get_text_config().tie_word_embeddings = False
    return config


__all__ = ["ranking_head", "untied", "with_ranking_head"]
