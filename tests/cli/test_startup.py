"""What is asked on the command line is understood before PyTorch is there: its import alone takes two seconds."""

import subprocess
import sys

import pytest
from running import ROOT

MODULES = ["chat", "check", "classify", "generate", "likelihood", "merge", "data.world"]
LOOK = """
import runpy, sys
sys.argv = [{name!r}, *{arguments!r}]
try:
    runpy.{run}
except SystemExit as stop:
    code = stop.code
print("ended with", code or 0, "and", [name for name in ("torch", "numpy", "sentencepiece") if name in sys.modules])
"""


def started(name: str, *arguments: str) -> tuple[str, str]:
    """What a process says that runs the script or module, and its last line: how it ended and what it had imported."""
    run = f"run_path({name!r}, run_name='__main__')" if name.endswith(".py") else f"run_module({f'minialpaca.{name}'!r}, run_name='__main__')"
    code = LOOK.format(name=name, arguments=arguments, run=run)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    said, _, end = done.stdout.rstrip().rpartition("\n")
    return said + done.stderr, end


@pytest.mark.parametrize("name", ["train.py", "finetune.py", *MODULES])
def test_help_loads_nothing_heavy(name):
    """The world's package shuffles with NumPy and is imported before its command: a tenth of a second."""
    said, end = started(name, "--help")
    assert "usage:" in said and end == f"ended with 0 and {['numpy'] if name == 'data.world' else []}"


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("train.py", ["modle.d_model=3"], "error: command line: unknown key modle.d_model"),
    ("finetune.py", ["configs/none.toml"], "error: configs/none.toml"),
    ("check", ["a.json", "b.json"], "give one config, data file or run folder"),
    ("generate", [], "the following arguments are required: run, text"),
    ("chat", ["runs/x", "--warmth", "3"], "unrecognized arguments: --warmth 3"),
])
def test_what_is_not_understood_is_refused_as_early(name, arguments, message):
    said, end = started(name, *arguments)
    assert message in said and end == "ended with 2 and []"


def test_the_package_itself_loads_nothing():
    code = "import sys, minialpaca, minialpaca.config; print([n for n in ('torch', 'numpy') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "[]\n"
