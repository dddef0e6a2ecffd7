"""UniME: universal multimodal embedders and rerankers made from multimodal LLMs.

Importing the package loads neither torch nor transformers: names resolve on first use, and the classes register
themselves with transformers' Auto classes as soon as those are imported, before or after this package.
"""

import importlib
import importlib.abc
import importlib.util
import logging
import sys

__version__ = "0.1.0"

# whenever it is imported on a CPU, bitsandbytes recommends a package, in words that look like a failure
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

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


def _register_configs(configs):
    from transformers import AutoConfig

    AutoConfig.register("unime", configs.UniMEConfig, exist_ok=True)
    AutoConfig.register("unime_reranker", configs.UniMERerankerConfig, exist_ok=True)


def _register_models(models):
    from transformers import AutoModel, AutoModelForCausalLM

    AutoModel.register(models.UniMEConfig, models.UniMEModel, exist_ok=True)
    AutoModelForCausalLM.register(models.UniMERerankerConfig, models.UniMERerankerForCausalLM, exist_ok=True)


def _register_processor(processors):
    from transformers import AutoProcessor

    from .configuration_unime import UniMEConfig, UniMERerankerConfig

    AutoProcessor.register(UniMEConfig, processors.UniMEProcessor, exist_ok=True)
    AutoProcessor.register(UniMERerankerConfig, processors.UniMEProcessor, exist_ok=True)


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Registers our classes with an Auto class once both the Auto module and our module have been imported.

    The Auto module pulls ours in; ours may also come first, and then imports the Auto module itself.
    """

    pairs = (
        ("transformers.models.auto.configuration_auto", f"{__name__}.configuration_unime", _register_configs),
        ("transformers.models.auto.modeling_auto", f"{__name__}.modeling_unime", _register_models),
        ("transformers.models.auto.processing_auto", f"{__name__}.processing_unime", _register_processor),
    )

    def __init__(self):
        self.pending = list(self.pairs)
        self.autos = {auto for auto, _, _ in self.pairs}
        self.done = {auto for auto in self.autos if auto in sys.modules}
        self.hooked, self.running = set(), 0

    def install(self):
        sys.meta_path.insert(0, self)
        self.settle()

    def settle(self):
        """Imports what an imported Auto module asks for, unless a module that matters is being imported just now."""
        if self.running:
            return
        for pair in tuple(self.pending):
            auto, own, register = pair
            if auto in self.done:
                importlib.import_module(own)
                if pair in self.pending:
                    self.pending.remove(pair)
                    register(sys.modules[own])

    def find_spec(self, fullname, path=None, target=None):
        matters = fullname in self.autos or fullname.rpartition(".")[0] == __name__
        if not matters or fullname in self.hooked:
            return None
        self.hooked.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.hooked.discard(fullname)  # an import that failed may be tried again
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            self.running += 1
            try:
                execute(module)
                self.done.add(fullname)
            finally:
                self.running -= 1
            self.settle()

        spec.loader.exec_module = exec_module
        return spec


_RegisterAfterImport().install()
