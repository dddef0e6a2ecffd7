"""Saved models with one file damaged, and what loading them gives.

A case is `{"base", "file", "damage", ...}` over one of four folders: a sharded embedder, a reranker, a stock VLM, and
an adapter. Loading it either raises an error that names what is broken, or the model computes what it computed before.
What only hashes can see, such as a flipped bit in a weight, is loaded with `verify=True`. A value in a small file may
be meant: without `verify` such a model may compute something else, but not fail at its first use.
"""

import json
import shutil
from functools import partial
from pathlib import Path

import torch
from conftest import picture, save_backbone
from hypothesis import strategies as st
from outcomes import Ground, Hole, Outcome, Wrong, observe
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unime import UniMEModel, UniMERerankerForCausalLM
from unime.checkpoints.opening import open_checkpoint

WHOLE_FILE = ("missing", "empty", "cut", "zeroed", "replaced", "folder")
TENSOR = ("renamed", "reshaped", "dropped", "int8", "int64", "bool")
VALUES = (None, "", "text", -1, 0, 10**9, 0.5, True, [], {}, [1, 2], {"a": 1})
SETTINGS = ("config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json")  # what a model reads
ITEMS = ["a red circle", "two blue stars left of a ring"]
CODE = "import pathlib\npathlib.Path({path!r}).touch()\n"  # what a foreign repository may bring


# cases
def cases(ground: Ground):
    return st.one_of(
        _whole_files(ground), _keys(ground), _keys(ground), _tensors(ground), _flips(ground), _shards(ground), _code()
    )


def _files(ground, base: str, *suffixes: str) -> list[str]:
    names = [path.name for path in ground.folders[base].iterdir() if path.suffix in suffixes]
    return sorted(names)


@st.composite
def _whole_files(draw, ground) -> dict:
    base = draw(st.sampled_from(sorted(ground.folders)))
    suffixes = [".json", ".safetensors"]
    if base != "backbone":
        suffixes.append(".jinja")  # that of a stock VLM may be any
    name = draw(st.sampled_from(_files(ground, base, *suffixes)))
    return {"base": base, "file": name, "damage": draw(st.sampled_from(WHOLE_FILE)), "verify": draw(st.booleans())}


@st.composite
def _keys(draw, ground) -> dict:
    """One key of a JSON file dropped, or with another value."""
    base = draw(st.sampled_from(["embedder", "reranker"]))
    name = draw(st.sampled_from(_files(ground, base, ".json")))
    paths = _paths_of_keys(json.loads((ground.folders[base] / name).read_text(encoding="utf-8")))
    path = draw(st.sampled_from(paths))
    case = {"base": base, "file": name, "damage": "key dropped", "key": path, "verify": draw(st.booleans())}
    if draw(st.booleans()):
        case |= {"damage": "key changed", "value": draw(st.sampled_from(VALUES))}
    return case


@st.composite
def _tensors(draw, ground) -> dict:
    base = draw(st.sampled_from(sorted(ground.folders)))
    name = draw(st.sampled_from(_files(ground, base, ".safetensors")))
    with safe_open(ground.folders[base] / name, "pt") as file:
        tensor = draw(st.sampled_from(sorted(file.keys())))
    return {"base": base, "file": name, "damage": draw(st.sampled_from(TENSOR)), "tensor": tensor, "verify": False}


@st.composite
def _flips(draw, ground) -> dict:
    """One byte of a file that has a hash."""
    base = draw(st.sampled_from(["embedder", "reranker"]))
    name = draw(st.sampled_from(_files(ground, base, ".safetensors")))
    place = draw(st.integers(0, (ground.folders[base] / name).stat().st_size - 1))
    return {"base": base, "file": name, "damage": "flipped", "place": place, "verify": True}


@st.composite
def _shards(draw, ground) -> dict:
    """A shard in the place of another, or an index that leads astray."""
    first, second = draw(st.permutations(_files(ground, "embedder", ".safetensors")))[:2]
    damage = draw(st.sampled_from(["swapped", "points elsewhere", "points nowhere", "points outside"]))
    return {"base": "embedder", "file": first, "damage": damage, "other": second, "verify": False}


def _code():
    """Code in the folder, which a file of the folder names."""
    named = st.sampled_from(
        [
            ["config.json", ["auto_map", "AutoModel"]],
            ["config.json", ["auto_map", "AutoConfig"]],
            ["config.json", ["vlm_config", "auto_map"]],
            ["tokenizer_config.json", ["auto_map", "AutoTokenizer"]],
            ["processor_config.json", ["auto_map", "AutoProcessor"]],
            ["processor_config.json", ["image_processor", "auto_map", "AutoImageProcessor"]],
        ]
    )
    base = st.sampled_from(["embedder", "reranker"])
    return st.builds(
        lambda base, named: {"base": base, "file": named[0], "damage": "code", "key": named[1], "verify": False},
        base,
        named,
    )


def _paths_of_keys(value, before=()) -> list[list]:
    """The paths of all keys of nested JSON objects, and of all places in lists."""
    entries = []
    if isinstance(value, dict):
        entries = value.items()
    elif isinstance(value, list):
        entries = enumerate(value)

    paths = []
    for key, inner in entries:
        paths.append([*before, key])
        paths += _paths_of_keys(inner, (*before, key))
    return paths


# doing the damage
def apply(case: dict, folder: Path):
    path = folder / case["file"]
    damage = case["damage"]
    if damage in WHOLE_FILE:
        _damage_file(path, damage)
    elif damage in TENSOR:
        _damage_tensor(path, damage, case["tensor"])
    elif damage in ("key dropped", "key changed"):
        content = json.loads(path.read_text(encoding="utf-8"))
        _set(content, case["key"], case.get("value"), drop=damage == "key dropped")
        path.write_text(json.dumps(content), encoding="utf-8")
    elif damage == "flipped":
        content = bytearray(path.read_bytes())
        content[case["place"]] ^= 0b100
        path.write_bytes(content)
    elif damage == "code":
        _add_code(path, case["key"])
    else:
        _damage_shards(path, damage, folder / case["other"])


def _damage_file(path: Path, damage: str):
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        half = len(content) // 2
        contents = {
            "empty": b"",
            "cut": content[:half],
            "zeroed": bytes(len(content)),
            "replaced": b"<html>404</html>",
        }
        path.write_bytes(contents[damage])


def _damage_tensor(path: Path, damage: str, name: str):
    tensors = load_file(path)
    tensor = tensors.pop(name)
    if damage == "renamed":
        tensors[f"{name}_"] = tensor
    elif damage == "reshaped":
        tensors[name] = tensor.flatten()[:-1].contiguous() if tensor.numel() > 1 else tensor[None]
    elif damage != "dropped":
        tensors[name] = tensor.to(getattr(torch, damage))
    save_file(tensors, path, metadata={"format": "pt"})


def _set(content: dict, key: list, value, drop: bool = False):
    """Sets or drops the key at the end of a path; objects on the way are made where there are none."""
    *before, last = key
    for name in before:
        content = content[name] if isinstance(content, list) else content.setdefault(name, {})
    if drop:
        content.pop(last)
    else:
        content[last] = value


def _add_code(path: Path, key: list):
    """Names a class of a new file of the folder, whose import leaves a mark."""
    code = CODE.format(path=str(path.parent / "ran"))
    (path.parent / "foreign.py").write_text(code + "class Foreign:\n    pass\n", encoding="utf-8")
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    value = {"AutoConfig": "foreign.Foreign"} if key[-1] == "auto_map" else "foreign.Foreign"
    _set(content, key, [value, value] if key[-1] == "AutoTokenizer" else value)
    if key[-1] == "AutoTokenizer":
        content["tokenizer_class"] = "Foreign"
    path.write_text(json.dumps(content), encoding="utf-8")


def _damage_shards(path: Path, damage: str, other: Path):
    if damage == "swapped":
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
        return

    index = path.parent / "model.safetensors.index.json"
    content = json.loads(index.read_text(encoding="utf-8"))
    targets = {
        "points elsewhere": other.name,
        "points nowhere": "gone.safetensors",
        "points outside": "../x.safetensors",
    }
    for name, shard in content["weight_map"].items():
        if shard == path.name:
            content["weight_map"][name] = targets[damage]
            break
    index.write_text(json.dumps(content), encoding="utf-8")


# trying a case
def prepare(folder: Path) -> Ground:
    """The sound folders, and what their models compute."""
    folder.mkdir(parents=True, exist_ok=True)
    folders = {name: folder / name for name in ("embedder", "reranker", "backbone", "adapter")}
    save_backbone(folders["backbone"])
    embedder = UniMEModel.from_backbone(folders["backbone"])
    embedder.save_pretrained(folders["embedder"], max_shard_size="400KB")
    UniMERerankerForCausalLM.from_backbone(folders["backbone"]).save_pretrained(folders["reranker"])

    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    adapter = get_peft_model(embedder, config)
    adapter.peft_config["default"].base_model_name_or_path = str(folders["embedder"])
    adapter.save_pretrained(folders["adapter"])

    ground = Ground(folder=folder, folders=folders, picture=picture(1), values={})
    for name, path in folders.items():
        ground.values[name] = _compute(_load(name, path, verify=False), ground)
    return ground


def _load(base: str, folder: Path, verify: bool):
    options = {"verify": True} if verify else {}
    if base == "adapter":
        return open_checkpoint(folder)
    if base == "backbone":
        return UniMEModel.from_backbone(folder)
    model_class = UniMEModel if base == "embedder" else UniMERerankerForCausalLM
    return model_class.from_pretrained(folder, **options)


def _compute(model, ground) -> torch.Tensor:
    items = [*ITEMS, ground.picture, {"text": ITEMS[0], "image": ground.picture}]
    if isinstance(model, UniMERerankerForCausalLM):
        return model.score(ITEMS[0], items)
    return model.encode(items)


def outcome_of(case: dict, ground: Ground) -> Outcome:
    """Loads a damaged copy, and compares what it computes."""
    folder = ground.folder / "damaged"
    shutil.copytree(ground.folders[case["base"]], folder)
    try:
        apply(case, folder)
        return observe(partial(_try, case, folder, ground), _names(case))
    finally:
        shutil.rmtree(folder)


def _names(case: dict) -> list[str]:
    """What a clear error may call the damage: the file, the key, the tensor, or what the file leads to."""
    file = case["file"]
    names = [file, file.removesuffix(".index.json"), *map(str, case.get("key", []))]
    names += [case[key] for key in ("tensor", "other") if key in case]
    if case["base"] == "adapter":
        names += ["the adapter", "adapter_config.json"]  # which has one file of weights
    if case["damage"] == "code":
        names.append("code")
    return [*names, "gone.safetensors", "x.safetensors"]


def _try(case: dict, folder: Path, ground: Ground):
    try:
        model = _load(case["base"], folder, case["verify"])
    finally:
        if (folder / "ran").exists():
            raise Hole(f"code of the folder ran, named in {case['file']}")

    try:
        values = _compute(model, ground)
    except Exception as error:
        raise Wrong(f"it loads, and fails at its first use: {type(error).__name__}: {error}") from error
    if (folder / "ran").exists():
        raise Hole(f"code of the folder ran at the first use, named in {case['file']}")
    is_edit = case["damage"] in ("key dropped", "key changed")
    if is_edit and case["verify"] and case["file"] in SETTINGS:
        raise Wrong("it loads with verify, although a file was edited")

    # an edit may be meant, where it makes sense
    if not is_edit and not torch.allclose(values, ground.values[case["base"]], atol=1e-6):
        raise Wrong("it loads, and computes something else")
