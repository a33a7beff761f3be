"""Adapters from the command line: trained, continued, asked, merged, and refused where they do not belong."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from commands import is_no_run, pretrain, tune
from running import ROOT, in_process, json_lines, module, refusal, refused

import finetune
from minialpaca import chat, check, generate, merge, peft, run
from minialpaca.config.adapting import LOW_RANK
from minialpaca.data.instructions import prompt_ids
from minialpaca.errors import UserError
from minialpaca.peft import METHODS, active
from minialpaca.storage import checkpoint
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


def test_a_merged_run_is_not_gone_on_with_and_says_so(lora, tmp_path, monkeypatch):
    out = tmp_path / "merged"
    module(merge.main, monkeypatch, lora, out)
    before = sorted(p.stat().st_mtime_ns for p in out.rglob("*"))
    refused(in_process(finetune.main, [str(out / "config.toml")]),
            f"{out}: holds a merged run, which has no optimizer to go on with; tune from it instead: base.run={out}")
    assert sorted(p.stat().st_mtime_ns for p in out.rglob("*")) == before
    assert in_process(finetune.main, [str(out / "config.toml"), f"base.run={out}", f"run.dir={tmp_path / 'next'}"]).code == 0


def test_a_place_where_nothing_can_be_merged_to_is_named(lora, tmp_path, monkeypatch):
    base = Path(run.settings_of(lora).base.run)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = sorted(lora.rglob("*"))
    for out, said in ((lora, f"{lora}: is {lora} or lies in it"), (lora / "merged", f"{lora / 'merged'}: is {lora} or lies in it"),
                      (lora / ".." / lora.name / "a" / "b", "or lies in it"), (tmp_path / "file", "file is no folder"),
                      (tmp_path / "full", "full: holds something already"),
                      (lora.parent / lora.name / "checkpoints" / "x", "or lies in it"), (base / "checkpoints" / "step-000001", f"lies in {base}, which is a run")):
        line = refused(module(merge.main, monkeypatch, lora, out), said, "for the merged run")
        assert "run.dir" not in line
    assert sorted(lora.rglob("*")) == before and [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]
    line = refused(module(merge.main, monkeypatch, lora, tmp_path / "file" / "out"), "is no folder", "for the merged run")
    assert "run.dir" not in line


def test_a_low_rank_change_of_a_tied_head_is_merged_into_a_run_that_is_tied_no_more(pretrained, finetune_command, tmp_path,
                                                                                   monkeypatch):
    assert run.settings_of(pretrained).model.tie_embeddings
    tune(finetune_command, tmp_path / "run", *command("lora", "adapter.targets=lm_head", "optim.lr=0.1"))
    said = module(generate.main, monkeypatch, tmp_path / "run", "Where is Mira?")
    outcome = module(merge.main, monkeypatch, tmp_path / "run", tmp_path / "out")
    first, second = outcome.out.splitlines()
    assert outcome.code == 0 and float(first.split()[-1]) < 1e-5 and "embedding and its head are two matrices now" in second
    assert module(generate.main, monkeypatch, tmp_path / "out", "Where is Mira?").out == said.out
    (bare, _), (model, _), (merged, _) = (run.load(folder) for folder in (pretrained, tmp_path / "run", tmp_path / "out"))
    tokens = torch.arange(40).view(2, 20)
    torch.testing.assert_close(merged(tokens), model(tokens), rtol=0, atol=1e-5)
    assert (merged(tokens) - bare(tokens)).abs().max() > 0.1 and not merged.cfg.tie_embeddings
    assert torch.equal(merged.embed.weight, bare.embed.weight) and not torch.equal(merged.lm_head.weight, merged.embed.weight)


def test_adalora_stopped_before_its_budget_is_spent_says_so_and_its_last_weights_answer(finetune_command, tmp_path, monkeypatch):
    folder, take = tmp_path / "run", Trainer.take_step

    def five(trainer):
        if trainer.state["step"] == 5:
            raise UserError("enough")
        return take(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", five)
        refused(tune(finetune_command, folder, *command("adalora")), "enough")
    for asked in ((generate.main, folder, "Hi"), (merge.main, folder, tmp_path / "out")):
        refused(module(asked[0], monkeypatch, *asked[1:]), f"{folder}: adalora is pruning still, and calls nothing 'best' before its "
                "budget is spent; let finetune.py go on with this run, or take --checkpoint last")
    assert is_no_run(tmp_path / "out")
    assert module(generate.main, monkeypatch, folder, "Hi", "--checkpoint", "last").code == 0
    tune(finetune_command, folder, *command("adalora"))
    assert module(generate.main, monkeypatch, folder, "Hi").code == 0


@pytest.mark.parametrize(("method", "said"), [
    ("houlsby", "run: houlsby puts a detour behind attention and MLP, which is no change of a matrix; keep the adapter beside its base"),
    ("prefix", "prefix gives attention keys"), ("prompt", "prompt puts vectors before each text"), ("bitfit", "bitfit adds biases")])
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


def test_what_cannot_be_continued_is_refused_before_its_config_is_touched(pretrained, finetune_command, tmp_path, monkeypatch):
    """And `check` refuses it in the same line; nor does it find the run in order."""
    base, folder = tmp_path / "base", tmp_path / "run"
    shutil.copytree(pretrained, base)
    more = command("lora", f"base.run={base}", "run.allow_change=true")
    tune(finetune_command, folder, *more, "train.steps=4")
    said = f"base {base}, best: the one that it was trained on"
    assert said in module(check.main, monkeypatch, folder).out
    place = checkpoint.find(base, "best")
    weights = torch.load(place / "model.pt", weights_only=True)
    weights["final_norm.weight"][0] += 1e-3
    state = checkpoint.read_state(place)
    checkpoint.save(base, state["step"] + 1, {"model": weights, "optimizer": {}}, state, best=True)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused(tune(finetune_command, folder, *more, "train.steps=6"), "is an adapter for another base")
    refused(module(check.main, monkeypatch, *finetune_command, *more, "train.steps=6", f"run.dir={folder}"),
            "is an adapter for another base")
    refused(module(check.main, monkeypatch, folder), "is an adapter for another base")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_base_of_another_shape_is_told_by_what_differs(lora, pretrained, pretrain_command, tmp_path, monkeypatch):
    copy, base = tmp_path / "lora", tmp_path / "base"
    shutil.copytree(lora, copy)
    assert pretrain(pretrain_command, base, "model.d_ff=40").code == 0
    config = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(config.replace(json.dumps(str(pretrained)), json.dumps(str(base))))
    refused(module(chat.main, monkeypatch, copy), f"{base}: is another model than the one that the adapter in {copy} was trained on "
            "(model.d_ff = 40, there ", "give the base that it was trained on")


def test_an_option_that_merge_does_not_know_is_one_line(lora, tmp_path, monkeypatch):
    refused(module(merge.main, monkeypatch, lora, tmp_path / "out", "--checkpoint", "worst"), "command line: argument --checkpoint: invalid choice: 'worst'",
            "--help tells what there is")


def test_numbers_that_are_not_finite_are_not_merged(lora, tmp_path, monkeypatch):
    copy = tmp_path / "lora"
    shutil.copytree(lora, copy)
    place = checkpoint.find(copy, "best")
    tensors, state = torch.load(place / "model.pt", weights_only=True), checkpoint.read_state(place)
    next(iter(tensors.values())).fill_(torch.nan)
    checkpoint.save(copy, state["step"] + 1, {"model": tensors, "optimizer": {}}, state, best=True)
    refused(module(merge.main, monkeypatch, copy, tmp_path / "out"), "says numbers that are not finite, and so would the merged run")
    assert is_no_run(tmp_path / "out")


def other_tokenizer(folder):
    """Its checkpoints say that they were trained with another one."""
    for place in (folder / "checkpoints").iterdir():
        if place.is_dir() and not place.is_symlink():
            state = checkpoint.read_state(place)
            checkpoint.save(folder, state["step"] + 1000, {"model": checkpoint.read_tensors(place, "model"), "optimizer": {}},
                            {**state, "tokenizer": "0" * 64}, best=True)


def test_an_adapter_or_a_base_of_another_tokenizer_is_refused_and_it_is_said_which(lora, pretrained, tmp_path, monkeypatch):
    copy = tmp_path / "lora"
    shutil.copytree(lora, copy)
    other_tokenizer(copy)
    refused(module(chat.main, monkeypatch, copy), f"{copy}/checkpoints/", "was trained with another tokenizer than the tokenizer.model "
            "of its run folder")
    with pytest.raises(UserError, match=f"{copy}.* was trained with another tokenizer"):
        run.load_adapter(copy, run.load(pretrained)[0])
    base, moved = tmp_path / "base", tmp_path / "moved"
    shutil.copytree(pretrained, base)
    shutil.copytree(lora, moved)
    other_tokenizer(base)
    config = (moved / "config.toml").read_text()
    (moved / "config.toml").write_text(config.replace(json.dumps(str(pretrained)), json.dumps(str(base))))
    refused(module(chat.main, monkeypatch, moved), f"{base}/checkpoints/", f"was trained with another tokenizer than "
            f"{moved}/tokenizer.model, the adapter's; give the base that it was trained on")


def test_a_base_that_is_gone_is_named(lora, tmp_path, monkeypatch):
    copy = tmp_path / "lora"
    shutil.copytree(lora, copy)
    config = (copy / "config.toml").read_text()
    old = json.dumps(str(run.settings_of(lora).base.run))
    (copy / "config.toml").write_text(config.replace(old, json.dumps("nowhere")))
    refused(module(chat.main, monkeypatch, copy), f"base.run = 'nowhere', looked for at {os.path.abspath('nowhere')}: is no run "
            "folder (it lacks config.toml or tokenizer.model); put the base back, or write where it is now to base.run in "
            f"{copy}/config.toml")


def test_a_relative_base_is_found_from_any_folder(pretrained, finetune_command, tmp_path, monkeypatch):
    """It counts from where run.dir does; a run that is elsewhere now looks in the working directory."""
    project = tmp_path / "project"
    (project / "runs").mkdir(parents=True)
    os.symlink(pretrained, project / "runs" / "base")
    monkeypatch.chdir(project)
    assert tune(finetune_command, "runs/lora", *command("lora", "base.run=runs/base")).code == 0
    said = module(generate.main, monkeypatch, "runs/lora", "Where is Mira?")
    for here, there in ((tmp_path, "project/runs/lora"), (project / "runs", "lora"), (project / "runs" / "lora", "."),
                        (tmp_path, project / "runs" / "lora")):
        monkeypatch.chdir(here)
        assert module(generate.main, monkeypatch, there, "Where is Mira?") == said
    shutil.copytree(project / "runs" / "lora", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    os.symlink(project / "runs" / "lora", tmp_path / "link")
    assert module(generate.main, monkeypatch, "link", "Where is Mira?") == said
    refused(module(generate.main, monkeypatch, "moved", "Hi"), f"looked for at {tmp_path / 'runs' / 'base'}: is no run folder",
            "in moved/config.toml")
    monkeypatch.chdir(project)
    assert module(generate.main, monkeypatch, "../moved", "Where is Mira?") == said


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


def test_what_cannot_be_merged_is_not_told_to_be(finetune_command, tmp_path):
    tune(finetune_command, tmp_path / "ia", *command("prompt"))
    said = refused(tune(finetune_command, tmp_path / "next", f"base.run={tmp_path / 'ia'}"), "it puts vectors before each text", "give another base")
    assert "minialpaca.merge" not in said


def test_a_base_that_lies_elsewhere_now_is_the_same_base(pretrained, finetune_command, tmp_path, monkeypatch):
    """What counts is its fingerprint, and the run remembers the new place."""
    moved = tmp_path / "moved"
    shutil.copytree(pretrained, moved)
    straight = tune(finetune_command, tmp_path / "straight", *command("lora"))
    take = Trainer.take_step
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power"):
        def failing(trainer):
            if trainer.state["step"] == 3:
                raise RuntimeError("power failure")
            return take(trainer)
        patch.setattr(Trainer, "take_step", failing)
        tune(finetune_command, tmp_path / "run", *command("lora", "train.save_every=1"))
    outcome = tune(finetune_command, tmp_path / "run", *command("lora", "train.save_every=1", f"base.run={moved}"))
    assert outcome.code == straight.code == 0 and "step 3 of 6, going on" in outcome.out, outcome.err
    assert run.settings_of(tmp_path / "run").base.run == str(moved)
    weights = [torch.load(checkpoint.find(tmp_path / name) / "model.pt", weights_only=True) for name in ("run", "straight")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


@pytest.mark.parametrize(("changes", "said"), [
    (["adapter.method=lora", "adapter.targets=xyz"], "adapter.targets: 'xyz' matches no Linear"),
    (["adapter.method=lora", "adapter.rank=17"], "adapter.rank = 17: layers.0.attn.q_proj is 16 × 16"),
    (["adapter.method=lora", "adapter.alpha=0"], "adapter.alpha = 0.0: must be positive"),
    (["adapter.method=lora", "adapter.alpha=-inf"], "adapter.alpha = -inf: must be positive"),
    (["adapter.method=lora", "adapter.alpha=1e39"], "adapter.alpha = 1e+39: must be positive, and small enough for fp32"),
    (["adapter.method=lora", "adapter.also=embedding,head"], """use embedding, norm, bias, head, several as in ["embedding", "head"]"""),
    (["adapter.method=lora", "adapter.targets=q_proj,v_proj"], """name each by itself, as in ["q_proj", "v_proj"]"""),
    (["adapter.method=lora", "adapter.layers=5:"], "names none of the layers 0 … 0"),
    (["adapter.method=adalora"], "of 6 steps"),
    (["adapter.method=adalora", "adapter.rank=2"], "adapter.target_rank = 4.0: must be positive and at most"),
    (["adapter.method=adalora", "adapter.interval=1", "train.patience=2"], "train.patience = 2"),
    (["adapter.method=lroa"], "use none, freeze"),
    (["adapter.rank=4"], "adapter.rank = 4: means nothing to adapter.method = 'none'; leave it out, or use lora, dora, adalora"),
    (["adapter.method=houlsby", "adapter.bottleneck=1000000000000000"], "adapter: cannot be put into the model ("),
    (["adapter.method=prefix", "adapter.length=1000000000000000"], "make it smaller: adapter.bottleneck, length, rank"),
    (["adapter.method=prompt", "adapter.length=1000000000000000"], "make it smaller: adapter.bottleneck, length, rank"),
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


def test_ranks_are_shown_at_each_evaluation(finetune_command, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    tune(finetune_command, folder, *command("adalora"))
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    board.Reload()
    evaluated = [r["step"] for r in json_lines(folder / "metrics.jsonl") if "val_loss" in r]
    assert [event.step for event in board.Images("ranks")] == evaluated == [e.step for e in board.Tensors("ranks/text_summary")]
    last = {k[5:]: v for r in json_lines(folder / "metrics.jsonl") for k, v in r.items() if k.startswith("rank/")}
    heads, _, *rows = board.Tensors("ranks/text_summary")[-1].tensor_proto.string_val[0].decode().splitlines()
    matrices = [name.strip() for name in heads.split("|")[2:-1]]
    told = {f"{row.split('|')[1].strip()}.{matrix}": int(cell) for row in rows for matrix, cell in zip(matrices, row.split("|")[2:])}
    assert told == last and len(last) == 7


def test_the_table_is_of_the_ranks_at_the_start_and_the_ranks_at_the_end_are_told(finetune_command, tmp_path):
    once, again = (tune(finetune_command, tmp_path / "run", *command("adalora")).out for _ in range(2))
    for said in (once, again):
        table, ranks = (re.search(rf"^{head}.*\n(.*)\n", said, re.M) for head in ("trained: adalora", r"rank +attn\."))
        assert table[1].split()[2] == "4"
        assert ranks[1].split()[0] == "layers.0" and sum(map(int, ranks[1].split()[1:])) == 2 * 7


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


def test_the_readmes_several_adapters_on_one_base(pretrained, lora, finetune_command, tmp_path, monkeypatch, capsys):
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    code, = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "runs").mkdir()
    for name, folder in (("pretrain", pretrained), ("alpaca-lora", lora)):
        os.symlink(folder, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    tune(finetune_command, "runs/alpaca-ia3", *command("ia3", "optim.lr=0.1"))
    capsys.readouterr()
    names = {}
    exec(code.replace("Where does Gadeba live?", "Where is Mira?"), names)
    told = [f"{name} {answer}" for name, answer in ((name, answer_of(f"runs/alpaca-{name}")) for name in ("lora", "ia3"))]
    assert capsys.readouterr().out.splitlines() == told and told[0][5:] != told[1][4:]
    model, adapter = names["model"], names["adapters"]["lora"]
    assert active(model) is names["adapters"]["ia3"]
    peft.use(model, adapter)
    tokens = torch.arange(40).view(2, 20)
    assert torch.equal(model(tokens), run.load(lora)[0](tokens))
    peft.use(model, None)
    assert torch.equal(model(tokens), run.load(pretrained)[0](tokens))


def answer_of(folder):
    """By the way that loads base and adapter together."""
    model, tokenizer = run.load(folder)
    return generate.answer_all(model, tokenizer, [prompt_ids(tokenizer, "Where is Mira?")], 48)


def test_what_is_no_adapter_of_a_bare_base_is_not_put_into_one(pretrained):
    model, _ = run.load(pretrained)
    refusal(lambda: run.load_adapter(pretrained, model), f"{pretrained}: holds no adapter for a bare base", "task.name = instruction")


def test_an_adapter_of_other_prompts_is_not_put_beside_a_base(pretrained, lora, monkeypatch):
    model, _ = run.load(pretrained)
    monkeypatch.setattr(run, "PROMPTS_ID", "0123456789abcdef")
    with pytest.raises(UserError, match="was tuned with other prompts"):
        run.load_adapter(lora, model)
    assert active(model) is None
