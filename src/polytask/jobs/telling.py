"""What is there: methods, data sets, and the state of the installation."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import platform
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import polytask
from polytask.core.task import KINDS, Binary, Multiclass, Ordinal, Regression, Task
from polytask.jobs.comparing import NEEDS_TORCH, has_torch, processors
from polytask.registry import learner_class, learner_names

_EXAMPLES: dict[str, Task] = {
    "regression": Regression("number"),
    "binary": Binary("yes or no", classes=("no", "yes")),
    "multiclass": Multiclass("class", classes=("a", "b", "c")),
    "ordinal": Ordinal("level", classes=("low", "medium", "high")),
}
_ORDER = ("single", "pooled", "shared")
_REQUIRED = ("numpy", "scipy", "scikit-learn", "pandas", "numba", "pydantic", "typer", "rich", "plotly", "safetensors")
_EXTRAS = {"torch": ("torch",), "parquet": ("pyarrow",), "images": ("pillow",)}
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class MethodLine:
    """One method for people: its name, what it shares, one line, and the kinds it refuses."""

    name: str
    sharing: str
    summary: str
    refuses: tuple[str, ...]
    needs: str


def methods() -> list[MethodLine]:
    """Return every method, baselines first. Nothing heavy is imported: torch methods are read as text."""
    found = []
    for name, (module, class_name) in learner_names().items():
        needs = "torch" if module.startswith(NEEDS_TORCH) else ""
        if needs:
            facts = _facts(module, class_name)
            refuses: tuple[str, ...] = ()
        else:
            learner = learner_class(name)
            facts = {"sharing": learner.sharing, "summary": learner.summary}
            refuses = tuple(kind for kind in KINDS if learner().refuses(_EXAMPLES[kind]) is not None)
        found.append(MethodLine(name, facts["sharing"], facts["summary"], refuses, needs))
    return sorted(found, key=lambda line: (_ORDER.index(line.sharing), line.needs))


@cache
def _facts(module: str, class_name: str) -> dict[str, str]:
    """Read the class variables of a learner, ``sharing`` and ``summary`` among them, from its source and its bases'."""
    path = Path(polytask.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    home = {node.name: module for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("polytask."):
            home |= {alias.asname or alias.name: str(node.module) for alias in node.names}
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    facts: dict[str, str] = {}
    for base in reversed(found.bases):
        if isinstance(base, ast.Name) and base.id in home:
            facts |= _facts(home[base.id], base.id)
    return facts | {
        node.target.id: str(node.value.value)
        for node in found.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(node.value, ast.Constant)
    }


@dataclass(frozen=True)
class DatasetLine:
    """One data set for people."""

    name: str
    title: str
    rows: int
    tasks: int
    form: str
    licence: str
    where: str


def datasets() -> list[DatasetLine]:
    """Return every data set of the catalogue with where its files are: in the package, here, or absent."""
    from polytask.sources.catalog import DATASETS, ROOT_VARIABLE

    root = os.environ.get(ROOT_VARIABLE)
    found = []
    for info in DATASETS.values():
        here = root is not None and all((Path(root) / file).is_file() for file in info.files)
        where = "in the package" if info.embedded else "here" if here else "absent"
        found.append(DatasetLine(info.name, info.title, info.rows, info.tasks, info.form, info.licence, where))
    return found


def doctor() -> list[tuple[str, str, bool]]:
    """Return (what, finding, fine) for the installation and its surroundings."""
    found = [("polytask", polytask.__version__, True), ("python", platform.python_version(), True)]
    for name in _REQUIRED:
        version = _version(name)
        found.append((name, version or "not installed", version is not None))
    for extra, names in _EXTRAS.items():
        for name in names:
            version = _version(name)
            found.append((name, version or f'not installed (optional): pip install "polytask[{extra}]"', True))
    found.append(("processors", str(processors()), True))
    threads = [f"{name}={os.environ[name]}" for name in _THREADS if name in os.environ]
    found.append(("threads", ", ".join(threads) or "not limited here; comparisons use one per process", True))
    found.append(("device", _device(), True))
    for what, folder in (("current folder", Path.cwd()), ("temporary folder", Path(tempfile.gettempdir()))):
        writable = os.access(folder, os.W_OK)
        found.append((what, f"{folder} {'can be written' if writable else 'cannot be written'}", writable))
    root = os.environ.get("POLYTASK_DATA")
    fine = root is None or Path(root).is_dir()
    found.append(("POLYTASK_DATA", root or "not set (only data sets outside the package need it)", fine))
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device() -> str:
    if not has_torch() or find_spec("torch") is None:
        return "cpu (torch is not installed)"
    import torch

    if torch.cuda.is_available():
        return f"cuda ({torch.cuda.get_device_name(0)})"
    mps = getattr(torch.backends, "mps", None)
    return "mps" if mps is not None and mps.is_available() else "cpu"
