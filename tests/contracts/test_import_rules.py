"""Who may import whom (docs/design.md), read from the sources without running them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import polytask

ROOT = Path(polytask.__file__).parent
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"jobs"}  # jobs sits on top, with the command line

# room -> what of polytask it may import
ALLOWED = {
    "core": {"core"},
    "sources": {"sources", "core"},
    "linear": {"linear", "core"},
    "relations": {"relations", "core"},
    "report": {"report", "core"},
    "deep": {"deep", "core.task", "core.errors", "core.relation"},
    "balance": {"balance", "core.task", "core.errors"},
    "auxiliary": {"auxiliary", "core", "deep"},
    "train": {"train", "core", "deep", "balance", "auxiliary"},
    "compare": {"compare", "core", "registry", ""},  # "": the version
}
FORBIDDEN_LIBRARIES = {
    "core": {"torch", "pandas", "polars", "sklearn", "scipy", "numba"},
    "linear": {"torch", "lightning_fabric"},
    "deep": {"pandas", "polars", "sklearn", "lightning_fabric"},
    "balance": {"pandas", "polars", "sklearn", "lightning_fabric"},
    "auxiliary": {"pandas", "polars", "lightning_fabric"},
    "train": {"pandas", "polars"},
    "relations": {"torch", "pandas"},
    "report": {"torch", "pandas"},
    "compare": {"lightning_fabric"},
}
# libraries that a room imports inside functions only, so that importing it stays cheap
LAZY = {"compare": {"sklearn", "torch"}, "report": {"plotly", "jinja2"}, "train": {"lightning_fabric"}}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def test_every_room_of_the_design_exists_and_has_a_rule():
    assert set(ALLOWED) == ROOMS


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_the_rooms_it_may_know(room):
    for path in files(room):
        for module in imports(path):
            if module.split(".")[0] == "polytask":
                inside = module.removeprefix("polytask").lstrip(".")
                allowed = any(inside == name or (name and inside.startswith(name + ".")) for name in ALLOWED[room])
                assert allowed, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("room", sorted(FORBIDDEN_LIBRARIES))
def test_a_room_stays_clear_of_the_libraries_it_must_not_need(room):
    for path in files(room):
        used = {module.split(".")[0] for module in imports(path)}
        assert not used & FORBIDDEN_LIBRARIES[room], path.relative_to(ROOT)


@pytest.mark.parametrize("room", sorted(LAZY))
def test_heavy_libraries_are_imported_only_where_they_are_used(room):
    for path in files(room):
        used = {module.split(".")[0] for module in imports(path, top_level_only=True)}
        assert not used & LAZY[room], path.relative_to(ROOT)


def test_only_train_imports_fabric():
    for room in ROOMS - {"train"}:
        for path in files(room):
            assert not any(module.startswith("lightning") for module in imports(path)), path


@pytest.mark.parametrize("command", ["import polytask", "import polytask.cli"])
def test_importing_polytask_loads_nothing_heavy(command):
    heavy = [
        "torch",
        "sklearn",
        "scipy",
        "pandas",
        "polars",
        "numba",
        "plotly",
        "pydantic",
        "lightning_fabric",
        "pyarrow",
    ]
    code = f"import sys; {command}; print(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
