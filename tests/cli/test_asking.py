"""generate, chat and the answers that a run keeps."""

import json
import os

from commands import is_no_run, pretrain, tune
from conftest import OBJECTIVES, alpaca_rows
import pytest
from running import module, refused

from minialpaca import chat, config, generate, run
from minialpaca.config import Sampling
from minialpaca.data.instructions import PROMPTS_ID
from minialpaca.storage import checkpoint
from minialpaca.tokenizer import Tokenizer


def test_generate_answers_each_instruction_or_goes_on_with_a_text(tuned, pretrained, monkeypatch):
    outcome = module(generate.main, monkeypatch, tuned, "How many?", "How?", "--input", "x", "--max-new-tokens", "3")
    assert outcome.code == 0 and outcome.err == "" and outcome.out.count("\n") >= 2
    assert outcome == module(generate.main, monkeypatch, tuned, "How many?", "How?", "--input", "x",
                             "--max-new-tokens", "3")
    assert module(generate.main, monkeypatch, pretrained, "Mira has", "--checkpoint", "last", "--temperature",
                  "1").code == 0


def test_several_texts_are_told_apart_and_a_limit_beyond_the_context_is_the_context(tuned, pretrained, monkeypatch):
    for folder in (tuned, pretrained):
        alone = [module(generate.main, monkeypatch, folder, text, "--max-new-tokens", "1000").out
                 for text in ("Mira has", "How\tmany?")]
        assert module(generate.main, monkeypatch, folder, "Mira has").out == alone[0]
        together = module(generate.main, monkeypatch, folder, "Mira has", "How\tmany?")
        assert together.out == f"> Mira has\n{alone[0]}\n> How\tmany?\n{alone[1]}"


def test_a_pretrained_run_shows_texts_that_go_on_and_a_tuned_one_answers(pretrain_command, tmp_path, tuned, monkeypatch):
    outcome = pretrain(pretrain_command, tmp_path / "run", "train.steps=1", 'samples.prompts=["Mira has", "Bado"]')
    one, other = outcome.out.split("\n\n")[-3:-1]
    goes_on = module(generate.main, monkeypatch, tmp_path / "run", "Mira has", "--max-new-tokens", "4").out
    assert f"{one}\n" == f"Mira has|{goes_on}" and other.startswith("Bado|")


@pytest.mark.parametrize("main", [generate.main, chat.main])
def test_help_gives_each_setting_of_the_sampling_a_sentence_and_its_default(monkeypatch, main):
    outcome = module(main, monkeypatch, "--help")
    assert outcome.code == 0 and outcome.err == ""
    said = "".join(outcome.out.split())
    for name, sentence in config.field_docs(Sampling).items():
        assert "".join(f"{sentence} (default {getattr(Sampling(), name)})".split()) in said
        assert f"--{name.replace('_', '-')}" in said
    assert "anywhereintheprompt" in said and "nevermorethanthecontexthasroomfor" in said and "(defaultbest)" in said


@pytest.mark.parametrize("arguments, said", [
    (["a " * 300], ["the prompt has ", "tokens where the context holds 96; shorten it"]),
    (["a", "b", "a " * 300], ["the prompt has "]),
    (["a", "--seed", "9" * 30], ["must lie in 0 …"]),
    (["a", "--max-new-tokens", "0"], ["--max-new-tokens 0: must be at least 1"]),
    (["a", "--temperature", "-1"], ["temperature = -1.0: must be finite and not negative"]),
    (["a", "--top-p", "2"], ["top_p = 2.0: must lie in 0 … 1"]),
    (["a", "--device", "cuda:99"], ["this machine has"]),
])
def test_what_cannot_be_asked_is_one_line(tuned, monkeypatch, arguments, said):
    outcome = module(generate.main, monkeypatch, tuned, *arguments)
    refused(outcome, *said)
    assert outcome.out == ""


@pytest.mark.parametrize("main", [generate.main, chat.main])
def test_a_folder_that_is_no_run_is_one_line(tmp_path, monkeypatch, main):
    arguments = ["x"] if main is generate.main else []
    for folder in (tmp_path, tmp_path / "nowhere"):
        refused(module(main, monkeypatch, folder, *arguments), f"{folder}: is no run folder")


def test_a_run_that_was_tuned_with_other_prompts_is_not_asked(tuned, pretrained, monkeypatch):
    """Template drift: Stanford's prompt ends without a newline, alpaca-lora's with one."""
    assert checkpoint.read_state(checkpoint.find(tuned, "best"))["prompts"] == PROMPTS_ID
    assert "prompts" not in checkpoint.read_state(checkpoint.find(pretrained, "best"))
    monkeypatch.setattr(run, "PROMPTS_ID", "0123456789abcdef")
    refused(module(generate.main, monkeypatch, tuned, "Name a colour."), "was tuned with other prompts than this version of minialpaca asks with")
    refused(module(chat.main, monkeypatch, tuned), "was tuned with other prompts")
    assert module(generate.main, monkeypatch, pretrained, "Mira has", "--max-new-tokens=2").code == 0


def test_a_pretraining_run_takes_no_input_and_does_not_chat(pretrained, monkeypatch):
    refused(module(generate.main, monkeypatch, pretrained, "x", "--input", "y"),
            "is a pretraining run, which knows no --input")
    refused(module(chat.main, monkeypatch, pretrained), "is a pretraining run and follows no instructions")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_does_not_go_on_with_a_text_is_refused_by_all_that_would_ask_it_to(hiding, finetune_command, tmp_path,
                                                                                monkeypatch, name):
    folder, _ = hiding[name]
    said = f"{folder}: holds an {OBJECTIVES[name]}, which does not go on with a text; give a run with model.architecture"
    refused(module(generate.main, monkeypatch, folder, "Mira has"), said)
    refused(module(chat.main, monkeypatch, folder), said)
    refused(tune(finetune_command, tmp_path / "run", f"base.run={folder}"), said)
    assert is_no_run(tmp_path / "run")


def test_chat_answers_line_by_line_and_a_fault_is_not_the_end(tuned, monkeypatch):
    lines = ["/help", "/show", "/set temperature=0.5", "/show", "/set warmth=1", "a " * 300, "/input Mira",
             "How many?", "/quit", "never"]
    outcome = module(chat.main, monkeypatch, tuned, "--max-new-tokens", "3", stdin="\n".join(lines) + "\n")
    assert outcome.code == 0
    said = outcome.err.splitlines()
    assert len(said) == 2 and "/set warmth: unknown" in said[0] and "the prompt has" in said[1]
    assert "temperature=0.0" in outcome.out and "temperature=0.5" in outcome.out and "/input TEXT" in outcome.out
    answer = module(generate.main, monkeypatch, tuned, "How many?", "--input", "Mira", "--max-new-tokens", "3",
                    "--temperature", "0.5")
    assert outcome.out.endswith(answer.out)  # the same prompt as generate's
    assert module(chat.main, monkeypatch, tuned, stdin="").code == 0  # the end of the input leaves, too


def test_the_test_answers_are_kept_and_marked(tuned):
    records = [json.loads(line) for line in (tuned / "test_answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["instruction"], r["output"]) for r in records] == [(r["instruction"], r["output"])
                                                                  for r in alpaca_rows(6, seed=1)]
    assert all(r["right"] == (r["answer"] == r["output"]) for r in records)


def test_a_run_folder_holds_what_the_design_says(pretrained, tuned):
    for folder in (pretrained, tuned):
        assert {"config.toml", "tokenizer.model", "metrics.jsonl", "tensorboard",
                "checkpoints"} <= set(os.listdir(folder))
        steps = [json.loads(line)["step"]
                 for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        assert steps == list(range(7))
    one, other = (config.load(form, folder / "config.toml") for form, folder in
                  ((config.PretrainConfig, pretrained), (config.FinetuneConfig, tuned)))
    assert one.model.vocab_size == other.model.vocab_size == Tokenizer.load(pretrained / "tokenizer.model").vocab_size


def test_a_draft_changes_nothing_of_what_is_said_and_has_to_fit(tuned, pretrained, pretrain_command, objective_command, tmp_path, monkeypatch):
    plain = [module(generate.main, monkeypatch, tuned, "How many?", *how) for how in ((), ("--repetition-penalty", "1.4"))]
    for draft in (pretrained, tuned):
        for how, said in zip(((), ("--repetition-penalty", "1.4")), plain):
            assert module(generate.main, monkeypatch, tuned, "How many?", "--draft", draft, "--draft-tokens", "3", *how) == said
    assert module(generate.main, monkeypatch, tuned, "How many?", "--draft", tuned, "--int8") == plain[0]
    spoken = module(chat.main, monkeypatch, tuned, "--draft", pretrained, stdin="How many?\n")
    assert spoken.code == 0 and spoken.out == module(chat.main, monkeypatch, tuned, stdin="How many?\n").out
    refused(module(generate.main, monkeypatch, tuned, "Hi", "--draft", pretrained, "--draft-tokens", "0"), "--draft-tokens 0: must be at least 1")
    refused(module(generate.main, monkeypatch, tuned, "Hi", "--draft-tokens", "7"), "--draft-tokens 7: is how far a draft runs ahead; name one with --draft")
    refused(module(generate.main, monkeypatch, tuned, "Hi", "--draft", tmp_path), f"{tmp_path}: is no run folder")
    assert pretrain(pretrain_command, tmp_path / "other", "tokenizer.kind=char").code == 0
    refused(module(generate.main, monkeypatch, tuned, "Hi", "--draft", tmp_path / "other"), "has another vocabulary than the model")
    pretrain(objective_command["masked"], tmp_path / "encoder")
    refused(module(generate.main, monkeypatch, tuned, "Hi", "--draft", tmp_path / "encoder"), "holds an encoder")
