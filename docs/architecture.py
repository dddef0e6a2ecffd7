"""Draws the rooms of the project and the arrows of imports between them, from the imports themselves.

    python docs/architecture.py

writes `docs/architecture.svg`. A test draws it anew and compares, so that the picture cannot go stale.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "architecture.svg"
FACE = ("__init__.py", "cli.py", "setup.py")  # the files of the root that do not travel with a saved model

# room -> layer, column and what it is for; a room imports from lower layers only
ROOMS = {
    "face": (0, 0, "__init__.py, cli.py"),
    "examples": (0, 1, "what a user runs"),
    "commands": (1, 2, "what people type"),
    "reproduction": (2, 1.4, "the papers' claims"),
    "miniature": (3, 0.85, "the world without a GPU"),
    "trainers": (4, 0, "one file a stage"),
    "eval": (4, 1, "benchmarks, reports"),
    "mining": (4, 2, "hard negatives"),
    "jobs": (5, 1, "long runs in shards"),
    "serving": (5, 2, "answers over HTTP"),
    "checkpoints": (6, 0.5, "in and out of repositories"),
    "data": (6, 1.5, "rows"),
    "files": (7, 1, "written whole, told apart"),
    "root": (8, 1, "what travels with a saved model"),
}
BY_NAME = {"face": {"commands"}}  # cli.py imports a command when it is called

# of the picture, in pixels
BOX_WIDTH = 228
BOX_HEIGHT = 54
COLUMN_WIDTH = 262
LAYER_HEIGHT = 104
MARGIN = 24


def room_of(path: Path) -> str:
    """The room that a file of the package lies in."""
    folder = path.relative_to(ROOT).parts[0]
    if folder in FACE:
        return "face"
    return "root" if folder.endswith(".py") else folder


def files() -> Iterator[Path]:
    """The Python files of the package."""
    yield from sorted(ROOT.glob("*.py"))
    for room in ROOMS:
        yield from sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[Path]:
    """The files of the package that a file imports, also inside its functions."""
    package = path.parent
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue

        # `from ..data.schema import Item` has level 2; `from unime.data.schema import Item` starts at the root
        module = (node.module or "").split(".")
        if node.level:
            base = package.joinpath(*[".."] * (node.level - 1)).resolve()
        elif module[0] == "unime":
            base = ROOT
            module = module[1:]
        else:
            continue

        target = base.joinpath(*module)
        # a name may be that of a file, or one in a file
        for name in node.names:
            candidates = (target / f"{name.name}.py", target.with_suffix(".py"), target / "__init__.py")
            yield next(candidate for candidate in candidates if candidate.is_file())


def module_graph() -> dict[Path, set[Path]]:
    """Every file with the files that it imports."""
    return {path: set(imports(path)) for path in files()}


def room_graph() -> dict[str, set[str]]:
    """Every room with the rooms that it imports from."""
    graph = {room: set(BY_NAME.get(room, ())) for room in ROOMS}
    for path, targets in module_graph().items():
        graph[room_of(path)].update(map(room_of, targets))

    # imports within a room are no arrows
    return {room: targets - {room} for room, targets in graph.items()}


def reachable(graph: dict, start) -> set:
    """Everything that can be reached from a node in one step or more."""
    reached = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting.extend(graph[node])
    return reached


def drawn_arrows(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows without those that follow from others: what a room reaches through a room that it imports from."""
    arrows = []
    for room, targets in graph.items():
        indirect = set()
        for target in targets:
            indirect |= reachable(graph, target)

        arrows.extend((room, target) for target in sorted(targets - indirect))
    return arrows


def draw() -> str:
    """The picture as SVG."""
    width = 2 * MARGIN + 2 * COLUMN_WIDTH + BOX_WIDTH
    height = 2 * MARGIN + 7 * LAYER_HEIGHT + BOX_HEIGHT
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#5b6b7b"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]

    # boxes come last, over the ends of the arrows
    lines += [_arrow(source, target) for source, target in drawn_arrows(room_graph())]
    lines += [_box(room) for room in ROOMS]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _corner(room: str) -> tuple[float, float]:
    """The upper left corner of a room's box."""
    layer, column, _ = ROOMS[room]
    return MARGIN + column * COLUMN_WIDTH, MARGIN + layer * LAYER_HEIGHT


def _arrow(source: str, target: str) -> str:
    source_x, source_y = _corner(source)
    target_x, target_y = _corner(target)

    # an arrow to the side leaves and arrives off the middle, so that those from both sides stay apart
    shift = 60 * ((target_x > source_x) - (target_x < source_x))
    start_x = source_x + BOX_WIDTH / 2 + shift
    end_x = target_x + BOX_WIDTH / 2 - shift
    start_y = source_y + BOX_HEIGHT
    end_y = target_y - 2

    # it leaves and arrives upright
    bend = (end_y - start_y) / 2
    curve = f"M{start_x:g} {start_y:g} C{start_x:g} {start_y + bend:g} {end_x:g} {end_y - bend:g} {end_x:g} {end_y:g}"
    return f'<path d="{curve}" fill="none" stroke="#5b6b7b" stroke-width="1.6" marker-end="url(#tip)"/>'


def _box(room: str) -> str:
    x, y = _corner(room)
    middle = x + BOX_WIDTH / 2
    title = {"root": "the root", "face": "the face"}.get(room, f"{room}/")
    _, _, text = ROOMS[room]
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="#eef3f8" stroke="#33516f"/>'
        f'<text x="{middle:g}" y="{y + 23:g}" text-anchor="middle" font-size="16" font-weight="bold" fill="#1d3347">'
        f'{title}</text><text x="{middle:g}" y="{y + 42:g}" text-anchor="middle" font-size="13" fill="#41566b">'
        f"{text}</text>"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(f"written to {PICTURE}")
