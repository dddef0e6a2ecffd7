"""The plan of the house: arrows run one way, no module is in a circle, and the picture of it is the present one."""

import ast
import pkgutil
import re
import runpy

from conftest import ROOT

HOUSE = runpy.run_path(str(ROOT / "docs" / "architecture.py"))
LAYERS = {room: layer for room, (layer, _, _) in HOUSE["ROOMS"].items()}


def code_lines(path) -> int:
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())


def test_every_room_is_in_the_plan():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders | {"root", "face"} == set(LAYERS)


def test_arrows_run_downwards_only():
    graph = HOUSE["room_graph"]()
    assert graph["jobs"] and graph["commands"], "the imports were not found"
    for room, targets in graph.items():
        for target in targets:
            assert LAYERS[target] > LAYERS[room], f"{room} imports from {target}"


def test_no_module_is_in_a_circle():
    graph = HOUSE["module_graph"]()
    assert len(graph) > 80
    for module in graph:
        assert module not in HOUSE["reachable"](graph, module), f"{module} imports itself through others"


def test_no_room_below_the_root_holds_a_fifth_of_the_code():
    sizes = {}
    for path in HOUSE["files"]():
        room = HOUSE["room_of"](path)
        sizes[room] = sizes.get(room, 0) + code_lines(path)
    total = sum(sizes.values())
    large = {room: size / total for room, size in sizes.items() if room != "root" and size > 0.2 * total}
    assert not large


def test_the_picture_is_the_present_one():
    picture = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert picture == HOUSE["draw"](), "run `python docs/architecture.py`"


def test_editors_see_the_names_that_the_package_resolves():
    import unime

    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == unime._MODULE_OF
    for name in unime.__all__:
        assert getattr(unime, name).__name__ == name
    assert set(unime.__all__) <= set(dir(unime))


def test_private_names_of_other_libraries_are_where_the_page_says():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+(?:\.\w+)+)`.*\| `(\S+\.py)` \|$", page, re.MULTILINE)
    assert len(rows) > 20
    for name, file in rows:
        pkgutil.resolve_name(name)  # raises where there is no such name
        assert name.rpartition(".")[2] in (ROOT / file).read_text(encoding="utf-8"), f"{file} does not use {name}"


def test_every_notion_of_sameness_exists():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("## When are two things the same?")[1].split("\n## ")[0]
    names = re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)
    assert len(names) == 12
    for name in names:
        assert callable(pkgutil.resolve_name(f"unime.{name}")) or name.endswith(("content_hash", "identity"))
