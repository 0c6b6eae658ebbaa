"""Names of others have one place: model classes in families, private ones in the bridge."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import diffusers
import pytest
import transformers
from helpers.house import ROOT, sources


@cache
def model_classes() -> frozenset[str]:
    """Classes of diffusers' and transformers' models and pipelines."""
    found = set()
    for package, folders in ((diffusers, ("models", "pipelines")), (transformers, ("models",))):
        for folder in folders:
            for path in (Path(package.__file__).parent / folder).rglob("*.py"):
                lines = path.read_text().splitlines()
                found |= {
                    line[6:].split("(")[0].split(":")[0].strip()
                    for line in lines
                    if line.startswith("class ")
                }
    return frozenset(found)


def constants(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


BRIDGE = [ROOT / "accel" / "core" / f"diffusers_{name}.py" for name in ("bridge", "loading")]


@pytest.mark.slow
def test_model_classes_are_named_in_families_only() -> None:
    assert "WanTransformer3DModel" in model_classes() and "T5EncoderModel" in model_classes()
    for path in sources():
        if path.parent.name != "families" and path not in BRIDGE:
            named = set(constants(path)) & model_classes()
            assert not named, f"{path} names {named}"


def private_names(path: Path) -> set[str]:
    """Private attributes that are read of something else than ``self`` or ``cls``, private names
    imported from other packages, and private names in text that may be an attribute's.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {part for part in node.module.split(".") if part.startswith("_")}
            if not node.module.startswith("accel"):
                found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


@cache
def names_of_others() -> frozenset[str]:
    """Private names that diffusers and accelerate define or set."""
    import accelerate

    found = set()
    for package in (diffusers, accelerate):
        for path in Path(package.__file__).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    found.add(node.attr)
                elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    found.add(node.name)
    return frozenset(n for n in found if n.startswith("_") and not n.startswith("__"))


@pytest.mark.slow
def test_private_names_of_others_stand_in_the_bridge_only() -> None:
    assert {"_diffusers_hook", "_hf_hook", "_execution_device"} <= names_of_others()
    ours = {
        name
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _defined(node)
    }
    torchs = {
        "_parameters", "_modules", "_forward_hooks", "_orig_mod", "_compiled_call_impl", "_schema",
    }  # fmt: skip
    for path in sources():
        if path not in BRIDGE:
            theirs = (private_names(path) & names_of_others()) - ours - torchs
            assert not theirs, f"{path} uses {theirs}"


def _defined(node: ast.AST) -> Iterator[str]:
    """Names that a node of our own code defines or sets on ``self``."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node.attr
    elif isinstance(node, (ast.Name, ast.arg)):
        yield node.id if isinstance(node, ast.Name) else node.arg
