"""Files cut off, with flipped bits, of another kind: one line and nothing changed, or a run that ends (benchmarks/broken_inputs.py)."""

import shutil

import pytest
from running import refusal

from benchmarks import broken_inputs
from minialpaca import run
from minialpaca.tokenizer import Tokenizer

CASES = 60  # `python -m benchmarks.broken_inputs` takes a thousand


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What the cases read, whole, and the place where they read it."""
    folder = tmp_path_factory.mktemp("broken")
    broken_inputs.make_stage(folder / "stage")
    shutil.copytree(folder / "stage", folder / "whole")
    return folder / "whole", folder / "stage"


@pytest.mark.parametrize("number", range(CASES))
def test_what_is_broken_is_refused_in_one_line_or_read_right(places, number):
    _, verdict, what = broken_inputs.case(number, *places)
    assert verdict in ("refused", "ran"), what


def test_the_cases_are_of_every_kind(places):
    """Whole files are read without complaint by every reader, so that a refusal is the breaking's doing."""
    whole, stage = places
    for name, reader in broken_inputs.readers(stage).items():
        shutil.rmtree(stage)
        shutil.copytree(whole, stage)
        assert broken_inputs.outcome_of(reader) == (0, "", ""), name


def test_an_empty_tokenizer_is_refused_before_sentencepiece_sees_it(tmp_path, capfd):
    (tmp_path / "t.model").touch()
    refusal(lambda: Tokenizer.load(tmp_path / "t.model"), "t.model: is empty")
    assert capfd.readouterr().err == ""


def test_an_emptied_config_of_a_run_is_not_taken_for_the_defaults(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run")
    (tmp_path / "run" / run.CONFIG).write_text("")
    refusal(lambda: run.settings_of(tmp_path / "run"), "config.toml: says no model.vocab_size")
