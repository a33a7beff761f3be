"""The memory estimate against what autograd keeps, and against a measured peak; memory that runs out is one line."""

import dataclasses

import pytest
import tiny
import torch
from commands import pretrain
from ragged import PLAIN, Ragged, make, ragged
from running import module, refused

from benchmarks.runs import alone
from minialpaca import check, memory, precision
from minialpaca.config import AdapterConfig, ModelConfig
from minialpaca.errors import UserError
from minialpaca.model import Transformer
from minialpaca.peft import apply
from minialpaca.storage import checkpoint
from minialpaca.tasks.pretrain import CausalLM

CFG = ModelConfig(vocab_size=211, d_model=96, n_layers=4, n_heads=6, d_ff=160, max_seq_len=64)
B, T = 4, 48


def kept_by_autograd(model, call, dtype):
    """Bytes of the distinct tensors, parameters apart, that the way back holds."""
    own, found, held = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}, []

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            held.append(storage)  # or another may take its place, and its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), precision.casting(dtype):
        call()
    return sum(found.values())


def test_of_a_model_in_parts_each_process_holds_its_part_and_what_is_gathered():
    model = Transformer(CFG)
    layer = sum(p.numel() for p in model.layers[0].parameters())
    total = sum(p.numel() for p in model.parameters())
    gathered = total - 4 * layer + 2 * layer
    for accumulated, gradients in ((False, total // 4 + gathered), (True, total // 4 + total)):
        found = memory.estimate(model, memory.Load(B, T, parts=4, accumulated=accumulated))
        assert (found.weights, found.gradients, found.moments) == (4 * (total // 4 + gathered), 4 * gradients, 2 * total)
    assert memory.estimate(model, memory.Load(B, T)).weights == 4 * total


METHODS = ["lora", "dora", "houlsby", "adalora", "ia3", "prefix", "prompt", "bitfit"]
SHORT = {"short": torch.bfloat16}
CASES = {
    "full": {}, "full, short": SHORT, "recompute": {"recompute": True},
    "shared keys": {"changes": {"n_kv_heads": 2}}, "spelled": {"changes": {"attention": "spelled"}},
    "dropout": {"changes": {"dropout": 0.1}}, "padded": {"padded": True},
    "encoder": {"changes": {"architecture": "encoder"}, "padded": True},
    "two stacks": {"changes": {"architecture": "encoder_decoder"}},
    "two stacks, recompute": {"changes": {"architecture": "encoder_decoder"}, "recompute": True},
    "two stacks, recompute, short": {"changes": {"architecture": "encoder_decoder"}, "recompute": True, **SHORT},
    "two stacks, short": {"changes": {"architecture": "encoder_decoder"}, **SHORT},
    "last two layers": {"adapter": {"method": "freeze", "layers": "-2:"}},
    "lora, dropout": {"adapter": {"method": "lora", "dropout": 0.1}},
    **{method: {"adapter": {"method": method}} for method in METHODS},
    **{f"{method}, short": {"adapter": {"method": method}, **SHORT} for method in METHODS},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_activations_are_what_autograd_keeps(case):
    cfg = dataclasses.replace(CFG, **case.get("changes", {}))
    model, dtype = Transformer(cfg).train(), case.get("short", torch.float32)
    model.recompute, two = case.get("recompute", False), cfg.architecture == "encoder_decoder"
    if "adapter" in case:
        apply(model, AdapterConfig(**case["adapter"]))
    tokens, real = tiny.tokens(B, T, vocab_size=cfg.vocab_size), torch.ones(B, T, dtype=torch.bool)
    real[:, -5:] = False
    given, beside = real if case.get("padded") else None, []

    def call():
        sources = model.encode(tokens, real) if two else None
        if two and model.recompute:  # layers that are computed again hold them where no hook sees it
            beside.extend(t.nbytes for source in sources for t in (source.k_BGSK, source.v_BGSK))
        model.hidden(tokens, given, sources=sources)

    found = kept_by_autograd(model, call, dtype) + sum(beside)
    load = memory.Load(B, T, T if two else 0, dtype.itemsize, padded=case.get("padded", False))
    assert memory.estimate(model, load).activations == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize(("context", "changes", "spelled"), [
    (512, {}, True), (513, {}, False), (512, {"device": "cuda"}, False), (512, {"compiled_bf16": False}, False)])
def test_compiled_for_a_cpu_in_bf16_a_short_context_keeps_its_maps(context, changes, spelled):
    load = memory.Load(B, T, **{"short": 2, "compiled_bf16": True, **changes})
    found, *others = (memory.estimate(Transformer(dataclasses.replace(CFG, max_seq_len=context, attention=attention)), how).activations
                      for attention, how in (("fused", load), *((kind, dataclasses.replace(load, compiled_bf16=False)) for kind in ("spelled", "fused"))))
    assert others[0] != others[1] and found == others[0 if spelled else 1]


def test_what_is_frozen_has_neither_gradient_nor_moments():
    model = Transformer(CFG)
    full = memory.estimate(model, memory.Load(B, T))
    n = sum(p.numel() for p in model.parameters())
    assert (full.weights, full.gradients, full.moments, full.saving) == (4 * n, 4 * n, 8 * n, 12 * n)
    assert memory.estimate(model, memory.Load(B, T, device="cuda")).saving == 0
    assert full.peak - dataclasses.replace(full, saving=0).peak == 12 * n
    adapter = apply(model, AdapterConfig("lora"))
    trained = sum(p.numel() for p in adapter.trained().values())
    lora = memory.estimate(model, memory.Load(B, T))
    assert (lora.weights, lora.gradients, lora.moments) == (4 * (n + trained), 4 * trained, 8 * trained)


def test_gradients_that_stay_stand_beside_the_activations():
    model, once = Transformer(CFG), memory.Load(B, T)
    passing, staying = (memory.estimate(model, dataclasses.replace(once, gradients_stay=stay)) for stay in (False, True))
    assert staying.peak - passing.peak == passing.gradients + passing.embedding  # more than which the activations are here


@pytest.mark.slow
@pytest.mark.parametrize("method", ["none", "lora"])
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(method):
    found = alone("memory", "--worker", "small", method, "", MALLOC_MMAP_THRESHOLD_="262144", OMP_NUM_THREADS="1")
    assert found["estimated"] == pytest.approx(found["measured"], rel=0.2)


# ── not enough ───────────────────────────────────────────────────────────────────────────────────


def exhausts():
    torch.empty(1 << 50, dtype=torch.uint8)


def on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def fails_at(monkeypatch, step, fails):
    loss_sum, steps = CausalLM.loss_sum, []

    def failing(task, model, batch):
        steps.extend([1] * model.training)
        if len(steps) == step:
            fails()
        return loss_sum(task, model, batch)

    monkeypatch.setattr(CausalLM, "loss_sum", failing)


@pytest.mark.parametrize("fails", [exhausts, on_a_gpu])
def test_exhausted_memory_is_one_line_that_names_the_knobs_in_order(pretrain_command, tmp_path, monkeypatch, fails):
    fails_at(monkeypatch, 6, fails)
    outcome = pretrain(pretrain_command, tmp_path / "run")
    line = refused(outcome, "step 6: ", f"the last good checkpoint is {checkpoint.find(tmp_path / 'run')}")
    knobs = ["train.batch_size (4)", "train.accumulation (1)", "model.max_seq_len", "train.recompute=true", "adapter.method=lora",
             "smaller model"]
    assert sorted(knobs, key=line.index) == knobs
    assert checkpoint.find(tmp_path / "run").name == "step-000004"


def test_knobs_that_are_turned_already_are_not_named():
    assert memory.knobs(1, 8, True, True) == "shorten the context (model.max_seq_len, in finetune.py base.max_seq_len), or take a smaller model"


def test_another_runtime_error_is_not_taken_for_memory(pretrain_command, tmp_path, monkeypatch):
    def breaks():
        raise RuntimeError("shapes do not fit")

    fails_at(monkeypatch, 1, breaks)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        pretrain(pretrain_command, tmp_path / "run")


def test_what_the_machine_cannot_hold_is_refused_before_anything_is_written(pretrain_command, tmp_path, monkeypatch):
    assert memory.there(torch.device("cpu")) > 1 << 28
    monkeypatch.setattr(memory, "there", lambda device: 1 << 16)
    said = refused(pretrain(pretrain_command, tmp_path / "run"), "memory: a step takes about", "and cpu has 64.0 KiB", "lower train.batch_size (4)")
    assert not (tmp_path / "run").exists()
    assert said == refused(module(check.main, monkeypatch, *pretrain_command, f"run.dir={tmp_path / 'run'}"))


def test_a_quarter_more_than_is_there_may_be_an_error_of_the_estimate(tmp_path, monkeypatch):
    made = make(tmp_path, Ragged(ragged(8), 2), PLAIN, steps=1)
    monkeypatch.setattr(made.task, "longest", lambda: (12, 0))
    needed = made.memory().peak
    for there in (None, needed / 1.2):  # None: a system that does not say
        monkeypatch.setattr(memory, "there", lambda device, there=there: there)
        made.refuse_hopeless()
    monkeypatch.setattr(memory, "there", lambda device: int(needed / 1.3))
    with pytest.raises(UserError, match="memory: a step takes about"):
        made.refuse_hopeless()


def test_it_is_told_before_the_first_step(pretrain_command, tmp_path, monkeypatch):
    fails_at(monkeypatch, 1, exhausts)
    out = pretrain(pretrain_command, tmp_path / "run").out
    assert "memory, estimated: " in out and "none yet" not in out and "step      1" not in out
