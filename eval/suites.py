"""The benchmarks of the papers as tables: their data sets, kinds, splits, and which means are published."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """A data set of MMEB.

    Args:
        name (`str`): as the tables of the papers and the folders of MMEB-eval have it.
        kind (`str`): `"Classification"`, `"VQA"`, `"Retrieval"` or `"Grounding"`.
        split (`str`): `"IND"` where the training set has it too, else `"OOD"`.
        candidates (`int`): distinct ones of each query, at most.
        instruction (`str`): what the text of every query says.
    """

    name: str
    kind: str
    split: str
    candidates: int
    instruction: str


_QUESTION = "Represent the given image with the following question:"
_CLASSIFY = "Represent the given image for classification"
_MMEB = {
    "Classification": (
        ("ImageNet-1K", "IND", 1000, _CLASSIFY),
        (
            "N24News",
            "IND",
            24,
            "Represent the given news image with the following caption for domain classification:",
        ),
        (
            "HatefulMemes",
            "IND",
            2,
            "Represent the given image for binary classification to determine whether it constitutes hateful speech "
            "or not",
        ),
        ("VOC2007", "IND", 20, "Identify the object shown in the image"),
        ("SUN397", "IND", 397, "Identify the scene shown in the image"),
        ("Place365", "OOD", 365, "Identify the scene shown in the image"),
        ("ImageNet-A", "OOD", 1000, _CLASSIFY),
        ("ImageNet-R", "OOD", 200, _CLASSIFY),
        ("ObjectNet", "OOD", 313, "Identify the object shown in the image"),
        ("Country211", "OOD", 211, "Identify the country depicted in the image"),
    ),
    "VQA": (
        ("OK-VQA", "IND", 1000, _QUESTION),
        ("A-OKVQA", "IND", 894, _QUESTION),
        ("DocVQA", "IND", 1000, _QUESTION),
        ("InfographicsVQA", "IND", 1000, _QUESTION),
        ("ChartQA", "IND", 1000, _QUESTION),
        ("Visual7W", "IND", 1000, _QUESTION),
        ("ScienceQA", "OOD", 736, _QUESTION),
        ("VizWiz", "OOD", 1000, _QUESTION),
        ("GQA", "OOD", 1000, _QUESTION),
        ("TextVQA", "OOD", 1000, _QUESTION),
    ),
    "Retrieval": (
        (
            "VisDial",
            "IND",
            1000,
            "Represent the given dialogue about an image, which is used for image retrieval:",
        ),
        ("CIRR", "IND", 1000, "Given an image, find a similar everyday image with the described changes:"),
        ("VisualNews_t2i", "IND", 1000, "Retrieve an image of this news caption."),
        ("VisualNews_i2t", "IND", 1000, "Find a caption for the news in the given photo."),
        ("MSCOCO_t2i", "IND", 1000, "Find me an everyday image that matches the given caption:"),
        ("MSCOCO_i2t", "IND", 1000, "Find an image caption describing the given everyday image."),
        ("NIGHTS", "IND", 1000, "Find a day-to-day image that looks similar to the provided image."),
        ("WebQA", "IND", 1000, "Find a Wikipedia image that answers this question:"),
        ("FashionIQ", "OOD", 1000, "Find an image to match the fashion image and style note:"),
        ("Wiki-SS-NQ", "OOD", 1000, "Find the document image that can answer the given query:"),
        (
            "OVEN",
            "OOD",
            1000,
            "Retrieve a Wikipedia image-description pair that provides evidence for the question of this image:",
        ),
        ("EDIS", "OOD", 1000, "Find a news image that matches the provided caption:"),
    ),
    "Grounding": (
        ("MSCOCO", "IND", 1000, "isolate the object labeled as"),  # "Crop the image to to ..."
        ("RefCOCO", "OOD", 1000, "Select the portion of the image that follows the language expressions"),
        ("RefCOCO-Matching", "OOD", 1000, "Select the portion of the image that follows the language expressions"),
        ("Visual7W-Pointing", "OOD", 1000, "Select the portion of the image that answers the question"),
    ),
}
MMEB = {name: DataSet(name, kind, *rest) for kind, own in _MMEB.items() for name, *rest in own}
SUGARCREPE = {  # subset: pairs
    "add_att": 692,
    "add_obj": 2062,
    "replace_att": 788,
    "replace_obj": 1652,
    "replace_rel": 1406,
    "swap_att": 666,
    "swap_obj": 245,
}
VISDOC = {  # MMEB-V2: task -> (group, folder of the data set, its split)
    **{
        f"ViDoRe_{name}": ("ViDoRe v1", f"{name}_test_subsampled_beir", "test")
        for name in ("arxivqa", "docvqa", "infovqa", "tabfquad")
    },
    **{f"ViDoRe_{name}": ("ViDoRe v1", f"{name}_test_beir", "test") for name in ("tatdqa", "shiftproject")},
    **{
        f"ViDoRe_syntheticDocQA_{name}": ("ViDoRe v1", f"syntheticDocQA_{name}_test_beir", "test")
        for name in ("artificial_intelligence", "energy", "government_reports", "healthcare_industry")
    },
    "ViDoRe_esg_reports_human_labeled_v2": ("ViDoRe v2", "esg_reports_human_labeled_v2", "test"),
    **{
        f"ViDoRe_{name}_v2_multilingual": ("ViDoRe v2", f"{name}_v2", "test")
        for name in ("biomedical_lectures", "economics_reports", "esg_reports")
    },
    **{
        f"VisRAG_{name}": ("VisRAG", f"VisRAG-Ret-Test-{name}", "train")
        for name in ("ArxivQA", "ChartQA", "MP-DocVQA", "SlideVQA", "InfoVQA", "PlotQA")
    },
    "ViDoSeek-page": ("OOD", "ViDoSeek-page-fixed", "test"),
    "ViDoSeek-doc": ("OOD", "ViDoSeek", "test"),
    "MMLongBench-page": ("OOD", "MMLongBench-page-fixed", "test"),
    "MMLongBench-doc": ("OOD", "MMLongBench-doc", "test"),
}
VIDEO = {
    "CLS": ("K700", "SmthSmthV2", "HMDB51", "UCF101", "Breakfast"),
    "QA": ("MVBench", "Video-MME", "NExTQA", "EgoSchema", "ActivityNetQA"),
    "RET": ("DiDeMo", "MSR-VTT", "MSVD", "VATEX", "YouCook2"),
    "MRET": ("QVHighlight", "Charades-STA", "MomentSeeker"),
}


def _with_all(groups: dict[str, list[str]]) -> dict[str, list[str]]:
    return {**groups, "overall": list(dict.fromkeys(name for own in groups.values() for name in own))}


GROUPS = {  # benchmark -> group -> tasks whose unweighted mean is published
    "mmeb": {
        group: [d.name for d in MMEB.values() if group in (d.kind, d.split, "overall")]
        for group in (*_MMEB, "IND", "OOD", "overall")
    },
    "visdoc": _with_all({g: [n for n, own in VISDOC.items() if own[0] == g] for g, *_ in VISDOC.values()}),
    "video": _with_all({group: list(names) for group, names in VIDEO.items()}),
    "retrieval": {
        "Short": ["flickr30k_t2i", "flickr30k_i2t", "coco_t2i", "coco_i2t"],
        "Long": ["sharegpt4v_t2i", "sharegpt4v_i2t", "urban1k_t2i", "urban1k_i2t"],
    },
    "sugarcrepe": {
        group.capitalize(): [name for name in SUGARCREPE if name.startswith(group)]
        for group in ("replace", "swap", "add")
    },
}
GROUPS["mmeb-v2-image"] = GROUPS["mmeb"]
KINDS = tuple(_MMEB)


def plain(name: str) -> str:
    """A data set's name without what its spellings differ in: ImageNet_1K, ImageNet-1K; Places365, Place365."""
    letters = "".join(letter for letter in name.lower() if letter.isalnum())
    return letters.replace("places", "place")


BY_PLAIN_NAME = {plain(name): own for name, own in MMEB.items()}
