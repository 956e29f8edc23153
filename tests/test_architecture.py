"""Imports run one way: who may import whom, no circles, and a public face for every package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ttt_moshi"
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
# Small modules that every package may import.
BASE = {"__init__", "errors", "extras", "files", "frames", "signals", "tensor_groups"}
# Package -> the others that it may import (docs/architecture.md). `cli` may import everything.
MAY_IMPORT = {
    "ttt": set[str](),
    "checkpoint": set(),
    "config": set(),
    "config_io": {"config"},
    "config_idle": {"config"},
    "schedule": {"config"},
    "moshi": {"ttt", "config"},
    "data": {"moshi"},
    "synthetic": {"data", "moshi"},
    "inference": {"moshi", "ttt", "checkpoint", "data", "config"},
    "evaluation": {"ttt", "moshi", "data", "checkpoint", "inference", "config", "config_io"},
    "training": {
        "schedule",
        "ttt",
        "moshi",
        "data",
        "checkpoint",
        "evaluation",
        "inference",
        "config",
        "config_io",
        "config_idle",
    },
    "verification": {"training", "checkpoint", "moshi", "data", "synthetic", "config", "config_io"},
}
# What a package may use of others than our own; where nothing is said, anything that is installed.
LIBRARIES = {
    "ttt": {"torch", "triton"},
    "checkpoint": {"torch", "safetensors", "blake3", "fsspec", "numpy"},
    "config": set[str](),
    **{module: set[str]() for module in BASE},
}


def imports(path: Path) -> list[str]:
    """Every module that a file imports, wherever in it, as dotted names; names taken from packages included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports whole"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def module_of(name: str) -> str | None:
    """The module of ours that an imported name leads to; a package where the name is of its public face."""
    while name.startswith("ttt_moshi"):
        if name in MODULES or f"{name}.__init__" in MODULES:
            return name if name in MODULES else f"{name}.__init__"
        name = name.rpartition(".")[0]
    return None


def package_of(module: str) -> str:
    """`checkpoint` of `ttt_moshi.checkpoint.store`."""
    return module.split(".")[1]


def test_packages_import_one_way() -> None:
    wrong = []
    for module, path in MODULES.items():
        package = package_of(module)
        if package in ("cli", "__main__"):
            continue
        allowed = BASE | {package} | MAY_IMPORT.get(package, set())
        for name in imports(path):
            target = module_of(name)
            if target is not None and package_of(target) not in allowed:
                wrong.append(f"{module} imports {target}")
    assert wrong == []
    assert {package_of(module) for module in MODULES} <= BASE | MAY_IMPORT.keys() | {"cli", "__main__"}


def test_made_up_speech_is_not_part_of_the_product() -> None:
    for package in ("data", "training", "evaluation", "inference", "moshi", "checkpoint", "ttt"):
        assert "synthetic" not in MAY_IMPORT[package]


def test_no_circles() -> None:
    edges = {
        module: sorted({target for name in imports(path) if (target := module_of(name)) and target != module})
        for module, path in MODULES.items()
        if not module.endswith("__init__")
    }
    # What a package's face gathers is what its modules are; a module that takes a name from its own package's face is
    # found here too, because the face leads on to where the name is from.
    edges |= {
        module: sorted({target for name in imports(path) if (target := module_of(name))})
        for module, path in MODULES.items()
        if module.endswith("__init__")
    }
    circles: list[str] = []
    state: dict[str, str] = {}

    def visit(module: str, way: list[str]) -> None:
        state[module] = "open"
        for target in edges.get(module, []):
            if state.get(target) == "open":
                circles.append(" > ".join([*way[way.index(target) :], target] if target in way else [module, target]))
            elif target not in state:
                visit(target, [*way, target])
        state[module] = "done"

    for module in edges:
        if module not in state:
            visit(module, [module])
    assert not circles, "\n".join(circles)


@pytest.mark.parametrize("package", sorted(LIBRARIES))
def test_what_a_package_stands_on(package: str) -> None:
    import sys

    used = {
        name.split(".")[0]
        for module, path in MODULES.items()
        if package_of(module) == package
        for name in imports(path)
    }
    assert used - sys.stdlib_module_names - {"ttt_moshi"} <= LIBRARIES[package]


@pytest.mark.parametrize("face", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_every_package_lists_its_public_names(face: Path) -> None:
    tree = ast.parse(face.read_text())
    assert ast.get_docstring(tree), f"{face} does not say what the package is"
    offered = [name.rpartition(".")[2] for name in imports(face) if name.startswith("ttt_moshi.")]
    listed = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    assert sorted(set(offered)) == sorted(set(listed[0] if listed else []))
