"""A wrapper that is called, and that generates, as the VLM inside it."""

import inspect
from functools import partial

from transformers import GenerationMixin


class VLMGenerationMixin(GenerationMixin):
    """`forward` with the arguments of the wrapped VLM, in their order, and its hooks of `generate`.

    Transformers, TRL and torch's exporters read the signature of `forward` to know which inputs a model takes, and
    what a wrapper of any VLM takes is known only once there is one.
    """

    def forward(self, *args, **kwargs):
        """The wrapped VLM's forward: `logits` `[N, L, vocabulary]`, `loss` where `labels` are given."""
        return self.vlm(*args, **kwargs)

    def take_signature(self):
        """Gives `forward` of this model the signature of the VLM that it wraps now."""
        signature = inspect.signature(self.vlm.forward)
        parameters = []
        for parameter in signature.parameters.values():
            parameters.append(parameter.replace(annotation=parameter.empty))  # not all of them can be pickled

        # it follows its model through deepcopy and pickle, which a bound method does not
        self.forward = partial(type(self).forward, self)
        self.forward.__signature__ = inspect.Signature(parameters)

    @property
    def base_model(self):
        """The VLM without its head, as that of every model with one; TRL runs it and the head apart."""
        return self.vlm.base_model

    def generate(self, *args, **kwargs):
        """As in transformers; a VLM that generates in a way of its own does so."""
        if type(self.vlm).generate is GenerationMixin.generate:
            return super().generate(*args, **kwargs)
        kwargs.setdefault("generation_config", self.generation_config)
        return self.vlm.generate(*args, **kwargs)

    # the hooks of `generate` that VLMs of the library define anew, each in its own way
    def prepare_inputs_for_generation(self, *args, inputs_embeds=None, **kwargs):
        # named, as `generate` takes embeddings from models that name them here
        return self.vlm.prepare_inputs_for_generation(*args, inputs_embeds=inputs_embeds, **kwargs)

    def _prepare_position_ids_for_generation(self, *args, **kwargs):
        return self.vlm._prepare_position_ids_for_generation(*args, **kwargs)

    def _update_model_kwargs_for_generation(self, *args, **kwargs):
        return self.vlm._update_model_kwargs_for_generation(*args, **kwargs)

    def _expand_multimodal_outputs(self, *args, **kwargs):
        return self.vlm._expand_multimodal_outputs(*args, **kwargs)


__all__ = ["VLMGenerationMixin"]
