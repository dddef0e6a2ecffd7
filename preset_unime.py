"""What a preset says: how an item becomes a prompt and pixels, and which hidden state becomes its embedding."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

# Kinds of benchmark that a preset may word in a way of its own: MMEB and MMEB-V2, image-text retrieval (short and long
# captions), and SugarCrepe.
BENCHMARKS = ("mmeb", "retrieval", "sugarcrepe")
CAPTION = "Find an image caption describing the given image."

# Frames: what stands around the user's turn in a prompt.
RAW = "{user}"
CHATML = "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
ASSISTANT = "You are a helpful assistant."  # the system turn of Qwen's own template


class Prompts(NamedTuple):
    """The user turn by kind of item. `{image}` stands where the image goes, `{text}` where the text goes.

    Args:
        text (`str`, *optional*): of an item that is a text; `None`, as below, where the authors read no such item.
        image (`str`, *optional*): of an item that is an image.
        both (`str`, *optional*): of an item with both.
        video (`str`, *optional*): of an item that is a video; as an image by default.
        video_and_text (`str`, *optional*): of an item with a video and a text; as an image and a text by default.
    """

    text: str | None
    image: str | None
    both: str | None
    video: str | None = None
    video_and_text: str | None = None

    def of(self, has_text: bool, has_image: bool, is_video: bool = False) -> str | None:
        """The turn of an item that has a text, an image, or both."""
        if not has_image:
            return self.text
        if has_text:
            return (self.video_and_text if is_video else None) or self.both
        return (self.video if is_video else None) or self.image


class Instruction(NamedTuple):
    """Where an instruction goes.

    Args:
        place (`str`): `"text"`: before the text, after an image; an image with an instruction is worded as an item of
            both. `"turn"`: before the whole user turn. `"slot"`: where the turn holds `{instruction}`. `"system"`: it
            is the system turn. `"none"`: the authors have no place for it, and it is left out.
        form (`str`, *optional*): instruction and text as one, for the places `"text"` and `"turn"`; by default on two
            lines, or on one where the instruction ends in a colon.
        default (`str` or `Prompts`): the instruction where a call gives none, by kind of item if they differ.
        full_stop (`bool`): strip it, and end it in a full stop unless it ends in punctuation.
        roles (`tuple`): roles for which it counts; it is left out for the other one, as the authors do.
    """

    place: str = "text"
    form: str | None = None
    default: "str | Prompts" = ""
    full_stop: bool = False
    roles: tuple[str, ...] = ("query", "document")


class Lists(NamedTuple):
    """How a reranker is asked about several candidates at once.

    Args:
        turn (`str`, *optional*): the user turn, with `{query}` and `{documents}` in it; the model answers with an
            order, `[2] > [1] > [3]`. By default UniME-V2's question, which a number answers (2510.13515).
        turn_with_images (`str`, *optional*): the same where a candidate is an image.
        entry (`str`): one of the candidates: `{number}`, `{document}`.
        images_by_template (`bool`): wrap a turn with images in the backbone's chat template, whatever the frame is.
        opening (`str`): the beginning of every answer, unless the template has written it.
        window, stride (`int`): candidates that are shown at once, and how far the window moves; 0 shows as many as
            fit, and moves by half of them.
        from_below (`bool`): whether windows move from the end of the list to its beginning.
        new_tokens (`int`): most tokens of an answer.
    """

    turn: str | None = None
    turn_with_images: str | None = None
    entry: str = "[{number}]: {document}"
    images_by_template: bool = False
    opening: str = ""
    window: int = 0
    stride: int = 0
    from_below: bool = True
    new_tokens: int = 128


class Judging(NamedTuple):
    """How a reranker asks about candidates, and what its score is.

    Args:
        query, document (`Prompts`): what stands for a query and for a candidate, by kind; `None` for kinds that the
            authors do not ask about.
        turn (`str`, *optional*): the user turn of a pair. `{query}`, `{document}` and `{instruction}` stand where they
            go, in any order. `None` for a reranker that is asked about lists only.
        by_roles (`bool`): the checkpoint's chat template words a pair, from messages of the roles query and document.
        words (`tuple[str, str]`, *optional*): the words for yes and for no, the difference of whose logits is the
            log-odds; `None` for a ranking head of its own.
        scale, shift (`float`): the head's output is multiplied by the one, and the other is added.
        output (`str`): what the authors report: `"probability"`, the sigmoid of the log-odds, or `"logit"`.
        penalty (`float` or `str`): repetition penalty on words that occur in the prompt; `"generation"` takes that of
            the checkpoint's generation configuration, as scores of `generate` have it.
        document_length (`int`, *optional*): tokens to which the text of a document is cut.
        lists ([`Lists`], *optional*): how it is asked about lists; `None` if it is not.
    """

    query: Prompts
    document: Prompts
    turn: str | None = None
    by_roles: bool = False
    words: tuple[str, str] | None = ("Yes", "No")
    scale: float = 1.0
    shift: float = 0.0
    output: str = "probability"
    penalty: float | str = 1.0
    document_length: int | None = None
    lists: Lists | None = None


@dataclass(frozen=True)
class Preset:
    """One way to read items: prompts by role, and everything else that decides which embedding comes out.

    Args:
        query, document (`Prompts`): user turns by kind of item.
        name (`str`): of a preset that is not in the table, whose keys are the names of the others.
        frame (`str`, *optional*): what stands around the turn, with `{system}` and `{user}` in it; `"{user}"` feeds it
            raw, `None` is the backbone's own chat template with a generation prompt.
        system (`str`, *optional*): system turn.
        instruction (`Instruction`): where an instruction goes.
        empty (`str`, *optional*): the text of an item without text and image; `None` refuses such an item.
        appended (`str` or `int`): what follows every prompt: control tokens, or the id of one.
        raw_joint (`bool`): image-and-text prompts, and texts that place the image themselves, are fed raw whatever
            the frame is: MMEB's strings as UniME's second stage saw them.
        verbatim (`bool`): a text that places the image itself is the whole turn; otherwise it replaces image and
            text in the prompt.
        fenced (`bool`): whether images stand between the backbone's own markers (Qwen's `<|vision_start|>`).
        strip (`bool`): strip texts; in a frame of the preset's own, the whole turn.
        fusion (`str`): `"joint"` reads image and text in one prompt; `"sum"` adds their two embeddings.
        benchmarks (`Mapping`): kind of benchmark (of `BENCHMARKS`) -> the preset whose prompts, frame and fusion are
            used there; this one's own on kinds that are not named.
        judged_images (`Mapping`): kind of benchmark -> what a judge reads after an image without a text; nothing on
            kinds that are not named. By default as UniME-V2's released code has it (2510.13515).
        judging (`Judging`, *optional*): of a reranker's preset; UniME-V2's questions by default.
        pooling (`str`): `"last"` attended token; `"mean"` of all attended tokens; `"image"`: the mean over an item's
            image with its markers, and of all tokens where it has none.
        attention (`str`): `"native"`, or `"bidirectional"`: every token sees every other, although the backbone is
            causal.
        positions (`str`): `"native"`, or `"flat"`: 1-D positions for image tokens too.
        padding_side (`str`): side of the padding in a batch.
        max_length (`int`): default limit in tokens, above which texts are cut; control tokens of the prompt stay.
        resolution: default resolution policy (see [`~unime.images_unime.Resolution`]), before the backbone's own
            image processor reads the image.
        image_tokens (`tuple[int, int]`, *optional*): fewest and most tokens of an image to which that processor then
            resizes it (Qwen-VL); the checkpoint's own limits by default.
        crops (`int`, *optional*): most crops of an image (Phi-3-vision); the checkpoint's own by default.
        video (`str`): `"tokens"`, or `"frames"`: read a video as a row of images, also where the backbone has tokens
            of its own for videos.
        num_frames (`int`): frames read of a video.
        fps (`float`, *optional*): frames read of a second, in the place of so many in all.
        max_frames (`int`): most frames that are read so.
        frame_pixels (`tuple[int, int]`, *optional*): fewest and most pixels of a frame; by default as an image.
        video_pixels (`int`): most pixels of a video's frames, of which two are one, together; Qwen2-VL's by default.
        anyres_padding (`str`): `"even"`, or `"legacy"`: the canvas of LLaVA's tiles comes out a pixel short when its
            padding is odd, as transformers 4.4x did.
        own_normalizer (`bool`): take the tokenizer's normalizer from its file, where transformers makes another one.
        widths (`tuple[int, ...]`): to which embeddings were trained to be cut (Matryoshka), as far as the model is
            that wide.
        adapter (`str`, *optional*): of a repository that has an adapter for each of several tasks in its `adapters/`:
            the task whose adapter is merged into the weights.
        unused_weights (`tuple[str, ...]`): beginnings of the names of weights that the embedding does without.
        processor (`str`, *optional*): repository of the tokenizer and image processor the checkpoints were trained
            with, where it is not their own.
        model_types (`tuple`): backbones the preset is for; empty for any.
        documents_as_queries (`tuple`): data sets whose documents are worded as queries.
        evaluates_as_trained (`bool`): whether a model that is trained with it is evaluated at the resolution of its
            training, which is then saved with it (UniME), or at the preset's (UniME-V2, VLM2Vec, SaHa).
    """

    query: Prompts
    document: Prompts
    frame: str | None = None
    system: str | None = None
    instruction: Instruction = field(default_factory=Instruction)
    empty: str | None = None
    appended: str | int = ""
    raw_joint: bool = False
    verbatim: bool = False
    fenced: bool = True
    strip: bool = False
    fusion: str = "joint"
    benchmarks: Mapping[str, str] = field(default_factory=dict)
    judged_images: Mapping[str, str] = field(
        default_factory=lambda: {"retrieval": f" {CAPTION}", "sugarcrepe": f" {CAPTION}"}
    )
    judging: Judging | None = None
    pooling: str = "last"
    attention: str = "native"
    positions: str = "native"
    padding_side: str = "left"
    max_length: int = 32_768
    resolution: str | int = "native"
    image_tokens: tuple[int, int] | None = None
    crops: int | None = None
    video: str = "tokens"
    num_frames: int = 8
    fps: float | None = None
    max_frames: int = 768
    frame_pixels: tuple[int, int] | None = None
    video_pixels: int = 90_316_800
    anyres_padding: str = "even"
    own_normalizer: bool = False
    widths: tuple[int, ...] = ()
    adapter: str | None = None
    unused_weights: tuple[str, ...] = ()
    processor: str | None = None
    model_types: tuple[str, ...] = ()
    documents_as_queries: tuple[str, ...] = ()
    evaluates_as_trained: bool = True
    name: str = ""


class Checkpoint(NamedTuple):
    """A published checkpoint.

    Args:
        preset (`str`): the name of what it was trained with.
        license (`str`, *optional*): of its weights, as the Hub spells it; `None` where it is not known.
        base (`str`, *optional*): what it was made from, or is an adapter of.
    """

    preset: str
    license: str | None = None
    base: str | None = None


class Family(NamedTuple):
    """Presets that belong together, and the checkpoints that were trained with them.

    Args:
        presets (`dict[str, Preset]`): by name.
        checkpoints (`dict[str, Checkpoint]`): by repository.
    """

    presets: dict[str, Preset]
    checkpoints: dict[str, Checkpoint]


def same(prompts: Prompts, **settings) -> Preset:
    """A preset that words queries and documents alike."""
    return Preset(query=prompts, document=prompts, **settings)


__all__ = [
    "ASSISTANT",
    "BENCHMARKS",
    "CAPTION",
    "CHATML",
    "RAW",
    "Checkpoint",
    "Family",
    "Instruction",
    "Judging",
    "Lists",
    "Preset",
    "Prompts",
    "same",
]
