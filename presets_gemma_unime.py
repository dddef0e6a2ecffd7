"""EmbeddingGemma 2: an encoder of Google's for texts and images, whose queries name their task."""

from .preset_unime import RAW, Checkpoint, Family, Instruction, Preset, Prompts

PRESETS = {
    # Its templates as mteb's wrapper writes them (google_embeddinggemma.py), the text before the image. What the
    # repository's own template puts between the two, if anything, was not seen.
    "embeddinggemma-2": Preset(
        query=Prompts(
            text="task: {instruction} | query: {text}",
            image="task: {instruction} | query: {image}",
            both="task: {instruction} | query: {text}{image}",
        ),
        document=Prompts(
            text="title: none | text: {text}",
            image="title: none | text: {image}",
            both="title: none | text: {text}{image}",
        ),
        frame=RAW,
        instruction=Instruction("slot", default="search result", roles=("query",)),
        pooling="mean",
        padding_side="right",
        max_length=8192,
        widths=(128, 256, 512, 768),
        evaluates_as_trained=False,
        model_types=("embedding_gemma2",),
    ),
}

# mteb has the license "gemma", announcements Apache-2.0
GEMMA = Family(PRESETS, {"google/embeddinggemma-2": Checkpoint("embeddinggemma-2")})

__all__ = ["GEMMA"]
