"""What the whole suite shares: a small vocabulary, and two tiny runs made once by the scripts themselves."""

import json
import os
import random
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # what is multiplied here is tiny, and two test workers share two cores

import axes
import pytest

axes.install()  # before the first import of what it measures

from running import TINY_FINETUNE, TINY_PRETRAIN, Outcome, in_process

import finetune
import train
from minialpaca.data.instructions import PROMPT_WITH_INPUT, PROMPT_WITHOUT_INPUT
from minialpaca.tokenizer import Tokenizer


def fsync(descriptor: int) -> None:
    """No file of a test in this process has to outlive a power failure, and thousands of saves would wait for the disk."""


os.fsync = fsync  # what counts or fails it puts its own in its place

NAMES = ("Mira", "Tolen", "Velusk", "Bado", "Kira", "Somar")
ITEMS = ("lamp", "rope", "bell", "map", "coin")


def sentences(n: int, seed: int = 0) -> list[str]:
    """Plain sentences, some with characters of two, three and four bytes."""
    rng = random.Random(seed)
    tail = ("", "", "", " Café!", " 漢字.", " 😀")
    return [f"{rng.choice(NAMES)} has {rng.randrange(2, 99)} {rng.choice(ITEMS)}s.{rng.choice(tail)}" for _ in range(n)]


def alpaca_rows(n: int, seed: int = 0) -> list[dict]:
    """Questions that differ pairwise, half of them with an input; answers of different lengths."""
    rng = random.Random(seed)
    return [{"instruction": f"How many {rng.choice(ITEMS)}s? ({i})", "input": rng.choice(NAMES) if i % 2 else "",
             "output": " and ".join(str(rng.randrange(99)) for _ in range(1 + i % 4)),
             "kind": "odd" if i % 2 else "even"}
            for i in range(n)]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte pairs of a small text in which the Alpaca prompts are common."""
    return Tokenizer.train([*sentences(300), *[PROMPT_WITH_INPUT, PROMPT_WITHOUT_INPUT] * 50], "bpe", 512)


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> Path:
    """A folder with story.txt (a line is a document) and alpaca.json."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "story.txt").write_text("\n".join(sentences(400)) + "\n", encoding="utf-8")
    (folder / "alpaca.json").write_text(json.dumps(alpaca_rows(40)), encoding="utf-8")
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(6, seed=1)),
                                       encoding="utf-8")
    (folder / "pretrain.toml").write_text(TINY_PRETRAIN, encoding="utf-8")
    (folder / "finetune.toml").write_text(TINY_FINETUNE, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def pretrain_command(sources) -> list[str]:
    """The arguments of train.py for a tiny run; `run.dir=…` is still to come."""
    return [str(sources / "pretrain.toml"), f"data.source={sources / 'story.txt'}"]


@pytest.fixture(scope="session")
def pretrained(pretrain_command, tmp_path_factory) -> Path:
    """A finished run of train.py. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "pretrain"
    in_process(train.main, [*pretrain_command, f"run.dir={folder}"])
    return folder


OBJECTIVES = {"masked": "encoder", "span": "encoder_decoder"}


@pytest.fixture(scope="session")
def objective_command(pretrain_command) -> dict[str, list[str]]:
    """The arguments of train.py for the objectives that hide something."""
    return {name: [*pretrain_command, f"objective.name={name}", f"model.architecture={architecture}"]
            for name, architecture in OBJECTIVES.items()}


@pytest.fixture(scope="session")
def hiding(objective_command, tmp_path_factory) -> dict[str, tuple[Path, Outcome]]:
    """A finished run of train.py for each of them, and what it said. Read only."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}
    for name, arguments in objective_command.items():
        runs[name] = folder / name, in_process(train.main, [*arguments, f"run.dir={folder / name}"])
    return runs


@pytest.fixture(scope="session")
def finetune_command(sources, pretrained) -> list[str]:
    return [str(sources / "finetune.toml"), f"data.source={sources / 'alpaca.json'}", f"base.run={pretrained}",
            f"data.test_source={sources / 'test.jsonl'}"]


@pytest.fixture(scope="session")
def tuned(finetune_command, tmp_path_factory) -> Path:
    """A finished run of finetune.py on top of `pretrained`. Read only."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    in_process(finetune.main, [*finetune_command, f"run.dir={folder}"])
    return folder
