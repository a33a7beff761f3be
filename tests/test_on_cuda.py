"""What only a GPU can show: one look at it a step, the losses of a CPU, and texts from a recorded step."""

import dataclasses
import itertools
import json
import subprocess
import sys
import warnings

import pytest
import tiny
import torch
from ragged import CPU, PLAIN, Opinionated, Ragged, ragged
from running import ROOT

from minialpaca.adversarial import attack_on
from minialpaca.config import AdapterConfig, AdversarialConfig, ModelConfig, TrainConfig
from minialpaca.generate import generate
from minialpaca.model import Transformer
from minialpaca.peft import apply, use
from minialpaca.trainer import Trainer

CUDA = torch.device("cuda")
SHAPE = ModelConfig(vocab_size=11, d_model=32, n_layers=2, n_heads=4, d_ff=64, max_seq_len=16, init_std=0.3)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none")


def trainer(folder, device, method="none", attack="none", **train) -> Trainer:
    """In fp32 unless asked otherwise."""
    model = Transformer(SHAPE).to(device)
    low_rank = {"targets": ("q_proj", "down_proj"), "rank": 3, **({"target_rank": 2, "interval": 5} if method == "adalora" else {})}
    adapter = apply(model, AdapterConfig(method, **(low_rank if method in ("lora", "dora", "adalora") else {})))
    attacked = attack_on(model.embed, AdversarialConfig(attack, **({} if attack == "none" else {"epsilon": 0.1})), False)
    folder.mkdir(exist_ok=True)
    task = Opinionated(ragged(24), 4) if attack == "vat" else Ragged(ragged(24), 4)
    return Trainer(model, task, dataclasses.replace(PLAIN, clip_norm=1.0), TrainConfig(**{"steps": 16, "precision": "fp32", **train}), 0, folder,
                   adapter=adapter, attack=attacked)


def waits(work) -> int:
    """How often the host waited for the device, as PyTorch counts it."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in heard)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method, attack", [("none", "matrix"), *itertools.product(  # beside an adapter the matrix is frozen
    ("none", "lora", "dora", "houlsby", "adalora"), ("none", "fgm", "fgsm", "pgd", "freelb", "vat"))])
def test_the_host_looks_at_the_device_once_a_step(tmp_path, method, attack, precision):
    made = trainer(tmp_path, CUDA, method, attack, precision=precision, accumulation=2)
    for _ in range(2):
        made.take_step()
    skipped = made.scaler.skipped if made.scaler else 0
    found = waits(made.take_step)
    assert found == 1 + (made.scaler.skipped - skipped if made.scaler else 0)  # a step that is taken again is another one


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-5), ("bf16", 0.02), ("fp16", 0.02)])
@pytest.mark.parametrize("attack", ["none", "fgm"])
@pytest.mark.parametrize("method", ["none", "lora", "adalora"])
def test_a_gpu_finds_the_losses_of_a_cpu(tmp_path, method, attack, precision, tolerance):
    here = trainer(tmp_path / "cpu", CPU, method, attack)
    there = trainer(tmp_path / "cuda", CUDA, method, attack, precision=precision)
    for _ in range(6):
        assert there.take_step()["loss"] == pytest.approx(here.take_step()["loss"], rel=tolerance)


def test_answers_are_a_cpus_and_a_text_is_asked_for_ahead():
    model = tiny.model(max_seq_len=80)
    prompts = [tiny.tokens(n, seed=n).tolist() for n in (13, 1, 5)]
    assert generate(tiny.model(max_seq_len=80).to(CUDA), prompts, -1, 60) == generate(model, prompts, -1, 60)
    ended = generate(model, prompts[:1], -1, 20)[0][10]
    assert generate(tiny.model(max_seq_len=80).to(CUDA), prompts, ended, 60) == generate(model, prompts, ended, 60)


@pytest.mark.slow
def test_a_recorded_step_says_what_the_model_says_and_is_recorded_once():
    """In a process of its own: what this suite measures tensors by cannot be compiled."""
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "recorded_steps.py")], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"one row": True, "three rows": True, "three at once": True, "recorded": 4}


@pytest.mark.parametrize("method", ["freeze", "lora", "houlsby", "prefix"])
def test_an_adapter_goes_where_its_model_has_gone_meanwhile(method):
    model, tokens_BT = tiny.model(), tiny.tokens(2, 7)
    bare = model(tokens_BT)
    adapter = apply(model, AdapterConfig(method, rank=2) if method == "lora" else AdapterConfig(method))
    own = model(tokens_BT)
    adapter.remove()
    model.to(CUDA)
    use(model, adapter)
    torch.testing.assert_close(model(tokens_BT.to(CUDA)).cpu(), own)
    model.cpu()
    adapter.remove()
    assert torch.equal(model(tokens_BT), bare)
