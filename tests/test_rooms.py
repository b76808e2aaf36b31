"""Imports between rooms go one way: a room imports the rooms that its line in ROOMS names, and no other."""

import ast
from collections import defaultdict
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Every room stands above all that it imports; CONTRIBUTING.md has the drawing.
ROOMS = {
    "solver": (),
    "solver.diffusion": ("solver",),
    "solver.training": ("solver", "solver.diffusion"),
    "solver.evaluation": ("solver", "solver.diffusion", "solver.training"),
    "checkpoints": ("solver",),
    "checkpoints.recipe": ("checkpoints", "solver", "solver.diffusion"),
    "app.disk": (),
    "app.jobs": ("solver",),
    "app.catalogue": ("solver", "solver.diffusion", "app.disk"),
    "app.models": ("solver", "solver.diffusion", "app.jobs", "app.catalogue"),
    "app.worker": ("solver", "solver.diffusion", "app.jobs", "app.models"),
    "app.backends": ("solver.diffusion", "app.jobs", "app.catalogue", "app.models", "app.worker"),
    "app.history": ("app.disk", "app.jobs"),
    "app.page": ("solver", "app.jobs", "app.catalogue", "app.models", "app.backends", "app.history"),
    "app.server": ("app.disk", "app.jobs", "app.models", "app.worker", "app.backends", "app.page"),
    "app.study": (
        "solver",
        "solver.evaluation",
        "checkpoints",
        "checkpoints.recipe",
        "app.jobs",
        "app.backends",
        "app.history",
        "app.page",
        "app.server",
    ),
    "app": ("app.catalogue", "app.models", "app.backends", "app.server", "app.study"),
    "integrations": ("solver",),
    "examples": ("solver", "solver.diffusion", "solver.training", "checkpoints"),
    "tools": (
        "solver",
        "solver.diffusion",
        "solver.evaluation",
        "checkpoints",
        "app.jobs",
        "app.catalogue",
        "app.models",
        "app.worker",
        "app.page",
    ),
}


def room_of(module: str) -> str | None:
    """Return the room in which a module lies, None for one from elsewhere."""
    parents = [module.rsplit(".", n)[0] for n in range(module.count(".") + 1)]
    return next((name for name in parents if name in ROOMS), None)


@cache
def arrows() -> dict[str, dict[str, set[str]]]:
    """Read the imports: room → imported room → the modules that import it."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    folders = ("app", "solver", "checkpoints", "integrations", "tools", "examples")
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        room = room_of(name)
        assert room, f"{name} lies in no room of ROOMS"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for imported in filter(None, map(room_of, names)):
                if imported != room:
                    found[room][imported].add(name)
    return found


def test_rooms_import_what_their_line_names_and_nothing_else() -> None:
    drawn = {(room, other) for room, others in ROOMS.items() for other in others}
    read = {(room, other) for room, others in arrows().items() for other in others}
    surplus = {f"{room} → {other}": sorted(arrows()[room][other]) for room, other in read - drawn}
    assert not surplus
    assert not drawn - read, "ROOMS names imports that are no longer there"


def test_no_room_imports_itself_through_others() -> None:
    TopologicalSorter(ROOMS).prepare()  # raises CycleError


def test_each_room_says_what_it_is_for() -> None:
    for room in ROOMS.keys() - {"app.disk"}:
        module = ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(module), f"{room}/__init__.py has no docstring"
