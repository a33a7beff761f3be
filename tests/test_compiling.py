"""Compiled blocks compute what they compute uncompiled, are compiled once for all lengths, and change no name."""

import json
import subprocess
import sys

import pytest
import tiny
import torch
from ragged import CPU
from running import ROOT

from minialpaca import compiling
from minialpaca.compiling import choice, flops_of
from minialpaca.errors import UserError

needs_compiler = pytest.mark.skipif(compiling.lacks(CPU) is not None, reason="torch.compile needs a C++ compiler, and there is none")


@pytest.mark.parametrize(("asked", "device", "flops", "compiles", "reason"), [
    ("on", "cpu", 0, True, "as asked"), ("off", "cpu", 1e18, False, "as asked"), ("auto", "cpu", 1e14, True, "more than the 1e+14"),
    ("auto", "cpu", 0.99e14, False, "less than"), ("auto", "cuda", 5e16, True, "more than the 5e+16"), ("auto", "cuda", 4.9e16, False, "less than"), ("auto", "mps", 1e18, False, "not measured on this kind of device")])
def test_auto_compiles_what_is_long_enough_on_a_cpu(monkeypatch, asked, device, flops, compiles, reason):
    monkeypatch.setattr(compiling, "lacks", lambda device: None)
    found = choice(asked, torch.device(device), flops)
    assert found.compiles is compiles and reason in str(found)


@pytest.mark.parametrize(("asked", "device", "compiles"), [("auto", "cpu", False), ("on", "cpu", True), ("auto", "cuda", True)])
def test_in_fp32_a_cpu_is_not_compiled_for_unasked(monkeypatch, asked, device, compiles):
    monkeypatch.setattr(compiling, "lacks", lambda device: None)
    found = choice(asked, torch.device(device), 1e20, short=False)
    assert found.compiles is compiles and ("in fp32 it gains nothing on a CPU" in str(found)) is not compiles


def test_without_a_compiler_it_is_refused_where_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert str(choice("auto", CPU, 1e20)).startswith("not compiled (it would need a C++ compiler")
    with pytest.raises(UserError, match=r"train.compile = 'on': needs a C\+\+ compiler \(g\+\+ or clang\+\+, or the one that CXX names\); install it"):
        choice("on", CPU, 0)


def test_layers_that_gather_their_weights_are_not_compiled(monkeypatch):
    monkeypatch.setattr(compiling, "lacks", lambda device: None)
    assert str(choice("auto", CPU, 1e20, dealt=True)) == "not compiled (not with train.parallel = 'fsdp')"
    assert not choice("off", CPU, 1e20, dealt=True).compiles
    with pytest.raises(UserError, match="train.compile = 'on': not with train.parallel = 'fsdp'"):
        choice("on", CPU, 0, dealt=True)


def test_operations_are_six_for_each_weight_of_a_matrix_and_token():
    model = tiny.model(tie_embeddings=False)
    matrices = 2 * (2 * 60 * 60 + 2 * 30 * 60 + 3 * 37 * 60) + 53 * 60
    assert flops_of(model, 7) == 6 * 7 * matrices


@pytest.fixture(scope="module")
def beside():
    """In a process of its own: what this suite measures tensors by cannot be compiled."""
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "compiled_blocks.py")], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("name", "at_most", "bound"), [("by the compiler", 2, 5e-2), ("computed again", 2, 1e-6)])
def test_twenty_lengths_and_all_layers_are_compiled_once_and_say_the_same(beside, name, at_most, bound):
    """In bf16 and with units dropped. What is computed in another form, and what the C++ compiler joins, is rounded elsewhere: 3 % of the
    gradient. Where a cast is entered anew (by layers that are computed again, too) a block is compiled a second time.
    """
    found = beside[name]
    assert 1 <= found["compiled"] <= at_most and found["graph_breaks"] == 0
    assert found["loss"] < bound / 10 and found["gradient"] < bound
    assert found["evaluation"] == 0 and found["same_keys"]


@needs_compiler
@pytest.mark.slow
def test_a_compiled_run_logs_what_an_uncompiled_one_does_and_goes_on_to_the_bit(beside):
    found = beside["runs"]
    assert found["on"] == pytest.approx(found["off"], rel=1e-6) and len(found["on"]) == 6
    assert found["halted"] == found["on"]
