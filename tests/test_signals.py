"""Asked to stop: the step ends, is saved, and the same command goes on as if nothing had been."""

import os
import signal
import subprocess
import sys
import time

import pytest
from running import ROOT, json_lines

from minialpaca import signals
from minialpaca.errors import Stopped
from minialpaca.storage import checkpoint

COUNTED = ("step", "loss", "lr", "grad_norm", "val_loss")


def test_before_the_first_step_it_leaves_at_once_and_nothing_stays(pretrain_command, tmp_path):
    process = started([*pretrain_command, "run.device=cpu"], tmp_path / "run")
    for _ in range(600):
        if (tmp_path / "run" / ".lock").exists():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and "SIGTERM: " in said and "Traceback" not in said
    assert not (tmp_path / "run").exists() or checkpoint.find(tmp_path / "run")  # or the steps had begun


def test_outside_of_the_steps_a_request_is_an_exception_and_what_was_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM: stopped outside of the steps"), signals.left():
        with signals.heard():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert signal.getsignal(signal.SIGTERM) is before


def lines(folder):
    return [{k: r[k] for k in COUNTED if k in r} for r in json_lines(folder / "metrics.jsonl")]


def started(command, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *command, f"run.dir={folder}"], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(folder, step, process):
    for _ in range(600):
        with_steps = folder / "metrics.jsonl"
        if with_steps.exists() and len(with_steps.read_text().splitlines()) > step:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    raise AssertionError("no step was taken")


STEPS = 150  # about two seconds: a signal sent after the third step still finds the run at work


@pytest.fixture(scope="module")
def straight(pretrain_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals") / "straight"
    assert started([*pretrain_command, f"train.steps={STEPS}", "train.eval_every=1000"], folder).wait(120) == 0
    return lines(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_the_step_and_goes_on_as_if_it_had_not(pretrain_command, straight, tmp_path, number):
    command = [*pretrain_command, f"train.steps={STEPS}", "train.eval_every=1000"]
    process = started(command, tmp_path / "run")
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and f"{number.name}: the step will end" in said and "stopped after step" in said
    state = checkpoint.read_state(checkpoint.find(tmp_path / "run"))
    steps = lines(tmp_path / "run")
    assert 3 <= state["step"] == steps[-1]["step"] < STEPS
    assert started(command, tmp_path / "run").wait(120) == 0
    assert lines(tmp_path / "run") == straight


def test_handlers_are_put_back_and_the_second_signal_interrupts():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), signals.heard() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked == "SIGTERM"
        os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
