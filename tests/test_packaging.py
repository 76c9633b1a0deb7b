"""The wheel in an empty environment that holds the dependencies of the core and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = ("torch", "pyarrow", "polars", "pytest", "cvxpy", "torchjd", "hypothesis", "playwright")
NEED_TORCH = ("auxiliary", "balance", "deep", "train")

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import polytask

missing = {}
for module in pkgutil.walk_packages(polytask.__path__, "polytask."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        missing[module.name] = error.name
for name, of in missing.items():
    print(name, of)
"""


def core_distributions() -> set[str]:
    """Return the names of what polytask needs without extras, and what that needs in turn."""
    found: set[str] = set()
    waiting = ["polytask"]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for text in distribution(name).requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found - {"polytask"}


@pytest.fixture(scope="module")
def core_only(tmp_path_factory):
    """An environment made for this: links to the core's dependencies, and polytask from its wheel."""
    folder = tmp_path_factory.mktemp("core")
    source, wheels = folder / "source", folder / "wheels"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):  # building leaves files beside the sources
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(wheels), str(source)],
        check=True,
        capture_output=True,
    )
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    site = Path(place.stdout.strip())
    for name in core_distributions():
        one = distribution(name)
        for top in {Path(str(file)).parts[0] for file in one.files or []} - {"..", "__pycache__"}:
            target = Path(str(one.locate_file(top)))
            if target.exists() and not (site / top).exists():
                (site / top).symlink_to(target)
    subprocess.run(
        [*pip, "--python", str(python), "install", "-q", "--no-deps", "--no-index", *map(str, wheels.glob("*.whl"))],
        check=True,
        capture_output=True,
    )
    return folder / "env" / "bin"


def call(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "POLYTASK", "COV"))}
    return subprocess.run(
        [str(argument) for argument in arguments],
        cwd=folder,
        env={**clean, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_core_needs_none_of_the_extras():
    assert not core_distributions() & {canonicalize_name(name) for name in EXTRAS}


def test_every_module_of_the_wheel_imports_or_misses_torch_only(core_only, tmp_path):
    done = call(core_only / "python", "-c", IMPORT_EVERYTHING, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    missing = dict(line.split() for line in done.stdout.splitlines())
    assert set(missing.values()) <= {"torch"}
    assert missing  # the environment has no torch, so this test sees what it is for
    assert {name.split(".")[1] for name in missing} <= set(NEED_TORCH)


def test_linear_methods_compare_a_table_without_any_extra(core_only, tmp_path):
    rows = [f"{a},{a % 7},{3 * a + a % 5},{a % 7 - a}" for a in range(60)]
    (tmp_path / "small.csv").write_text("\n".join(["a,b,first,second", *rows]) + "\n")
    arguments = ("small.csv", "--targets", "first,second", "--splits", "2", "--trials", "1", "--jobs", "1")
    done = call(core_only / "polytask", "compare", *arguments, "--methods", "ridge,block-sparse", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "small" / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("compare", "small.csv", "--targets", "first", "--methods", "ridge,hard-sharing"), "polytask[torch]"),
        (("check", "small.parquet", "--targets", "first"), "polytask[parquet]"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(core_only, tmp_path, arguments, hint):
    (tmp_path / "small.csv").write_text("a,first\n" + "\n".join(f"{a % 7},{a}" for a in range(60)) + "\n")
    (tmp_path / "small.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    done = call(core_only / "polytask", *arguments, folder=tmp_path)
    assert done.returncode != 0
    assert f'pip install "{hint}"' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
