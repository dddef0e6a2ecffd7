"""What embedder and reranker share: a wrapped VLM, loading without silent losses, and batches by token budget."""

import copy
import inspect
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from safetensors import SafetensorError, safe_open
from tqdm.auto import tqdm
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedModel
from transformers.modeling_utils import set_zero3_state

from .adapters_unime import adapter_folder, base_model_of, folder_of_tasks, merge_adapter, saved_settings
from .attention_unime import PACKED_ATTENTION, look_as_trained, patches_as_product
from .batching_unime import plan_chunks
from .configuration_phi3_v import Phi3VConfig
from .devices_unime import chosen_dtype, warn_of_slow_dtype
from .fitting_unime import (
    check_processor,
    check_processor_files,
    check_special_tokens,
    expects_processor,
    naming_broken_processor,
)
from .integrity_unime import HUB_KEYS, MANIFEST, SavedFiles, remove_manifest, write_manifest
from .modeling_phi3_v import complete_config
from .processing_unime import SETTINGS, UniMEProcessor
from .prompts_unime import published_checkpoint, rules_of, shown
from .recognition_unime import choose_preset, preset_of_adapter, refuse_foreign_layout

_FULL_PRECISION = ("visual", "vision_tower", "vision_model", "vision_embed_tokens", "multi_modal_projector", "lm_head")


class UniMEPreTrainedModel(PreTrainedModel):
    """What embedder and reranker share: strict loading, a processor that travels along, batches by token budget.

    Attributes:
        vlm: the wrapped model, as transformers built it.
        processor ([`~unime.processing_unime.UniMEProcessor`]): how items reach the model.
        source (`str`, *optional*): the folder or repository that the model was loaded from.
    """

    base_model_prefix = "vlm"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    vision_attention = PACKED_ATTENTION  # the name under which transformers knows our attention
    _no_split_modules = []  # the children's are merged in `post_init`
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _vlm_class = None  # the Auto class that builds the wrapped VLM
    judges = False  # whether it asks about candidates, in chat messages
    _dropped_weights = ()  # prefixes of weights of the VLM that the wrapper has no use for

    def __init__(self, config):
        # transformers builds no model under our attention's name; it is set again below
        vision = _vision_config(config)
        if vision is not None and vision._attn_implementation == PACKED_ATTENTION:
            vision._attn_implementation = "sdpa"

        super().__init__(config)
        self.vlm = self._build_vlm(config)
        self.post_init()
        self.source = None
        self._processor = None
        self._processor_source = None
        self._speed_up_vision()
        look_as_trained(self.vlm)

    def _build_vlm(self, config):
        """The wrapped VLM, without its weights."""
        return self._vlm_class.from_config(config.vlm_config, trust_remote_code=False)

    def _speed_up_vision(self):
        """Takes attention's loop over images and the patch convolution out of Qwen-VL towers, with equal results.

        An explicit choice of FlashAttention or eager attention is left alone.
        """
        vision = _vision_config(self.config)
        if vision is None or not vision.model_type.startswith("qwen"):
            return

        tower = next(module for name, module in self.vlm.named_modules() if name.rpartition(".")[2] == "visual")
        convolution = getattr(tower.patch_embed.proj, "base_layer", tower.patch_embed.proj)
        if type(convolution) is torch.nn.Conv3d:
            # accelerate's hooks, which fetch offloaded weights, call what was the forward before them
            name = "_old_forward" if hasattr(convolution, "_hf_hook") else "forward"

            # it follows its module through deepcopy and pickle, which a bound method does not
            setattr(convolution, name, partial(patches_as_product, convolution))
        if vision._attn_implementation == "sdpa":
            vision._attn_implementation = PACKED_ATTENTION

    def set_attn_implementation(self, *args, **kwargs):
        """As in transformers; `"sdpa"` includes our equal, faster attention of the vision tower."""
        super().set_attn_implementation(*args, **kwargs)
        self._speed_up_vision()

    @property
    def device(self) -> torch.device:
        """Where inputs go; for offloaded weights, which are on the meta device, where accelerate runs them."""
        hook = getattr(self.get_input_embeddings(), "_hf_hook", None)
        device = getattr(hook, "execution_device", None)
        return super().device if device is None else torch.device(device)

    # loading and saving
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *args,
        preset: str | None = None,
        quantization: str | None = None,
        verify: bool = False,
        weights: bool = True,
        **kwargs,
    ):
        """As in transformers, but what is missing or does not belong together is an error that names it.

        Beside the weights these are the files of the processor, which is loaded too, and what the manifest says that
        was saved with the model (`unime_manifest.json`; published checkpoints have none).

        Args:
            pretrained_model_name_or_path (`str` or path): a saved UniME model, folder or repository.
            preset (`str`, *optional*): read items by this preset, all of it, and not as the model was saved (see
                [`~UniMEPreTrainedModel.use_preset`]).
            quantization (`str`, *optional*): `"nf4"` (4 bits) or `"int8"` through bitsandbytes, with the vision tower
                in full precision; for anything else pass a `quantization_config`.
            verify (`bool`, defaults to `False`): compare all files with the SHA-256 in the manifest, which is
                always done with weights that were just downloaded.
            weights (`bool`, defaults to `True`): load them; otherwise they are on the meta device, where they have
                shapes and take no memory.
            kwargs: processor settings as in [`~UniMEPreTrainedModel.from_backbone`], in the place of those that were
                saved or that come with `preset`; everything else goes to transformers. `dtype="auto"` is the
                checkpoint's own, but float32 where only a CPU computes that is slower in bfloat16. Without
                `trust_remote_code=True` no code of the repository runs, that of its tokenizer and its image processor
                included.

        Raises:
            ValueError: the checkpoint is not one of this class, a weight did not land or is an integer, a file is
                damaged, missing or of another model, or the preset is unknown or for another backbone; the message
                names the file.

        Example:

        ```python
        model = UniMEModel.from_pretrained("outputs/quickstart/model", dtype="bfloat16")
        ```
        """
        path = pretrained_model_name_or_path
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["ignore_mismatched_sizes"] = True  # so that our own error can name the weights
        settings = {key: kwargs.pop(key) for key in SETTINGS if key in kwargs}
        hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
        kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))  # None would ask in the terminal

        # before gigabytes are read; whoever passes a configuration may do without its file
        files = SavedFiles(path, hub)
        if args or "config" not in kwargs or files.file("config.json"):
            files.check_configuration(cls)
        _set_quantization(kwargs, quantization if weights else None)
        _choose_dtype(kwargs)

        info = {}
        if weights:
            files.check_shards()
            downloaded = files.absent_weights()  # asked now: after loading there are none
            if verify:  # first, as its error names the file
                files.verify()

            with naming_broken_files(path), files.naming_configuration():
                model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
            assert_all_landed(info, path)
            files.check_weight_types()
            if not verify:
                files.verify(downloaded)
            warn_of_slow_dtype(model.dtype)
        else:
            config = cls.config_class.from_pretrained(path, **hub)
            model = cls._without_weights(config)

        # the processor is loaded when it is first used, with what the caller said here
        model.source = path
        trust = kwargs["trust_remote_code"]
        model._processor_source = (path, {**hub, **settings, "trust_remote_code": trust})
        if preset is not None:
            if "positions" in kwargs:
                settings["positions"] = kwargs["positions"]
            model.use_preset(preset, **settings)

        # last, since it compares what the caller named with what was saved
        trusts_files = preset is None and "positions" not in kwargs
        model._check_together(files, trusts_files)
        return (model, info) if wants_info else model

    @classmethod
    def from_backbone(
        cls,
        path_or_repo,
        preset: str | None = None,
        quantization: str | None = None,
        weights: bool = True,
        base=None,
        **kwargs,
    ):
        """Wraps a stock VLM checkpoint, in the key layout of any transformers version, or an adapter over one.

        An adapter (LoRA, DoRA) is merged, and must land whole.

        Args:
            path_or_repo (`str`): directory or Hub id of the VLM, or of an adapter, which may be in its `lora/`.
            preset (`str` or path, *optional*): a key of `PRESETS`, or a file of one's own (see
                [`~unime.preset_files_unime.read_preset`]); kept in the saved processor. By default what the
                checkpoint's name or files say that it was trained with, and `"summary"` for a plain VLM.
            quantization (`str`, *optional*), weights (`bool`): as in [`~UniMEPreTrainedModel.from_pretrained`].
            base (*optional*): what an adapter was trained on; by default what its own file says, which is a folder, or
                one of the same last name beside the adapter, or a repository.
            kwargs: processor settings (`max_length`, `max_image_pixels`, `chat_template`, `resolution`, `fusion`,
                `anyres_padding`, `num_frames`, `image_tokens`, `crops`, and `processor`, a folder or repository where
                they are not beside the weights); everything else (`dtype`, `device_map`, `quantization_config`,
                `attn_implementation`, `revision`, `trust_remote_code`, ...) goes to the VLM's `from_pretrained`.

        Raises:
            ValueError: a weight of the checkpoint or of the adapter is missing, unexpected or mis-shaped, a file is
                broken, the preset is unknown or for another backbone, what is not an adapter is given a `base`, or the
                checkpoint is an embedder or reranker and nothing says with which prompts it was trained.

        Example:

        ```python
        model = UniMEModel.from_backbone("Qwen/Qwen2-VL-2B-Instruct", dtype="bfloat16", resolution=672)
        ```
        """
        adapter = adapter_folder(path_or_repo, {key: kwargs[key] for key in HUB_KEYS if key in kwargs})
        if adapter is not None:
            options = {"quantization": quantization, "weights": weights, **kwargs}
            return cls._from_adapter(path_or_repo, adapter, base, preset, options)
        if base is not None:
            raise ValueError(f"{path_or_repo} is not an adapter: it has no adapter_config.json, and so no base.")

        settings = {key: kwargs.pop(key) for key in (*SETTINGS, "processor") if key in kwargs}
        kwargs["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))  # None would ask in the terminal
        hub = {key: kwargs[key] for key in (*HUB_KEYS, "trust_remote_code") if key in kwargs}

        files = SavedFiles(path_or_repo, {key: kwargs[key] for key in HUB_KEYS if key in kwargs})
        refuse_foreign_layout(files)
        with files.naming_damaged_json():
            config = AutoConfig.from_pretrained(path_or_repo, **hub)
        if config.model_type in ("unime", "unime_reranker"):
            raise ValueError(f"{path_or_repo} is a UniME checkpoint already; load it with `from_pretrained`.")

        preset = cls._find_preset(files, config.model_type, preset)
        adapters = _adapters_of_tasks(files, preset)
        with files.naming_damaged_json():
            processor = UniMEProcessor.from_backbone(path_or_repo, preset, **settings, **hub)
        if weights:
            _set_quantization(kwargs, quantization)
            _choose_dtype(kwargs)
            vlm = cls._load_vlm(path_or_repo, config, kwargs, preset)
            warn_of_slow_dtype(vlm.dtype)
            model = cls._wrap(vlm, preset, path_or_repo)
            if adapters is not None:
                rules = rules_of(preset)
                merge_adapter(model, adapters, rules.adapter, rules.unused_weights)
        else:
            vlm_config = complete_config(path_or_repo, config)
            config = cls._wrap_config(vlm_config, preset, backbone=str(path_or_repo))
            model = cls._without_weights(config)
            model.source = path_or_repo
        model.processor = processor
        return model

    @classmethod
    def _from_adapter(cls, source, adapter, base, preset: str | None, options: dict):
        """The model that an adapter was trained on, with the adapter merged into it."""
        # what the adapter was trained with, its base does not know
        if preset is None:
            options = {**saved_settings(adapter, SETTINGS), **options}
            preset = options.pop("preset", None)
        for key in ("revision", "subfolder"):
            options.pop(key, None)

        base = base or base_model_of(adapter)
        hub = {key: options[key] for key in HUB_KEYS if key in options}
        config = SavedFiles(base, hub).json("config.json") or {}
        is_ours = config.get("model_type") == cls.config_class.model_type
        if preset is None and not is_ours:
            preset = preset_of_adapter(source)
        load = cls.from_pretrained if is_ours else cls.from_backbone
        model = load(base, preset=preset, **options)

        if options["weights"]:
            model = merge_adapter(model, adapter)
        model.source = source
        if published_checkpoint(source) is not None:
            model.config.backbone = str(source)  # what cards name, with its license
        return model

    @classmethod
    def _without_weights(cls, config):
        """A model on the meta device."""
        with torch.device("meta"):
            return cls(config).eval()

    @classmethod
    def _load_vlm(cls, path, config, kwargs: dict, preset: str, auto_class=None):
        """The VLM of a stock checkpoint, with every weight in its place."""
        kwargs["ignore_mismatched_sizes"] = True  # so that our own error can name the weights
        load = _load_phi3_v if config.model_type == Phi3VConfig.model_type else _load_stock
        with naming_broken_files(path):
            vlm, info = load(auto_class or cls._vlm_class, path, config, kwargs)
        assert_all_landed(info, path, ignore=cls._dropped_weights + rules_of(preset).unused_weights)

        # integers would land as weights, without their scales
        hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
        SavedFiles(path, hub).check_weight_types()
        return vlm

    @classmethod
    def _wrap(cls, vlm, preset: str, source):
        """A model of this class around a loaded VLM."""
        # Built without memory, as the VLM takes the place of the one that is built; ZeRO-3 has nothing to partition
        # either. From a copy, as transformers sets an attention in the configuration it builds from.
        with set_zero3_state(), torch.device("meta"):
            config = copy.deepcopy(vlm.config)
            model = cls(cls._wrap_config(config, preset, backbone=str(source), dtype=vlm.dtype))

        model.vlm = vlm
        model.config.vlm_config = vlm.config
        model.config._attn_implementation_internal = vlm.config._attn_implementation  # of this config alone
        model.source = source
        _take_over_quantization(model)
        _take_over_device_map(model)
        model._speed_up_vision()
        look_as_trained(vlm)
        return model.eval()

    @classmethod
    def _find_preset(cls, files, model_type, preset):
        return choose_preset(files, model_type, preset)

    @classmethod
    def _wrap_config(cls, vlm_config, preset, **fields):
        return cls.config_class(vlm_config=vlm_config, **fields)

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """As in transformers, with the processor, in the key layout of memory, which Trainer's resume needs.

        Raises:
            ValueError: 4-bit weights have run on the CPU, where bitsandbytes repacks them for good.
        """
        for name, weight in self.named_parameters():
            if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
                raise ValueError(
                    f"{name} was repacked by bitsandbytes when it ran on the CPU, and would not load again; save "
                    "before the first use, or load the model anew."
                )

        # Gathered by ZeRO-3, tied weights are no longer one tensor.
        state_dict = kwargs.get("state_dict")
        if state_dict is not None:
            tied = self.all_tied_weights_keys
            kwargs["state_dict"] = {key: value for key, value in state_dict.items() if key not in tied}

        is_main = kwargs.get("is_main_process", True)
        if is_main:
            remove_manifest(save_directory)
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)
        if is_main:
            self._complete(save_directory)

    def _complete(self, folder):
        """Writes what transformers does not know of beside saved weights, unless it is there: the manifest is last."""
        if os.path.exists(os.path.join(folder, MANIFEST)):
            return
        if self.has_processor:
            self.processor.save_pretrained(folder)

        from .sentence_transformers_unime import write_modules  # so that the file travels with the model

        write_modules(self, folder)
        write_manifest(self, folder)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        # `save_pretrained(push_to_hub=True)` of transformers uploads the folder as soon as the weights are in it
        self._complete(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _check_together(self, files: SavedFiles, trusts_files: bool):
        """Refuses what was loaded if it does not belong together, before anything is encoded with it.

        Args:
            files (`SavedFiles`): what it was loaded from.
            trusts_files (`bool`): whether preset and positions are those of the files; else the caller named others.
        """
        if not expects_processor(files):
            self._processor_source = None
            files.check_manifest(self, trusts_files)
            return

        check_processor_files(files, with_preset=trusts_files)
        with naming_broken_processor(files):
            processor = self.processor
        check_special_tokens(files)
        files.check_manifest(self, trusts_files)
        check_processor(files, self, processor)

    @property
    def has_processor(self) -> bool:
        """Whether the model knows how items reach it."""
        return self._processor is not None or self._processor_source is not None

    @property
    def processor(self) -> UniMEProcessor:
        """The processor of the checkpoint this model came from, loaded on first use; may be set."""
        if self._processor is None:
            if self._processor_source is None:
                raise ValueError("this model has no processor yet; set `model.processor`.")
            source, options = self._processor_source  # with the trust that was given when the model was loaded
            self._processor = UniMEProcessor.from_pretrained(source, **options)
        return self._processor

    @processor.setter
    def processor(self, processor):
        self._processor = processor

    def use_preset(self, preset: str, **settings):
        """Reads items by another preset from now on, all of it, not only its prompts.

        Args:
            preset (`str`, path or `Preset`): a key of `PRESETS`, a file of one's own, or a preset itself.
            settings: what is to differ from the preset (see [`~unime.processing_unime.UniMEProcessor.use_preset`]).

        Raises:
            ValueError: the preset or a setting is unknown, or the preset is for another backbone.
        """
        files = SavedFiles(self.source or "this model")
        preset = self._find_preset(files, self.config.vlm_config.model_type, preset)
        self.processor.use_preset(preset, **settings)

    # batching
    @contextmanager
    def _inference(self):
        is_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(is_training)

    def _batches(self, prepared, batch_tokens, show_progress, description, side=None):
        """Yields (indices, tensors on the model's device); the next chunks are decoded while the model runs this one.

        There are as many next chunks as threads that decode (see [`decoding_threads`]).
        """
        lengths = [entry.length for entry in prepared]
        batch_tokens = min(batch_tokens, most_tokens(self.device, self.dtype))
        slack = min(256, batch_tokens // 32)
        chunks = plan_chunks(lengths, batch_tokens, slack=slack, boundary=self.config.length_boundary)
        threads = decoding_threads(self.device)

        def collate(chunk):
            batch = self.processor.collate([prepared[i] for i in chunk], side)

            # from pinned memory the copy goes on beside the model
            if self.device.type == "cuda":
                for key, value in batch.items():
                    batch[key] = value.pin_memory()
            return batch

        is_silent = not wants_progress(show_progress, len(chunks))
        bar = tqdm(total=len(prepared), desc=description, disable=is_silent, unit="item")
        with bar, ThreadPoolExecutor(threads) as pool:
            upcoming = deque(pool.submit(collate, chunk) for chunk in chunks[:threads])
            for number, chunk in enumerate(chunks):
                batch = upcoming.popleft().result()
                if number + threads < len(chunks):
                    upcoming.append(pool.submit(collate, chunks[number + threads]))
                yield chunk, batch.to(self.device, non_blocking=True)
                bar.update(len(chunk))

    def _explain_not_finite(self, name: str):
        """Raises the error for an output that is not finite, with its cause."""
        cause = f"activations overflowed in {self.dtype}"
        for key, weight in self.named_parameters():
            if not weight.is_meta and not torch.isfinite(weight).all():  # offloaded ones are not here
                cause = f"weight {key!r} holds NaN or infinity"
                break
        raise ValueError(f"the output for {name} is not finite: {cause}.")


def _adapters_of_tasks(files: SavedFiles, preset):
    """The folder of adapters for several tasks, one of which the preset names; `None` if a checkpoint has none."""
    adapters = folder_of_tasks(files)
    if adapters is not None and rules_of(preset).adapter is None:
        raise ValueError(
            f"{files.source} has adapters for several tasks in its {adapters.name}/, and the preset "
            f"{shown(preset)!r} does not say which is meant; choose one that does, or set `adapter` in a file of your "
            "own."
        )
    return adapters


def vision_parameters(vlm) -> list[torch.nn.Parameter]:
    """Everything outside the language model: vision tower, projector, and an output head where there is one."""
    language = set()
    for name, parameter in vlm.get_decoder().named_parameters():
        if not name.startswith("vision_embed_tokens."):  # Phi-3-vision keeps its tower inside the decoder
            language.add(id(parameter))
    return [parameter for parameter in vlm.parameters() if id(parameter) not in language]


def image_inputs(vlm, inputs: dict) -> dict:
    """Those of the processor's outputs that `get_image_features` takes."""
    return {key: inputs[key] for key in inspect.signature(vlm.get_image_features).parameters if key in inputs}


def decoding_threads(device: torch.device) -> int:
    """How many threads decode the images of coming batches: a GPU would wait for one, a CPU has none to spare."""
    return 1 if device.type == "cpu" else 4


def most_tokens(device: torch.device, dtype: torch.dtype) -> float:
    """Padded tokens of a forward pass above which it takes longer, not less time, for each of them.

    In float32 on a CPU, what a layer makes of more tokens fits no cache, and asks the system for memory each time.
    """
    return 1024 if device.type == "cpu" and dtype == torch.float32 else float("inf")


def wants_progress(show_progress: bool | None, steps: int) -> bool:
    """Whether a loop shows a bar: as asked for, and by default where it is long and bars are not switched off."""
    if show_progress is None:
        return steps > 8 and os.environ.get("TQDM_DISABLE", "") in ("", "0")
    return show_progress


def _vision_config(config):
    return getattr(config.vlm_config, "vision_config", None)


def _load_stock(auto_class, path, config, kwargs: dict):
    """A VLM of transformers, and the report on its weights."""
    if config.model_type in ("qwen2_vl", "qwen2_5_vl"):  # files of transformers 5 that `AutoModel` alone misreads
        kwargs.setdefault("key_mapping", {r"^model\.visual\.": "visual."})
    return auto_class.from_pretrained(path, output_loading_info=True, **kwargs)


def _load_phi3_v(auto_class, path, config, kwargs: dict):
    """Phi-3-vision by our own classes, not by the code in its repository, and the report on its weights."""
    kwargs["trust_remote_code"] = False
    kwargs["config"] = complete_config(path, config)
    vlm, info = auto_class.from_pretrained(path, output_loading_info=True, **kwargs)

    # Some tools store the embedding table only where the image embedder refers to it.
    if any("embed_tokens.weight" in key for key in info["missing_keys"]):
        kwargs["key_mapping"] = {r"^(model\.)?vision_embed_tokens\.wte\.": r"\1embed_tokens."}
        vlm, info = auto_class.from_pretrained(path, output_loading_info=True, **kwargs)
    return vlm, info


def assert_all_landed(info, source, ignore=()):
    """Raises where weights are missing, unexpected or mis-shaped."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        keys = []
        for key in info.get(kind) or ():
            if not str(key).startswith(tuple(ignore)):
                keys.append(str(key))

        # of a whole model, a few keys say enough
        if keys:
            keys.sort()
            more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
            raise ValueError(
                f"{source} does not fit this model: {kind.replace('_', ' ')}: {', '.join(keys[:8])}{more}. Its "
                "config.json and its weight files do not belong together, or one of them is damaged."
            )


@contextmanager
def naming_broken_files(path):
    """Turns the error of an unreadable weight file into one that names the file."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{_broken_file(path) or path} is damaged: {error}") from error


def _broken_file(path) -> str | None:
    """The first weight file of a folder that does not open."""
    files = sorted(os.listdir(path)) if os.path.isdir(path) else []
    for name in files:
        file = os.path.join(path, name)
        if name.endswith(".safetensors") and not _opens(file):
            return file
    return None


def _opens(file: str) -> bool:
    try:
        with safe_open(file, framework="pt"):
            return True
    except SafetensorError:
        return False


def bitsandbytes_config(quantization: str) -> BitsAndBytesConfig:
    """What transformers calls a quantisation: `"nf4"` (4 bits, computed in bfloat16) or `"int8"`."""
    if quantization == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    raise ValueError(f"quantization must be 'nf4' or 'int8', got {quantization!r}.")


def _set_quantization(kwargs: dict, quantization: str | None):
    """Makes the bitsandbytes configuration, and keeps the vision tower out of any that does not say otherwise."""
    if quantization is not None and "quantization_config" in kwargs:
        raise ValueError("give either `quantization` or `quantization_config`, not both.")
    if quantization is not None:
        kwargs["quantization_config"] = bitsandbytes_config(quantization)

    # The names are anchored at the start, wherever the VLM hangs.
    config = kwargs.get("quantization_config")
    if isinstance(config, BitsAndBytesConfig) and config.llm_int8_skip_modules is None:
        config.llm_int8_skip_modules = []
        for prefix in ("", "model.", "vlm.", "vlm.model."):
            config.llm_int8_skip_modules.extend(prefix + name for name in _FULL_PRECISION)


def _choose_dtype(kwargs: dict):
    """Settles what `dtype="auto"` stands for on this machine; quantised weights have a dtype of their own."""
    for name in ("dtype", "torch_dtype"):
        if name in kwargs and "quantization_config" not in kwargs:
            kwargs[name] = chosen_dtype(kwargs[name])


def _take_over_quantization(model):
    """Moves what transformers notes on a quantised VLM to its wrapper, so that this is saved and trained as one."""
    if getattr(model.vlm, "hf_quantizer", None) is None:
        return

    model.hf_quantizer = model.vlm.hf_quantizer
    model.config.quantization_config = model.vlm.config.quantization_config
    del model.vlm.config.quantization_config

    # Trainer asks the wrapper for these
    for note in ("quantization_method", "is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(model.vlm, note):
            setattr(model, note, getattr(model.vlm, note))


def _take_over_device_map(model):
    """Notes on the wrapper which part of the VLM is where, by which offloaded weights are saved."""
    device_map = getattr(model.vlm, "hf_device_map", None)
    if device_map is not None:
        model.hf_device_map = {f"vlm.{name}".rstrip("."): device for name, device in device_map.items()}
