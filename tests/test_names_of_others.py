"""Names of others have one place: model classes in families, private ones in the bridge."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import diffusers
import pytest
import transformers
from helpers.house import ROOT, nodes, sources


@cache
def model_classes() -> frozenset[str]:
    """Classes of diffusers' and transformers' models and pipelines."""
    found = set()
    for package, folders in ((diffusers, ("models", "pipelines")), (transformers, ("models",))):
        for folder in folders:
            for path in (Path(package.__file__).parent / folder).rglob("*.py"):
                found |= set(re.findall(r"^class\s+(\w+)", path.read_text(), re.MULTILINE))
    return frozenset(found)


def constants(path: Path) -> Iterator[str]:
    for node in nodes(path):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


BRIDGE = [
    ROOT / "accel" / "core" / f"diffusers_{name}.py" for name in ("backends", "bridge", "loading")
]


@pytest.mark.slow
def test_model_classes_are_named_in_families_only() -> None:
    assert "WanTransformer3DModel" in model_classes() and "T5EncoderModel" in model_classes()
    for path in sources():
        if path.parent.name != "families" and path not in BRIDGE:
            named = set(constants(path)) & model_classes()
            assert not named, f"{path} names {named}"


DEFINING = re.compile(r"(?:\b(?:def|class)\s+|\.\s*)(_\w+)")  # or reading one


def private_names(path: Path) -> set[str]:
    """Private attributes that are read of something else than ``self`` or ``cls``, private names
    imported from other packages, and private names in text that may be an attribute's.
    """
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {part for part in node.module.split(".") if part.startswith("_")}
            if not node.module.startswith("accel"):
                found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def of_others(names: set[str]) -> set[str]:
    """Those of ``names`` that diffusers or accelerate define or set. A file is parsed only if its
    text may define one that no file before it does.
    """
    import accelerate

    found: set[str] = set()
    for package in (diffusers, accelerate):
        for path in Path(package.__file__).parent.rglob("*.py"):
            text = path.read_text()
            if not (names - found).intersection(DEFINING.findall(text)):
                continue
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    found.add(node.attr)
                elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    found.add(node.name)
    return found & names


@pytest.mark.slow
def test_private_names_of_others_stand_in_the_bridge_only() -> None:
    ours = {name for path in sources() for node in nodes(path) for name in _defined(node)}
    torchs = {
        "_parameters", "_modules", "_forward_hooks", "_orig_mod", "_compiled_call_impl", "_schema",
    }  # fmt: skip
    known = {"_diffusers_hook", "_hf_hook", "_execution_device"}
    used = {path: private_names(path) - ours - torchs for path in sources() if path not in BRIDGE}
    theirs = of_others(known.union(*used.values()))
    assert known <= theirs
    for path, names in used.items():
        assert not names & theirs, f"{path} uses {names & theirs}"


def _defined(node: ast.AST) -> Iterator[str]:
    """Names that a node of our own code defines or sets on ``self``."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node.attr
    elif isinstance(node, (ast.Name, ast.arg)):
        yield node.id if isinstance(node, ast.Name) else node.arg
