"""A message about a missing package names what pip finds: the package, as the extra asks for it."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError

import pytest
from helpers.house import ROOT, sources

from accel.cli import main
from accel.core import extras

OPTIONAL = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize(
    ("extra", "package"),
    [
        ("ui", "gradio"),
        ("video", "opencv-python-headless"),
        ("ray", "ray"),
        ("bench", "cache-dit"),
        ("lora", "peft"),
        ("torchao", "torchao"),
        ("bitsandbytes", "bitsandbytes"),
        ("gguf", "gguf"),
        ("jod", "cvvdp"),
    ],
)
def test_the_package_is_named_as_its_extra_has_it(extra, package):
    (wanted,) = OPTIONAL[extra]
    assert extras.how_to_install(package) == f"pip install '{wanted}'"


def test_a_bare_checkout_names_it_too(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", missing)
    assert extras.how_to_install("ray") == "pip install ray"


def test_every_message_names_a_package_of_an_extra():
    known = {re.split(r"[^\w.-]", text)[0] for texts in OPTIONAL.values() for text in texts}
    named = []
    for path in sources():
        text = path.read_text()
        assert "accel-diffusion[" not in text, path
        named += re.findall(r"""how_to_install\(["']([\w.-]+)["']\)""", text)
    assert set(named) <= known and {"gradio", "ray", "opencv-python-headless"} <= set(named)


def test_the_page_without_gradio(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in [name for name in sys.modules if name.startswith("accel.pipelines.ui")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["ui", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"accel: error: the page needs Gradio: pip install '{OPTIONAL['ui'][0]}'\n"
