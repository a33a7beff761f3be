"""The classification task: its loss and gradient against loops, its marks whatever the batch size, side or order."""

import dataclasses
import math
import random

import pytest
import spelled
import tiny
import torch
from spelled import listed

from minialpaca import trainer
from minialpaca.classify import classifier
from minialpaca.config import (AdversarialConfig, BaseConfig, ClassesConfig, FinetuneConfig, InstructionConfig, LossConfig,
                               OptimConfig, TaskConfig, TrainConfig)
from minialpaca.data import texts as data_texts
from minialpaca.data.classes import LabelledText
from minialpaca.data.texts import Group, text_ids
from minialpaca.errors import UserError
from minialpaca.objectives import regularised_groups_sum
from minialpaca.tasks import classification
from minialpaca.tasks.classification import Classification, judge, said

WORDS = "river town lives near dog fox lazy quick brown Olten Mirava two spaces numbers naïve 漢字".split()


def rows(n, seed=0):
    """Texts of one to twelve words; a mood, and any number of topics."""
    rng = random.Random(seed)
    return [(" ".join(rng.choice(WORDS) for _ in range(1 + i % 12)) + f" {i}", ("good", "bad", "so-so")[i * i % 7 % 3],
             "|".join(t for k, t in enumerate(("food", "inn")) if (i >> k) % 2)) for i in range(n)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("labelled") / "a.csv"
    path.write_text("text,mood,topic\n" + "".join(f"{t},{m},{p}\n" for t, m, p in rows(40)), encoding="utf-8")
    return str(path)


def settings_of(source, labels=("mood", "topic"), several=("topic",), architecture="decoder", loss=LossConfig(),
                train=TrainConfig(batch_size=8), **classes):
    tokenizer = tiny.tokenizer()
    model = dataclasses.replace(tiny.GQA, vocab_size=tokenizer.vocab_size, architecture=architecture, max_seq_len=70)
    return FinetuneConfig(task=TaskConfig("classification"), data=InstructionConfig((source,), val_fraction=0.4),
                          classes=ClassesConfig(labels=labels, several=several, **classes), model=model, loss=loss,
                          train=train, base=BaseConfig(dropout=0.1 if loss.r_drop else 0.0))


def made(settings):
    task = Classification(settings, tiny.tokenizer())
    return task, classifier(settings, tiny.model(settings.model), task.groups).eval()


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────

LOGITS = [tiny.normal(4, 3) * 2, tiny.normal(4, 5, seed=3) * 2]
OTHERS = [tiny.normal(4, 3, seed=4) * 2, tiny.normal(4, 5, seed=5) * 2]
ONE_EACH = [torch.tensor([2, 0, 1, 1]), torch.tensor([4, 0, 3, 3])]


def summed(logits, labels, smoothing=0.0):
    return spelled.label_groups_sum([listed(z) for z in logits], [y.tolist() for y in labels], smoothing)


def test_r_drop_is_half_of_both_losses_and_their_divergence():
    passes = iter((LOGITS, OTHERS))
    how = LossConfig(r_drop=0.7, label_smoothing=0.1)
    divergence = math.fsum((spelled.kl(p, q) + spelled.kl(q, p)) / 2 for one, other in zip(LOGITS, OTHERS)
                           for p, q in zip(map(spelled.softmax, listed(one)), map(spelled.softmax, listed(other))))
    expected = (summed(LOGITS, ONE_EACH, 0.1) + summed(OTHERS, ONE_EACH, 0.1) + 0.7 * divergence) / 2
    found = regularised_groups_sum(lambda: next(passes), ONE_EACH, how, training=True)
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_evaluation_knows_no_regulariser():
    found = regularised_groups_sum(lambda: LOGITS, ONE_EACH, LossConfig(r_drop=0.7, label_smoothing=0.1), training=False)
    assert float(found) == pytest.approx(summed(LOGITS, ONE_EACH))
    found = regularised_groups_sum(lambda: LOGITS, ONE_EACH, LossConfig(label_smoothing=0.1), training=True)
    assert float(found) == pytest.approx(summed(LOGITS, ONE_EACH, 0.1))


@pytest.mark.parametrize("architecture, pooling", [("decoder", "last"), ("encoder", "mean")])
def test_the_gradient_of_a_step_is_the_loops(source, architecture, pooling):
    """∂L/∂W_cd = 1/N Σ_i (p_ic − q_ic) h_id, over two micro-batches of different size, divided once."""
    task, model = made(settings_of(source, architecture=architecture, pooling=pooling))
    model = model.double()
    batches = [task.train.collate(range(5)), task.train.collate(range(5, 8))]
    n = sum(batch.n_supervised for batch in batches)
    assert n == 8
    total = sum(task.loss_sum(model, batch) for batch in batches) / n
    total.backward()
    loss, gradients = 0.0, [torch.zeros_like(head.weight) for head in model.heads]
    for batch in batches:
        hidden = listed(model.backbone.hidden(batch.tokens_BT, batch.real_BT))
        for head, labels, gradient in zip(model.heads, batch.labels, gradients):
            for h_TD, real, right in zip(hidden, batch.real_BT.tolist(), labels.tolist()):
                h = spelled.pooled(h_TD, real, pooling)
                z = spelled.times(listed(head.weight), h)
                loss += spelled.label_groups_sum([[z]], [[right]]) / n
                p = [spelled.sigmoid(v) for v in z] if isinstance(right, list) else spelled.softmax(z)
                q = right if isinstance(right, list) else [float(c == right) for c in range(len(z))]
                gradient += torch.tensor([[(p_c - q_c) * h_d / n for h_d in h] for p_c, q_c in zip(p, q)],
                                         dtype=torch.float64)
    assert float(total.detach()) == pytest.approx(loss, abs=1e-10)
    for head, gradient in zip(model.heads, gradients):
        torch.testing.assert_close(head.weight.grad, gradient, rtol=0, atol=1e-10)
        assert gradient.abs().max() > 1e-3


# ── measuring ────────────────────────────────────────────────────────────────────────────────────

WAYS = [("decoder", "last"), ("encoder", "first"), ("encoder", "mean"), ("encoder", "max")]


def fill_left(rows, pad):
    longest = max(map(len, rows))
    tokens_BT = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in rows])
    real_BT = torch.tensor([[False] * (longest - len(ids)) + [True] * len(ids) for ids in rows])
    return tokens_BT, real_BT


@pytest.mark.parametrize("architecture, pooling", WAYS)
def test_measures_do_not_depend_on_batch_size_padding_side_or_order(source, architecture, pooling, monkeypatch):
    settings = settings_of(source, architecture=architecture, pooling=pooling)
    task, model = made(settings)
    expected = task.evaluate(model, torch.device("cpu"))
    judged = task.judged
    assert len(expected) == 7 and 0 < expected["val_accuracy"] < 1 and judged.numbers == list(range(16))

    def check(found, again, order=slice(None)):
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-6), name
        for p_NC, q_NC in zip(judged.probabilities, again.probabilities):
            torch.testing.assert_close(q_NC, p_NC[order], rtol=0, atol=1e-6)

    for size in (1, 3, 16, 64):
        task.batch_size = size
        check(task.evaluate(model, torch.device("cpu")), task.judged)
    with monkeypatch.context() as patch:
        patch.setattr(data_texts, "fill_right", fill_left)
        task.batch_size = 16
        assert not task.val.collate([0, 11]).real_BT[0, 0]
        check(task.evaluate(model, torch.device("cpu")), task.judged)
    order = list(range(15, -1, -1))
    turned = [task.val.texts[i] for i in order]
    task.val = data_texts.TextExamples(turned, task.groups, tiny.tokenizer(), 70, "raise", "turned")
    check(task.evaluate(model, torch.device("cpu")), task.judged, order)


def test_measures_are_the_counted_ones(source):
    task, model = made(settings_of(source))
    measured = task.evaluate(model, torch.device("cpu"))
    marks, loss = [], 0.0
    for j, group in enumerate(task.groups):
        right, answers = [set(text.labels[j]) for text in task.val.texts], []
        for i, ids in enumerate(task.val.ids):
            z = listed(model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))[j][0])
            number = task.val.targets[j][i].tolist()
            loss += spelled.label_groups_sum([[z]], [[number]]) / len(right)
            answers.append({c for c, v in zip(group.classes, z) if (v > 0 if group.several else v == max(z))})
        marks.append(spelled.marks(right, answers, group.classes))
        assert measured[f"val_accuracy/{group.name}"] == pytest.approx(marks[-1]["accuracy"])
        assert measured[f"val_macro_f1/{group.name}"] == pytest.approx(marks[-1]["macro_f1"])
    assert measured["val_loss"] == pytest.approx(loss, abs=1e-6)
    assert measured["val_accuracy"] == pytest.approx((marks[0]["accuracy"] + marks[1]["accuracy"]) / 2)
    assert measured["val_macro_f1"] == pytest.approx((marks[0]["macro_f1"] + marks[1]["macro_f1"]) / 2)


def test_one_group_has_no_marks_beside_the_mean(source):
    task, model = made(settings_of(source, labels=("mood",), several=()))
    assert set(task.evaluate(model, torch.device("cpu"))) == {"val_loss", "val_accuracy", "val_macro_f1"}


def test_a_limited_evaluation_takes_texts_from_everywhere_and_always_the_same(source):
    task, model = made(settings_of(source, train=TrainConfig(batch_size=2, eval_batches=3)))
    first = task.evaluate(model, torch.device("cpu"))
    numbers = task.judged.numbers
    assert len(numbers) == 6 and numbers == sorted(numbers) and max(numbers) > 6
    for j, (right, _) in enumerate(classification.truths(task.val, task.judged)):
        names = [{c for c, yes in zip(task.groups[j].classes, row) if yes} for row in right.tolist()]
        assert names == [set(task.val.texts[i].labels[j]) for i in numbers]
    assert task.evaluate(model, torch.device("cpu")) == first and task.judged.numbers == numbers


def test_the_mode_is_put_back_and_evaluation_has_no_dropout(source):
    settings = settings_of(source)
    settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, dropout=0.5))
    task, model = made(settings)
    random_state = torch.get_rng_state()
    one, other = (trainer.evaluate(model.train(), task, torch.device("cpu")) for _ in range(2))
    assert one == other and model.training and torch.equal(torch.get_rng_state(), random_state)


def test_of_equals_the_first_class_is_said_and_of_several_none_at_one_half():
    evenly = torch.tensor([[0.5, 0.5], [0.2, 0.8]])
    assert said(Group("g", ("a", "b")), evenly).tolist() == [[True, False], [False, True]]
    assert said(Group("g", ("a", "b"), True), torch.tensor([[0.5, 0.6]])).tolist() == [[False, True]]


# ── texts as numbers ─────────────────────────────────────────────────────────────────────────────


def test_ids_are_the_text_between_its_control_ids_and_the_end_is_cut():
    tokenizer = tiny.tokenizer()
    ids = tokenizer.encode("The quick </s> fox <s>")
    assert text_ids(tokenizer, "The quick </s> fox <s>", len(ids) + 2) == ([tokenizer.bos, *ids, tokenizer.eos], False)
    cut = [tokenizer.bos, *ids[:-1], tokenizer.eos]
    assert text_ids(tokenizer, "The quick </s> fox <s>", len(ids) + 1) == (cut, True)
    assert not {tokenizer.bos, tokenizer.eos} & set(ids)


def test_batches_carry_each_texts_own_labels_and_an_epoch_takes_each_once(source):
    task, _ = made(settings_of(source))
    by_ids = {tuple(ids): text for ids, text in zip(task.train.ids, task.train.texts)}
    for epoch in range(2):
        seen = []
        for number in range(epoch * 3, epoch * 3 + 3):
            batch = task.batch(number)
            assert batch.n_tokens == int(batch.real_BT.sum()) and batch.n_supervised == 8
            for tokens, real, mood, topics in zip(batch.tokens_BT, batch.real_BT, *batch.labels):
                text = by_ids[tuple(tokens[real].tolist())]
                seen.append(text.text)
                assert (task.groups[0].classes[int(mood)],) == text.labels[0]
                assert {c for c, yes in zip(task.groups[1].classes, topics.tolist()) if yes} == set(text.labels[1])
        assert sorted(seen) == sorted(text.text for text in task.train.texts)
    assert task.batches_per_epoch() == 3
    assert [g.classes for g in task.groups] == [("bad", "good", "so-so"), ("food", "inn")]


def test_a_batch_travels_with_its_labels(source):
    task, _ = made(settings_of(source))
    batch = task.batch(0).to(torch.device("meta"))
    tensors = (batch.tokens_BT, batch.real_BT, *batch.labels)
    assert {t.device.type for t in tensors} == {"meta"} and len(tensors) == 4


def test_class_numbers_follow_numbers_or_letters(tmp_path):
    for labels, order in ((["10", "9", "2"], ("2", "9", "10")), (["b", "10", "a"], ("10", "a", "b"))):
        lines = "".join(f"t{i},{labels[i % 3]}\n" for i in range(30))
        (tmp_path / "a.csv").write_text(f"text,label\n{lines}", encoding="utf-8")
        task, _ = made(settings_of(str(tmp_path / "a.csv"), labels=("label",), several=()))
        assert task.groups[0].classes == order


# ── what means nothing ───────────────────────────────────────────────────────────────────────────

REFUSED = {
    "first in a decoder": ({"pooling": "first"}, "classes.pooling = 'first': a decoder's first token"),
    "R-Drop of several": ({"loss": LossConfig(r_drop=1.0)}, "loss.r_drop = 1.0: is defined for single-label groups"),
    "smoothing of nothing": ({"labels": ("topic",), "loss": LossConfig(label_smoothing=0.1)}, "loss.label_smoothing"),
}


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED)
def test_settings_that_mean_nothing_are_refused(source, change, message):
    with pytest.raises(UserError, match=message):
        made(settings_of(source, **change))


def test_pooling_follows_the_architecture(source):
    for architecture, how in (("decoder", "last"), ("encoder", "mean")):
        assert classification.pooling_of(settings_of(source, architecture=architecture)) == how
        assert made(settings_of(source, architecture=architecture))[1].pooling == how


def test_judging_is_in_the_order_of_the_texts(source):
    task, model = made(settings_of(source))
    judged = judge(model, task.val, torch.device("cpu"), 4)
    for i in (0, 7, 15):
        ids = torch.tensor([task.val.ids[i]])
        p = model(ids, torch.ones_like(ids, dtype=torch.bool))[0].softmax(-1)[0].double()
        torch.testing.assert_close(judged.probabilities[0][i], p.detach(), rtol=0, atol=1e-6)


# ── texts without labels ─────────────────────────────────────────────────────────────────────────


def with_unlabelled(source, tmp_path, texts):
    place = tmp_path / "unlabelled.txt"
    place.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return dataclasses.replace(settings_of(source, labels=("mood",), several=()),
                               adversarial=AdversarialConfig("vat", unlabelled=(str(place),)))


def test_texts_without_labels_stand_beside_the_labelled_and_none_of_them_is_marked_later(source, tmp_path, capsys):
    task, _ = made(settings_of(source, labels=("mood",), several=()))
    marked = task.val.texts[0].text
    task, _ = made(with_unlabelled(source, tmp_path, ["a new text", "a new text", "  another  ", marked, "", "the third of them"]))
    kept = [tiny.tokenizer().decode(ids[1:-1]) for ids in task.unlabelled.ids]
    assert sorted(kept) == ["a new text", "another", "the third of them"]
    assert "1 unlabelled text stands in the validation split too" in capsys.readouterr().out
    seen = [row.tolist() for number in range(3) for row in task.batch(number).unlabelled.tokens_BT]
    assert {tuple(t for t in row if t != 3) for row in seen} == set(map(tuple, task.unlabelled.ids))


def test_the_views_are_what_the_model_says_of_both(source, tmp_path):
    task, model = made(with_unlabelled(source, tmp_path, ["a new text", "another"]))
    batch = task.batch(0).to(torch.device("cpu"))
    (labelled, real), (unlabelled, other) = task.views(model, batch)
    assert torch.equal(labelled()[0], model(batch.tokens_BT, batch.real_BT)[0]) and real is batch.real_BT
    assert torch.equal(unlabelled()[0], model(batch.unlabelled.tokens_BT, batch.unlabelled.real_BT)[0])
    assert len(other) == 2 and other is batch.unlabelled.real_BT


def test_a_step_of_virtual_training_weighs_every_text_alike(source, tmp_path):
    """By hand: c L + a (1/N') Σ KL over the texts of both micro-batches, labelled and not."""
    task, model = made(with_unlabelled(source, tmp_path, [f"text number {i}" for i in range(19)]))
    found = []

    class Watching:
        notes = ("loss",)

        def backward(self, passes):
            found.append([(view.share, len(view.real_BT)) for view in passes.views])
            passes.loss().backward()
            return {"loss": torch.zeros(())}

    trainer.Trainer(model, task, OptimConfig(), TrainConfig(steps=1, accumulation=3), 0, tmp_path, attack=Watching()).take_step()
    assert sum(n for views in found for _, n in views) == 24 + 19
    assert {share for views in found for share, _ in views} == {1 / 43}


def test_classes_that_a_split_lacks_are_named(capsys):
    """Macro-F1 counts them 0, over however many classes."""
    group = Group("mood", tuple("abcdefghijklmn"))
    data_texts.TextExamples([LabelledText(f"text {c}", ((c,),)) for c in "abcdefghijkl"], [group], tiny.tokenizer(), 70, "raise", "validation")
    assert "    mood: no text here is m, n, and so each such class has F1 = 0 in the mean\n" in capsys.readouterr().out
    data_texts.TextExamples([LabelledText(f"text {c}", ((c,),)) for c in group.classes], [group], tiny.tokenizer(), 70, "raise", "validation")
    assert "no text here" not in capsys.readouterr().out
