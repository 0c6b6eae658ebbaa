"""The command line as a whole: what every command shares."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import accel
from accel.cli import COMMANDS, main


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "accel", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version") == f"accel {accel.__version__}\n"


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from accel.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit:\n"
        "    print(sorted({'torch', 'numpy', 'diffusers', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert all(f"    {name}" in done.stdout for name in COMMANDS)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and COMMANDS[command][1:] in " ".join(out.split())


def test_env_prints_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["accel"] == accel.__version__
    assert {"python", "torch", "diffusers", "transformers"} <= set(found["versions"])
    assert {"system", "processor", "native library", "gpu"} <= set(found["machine"])
    assert found["kernels"]["attention reference"] == "runs here"
    assert main(["env"]) == 0
    assert f"accel                    {accel.__version__}" in capsys.readouterr().out


def test_an_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["rendr"])
    assert stop.value.code == 2 and "invalid choice: 'rendr'" in capsys.readouterr().err
