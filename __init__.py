"""UniME: universal multimodal embedders and rerankers made from multimodal LLMs.

Importing the package loads neither torch nor transformers: names resolve on first use. With the first of our models
or processors, our classes are registered with transformers' Auto classes, which then need no `trust_remote_code`.
"""

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "UniMEConfig": "configuration_unime",
    "UniMERerankerConfig": "configuration_unime",
    "UniMEModel": "modeling_unime",
    "UniMEOutput": "modeling_unime",
    "UniMERerankerForCausalLM": "modeling_unime",
    "UniMEProcessor": "processing_unime",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name):
    if name in _EXPORTS:
        return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_EXPORTS])
