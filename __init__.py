"""UniME: universal multimodal embedders and rerankers made from multimodal LLMs.

Importing the package loads neither torch nor transformers: names resolve on first use. Importing one of our models
registers all our classes with transformers' Auto classes, which then need no `trust_remote_code`.

Example:

```python
from unime import UniMEModel

model = UniMEModel.from_backbone("Qwen/Qwen2-VL-2B-Instruct")
embeddings = model.encode(["a red circle", {"image": "photo.jpg"}])
```
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_EXPORTS = {  # module -> the names that it gives to the package
    "configuration_unime": ("UniMEConfig", "UniMERerankerConfig"),
    "modeling_unime": ("UniMEModel", "UniMEOutput", "UniMERerankerForCausalLM"),
    "processing_unime": ("Reading", "UniMEProcessor"),
    "checkpoints.opening": ("open_checkpoint",),
    "data.readers": ("read_rows",),
    "mining.judging": ("LocalJudge", "ServerJudge"),
    "mining.pipeline": ("Mining",),
    "mining.settings": ("MiningConfig",),
    "trainers.alignment": ("AlignmentConfig", "AlignmentTrainer"),
    "trainers.contrastive": ("ContrastiveConfig", "ContrastiveTrainer"),
    "trainers.distillation": ("DistillationConfig", "DistillationTrainer"),
    "trainers.losses": (
        "HardNegativeInfoNCE",
        "JudgeAlignment",
        "LossOutput",
        "MatryoshkaLoss",
        "SimilarityDistillation",
    ),
    "trainers.reranker": ("RerankerConfig", "RerankerTrainer"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted(_MODULE_OF)

if TYPE_CHECKING:  # for editors and type checkers, which do not run `__getattr__`
    from .checkpoints.opening import open_checkpoint
    from .configuration_unime import UniMEConfig, UniMERerankerConfig
    from .data.readers import read_rows
    from .mining.judging import LocalJudge, ServerJudge
    from .mining.pipeline import Mining
    from .mining.settings import MiningConfig
    from .modeling_unime import UniMEModel, UniMEOutput, UniMERerankerForCausalLM
    from .processing_unime import Reading, UniMEProcessor
    from .trainers.alignment import AlignmentConfig, AlignmentTrainer
    from .trainers.contrastive import ContrastiveConfig, ContrastiveTrainer
    from .trainers.distillation import DistillationConfig, DistillationTrainer
    from .trainers.losses import (
        HardNegativeInfoNCE,
        JudgeAlignment,
        LossOutput,
        MatryoshkaLoss,
        SimilarityDistillation,
    )
    from .trainers.reranker import RerankerConfig, RerankerTrainer


def __getattr__(name):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_MODULE_OF})
