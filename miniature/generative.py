"""What the miniature backbone is pre-trained on: prompts with a picture, and the answers that it learns to give."""

from collections.abc import Sequence
from dataclasses import dataclass

from . import scenes
from .instructions import FIND_CAPTION, IMAGE, prompt
from .sources import Source, digit_words

SINGLE = 0.2  # share of the generative rows that show one thing only
GENERATIVE = {"caption": 36, "question": 42, "detail": 11, "summary": 6, "match": 3, "pick": 2}  # weights
DIGITS = 0.08  # share of captions that are of a digit
MIXED = (scenes.one, scenes.pair, scenes.pair, scenes.pair, scenes.crowd, scenes.crowd)
LAYOUTS = {  # of rows that show more than one thing
    "caption": MIXED,
    "question": (scenes.pair, scenes.pair, scenes.crowd, scenes.quarters),
    "detail": (scenes.quarters,),
    "summary": MIXED,
    "match": MIXED,
    "pick": (scenes.pair,),
}


@dataclass
class Exchange:
    """A prompt with its answer; `candidates` are those of a match or a pick."""

    text: str
    picture: str
    answer: str
    candidates: Sequence[str] = ()


def make_generative(source: Source) -> dict:
    """One generative example: a caption, an answer, a one-word summary, a yes/no match or a pick among candidates.

    Args:
        source ([`~unime.miniature.sources.Source`]): of the training split.

    Returns:
        `dict`: a row of `pretrain/generative.parquet`.
    """
    single = source.rng.random() < SINGLE
    if single:
        task = source.rng.choice(("caption", "question"))
    else:
        task = source.rng.choices(list(GENERATIVE), GENERATIVE.values())[0]

    if task == "caption" and source.rng.random() < DIGITS:
        exchange = _digit(source)
    else:
        layout = scenes.one if single else source.rng.choice(LAYOUTS[task])
        scene = source.scene(layout)
        picture = source.painter.scene(scene)
        exchange = _MAKERS[task](source, scene, picture)

    return {
        "task": task,
        "query": {"text": exchange.text, "image": exchange.picture},
        "candidates": [{"text": candidate, "image": ""} for candidate in exchange.candidates],
        "answer": exchange.answer,
    }


# one maker a task
def _digit(source: Source) -> Exchange:
    """Which digit a scan shows."""
    digit, image = source.digit()
    return Exchange("Describe the image.", source.painter.save(image), digit_words(digit))


def _caption(source: Source, scene: scenes.Scene, picture: str) -> Exchange:
    """What a picture shows, in one sentence."""
    return Exchange("Describe the image.", picture, scenes.caption(scene))


def _detail(source: Source, scene: scenes.Scene, picture: str) -> Exchange:
    """What a picture shows, in several sentences."""
    return Exchange("Describe the image in detail.", picture, scenes.long_caption(scene))


def _question(source: Source, scene: scenes.Scene, picture: str) -> Exchange:
    """A question about a picture."""
    question, answer = source.rng.choice(scenes.questions(scene))
    return Exchange(question, picture, answer)


def _summary(source: Source, scene: scenes.Scene, picture: str) -> Exchange:
    """One word for a picture, or for its caption alone."""
    thing = scene.things[0]
    answer = source.rng.choice((thing.colour, thing.shape))
    if source.rng.random() < 0.4:
        return Exchange(f"{scenes.caption(scene)}\nSummary above sentence in one word:", "", answer)
    return Exchange("Summary above image in one word:", picture, answer)


def _match(source: Source, scene: scenes.Scene, picture: str) -> Exchange:
    """Whether a caption is that of a picture, as a pointwise judge is asked."""
    candidate = scenes.caption(scene)
    if source.rng.random() < 0.5:
        candidate = _other_caption(source, scene)

    # another scene may have the same caption, and then the answer is yes after all
    answer = "Yes" if candidate == scenes.caption(scene) else "No"
    return Exchange(IMAGE + prompt(FIND_CAPTION), picture, answer, [candidate])


def _other_caption(source: Source, scene: scenes.Scene) -> str:
    """A caption that is false in one respect, or, more often, that of another scene."""
    if scene.layout == "pair" and source.rng.random() < 0.5:
        captions = scenes.negatives(scene, source.rng)
        return source.rng.choice(list(captions.values()))
    return scenes.caption(source.scene(scenes.pair))


def _pick(source: Source, scene: scenes.Scene, picture: str) -> Exchange:
    """Which of up to five captions is that of a picture, as a listwise judge is asked."""
    candidates = {scenes.caption(scene)}
    for _ in range(source.rng.randint(1, 4)):
        candidates.add(scenes.caption(source.scene(scenes.pair)))

    # sorted first: the order of a set of strings differs from process to process
    candidates = sorted(candidates)
    source.rng.shuffle(candidates)
    number = candidates.index(scenes.caption(scene)) + 1
    return Exchange(IMAGE + prompt(FIND_CAPTION), picture, f"Ans: ({number})", candidates)


_MAKERS = {
    "caption": _caption,
    "question": _question,
    "detail": _detail,
    "summary": _summary,
    "match": _match,
    "pick": _pick,
}
