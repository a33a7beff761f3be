"""What a method is put at, and every way of naming nothing."""

import dataclasses

import biased
import pytest
import tiny
import torch
from running import ROOT

from minialpaca import run
from minialpaca.config import AdapterConfig, FinetuneConfig, PretrainConfig, load
from minialpaca.errors import UserError
from minialpaca.heads import Classifier
from minialpaca.model import Transformer
from minialpaca.peft import apply
from minialpaca.peft.sites import chosen_layers, linears, with_role


def test_targets_match_whole_names_at_a_dot():
    model = biased.model()
    assert [s.path for s in linears(model, ("attn.q_proj", "lm_head"), ":")] == [
        "layers.0.attn.q_proj", "layers.1.attn.q_proj", "lm_head"]
    assert [s.path for s in linears(model, ("up_proj",), "1:")] == ["layers.1.mlp.up_proj"]
    for wrong in ("proj", "_proj", "xq_proj", "attn"):
        with pytest.raises(UserError, match=rf"'{wrong}' matches no Linear .* there are attn.q_proj, attn.k_proj"):
            linears(model, ("q_proj", wrong), ":")


def test_layers_are_a_slice():
    model = tiny.model(n_layers=4)
    assert [chosen_layers(model, s) for s in (":", "-2:", "1:3", ":1")] == [{0, 1, 2, 3}, {2, 3}, {1, 2}, {0}]
    with pytest.raises(UserError, match=r"adapter.layers = '7:': names none of the layers 0 … 3"):
        chosen_layers(model, "7:")


def test_roles_alone_are_trained_where_no_layer_is():
    assert sorted(apply(biased.model(), AdapterConfig("freeze", layers="0:0", also=("embedding", "head", "norm"))).trained()) == [
        "embed.weight", "final_norm.weight", "layers.0.attn_norm.weight", "layers.0.mlp_norm.weight", "layers.1.attn_norm.weight",
        "layers.1.mlp_norm.weight"]  # the head is the embedding
    assert [*classifier("freeze", layers="0:0")[1].trained()] == [f"heads.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")]
    with pytest.raises(UserError, match="nothing would be trained"):
        apply(biased.model(), AdapterConfig("freeze", layers="0:0"))


@pytest.mark.parametrize(("method", "matrices"), [
    ("lora", ["q_proj", "v_proj"]), ("dora", ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]),
    ("adalora", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    ("bitfit", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]), ("ia3", ["k_proj", "v_proj", "down_proj"])])
def test_where_nothing_is_named_it_is_the_papers_matrices(method, matrices):
    adapter = apply(biased.model(), AdapterConfig(method))
    assert [swap.site.path for swap in adapter.wrappers()] == [
        f"layers.{i}.{'mlp' if m in ('gate_proj', 'up_proj', 'down_proj') else 'attn'}.{m}" for i in (0, 1) for m in matrices]


@pytest.mark.parametrize(("placement", "places"), [("both", ["attn", "mlp"]), ("mlp", ["mlp"])])
def test_a_bottleneck_stands_behind_both_sub_layers_or_behind_the_mlp(placement, places):
    adapter = apply(biased.model(), AdapterConfig("houlsby", placement=placement))
    assert [swap.site.path for swap in adapter.wrappers()] == [f"layers.{i}.{place}" for i in (0, 1) for place in places]


def test_attention_to_an_encoder_has_no_bottleneck_and_no_prefix():
    for method, names in (("houlsby", {"attn", "mlp"}), ("prefix", {"attn"}), ("lora", {"q_proj", "v_proj"})):
        adapter = apply(tiny.model(architecture="encoder_decoder"), AdapterConfig(method, **({"rank": 2} if method == "lora" else {})))
        places = [swap.site.path for swap in adapter.wrappers()]
        assert {path.rpartition(".")[2] for path in places} == names
        assert any(".cross" in path for path in places) is (method == "lora")


def test_roles_are_told_by_the_module():
    model = biased.model()
    assert [s.path for s in with_role(model, ("norm",))] == [
        "layers.0.attn_norm.weight", "layers.0.mlp_norm.weight", "layers.1.attn_norm.weight", "layers.1.mlp_norm.weight",
        "final_norm.weight"]
    assert [s.path for s in with_role(model, ("head", "embedding"))] == ["embed.weight", "lm_head.weight"]
    assert len(with_role(model, ("bias",))) == 2 * 7 + 1
    with pytest.raises(UserError, match="adapter.also: 'bias' matches nothing here; there are embedding, norm, head"):
        with_role(tiny.model(), ("bias",))


def test_of_a_tied_pair_both_are_named_or_none():
    model = tiny.model(tie_embeddings=True)
    for half in ("embedding", "head"):
        with pytest.raises(UserError, match=r"embed.weight and lm_head.weight are one matrix"):
            apply(model, AdapterConfig("lora", also=(half,)))
    adapter = apply(model, AdapterConfig("lora", also=("embedding", "head")))
    assert model.embed.weight is model.lm_head.weight and model.embed.weight.requires_grad
    assert sum(p.shape == (53, 60) for p in adapter.trained().values()) == 1
    adapter.remove()
    assert model.embed.weight is model.lm_head.weight


def test_low_rank_beside_a_tied_head_leaves_the_embedding_alone():
    model = tiny.model(tie_embeddings=True)
    before = model.embed.weight.detach().clone()
    adapter = apply(model, AdapterConfig("lora", targets=("lm_head",), rank=3))
    biased.stir(adapter)
    said = model(tiny.tokens(2, 5))
    adapter.merge()
    torch.testing.assert_close(model(tiny.tokens(2, 5)), said, rtol=0, atol=1e-5)
    assert torch.equal(model.embed.weight, before) and model.lm_head.weight is not model.embed.weight


def test_a_rank_above_the_matrixs_own_is_refused_by_name():
    for method in ("lora", "dora", "adalora"):
        with pytest.raises(UserError, match=r"adapter.rank = 38: layers.0.mlp.up_proj is 37 × 60, whose rank is at most 37"):
            apply(biased.model(), AdapterConfig(method, targets=("up_proj",), rank=38))


def test_what_is_trained_is_fp32_over_a_base_in_bf16():
    for name, cfg in biased.CONFIGS.items():
        cfg = dataclasses.replace(cfg, also=(), placement="mlp" if cfg.method == "houlsby" else cfg.placement)
        if name != "freeze":
            adapter = apply(biased.model().bfloat16(), cfg)
            assert {p.dtype for p in adapter.trained().values()} == {torch.float32}
            adapter.model(tiny.tokens(2, 5)).sum().backward()


def test_the_base_of_another_adapter_is_told_by_its_bytes():
    one, same = (apply(biased.model(), biased.CONFIGS["lora"]) for _ in range(2))
    other = biased.model()
    with torch.no_grad():
        other.layers[1].mlp.up_proj.weight[3, 4] += 1e-6
    assert one.fingerprint == same.fingerprint != apply(other, biased.CONFIGS["lora"]).fingerprint


@pytest.mark.parametrize("change", [{"architecture": "encoder"}, {"n_heads": 3, "n_kv_heads": 3}, {"n_kv_heads": 3},
                                    {"rope_theta": 500.0}, {"norm_eps": 1e-6}], ids=str)
def test_a_base_of_the_same_tensors_that_computes_something_else_is_another(change):
    """Six heads of 10 or three of 20 have the same matrices."""
    whole = {"n_heads": 6, "n_kv_heads": 6}
    models = [tiny.model(**whole), tiny.model(**{**whole, **change})]
    same = [{name: (t.shape, t.sum().item()) for name, t in m.state_dict().items()} for m in models]
    assert (same[0] == same[1]) is ("n_kv_heads" not in change or "n_heads" in change)
    one, other = (apply(m, AdapterConfig("lora", rank=3)).fingerprint for m in models)
    assert one != other


def test_the_seed_decides_what_is_drawn():
    drawn = [apply(biased.model(), biased.CONFIGS["lora"], seed).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(drawn[0][n], drawn[1][n]) for n in drawn[0])
    assert not torch.equal(drawn[0]["lm_head.A"], drawn[2]["lm_head.A"])


# ── a classifier ─────────────────────────────────────────────────────────────────────────────────


def classifier(method, tied=False, **changes):
    backbone = tiny.model(tie_embeddings=tied)
    model = Classifier(backbone, [3, 2], "last")
    return model, run.adapted(model, backbone, FinetuneConfig(adapter=AdapterConfig(method, **changes)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "ia3", "bitfit"])
def test_a_classifiers_lm_head_is_never_called_and_cannot_be_named(method, tied):
    for target in ("lm_head", "heads.0"):
        with pytest.raises(UserError, match=f"adapter.targets: '{target}' matches no Linear of layers ':'; there are attn.q_proj, "
                                            "attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj$"):
            classifier(method, tied, targets=(target,))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("role", ["head", "bias"])
def test_in_a_classifier_a_role_that_only_the_new_heads_have_matches_nothing(role, tied):
    with pytest.raises(UserError, match=f"adapter.also: '{role}' matches nothing here; there are embedding, norm$"):
        classifier("lora", tied, also=(role,))


def test_a_tied_embedding_is_trained_in_a_classifier_without_a_word_about_its_head():
    model, adapter = classifier("lora", tied=True, also=("embedding",))
    assert model.backbone.embed.weight is model.backbone.lm_head.weight and model.backbone.embed.weight.requires_grad
    adapter.remove()
    assert model.backbone.embed.weight is model.backbone.lm_head.weight


# ── norms ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("layers", "norms"), [
    (":1", ["layers.0.attn_norm", "layers.0.mlp_norm"]), ("-1:", ["layers.1.attn_norm", "layers.1.mlp_norm", "final_norm"]),
    (":", ["layers.0.attn_norm", "layers.0.mlp_norm", "layers.1.attn_norm", "layers.1.mlp_norm", "final_norm"])])
def test_houlsby_trains_the_norms_of_its_layers_and_the_final_one_with_the_last(layers, norms):
    adapter = apply(biased.model(), AdapterConfig("houlsby", layers=layers))
    assert [n for n in adapter.trained() if "norm" in n] == [f"{n}.weight" for n in norms]
    everywhere = apply(biased.model(), AdapterConfig("houlsby", layers=layers, also=("norm",)))
    assert sum("norm" in n for n in everywhere.trained()) == 5


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("alpaca-*.toml")), ids=lambda path: path.stem)
def test_each_methods_config_fits_the_base_that_it_names(path):
    settings = load(FinetuneConfig, path)
    if settings.adapter.method != "none":
        base = load(PretrainConfig, ROOT / "configs/pretrain.toml").model
        model = Transformer(dataclasses.replace(base, vocab_size=64))
        assert apply(model, settings.adapter).trained()
