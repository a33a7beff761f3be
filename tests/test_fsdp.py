"""Two processes, each with a part of every tensor, do what one does with all of it; and what they keep is anyone's to go on with."""

import pytest
import torch
from running import in_process, json_lines, refused
from test_parallel import ROOT, torchrun
from two_ranks import SHARDED, half, rest, trainer_of, weights_of

import train
from minialpaca import merge, run
from minialpaca.storage import checkpoint


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What the two processes leave; beforehand one process has trained to the middle."""
    out = tmp_path_factory.mktemp("ranks") / "fsdp"
    half(trainer_of(out / "alone", "full", "fgm", "ddp"))
    done = torchrun(ROOT / "tests" / "two_ranks.py", out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def together(out):
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("adapter, attack", SHARDED)
def test_two_parts_equal_one_whole_on_the_joined_batch(together, tmp_path, adapter, attack):
    """The last step has three micro-batches: one of the two processes takes part in the fourth, which counts nothing."""
    weights, records = weights_of(tmp_path, adapter, attack)
    for found, noted in (rank[f"{adapter}-{attack}"] for rank in together):
        assert_close(found, weights)
        for one, other in zip(records, noted, strict=True):
            assert other == pytest.approx(one, rel=1e-9, abs=1e-12)


def test_each_holds_half_of_the_weights_and_of_the_moments(together, tmp_path):
    """Of a tensor with an odd number of rows the first has one more."""
    trainer = trainer_of(tmp_path, "full", "clean", "ddp")
    total = sum(p.numel() for p in trainer.model.parameters())
    odd = sum(p[0].numel() for p in trainer.model.parameters() if len(p) % 2)
    (first, of_first), (second, of_second) = (rank["numbers"] for rank in together)
    assert first + second == total and first - second == odd < total / 20
    assert (of_first, of_second) == (2 * first, 2 * second)


def test_gradients_travel_with_the_last_micro_batch(together, tmp_path):
    """Of two."""
    n = len(list(trainer_of(tmp_path, "full", "clean", "ddp").model.parameters()))
    assert [rank["arrivals"] for rank in together] == [[0, n], [0, n]]


# ── what is kept ─────────────────────────────────────────────────────────────────────────────────


def test_what_was_saved_in_parts_is_read_whole_and_to_the_bit(out, together):
    place = checkpoint.find(out / "shards")
    checkpoint.verify(place)
    assert {p.name for p in place.iterdir()} == {"state.json", "manifest.json", *(f"{stem}-{rank}-of-2.pt" for stem in ("model", "optimizer")
                                                                                  for rank in range(2))}
    weights, moments = together[0]["whole"]
    read, state = checkpoint.read_tensors(place, "model"), checkpoint.read_tensors(place, "optimizer")
    assert read.keys() == weights.keys() and all(torch.equal(read[name], weights[name]) for name in weights)
    for i, of_one in moments.items():
        assert all(torch.equal(state["state"][i][name], tensor) for name, tensor in of_one.items())
    assert read["lm_head.weight"].shape[0] % 2 and not torch.equal(read["embed.weight"][0], read["embed.weight"][-1])


def test_one_process_goes_on_with_parts_and_two_with_a_whole(out, together, tmp_path):
    """Saved after three steps of six."""
    straight, _ = weights_of(tmp_path, "full", "fgm")
    for rank in together:
        assert_close(rank["from one"], straight)
    assert_close(rest(trainer_of(out / "shards", "full", "fgm", "ddp")), straight)


# ── by the scripts ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def command(pretrain_command):
    return [*pretrain_command, "train.save_every=1", "train.keep=9", "model.dropout=0.1", "model.n_layers=2"]


@pytest.fixture(scope="module")
def pretrained_in_parts(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "parts"
    done = torchrun(ROOT / "train.py", *command, f"run.dir={folder}", "train.parallel=fsdp")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("best validation loss") == 1
    return folder


def numbers(folder):
    """What the log has of each step, but for how long it took."""
    return [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in json_lines(folder / "metrics.jsonl") if "changed" not in r]


def test_a_run_in_parts_is_logged_and_goes_on_in_one_process_as_if_it_had_been_one(command, pretrained_in_parts, tmp_path):
    """Its evaluations too. Going on from its third step, one process comes to the same end, and the change is recorded."""
    alone, parts = tmp_path / "alone", pretrained_in_parts
    once = [*command, "train.accumulation=2"]
    assert in_process(train.main, [*once, f"run.dir={alone}"]).code == 0
    for one, other in zip(numbers(alone), numbers(parts), strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    checkpoint.point(parts / "checkpoints" / "last", "step-000003")
    outcome = in_process(train.main, [*once, f"run.dir={parts}"])
    assert outcome.code == 0 and "step 3 of 6, going on" in outcome.out, outcome.err
    assert "train.parallel: 'fsdp' → 'ddp'; processes: 2 → 1 (the same micro-batches in the same steps" in outcome.out
    for one, other in zip(numbers(alone), numbers(parts), strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    ends = [checkpoint.read_tensors(checkpoint.find(folder), "model") for folder in (alone, parts)]
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-3, atol=1e-4)


def test_an_adapter_tuned_in_parts_is_merged_by_one_process(finetune_command, tmp_path):
    folder, merged = tmp_path / "lora", tmp_path / "merged"
    done = torchrun(ROOT / "finetune.py", *finetune_command, f"run.dir={folder}", "adapter.method=lora", "train.parallel=fsdp",
                    "train.precision=bf16", "train.deterministic=true", "train.steps=2")
    assert done.returncode == 0 and "test, exact match" in done.stdout, done.stderr[-3000:]
    assert (checkpoint.find(folder) / "model-1-of-2.pt").is_file()
    assert merge.merge(folder, merged, "best") < 1e-4
    assert run.load(merged)[0].cfg == run.load(folder)[0].cfg


def test_alone_it_is_one_process_like_any_other(pretrain_command, tmp_path):
    assert in_process(train.main, [*pretrain_command, f"run.dir={tmp_path / 'run'}", "train.parallel=fsdp", "train.steps=1"]).code == 0
    assert (checkpoint.find(tmp_path / "run") / "model.pt").is_file()


def test_what_cannot_be_dealt_out_is_refused_in_a_line(pretrain_command, tmp_path):
    done = torchrun(ROOT / "train.py", *pretrain_command, f"run.dir={tmp_path / 'run'}", "train.parallel=fsdp", "adversarial.method=matrix",
                    "model.tie_embeddings=false")
    assert done.returncode and "error: adversarial.method = 'matrix': moves the whole embedding matrix" in done.stderr
    assert "RuntimeError" not in done.stderr and not (tmp_path / "run").exists()
    refused(in_process(train.main, [*pretrain_command, f"run.dir={tmp_path / 'run'}", "train.parallel=zero"]), "use ddp or fsdp")
