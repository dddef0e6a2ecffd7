"""Dual encoders (CLIP, SigLIP and their like), which figures show beside our models."""

from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from ..checkpoints.opening import local_folder, open_sentence_transformer
from ..images_unime import open_image
from ..jobs.embedding import as_text

BATCH_SIZE = 32


class DualEncoder:
    """A text tower and an image tower whose embeddings share a space, read as an embedder is.

    An item with an image is embedded by its image alone, as neither tower reads both. Long texts are cut where the
    text tower ends, at 77 tokens in CLIP.

    Args:
        towers: has `texts(list[str])` and `images(list[PIL.Image.Image])`, which give embeddings `[N, D]`.
    """

    def __init__(self, towers):
        self.towers = towers

    def encode_query(self, items: list[dict]) -> torch.Tensor:
        """Embeddings of items.

        Args:
            items (`list[dict]`): each with `"text"`, `"image"` or both.

        Returns:
            float32 tensor `[N, D]` on the CPU, with rows of unit norm.

        Raises:
            ValueError: an item has neither, or its image cannot be read.
        """
        # each tower has batches of its own
        with_image = []
        with_text = []
        for number, item in enumerate(items):
            if item.get("image"):
                with_image.append(number)
            elif item_text(item):
                with_text.append(number)
            else:
                raise ValueError(f"item {number} has neither a text nor an image, all that a dual encoder reads.")

        embeddings = [None] * len(items)
        with torch.inference_mode():
            for numbers in _batches(with_text):
                texts = [item_text(items[number]) for number in numbers]
                self._put(self.towers.texts(texts), numbers, embeddings)

            # images are large: those of one batch are in memory at once
            for numbers in _batches(with_image):
                images = [open_image(items[number]["image"]) for number in numbers]
                self._put(self.towers.images(images), numbers, embeddings)

        # `torch.stack` refuses an empty list
        if not embeddings:
            return torch.zeros(0, 0)
        return torch.stack(embeddings)

    encode_document = encode_query

    @staticmethod
    def _put(vectors, numbers, embeddings: list):
        """Normalises vectors `[n, D]` and puts each in the place of its item."""
        vectors = F.normalize(torch.as_tensor(vectors).float().cpu(), dim=-1)
        for number, vector in zip(numbers, vectors):
            embeddings[number] = vector


def _batches(numbers: list[int]) -> list[list[int]]:
    """Numbers in pieces of the size of a batch."""
    return [numbers[start : start + BATCH_SIZE] for start in range(0, len(numbers), BATCH_SIZE)]


def item_text(item: dict) -> str:
    """The text of an item, empty if it has none."""
    return (item.get("text") or "").strip()


class TransformersTowers:
    """The towers of a `CLIPModel`, a `SiglipModel` or any other model of transformers with the same two methods.

    Args:
        folder (`Path`): of the checkpoint.
        device: where the model is put.
    """

    def __init__(self, folder: Path, device):
        self.model = AutoModel.from_pretrained(folder).to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self.longest = self.model.config.text_config.max_position_embeddings

    def texts(self, texts: list[str]) -> torch.Tensor:
        """Embeddings `[N, D]` of texts, padded to the tower's length, as SigLIP was trained."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.longest, "return_tensors": "pt"}
        inputs = self.tokenizer(texts, **options).to(self.model.device)
        return _pooled(self.model.get_text_features(**inputs))

    def images(self, images: list) -> torch.Tensor:
        """Embeddings `[N, D]` of images."""
        inputs = self.image_processor(images, return_tensors="pt").to(self.model.device)
        return _pooled(self.model.get_image_features(**inputs))


def _pooled(output) -> torch.Tensor:
    """The vectors of a tower, which some versions of transformers return with its hidden states."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


class SentenceTowers:
    """A dual encoder of sentence-transformers.

    Args:
        folder (`Path`): of the model.
        device: where it is put.
        trust_remote_code (`bool`): run the code of the repository.
    """

    def __init__(self, folder: Path, device, trust_remote_code: bool):
        self.model = open_sentence_transformer(folder, device, trust_remote_code)

    def texts(self, texts: list[str]):
        """Embeddings `[N, D]` of texts."""
        return self.model.encode([as_text(text, self.model) for text in texts], show_progress_bar=False)

    def images(self, images: list):
        """Embeddings `[N, D]` of images."""
        return self.model.encode(images, show_progress_bar=False)


def open_dual_encoder(source, device, trust_remote_code: bool = False) -> DualEncoder | None:
    """Opens a dual encoder of transformers or sentence-transformers.

    Args:
        source (`str` or `Path`): folder or repository.
        device: where the model is put.
        trust_remote_code (`bool`, defaults to `False`): run the code of the repository.

    Returns:
        [`DualEncoder`], or `None` if it is another kind of model.

    Example:

    ```python
    clip = open_dual_encoder("openai/clip-vit-base-patch32", "cpu")
    similarities = clip.encode_query([{"text": "a dog"}]) @ clip.encode_document([{"image": "dog.jpg"}]).T  # [1, 1]
    ```
    """
    folder = local_folder(source)
    has_config = (folder / "config.json").exists()
    has_modules = (folder / "modules.json").exists()

    # sentence-transformers keeps a CLIP model's config.json in the folder of a module
    is_dual = _has_two_towers(folder) if has_config else has_modules
    if not is_dual:
        return None

    # other modules may stand behind the towers
    if has_modules:
        return DualEncoder(SentenceTowers(folder, device, trust_remote_code))
    return DualEncoder(TransformersTowers(folder, device))


def _has_two_towers(folder: Path) -> bool:
    """Whether transformers builds a model of a checkpoint's type with a text tower and an image tower."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except ValueError:  # a type that transformers does not know, or a repository's own
        return False

    model_class = MODEL_MAPPING.get(type(config), None)
    return hasattr(model_class, "get_text_features") and hasattr(model_class, "get_image_features")
