"""finetune.py and python -m minialpaca.classify with labelled texts, from the command line."""

import json
import random
import shutil
import sys

import pytest
import torch
from commands import tune
from running import in_process, json_lines, module, refused
from test_resume import assert_equal, metrics

import finetune
import train
from minialpaca import chat, check, classify, evaluate, generate, merge, run
from minialpaca.config import FinetuneConfig, load
from minialpaca.data.splits import split_texts
from minialpaca.storage import checkpoint
from minialpaca.trainer import Trainer

TINY = """
[run]
device = "cpu"
[task]
name = "classification"
[data]
val_fraction = 0.2
[optim]
lr = 0.02
warmup_steps = 2
[train]
steps = 6
batch_size = 8
eval_every = 2
best_by = "val_macro_f1"
"""

THINGS = {"food": ("soup", "cake"), "place": ("inn", "room")}
MOODS = {"good": ("lovely", "fine"), "bad": ("awful", "dull")}


def rows(n, seed=0):
    rng = random.Random(seed)
    found = []
    for i in range(n):
        mood, topic, name = ("good", "bad")[i % 2], ("food", "place")[i // 2 % 2], rng.choice(("Mira", "Bado", "Kira"))
        text = f"The {rng.choice(THINGS[topic])} of {name} was {rng.choice(MOODS[mood])} {seed}/{i}."
        found.append((text, mood, topic))
    return found


def table(path, found):
    path.write_text("text,mood,topic\n" + "".join(",".join(row) + "\n" for row in found), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    table(folder / "train.csv", rows(60))
    table(folder / "test.csv", rows(20, seed=1))
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def command(folder, pretrained):
    """One group, with a test split; `run.dir=…` is still to come."""
    return [str(folder / "tiny.toml"), f"data.source={folder / 'train.csv'}", f"data.test_source={folder / 'test.csv'}",
            f"base.run={pretrained}", "classes.labels=mood"]


@pytest.fixture(scope="module")
def encoder(pretrain_command, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "encoder"
    outcome = in_process(train.main, [*pretrain_command, f"run.dir={run}", "model.architecture=encoder",
                                      "objective.name=masked", "train.steps=2"])
    assert outcome.code == 0, outcome.err
    return run


@pytest.fixture(scope="module")
def labelled(command, tmp_path_factory):
    """A finished run with two groups. Read only."""
    run = tmp_path_factory.mktemp("runs") / "labelled"
    outcome = tune(command, run, 'classes.labels=["mood", "topic"]', "train.steps=30", "train.eval_every=10")
    assert outcome.code == 0, outcome.err
    return run, outcome


# ── success ──────────────────────────────────────────────────────────────────────────────────────


def test_two_groups_are_learned_and_everything_is_kept(labelled, folder):
    run, outcome = labelled
    assert {".lock", "config.toml", "tokenizer.model", "labels.json", "metrics.jsonl", "tensorboard", "checkpoints",
            "test_marks.json", "test_predictions.jsonl"} == {path.name for path in run.iterdir()}
    assert json.loads((run / "labels.json").read_text()) == {"mood": ["bad", "good"], "topic": ["food", "place"]}
    last = metrics(run)[-1]
    assert {"val_loss", "val_accuracy", "val_macro_f1", "val_accuracy/mood", "val_macro_f1/topic"} <= set(last)
    assert last["val_accuracy"] == pytest.approx((last["val_accuracy/mood"] + last["val_accuracy/topic"]) / 2)
    assert last["val_macro_f1"] > 0.8 > metrics(run)[0]["val_macro_f1"]
    for said in ("training: 48 texts", "validation: 12 texts", "test: 20 texts", "mood: bad 24, good 24", "test, mood",
                 "test, topic"):
        assert said in outcome.out, said


def test_the_predictions_give_the_marks(labelled, folder):
    run, _ = labelled
    found, marks = json_lines(run / "test_predictions.jsonl"), json.loads((run / "test_marks.json").read_text())
    assert [(r["text"], r["right"]["mood"][0], r["right"]["topic"][0]) for r in found] == rows(20, seed=1)
    assert [r["place"] for r in found[:2]] == [f"{folder / 'test.csv'}, row 2", f"{folder / 'test.csv'}, row 3"]
    for group in ("mood", "topic"):
        assert marks["groups"][group]["accuracy"] == sum(r["said"][group] == r["right"][group] for r in found) / 20
        for r in found:
            p = r["probabilities"][group]
            assert sum(p.values()) == pytest.approx(1) and r["said"][group] == [max(p, key=p.get)]


def test_the_best_weights_are_the_ones_that_are_marked(labelled):
    run, _ = labelled
    best = checkpoint.find(run, "best")
    state = checkpoint.read_state(best)
    judged = [r for r in metrics(run) if "val_macro_f1" in r]
    first = next(r for r in judged if r["val_macro_f1"] == max(r["val_macro_f1"] for r in judged))
    assert state["best"] == first["val_macro_f1"] and best.name == f"step-{first['step']:06}"
    labeller = classify.load_labeller(run)
    found = json_lines(run / "test_predictions.jsonl")
    for group, p_NC in zip(("mood", "topic"), labeller([r["text"] for r in found], batch_size=3)):
        kept = [list(r["probabilities"][group].values()) for r in found]
        torch.testing.assert_close(p_NC, torch.tensor(kept, dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_last_weights_are_not_the_ones_that_are_marked(command, tmp_path):
    outcome = tune(command, tmp_path / "run", "optim.lr=3", "optim.warmup_steps=0", "train.best_by=val_loss",
                   "train.steps=2")
    assert outcome.code == 0 and checkpoint.find(tmp_path / "run", "best").name == "step-000000"
    kept = [list(r["probabilities"]["mood"].values()) for r in json_lines(tmp_path / "run" / "test_predictions.jsonl")]
    best, last = (classify.load_labeller(tmp_path / "run", which)([text for text, _, _ in rows(20, seed=1)])[0]
                  for which in ("best", "last"))
    kept = torch.tensor(kept, dtype=torch.float64)
    assert (kept - best).abs().max() < 1e-6 and (kept - last).abs().max() > 0.1


def test_tensorboard_shows_classes_and_confusion(labelled):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(labelled[0] / "tensorboard")).Reload().Tags()
    assert tags["images"] == ["confusion/mood", "confusion/topic"]
    shown = {f"{kind}/{group}/text_summary" for kind in ("classes", "confusion") for group in ("mood", "topic")}
    assert shown <= set(tags["tensors"])
    assert {"val_accuracy", "val_macro_f1", "val_macro_f1/mood"} <= set(tags["scalars"])


def test_a_classifier_is_asked(labelled, monkeypatch, tmp_path):
    run, _ = labelled
    outcome = module(classify.main, monkeypatch, run, "The soup was lovely.", "The inn was awful.")
    assert outcome.code == 0 and outcome.err == ""
    lines = [line.split("\t") for line in outcome.out.splitlines()]
    assert [line[2] for line in lines] == ["The soup was lovely.", "The inn was awful."]
    assert lines[0][0].startswith("mood: good 0.") and lines[1][0].startswith("mood: bad 0.")
    assert lines[0][1].startswith("topic: food 0.") and lines[1][1].startswith("topic: place 0.")
    (tmp_path / "a.txt").write_bytes("The soup was lovely.\r\nThe inn was awful.\r\n".encode("utf-16"))
    again = module(classify.main, monkeypatch, run, "--file", tmp_path / "a.txt", "--encoding", "utf-16")
    assert again.out == outcome.out
    assert module(classify.main, monkeypatch, run, "--checkpoint", "last", "word " * 500).code == 0


@pytest.mark.parametrize("pooling", ["auto", "first"])
def test_an_encoder_is_tuned_too(command, encoder, tmp_path, monkeypatch, pooling):
    outcome = tune(command, tmp_path / "run", f"base.run={encoder}", f"classes.pooling={pooling}")
    assert outcome.code == 0 and "test, mood" in outcome.out
    assert module(classify.main, monkeypatch, tmp_path / "run", "The soup was lovely.").out.startswith("mood: ")


def test_several_labels_random_weights_and_no_test_split(command, tmp_path, monkeypatch):
    topics = ("food", "place", "food|place", "")
    source = table(tmp_path / "a.csv", [(text, mood, topics[i % 4]) for i, (text, mood, _) in enumerate(rows(40))])
    outcome = tune(command, tmp_path / "run", f"data.source={source}", "data.test_source=[]", "base.weights=random",
                   "classes.labels=topic", "classes.several=topic", "loss.l2=0.001", "base.dropout=0.1")
    assert outcome.code == 0, outcome.err
    assert "validation, topic" in outcome.out and "test, topic" not in outcome.out
    found = json_lines(tmp_path / "run" / "validation_predictions.jsonl")
    assert [] in [r["right"]["topic"] for r in found]
    assert all(r["said"]["topic"] == [c for c, p in r["probabilities"]["topic"].items() if p > 0.5] for r in found)
    assert module(classify.main, monkeypatch, tmp_path / "run", "x").out.startswith("topic: ")


def test_the_worlds_reviews_can_be_learned_offline(command, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "base")
    toml = tmp_path / "base" / "config.toml"
    settings = toml.read_text(encoding="utf-8")
    source = settings.partition("\nsource = ")[2].partition("\n")[0]
    toml.write_text(settings.replace(source, '["world"]'), encoding="utf-8")
    outcome = tune(command, tmp_path / "run", f"base.run={tmp_path / 'base'}", "data.source=world",
                   "data.test_source=[]", 'classes.labels=["sentiment", "subject"]', "train.steps=1")
    assert outcome.code == 0 and "training: 800 texts" in outcome.out and "test, sentiment" in outcome.out


def test_patience_stops_early_on_the_chosen_measure(command, tmp_path):
    outcome = tune(command, tmp_path / "run", "optim.lr=1e-12", "train.steps=20", "train.patience=2",
                   "train.best_by=val_accuracy")
    assert outcome.code == 0 and "stopped early: 2 evaluations without a better val_accuracy" in outcome.out
    assert checkpoint.read_state(checkpoint.find(tmp_path / "run"))["step"] == 4


def test_a_classifier_is_a_base_for_another(command, labelled, tmp_path):
    outcome = tune(command, tmp_path / "run", f"base.run={labelled[0]}", "optim.lr=1e-9", "train.steps=1")
    assert outcome.code == 0, outcome.err
    tuned, base = (checkpoint.read_tensors(checkpoint.find(run, "best"), "model")
                   for run in (tmp_path / "run", labelled[0]))
    for name in ("backbone.embed.weight", "backbone.layers.0.attn.q_proj.weight"):
        torch.testing.assert_close(tuned[name], base[name], rtol=0, atol=1e-6)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(command, tmp_path, monkeypatch):
    changes = ["base.dropout=0.3", "train.save_every=3", "train.accumulation=2", "loss.r_drop=0.5",
               "loss.label_smoothing=0.1"]
    assert tune(command, tmp_path / "straight", *changes).code == 0
    real = Trainer.take_step
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", lambda self: real(self) if self.state["step"] < 5 else sys.exit(9))
        assert tune(command, tmp_path / "run", *changes).code == 9
    assert "step 4 of 6, going on" in tune(command, tmp_path / "run", *changes).out
    assert metrics(tmp_path / "run") == metrics(tmp_path / "straight")
    for stem in ("model", "optimizer"):
        assert_equal(*(checkpoint.read_tensors(checkpoint.find(tmp_path / name), stem) for name in ("run", "straight")))
    for name in ("test_predictions.jsonl", "test_marks.json", "labels.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


# ── bad input ────────────────────────────────────────────────────────────────────────────────────

BAD = {
    "no such column": ([], "text,class\na,1\n", ["a.csv: there is no column 'mood' among 'text', 'class'"]),
    "an empty text": ([], "text,mood\na,1\n ,0\n", ["a.csv: 1 bad record: row 3: the text is empty"]),
    "an empty label": ([], "text,mood\na,1\nb,\n", ["a.csv: 1 bad record: row 3: 'mood' is empty"]),
    "a wrong encoding": ([], "text,mood\na,1\ncafé,0\n".encode("latin-1"),
                         ["a.csv, line 3: is not UTF-8", "set classes.encoding"]),
    "fewer labels than heads": (['classes.labels=["mood", "topic"]'], "text,mood\na,1\n",
                                ["a.csv: there is no column 'topic'"]),
    "fewer labels in a row": (['classes.labels=["mood", "topic"]'], "text,mood,topic\na,1,2\nb,1\n",
                              ["row 3: has 2 cells where"]),
    "one class": (["data.val_fraction=0"], "text,mood\na,1\nb,1\n",
                  ["label group 'mood': the training texts have 1 class ('1') where at least 2"]),
    "no label at all": (["classes.several=mood", "data.val_fraction=0"], "text,mood\na,\nb,\n",
                        ["have 0 classes where at least 1"]),
    "no data": ([], "text,mood\n", ["a.csv: holds no labelled texts"]),
    "an empty file": ([], "", ["a.csv: is empty"]),
    "only leaks": (["data.val_source={source}"], "text,mood\na,1\nb,0\n",
                   ["every training text stands in the validation split too"]),
    "a leak that may not be": (["data.val_source={source}", "classes.leaks=raise"], "text,mood\na,1\nb,0\n",
                               ["2 training texts stand in the validation split too: ", "a.csv, row 2 = "]),
    "too long": (["classes.over_long=raise", "data.val_fraction=0"], "text,mood\n" + "word " * 200 + ",1\nb,0\n",
                 ["training: 1 texts do not fit the context of 96 tokens: ", "a.csv, row 2;"]),
    "nothing to hold out": ([], "text,mood\na,1\nb,0\n", ["data.val_fraction = 0.2: holds out 0 of 2"]),
    "first of a decoder": (["classes.pooling=first"], "text,mood\na,1\nb,0\n",
                           ["classes.pooling = 'first': a decoder's first token"]),
    "R-Drop of several": (["classes.several=mood", "loss.r_drop=1", "base.dropout=0.1"], "text,mood\na,1\nb,0\n",
                          ["loss.r_drop = 1.0: is defined for single"]),
    "a context of nothing": (["base.max_seq_len=2"], "text,mood\na,1\nb,0\n", ["base.max_seq_len = 2"]),
    "no such pooling": (["classes.pooling=median"], "text,mood\na,1\nb,0\n",
                        ["classes.pooling = 'median': use auto, last, first, mean or max"]),
    "no such encoding": (["classes.encoding=klingon"], "text,mood\na,1\nb,0\n",
                         ["classes.encoding = 'klingon': is no encoding"]),
    "no such measure": (["train.best_by=val_f1"], "text,mood\na,1\nb,0\n",
                        ["train.best_by = 'val_f1': use val_loss, val_accuracy"]),
}


@pytest.mark.parametrize("changes, content, said", BAD.values(), ids=BAD)
def test_bad_labelled_texts_are_one_line_and_leave_no_run(command, tmp_path, changes, content, said):
    source = tmp_path / "data" / "a.csv"
    source.parent.mkdir()
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    changes = [change.format(source=source) for change in changes]
    refused(tune(command, tmp_path / "run", f"data.source={source}", "data.test_source=[]", *changes), *said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split, name", [("val", "validation"), ("test", "test")])
def test_a_label_that_is_not_in_the_training_set_is_named(command, tmp_path, split, name):
    source = table(tmp_path / "b.csv", [("x", "good", "food"), ("y", "odd", "food"), ("z", "Bad", "food")])
    refused(tune(command, tmp_path / "run", f"data.{split}_source={source}"),
            f"{name}: 2 labels are not in the training set: {source}, row 3: 'odd' of 'mood'; {source}, row 4: 'Bad' ")
    assert not (tmp_path / "run").exists()


def test_a_class_that_leaves_with_the_leaks_is_missed(command, tmp_path):
    source = table(tmp_path / "a.csv", [("a", "good", "food"), ("b", "bad", "food"), ("c", "odd", "food")])
    val = table(tmp_path / "b.csv", [("c", "odd", "food"), ("d", "good", "food")])
    refused(tune(command, tmp_path / "run", f"data.source={source}", f"data.val_source={val}"),
            f"validation: 1 label is not in the training set: {val}, row 2: 'odd' of 'mood'")
    assert not (tmp_path / "run").exists()


def test_leaks_are_said_and_a_measure_that_another_task_has_is_refused(command, finetune_command, folder, tmp_path):
    leaking = table(tmp_path / "a.csv", rows(60) + rows(20, seed=1)[:3])
    outcome = tune(command, tmp_path / "leaking", f"data.source={leaking}", "train.steps=1", "data.val_fraction=0.3")
    assert outcome.code == 0 and "in the test split too: " in outcome.out
    assert f"= {folder / 'test.csv'}, row " in outcome.out
    places = {t.text for t in split_texts(load(FinetuneConfig, tmp_path / "leaking" / "config.toml")).train}
    assert not places & {text for text, _, _ in rows(20, seed=1)}
    refused(in_process(finetune.main, [*finetune_command, f"run.dir={tmp_path / 'run'}", "train.best_by=val_accuracy"]),
            "train.best_by = 'val_accuracy': this task measures val_loss")
    assert not (tmp_path / "run").exists()


def test_a_base_without_what_is_needed_leaves_no_run(command, finetune_command, encoder, labelled, pretrained,
                                                     tmp_path):
    shutil.copytree(pretrained, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "checkpoints")
    refused(tune(command, tmp_path / "run", f"base.run={tmp_path / 'bare'}"), "its 'best' weights are untrained yet")
    for base, said in ((encoder, "holds an encoder, which does not go on"), (labelled[0], "holds a classifier, which")):
        outcome = in_process(finetune.main, [*finetune_command, f"run.dir={tmp_path / 'run'}", f"base.run={base}"])
        refused(outcome, f"{base}: {said}")
    toml = tmp_path / "bare" / "config.toml"
    toml.write_text(toml.read_text().replace('"decoder"', '"encoder_decoder"').replace('"causal"', '"span"'))
    refused(tune(command, tmp_path / "run", f"base.run={tmp_path / 'bare'}"), "holds an encoder_decoder, which has no")
    assert not (tmp_path / "run").exists()


def test_other_classes_in_an_existing_run_are_refused_and_touch_nothing(command, tmp_path):
    source = table(tmp_path / "a.csv", rows(60))
    changes = [f"data.source={source}", "train.steps=2"]
    assert tune(command, tmp_path / "run", *changes).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    table(source, [(text, mood.upper(), topic) for text, mood, topic in rows(60)])
    refused(tune(command, tmp_path / "run", *changes, "data.test_source=[]"), "another recipe (data.test_source")
    table(tmp_path / "a.csv", rows(60) + [("new", "odd", "food")])
    refused(tune(command, tmp_path / "run", *changes), "the data are not those that this run began with")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize("arguments, said", [
    ([], "give texts, none of them empty, or --file"), ([" "], "give texts, none of them empty"),
    (["--file", "/nowhere.txt"], "/nowhere.txt: cannot be read"),
    (["--file", __file__, "--encoding", "klingon"], "'klingon': is no encoding"), (["x", "--device", "cuda:99"], "this machine has"),
])
def test_what_cannot_be_labelled_is_one_line(labelled, monkeypatch, arguments, said):
    assert module(classify.main, monkeypatch, labelled[0], *arguments).out == ""
    refused(module(classify.main, monkeypatch, labelled[0], *arguments), said)


def test_files_and_folders_that_cannot_be_asked_are_one_line(labelled, pretrained, tuned, monkeypatch, tmp_path):
    (tmp_path / "a.txt").write_bytes("a\ncafé\n".encode("latin-1"))
    asked = labelled[0], "--file", tmp_path / "a.txt"
    refused(module(classify.main, monkeypatch, *asked), "a.txt, line 2: is not UTF-8", "set --encoding")
    (tmp_path / "a.txt").write_text("a\n\nb\n \n")
    refused(module(classify.main, monkeypatch, *asked), "a.txt: 2 bad records: line 2: is empty; line 4: is empty")
    for run in (pretrained, tuned):
        refused(module(classify.main, monkeypatch, run, "x"), f"{run}: holds no classifier")
    refused(module(classify.main, monkeypatch, tmp_path, "x"), f"{tmp_path}: is no run folder")
    refused(module(generate.main, monkeypatch, labelled[0], "x"), "holds a classifier", "python -m minialpaca.classify")
    refused(module(chat.main, monkeypatch, labelled[0]), "holds a classifier")
    shutil.copytree(labelled[0], tmp_path / "run")
    (tmp_path / "run" / "labels.json").write_text("[]")
    refused(module(classify.main, monkeypatch, tmp_path / "run", "x"), "labels.json: is missing or damaged")


# ── few parameters ───────────────────────────────────────────────────────────────────────────────


def test_an_adapter_labels_and_merged_it_labels_the_same_without_its_base(command, tmp_path, monkeypatch):
    outcome = tune(command, tmp_path / "run", "adapter.method=lora", "optim.lr=0.05", "train.steps=10")
    assert outcome.code == 0, outcome.err
    said = module(classify.main, monkeypatch, tmp_path / "run", "The lovely soup.", "The dull inn.")
    merged = module(merge.main, monkeypatch, tmp_path / "run", tmp_path / "out")
    assert merged.code == 0 and float(merged.out.split()[-1]) < 1e-5
    assert said.code == 0 and module(classify.main, monkeypatch, tmp_path / "out", "The lovely soup.", "The dull inn.").out == said.out


@pytest.mark.parametrize(("change", "said"), [
    ("adapter.targets=lm_head", "adapter.targets: 'lm_head' matches no Linear of layers ':'; there are attn.q_proj,"),
    ("adapter.also=head", "adapter.also: 'head' matches nothing here; there are embedding, norm"),
    ("adapter.also=bias", "adapter.also: 'bias' matches nothing here; there are embedding, norm")])
@pytest.mark.parametrize("method", ["lora", "dora", "adalora"])
def test_what_a_classifier_never_calls_cannot_be_adapted(command, tmp_path, method, change, said):
    pruning = ["adapter.interval=1", "train.steps=12"] if method == "adalora" else []
    refused(tune(command, tmp_path / "run", f"adapter.method={method}", *pruning, change), said)
    assert not (tmp_path / "run").exists()


# ── what the numbers of the heads mean ───────────────────────────────────────────────────────────


@pytest.fixture
def copied(labelled, tmp_path):
    shutil.copytree(labelled[0], tmp_path / "copied")
    return tmp_path / "copied"


@pytest.mark.parametrize("content", [b"", b'{"', b"\xff\xfe\x00", b"[" * 100_000, b'{"mood": ["a", "a"], "topic": ["b"]}', b'{"mood": [1, 2], "topic": ["b"]}',
                                     b'{"mood": "ab", "topic": ["b"]}', b'{"mood": ["good", "bad"]}', b"[]"],
                         ids=["empty", "cut", "no text", "deep", "twice", "numbers", "no list", "a group less", "no object"])
def test_damaged_labels_are_a_line_and_made_anew_by_the_command_that_the_line_names(copied, labelled, monkeypatch, content):
    right = (labelled[0] / "labels.json").read_bytes()
    (copied / "labels.json").write_bytes(content)
    refused(module(classify.main, monkeypatch, copied, "Fine soup."), "labels.json: is missing or damaged; let finetune.py go on with this run once")
    classify.keep_labels(copied, classify.read_groups(labelled[0], run.settings_of(copied).classes))
    assert (copied / "labels.json").read_bytes() == right
    assert module(classify.main, monkeypatch, copied, "Fine soup.").code == 0


@pytest.mark.parametrize("asked", [classify.main, check.main, evaluate.main])
def test_labels_and_pooling_that_the_checkpoint_has_not_learned_are_refused(copied, monkeypatch, asked):
    labels = json.loads((copied / "labels.json").read_text())
    (copied / "labels.json").write_text(json.dumps({name: classes[::-1] for name, classes in labels.items()}))
    arguments = [copied, "Fine soup."] if asked is classify.main else [copied]
    refused(module(asked, monkeypatch, *arguments), "labels.json: has other classes than the checkpoint has learned")
    (copied / "labels.json").write_text(json.dumps(labels))
    toml = (copied / "config.toml").read_text()
    (copied / "config.toml").write_text(toml.replace('pooling = "auto"', 'pooling = "max"'))
    refused(module(asked, monkeypatch, *arguments), "classes.pooling = 'max', and the checkpoint was trained with 'last'; put that back")


def test_merged_it_is_refused_as_well(command, tmp_path, monkeypatch):
    tune(command, tmp_path / "run", "adapter.method=lora")
    (tmp_path / "run" / "labels.json").write_text('{"mood": ["good", "bad"]}')
    refused(module(merge.main, monkeypatch, tmp_path / "run", tmp_path / "out"), "labels.json: has other classes than the checkpoint has learned")
    assert not (tmp_path / "out").exists()
