"""The thirteen claims of the three papers, and what re-enacts each."""

from collections.abc import Callable
from dataclasses import dataclass

from . import hierarchy, judging, memory, negatives, pictures, reranking, stages, two_towers
from .findings import Finding
from .laboratory import Laboratory

UNIME = "UniME"
UNIME_V2 = "UniME-V2"
SAHA = "From Generator to Embedder"


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Args:
        text (`str`): what it says.
        source (`str`): where.
        run (`Callable`): measures it in a laboratory.
        minutes (`float`): about how long that takes at full size with three seeds, on one core, where everything is
            made anew that no claim before it makes.
        tried (`tuple[str, ...]`): what was tried where it may not hold, in order.
    """

    text: str
    source: str
    run: Callable[[Laboratory], Finding]
    minutes: float
    tried: tuple[str, ...] = ()


STAGE_1_TRIED = (
    "A learning rate of 5e-4 and a temperature of 0.05 lift less (one seed: MMEB 19.6 -> 19.8, compositional "
    "71.6 -> 74.8), and so does an adapter of rank 32 (20.7, 70.6): the more the language model changes, the more it "
    "forgets of what it sees. With 1.5e-4 and 0.05 it comes to 21.1 and 76.9, with the paper's temperature of 0.02 to "
    "23.9 and 77.7.",
)
STAGES_TRIED = (
    "Nothing yet. Stage 1 shows no picture, and the papers' backbones have seen millions of captioned ones before it, "
    "this one some ten thousand: on retrieval between pictures and captions it needs stage 2.",
)
PROMPT_TRIED = (
    "Nothing yet. The backbone was never taught to follow a system prompt, nor to say one word for a question.",
)
CLUSTERS_TRIED = (
    "Another measure: batches of one task, which hold hard negatives by themselves, are no plain in-batch training, "
    "but clusters are worse than batches of all tasks, too. A step has 64 pairs here, four clusters; the paper's has "
    "128 clusters. And all three start from a backbone that has never embedded.",
    "Going on from the embedder of the batches of all tasks, with clusters of its own embeddings (one seed): clusters "
    "64.5, batches of all tasks 65.5; at 3e-4 in place of 1e-3, 62.2 and 63.4. Clusters harm no more, and help with "
    "captions of pictures (67 against 47), not with answers (27 against 42).",
)
JUDGED_TRIED = (
    "Harder negatives, by a margin of 0.05 in place of 0.2 (one seed, the judge before this one): judged negatives "
    "73.3 -> 73.1, soft labels 74.0 -> 73.3. Twice the steps: judged negatives 74.4, soft labels 74.1.",
    "A judge that knows who is where; with the one before, in-batch, judged and soft came to 71.4, 71.9 and 72.2.",
)
RERANKER_TRIED = (
    "A backbone of four layers after 550 steps sees colours and hardly shapes (100 and 34 of 100 second things of "
    "unseen pairs); after 1,500 steps it says 97 shapes rightly.",
    "Lessons with one answer a candidate: area under the curve 0.59 on whole scenes after 300 steps. With a label at "
    "every token, whether a right text may begin like this: 0.83, and 0.91 after 1,200 steps, 0.82 with near misses.",
    "That judge, on the backbone of 550 steps, ranks the best five worse than the embedder: 75.2 -> 51.3 over all "
    "tasks, 73.8 -> 72.4 on the compositional ones, pointwise.",
    "Lists are answered by chance after 1,200 steps, and after 300 more in which every second lesson was a list.",
    "A backbone of 2,000 steps prefers nearly every true caption (0.97 to 1.00) to one with a shape, a colour or a "
    "relation changed, by its likelihood. A judge of 2,000 steps on it has an area under the curve of 0.86 with near "
    "misses. It ranks the best five of the embedder of both stages, one seed, 40 queries a task: alone 74.2 -> 63.6; "
    "added to the similarities 74.2 -> 78.3, of which the compositional tasks gain nothing (78.9 -> 78.2).",
    "In lists it never named the first place (74.2 -> 21.1), since the answer at the end of a list counted the more "
    "in its lessons the later the right one stood. With that mended, 300 more steps, six in ten of them lists, come "
    "to 31.1, and 0.16 of lists of five are answered rightly. Added to the similarities, that judge lifts "
    "74.2 -> 78.9, and the compositional tasks 80.0 -> 85.7 (20 queries a task).",
    "Two more layers for the judge, which change nothing at first: 0.79 after 1,000 steps; fused 74.2 -> 76.7.",
    "The same, with texts described below these layers, where the backbone does it: after 750 steps 0.78 for captions "
    "of a picture and 0.71 for pictures of a caption, in place of 0.69 and 0.65 without them; after 3,000 steps 0.90 "
    "and 0.77, and 0.87 over all tasks, with near misses. Asking one layer lower whether a text is right so far "
    "changes nothing within 300 steps.",
    "That judge, one seed, 40 queries a task, the best five: alone 74.0 -> 68.3; P(Yes) added to the similarities "
    "74.0 -> 80.3, compositional 81.8 -> 83.2; log-odds times the embedder's temperature of 0.05 added 74.0 -> 81.5, "
    "compositional 81.8 -> 85.4. What is left are relations: swap_att 65 -> 85, but replace_rel 65 -> 65 and swap_obj "
    "68 -> 62.",
    "A step of those lessons held about one caption that is wrong about a relation. The judge told 64 of 100 replaced "
    "relations and 55 of 100 swapped things from the true caption (chance 50), though the layers below expect the "
    "right word in 95 of 100. With 18 such captions a step the area under the curve of that word comes to 0.94 after "
    "300 steps. The lessons begin with captions now, false in one word: after 450 of 3,000 steps 100 and 97 of 100. "
    "Areas under the curve before and after that are of other lessons, and do not compare.",
    "Trained on the mined rows with 5e-4 for 100 steps, the judge before forgot what it knew (one seed, fused, "
    "compositional 83.8 -> 79.5, all tasks 81.9 -> 80.0). With 1e-4 and 60 steps the present one keeps most of it "
    "(93.6 -> 92.4, 85.8 -> 85.6), but both objectives are below pairwise training alone (three seeds, -0.7 "
    "[-1.4, 0.0]): lists are hardly learnt, and cost the other answers. 3e-5 costs less; it was chosen "
    "on the same queries.",
)

BETTER_JUDGE_TRIED = ("Nothing yet; the judges before these were not compared at three levels.",)

# in the order in which they are cheapest: what a claim trains serves those after it
CLAIMS = {
    "F13": Claim(
        "With the gradient cache memory is flat in the batch, and gradients are the full batch's.",
        f"{UNIME} section 4.1, {UNIME_V2} table 7",
        memory.cache_is_flat_and_exact,
        16,
    ),
    "F1": Claim(
        "Stage 1 lifts the raw MLLM on every group of tasks.",
        f"{UNIME} section 4.3, ablation of stages",
        stages.stage_1_lifts,
        15,
        STAGE_1_TRIED,
    ),
    "F2": Claim(
        "Distilling similarities beats contrastive training on the same texts.",
        f"{UNIME} section 3.2",
        stages.distilling_beats_contrast,
        12,
    ),
    "F3": Claim(
        "On MMEB stages 1 + 2 > 2 > 1 > raw; on retrieval and compositional tasks 1 + 2 > 1 > 2 > raw.",
        f"{UNIME} section 4.3, ablation of stages",
        stages.stages_in_order,
        45,
        STAGES_TRIED,
    ),
    "F4": Claim(
        "Hard negatives keep loss and gradient norm high, random ones less, easy ones not at all.",
        f"{UNIME} section 5.1, figure 5",
        negatives.hard_negatives_keep_teaching,
        10,
    ),
    "F5": Claim(
        "The similarity matrix of 50 pairs sharpens from raw to stage 1 to stage 2.",
        f"{UNIME}, figure of similarity matrices",
        pictures.matrix_sharpens,
        1,
    ),
    "F6": Claim(
        'The next-token distribution after "in one word:" moves to concrete words and spreads over them.',
        f"{UNIME} section 5, figure 6",
        pictures.words_become_concrete,
        1,
    ),
    "F7": Claim(
        "The hierarchical prompt lifts a raw MLLM above one-level prompts, and lifts in-batch fine-tuning.",
        f"{SAHA}, abstract",
        hierarchy.hierarchical_prompt_lifts,
        22,
        PROMPT_TRIED,
    ),
    "F12": Claim(
        "The modality gap is smaller than a dual encoder's, and long captions lose nothing where a text tower cut at "
        "77 tokens does.",
        f"{UNIME} sections 1 and 4, {UNIME_V2} figure 4",
        two_towers.one_tower_closes_the_gap,
        12,
    ),
    "F8": Claim(
        "SaHa's clusters beat in-batch negatives at equal compute, under the hierarchical prompt.",
        f"{SAHA}, abstract",
        hierarchy.clusters_beat_batches,
        35,
        CLUSTERS_TRIED,
    ),
    "F9": Claim(
        "Judged negatives beat in-batch ones; soft labels beat hard ones on the same rows.",
        f"{UNIME_V2}, ablations",
        judging.judged_rows_help,
        95,
        JUDGED_TRIED,
    ),
    "F10": Claim(
        "The reranker lifts the top five; pairwise and listwise training together are no worse than either.",
        f"{UNIME_V2} table 3 and ablation",
        reranking.reranker_lifts,
        40,
        RERANKER_TRIED,
    ),
    "F11": Claim(
        "A better judge gives a better embedder.",
        f"{UNIME_V2} table 5",
        judging.better_judge_helps,
        40,
        BETTER_JUDGE_TRIED,
    ),
}


def in_order(names) -> list[str]:
    """Claims by their numbers: F2 comes before F10."""
    return sorted(names, key=lambda name: int(name[1:]))
