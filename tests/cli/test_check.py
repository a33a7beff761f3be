"""`python -m minialpaca.check`: what would happen is told, what would be refused is refused, and nothing is written."""

import json
import shutil

import pytest
import torch
from commands import pretrain
from conftest import alpaca_rows
from running import module, refused, written

from minialpaca import check
from minialpaca.inspect_run import histogram
from minialpaca.storage import checkpoint
from minialpaca.tasks.pretrain import CausalLM


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} | {path: None for path in folder.rglob("*")
                                                                                        if path.is_dir()}


def checked(monkeypatch, *arguments):
    return module(check.main, monkeypatch, *arguments)


@pytest.fixture
def broken_off(pretrain_command, tmp_path, monkeypatch):
    """A run that ended in its fifth step."""
    loss_sum, steps = CausalLM.loss_sum, []

    def failing(task, model, batch):
        steps.extend([1] * model.training)
        if len(steps) == 5:
            raise torch.OutOfMemoryError("out of memory")
        return loss_sum(task, model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(CausalLM, "loss_sum", failing)
        assert pretrain(pretrain_command, tmp_path / "run").code == 2
    return tmp_path / "run"


# ── a config ─────────────────────────────────────────────────────────────────────────────────────


def test_a_fresh_pretraining_is_told_and_nothing_is_written(pretrain_command, tmp_path, monkeypatch):
    outcome = checked(monkeypatch, *pretrain_command, f"run.dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.err
    for part in ("a config of train.py", "data: 400 documents", "windows of 96 tokens", "parameters", "memory, estimated: ",
                 "6 steps of 4 · 1 rows", f"{tmp_path / 'run'}: would begin a fresh run"):
        assert part in outcome.out, part
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_broken_off_would_resume_and_is_left_alone(pretrain_command, broken_off, monkeypatch):
    before = files_of(broken_off)
    outcome = checked(monkeypatch, *pretrain_command, f"run.dir={broken_off}")
    assert "would resume from step 4 of 6" in outcome.out, outcome.err
    assert files_of(broken_off) == before


def test_a_finished_run_is_called_so(pretrain_command, pretrained, monkeypatch):
    assert "is finished at step 6" in checked(monkeypatch, *pretrain_command, f"run.dir={pretrained}").out


def test_what_the_run_would_refuse_is_refused_in_the_same_line(pretrain_command, pretrained, sources, tmp_path, monkeypatch):
    change = "optim.lr=0.5"
    said = refused(checked(monkeypatch, *pretrain_command, f"run.dir={pretrained}", change), "another recipe", "optim.lr")
    assert said == refused(pretrain(pretrain_command, pretrained, change))
    changed = shutil.copytree(sources, tmp_path / "sources") / "story.txt"
    command = [*pretrain_command, f"data.source={changed}"]
    run = tmp_path / "run"
    assert pretrain(command, run).code == 0
    changed.write_text(changed.read_text(encoding="utf-8") + "One more has a lamp.\n" * 40, encoding="utf-8")
    refused(checked(monkeypatch, *command, f"run.dir={run}"), "the data are not those")


def test_a_broken_pointer_to_the_best_is_refused_as_the_run_would(pretrain_command, broken_off, monkeypatch):
    for name in ("", "step-000099"):
        (broken_off / "checkpoints" / "best").write_text(name)
        said = refused(checked(monkeypatch, *pretrain_command, f"run.dir={broken_off}"), "checkpoints/best: ", "delete it, and training goes on")
        assert said == refused(pretrain(pretrain_command, broken_off))


@pytest.mark.parametrize("name, content", [("tokens/train.bin", b""), ("tokens/val.bin", b"x" * 600), ("metrics.jsonl", b"{}\n")])
def test_what_else_the_run_would_stumble_over_is_refused(pretrain_command, broken_off, monkeypatch, name, content):
    (broken_off / name).write_bytes(content)
    said = refused(checked(monkeypatch, *pretrain_command, f"run.dir={broken_off}"), str(broken_off / name))
    assert said == refused(pretrain(pretrain_command, broken_off)) == refused(checked(monkeypatch, broken_off))


def test_a_damaged_best_is_found_at_the_start_and_not_at_the_end(pretrain_command, broken_off, monkeypatch):
    best = shutil.copytree(checkpoint.find(broken_off), broken_off / "checkpoints" / "step-000002")
    checkpoint.point(broken_off / "checkpoints" / "best", best.name)
    (best / "model.pt").write_bytes(b"")
    said = refused(checked(monkeypatch, *pretrain_command, f"run.dir={broken_off}"), f"{best / 'model.pt'}: differs from")
    assert said == refused(pretrain(pretrain_command, broken_off))


def test_a_lost_pointer_is_told_and_a_checkpoint_that_goes_meanwhile_is_none(broken_off, monkeypatch):
    (broken_off / "checkpoints" / "last").unlink()
    assert "the pointer `last` is lost" in checked(monkeypatch, broken_off).out
    verify = checkpoint.verify
    monkeypatch.setattr(checkpoint, "verify", lambda place: (shutil.rmtree(place), verify(place)))
    outcome = checked(monkeypatch, broken_off)
    assert outcome.code == 0 and "damaged" not in outcome.out


def test_the_files_own_sections_say_whose_config_it_is(pretrain_command, monkeypatch):
    refused(checked(monkeypatch, *pretrain_command, "base.run=x"), "unknown key base.run")


def test_a_change_is_read_beside_instructions_too_and_a_name_may_hold_an_equals_sign(tmp_path, monkeypatch):
    path = written(tmp_path / "a=b.json", json.dumps(alpaca_rows(3)))
    assert "instructions in Alpaca's form" in checked(monkeypatch, path).out
    refused(checked(monkeypatch, path, "foo.bar=2"), "unknown")


def test_blank_text_and_a_faulty_first_row_are_told_as_what_they_are(tmp_path, monkeypatch):
    refused(checked(monkeypatch, written(tmp_path / "a.txt", "  \n \n")), "holds no text")
    refused(checked(monkeypatch, written(tmp_path / "a.jsonl", '{"text": 1}\n{"text": "ok"}\n')), "1 bad record: line 1: 'text' is no text")


def test_a_run_without_its_tokenizer_is_no_run_to_go_on_with(pretrain_command, broken_off, monkeypatch):
    (broken_off / "tokenizer.model").unlink()
    said = refused(checked(monkeypatch, *pretrain_command, f"run.dir={broken_off}"), f"{broken_off}: holds a run without its tokenizer.model; put it back")
    assert said == refused(pretrain(pretrain_command, broken_off))


def test_a_fine_tuning_tells_lengths_and_what_is_left_out(finetune_command, tmp_path, monkeypatch):
    outcome = checked(monkeypatch, *finetune_command, f"run.dir={tmp_path / 'run'}", "adapter.method=lora", "base.max_seq_len=72")
    assert outcome.code == 0, outcome.err
    for part in ("a config of finetune.py", "over_long = drop: ", "training texts by length in tokens:", "median ", "█",
                 "of them trained", "would begin a fresh run"):
        assert part in outcome.out, part
    assert not list(tmp_path.iterdir())


def test_faulty_rows_are_named_by_their_numbers(finetune_command, tmp_path, monkeypatch):
    rows = alpaca_rows(6)
    rows[3]["output"] = 7
    source = written(tmp_path / "a.json", json.dumps(rows))
    refused(checked(monkeypatch, *finetune_command, f"data.source={source}", f"run.dir={tmp_path / 'run'}"),
            "record 4: 'output' is 7 and no text")


# ── a data file ──────────────────────────────────────────────────────────────────────────────────

FILES = {
    "a.json": (json.dumps([{"instruction": "abc", "input": "d", "output": "ef"}] * 3), [], "instructions in Alpaca's form", "3 rows"),
    "b.csv": ("text,label\ngood,yes\nbad,no\n", [], "labelled texts", "2 rows"),
    "c.txt": ("one\ntwo\n\nthree\n", ["data.documents=line"], "text for pretraining", "3 rows"),
    "d.jsonl": ('{"text": "one"}\n{"text": "two"}\n', [], "text for pretraining", "2 rows"),
    "e.txt": ("yes fine\nno bad\n", ["classes.lines={label} {text}"], "labelled texts", "2 rows"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_data_file_is_recognised_and_counted(name, tmp_path, monkeypatch):
    content, changes, kind, rows = FILES[name]
    outcome = checked(monkeypatch, written(tmp_path / name, content), *changes)
    assert outcome.code == 0, outcome.err
    assert kind in outcome.out and rows in outcome.out
    assert [path.name for path in tmp_path.iterdir()] == [name]


BAD = {
    "a.jsonl": ('{"instruction": "a", "output": "b"}\n{"instruction": 3, "output": "b"}\n', "line 2: 'instruction' is 3"),
    "b.csv": ("text,label\ngood,yes\nbad\n", "row 3: has 1 cells"),
    "c.txt": (b"good\nbad \xff\n", "line 2: is not UTF-8"),
    "d.pdf": ("x", "unknown kind of file"),
    "e.txt": ("", "is empty"),
    "f.txt": (None, "no such file"),
    "g.toml": ("[optim]\nlr = 1.0\n", "config of train.py or of finetune.py alike"),
    "h.toml": ("[model]\nwidth = 3\n", "unknown key model.width"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(name, tmp_path, monkeypatch):
    content, said = BAD[name]
    if content is not None:
        written(tmp_path / name, content)
    refused(checked(monkeypatch, tmp_path / name), said)


def test_one_thing_at_a_time(tmp_path, monkeypatch):
    refused(checked(monkeypatch, "a.toml", "b.toml"), "give one config, data file or run folder")
    assert "python -m minialpaca.check" in checked(monkeypatch).out


# ── a run ────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_tells_its_state_and_is_left_alone(broken_off, monkeypatch):
    before = files_of(broken_off)
    outcome = checked(monkeypatch, broken_off)
    assert outcome.code == 0, outcome.err
    for part in ("a run of train.py, causal", "step-000004  whole", "last", "step 4, best val_loss", "2 of 6 steps left"):
        assert part in outcome.out, part
    assert files_of(broken_off) == before


def test_a_damaged_checkpoint_is_named(broken_off, monkeypatch):
    place = checkpoint.find(broken_off) / "model.pt"
    place.write_bytes(place.read_bytes()[:-1] + b"?")
    outcome = checked(monkeypatch, broken_off)
    assert "step-000004  damaged" in outcome.out
    refused(outcome, "1 damaged checkpoint: ", f"{place}: differs from the checkpoint's manifest")


def test_a_tuned_run_names_its_task(tuned, monkeypatch):
    assert "a run of finetune.py, instruction" in checked(monkeypatch, tuned).out


def test_the_histogram_counts_every_length_once():
    lines = histogram([3, 3, 4, 20]).splitlines()
    counts = [int(line.split()[3]) for line in lines[:-1]]
    assert sum(counts) == 4 and counts[0] == 3 and lines[-1].split() == ["median", "4"]
    assert len(histogram([5]).splitlines()) == 2
