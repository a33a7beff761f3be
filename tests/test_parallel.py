"""Two processes with different numbers of tokens do what one does with all of them."""

import os
import subprocess
import sys

import pytest
import torch
from running import ROOT, json_lines
from two_ranks import COMBINATIONS, weights_of

from minialpaca import parallel, run
from minialpaca.errors import UserError


def torchrun(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # two processes, and perhaps one GPU
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(ROOT / "tests" / "two_ranks.py", out)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("adapter, attack", COMBINATIONS)
def test_two_processes_equal_one_on_the_joined_batch(together, tmp_path, adapter, attack):
    weights, records = weights_of(tmp_path, adapter, attack)
    assert any(r.get("skipped_steps", 0) == 1 for r in records) == (attack == "overflow")
    for found, noted in (rank[f"{adapter}-{attack}"] for rank in together):
        for name, tensor in weights.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-10, msg=name)
        for one, other in zip(records, noted, strict=True):
            assert other == pytest.approx(one, rel=1e-9, abs=1e-12)


def test_more_processes_than_gpus_are_one_line(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda *how, **more: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"this machine has 1 CUDA devices, one for each process; start fewer \(torchrun --nproc-per-node\)"):
        parallel.start()


def test_one_gpu_by_name_is_none_for_several_processes(monkeypatch):
    monkeypatch.setattr(parallel, "size", lambda: 2)
    with pytest.raises(UserError, match="run.device = 'cuda:1': each of 2 processes needs a device of its own; use auto or cuda"):
        run.pick_device("cuda:1")


def test_the_device_that_is_picked_is_the_current_one(monkeypatch):
    """Streams and events that are asked for by nobody's name belong to the current one."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert run.pick_device("cuda:1") == torch.device("cuda:1") == chosen[0]
    assert run.pick_device("cpu") == torch.device("cpu") and len(chosen) == 1


def test_torchrun_trains_one_run_and_goes_on_with_it(pretrain_command, tmp_path):
    """The log has each step once, and the same command again, in one process, goes on as if it had been two."""
    folder = tmp_path / "run"
    command = [*pretrain_command, f"run.dir={folder}", "train.accumulation=1", "train.save_every=1"]
    done = torchrun(ROOT / "train.py", *command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("best validation loss") == 1
    steps = [record["step"] for record in json_lines(folder / "metrics.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == 6


def test_what_the_first_process_refuses_is_said_without_tracebacks(pretrain_command, tmp_path):
    """It has found the fault while the other waits for its folder."""
    done = torchrun(ROOT / "train.py", *pretrain_command, f"run.dir={tmp_path / 'run'}", "adversarial.method=matrix")
    assert done.returncode and "error: adversarial.method = 'matrix': the embedding is the output head, too" in done.stderr
    assert "RuntimeError" not in done.stderr and "[rank1]" not in done.stderr and not (tmp_path / "run").exists()


def test_a_fault_of_the_second_process_in_mid_training_ends_both_and_is_said(tmp_path):
    (tmp_path / "failing").mkdir()
    done = torchrun(ROOT / "tests" / "two_ranks.py", tmp_path / "failing")
    assert done.returncode and "error: rows.json: the second process cannot read it" in done.stderr
    assert "RuntimeError" not in done.stderr and "[rank" not in done.stderr


def test_answers_of_yes_and_no_are_counted(monkeypatch):
    monkeypatch.setattr(parallel.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda total: total.add_(total.clone()))  # two processes that say the same
    assert parallel.summed([True, False, 3]) == [2, 0, 6] and parallel.summed([True]) == [2]


def test_alone_nothing_travels():
    assert (parallel.rank(), parallel.size(), parallel.is_first()) == (0, 1, True)
    assert parallel.summed([3, 4]) == [3, 4] and parallel.from_first(lambda: 7) == 7
    numbers = {"loss": torch.ones(())}
    assert parallel.add_up([], numbers) is numbers
