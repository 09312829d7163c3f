"""The house rules that a machine can check."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("circuits", "interventions", "tasks")
ALLOWED = {
    "circuits": {"circuits", "interventions", "tasks"},
    "interventions": {"interventions"},
    "tasks": {"tasks"},
}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Absolute names of the modules that a file imports, anywhere in it."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            found.add(".".join([*base, *([node.module] if node.module else [])]))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imported(path)} & set(PACKAGES)
    assert ours <= ALLOWED[package]


def test_nnsight_is_imported_in_one_file():
    users = [path.name for path in FILES if any(name.split(".")[0] == "nnsight" for name in imported(path))]
    assert len(users) <= 1


@pytest.mark.parametrize("name", ["utils", "common", "helpers", "core", "types", "misc"])
def test_no_file_is_a_bag(name):
    assert not [path for path in FILES if path.stem == name]


def test_every_package_is_in_the_distribution():
    text = (ROOT / "pyproject.toml").read_text()
    found = {package for package in PACKAGES}
    for package in PACKAGES:
        module = importlib.import_module(package)
        found |= {m.name for m in pkgutil.walk_packages(module.__path__, f"{package}.") if m.ispkg}
    assert all(f'"{package}"' in text for package in found)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(package):
    assert (ROOT / package / "py.typed").exists()


def test_importing_is_quick_and_leaves_drawing_and_tracing_for_later():
    script = """
import time, torch, transformers, sys
start = time.process_time()
import circuits, interventions, tasks
print(time.process_time() - start)
print([name for name in ("matplotlib", "graphviz", "nnsight", "networkx") if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, late = out.stdout.strip().splitlines()
    assert late == "[]"
    assert float(seconds) < 1.5


def test_every_name_of_circuits_is_where_it_is_looked_up():
    import circuits

    assert sorted(circuits.__all__) == sorted(circuits._HOME)
    assert all(getattr(circuits, name) is not None for name in circuits.__all__)
