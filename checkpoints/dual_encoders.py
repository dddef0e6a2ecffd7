"""Dual encoders (CLIP, SigLIP, EVA-CLIP), the baselines that stand beside our models in tables and figures."""

import inspect
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessorPil,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from ..images_unime import open_image
from ..integrity_unime import SavedFiles
from ..prompts_unime import one_of
from ..vlm_unime import assert_all_landed
from .opening import as_text, local_folder, naming_untrusted_code, open_sentence_transformer

BATCH_SIZE = 32
FUSIONS = ("sum", "image")


class DualEncoder:
    """A text tower and an image tower whose embeddings share a space, read as an embedder is.

    Neither tower reads an image with its text. By default such an item is the sum of its two embeddings, with equal
    weights, as for the dual encoders in MMEB's tables (VLM2Vec, 2410.05160). Long texts are cut where the text tower
    ends, at 77 tokens in CLIP.

    Args:
        towers: has `texts(list[str])` and `images(list[PIL.Image.Image])`, which give embeddings `[N, D]`.
    """

    def __init__(self, towers):
        self.towers = towers

    def encode(self, items: list[dict], fusion: str = "sum") -> torch.Tensor:
        """Embeddings of items, which are read alike as queries and as documents.

        Args:
            items (`list[dict]`): each with `"text"`, `"image"` or both.
            fusion (`str`, defaults to `"sum"`): of an item with both: the `"sum"` of its embeddings, or that of its
                `"image"` alone.

        Returns:
            float32 tensor `[N, D]` on the CPU, with rows of unit norm.

        Raises:
            ValueError: an item has neither or something else, its image cannot be read, or the fusion is unknown.

        Example:

        ```python
        open_dual_encoder("openai/clip-vit-base-patch32", "cpu").encode([{"text": "a dog"}, {"image": "dog.jpg"}])
        ```
        """
        one_of("fusion", fusion, *FUSIONS)

        # each tower has batches of its own
        with_image = []
        with_text = []
        for number, item in enumerate(items):
            has_text, has_image = _parts(item, number)
            if has_image:
                with_image.append(number)
            if has_text and not (has_image and fusion == "image"):
                with_text.append(number)

        sums = [0.0] * len(items)
        with torch.inference_mode():
            for numbers in _batches(with_text):
                texts = [item_text(items[number]) for number in numbers]
                self._add(self.towers.texts(texts), numbers, sums)

            # images are large: those of one batch are in memory at once
            for numbers in _batches(with_image):
                images = [open_image(items[number]["image"]) for number in numbers]
                self._add(self.towers.images(images), numbers, sums)

        # `torch.stack` refuses an empty list
        if not sums:
            return torch.zeros(0, 0)
        return F.normalize(torch.stack(sums), dim=-1)

    @staticmethod
    def _add(vectors, numbers, sums: list):
        """Normalises vectors `[n, D]` and adds each to that of its item."""
        vectors = F.normalize(torch.as_tensor(vectors).float().cpu(), dim=-1)
        for number, vector in zip(numbers, vectors):
            sums[number] = sums[number] + vector


def _parts(item: dict, number: int) -> tuple[bool, bool]:
    """Whether an item has a text, and whether it has an image."""
    others = sorted(item.keys() - {"text", "image"})
    if others:
        raise ValueError(f"item {number} has a {others[0]}, which a dual encoder does not read.")
    has_text = bool(item_text(item))
    has_image = item.get("image") is not None and item["image"] != ""
    if not has_text and not has_image:
        raise ValueError(f"item {number} has neither a text nor an image, all that a dual encoder reads.")
    return has_text, has_image


def _batches(numbers: list[int]) -> list[list[int]]:
    """Numbers in pieces of the size of a batch."""
    return [numbers[start : start + BATCH_SIZE] for start in range(0, len(numbers), BATCH_SIZE)]


def item_text(item: dict) -> str:
    """The text of an item, empty if it has none."""
    return (item.get("text") or "").strip()


class TransformersTowers:
    """The towers of a `CLIPModel`, a `SiglipModel` or any other model with the same two methods, or with EVA-CLIP's.

    Args:
        folder (`Path`): of the checkpoint.
        device: where the model is put.
        trust_remote_code (`bool`): run the code of the repository, which EVA-CLIP is.
        dtype (`str`): of the weights.

    Raises:
        ValueError: a weight did not land; a repository with code of its own calls its weights otherwise.
    """

    def __init__(self, folder: Path, device, trust_remote_code: bool, dtype: str):
        options = {"trust_remote_code": trust_remote_code, "dtype": dtype}
        config = SavedFiles(folder).json("config.json")
        if config.get("auto_map") and not trust_remote_code:
            raise ValueError(f"{folder} has a model class of its own, which needs trust_remote_code=True.")

        model, info = AutoModel.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
        assert_all_landed(info, folder)
        self.model = model.to(device).eval()

        # texts and images are read apart
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        self.image_processor = _image_processor(folder, model.config, trust_remote_code)

        text_config = model.config.text_config
        self.longest = getattr(text_config, "max_position_embeddings", None)
        self.is_siglip = model.config.model_type.startswith("siglip")

        # CLIP and SigLIP call these otherwise than EVA-CLIP
        self.embed_texts = _method(model, "get_text_features", "encode_text")
        self.embed_images = _method(model, "get_image_features", "encode_image")

    def texts(self, texts: list[str]) -> torch.Tensor:
        """Embeddings `[N, D]` of texts, padded to the tower's length."""
        # which SigLIP's own tokenizers do, and the one that SigLIP 2 took over does not
        if self.is_siglip:
            texts = [text.lower() for text in texts]

        options = {"padding": "max_length", "truncation": True, "max_length": self.longest, "return_tensors": "pt"}
        inputs = self.tokenizer(texts, **options).to(self.model.device)

        # SigLIP was trained to read the padding too
        if self.is_siglip:
            inputs.pop("attention_mask", None)
        return _pooled(self.embed_texts(**_taken(self.embed_texts, inputs)))

    def images(self, images: list) -> torch.Tensor:
        """Embeddings `[N, D]` of images."""
        inputs = self.image_processor(images, return_tensors="pt").to(self.model.device, self.model.dtype)
        return _pooled(self.embed_images(**_taken(self.embed_images, inputs)))


def _image_processor(folder: Path, config, trust_remote_code: bool):
    """What reads images: the checkpoint's own or, where it has none as EVA-CLIP, CLIP's at the tower's size."""
    if (folder / "preprocessor_config.json").exists() or (folder / "processor_config.json").exists():
        return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=trust_remote_code)
    side = config.vision_config.image_size
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _method(model, *names: str):
    """The first of some methods that a model has."""
    for name in names:
        if hasattr(model, name):
            return getattr(model, name)
    raise ValueError(f"{type(model).__name__} has none of the methods {', '.join(names)}: it is not a dual encoder.")


def _taken(method, inputs) -> dict:
    """Those of the inputs that a method takes; EVA-CLIP's take one, which they name as they like."""
    names = inspect.signature(method).parameters
    taken = {name: value for name, value in inputs.items() if name in names}
    if taken:
        return taken
    return {next(iter(names)): inputs["pixel_values" if "pixel_values" in inputs else "input_ids"]}


def _pooled(output) -> torch.Tensor:
    """The vectors of a tower, which some versions of transformers return with its hidden states."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


class SentenceTowers:
    """A dual encoder of sentence-transformers.

    Args:
        folder (`Path`): of the model.
        device: where it is put.
        trust_remote_code (`bool`): run the code of the repository.
        dtype (`str`): of the weights.
    """

    def __init__(self, folder: Path, device, trust_remote_code: bool, dtype: str):
        self.model = open_sentence_transformer(folder, device, trust_remote_code, model_kwargs={"dtype": dtype})

    def texts(self, texts: list[str]):
        """Embeddings `[N, D]` of texts."""
        return self.model.encode([as_text(text, self.model) for text in texts], show_progress_bar=False)

    def images(self, images: list):
        """Embeddings `[N, D]` of images."""
        return self.model.encode(images, show_progress_bar=False)


def open_dual_encoder(source, device, trust_remote_code: bool = False, dtype: str = "float32") -> DualEncoder | None:
    """Opens a dual encoder of transformers or sentence-transformers.

    Args:
        source (`str` or `Path`): folder or repository.
        device: where the model is put.
        trust_remote_code (`bool`, defaults to `False`): run the code of the repository.
        dtype (`str`, defaults to `"float32"`): of the weights.

    Returns:
        [`DualEncoder`], or `None` if it is another kind of model.

    Raises:
        ValueError: it needs code of its repository, which was not trusted, or a weight did not land.

    Example:

    ```python
    clip = open_dual_encoder("openai/clip-vit-base-patch32", "cpu")
    similarities = clip.encode([{"text": "a dog"}]) @ clip.encode([{"image": "dog.jpg"}]).T  # [1, 1]
    ```
    """
    folder = local_folder(source)
    if not is_dual_encoder(folder, trust_remote_code):
        return None

    # other modules may stand behind the towers
    with naming_untrusted_code(source):
        if (folder / "modules.json").exists():
            return DualEncoder(SentenceTowers(folder, device, trust_remote_code, dtype))
        return DualEncoder(TransformersTowers(folder, device, trust_remote_code, dtype))


def is_dual_encoder(source, trust_remote_code: bool = False) -> bool:
    """Whether a checkpoint has a text tower and an image tower, by its configuration.

    Args:
        source (`str` or `Path`): folder or repository.
        trust_remote_code (`bool`, defaults to `False`): run the code of the repository, to know its class.
    """
    folder = local_folder(source, weights=False)
    config = SavedFiles(folder).json("config.json")

    # sentence-transformers keeps a CLIP model's config.json in the folder of a module
    if config is None:
        return (folder / "modules.json").exists()

    # EVA-CLIP calls its configuration "clip", too
    model_class = _stock_class(folder)
    reference = (config.get("auto_map") or {}).get("AutoModel")
    if reference and trust_remote_code:
        model_class = get_class_from_dynamic_module(reference, str(folder))
    has_texts = hasattr(model_class, "get_text_features") or hasattr(model_class, "encode_text")
    return has_texts and (hasattr(model_class, "get_image_features") or hasattr(model_class, "encode_image"))


def _stock_class(folder: Path):
    """The class that transformers builds of a checkpoint's type; `None` if it does not know the type."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ValueError:  # a type that transformers does not know, or a repository's own
        return None
    return MODEL_MAPPING.get(type(config), None)
