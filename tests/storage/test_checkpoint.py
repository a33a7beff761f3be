"""Checkpoints: complete or not there, and loading runs no code."""

import errno
import json
import os
import pickle
import shutil

import pytest
import torch

from minialpaca.errors import UserError
from minialpaca.storage import checkpoint, durable

STATE = {"step": 1, "best": 2.5, "tokenizer": "ab"}


def save(run, step, best=False, value=None):
    value = float(step) if value is None else value
    tensors = {"model": {"w": torch.full((2, 3), value)},
               "optimizer": {"state": {0: {"step": torch.tensor(value)}}, "n": 7}}
    return checkpoint.save(run, step, tensors, {**STATE, "step": step}, best)


def value_of(run, name="last"):
    """Find, verify and read, as a resumed run does."""
    place = checkpoint.find(run, name)
    checkpoint.verify(place)
    value = checkpoint.read_tensors(place, "model")["w"][0, 0].item()
    assert checkpoint.read_state(place)["step"] == int(place.name.removeprefix("step-"))
    return value


def folders(run):
    return sorted(p.name for p in (run / "checkpoints").iterdir() if p.is_dir())


def test_what_was_saved_comes_back_to_the_bit(tmp_path):
    exact = {"a": torch.randn(50, 7, generator=torch.Generator().manual_seed(0)), "b": torch.tensor([1, -2**62]),
             "c": torch.tensor([float("inf"), 1e-45])}
    state = {"step": 3, "best": 1 / 3, "stopped_early": False}
    place = checkpoint.save(tmp_path, 3, {"model": exact, "optimizer": {"m": exact["a"] * 2}}, state, best=True)
    assert place == checkpoint.find(tmp_path, "last") == checkpoint.find(tmp_path, "best")
    checkpoint.verify(place)
    back = checkpoint.read_tensors(place, "model")
    assert list(back) == list(exact) and all(torch.equal(back[k], exact[k]) and back[k].dtype == exact[k].dtype
                                             for k in exact)
    assert torch.equal(checkpoint.read_tensors(place, "optimizer")["m"], exact["a"] * 2)
    assert checkpoint.read_state(place) == state
    assert sorted(os.listdir(place)) == ["manifest.json", "model.pt", "optimizer.pt", "state.json"]


def test_an_infinite_best_loss_comes_back(tmp_path):
    place = checkpoint.save(tmp_path, 0, {}, {"best": float("inf")}, best=False)
    assert checkpoint.read_state(place) == {"best": float("inf")}


def test_nothing_saved_yet_is_none(tmp_path):
    assert checkpoint.find(tmp_path) is None and checkpoint.find(tmp_path / "nowhere", "best") is None
    save(tmp_path, 1)
    assert checkpoint.find(tmp_path, "best") is None


def test_last_and_best_are_kept_and_no_others(tmp_path):
    for step, best, left in [(0, True, [0]), (10, False, [0, 10]), (20, True, [20]), (30, False, [20, 30]),
                             (40, False, [20, 40])]:
        save(tmp_path, step, best)
        assert folders(tmp_path) == [f"step-{s:06d}" for s in left]
        assert value_of(tmp_path, "last") == step
    assert value_of(tmp_path, "best") == 20


def test_an_old_folder_goes_only_after_the_pointers_moved(tmp_path, monkeypatch):
    save(tmp_path, 1, best=True)
    seen = []
    clean = checkpoint.clean
    monkeypatch.setattr(checkpoint, "clean",
                        lambda folder, keep: (seen.append((folders(tmp_path), value_of(tmp_path))), clean(folder, keep)))
    save(tmp_path, 2, best=True)
    assert seen == [(["step-000001", "step-000002"], 2.0)] and folders(tmp_path) == ["step-000002"]


def test_the_manifest_is_written_last_and_lists_every_file(tmp_path, monkeypatch):
    write, watched = durable.write, []

    def watch(path, text):
        if path.name == "manifest.json":
            assert sorted(os.listdir(path.parent)) == ["model.pt", "optimizer.pt", "state.json"]
            assert path.parent.name.startswith(checkpoint.TEMPORARY)
            assert sorted(json.loads(text)["files"]) == ["model.pt", "optimizer.pt", "state.json"]
            watched.append(path)
        return write(path, text)

    monkeypatch.setattr(durable, "write", watch)
    save(tmp_path, 1)
    assert len(watched) == 1


def test_files_and_folders_are_synced_before_they_are_pointed_at(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))),
                                                     fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("replace", b.name)), replace(a, b)))
    save(tmp_path, 1)
    moved = events.index(("replace", "step-000001"))
    assert {name for _, name in events[:moved]} == {"model.pt", "optimizer.pt", "state.json", "manifest.json", ".writing-step-000001"}
    assert events[moved + 1:] == [("sync", "checkpoints"), ("sync", ".writing-last"), ("replace", "last"),
                                  ("sync", "checkpoints")]


# ── faults while writing ─────────────────────────────────────────────────────────────────────────


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def torch_full_disk(*_, **__):
    raise RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0\nmore lines")


def on_call(wanted, real):
    """`real`, failing at the `wanted`-th call."""
    count = iter(range(1, 100))
    return lambda *args: full_disk() if next(count) == wanted else real(*args)


FAULTS = {
    "torch.save": lambda m: m.setattr(torch, "save", full_disk),
    "torch.save, as torch says it": lambda m: m.setattr(torch, "save", torch_full_disk),
    "fsync of a file": lambda m: m.setattr(os, "fsync", on_call(2, os.fsync)),
    "rename of the folder": lambda m: m.setattr(os, "replace", on_call(1, os.replace)),
    "rename of the first pointer": lambda m: m.setattr(os, "replace", on_call(2, os.replace)),
    "rename of the second pointer": lambda m: m.setattr(os, "replace", on_call(3, os.replace)),
}


@pytest.mark.parametrize("fail", FAULTS.values(), ids=FAULTS)
def test_a_full_disk_leaves_the_checkpoint_before_and_says_so(tmp_path, fail):
    save(tmp_path, 1, best=True)
    with pytest.MonkeyPatch.context() as patch:
        fail(patch)
        with pytest.raises(UserError) as caught:
            save(tmp_path, 2, best=True)
    message = str(caught.value)
    assert "step-000002: the checkpoint cannot be written: " in message and "\n" not in message
    assert "no space left" in message and "enforce fail" not in message
    assert value_of(tmp_path, "last") == 1
    assert value_of(tmp_path, "best") in (1, 2)  # either one, but a whole one
    assert not [f for f in folders(tmp_path) if f.startswith(checkpoint.TEMPORARY)]
    save(tmp_path, 2, best=True, value=2.0)  # and with room again it goes on
    assert value_of(tmp_path, "last") == value_of(tmp_path, "best") == 2 and folders(tmp_path) == ["step-000002"]


class Killed(BaseException):
    """A stop that nothing catches, as SIGKILL is."""


@pytest.mark.parametrize("moment", range(15))
def test_a_kill_at_any_moment_leaves_a_whole_last_whose_best_is_at_least_as_good(tmp_path, monkeypatch, moment):
    """Dies at the `moment`-th of the 15 file operations of a save that improved."""
    save(tmp_path, 1, best=True)
    count = iter(range(100))

    def dying(real):
        def call(*args, **kwargs):
            if next(count) == moment:
                raise Killed
            return real(*args, **kwargs)
        return call

    with monkeypatch.context() as patch:
        for module, name in ((torch, "save"), (os, "fsync"), (os, "replace")):
            patch.setattr(module, name, dying(getattr(module, name)))
        with pytest.raises(Killed):
            save(tmp_path, 2, best=True)
    last, best = value_of(tmp_path, "last"), value_of(tmp_path, "best")
    assert last in (1, 2) and best >= last  # never a `last` that remembers a better `best` than there is
    save(tmp_path, 3)
    assert value_of(tmp_path, "last") == 3 and not [f for f in folders(tmp_path) if f.startswith(checkpoint.TEMPORARY)]


def test_what_a_dead_run_left_half_written_is_no_checkpoint_and_goes(tmp_path):
    save(tmp_path, 1)
    half = tmp_path / "checkpoints" / ".writing-step-000002"
    shutil.copytree(tmp_path / "checkpoints" / "step-000001", half)
    (tmp_path / "checkpoints" / "step-000002").mkdir()
    assert value_of(tmp_path) == 1
    save(tmp_path, 3)
    assert folders(tmp_path) == ["step-000003"]


def test_a_step_saved_again_replaces_the_orphan_of_that_step(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "checkpoints" / "step-000001", tmp_path / "checkpoints" / "step-000002")
    save(tmp_path, 2, value=5.0)
    assert value_of(tmp_path) == 5 and folders(tmp_path) == ["step-000002"]


def test_an_unwritable_place_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="step-000001: the checkpoint cannot be written: not a directory"):
        save(tmp_path / "file", 1)


# ── faults while reading ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["model.pt", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b" ", lambda b: b[:9] + bytes([b[9] ^ 1]) + b[10:]])
def test_a_damaged_file_is_refused_by_name(tmp_path, name, damage):
    place = save(tmp_path, 1)
    (place / name).write_bytes(damage((place / name).read_bytes()))
    with pytest.raises(UserError, match=f"{name}: differs from the checkpoint's manifest"):
        checkpoint.verify(place)


def test_a_missing_file_and_a_broken_manifest_are_refused(tmp_path):
    place = save(tmp_path, 1)
    (place / "optimizer.pt").unlink()
    with pytest.raises(UserError, match="the checkpoint is incomplete: .*optimizer.pt: no such file"):
        checkpoint.verify(place)
    for broken in ("", "[]", "{}", '{"files": 3}', '{"files": [1]}'):
        (place / "manifest.json").write_text(broken, encoding="utf-8")
        with pytest.raises(UserError, match="manifest.json: is no manifest"):
            checkpoint.verify(place)
    (place / "manifest.json").unlink()
    with pytest.raises(UserError, match="last: points at step-000001, which is no complete checkpoint"):
        checkpoint.find(tmp_path)


@pytest.mark.parametrize("content", ["../../elsewhere/checkpoints/step-000001", "/etc", "..", ".", "",
                                     "../checkpoints/..", "step-9"])
def test_a_pointer_cannot_lead_out_of_its_folder(tmp_path, content):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    save(elsewhere, 1)
    save(run, 7)
    for trap in (run, run / "checkpoints"):  # what `..` and `.` would lead to
        (trap / "manifest.json").write_text('{"files": {}}', encoding="utf-8")
    (run / "checkpoints" / "last").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"last: (points at .*which is no complete checkpoint|is empty)"):
        checkpoint.find(run)


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize("content", [b"\xff\xfe", b"step-000007\0", b"step-" + b"0" * 5000, "a folder"])
def test_a_pointer_that_is_none_is_one_line_and_nothing_goes(tmp_path, name, content):
    save(tmp_path, 7, best=True)
    pointer = tmp_path / "checkpoints" / name
    pointer.unlink()
    pointer.mkdir() if content == "a folder" else pointer.write_bytes(content)
    for ask in (lambda: checkpoint.find(tmp_path, name), lambda: checkpoint.clean(tmp_path)):
        with pytest.raises(UserError, match=f"checkpoints/{name}: .*; delete it, and training goes on") as caught:
            ask()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert folders(tmp_path) == ([name] if content == "a folder" else []) + ["step-000007"]


@pytest.mark.parametrize("name", ["model.pt", "optimizer.pt", "state.json"])
def test_a_manifest_has_to_list_what_is_loaded(tmp_path, name):
    place = save(tmp_path, 1)
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    del manifest["files"][name]
    (place / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match=f"manifest.json: lists no {name}"):
        checkpoint.verify(place)


def test_garbage_however_deep_is_one_line(tmp_path):
    place = save(tmp_path, 1)
    for garbage in (b"[" * 100_000, b"\xff", b"7", b""):
        for name, ask in (("manifest.json: is no manifest", checkpoint.verify),
                          ("state.json: is no state", checkpoint.read_state)):
            (place / name.partition(":")[0]).write_bytes(garbage)
            with pytest.raises(UserError, match=name):
                ask(place)
    (place / "state.json").unlink()
    with pytest.raises(UserError, match="state.json: cannot be read: no such file"):
        checkpoint.read_state(place)


def test_a_state_of_another_shape_or_kind_is_refused(tmp_path):
    place = save(tmp_path, 1)
    with pytest.raises(UserError, match="step-000001: does not fit the model of its config.toml: .*size mismatch"):
        checkpoint.restore(place, "model", torch.nn.ParameterDict({"w": torch.zeros(5)}))
    with pytest.raises(UserError, match="does not fit the optimizer"):
        checkpoint.restore(place, "optimizer", torch.optim.AdamW([torch.zeros(2)]))


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_fault_that_says_nothing_is_told_by_its_kind(tmp_path):
    place = save(tmp_path, 1)
    (place / "model.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"model.pt: cannot be loaded: \w+"):
        checkpoint.read_tensors(place, "model")


def test_a_file_that_the_manifest_does_not_list_is_not_read(tmp_path):
    """It was compared with nothing; and model.pt would go before model-0-of-1.pt."""
    place = save(tmp_path, 1)
    os.rename(place / "model.pt", place / "model-0-of-1.pt")
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["files"]["model-0-of-1.pt"] = manifest["files"].pop("model.pt")
    (place / "manifest.json").write_text(json.dumps(manifest))
    torch.save({"w": torch.zeros(1)}, place / "model.pt")
    checkpoint.verify(place)
    assert value_of(tmp_path) == 1


def test_a_step_that_is_no_number_is_no_state(tmp_path):
    place = save(tmp_path, 1)
    for state in ('{"step": "1"}', '{"step": -3}', '{"step": 1%s}' % ("0" * 20), '{"step": 1, "best": "x"}', '{"step": 1, "best": NaN}', '{"step": 1, "best": [1]}',
                  '{"step": 1, "best_step": "x"}', '{"step": 1, "evaluations_without_gain": null}', '{"step": true}'):
        (place / "state.json").write_text(state)
        with pytest.raises(UserError, match="state.json: is no state of a run"):
            checkpoint.read_state(place)


@pytest.mark.parametrize("key, value", [("recipe", []), ("labels", [1]), ("labels", None), ("surroundings", 3), ("scaler", "x"), ("changes", {})])
def test_a_part_of_another_kind_is_no_state(tmp_path, key, value):
    place = save(tmp_path, 1)
    (place / "state.json").write_text(json.dumps({"step": 1, key: value}))
    with pytest.raises(UserError, match="state.json: is no state of a run"):
        checkpoint.read_state(place)


def test_where_no_other_checkpoint_is_left_nobody_is_sent_to_one(tmp_path):
    place = save(tmp_path, 1)
    (place / "manifest.json").unlink()
    with pytest.raises(UserError, match="delete it to begin the run anew, for it has no other checkpoint; or put one back"):
        checkpoint.find(tmp_path)
    save(tmp_path / "other", 2).rename(place.with_name("step-000002"))
    with pytest.raises(UserError, match="delete it, and training goes on from the newest whole checkpoint"):
        checkpoint.find(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_a_pipe_for_a_pointer_is_not_waited_for(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "last").unlink()
    os.mkfifo(tmp_path / "checkpoints" / "last")
    with pytest.raises(UserError, match="last: is no file; delete it"):
        checkpoint.find(tmp_path)


def test_a_checkpoint_goes_under_another_name_first(tmp_path, monkeypatch):
    """Who is killed, or looks, meanwhile, finds no half of one."""
    gone = []
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda folder, **_: gone.append(folder.name))
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert ".writing-gone-step-000001" in gone and "step-000001" not in gone
    assert [p.name for p in checkpoint.steps(tmp_path)] == ["step-000002"]
    monkeypatch.undo()
    checkpoint.recover(tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["last", "step-000002"]


def test_a_copy_beside_the_checkpoints_is_not_cleaned_away(tmp_path):
    place = save(tmp_path, 1)
    copy = place.with_name("step-000001-before-change")
    copy.mkdir()
    save(tmp_path, 2)
    assert copy.is_dir() and not place.exists()


@pytest.mark.parametrize("before", [1, None])
def test_a_best_that_is_newer_than_last_is_what_it_was_then(tmp_path, before):
    """As a kill between the two pointers leaves it: `best` names step 2, `last` still step 1."""
    first = save(tmp_path, 1, best=before is not None)
    for _ in range(2):
        newer = first.with_name("step-000002")
        shutil.copytree(first, newer, dirs_exist_ok=True)
        checkpoint.point(first.with_name("best"), newer.name)
        checkpoint.point_back(tmp_path, first, before)
        assert checkpoint.find(tmp_path, "best") == (first if before else None)
    save(tmp_path, 2, best=True)
    checkpoint.point_back(tmp_path, newer, before)
    assert checkpoint.find(tmp_path, "best") == newer


@pytest.mark.filterwarnings("error")  # the library warns of such a file by two lines of its own
@pytest.mark.parametrize("dump", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_malicious_pickle_is_refused_and_nothing_is_executed(tmp_path, dump):
    place = save(tmp_path, 1)
    proof, weapon = tmp_path / "executed", place / "model.pt"
    dump({"w": Malice(proof)}, weapon)
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"]["model.pt"] = checkpoint._facts(weapon)  # the attacker knows how to count
    (place / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    checkpoint.verify(place)
    with pytest.raises(UserError, match="model.pt: cannot be loaded") as caught:
        checkpoint.read_tensors(place, "model")
    assert not proof.exists() and "\n" not in str(caught.value)
    pickle.loads(pickle.dumps(Malice(proof)))  # the weapon is loaded: other loaders would have made the folder
    assert proof.exists()
