"""Where code lives: nfcore knows nothing of the companion and of tools, and no module imports in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT


PACKAGES = {"nfcore": ROOT / "nfcore", "nfbook": ROOT / "book" / "nfbook"}


def imported(source: Path) -> set[str]:
    """Modules ``package.name`` of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names} if node.module in PACKAGES else set()
            found |= below or {node.module}
    return {name for name in found if name.split(".")[0] in (*PACKAGES, "tools")}


def graph(package: str) -> dict[str, set[str]]:
    return {f"{package}.{p.stem}": imported(p) for p in PACKAGES[package].glob("*.py") if p.stem != "__init__"}


def test_nfcore_never_imports_the_companion() -> None:
    below = {name for names in graph("nfcore").values() for name in names}
    assert not [name for name in below if name.startswith(("nfbook", "tools"))]
    assert any(name.startswith("nfcore") for names in graph("nfbook").values() for name in names)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_in_a_circle(package: str) -> None:
    modules = graph(package)
    order = list(TopologicalSorter({name: names & modules.keys() for name, names in modules.items()}).static_order())
    assert sorted(order) == sorted(modules)
    assert len(order) > 5
