"""A repeatable run: what it needs is looked at, and where that cannot be had it does not begin."""

import numpy as np
import pytest
import torch
from running import in_process, json_lines, refused

import train
from minialpaca import determinism
from minialpaca.errors import UserError
from minialpaca.storage import checkpoint
from minialpaca.tasks.pretrain import CausalLM

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    torch.use_deterministic_algorithms(False)


def run(command, folder, *changes):
    return in_process(train.main, [*command, f"run.dir={folder}", "train.deterministic=true", *changes])


def test_it_tries_a_step_out_and_trains_as_without(pretrain_command, pretrained, tmp_path):
    outcome = run(pretrain_command, tmp_path / "run")
    assert outcome.code == 0 and outcome.out.count("computed twice is equal to the bit") == 1
    assert torch.are_deterministic_algorithms_enabled()
    weights = [torch.load(checkpoint.find(f) / "model.pt", weights_only=True) for f in (tmp_path / "run", pretrained)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert [r["loss"] for r in json_lines(tmp_path / "run" / "metrics.jsonl") if "loss" in r] == \
           [r["loss"] for r in json_lines(pretrained / "metrics.jsonl") if "loss" in r]
    assert checkpoint.read_state(checkpoint.find(tmp_path / "run"))["surroundings"] == determinism.surroundings(CPU)
    again = run(pretrain_command, tmp_path / "run")
    assert again.code == 0 and "finished" in again.out and "computed twice" not in again.out


@pytest.mark.parametrize("name, value", [("torch", "1.0"), ("threads", 1000), ("processes", 7), ("device", "cuda (A)")])
def test_it_goes_on_in_the_same_surroundings_only(pretrain_command, tmp_path, monkeypatch, name, value):
    folder = tmp_path / "run"
    run(pretrain_command, folder)
    there = determinism.surroundings(CPU) | {name: value}
    monkeypatch.setattr(determinism, "surroundings", lambda device, n_parts: there)
    refused(run(pretrain_command, folder), "other surroundings", f"{name}: ", f" → {value}")


def test_two_gradients_of_one_step_are_refused(pretrain_command, tmp_path, monkeypatch):
    true, chance = CausalLM.loss_sum, np.random.default_rng(0)
    monkeypatch.setattr(CausalLM, "loss_sum", lambda self, model, batch: true(self, model, batch) * (1 + 1e-6 * chance.random()))
    refused(run(pretrain_command, tmp_path / "run"), "computed twice has two gradients")


def test_an_operation_without_a_repeatable_algorithm_is_named(pretrain_command, tmp_path, monkeypatch):
    true = CausalLM.loss_sum

    def putting(self, model, batch):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))  # PyTorch knows no repeatable one where places may repeat
        return true(self, model, batch)

    monkeypatch.setattr(CausalLM, "loss_sum", putting)
    refused(run(pretrain_command, tmp_path / "run"), "train.deterministic = true: put_", "does not have a deterministic")


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="^shapes$"), determinism.explained():
        raise RuntimeError("shapes")


def test_what_cublas_needs_is_set_or_asked_for(monkeypatch):
    monkeypatch.delenv(determinism.WORKSPACE, raising=False)
    determinism.prepare(True, CUDA)
    assert determinism.os.environ[determinism.WORKSPACE] == ":4096:8"
    monkeypatch.setenv(determinism.WORKSPACE, ":16:8")
    determinism.prepare(True, CUDA)
    monkeypatch.setenv(determinism.WORKSPACE, ":0:0")
    determinism.prepare(True, CPU)
    with pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG=:0:0; unset it"):
        determinism.prepare(True, CUDA)
    with pytest.raises(UserError, match="set run.device=cpu"):
        determinism.prepare(True, torch.device("mps"))


def test_what_is_not_asked_for_is_switched_off():
    determinism.prepare(True, CPU)
    determinism.prepare(False, CPU)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("first, second, same", [([1.0, float("nan")], [1.0, float("nan")], True), ([0.0], [-0.0], False),
                                                 ([1.0], None, False), (None, None, True)])
def test_gradients_are_compared_as_bits_and_go_again(first, second, same, capsys):
    p, grads = torch.nn.Parameter(torch.zeros(len(first or [0]))), iter([first, second])

    def backward():
        assert p.grad is None
        found = next(grads)
        p.grad = None if found is None else torch.tensor(found)

    if same:
        determinism.try_out(backward, [p])
        assert "equal to the bit" in capsys.readouterr().out
    else:
        with pytest.raises(UserError, match="two gradients"):
            determinism.try_out(backward, [p])
    assert p.grad is None
