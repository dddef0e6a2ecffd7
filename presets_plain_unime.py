"""Presets for any VLM: zero-shot, and what UniME's and SaHa's training starts from."""

from .preset_unime import RAW, Family, Preset, Prompts, same

SUMMARISE = "Given an image, summarize the provided image in one word. Given only text, describe the text in one word."

# SaHa's, of which documents are the bare items
HIERARCHICAL_QUERY = Prompts(
    text="{text}\nRepresent the given text in one word.",
    image="{image}\nRepresent the given text/image in one word.",
    both="{image}\n{text}\nRepresent the given text/image in one word.",
)
HIERARCHICAL_DOCUMENT = Prompts(text="{text}", image="{image}", both="{image}\n{text}")

PRESETS = {
    # Zero-shot, and UniME stage 1 (2504.17432 section 3.2): the next token after the prompt sums the item up, and an
    # image with a text is the sum of its two embeddings.
    "summary": same(
        Prompts(
            text="{text}\nSummary above sentence in one word:",
            image="{image}\nSummary above image in one word:",
            both="{image}\n{text}\nSummary above image and sentence in one word:",
        ),
        fusion="sum",
    ),
    # From Generator to Embedder (2508.00955): a shared system sentence, and a one-word request on the query side only.
    "hierarchical": Preset(query=HIERARCHICAL_QUERY, document=HIERARCHICAL_DOCUMENT, system=SUMMARISE),
    # VLM2Vec and UniME stage 2 on MMEB: the data set's own strings, unwrapped.
    "joint": same(
        Prompts(text="{text}", image="{image}\nRepresent the given image.\n", both="{image}\n{text}\n"),
        frame=RAW,
        verbatim=True,
    ),
}

PLAIN = Family(PRESETS, {})

__all__ = ["HIERARCHICAL_DOCUMENT", "HIERARCHICAL_QUERY", "PLAIN", "SUMMARISE"]
