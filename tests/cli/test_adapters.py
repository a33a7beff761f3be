"""Adapters from the command line: trained, continued, asked, merged, and refused where they do not belong."""

import json
import os
import shutil

import pytest
import torch
from commands import is_no_run, tune
from running import json_lines, module, refused

from minialpaca import chat, checkpoint, generate, merge, run
from minialpaca.config.sections import LOW_RANK
from minialpaca.errors import UserError
from minialpaca.peft import METHODS, active
from minialpaca.trainer import Trainer

SETTINGS = {"adalora": ["adapter.rank=4", "adapter.target_rank=2", "adapter.interval=1", "train.steps=12"],
            "prefix": ["adapter.length=3"], "prompt": ["adapter.length=3"], "freeze": ["adapter.also=[\"norm\"]"]}


def command(method, *more):
    return [f"adapter.method={method}", *(["adapter.alpha=7"] if method in LOW_RANK else []), *SETTINGS.get(method, []), *more]


@pytest.fixture(scope="module")
def lora(finetune_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "lora"
    tune(finetune_command, folder, *command("lora"))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_every_method_tunes_from_the_config_and_answers_with_the_best_weights(finetune_command, tmp_path, method):
    folder = tmp_path / method
    outcome = tune(finetune_command, folder, *command(method))
    assert outcome.code == 0 and f"trained: {method}" in outcome.out
    place = checkpoint.find(folder, "best")
    saved = torch.load(place / "model.pt", weights_only=True)
    model, _ = run.load(folder, "best")
    assert active(model).cfg.method == method and saved.keys() == active(model).state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in active(model).state_dict().items())
    assert not any(name.endswith("base.weight") for name in saved)


@pytest.mark.parametrize("method", ["lora", "houlsby", "adalora", "freeze"])
def test_stopped_and_continued_is_not_stopped(finetune_command, tmp_path, monkeypatch, method):
    straight, halted = tmp_path / "straight", tmp_path / "halted"
    changes = command(method, "train.save_every=1")
    tune(finetune_command, straight, *changes)
    take = Trainer.take_step

    def five(trainer):
        if trainer.state["step"] == 5:
            raise UserError("enough")
        return take(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", five)
        refused(tune(finetune_command, halted, *changes), "enough")
    tune(finetune_command, halted, *changes)
    same = ("step", "loss", "lr", "grad_norm", "val_loss", "orthogonality")
    records = [[{k: r[k] for k in same if k in r} for r in json_lines(f / "metrics.jsonl")] for f in (straight, halted)]
    assert records[0] == records[1]
    saved = [torch.load(checkpoint.find(f) / "model.pt", weights_only=True) for f in (straight, halted)]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_an_adapter_answers_and_merged_it_answers_the_same_without_its_base(lora, tmp_path, monkeypatch):
    said = module(generate.main, monkeypatch, lora, "Where is Mira?")
    assert said.code == 0
    out = tmp_path / "merged"
    outcome = module(merge.main, monkeypatch, lora, out)
    assert outcome.code == 0 and "by at most" in outcome.out
    settings = run.settings_of(out)
    assert settings.adapter.method == "none"
    monkeypatch.chdir(tmp_path)
    assert module(generate.main, monkeypatch, out, "Where is Mira?").out == said.out
    model, _ = run.load(out)
    assert active(model) is None
    refused(module(merge.main, monkeypatch, lora, out), "holds a run already")
    refused(module(merge.main, monkeypatch, out, tmp_path / "again"), "holds no adapter")


@pytest.mark.parametrize(("method", "said"), [("houlsby", "cannot be merged"), ("prompt", "cannot be merged"),
                                              ("bitfit", "no place for")])
def test_what_cannot_be_merged_leaves_nothing_behind(finetune_command, tmp_path, monkeypatch, method, said):
    tune(finetune_command, tmp_path / "run", *command(method))
    refused(module(merge.main, monkeypatch, tmp_path / "run", tmp_path / "out"), said)
    assert is_no_run(tmp_path / "out")


def test_an_adapter_for_another_base_is_refused(lora, pretrained, finetune_command, tmp_path, monkeypatch):
    copy, base = tmp_path / "lora", tmp_path / "base"
    shutil.copytree(lora, copy)
    shutil.copytree(pretrained, base)
    place = checkpoint.find(base, "best")
    weights = torch.load(place / "model.pt", weights_only=True)
    weights["final_norm.weight"][0] += 1e-3
    state = checkpoint.read_state(place)
    checkpoint.save(base, state["step"] + 1, {"model": weights, "optimizer": {}}, state, best=True)
    config = (copy / "config.toml").read_text().replace(json.dumps(str(pretrained)), json.dumps(str(base)))
    assert str(base) in config
    (copy / "config.toml").write_text(config)
    refused(module(chat.main, monkeypatch, copy), "is an adapter for another base")


def test_a_base_that_is_gone_is_named(lora, tmp_path, monkeypatch):
    copy = tmp_path / "lora"
    shutil.copytree(lora, copy)
    config = (copy / "config.toml").read_text()
    old = json.dumps(str(run.settings_of(lora).base.run))
    (copy / "config.toml").write_text(config.replace(old, json.dumps("nowhere")))
    refused(module(chat.main, monkeypatch, copy), "nowhere: is no run folder")


@pytest.mark.parametrize("damage", [b"", b"cut"])
def test_a_truncated_or_empty_adapter_file_is_refused(lora, tmp_path, monkeypatch, damage):
    copy = tmp_path / "lora"
    shutil.copytree(lora, copy)
    place = checkpoint.find(copy, "best") / "model.pt"
    place.write_bytes(place.read_bytes()[:200] if damage == b"cut" else b"")
    refused(module(chat.main, monkeypatch, copy), "differs from the checkpoint's manifest")


def test_an_adapter_is_no_base_until_it_is_merged(lora, finetune_command, tmp_path):
    outcome = tune(finetune_command, tmp_path / "next", f"base.run={lora}")
    refused(outcome, "holds an adapter (lora) and no whole model", "minialpaca.merge")
    assert is_no_run(tmp_path / "next")


@pytest.mark.parametrize(("changes", "said"), [
    (["adapter.method=lora", "adapter.targets=xyz"], "adapter.targets: 'xyz' matches no Linear"),
    (["adapter.method=lora", "adapter.rank=17"], "adapter.rank = 17: layers.0.attn.q_proj is 16 × 16"),
    (["adapter.method=lora", "adapter.alpha=0"], "adapter.alpha = 0.0: must be positive"),
    (["adapter.method=lora", "adapter.layers=5:"], "names none of the layers 0 … 0"),
    (["adapter.method=adalora"], "of 6 steps"),
    (["adapter.method=adalora", "adapter.rank=2"], "adapter.target_rank = 4.0: must be positive and at most"),
    (["adapter.method=adalora", "adapter.interval=1", "train.patience=2"], "train.patience = 2"),
    (["adapter.method=lroa"], "use none, freeze"),
])
def test_bad_settings_are_one_line_and_leave_no_run(finetune_command, tmp_path, changes, said):
    refused(tune(finetune_command, tmp_path / "run", *changes), said)
    assert is_no_run(tmp_path / "run")


def test_another_method_in_a_run_folder_is_another_recipe(lora, finetune_command):
    before = os.stat(lora / "config.toml").st_mtime_ns
    refused(tune(finetune_command, lora, *command("ia3")), "adapter.method: 'lora' → 'ia3'")
    assert os.stat(lora / "config.toml").st_mtime_ns == before


def test_ranks_are_logged_as_they_fall(finetune_command, tmp_path):
    folder = tmp_path / "run"
    tune(finetune_command, folder, *command("adalora"))
    ranks = [{k: v for k, v in r.items() if k.startswith("rank/")} for r in json_lines(folder / "metrics.jsonl")]
    sums = [sum(r.values()) for r in ranks if r]
    assert sums == sorted(sums, reverse=True) and sums[0] > sums[-1] == 2 * 7 and len(ranks[-4]) in (0, 7)
    assert all("orthogonality" in r for r in json_lines(folder / "metrics.jsonl") if "loss" in r)


def test_the_difference_that_merging_tells_is_not_dropouts(finetune_command, tmp_path, monkeypatch):
    tune(finetune_command, tmp_path / "run", *command("lora", "adapter.dropout=0.5", "optim.lr=0.05"))
    outcome = module(merge.main, monkeypatch, tmp_path / "run", tmp_path / "out")
    assert float(outcome.out.split()[-1]) < 1e-5


@pytest.mark.parametrize("change", [("alpha = 7.0", "alpha = 70.0"), ("rank_stabilised = false", "rank_stabilised = true")])
def test_another_strength_than_it_was_trained_with_is_refused(lora, tmp_path, monkeypatch, change):
    copy = tmp_path / "lora"
    shutil.copytree(lora, copy)
    config = (copy / "config.toml").read_text()
    assert change[0] in config
    (copy / "config.toml").write_text(config.replace(*change))
    refused(module(chat.main, monkeypatch, copy), "was trained with other settings of [adapter]")


def test_a_short_prompt_is_pictured_where_a_prefix_is_in_some_layers(finetune_command, tmp_path):
    """Its maps are wider than those of the other layers."""
    for method in ("prefix", "prompt"):
        assert tune(finetune_command, tmp_path / method, *command(method, "samples.prompts=[\"Hi\"]")).code == 0
