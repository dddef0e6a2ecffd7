"""Rerankers by other authors: what they ask about a candidate, and what their score is."""

from .preset_unime import ASSISTANT, CHATML, RAW, Checkpoint, Family, Instruction, Judging, Lists, Prompts, same
from .presets_lamra_unime import QWEN2_VIDEO
from .presets_qwen3_unime import QWEN3_FRAMES

_ITEM = Prompts(text="{text}", image="{image}", both="{image}{text}")
_TEXT_ONLY = Prompts(text="{text}", image=None, both=None)
_EITHER = Prompts(text="{text}", image="{image}", both=None)
_THINK = "<think>\n\n</think>\n\n"

_LAMRA = (
    "I will provide you with a query and a candidate. Please evaluate whether the candidate{space}meets the "
    "requirements of the query. If it does, respond with 'Yes'; if it doesn't, responed with 'No'."  # as they write it
    "Query:{query}Candidate:{document}"
)
_LIGHTON = "Query: {query}\n\nRank these passages from most to least relevant:\n{documents}\n\nRanking:"


def _lamra(space: str, model_type: str):
    """LamRA's pointwise reranker; its two releases differ in the blanks of a string that was broken over two lines."""
    return same(
        _ITEM,
        frame=CHATML,
        system=ASSISTANT,
        instruction=Instruction(form="{instruction} {text}"),
        judging=Judging(
            query=_ITEM,
            document=_ITEM,
            turn=_LAMRA.replace("{space}", space),
            penalty="generation",  # they read the scores of `generate`
            lists=Lists(),
        ),
        resolution="tokens:300",
        **QWEN2_VIDEO,
        model_types=(model_type,),
        evaluates_as_trained=False,
    )


def _lighton_lists(opening: str = ""):
    """LightOn's listwise rerankers write an order of four documents; the 4B is told not to think."""
    return same(
        _EITHER,
        frame="<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n",
        instruction=Instruction(place="none"),
        judging=Judging(
            query=_TEXT_ONLY,
            document=_EITHER,
            lists=Lists(
                turn=_LIGHTON,
                turn_with_images=_LIGHTON.replace("passages", "documents"),
                images_by_template=True,
                opening=opening,
                window=4,
                stride=2,
                new_tokens=30,
            ),
        ),
        video="frames",
        model_types=("qwen3_5",),
    )


RERANKERS = Family(
    presets={
        "lamra-rank": _lamra(" " * 24, "qwen2_vl"),
        "lamra-rank-qwen2.5-vl": _lamra(" ", "qwen2_5_vl"),
        # the difference of two rows of the head is the log-odds of their words
        "qwen3-vl-reranker": same(
            _ITEM,
            frame=CHATML,
            system=(
                "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note "
                'that the answer can only be "yes" or "no".'
            ),
            instruction=Instruction(
                place="turn",
                default="Given a search query, retrieve relevant candidates that answer the query.",
            ),
            empty="NULL",
            judging=Judging(
                query=_ITEM,
                document=_ITEM,
                turn="<Instruct>: {instruction}<Query>:{query}\n<Document>:{document}",
                words=("yes", "no"),
            ),
            max_length=10_240,
            image_tokens=(4, 1800),
            num_frames=64,
            fps=1.0,
            max_frames=64,
            frame_pixels=QWEN3_FRAMES,
            video_pixels=10 * 768 * 1024,
            model_types=("qwen3_vl",),
            evaluates_as_trained=False,
        ),
        "jina-reranker-m0": same(
            _ITEM,
            frame=RAW,
            instruction=Instruction(place="none"),
            appended=100,  # this id in any vocabulary, whatever it means there
            judging=Judging(
                query=_EITHER,
                document=_EITHER,
                turn="**Document**:\n{document}\n**Query**:\n{query}",
                words=None,
                shift=-2.65,
                document_length=9728,
            ),
            max_length=10_240,
            image_tokens=(4, 768),
            video="frames",
            model_types=("qwen2_vl",),
            evaluates_as_trained=False,
        ),
        "monoqwen2-vl": same(
            _ITEM,
            frame=CHATML,
            system=ASSISTANT,
            instruction=Instruction(place="none"),
            judging=Judging(
                query=_TEXT_ONLY,
                document=Prompts(text=None, image="{image}", both=None),
                turn=(
                    "{document}Assert the relevance of the previous image document to the following query, answer "
                    "True or False. The query is: {query}"
                ),
                words=("True", "False"),
            ),
            video="frames",
            model_types=("qwen2_vl",),
            evaluates_as_trained=False,
        ),
        "lighton-rerank-lw": _lighton_lists(),
        "lighton-rerank-lw-4b": _lighton_lists(_THINK),
        # their prompt is in the checkpoint's template alone
        "lighton-rerank-pw": same(
            _EITHER,
            judging=Judging(query=_EITHER, document=_EITHER, by_roles=True, output="logit"),
            instruction=Instruction(place="none"),
            video="frames",
            model_types=("qwen3_5",),
        ),
    },
    checkpoints={
        "code-kunkun/LamRA-Rank": Checkpoint("lamra-rank"),
        "code-kunkun/LamRA-Rank-Qwen2.5VL-7b": Checkpoint("lamra-rank-qwen2.5-vl"),
        "Qwen/Qwen3-VL-Reranker-2B": Checkpoint("qwen3-vl-reranker", "apache-2.0"),
        "Qwen/Qwen3-VL-Reranker-8B": Checkpoint("qwen3-vl-reranker", "apache-2.0"),
        "jinaai/jina-reranker-m0": Checkpoint("jina-reranker-m0", "cc-by-nc-4.0"),
        "lightonai/MonoQwen2-VL-v0.1": Checkpoint("monoqwen2-vl", "apache-2.0", "Qwen/Qwen2-VL-2B-Instruct"),
        "lightonai/LightOn-rerank-LW-0.8B": Checkpoint("lighton-rerank-lw", "apache-2.0"),
        "lightonai/LightOn-rerank-LW-2B": Checkpoint("lighton-rerank-lw", "apache-2.0"),
        "lightonai/LightOn-rerank-LW-4B": Checkpoint("lighton-rerank-lw-4b", "apache-2.0"),
        "lightonai/LightOn-rerank-PW-0.8B": Checkpoint("lighton-rerank-pw", "apache-2.0"),
        "lightonai/LightOn-rerank-PW-2B": Checkpoint("lighton-rerank-pw", "apache-2.0"),
        "lightonai/LightOn-rerank-PW-4B": Checkpoint("lighton-rerank-pw", "apache-2.0"),
    },
)

__all__ = ["RERANKERS"]
