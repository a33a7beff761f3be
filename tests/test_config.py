"""Settings: read back as written, and every impossible one refused by its name."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minialpaca import config
from minialpaca.config import (
    AdapterConfig,
    AdversarialConfig,
    BaseConfig,
    ClassesConfig,
    CorpusConfig,
    FinetuneConfig,
    InstructionConfig,
    LossConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    SampleConfig,
    TaskConfig,
    TokenizerConfig,
    TrainConfig,
    load,
    to_toml,
)
from minialpaca.config.adapting import ADAPTERS, ATTACKS, ATTACKS_USE, USED_BY
from minialpaca.errors import UserError

FORMS = (PretrainConfig, FinetuneConfig)
SECTIONS = (RunConfig, CorpusConfig, InstructionConfig, TokenizerConfig, ModelConfig, ObjectiveConfig, LossConfig, AdapterConfig,
            AdversarialConfig, TaskConfig, ClassesConfig, BaseConfig, OptimConfig, TrainConfig, SampleConfig)
FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    return path


# ── round trip ───────────────────────────────────────────────────────────────────────────────────

CONTROL = "".join(map(chr, range(1, 32))) + "\x7f\x80\x85\u2028\ufeff\"'\\#[]="
TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), st.sampled_from(CONTROL)))
NAME = TEXT.filter(str.strip)


@st.composite
def pretrain_configs(draw) -> PretrainConfig:
    heads, pairs = draw(st.integers(1, 8)), draw(st.integers(1, 16))
    positive = st.floats(1e-30, 1e30)
    return PretrainConfig(
        run=RunConfig(dir=draw(NAME), seed=draw(st.integers(0, 2**32 - 1))),
        data=CorpusConfig(source=tuple(draw(st.lists(NAME, min_size=1, max_size=3))), documents=draw(NAME),
                          val_source=tuple(draw(st.lists(NAME, max_size=2))), text_field=draw(NAME),
                          val_fraction=draw(st.floats(0, 1, exclude_min=True, exclude_max=True))),
        tokenizer=TokenizerConfig(path=draw(TEXT)),
        model=ModelConfig(d_model=heads * pairs * 2, n_heads=heads, tie_embeddings=draw(st.booleans()),
                          rope_theta=draw(st.floats(1.1, 1e9)), init_std=draw(positive)),
        optim=OptimConfig(lr=draw(positive), min_lr_ratio=draw(st.floats(0, 1)), weight_decay=0.0),
        train=TrainConfig(epochs=draw(positive)),
        samples=SampleConfig(prompts=tuple(draw(st.lists(TEXT, max_size=3)))))


@settings(deadline=None, max_examples=100)
@given(written_config=pretrain_configs())
def test_what_is_written_reads_back_equal(tmp_path_factory, written_config):
    path = tmp_path_factory.getbasetemp() / "roundtrip.toml"
    path.write_text(to_toml(written_config), encoding="utf-8")
    assert load(PretrainConfig, path) == written_config


@pytest.mark.parametrize("form", FORMS)
def test_the_defaults_read_back_equal(form, tmp_path):
    assert load(form) == form()
    assert load(form, written(tmp_path, to_toml(form()))) == form()
    assert load(form, written(tmp_path, "")) == form()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_config_file_loads_and_begins_with_its_command(path):
    """The command names the file itself, and the script whose form the file has."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    command = re.fullmatch(r"# python (train|finetune)\.py (configs/[\w-]+\.toml)( .*)?", first)
    assert command and command[2] == f"configs/{path.name}"
    right, wrong = FORMS if command[1] == "train" else FORMS[::-1]
    loaded = load(right, path)
    assert loaded != right() and load(right, path, []) == loaded
    with pytest.raises(UserError):
        load(wrong, path, ["base.run=x"] if wrong is PretrainConfig else ["tokenizer.kind=bpe"])


def test_tuning_decays_nothing_but_under_the_public_labelled_sets():
    def decay(path):
        form = PretrainConfig if path.read_text(encoding="utf-8").startswith("# python train.py") else FinetuneConfig
        return form, load(form, path).optim.weight_decay

    found = {path.stem: decay(path) for path in FILES}
    assert {name for name, (form, decay) in found.items() if form is FinetuneConfig and decay} == {"sst2", "phrasebank", "tnews"}
    assert {decay for form, decay in found.values() if form is PretrainConfig or decay} == {0.1}


def test_the_default_config_files_are_there():
    assert {"pretrain.toml", "alpaca.toml"} <= {path.name for path in FILES}


# ── layers ───────────────────────────────────────────────────────────────────────────────────────


def test_overrides_lie_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = written(tmp_path, "[optim]\nlr = 0.5\nbeta1 = 0.25\n[model]\nn_layers = 7\n")
    loaded = load(PretrainConfig, path, ["optim.lr=3e-4", "train.steps=1_000", "optim.lr=2e-4"])
    expected = dataclasses.replace(PretrainConfig(), optim=OptimConfig(lr=2e-4, beta1=0.25),
                                   model=ModelConfig(n_layers=7), train=TrainConfig(steps=1000))
    assert loaded == expected


@pytest.mark.parametrize(("override", "section", "name", "value"), [
    ("optim.lr=1", "optim", "lr", 1.0),
    ("optim.lr = 3e-4", "optim", "lr", 3e-4),
    ("model.tie_embeddings=false", "model", "tie_embeddings", False),
    ("run.dir=2024", "run", "dir", "2024"),
    ("run.dir=runs/a b=c", "run", "dir", "runs/a b=c"),
    ("run.dir='quoted'", "run", "dir", "quoted"),
    ("data.source=a.txt", "data", "source", ("a.txt",)),
    ('data.source=["a.txt", "b.txt"]', "data", "source", ("a.txt", "b.txt")),
    ("samples.prompts=What is 1 + 1?", "samples", "prompts", ("What is 1 + 1?",)),
])
def test_an_override_becomes_a_value_of_its_fields_type(override, section, name, value):
    found = getattr(getattr(load(PretrainConfig, None, [override]), section), name)
    assert found == value and type(found) is type(value)


def test_the_forms_have_defaults_of_their_own():
    assert FinetuneConfig().run.dir != PretrainConfig().run.dir
    assert load(FinetuneConfig, None, ["optim.lr=0.5"]).optim == OptimConfig(lr=0.5, weight_decay=0.0)
    assert load(FinetuneConfig, None, ["train.steps=5"]).train.epochs == 3.0


# ── refusals ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("override", "meant"), [
    ("optim.lrr=1", "optim.lr"), ("optim.weight_deacy=1", "optim.weight_decay"), ("model.n_layer=1", "model.n_layers"),
    ("train.lr=1", "optim.lr"), ("modl.n_heads=2", "model.n_heads"), ("model.max_seq_length=2", "model.max_seq_len"),
])
def test_an_unknown_key_is_refused_with_the_nearest(override, meant, tmp_path):
    key, value = override.split("=")
    message = rf"unknown key {re.escape(key)}; did you mean {re.escape(meant)}\?"
    with pytest.raises(UserError, match=rf"^command line: {message}"):
        load(PretrainConfig, None, [override])
    path = written(tmp_path, f"[{key.split('.')[0]}]\n{key.split('.')[1]} = {value}\n")
    with pytest.raises(UserError, match=rf"c\.toml: {message}"):
        load(PretrainConfig, path)


def test_a_key_like_no_other_points_to_the_help():
    with pytest.raises(UserError, match="unknown key zzz.qqq; run with --help"):
        load(PretrainConfig, None, ["zzz.qqq=1"])


def test_a_key_of_the_other_form_is_unknown():
    with pytest.raises(UserError, match=r"unknown key tokenizer\.kind"):
        load(FinetuneConfig, None, ["tokenizer.kind=bpe"])
    with pytest.raises(UserError, match=r"unknown key base\.run"):
        load(PretrainConfig, None, ["base.run=x"])


def test_a_key_outside_a_section_is_refused(tmp_path):
    with pytest.raises(UserError, match="'lr' stands outside a section; did you mean optim.lr"):
        load(PretrainConfig, written(tmp_path, "lr = 1\n"))


@pytest.mark.parametrize("text", ["optim", "optim.lr", "=3", "optim=3", ".lr=3", "optim.=3", ""])
def test_what_is_no_override_is_refused(text):
    with pytest.raises(UserError, match="is no override; write section.key=value"):
        load(PretrainConfig, None, [text])


@pytest.mark.parametrize(("override", "kind"), [
    ("optim.lr=fast", "a number"), ("optim.lr=true", "a number"), ("optim.lr=", "a number"),
    ("optim.lr=[1]", "a number"), ("train.steps=3.0", "a whole number"), ("train.steps=true", "a whole number"),
    ("train.steps='3'", "a whole number"),
    ("model.tie_embeddings=1", "true or false"), ("model.tie_embeddings=True", "true or false"),
    ("data.source=3.5", "a list of texts"), ("data.source=true", "a list of texts"), ("data.source=[1, 2]", "a list of texts"),
])
def test_a_value_of_the_wrong_type_is_refused_with_the_right_one(override, kind):
    key = override.split("=")[0]
    with pytest.raises(UserError, match=rf"^command line: {re.escape(key)} = .* must be {kind}$"):
        load(PretrainConfig, None, [override])


@pytest.mark.parametrize(("written_as", "meant"), [
    ("1e3", "1e3"), ("true", "true"), ("0x10", "0x10"), ("1_000", "1_000"), ("2024", "2024"), ("a b", "a b"), ("'a'", "a"),
    ('"a\\u00e9"', "aé"), ("a#b", "a#b"),
])
def test_a_text_on_the_command_line_is_what_is_written_there(written_as, meant):
    assert load(PretrainConfig, None, [f"run.dir={written_as}"]).run.dir == meant


@pytest.mark.parametrize("override", ["data.source=", "data.val_source=", 'data.source=["a", " "]'])
def test_a_blank_name_is_refused(override):
    with pytest.raises(UserError, match="one of them is blank"):
        load(PretrainConfig, None, [override])


@pytest.mark.parametrize("override", ["run.dir=a\udcffb", 'run.dir="a\\u0000b"', "data.text_field=\udcff"])
def test_what_no_file_name_can_hold_is_refused(override):
    with pytest.raises(UserError, match="holds a character that no file name or text can hold"):
        load(PretrainConfig, None, [override])


@pytest.mark.parametrize(("override", "said"), [
    (f"train.steps={10**400}", "larger than any machine counts"), (f"optim.warmup_steps={-10**400}", "larger than any machine"),
    (f"optim.lr={10**400}", "optim.lr = inf: must be positive"), ("train.steps=" + "9" * 5000, "must be a whole number"),
    ("optim.lr=" + "[" * 5000, "must be a number"),
])
def test_numbers_beyond_all_bounds_are_refused(override, said):
    with pytest.raises(UserError, match=said):
        load(PretrainConfig, None, [override])


@pytest.mark.parametrize(("form", "name"), [(PretrainConfig, "model.dropout"), (FinetuneConfig, "base.dropout")])
def test_r_drop_without_dropout_is_refused(form, name):
    with pytest.raises(UserError, match=rf"loss\.r_drop = 1\.0: compares two passes with dropout; set {name}"):
        load(form, None, ["loss.r_drop=1"])
    assert load(form, None, ["loss.r_drop=1", f"{name}=0.1"]).loss.r_drop == 1


def test_loras_dropout_tells_two_passes_apart_too():
    assert load(FinetuneConfig, None, ["loss.r_drop=1", "adapter.method=lora", "adapter.dropout=0.1"]).loss.r_drop == 1


def test_a_column_may_have_a_number_for_a_name():
    """classes.header=false classes.labels=1; of a config file a list is asked for, as ever."""
    found = load(FinetuneConfig, None, ["classes.header=false", "classes.labels=1", "classes.text=2"]).classes
    assert (found.labels, found.text) == (("1",), ("2",))
    assert load(FinetuneConfig, None, ['classes.labels=["1", "a"]']).classes.labels == ("1", "a")
    with pytest.raises(UserError, match="must be a list of texts"):
        load(FinetuneConfig, None, ["classes.labels=[1, 2]"])


def test_an_empty_name_is_no_config():
    with pytest.raises(UserError):
        load(PretrainConfig, "")


def test_a_byte_order_mark_is_tolerated_and_too_many_brackets_are_not(tmp_path):
    assert load(PretrainConfig, written(tmp_path, "\ufeff[optim]\nlr = 0.5\n")).optim.lr == 0.5
    for text in ("x = " + "[" * 5000, "x = " + "9" * 5000):
        with pytest.raises(UserError, match="is not valid TOML"):
            load(PretrainConfig, written(tmp_path, text))


def test_a_text_in_a_file_must_be_a_text(tmp_path):
    with pytest.raises(UserError, match=r"c\.toml: run\.dir = 2024 must be a text"):
        load(PretrainConfig, written(tmp_path, "[run]\ndir = 2024\n"))


IMPOSSIBLE = {
    RunConfig: {"dir": ["", "  "], "seed": [-1, 2**32], "resume": ["yes", ""],
                "device": ["gpu", "", "cuda:x", "cuda:", "cuda:-1", "cpu:1", "auto:1", "cuda:1 "]},
    CorpusConfig: {"source": [()], "val_fraction": [0.0, 1.0, -0.1, math.nan], "documents": ["", " "]},
    InstructionConfig: {"source": [()], "val_fraction": [1.0, -0.1, math.nan], "over_long": ["cut", ""]},
    TokenizerConfig: {"kind": ["word", ""], "vocab_size": [0, 263, 1_000_001]},
    ModelConfig: {"architecture": ["gpt", ""], "vocab_size": [-1], "d_model": [0, -6], "n_layers": [0], "n_heads": [0, -1, 7],
                  "n_kv_heads": [-1, 4, 12], "d_ff": [0], "max_seq_len": [0], "dropout": [-0.1, 1.0, math.nan],
                  "rope_theta": [1.0, 0.0, math.inf, math.nan], "norm_eps": [0.0, 1.0, math.nan],
                  "init_std": [0.0, -1.0, math.inf, math.nan], "attention": ["flash", ""]},
    BaseConfig: {"run": ["", " "], "weights": ["first", ""], "dropout": [1.0, -0.1], "max_seq_len": [-1]},
    OptimConfig: {"lr": [0.0, -1.0, math.inf, math.nan], "schedule": ["step"], "min_lr_ratio": [-0.1, 1.1, math.nan],
                  "warmup_steps": [-1], "weight_decay": [-0.1, 1000.0, math.inf, math.nan], "beta1": [1.0, -0.1, math.nan],
                  "beta2": [1.0, -0.1, math.nan], "adam_eps": [0.0, 1.0, math.nan],
                  "clip_norm": [-1.0, math.inf, math.nan]},
    TrainConfig: {"steps": [-1], "epochs": [0.0, -1.0, math.inf, math.nan], "batch_size": [0], "accumulation": [0],
                  "eval_every": [0], "keep": [0], "precision": ["tf32", ""], "compile": ["yes", ""], "eval_batches": [-1], "save_every": [-1], "best_by": ["loss", ""],
                  "patience": [-1], "parallel": ["", "zero", "FSDP"]},
    ObjectiveConfig: {"name": ["mlm", ""], "noise_rate": [0.0, 1.0, math.nan], "random_rate": [-0.1, 1.1, math.nan],
                      "keep_rate": [-0.1, 0.95, math.nan], "mean_span": [0.9, math.inf, math.nan]},
    LossConfig: {"l2": [-1.0, 1e30, math.inf, math.nan], "label_smoothing": [-0.1, 1.0, math.nan],
                 "r_drop": [-0.1, 1e30, math.inf, math.nan]},
    TaskConfig: {"name": ["chat", ""]},
    AdapterConfig: {"method": ["qlora", ""], "layers": ["", "1", "a:", "::2"], "targets": [("",)], "also": [("heads",)],
                    "rank": [0], "alpha": [0.0, -1.0, math.inf, math.nan], "dropout": [1.0, -0.1, math.nan],
                    "bottleneck": [0], "placement": ["attn", ""], "length": [0], "target_rank": [0.0, math.nan],
                    "warmup_part": [-0.1, 1.0, math.nan], "final_part": [-0.1, 0.9, math.nan], "interval": [0],
                    "orthogonality": [-0.1, math.inf, math.nan], "sensitivity_decay": [0.0, 1.0, math.nan],
                    "uncertainty_decay": [0.0, 1.0, math.nan]},
    AdversarialConfig: {"method": ["fgn", ""], "epsilon": [0.0, -1.0, 1e15, math.inf, math.nan], "clean_weight": [-0.1, 1e30, math.inf, math.nan],
                        "adversarial_weight": [0.0, 1e15, math.inf, math.nan], "steps": [0, 1001], "step_size": [-0.1, 1e15, math.inf, math.nan],
                        "xi": [0.0, 1e15, math.inf, math.nan], "power_iterations": [0, 1001], "unlabelled": [("",)]},
    ClassesConfig: {"text": [()], "labels": [(), ("a", "a")], "several": [("x",)], "separator": [""],
                    "test_fraction": [1.0, -0.1, math.nan], "leaks": ["", "warn"], "over_long": ["drop", ""],
                    "pooling": ["median", ""], "encoding": ["utf-9", "", "base64", "a\0b"]},
    SampleConfig: {"count": [-1], "max_new_tokens": [0]},
}


@pytest.mark.parametrize(("section", "name", "value"),
                         [(s, n, v) for s, fields in IMPOSSIBLE.items() for n, vs in fields.items() for v in vs])
def test_an_impossible_value_is_refused_by_section_and_field(section, name, value):
    with pytest.raises(UserError, match=rf"^{section.SECTION}\.{name} = {re.escape(repr(value))}: \S+"):
        section(**{name: value})


def test_every_field_that_can_be_impossible_is_in_the_table():
    """What is left can be any value of its type."""
    free = {f"{s.__name__}.{f.name}" for s in SECTIONS for f in dataclasses.fields(s) if f.name not in IMPOSSIBLE[s]}
    assert free == {"RunConfig.allow_change", "CorpusConfig.val_source", "CorpusConfig.text_field", "InstructionConfig.val_source",
                    "InstructionConfig.test_source", "TokenizerConfig.path", "ModelConfig.tie_embeddings",
                    "SampleConfig.prompts", "ClassesConfig.lines", "ClassesConfig.header", "ClassesConfig.quotes",
                    "TrainConfig.recompute", "TrainConfig.deterministic", "AdapterConfig.rank_stabilised", "AdversarialConfig.tied"}


# ── adapters ─────────────────────────────────────────────────────────────────────────────────────

OTHER = {"layers": "-1:", "targets": ("q_proj",), "also": ("norm",), "rank": 5, "alpha": 7.0, "rank_stabilised": True,
         "dropout": 0.1, "bottleneck": 5, "placement": "mlp", "length": 5, "target_rank": 2.0, "warmup_part": 0.2,
         "final_part": 0.2, "interval": 5, "orthogonality": 0.2, "sensitivity_decay": 0.5, "uncertainty_decay": 0.5}


OTHER_ATTACK = {"epsilon": 0.3, "clean_weight": 0.5, "adversarial_weight": 0.5, "steps": 2, "step_size": 0.1, "tied": True, "xi": 0.2,
                "power_iterations": 2, "unlabelled": ("a.txt",)}
TABLES = ((AdapterConfig, ADAPTERS, USED_BY, OTHER), (AdversarialConfig, ATTACKS, ATTACKS_USE, OTHER_ATTACK))


@pytest.mark.parametrize(("form", "methods", "table", "key", "value"), [(form, methods, table, key, value)
                         for form, methods, table, other in TABLES for key, value in other.items()])
def test_a_key_that_the_method_does_not_look_at_is_refused(form, methods, table, key, value):
    for method in methods:
        if method in table[key]:
            assert getattr(form(method, **{key: value}), key) == value
        else:
            with pytest.raises(UserError, match=rf"^{form.SECTION}\.{key} = {re.escape(repr(value))}: means nothing to "
                                                rf"{form.SECTION}\.method = '{method}'; leave it out, or use {', '.join(table[key])}$"):
                form(method, **{key: value})


@pytest.mark.parametrize(("form", "methods", "table", "other"), TABLES)
def test_the_sentence_under_a_key_begins_with_the_methods_that_look_at_it(form, methods, table, other):
    docs = config.field_docs(form)
    assert table.keys() == other.keys() == docs.keys() - {"method"}
    for key, used_by in table.items():
        told = docs[key].partition(": ")[0]
        spared = tuple(told.removeprefix("All but ").split(", ")) if told.startswith("All but ") else ()
        assert used_by == (tuple(m for m in methods[1:] if m not in spared) if told.startswith("All") else tuple(told.split(", ")))


def test_odd_head_widths_are_refused():
    with pytest.raises(UserError, match=r"^model\.d_model = 21: d_model / n_heads = 7 must be even"):
        ModelConfig(d_model=21, n_heads=3)
    assert ModelConfig(d_model=24, n_heads=3).d_head == 8


@pytest.mark.parametrize(("section", "name", "value"), [
    (RunConfig, "device", "cuda:1"), (RunConfig, "device", "mps"), (RunConfig, "seed", 2**32 - 1),
    (TokenizerConfig, "vocab_size", 264), (InstructionConfig, "val_fraction", 0.0), (ModelConfig, "n_kv_heads", 3),
    (OptimConfig, "clip_norm", 0.0), (OptimConfig, "min_lr_ratio", 1.0), (OptimConfig, "beta1", 0.0),
    (BaseConfig, "weights", "random"), (TrainConfig, "epochs", 0.01), (SampleConfig, "count", 0)])
def test_a_value_at_the_edge_of_the_possible_is_taken(section, name, value):
    assert getattr(section(**{name: value}), name) == value


# ── files ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("content", "message"), [
    (b"[run]\ndir = \"\xff\"\n", "is not UTF-8 at byte 13"),
    (b"[run\n", "is not valid TOML: .*line 1"),
    (b"[optim]\nlr = 1\nlr = 2\n", "is not valid TOML"),
])
def test_a_broken_file_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(UserError, match=rf"c\.toml: {message}"):
        load(PretrainConfig, tmp_path / "c.toml")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"none\.toml: no such config file"):
        load(PretrainConfig, tmp_path / "none.toml")
    with pytest.raises(UserError, match="cannot be read: is a directory"):
        load(PretrainConfig, tmp_path)


# ── the form itself ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_has_a_sentence(section):
    docs = config.field_docs(section)
    assert set(docs) == {f.name for f in dataclasses.fields(section)}
    assert all(len(text) > 15 and text.endswith(".") for text in docs.values()), docs


@pytest.mark.parametrize("form", FORMS)
def test_the_help_names_every_key_with_its_default_and_sentence(form):
    text = "".join(config.describe(form).split())  # lines are broken after hyphens too
    default = form()
    for section in dataclasses.fields(form):
        part = getattr(default, section.name)
        for name, sentence in config.field_docs(type(part)).items():
            assert f"{section.name}.{name}=" in text and "".join(sentence.split()) in text
    assert f"run.dir=\"{default.run.dir}\"" in text


@pytest.mark.parametrize("part", [PretrainConfig(), *(section() for section in SECTIONS)],
                         ids=lambda part: type(part).__name__)
def test_settings_are_frozen(part):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(part, dataclasses.fields(part)[0].name, None)


def test_derived_sizes():
    assert (ModelConfig(n_heads=6).kv_heads, ModelConfig(n_heads=6, n_kv_heads=2).kv_heads) == (6, 2)
    assert ModelConfig(d_model=192, n_heads=6).d_head == 32


@pytest.mark.parametrize("method, key", [("fgm", "epsilon"), ("fgm", "clean_weight"), ("fgm", "adversarial_weight"), ("pgd", "step_size"), ("vat", "xi")])
def test_an_attack_is_as_strong_as_fp32_can_square(method, key):
    assert getattr(AdversarialConfig(method, **{key: 9e14}), key) == 9e14
    with pytest.raises(UserError, match=f"adversarial.{key} = 1000000000000000.0: .*small enough for"):
        AdversarialConfig(method, **{key: 1e15})
