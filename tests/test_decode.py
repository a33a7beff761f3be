"""The step for one token says what the model says; in int8, what the model says whose matrices are rounded."""

import copy
import subprocess
import sys
import textwrap

import pytest
import tiny
import torch
from running import ROOT
from torch import nn

from minialpaca import recorded
from minialpaca.compiled_forms import written
from minialpaca.config import AdapterConfig, ModelConfig, Sampling
from minialpaca.decode import Stepper, is_plain, look_by_sums, swift
from minialpaca.errors import UserError
from minialpaca.generate import generate, stream
from minialpaca.heads import Classifier
from minialpaca.held import IN_BLOCKS, IN_PARTS, PACKED, WHOLE, Held, form_for, quantised
from minialpaca.model import Transformer
from minialpaca.peft import apply

NEVER = -1
PROMPTS = [tiny.tokens(n, seed=n).tolist() for n in (13, 1, 5, 11)]


def long(group: str = "GQA", **changes) -> Transformer:
    return tiny.model(tiny.GROUPS[group], max_seq_len=80, init_std=0.3, **{"tie_embeddings": False, **changes})


def said(model, prompts, new: int) -> torch.Tensor:
    """The logits behind each token of a fixed text, (new, B, V)."""
    tokens_BT = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
    real_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    for b, prompt in enumerate(prompts):
        tokens_BT[b, -len(prompt):], real_BT[b, -len(prompt):] = torch.tensor(prompt), True
    cache = model.new_cache(len(prompts), tokens_BT.shape[1] + new)
    with torch.no_grad():
        found = [model.next_logits(tokens_BT, None if real_BT.all() else real_BT, cache)]
        for t in range(new - 1):
            found.append(model.next_logits(tiny.tokens(len(prompts), 1, seed=t), None, cache))
    return torch.stack(found)


# ── the same by a shorter way ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "one row"])
@pytest.mark.parametrize("group", list(tiny.GROUPS))
@pytest.mark.parametrize("tied", [True, False])
def test_a_step_says_what_the_model_says(group, tied, prompts):
    model = long(group, tie_embeddings=tied).double()
    step, whole = said(Stepper(model), prompts, 20), said(model, prompts, 20)
    torch.testing.assert_close(step, whole, rtol=1e-12, atol=1e-12)
    assert (whole[1:] - whole[:-1]).abs().min() > 0  # each step says something else


def test_the_answers_are_the_models_token_for_token():
    model = long()
    for how in (Sampling(), Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.3, seed=3)):
        assert generate(Stepper(model), PROMPTS, NEVER, 60, how) == generate(model, PROMPTS, NEVER, 60, how)


def test_a_context_is_filled_to_its_last_place():
    model = long()
    full = generate(Stepper(model), PROMPTS[:1], NEVER)
    assert len(PROMPTS[0]) + len(full[0]) == model.cfg.max_seq_len and full == generate(model, PROMPTS[:1], NEVER)


@pytest.mark.parametrize("compiled", [False, True])
def test_no_token_is_taken_beyond_the_context(compiled):
    """Where there is room to spare in memory, too."""
    stepper = Stepper(long(), compiled=compiled)
    cache = stepper.new_cache(1, 80)
    stepper.next_logits(tiny.tokens(1, 80), None, cache)
    with pytest.raises(ValueError, match=r"80 \+ 1 tokens do not fit the context of 80"):
        stepper.next_logits(tiny.tokens(1, 1), None, cache)
    assert cache.length == 80


def test_in_bf16_the_logits_are_fp32_and_near():
    model = long().bfloat16()
    step, whole = said(Stepper(model), PROMPTS, 8), said(model, PROMPTS, 8)
    assert step.dtype == torch.float32 and (step - whole).abs().max() < 0.1 * whole.abs().max()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_however_a_matrix_is_held_it_multiplies_alike(compiled, several, rows):
    """53 rows of a matrix are no whole number of blocks."""
    weight, x = tiny.normal(53, 12, seed=1), tiny.normal(rows, 12, seed=2)
    torch.testing.assert_close(Held(weight, several, False, compiled)(x), x @ weight.T, rtol=1e-13, atol=1e-13)
    q, s = quantised(weight)
    torch.testing.assert_close(Held(weight, several, True, compiled)(x), x @ (q * s).T, rtol=1e-13, atol=1e-13)
    for dtype, bound in ((torch.float32, 2**-18), (torch.bfloat16, 2**-5)):
        short_weight, short_x = weight.to(dtype), x.to(dtype)
        for int8, exact in ((False, short_weight), (True, (quantised(short_weight)[0] * quantised(short_weight)[1]))):
            found = Held(short_weight, several, int8, compiled)(short_x)
            assert found.dtype == dtype
            torch.testing.assert_close(found, (short_x.double() @ exact.double().T).to(dtype), rtol=bound, atol=bound)


def test_a_matrix_is_held_as_is_fastest_where_it_is(monkeypatch):
    weight = torch.ones(4, 4)
    assert form_for(weight, several=False, int8=False, compiled=True) is IN_BLOCKS
    assert form_for(weight, several=True, int8=True, compiled=True) is IN_BLOCKS
    assert form_for(weight, several=True, int8=False, compiled=True) is WHOLE  # the compiler packs it
    assert form_for(weight, several=False, int8=False, compiled=False) is IN_PARTS
    assert form_for(weight, several=True, int8=True, compiled=False) is IN_PARTS
    assert form_for(weight.double(), several=True, int8=False, compiled=False) is WHOLE
    assert form_for(weight.bfloat16(), several=False, int8=True, compiled=False) is WHOLE
    assert form_for(weight.to("meta"), several=False, int8=False, compiled=True) is WHOLE
    for available, wanted in ((True, PACKED), (False, WHOLE)):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
        assert form_for(weight, several=True, int8=False, compiled=False) is wanted


def test_what_is_written_down_is_the_same_numbers_in_the_same_order(monkeypatch):
    turned = tiny.normal(3, 5).T
    assert written(turned) is turned  # not compiled, there is nothing to do
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(written(turned), turned) and written(turned).stride() == turned.stride() == (1, 5)
    assert written(turned.to("meta")).device.type == "meta"


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_attention_by_sums_is_attention(heads):
    q, k, v = tiny.normal(3, 6, 1, 5, seed=1), tiny.normal(3, heads, 11, 5, seed=2), tiny.normal(3, heads, 11, 5, seed=3)
    may_look = torch.where(tiny.normal(3, 1, 1, 11, seed=4) > -0.5, 0.0, -torch.inf)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=may_look.double(), enable_gqa=True)
    torch.testing.assert_close(look_by_sums(q, k, v, may_look), wanted, rtol=1e-13, atol=1e-13)
    assert look_by_sums(q.bfloat16(), k.bfloat16(), v.bfloat16(), may_look).dtype == torch.bfloat16


# ── recorded ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def records(monkeypatch):
    """As on CUDA, but that what is recorded is done again when it is played. Tells what was recorded."""
    recorded_works = []

    def record(work):
        recorded_works.append(work)
        output = work()
        return lambda: output.copy_(work()), output

    monkeypatch.setattr(recorded, "record", record)
    return recorded_works


def recording(model) -> Stepper:
    stepper = Stepper(model)
    assert stepper.for_one and stepper.for_several  # built now, and not to be compiled
    stepper.compiled = stepper.records = True
    return stepper


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["padded", "one row"])
def test_a_recorded_step_says_what_the_model_says(records, prompts):
    model = long().double()
    stepper, whole = recording(model), said(model, prompts, 20)
    for _ in range(2):  # the second time in the memory of the first
        torch.testing.assert_close(said(stepper, prompts, 20), whole, rtol=1e-12, atol=1e-12)
    assert len(records) == 1


def test_texts_that_are_written_at_once_have_memory_of_their_own_and_leave_it_to_the_next(records):
    model = long()
    stepper, alone = recording(model), [generate(model, [prompt], NEVER, 30)[0] for prompt in PROMPTS[:3]]
    for _ in range(2):
        at_once = zip(*(stream(stepper, [prompt], NEVER, 30) for prompt in PROMPTS[:3]))
        assert [list(text) for text in zip(*([tokens[0] for tokens in step] for step in at_once))] == alone
    assert len(records) == 3
    generate(stepper, PROMPTS[:2], NEVER, 5)  # other rows
    assert len(records) == 4


def test_memory_lent_in_inference_mode_serves_outside_of_it():
    model = long()
    rooms = recorded.Rooms(model.cfg, model.embed.weight.device, model.embed.weight.dtype, model.cfg.max_seq_len)
    with torch.inference_mode():
        assert not rooms.lend(1).k_LBGSK.is_inference()


@pytest.mark.parametrize("int8", [False, True])
def test_a_step_asks_for_no_gradients(int8):
    model = long()
    stepper, cache = Stepper(model, int8), model.new_cache(1, 10)
    for token in (3, 4, 5):
        assert not stepper.next_logits(torch.tensor([[token]]), None, cache).requires_grad


# ── int8 ─────────────────────────────────────────────────────────────────────────────────────────


def test_rows_are_rounded_to_a_scale_of_their_own():
    """By hand: s = max|W| / 127 of each row, Q the nearest whole numbers; the largest of a row becomes ±127."""
    weight = torch.tensor([[0.5, -2.54, 0.011, 1.27], [0.0, 0.0, 0.0, 0.0], [3e-5, 1e-5, -2e-5, 0.0]], dtype=torch.float64)
    q_FD, s_F1 = quantised(weight)
    for row, q_row, scale in zip(weight.tolist(), q_FD.tolist(), s_F1[:, 0].tolist()):
        wanted = max(map(abs, row)) / 127 or 1.0
        assert scale == pytest.approx(wanted, rel=1e-12)
        assert q_row == [round(w / wanted) for w in row]
    assert q_FD.dtype == torch.int8 and q_FD[0].tolist() == [25, -127, 1, 64]


def test_no_weight_moves_by_more_than_half_a_step():
    weight = tiny.normal(40, 30) * torch.logspace(-6, 3, 40, dtype=torch.float64)[:, None]
    q_FD, s_F1 = quantised(weight)
    assert ((q_FD * s_F1 - weight).abs() <= s_F1 / 2 * (1 + 1e-9)).all() and (q_FD.abs().amax(-1) == 127).all()


def test_a_bf16_rows_largest_weight_keeps_its_sign():
    """W/s in bf16 is 128 for some, which wraps to −128."""
    weight = tiny.normal(2000, 64, seed=1).bfloat16()
    q_FD, s_F1 = quantised(weight)
    assert q_FD.abs().amax() == 127 and s_F1.dtype == torch.bfloat16
    assert ((q_FD * s_F1.double() - weight.double()).abs() <= s_F1.double() / 2 * (1 + 1e-9)).all()
    smallest = quantised(torch.full((1, 4), 1e-5).half())  # its step, 7.9e-8, is next to nothing in fp16, and W/s 168
    assert smallest[0].tolist() == [[127] * 4] and smallest[1].item() > 0


@pytest.mark.parametrize("prompts", [PROMPTS, PROMPTS[:1]], ids=["several rows", "one row"])
def test_in_int8_a_step_says_what_a_model_of_rounded_matrices_says(prompts):
    """But for the prompt's own pass, which is the model's: so the comparison is of steps behind a cache of the same."""
    model = long().double()
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for part in rounded.modules():
            if isinstance(part, nn.Linear):
                q, s = quantised(part.weight)
                part.weight.copy_(q * s)
    stepper = Stepper(model, int8=True)
    stepper.model = rounded  # its prompt's pass
    torch.testing.assert_close(said(stepper, prompts, 20), said(rounded, prompts, 20), rtol=1e-10, atol=1e-10)
    assert (said(rounded, prompts, 20) - said(model, prompts, 20)).abs().max() > 1e-3


# ── what it is for ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cfg", [
    AdapterConfig("lora", targets=("q_proj",), rank=2), AdapterConfig("dora", targets=("gate_proj",), rank=2),
    AdapterConfig("adalora", targets=("o_proj",), rank=3, target_rank=2), AdapterConfig("houlsby", bottleneck=3),
    AdapterConfig("ia3"), AdapterConfig("bitfit"), AdapterConfig("prefix", length=3), AdapterConfig("prompt", length=3)],
    ids=lambda cfg: cfg.method)
def test_a_model_with_an_adapter_in_it_goes_its_own_way(cfg):
    model = long()
    apply(model, cfg)
    assert not is_plain(model) and swift(model) is model
    way = f"leave it out: {cfg.method} " if cfg.method in ("houlsby", "bitfit", "prefix", "prompt") else "merge it first"
    with pytest.raises(UserError, match=f"--int8: is for a decoder without an adapter in it; {way}"):
        swift(model, int8=True)
    with pytest.raises(ValueError, match="without an adapter"):
        Stepper(model)


def test_of_other_models_nothing_is_taken_for_a_plain_decoder():
    assert is_plain(long()) and isinstance(swift(long()), Stepper)
    for hook in ("register_forward_hook", "register_forward_pre_hook"):
        hooked = long()
        getattr(hooked.layers[0].mlp, hook)(lambda *args: None)
        assert not is_plain(hooked) and swift(hooked) is hooked
    for architecture in ("encoder", "encoder_decoder"):
        assert not is_plain(Transformer(ModelConfig(vocab_size=11, d_model=8, n_layers=1, n_heads=2, d_ff=12, architecture=architecture)))
    assert not is_plain(Classifier(long(), [2], "last"))
    hooked = long()
    hooked.layers[0].mlp.register_forward_hook(lambda *_: None)
    assert not is_plain(hooked)


def test_compiling_without_a_compiler_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"--compile: needs a C\+\+ compiler"):
        swift(long(), compiled=True)


# ── compiled on a CPU ────────────────────────────────────────────────────────────────────────────


def test_one_row_is_compiled_once_and_so_are_several(monkeypatch):
    """For any length and number, and again where it was broken off (Ctrl-C while compiling)."""
    made = []

    class Fake:
        def __init__(self, step, inputs, cached, several, frozen):
            made.append((several, frozen))
            if len(made) == 1:
                raise KeyboardInterrupt
            self.step = step

        def __call__(self, inputs, cached):
            tokens_B, real_BE = inputs
            assert tokens_B.is_contiguous() and real_BE.is_contiguous()
            assert real_BE.shape[1] < cached[0][0].shape[2]  # a slice of the whole cache is none of those that it was traced for
            return self.step(*inputs, cached)

    monkeypatch.setattr("minialpaca.decode.Captured", Fake)
    model = long()
    stepper = Stepper(model, compiled=True)
    with pytest.raises(KeyboardInterrupt):
        generate(stepper, PROMPTS[:1], NEVER, 5)
    for prompts in (PROMPTS[:1], PROMPTS, PROMPTS[1:], PROMPTS[:1]):
        assert generate(stepper, prompts, NEVER) == generate(model, prompts, NEVER)
    assert made == [(False, False), (False, False), (True, True)]
    generate(Stepper(model, int8=True, compiled=True), PROMPTS, NEVER, 3)
    assert made[3:] == [(True, False)]  # frozen, int8 would be made wide


def apart(code: str) -> None:
    """In a process of its own: what this suite measures tensors by cannot be compiled."""
    head = 'import sys; sys.path.insert(0, "tests")\nimport tiny, torch\nfrom minialpaca.decode import Stepper\nfrom minialpaca.generate import generate\n'
    done = subprocess.run([sys.executable, "-c", head + textwrap.dedent(code) + 'print("same")\n'], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("same\n"), done.stderr[-2000:]


def test_a_traced_step_says_what_the_step_says_for_any_length_and_number_of_rows():
    apart("""
    from minialpaca import captured
    torch._inductor.compile = lambda graph, inputs, options: graph  # traced and not compiled
    model = tiny.model(tiny.GQA, max_seq_len=48, tie_embeddings=False, init_std=0.3).double()
    for int8 in (False, True):
        stepper, plain = Stepper(model, int8, compiled=True), Stepper(model, int8)
        for rows in (1, 2, 5):
            prompts = [tiny.tokens(n, seed=n).tolist() for n in range(1, rows + 1)]
            assert generate(stepper, prompts, -1) == generate(plain, prompts, -1), rows
    short = tiny.model(tiny.GQA, max_seq_len=2)  # one step at most, and none of another length
    told, cache = [Stepper(short, compiled=c) for c in (True, False)], [Stepper(short, compiled=c).new_cache(1, 2) for c in (True, False)]
    for token in (3, 4):
        compiled, plain = (stepper.next_logits(torch.tensor([[token]]), None, into) for stepper, into in zip(told, cache))
        torch.testing.assert_close(compiled, plain)
    """)


def test_threads_that_ask_first_at_once_trace_one_after_the_other():
    apart("""
    import threading
    torch._inductor.compile = lambda graph, inputs, options: graph
    model, found = tiny.model(tiny.GQA, max_seq_len=48, tie_embeddings=False, init_std=0.3), {}
    prompts = [[[1, 2, 3]], [[1, 2], [3]], [[4, 5, 6, 7, 8]], [[5], [6, 7], [8]]]
    stepper = Stepper(model, compiled=True)
    threads = [threading.Thread(target=lambda i=i, p=p: found.update({i: generate(stepper, p, -1, 20)})) for i, p in enumerate(prompts)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert [found.get(i) for i in range(4)] == [generate(model, p, -1, 20) for p in prompts]
    """)


def test_a_step_whose_layers_are_compiled_is_recorded_for_any_number_of_rows():
    """As on CUDA, but that the compiler only traces and that what is recorded is done again. Three times four are more than eight."""
    apart("""
    from minialpaca import recorded
    from minialpaca.decode import Step, compiled_call
    really = torch.compile
    torch.compile = lambda ask, options, **how: really(ask, backend="eager", **how)
    def record(work):
        output = work()
        return lambda: output.copy_(work()), output
    recorded.record = record
    model = tiny.model(tiny.GQA, max_seq_len=24, tie_embeddings=False, init_std=0.3)
    stepper = Stepper(model)
    stepper.for_one = stepper.for_several = Step(model, False, False, True, compiled_call()).eval()
    stepper.compiled = stepper.records = True
    for rows in (1, 2, 3, 4):
        prompts = [tiny.tokens(n, seed=n).tolist() for n in range(3, 3 + rows)]
        assert generate(stepper, prompts, -1, 5) == generate(model, prompts, -1, 5), rows
    """)


@pytest.mark.slow
@pytest.mark.parametrize("int8", [False, True])
def test_compiled_it_says_the_same(int8):
    """Several rows' matrices are constants to the compiler, and packed; in int8 they stay short."""
    apart(f"""
    model = tiny.model(tiny.GQA, max_seq_len=48, tie_embeddings=False, init_std=0.3)
    plain, compiled = Stepper(model, {int8}), Stepper(model, {int8}, compiled=True)
    for n, new in ((5, 20), (9, 30), (1, 47)):
        prompt = [tiny.tokens(n, seed=n).tolist()]
        assert generate(plain, prompt, -1, new) == generate(compiled, prompt, -1, new), (n, new)
    from torch._dynamo.utils import counters
    counters.clear()
    with torch.inference_mode():  # compiled there for two, and asked elsewhere and by more
        assert generate(plain, [[1, 2], [3]], -1, 5) == generate(compiled, [[1, 2], [3]], -1, 5)
    prompts = [tiny.tokens(n, seed=n).tolist() for n in (4, 7, 7)]
    for _ in range(2):  # padded and not in turns: as many rows, and other inputs
        for some in (prompts, prompts[1:], prompts[1:] + prompts[1:2]):
            assert generate(plain, some, -1, 20) == generate(compiled, some, -1, 20), some
    packed = counters["inductor"]["mkldnn_linear_weight_pack_matcher_count"]
    assert (packed == 0) == {int8}, packed
    assert len(compiled.captured) == 2
    """)
