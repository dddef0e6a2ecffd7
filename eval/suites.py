"""The benchmarks of the papers as tables: their data sets, kinds, splits, and which means are published."""

from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("Classification", "VQA", "Retrieval", "Grounding")  # of MMEB's data sets
SPLITS = ("IND", "OOD")


# MMEB (2410.05160)
@dataclass(frozen=True)
class DataSet:
    """A data set of MMEB.

    Args:
        name (`str`): as the tables of the papers and the folders of MMEB-eval have it.
        kind (`str`): one of `KINDS`.
        split (`str`): `"IND"` (in distribution) where the training set has it too, else `"OOD"`.
        candidates (`int`): how many distinct ones a query has at most.
        instruction (`str`): what the text of every query contains.
    """

    name: str
    kind: str
    split: str
    candidates: int
    instruction: str


# instructions that are long, or that several data sets share
_CLASSIFY = "Represent the given image for classification"
_NEWS = "Represent the given news image with the following caption for domain classification:"
_HATEFUL = (
    "Represent the given image for binary classification to determine whether it constitutes hateful speech or not"
)
_OBJECT = "Identify the object shown in the image"
_SCENE = "Identify the scene shown in the image"
_QUESTION = "Represent the given image with the following question:"
_DIALOGUE = "Represent the given dialogue about an image, which is used for image retrieval:"
_EVIDENCE = "Retrieve a Wikipedia image-description pair that provides evidence for the question of this image:"
_REFERRED = "Select the portion of the image that follows the language expressions"

_DATA_SETS = (
    DataSet("ImageNet-1K", "Classification", "IND", 1000, _CLASSIFY),
    DataSet("N24News", "Classification", "IND", 24, _NEWS),
    DataSet("HatefulMemes", "Classification", "IND", 2, _HATEFUL),
    DataSet("VOC2007", "Classification", "IND", 20, _OBJECT),
    DataSet("SUN397", "Classification", "IND", 397, _SCENE),
    DataSet("Place365", "Classification", "OOD", 365, _SCENE),
    DataSet("ImageNet-A", "Classification", "OOD", 1000, _CLASSIFY),
    DataSet("ImageNet-R", "Classification", "OOD", 200, _CLASSIFY),
    DataSet("ObjectNet", "Classification", "OOD", 313, _OBJECT),
    DataSet("Country211", "Classification", "OOD", 211, "Identify the country depicted in the image"),
    DataSet("OK-VQA", "VQA", "IND", 1000, _QUESTION),
    DataSet("A-OKVQA", "VQA", "IND", 894, _QUESTION),
    DataSet("DocVQA", "VQA", "IND", 1000, _QUESTION),
    DataSet("InfographicsVQA", "VQA", "IND", 1000, _QUESTION),
    DataSet("ChartQA", "VQA", "IND", 1000, _QUESTION),
    DataSet("Visual7W", "VQA", "IND", 1000, _QUESTION),
    DataSet("ScienceQA", "VQA", "OOD", 736, _QUESTION),
    DataSet("VizWiz", "VQA", "OOD", 1000, _QUESTION),
    DataSet("GQA", "VQA", "OOD", 1000, _QUESTION),
    DataSet("TextVQA", "VQA", "OOD", 1000, _QUESTION),
    DataSet("VisDial", "Retrieval", "IND", 1000, _DIALOGUE),
    DataSet(
        "CIRR", "Retrieval", "IND", 1000, "Given an image, find a similar everyday image with the described changes:"
    ),
    DataSet("VisualNews_t2i", "Retrieval", "IND", 1000, "Retrieve an image of this news caption."),
    DataSet("VisualNews_i2t", "Retrieval", "IND", 1000, "Find a caption for the news in the given photo."),
    DataSet("MSCOCO_t2i", "Retrieval", "IND", 1000, "Find me an everyday image that matches the given caption:"),
    DataSet("MSCOCO_i2t", "Retrieval", "IND", 1000, "Find an image caption describing the given everyday image."),
    DataSet("NIGHTS", "Retrieval", "IND", 1000, "Find a day-to-day image that looks similar to the provided image."),
    DataSet("WebQA", "Retrieval", "IND", 1000, "Find a Wikipedia image that answers this question:"),
    DataSet("FashionIQ", "Retrieval", "OOD", 1000, "Find an image to match the fashion image and style note:"),
    DataSet("Wiki-SS-NQ", "Retrieval", "OOD", 1000, "Find the document image that can answer the given query:"),
    DataSet("OVEN", "Retrieval", "OOD", 1000, _EVIDENCE),
    DataSet("EDIS", "Retrieval", "OOD", 1000, "Find a news image that matches the provided caption:"),
    DataSet("MSCOCO", "Grounding", "IND", 1000, "isolate the object labeled as"),  # after "Crop the image to to"
    DataSet("RefCOCO", "Grounding", "OOD", 1000, _REFERRED),
    DataSet("RefCOCO-Matching", "Grounding", "OOD", 1000, _REFERRED),
    DataSet(
        "Visual7W-Pointing", "Grounding", "OOD", 1000, "Select the portion of the image that answers the question"
    ),
)

MMEB = {data_set.name: data_set for data_set in _DATA_SETS}


def plain(name: str) -> str:
    """A name without what its spellings differ in, so that `ImageNet_1K` and `Places365` are found, too.

    ```python
    plain("ImageNet_1K") == plain("ImageNet-1K")  # True
    ```
    """
    letters = "".join(filter(str.isalnum, name.lower()))
    return letters.replace("places", "place")


BY_PLAIN_NAME = {plain(name): data_set for name, data_set in MMEB.items()}


# SugarCrepe (2306.14610): how many pairs a subset has
SUGARCREPE = {
    "add_att": 692,
    "add_obj": 2062,
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}


# MMEB-V2 (2507.04590)
class DocumentSet(NamedTuple):
    """A visual-document task.

    Args:
        group (`str`): of the tasks whose mean is published.
        folder (`str`): of its data set, named as on the Hub.
        split (`str`): the split that is measured.
    """

    group: str
    folder: str
    split: str


VISDOC = {
    "ViDoRe_arxivqa": DocumentSet("ViDoRe v1", "arxivqa_test_subsampled_beir", "test"),
    "ViDoRe_docvqa": DocumentSet("ViDoRe v1", "docvqa_test_subsampled_beir", "test"),
    "ViDoRe_infovqa": DocumentSet("ViDoRe v1", "infovqa_test_subsampled_beir", "test"),
    "ViDoRe_tabfquad": DocumentSet("ViDoRe v1", "tabfquad_test_subsampled_beir", "test"),
    "ViDoRe_tatdqa": DocumentSet("ViDoRe v1", "tatdqa_test_beir", "test"),
    "ViDoRe_shiftproject": DocumentSet("ViDoRe v1", "shiftproject_test_beir", "test"),
    "ViDoRe_syntheticDocQA_artificial_intelligence": DocumentSet(
        "ViDoRe v1", "syntheticDocQA_artificial_intelligence_test_beir", "test"
    ),
    "ViDoRe_syntheticDocQA_energy": DocumentSet("ViDoRe v1", "syntheticDocQA_energy_test_beir", "test"),
    "ViDoRe_syntheticDocQA_government_reports": DocumentSet(
        "ViDoRe v1", "syntheticDocQA_government_reports_test_beir", "test"
    ),
    "ViDoRe_syntheticDocQA_healthcare_industry": DocumentSet(
        "ViDoRe v1", "syntheticDocQA_healthcare_industry_test_beir", "test"
    ),
    "ViDoRe_esg_reports_human_labeled_v2": DocumentSet("ViDoRe v2", "esg_reports_human_labeled_v2", "test"),
    "ViDoRe_biomedical_lectures_v2_multilingual": DocumentSet("ViDoRe v2", "biomedical_lectures_v2", "test"),
    "ViDoRe_economics_reports_v2_multilingual": DocumentSet("ViDoRe v2", "economics_reports_v2", "test"),
    "ViDoRe_esg_reports_v2_multilingual": DocumentSet("ViDoRe v2", "esg_reports_v2", "test"),
    "VisRAG_ArxivQA": DocumentSet("VisRAG", "VisRAG-Ret-Test-ArxivQA", "train"),
    "VisRAG_ChartQA": DocumentSet("VisRAG", "VisRAG-Ret-Test-ChartQA", "train"),
    "VisRAG_MP-DocVQA": DocumentSet("VisRAG", "VisRAG-Ret-Test-MP-DocVQA", "train"),
    "VisRAG_SlideVQA": DocumentSet("VisRAG", "VisRAG-Ret-Test-SlideVQA", "train"),
    "VisRAG_InfoVQA": DocumentSet("VisRAG", "VisRAG-Ret-Test-InfoVQA", "train"),
    "VisRAG_PlotQA": DocumentSet("VisRAG", "VisRAG-Ret-Test-PlotQA", "train"),
    "ViDoSeek-page": DocumentSet("OOD", "ViDoSeek-page-fixed", "test"),
    "ViDoSeek-doc": DocumentSet("OOD", "ViDoSeek", "test"),
    "MMLongBench-page": DocumentSet("OOD", "MMLongBench-page-fixed", "test"),
    "MMLongBench-doc": DocumentSet("OOD", "MMLongBench-doc", "test"),
}

VIDEO = {
    "CLS": ("K700", "SmthSmthV2", "HMDB51", "UCF101", "Breakfast"),
    "QA": ("MVBench", "Video-MME", "NExTQA", "EgoSchema", "ActivityNetQA"),
    "RET": ("DiDeMo", "MSR-VTT", "MSVD", "VATEX", "YouCook2"),
    "MRET": ("QVHighlight", "Charades-STA", "MomentSeeker"),
}


# groups of tasks whose unweighted mean is published
def _mmeb_groups() -> dict[str, list[str]]:
    """By kind, by split, and all."""
    groups: dict[str, list[str]] = {group: [] for group in (*KINDS, *SPLITS)}
    for data_set in _DATA_SETS:
        groups[data_set.kind].append(data_set.name)
        groups[data_set.split].append(data_set.name)
    groups["overall"] = list(MMEB)
    return groups


def _visdoc_groups() -> dict[str, list[str]]:
    """By the benchmark that a task comes from, and all."""
    groups: dict[str, list[str]] = {}
    for task, document_set in VISDOC.items():
        groups.setdefault(document_set.group, []).append(task)
    groups["overall"] = list(VISDOC)
    return groups


def _video_groups() -> dict[str, list[str]]:
    """By kind, and all."""
    groups = {}
    overall: list[str] = []
    for kind, tasks in VIDEO.items():
        groups[kind] = list(tasks)
        overall += tasks
    groups["overall"] = overall
    return groups


def _sugarcrepe_groups() -> dict[str, list[str]]:
    """By what is done to a caption, which begins the name of a subset."""
    groups: dict[str, list[str]] = {"Replace": [], "Swap": [], "Add": []}
    for subset in SUGARCREPE:
        change, _ = subset.split("_")
        groups[change.capitalize()].append(subset)
    return groups


GROUPS = {  # benchmark -> group -> its tasks
    "mmeb": _mmeb_groups(),
    "visdoc": _visdoc_groups(),
    "video": _video_groups(),
    "retrieval": {
        "Short": ["flickr30k_t2i", "flickr30k_i2t", "coco_t2i", "coco_i2t"],
        "Long": ["sharegpt4v_t2i", "sharegpt4v_i2t", "urban1k_t2i", "urban1k_i2t"],
    },
    "sugarcrepe": _sugarcrepe_groups(),
}
GROUPS["mmeb-v2-image"] = GROUPS["mmeb"]  # the same data sets, with other texts
