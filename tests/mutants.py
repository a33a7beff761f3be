"""Wrong on purpose: one changed symbol a row, and the test that has to notice.

`of(function, test, *changes)`: each change is (old, new) or, where another test is the one to notice, (old, new, test).
`old` stands exactly once in the source of the function. test_mutants.py tries them all, and asks for four or more for
each function whose docstring cites an equation.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    function: str  # module:name
    old: str
    new: str
    test: str      # a pytest node, quick


MUTANTS: list[Mutant] = []


def of(function: str, test: str, *changes: tuple[str, ...]) -> None:
    file = test.partition("::")[0]
    for old, new, *other in changes:
        MUTANTS.append(Mutant(f"minialpaca.{function}", old, new, f"tests/{f'{file}::{other[0]}' if other else test}"))


# ── the Transformer ──────────────────────────────────────────────────────────────────────────────

of("model:rms_norm", "test_model.py::test_rms_norm_is_the_papers_sum",
   ("+ norm_eps", "- norm_eps"),
   ("+ norm_eps", "+ norm_eps**2"),
   ("torch.rsqrt", "torch.sqrt"),
   (".mean(-1", ".sum(-1"),
   (".mean(-1", ".mean(-2"),
   (".pow(2)", ".abs()"),
   (".pow(2)", ".sub(x32.mean(-1, keepdim=True)).pow(2)"),  # LayerNorm's variance
   ("* gain_D", "* (1 + gain_D)"),
   ("* gain_D", "+ gain_D"),
   ("x.float()", "x", "test_rms_norm_of_bf16_is_computed_in_fp32"))

of("model:rotary_angles", "test_model.py::test_rotary_angles_are_positions_over_growing_wavelengths",
   ("(-2 * i_P", "(2 * i_P"),
   ("(-2 * i_P", "(-i_P"),
   ("(-2 * i_P", "(-2 * (i_P + 1)"),  # the paper counts i from 1 and writes i − 1
   ("m[..., None] *", "m[..., None] /"),
   ("m[..., None] *", "(m[..., None] + 1) *"),
   ("angles.cos(), angles.sin()", "angles.sin(), angles.cos()"),
   ("positions if positions.dtype == torch.float64 else positions.float()", "positions.float()"))

of("model:rotate", "test_model.py::test_rotation_is_the_papers_matrix",
   ("even * cos - odd * sin", "even * cos + odd * sin"),
   ("even * sin + odd * cos", "odd * cos - even * sin"),
   ("even * cos - odd * sin", "even * sin - odd * cos"),
   ("even, odd = ", "odd, even = "),
   (".unflatten(-1, (-1, 2)).unbind(-1)", ".unflatten(-1, (2, -1)).unbind(-2)"),  # halves, not neighbours
   ("dim=-1)", "dim=-2)"),
   (".to(x.dtype)", "", "test_rotary_tables_stay_in_fp32_when_the_model_is_bf16"))

of("model:spelled_attention", "test_model.py::test_attention_is_the_papers_sum_under_any_mask",
   ("/ math.sqrt(", "* math.sqrt("),
   ("/ math.sqrt(q_BHTK.shape[-1])", "/ q_BHTK.shape[-1]"),
   ("q_BHTK.shape[-1]", "q_BHTK.shape[-2]"),
   ("q_BHTK @ k_BHSK.mT", "-q_BHTK @ k_BHSK.mT"),
   ("k_BHSK.mT", "v_BHSK.mT"),
   ("~may_look", "may_look"),
   ("-math.inf", "-1.0"),
   (".softmax(-1", ".softmax(-2"),
   (".softmax(-1", ".softmax(1"),
   ("@ v_BHSK", "@ k_BHSK"),
   ("dtype=map_dtype).to(q_BHTK.dtype)", "dtype=map_dtype)", "test_the_map_of_bf16_is_rounded_once"),
   ("F.dropout(map_BHTS, dropout)", "map_BHTS", "test_dropout_acts_in_training_and_never_in_evaluation[map-spelled]"))

of("model:causal", "test_model.py::test_causal_lets_a_query_look_at_itself_and_before",
   ("<= t_T1", "< t_T1"),
   ("<= t_T1", ">= t_T1"),
   ("<= t_T1", "<= t_T1 + 1"),
   ("torch.arange(offset, offset + length", "torch.arange(length"),
   ("return torch.arange(offset + length", "return torch.arange(length"))

of("model:_causal_among_real",
   "test_model.py::test_what_stands_on_padding_changes_no_real_logit_and_no_gradient[left-spelled]",
   ("see_TS & real_BS[:, None] |", "see_TS |"),
   ("see_TS & real_BS[:, None] |", "real_BS[:, None] |", "test_a_padded_row_has_the_logits_it_has_alone[left-spelled]"),
   ("& real_BS", "& ~real_BS"),
   ("& real_BS", "| real_BS"),
   (" | itself_TS", "", "test_a_row_of_nothing_but_padding_is_finite_forwards_and_backwards"),
   ("keepdim=True) - 1", "keepdim=True)", "test_a_row_of_nothing_but_padding_is_finite_forwards_and_backwards"))

of("model:gated_swish", "test_model.py::test_gated_swish_is_the_papers_product",
   ("F.silu(gate) * up", "F.silu(up) * gate"),
   ("F.silu", "F.gelu"),
   ("F.silu", "F.sigmoid"),
   ("F.silu", "-F.silu"),
   ("F.silu(gate) * up", "F.silu(gate) + up"),
   ("F.silu(gate) * up", "F.silu(gate * up)"))

of("model:MLP.forward", "test_model.py::test_mlp_gates_with_gate_proj",
   ("gated_swish(self.gate_proj(x), self.up_proj(x))", "gated_swish(self.up_proj(x), self.gate_proj(x))"),
   ("self.gate_proj(x)", "self.up_proj(x)"))

of("model:Attention._for_each_query_head", "test_model.py::test_the_model_is_the_papers_decoder[GQA-spelled]",
   ("repeat_interleave(group, dim=1)", "repeat(1, group, 1, 1)"),  # head h takes g = h mod G, not ⌊h G/H⌋
   ("repeat_interleave(group, dim=1)", "repeat_interleave(group, dim=1).flip(1)"),
   ("repeat_interleave(group, dim=1)", "repeat_interleave(group, dim=1).roll(1, 1)"),
   ("repeat_interleave(group, dim=1)", "mean(1, keepdim=True).expand(-1, self.n_heads, -1, -1)"))

of("model:Attention.project", "test_model.py::test_the_model_is_the_papers_decoder[GQA-fused]",
   ("self.k_proj(x_BTD)", "self.v_proj(x_BTD)"),
   ("q_BHTK = rotate(self._heads(self.q_proj(x_BTD), self.n_heads), *angles)",
    "q_BHTK = self._heads(self.q_proj(x_BTD), self.n_heads)"),
   ("v_BGTK = self._heads(self.v_proj(x_BTD), self.n_kv_heads)",
    "v_BGTK = rotate(self._heads(self.v_proj(x_BTD), self.n_kv_heads), *angles)"),
   ("(q_BHTK, k_BGTK, v_BGTK) if", "(q_BHTK, v_BGTK, k_BGTK) if"))

of("model:Block.forward", "test_model.py::test_the_model_is_the_papers_decoder[MHA-fused]",
   ("x_BTD + self.dropout(self.attn(", "self.dropout(self.attn("),
   ("x_BTD + self.dropout(self.mlp(", "x_BTD - self.dropout(self.mlp("),
   ("self.attn(self.attn_norm(x_BTD)", "self.attn(x_BTD"),
   ("self.mlp_norm(x_BTD)", "self.attn_norm(x_BTD)"))

of("model:Transformer.hidden", "test_model.py::test_the_model_is_the_papers_decoder[GQA-fused]",
   ("self.final_norm(x_BUD)", "x_BUD"),
   ("enumerate(self.layers)", "enumerate(reversed(self.layers))"),
   ("enumerate(self.layers)", "enumerate(self.layers[1:])"),
   ("x_BUD = self.dropout(x_BUD)", "x_BUD = x_BUD",
    "test_dropout_acts_in_training_and_never_in_evaluation[embedding-fused]"))

of("model:Transformer._angles", "test_model.py::test_the_model_is_the_papers_decoder[GQA-fused]",
   ("self.cfg.rope_theta", "10_000.0"),
   ("places.double() if", "places if"))

of("model:Transformer._view",
   "test_model.py::test_cached_logits_are_the_uncached_ones_at_every_position[GQA-[5, 8]-full-fused]",
   ("if offset and T > 1 else None", "if False else None"),
   ("(offset, offset + T, device", "(0, T, device"),
   ("[:, offset:]", "[:, :T]",
    "test_cached_logits_are_the_uncached_ones_at_every_position[GQA-[5, 8]-left-padded-spelled]"),
   (".cumsum(-1) - 1)", ".cumsum(-1) * 0)", "test_a_padded_row_has_the_logits_it_has_alone[left-spelled]"),
   (".cumsum(-1)", ".flip(-1).cumsum(-1)", "test_a_padded_row_has_the_logits_it_has_alone[left-spelled]"))

of("model:Transformer._refuse_overflow", "test_model.py::test_the_context_ends_where_the_config_says",
   ("offset + new > limit", "offset + new >= limit"),
   ("if offset + new > limit", "if new > limit", "test_the_cache_ends_where_its_room_does"))

of("model:Transformer.logits", "test_model.py::test_logits_and_loss_inputs_are_fp32_at_least",
   ("torch.promote_types(logits.dtype, torch.float32)", "logits.dtype"),
   ("torch.promote_types(logits.dtype, torch.float32)", "torch.float32"))

of("model:init_std", "test_model.py::test_initial_weights_have_the_spread_of_the_table",
   ("1 / math.sqrt(cfg.d_model)", "cfg.init_std"),
   ("1 / math.sqrt(cfg.d_model)", "1 / cfg.d_model"),
   ("per_layer * cfg.n_layers", "cfg.n_layers"),
   ("matrix / math.sqrt(", "matrix * math.sqrt("),
   ('(("embed", "lm_head"), cfg.init_std)', '(("embed", "lm_head"), matrix)'),
   ('("o_proj", "down_proj")', '("o_proj", "up_proj", "down_proj")'))  # llama2.c's slip

# ── few parameters ───────────────────────────────────────────────────────────────────────────────

of("run:adapted", "peft/test_training.py::test_new_heads_are_trained_saved_and_come_back[lora-False]",
   ("[child for child in model.children() if child is not backbone] if model is not backbone else []", "[]"),
   ("settings.run.seed, new,", "settings.run.seed, [],"))

of("run:adapted", "peft/test_sites.py::test_a_classifiers_lm_head_is_never_called_and_cannot_be_named[adalora-True]",
   ("[backbone.lm_head] if new", "[] if new"))

of("merge:logits", "peft/test_training.py::test_a_classifiers_merge_is_judged_by_what_it_says_of_its_groups",
   ("model(tokens_BT) if model is backbone", "backbone(tokens_BT) if True"))

of("peft.adapter:Adapter.install", "peft/test_contract.py::test_what_is_put_in_drops_as_the_model_does[False]",
   ("self.model.train(self.model.training)", "None"))

of("trainer:Trainer._try_step", "peft/test_training.py::test_the_adapter_sees_the_whole_gradient_once_a_step_and_unclipped[split1]",
   ("self.adapter.before_clip(step + 1)", "self.adapter.before_clip(step)"),
   ("self.adapter.before_clip(step + 1)", "clip_by_global_norm(self.model.parameters(), 1e-3), self.adapter.before_clip(step + 1)"),
   ("self.adapter.before_clip(step + 1)", "[self.adapter.before_clip(step + 1) for _ in range(2)]"),
   ("numbers = fetched(", "self.adapter and self.adapter.before_clip(step + 1)\n    numbers = fetched(",
    "test_a_gradient_that_is_no_number_never_reaches_the_averages"),
   ("self.adapter.after_update(step + 1) if self.adapter else {}", "{}",
    "test_once_the_budget_is_spent_what_was_pruned_stays_zero_under_adams_momentum"))

of("trainer:Trainer._backward_penalties", "peft/test_training.py::test_the_penalty_is_added_once_a_step[split1]",
   ("self.adapter.penalty()", "None"),
   ("(term * self.scale)", "(term * self.scale * self.train.accumulation)"))

of("trainer:Trainer._after_step", "peft/test_training.py::test_no_best_is_chosen_before_the_budget_is_spent",
   ("self.adapter is None or self.adapter.may_be_best(step)", "True"))

of("peft.adalora:AdaLoRALinear.merged", "peft/test_training.py::test_the_scale_stays_alpha_over_the_rank_of_the_start",
   ("self.scale * self.P", "self.scale * len(self.kept) / max(self.rank, 1) * self.P"))

of("peft.adalora:AdaLoRALinear.forward", "peft/test_training.py::test_the_scale_stays_alpha_over_the_rank_of_the_start",
   ("self.Q, self.scale", "self.Q, self.scale * len(self.kept) / max(self.rank, 1)"))  # α/r of what is left

of("peft.adalora:AdaLoRA.after_update",
   "peft/test_training.py::test_once_the_budget_is_spent_what_was_pruned_stays_zero_under_adams_momentum",
   (" or self.schedule.is_spent(step)", ""))

of("peft.lora:LoRALinear.weight", "peft/test_contract.py::test_over_a_base_in_bf16_the_sum_is_made_in_fp32_and_rounded_once[lora]",
   ("self.scale * self.B @ self.A", "(self.scale * self.B @ self.A).to(self.base.weight.dtype)"))

of("peft.linear:plain_linear", "peft/test_contract.py::test_over_a_base_in_bf16_the_sum_is_made_in_fp32_and_rounded_once[lora]",
   ("weight_OI.detach().to(like.weight.dtype)", "weight_OI.detach().clone()"))

of("peft.houlsby:Houlsby.whole", "peft/test_sites.py::test_houlsby_trains_the_norms_of_its_layers_and_the_final_one_with_the_last",
   ("(last if layer is None else layer) in adapted", "True"),
   ("last if layer is None else layer", "layer"),
   ("max(sites", "min(sites"))

of("peft.lora:low_rank", "peft/test_formulas.py::test_lora_is_the_papers_product",
   ("scale * F", "-scale * F"),
   ("scale * F", "F"),
   ("scale * F", "scale**2 * F"),
   ("F.linear(F.linear(x, A_RI), B_OR)", "2 * F.linear(F.linear(x, A_RI), B_OR)"))

of("peft.lora:lora_scale", "peft/test_formulas.py::test_the_scale_is_alpha_over_r_or_over_its_root",
   ("alpha / (", "alpha * ("),
   ("alpha / (", "rank / ("),
   ("math.sqrt(rank) if rank_stabilised else rank", "rank"),
   ("math.sqrt(rank) if rank_stabilised else rank", "rank if rank_stabilised else math.sqrt(rank)"))

of("peft.lora:LoRALinear.__init__", "peft/test_formulas.py::test_lora_begins_with_a_gaussian_and_a_zero",
   ("/ math.sqrt(I)", "/ math.sqrt(O)"),
   ("/ math.sqrt(I)", "/ I"),
   ("torch.randn(cfg.rank", "torch.rand(cfg.rank"),
   ("torch.zeros(O", "torch.ones(O"))

of("peft.lora:LoRALinear.forward", "peft/test_formulas.py::test_lora_is_the_papers_product",
   ("self.base(x) + self", "self.base(x) - self"),
   ("self.base(x) + self.delta(x)", "self.delta(x)"))

of("peft.lora:LoRALinear.delta", "peft/test_formulas.py::test_lora_drops_of_its_own_input_alone",
   ("self.dropout(x)", "x"))

of("peft.lora:row_norms", "peft/test_formulas.py::test_dora_is_the_papers_magnitude_times_direction",
   ("W_OI, dim=1", "W_OI, 1, dim=1"),
   ("vector_norm(W_OI, dim=1)", "vector_norm(W_OI)"),
   ("torch.linalg.vector_norm(W_OI, dim=1)", "W_OI.square().sum(1)"),
   ("torch.linalg.vector_norm(W_OI, dim=1)", "W_OI.abs().amax(1)"))

of("peft.lora:DoRALinear.forward", "peft/test_formulas.py::test_dora_is_the_papers_magnitude_times_direction",
   ("+ self.delta(x)", "- self.delta(x)"),
   ("self.direction() * y", "y"),
   ("self.direction() * y", "self.direction() + y"),
   ("F.linear(x, self.base.weight)", "self.base(x)"))  # the bias would be stretched, too

of("peft.lora:DoRALinear.direction", "peft/test_formulas.py::test_dora_is_the_papers_magnitude_times_direction",
   ("self.m / ", "self.m * "),
   ("self.weight()", "self.base.weight"),
   (".detach()", "", "test_doras_norm_is_a_constant_to_the_gradient"))

of("peft.freeze:Biased.forward", "peft/test_formulas.py::test_bitfit_adds_a_vector",
   ("y + self", "y - self"),
   ("y + self", "y * self"),
   ("y + self.beta.to(y.dtype)", "y"),
   ("y + self", "y + 2 * self"))

of("peft.houlsby:bottleneck", "peft/test_formulas.py::test_houlsby_is_the_papers_bottleneck",
   ("h + F", "F"),
   ("h + F", "h - F"),
   ("F.gelu(", "F.relu("),
   ("down_MD, down_M)", "down_MD)"),
   ("up_DM, up_D)", "up_DM)"))

of("peft.houlsby:Bottleneck.__init__", "peft/test_formulas.py::test_houlsby_begins_near_the_identity",
   ("STD * ", "10 * STD * "),
   (".clamp(-2, 2)", ""))

of("peft.ia3:Stretched.forward", "peft/test_formulas.py::test_ia3_stretches_outputs_or_inputs",
   ("self.l * x", "x", "test_ia3_stretches_outputs_or_inputs[True]"),
   ("self.l * x", "self.l + x", "test_ia3_stretches_outputs_or_inputs[True]"),
   ("self.l * y", "y", "test_ia3_stretches_outputs_or_inputs[False]"),
   ("self.l * y", "self.l + y", "test_ia3_stretches_outputs_or_inputs[False]"))

of("peft.ia3:IA3.modules", "peft/test_formulas.py::test_ia3_stretches_keys_values_and_the_inner_activation",
   ('"k_proj", "v_proj"', '"q_proj", "v_proj"'),
   ("for name in INPUT)", "for name in ())"))

of("peft.virtual:PrefixAttention.forward", "peft/test_formulas.py::test_a_prefix_is_keys_and_values_that_all_may_look_at[True]",
   ("value=True", "value=False"),
   ("before(self.k, k_BGSK)", "before(self.v, k_BGSK)"),
   ("before(self.v, v_BGSK)", "before(self.k, v_BGSK)"),
   ("(self.k.shape[1], 0)", "(0, self.k.shape[1])"))

of("peft.virtual:VirtualTokens.forward", "peft/test_formulas.py::test_a_prompt_is_what_the_same_tokens_would_be",
   ("(virtual_BND, x_BTD)", "(x_BTD, virtual_BND)"),
   ("self.vectors.to", "-self.vectors.to"),
   ("self.vectors.to", "self.vectors.flip(0).to"),
   ("value=True", "value=False", "test_padding_and_the_cache_change_nothing[prompt]"))

of("peft.adalora:triplets", "peft/test_formulas.py::test_adalora_is_the_papers_triple_product",
   ("scale * F", "F"),
   ("scale * F", "-scale * F"),
   ("lambda_R * F", "F"),
   ("lambda_R * F", "lambda_R.abs() * F"))

of("peft.adalora:orthogonality", "peft/test_formulas.py::test_the_orthogonality_term_is_the_papers_two_squared_norms",
   ("P_OR.mT @ P_OR - one_RR", "P_OR.mT @ P_OR + one_RR"),
   ("Q_RI @ Q_RI.mT - one_RR", "Q_RI @ Q_RI.mT"),
   ("(Q_RI @ Q_RI.mT - one_RR).square().sum()", "(Q_RI @ Q_RI.mT - one_RR).norm()"),  # as the program has it
   (".square().sum() + (Q", ".square().mean() + (Q"))

of("peft.adalora:AdaLoRALinear.prune", "peft/test_adalora.py::test_budget_scores_and_masks_are_the_papers_over_a_whole_schedule",
   ("self.kept", "~self.kept"),
   ("mul_(self.kept)", "add_(self.kept)"),
   ("self.lambdas.mul_(self.kept)", "None"),
   ("self.lambdas.mul_(self.kept)", "self.lambdas.mul_(0)"))

of("peft.adalora:AdaLoRALinear.note_gradient", "peft/test_adalora.py::test_budget_scores_and_masks_are_the_papers_over_a_whole_schedule",
   ("average(mean, now, beta1)", "average(mean, now, beta2)"),
   ("uncertainty(spread, now, mean, beta2)", "uncertainty(spread, now, mean, beta1)"))

of("peft.budget:sensitivity", "peft/test_adalora.py::test_budget_scores_and_masks_are_the_papers_over_a_whole_schedule",
   (".abs()", ""),
   (".abs()", ".square()"),
   ("w * gradient", "gradient"),
   ("w * gradient", "w + gradient"))

of("peft.budget:average", "peft/test_adalora.py::test_budget_scores_and_masks_are_the_papers_over_a_whole_schedule",
   ("beta1 * before", "(1 - beta1) * before"),
   ("(1 - beta1)", "beta1"),
   ("before + (1", "before - (1"),
   ("beta1 * before +", "before +"))

of("peft.budget:uncertainty", "peft/test_adalora.py::test_budget_scores_and_masks_are_the_papers_over_a_whole_schedule",
   ("now - mean", "now + mean"),
   ("now - mean", "now"),
   ("beta2 * before", "(1 - beta2) * before"),
   ("(1 - beta2)", "beta2"))

of("peft.budget:importance", "peft/test_adalora.py::test_budget_scores_and_masks_are_the_papers_over_a_whole_schedule",
   ("s_OR.mean(0)", "s_OR.sum(0)"),
   ("s_RI.mean(1)", "s_RI.sum(1)"),
   ("s_R + ", ""),
   ("+ s_RI", "- s_RI"))

of("peft.budget:Schedule.budget", "peft/test_adalora.py::test_the_budget_by_pencil",
   ("** 3", "** 2"),
   ("(1 - part)", "part"),
   ("(step - self.warmup) /", "(step - self.warmup - self.final) /"),  # as the paper prints it
   ("(self.total - self.warmup - self.final)", "(self.total - self.final)"),
   ("step < self.warmup", "step < 2 * self.warmup", "test_budget_scores_and_masks_are_the_papers_over_a_whole_schedule"),
   ("self.first - self.last", "self.first"))

of("peft.budget:Schedule.allocates", "peft/test_adalora.py::test_the_budget_by_pencil",
   ("step == end or", "False or"),
   ("self.warmup <= step", "self.warmup < step"),
   ("% self.interval == 0", "% self.interval == 1"))

of("peft.budget:allocate", "peft/test_adalora.py::test_exactly_so_many_stay_and_ties_are_shared_out",
   ("descending=True", "descending=False"),
   ("order[:budget]", "order[:budget + 1]"),
   ("order[:budget]", "order[budget:]"),
   ("order = triplet.argsort(stable=True)", "order = torch.arange(len(score))"))

# ── losses and tasks ─────────────────────────────────────────────────────────────────────────────

of("objectives:next_token_pairs", "test_objectives.py::test_inputs_and_targets_stay_in_their_row",
   ("tokens_BT[:, :-1], labels_BT[:, 1:]", "tokens_BT[:, 1:], labels_BT[:, :-1]"),
   ("labels_BT[:, 1:]", "labels_BT[:, :-1]"),
   ("tokens_BT[:, :-1], labels_BT[:, 1:]", "tokens_BT[:, :-2], labels_BT[:, 2:]"),
   ("tokens_BT[:, :-1], labels_BT[:, 1:]", "tokens_BT[:-1], labels_BT[1:]"),
   ("labels_BT[:, 1:]", "tokens_BT[:, 1:]"))

of("objectives:cross_entropy_sum", "test_objectives.py::test_cross_entropy_is_the_papers_sum",
   ("F.cross_entropy(logits_NV", "-F.cross_entropy(logits_NV"),
   ("F.cross_entropy(logits_NV", "F.cross_entropy(-logits_NV"),
   ("F.cross_entropy(logits_NV", "F.cross_entropy(logits_NV.softmax(-1)"),
   ("F.cross_entropy(logits_NV", "2 * F.cross_entropy(logits_NV"),
   ("label_smoothing=smoothing", "label_smoothing=0.1"),
   ("targets_N, ignore_index=IGNORE", "targets_N.clamp(min=0)"),
   ('"sum"', '"mean"'),
   ("label_smoothing=smoothing", "label_smoothing=smoothing / 2", "test_smoothed_cross_entropy_is_the_papers_sum"))

of("tasks:next_token_loss",
   "test_objectives.py::test_the_head_sees_only_supervised_positions_and_the_loss_is_that_of_all_logits",
   ("targets_BT.flatten()[batch.supervised_N]", "inputs_BT.flatten()[batch.supervised_N]"),
   ("flatten(0, 1)[batch.supervised_N]", "flatten(0, 1)[batch.supervised_N - 1]"),
   ("flatten(0, 1)[batch.supervised_N]", "transpose(0, 1).flatten(0, 1)[batch.supervised_N]"),
   ("model.hidden(inputs_BT)", "model.hidden(batch.tokens_BT)"),
   ("next_token_pairs(batch.tokens_BT, batch.labels_BT)", "next_token_pairs(batch.tokens_BT.flip(0), batch.labels_BT)"))

of("tasks.instruction:Instruction.loss_sum", "test_tasks.py::test_instruction_tuning_costs_the_nats_of_the_responses",
   ("return next_token_loss", "return -next_token_loss"),
   ("self.loss)", "self.loss) / batch.n_supervised"),
   ("self.loss)", "self.loss) / len(batch.tokens_BT)"),
   ("self.loss)", "self.loss).detach()", "test_the_instruction_loss_has_a_gradient"))

of("tasks.pretrain:CausalLM.bits_per_byte", "test_tasks.py::test_bits_per_byte_are_the_texts_nats_over_its_bytes",
   ("/ math.log(2)", "* math.log(2)"),
   ("/ math.log(2)", ""),
   ("* len(self.evaluated()) /", "/ len(self.evaluated()) *"),
   ("self.evaluated_bytes()", "len(self.evaluated())"))

of("tasks.pretrain:CorpusTask.evaluated", "test_tasks.py::test_bits_per_byte_by_pencil",
   ("ids[1:1 + n]", "ids[:n]"),
   ("ids[1:1 + n]", "ids[1:]"),
   ("or len(self.val)", "or 1"))

of("tasks.pretrain:masked_loss",
   "test_tasks.py::test_the_masked_loss_is_that_of_the_hidden_tokens_seen_from_both_sides",
   ("flatten(0, 1)[batch.supervised_N]", "flatten(0, 1)[batch.supervised_N - 1]"),
   ("batch.labels_BT.flatten()", "batch.tokens_BT.flatten()"),
   ("None if batch.n_tokens == batch.tokens_BT.numel() else batch.real_BT", "None"),
   ("model.hidden(batch.tokens_BT", "model.hidden(batch.labels_BT.clamp(min=0)"))  # it would see the answer

of("tasks.pretrain:source_loss", "test_tasks.py::test_the_span_loss_is_that_of_the_target_given_the_source",
   ("model.encode(batch.source_BS, batch.real_BS)", "model.encode(batch.source_BS)"),
   ("model.encode(batch.source_BS, batch.real_BS)", "model.encode(batch.source_BS.flip(0), batch.real_BS.flip(0))"),
   ("targets_BT.flatten()", "inputs_BT.flatten()"),
   ("flatten(0, 1)[batch.supervised_N]", "flatten(0, 1)[batch.supervised_N - 1]"))

of("data.noise:mask_tokens", "data/test_noise.py::test_fifteen_in_a_hundred_are_chosen_and_shown_80_10_10",
   ("chance < how.noise_rate", "chance > how.noise_rate"),
   ("fate < 1 - how.random_rate - how.keep_rate", "fate < 1 - how.keep_rate"),
   ("fate < 1 - how.keep_rate)", "fate < 1)"),
   ("np.where(random, drawn, ids)", "ids"),
   (" & allowed", "", "test_control_ids_are_neither_chosen_nor_drawn_nor_the_mask"),
   ("np.where(allowed, chance, 1.0)", "chance", "test_no_text_is_left_without_a_hidden_token"),
   ("argmin()", "argmax()", "test_no_text_is_left_without_a_hidden_token"),
   ("np.where(chosen, ids, IGNORE)", "np.where(masked, ids, IGNORE)"),
   ("np.where(chosen, ids, IGNORE)", "np.where(chosen, noised, IGNORE)",
    "test_labels_stand_exactly_on_the_chosen_and_nothing_else_is_touched"))

of("data.noise:span_counts", "data/test_noise.py::test_the_number_of_hidden_tokens_and_stretches_by_pencil",
   ("round(n * rate)", "round(n * (1 - rate))"),
   ("round(hidden / mean_span)", "round(n / mean_span)"),
   ("round(hidden / mean_span)", "round(hidden * mean_span)"),
   (", n - 1)", ", n)"),
   ("SENTINELS - 1", "SENTINELS"))

of("data.noise:span_noise", "data/test_noise.py::"
                            "test_exactly_so_many_tokens_are_hidden_in_exactly_so_many_stretches_after_a_shown_one",
   ("% 2 == 1", "% 2 == 0"),
   ("(n - hidden, stretches,", "(hidden, stretches,"))

of("data.noise:corrupt_spans", "data/test_noise.py::test_the_papers_example",
   ("[begins | ~hidden]", "[~hidden]"),
   ("number = np.cumsum(begins) - 1", "number = np.cumsum(begins)"),
   ("hidden & ~np.concatenate(([False], hidden[:-1]))", "hidden"),  # a sentinel for every hidden token
   ("int(number[-1]) + 1, eos]", "int(number[-1]), eos]"),
   ("int(number[-1]) + 1, eos]", "int(number[-1]) + 1]"),
   ("hidden & vocabulary.may_hide(ids)", "hidden", "test_a_control_id_is_shown_and_cuts_its_stretch_in_two"))

of("likelihood:of_one_batch", "test_likelihood.py::test_each_token_is_scored_given_all_before_it",
   ("log_softmax(-1)", "softmax(-1)"),
   ("log_softmax(-1)", "log_softmax(0)"),
   ("model.logits(", "-model.logits("),
   ("targets_BT.flatten()", "inputs_BT.flatten()"),
   ("[IGNORE] * len(x)", "[IGNORE] * (len(x) - 1), x[-1]", "test_each_token_is_scored_given_all_before_it"),
   ("flatten(0, 1)[batch.supervised_N]", "flatten(0, 1)[batch.supervised_N - 1]"))

of("likelihood:choose", "test_likelihood.py::test_the_sum_and_the_mean_may_choose_differently",
   ("return max(", "return min("),
   ("sum(ps) / len(ps) if per_token", "sum(ps) if per_token"),
   ("sum(ps) / len(ps) if per_token", "sum(ps) * len(ps) if per_token"),
   ("else sum(ps)", "else sum(ps) / len(ps)"),
   ("scores[k])", "(scores[k], k))"))  # the last of equals

of("objectives:symmetric_kl_sum", "test_objectives.py::test_symmetric_kl_is_the_papers_sum",
   ("log_p_NV.exp() - log_q_NV.exp()", "log_p_NV.exp() + log_q_NV.exp()"),
   ("log_p_NV.exp() - log_q_NV.exp()", "log_p_NV.exp()"),  # one direction, doubled
   (".sum() / 2", ".sum()"),
   (".sum() / 2", ".mean() / 2"),
   ("one_NV.log_softmax(-1)", "one_NV.log_softmax(0)"))

of("objectives:r_drop_sum", "test_objectives.py::test_r_drop_is_the_papers_sum",
   ("both + alpha *", "both - alpha *"),
   ("both + alpha *", "both + alpha / 2 *"),
   ("other_NV)) / 2", "other_NV))"),
   ("cross_entropy_sum(other_NV, targets_N, smoothing)", "cross_entropy_sum(one_NV, targets_N, smoothing)"),
   ("cross_entropy_sum(other_NV, targets_N, smoothing)", "cross_entropy_sum(other_NV, targets_N)"))

of("objectives:label_groups_sum", "test_objectives.py::test_label_groups_are_the_papers_sum",
   (".sum()", ".mean()"),
   ('reduction="sum"', 'reduction="mean"'),
   ("F.binary_cross_entropy_with_logits(z, ", "F.binary_cross_entropy_with_logits(-z, "),
   ("cross_entropy_sum(z, y, smoothing)", "cross_entropy_sum(z, y)"))

of("objectives:squared_norm",
   "test_objectives.py::test_the_squared_norm_is_the_papers_sum_and_its_gradient_twice_the_parameters",
   (".square().sum()", ".abs().sum()"),
   (".square().sum()", ".square().sum().sqrt()"),
   (".square().sum()", ".square().mean()"),
   (".square().sum()", ".detach().square().sum().requires_grad_()"),
   ("for p in parameters]).sum()", "for p in parameters]).amax()"))

of("linear_cross_entropy:loss_and_gradient", "test_linear_cross_entropy.py::test_loss_and_gradients_are_those_of_all_logits",
   ("(1 - smoothing) * told_R1", "told_R1"),
   (" - smoothing * mean_R1", ""),
   ("smoothing - 1)", "-1.0)"),
   ("smoothing / z_RV.shape[1]", "smoothing"),
   ("sum_R1.log() -", "sum_R1.log() +"),
   (".div_(sum_R1)", ""),
   ("z_RV -= z_RV.amax(-1, keepdim=True)", "pass", "test_huge_logits_overflow_nowhere"))

of("linear_cross_entropy:LinearCrossEntropy.forward", "test_linear_cross_entropy.py::test_loss_and_gradients_are_those_of_all_logits",
   ("targets_N[here, None]", "targets_N[:len(hidden_ND[here]), None]"),
   ("= d_logits @ weight_VD", "= -d_logits @ weight_VD"),
   ("d_weight_VD += d_logits", "d_weight_VD = d_logits"),
   ("total += loss", "total = loss"),
   ("first + rows)", "first + rows - 1)"))

of("linear_cross_entropy:LinearCrossEntropy.backward", "test_linear_cross_entropy.py::test_loss_and_gradients_are_those_of_all_logits",
   ("d_total * d_weight_VD", "d_weight_VD"),
   ("d_total.to(d_hidden_ND.dtype) * d_hidden_ND", "d_hidden_ND"))

# ── classes ──────────────────────────────────────────────────────────────────────────────────────

of("objectives:regularised_groups_sum",
   "tasks/test_classification.py::test_r_drop_is_half_of_both_losses_and_their_divergence",
   ("forward(), forward()", "*[forward()] * 2"),
   ("how.r_drop, how.label_smoothing", "how.r_drop"),
   ("labels, how.label_smoothing)", "labels)", "test_evaluation_knows_no_regulariser"),
   ("if not training", "if False", "test_evaluation_knows_no_regulariser"))

of("tasks.classification:Classification.loss_sum",
   "tasks/test_classification.py::test_the_gradient_of_a_step_is_the_loops",
   ("batch.labels,", "batch.labels[::-1],"),
   ("batch.real_BT)", "torch.ones_like(batch.real_BT))"),
   ("batch.labels, self.loss, model.training)", "batch.labels, self.loss, model.training) / len(batch.labels)"),
   ("batch.labels, self.loss, model.training)", "batch.labels, self.loss, model.training) / batch.n_supervised"))

of("tasks.classification:judge",
   "tasks/test_classification.py::test_measures_do_not_depend_on_batch_size_padding_side_or_order",
   ("total / len(numbers)", "total / len(batches)"),
   ("torch.cat(parts)[in_order]", "torch.cat(parts)"),
   ("numbers[in_order]", "numbers"),
   ("label_groups_sum(logits, batch.labels)", "label_groups_sum(logits, batch.labels) / len(chosen)"))

of("tasks.classification:said",
   "tasks/test_classification.py::test_of_equals_the_first_class_is_said_and_of_several_none_at_one_half",
   ("> 0.5", ">= 0.5"),
   ("if group.several", "if not group.several"),
   (".argmax(", ".argmin("))

of("heads:pool", "test_heads.py::test_pool_is_the_papers_words",
   ("real_BT.sum(1, keepdim=True)", "real_BT.shape[1]"),
   (".masked_fill(~real_BT[..., None], 0.0)", ""),
   ("t_T.masked_fill(~real_BT, -1).amax(-1)", "real_BT.sum(-1) - 1"),  # right where padding is on the right
   ("t_T.masked_fill(~real_BT, -1).amax(-1)", "torch.full((len(real_BT),), len(t_T) - 1)"),
   ("masked_fill(~real_BT, real_BT.shape[1]).amin", "masked_fill(~real_BT, 0).amin"),
   ("-torch.inf).amax(1)", "-torch.inf).amax(2)"),
   ("-torch.inf).amax(1)", "0.0).amax(1)"),
   (".masked_fill(~real_BT[..., None], -torch.inf)", ""))

of("heads:Classifier.forward", "test_heads.py::test_a_head_is_the_pooled_state_times_its_matrix",
   ("hidden(tokens_BT, real_BT)", "hidden(tokens_BT)"),
   ("self.pooling)", "'mean')"),
   ("head(pooled_BD)", "self.heads[0](pooled_BD)"),
   ("self.dropout(pool(", "(pool(", "test_dropout_stands_before_the_heads_and_only_in_training"))

of("heads:Classifier.__init__", "test_heads.py::test_heads_start_small_from_the_seed_and_leave_the_backbone_alone",
   ("0.0, backbone.cfg.init_std", "0.0, 1.0"),
   ("raw(1, seed, 0, 7)", "raw(1, 0, 0, 7)"),
   ("nn.init.zeros_(", "nn.init.ones_("),
   ("requires_grad_(False)", "requires_grad_(True)", "test_an_untied_language_head_is_no_part_of_what_is_trained"))

of("metrics:accuracy", "test_metrics.py::test_several_labels_are_counted",
   ("== said_NC", "!= said_NC"),
   (".all(-1)", ".any(-1)"),
   (".all(-1)", ".double().mean(-1)"),
   (".mean()", ".sum()"))

of("metrics:confusion", "test_metrics.py::test_the_confusion_matrix_has_the_right_classes_downwards",
   ("right_NC.long().mT @ said_NC.long()", "said_NC.long().mT @ right_NC.long()"),
   ("@ said_NC.long()", "@ right_NC.long()"),
   ("@ said_NC.long()", "@ (~said_NC).long()"),
   ("@ said_NC.long()", "@ said_NC.long() // 2"))

of("metrics:class_marks", "test_metrics.py::test_single_labels_are_counted",
   ("right_NC & said_NC", "right_NC | said_NC"),
   ("_ratio(hits_C, said_C), _ratio(hits_C, support_C)", "_ratio(hits_C, support_C), _ratio(hits_C, said_C)"),
   ("_ratio(2 * hits_C", "_ratio(hits_C"),
   ("said_C + support_C", "said_C * support_C"),
   ("support_C.long()", "said_C.long()"))

of("metrics:macro_f1", "test_metrics.py::test_marks_by_pencil",
   ("f1_C.mean()", "f1_C.sum()"),
   ("f1_C.mean()", "f1_C.median()"),
   ("f1_C.mean()", "f1_C.amax()"),
   ("f1_C.mean()", "f1_C[f1_C > 0].mean()"))

# ── adversarial training ─────────────────────────────────────────────────────────────────────────

of("adversarial.direction:l2_norm", "adversarial/test_direction.py::test_the_norm_is_the_papers_sum_over_an_examples_whole_sequence",
   ("largest_B11 * scaled_BTD", "scaled_BTD"),
   (".square()", ".abs()"),
   (".sqrt()", ""),
   ("sum((1, 2)", "sum((0, 1, 2)"),
   ("amax((1, 2)", "amax((0, 1)"),
   ("largest_B11, 1.0)", "largest_B11, 0.0)"),
   ("torch.where(largest_B11 > 0, largest_B11, 1.0)", "1.0\n    largest_B11 = 1.0", "test_neither_tiny_nor_huge_gradients_leave_fp32"))

of("adversarial.direction:steepest_l2", "adversarial/test_direction.py::test_the_steepest_step_is_the_papers",
   ("epsilon * unit_BTD", "-epsilon * unit_BTD"),
   ("epsilon * unit_BTD", "unit_BTD"),
   ("l2_norm(unit_BTD)", "l2_norm(unit_BTD)**2"),
   ("l2_norm(unit_BTD)", "unit_BTD.norm()"),
   ("l2_norm(unit_BTD)", "l2_norm(g_BTD)"),
   ("torch.where(good_B11, g_BTD, 0.0)", "g_BTD", "test_an_example_without_a_direction_stays_where_it_is_and_its_neighbours_do_not_notice"),
   ("usable(g_BTD)", "g_BTD.abs().amax((1, 2), keepdim=True).isfinite()", "test_an_example_without_a_direction_stays_where_it_is_and_its_neighbours_do_not_notice"))

of("adversarial.direction:steepest_max", "adversarial/test_direction.py::test_the_steepest_step_is_the_papers",
   ("epsilon * torch", "-epsilon * torch"),
   ("epsilon * torch", "torch"),
   (".sign()", ""),
   (".sign()", ".sign().abs()"),
   ("torch.where(usable(g_BTD), g_BTD, 0.0)", "g_BTD", "test_an_example_without_a_direction_stays_where_it_is_and_its_neighbours_do_not_notice"))

of("adversarial.direction:into_ball", "adversarial/test_direction.py::test_a_step_too_far_ends_on_the_ball_and_a_short_one_stays",
   (".clamp(max=1.0)", ""),
   (".clamp(max=1.0)", ".clamp(min=1.0)"),
   ("l2_norm(r_BTD)", "r_BTD.norm()"),
   ("epsilon / l2_norm", "1 / l2_norm"),
   ("(max=1.0)", "(max=2.0)"))

of("adversarial.direction:ascend", "adversarial/test_direction.py::test_an_ascent_is_a_step_along_the_gradient_and_back_into_the_ball",
   ("r_BTD + steepest_l2", "r_BTD - steepest_l2"),
   ("r_BTD + steepest_l2", "steepest_l2"),
   ("(g_BTD, step_size)", "(g_BTD, epsilon)"),
   ("steepest_l2", "steepest_max"),
   (", epsilon)", ", 2 * epsilon)"))

of("adversarial.direction:drawn", "adversarial/test_direction.py::test_what_is_drawn_fills_the_papers_cube_for_each_length_and_spares_padding",
   (".sub_(1)", ""),
   (" / coordinates_B11.sqrt()", ""),
   ("coordinates_B11.sqrt()", "coordinates_B11"),
   (" * real_BT[..., None]", ""),
   ("d_model * real_BT.sum(1)", "real_BT.sum(1)"),
   ("real_BT.sum(1)", "real_BT.shape[1] + 0 * real_BT.sum(1)"),
   (", generator=generator", ""))

of("adversarial.attack:OnOutputs.backward", "adversarial/test_attacks.py::test_the_gradient_is_that_of_both_losses",
   ("self.cfg.adversarial_weight * adversarial", "adversarial"),
   ("(self.cfg.adversarial_weight * adversarial).backward()", "pass"),
   ("perturbed(self.embedding, r_BTD)", "perturbed(self.embedding, -r_BTD)"),
   ("perturbed(self.embedding, r_BTD)", "perturbed(self.embedding)"),
   ("self.perturbation(passes, g_BTD)", "self.perturbation(passes, g_BTD.abs())"))

of("adversarial.attack:OnOutputs._clean", "adversarial/test_attacks.py::test_the_gradient_is_that_of_both_losses",
   ("self.cfg.clean_weight * clean", "clean"),
   ("(self.cfg.clean_weight * clean).backward()", "clean.backward(inputs=seen.outputs)"),
   ("clean.backward(inputs=seen.outputs)", "clean.backward()"))

of("adversarial.attack:PGD.perturbation", "adversarial/test_attacks.py::test_the_gradient_is_that_of_both_losses",
   ("range(self.cfg.steps)", "range(self.cfg.steps - 1)"),
   ("self._gradient_at(passes, r_BTD) if i else g_BTD", "g_BTD"),
   ("self.cfg.step_size or self.cfg.epsilon", "self.cfg.epsilon"),
   ("torch.zeros_like(g_BTD)", "torch.full_like(g_BTD, 1e-3)"))

of("adversarial.attack:FreeLB.backward", "adversarial/test_attacks.py::test_freelb_is_the_mean_of_the_gradients_on_the_way_up",
   ("loss() / K", "loss()"),
   ("range(K)", "range(K - 1)"),
   ("perturbed(self.embedding, delta_BTD)", "perturbed(self.embedding)"),
   ("manual_seed(passes.seed)", "manual_seed(passes.seed + 1)"),
   ("delta_BTD = ascend(delta_BTD", "ascend(delta_BTD"),
   ("self.cfg.step_size or self.cfg.epsilon", "self.cfg.epsilon"))

of("adversarial.embedded:Pass.gradient", "adversarial/test_attacks.py::test_source_and_target_are_one_sequence",
   ("gradients, 1)", "gradients[:1], 1)"))

of("adversarial.vat:VAT.backward", "adversarial/test_vat.py::test_virtual_training_is_the_papers_sum",
   ("self.cfg.adversarial_weight * virtual", "virtual"),
   ("self.cfg.clean_weight * clean", "clean"),
   ("passes.seed + number", "passes.seed"),
   ("in enumerate(passes.views)", "in enumerate(passes.views[:1])"))

of("adversarial.vat:VAT._divergence", "adversarial/test_vat.py::test_virtual_training_is_the_papers_sum",
   ("view.share * divergence_sum", "divergence_sum"),
   ("divergence_sum(told, view.says())", "divergence_sum(view.says(), told)"),
   ("perturbed(self.embedding, r_BTD)", "perturbed(self.embedding, -r_BTD)"),
   ("perturbed(self.embedding, r_BTD)", "perturbed(self.embedding)"),
   ("torch.no_grad()", "torch.enable_grad()"))

of("adversarial.vat:VAT._direction", "adversarial/test_vat.py::test_virtual_training_is_the_papers_sum",
   ("self.cfg.xi * d_BTD", "d_BTD"),
   ("self.cfg.epsilon * d_BTD", "d_BTD"),
   ("self.cfg.epsilon * d_BTD", "-self.cfg.epsilon * d_BTD"),
   ("range(self.cfg.power_iterations)", "range(1)"),
   ("divergence_sum(told, view.says())", "divergence_sum(view.says(), told)"))

of("objectives:kl_sum", "test_objectives.py::test_kl_is_the_papers_sum",
   ("log_p_NC - log_q_NC", "log_q_NC - log_p_NC"),
   ("log_p_NC.exp()", "log_q_NC.exp()"),
   ("log_p_NC.exp() * ", ""),
   ("said_NC.log_softmax(-1)", "said_NC"),
   ("told_NC.log_softmax(-1)", "told_NC.log_softmax(0)"))

of("adversarial.matrix:Matrix.backward", "adversarial/test_attacks.py::test_the_gradient_is_that_of_both_losses",
   ("steepest_l2(G_VD[None]", "-steepest_l2(G_VD[None]"),
   ("self.cfg.adversarial_weight * adversarial", "adversarial"),
   ("self.cfg.epsilon)[0]", "1.0)[0]"),
   ("steepest_l2(G_VD[None], self.cfg.epsilon)[0]", "steepest_l2(G_VD[:, None], self.cfg.epsilon)[:, 0]"))

of("adversarial.matrix:Matrix._clean", "adversarial/test_attacks.py::test_what_was_accumulated_before_changes_nothing",
   ("fresh[-1]", "self.weight.grad.clone()"),
   ("self.cfg.clean_weight * clean", "clean", "test_the_gradient_is_that_of_both_losses"))

of("adversarial.matrix:moved", "adversarial/test_attacks.py::test_a_moved_matrix_comes_back_bit_for_bit_where_subtraction_would_round",
   ("weight.copy_(before)", "weight.sub_(r)"),
   ("weight.add_(r)", "weight.sub_(r)"),
   (".clone()", ""))

# ── a step ───────────────────────────────────────────────────────────────────────────────────────

of("trainer:Trainer._try_step", "test_trainer.py::test_a_step_is_adamw_on_the_clipped_gradient_at_the_schedules_rate",
   ("self.optim.clip_norm", "0.0"),
   ("self._set_lr(step)", "self._set_lr(step + 1)"),
   ("self.optimizer.step()", "None"),
   ("self.optimizer.zero_grad(set_to_none=True)                               # 13", "None  # 13"),
   ("n_supervised, n_texts, n_tokens = counted(batches)", "n_supervised, n_texts, n_tokens = counted({0: batches[0]})",
    "test_the_logged_loss_and_gradient_are_those_of_the_mean_over_the_steps_tokens"))

of("precision:LossScaler.update", "test_precision.py::test_the_scale_by_pencil",
   ("*= self.backoff", "*= 1.0"),
   ("self.scale * self.growth, 0", "self.scale * self.growth, -1"),
   ("self.good_steps + 1 if finite else 0", "self.good_steps + 1"),
   ("== self.interval", "== self.interval + 1"),
   ("self.skipped += not finite", "self.skipped += finite"),
   ("0 if finite else self.skipped_in_a_row + 1", "self.skipped_in_a_row + (not finite)"))

of("precision:unscale", "test_precision.py::test_with_a_scale_the_clipped_step_is_the_same",
   ("1.0 / scale", "scale"),
   ("1.0 / scale", "1.0"),
   ("1.0 / scale", "2.0 / scale"),
   ("1.0 / scale", "1.0 / scale**2"))

of("trainer:Trainer._try_step", "test_precision.py::test_with_a_scale_the_clipped_step_is_the_same",
   ("self._unscale(losses) ", "pass"),
   ("grad_norm = global_norm(self.model.parameters())", "grad_norm = global_norm(self.model.parameters()) * self.scale"),
   ("return self.optimizer.zero_grad(set_to_none=True)", "return None", "test_a_skipped_step_moves_nothing_but_the_scale"))

of("trainer:Trainer._backward_penalties", "test_precision.py::test_with_a_scale_the_clipped_step_is_the_same",
   ("(term * self.scale)", "term"))

of("precision:Casting.__torch_function__", "test_precision.py::test_products_are_short_and_nothing_else_is",
   ("if function in SHORT", "if True"),
   ("if function in SHORT", "if False"),
   ("_cast(value) for name", "value for name"))

of("precision:as_before", "test_precision.py::test_layers_computed_again_are_computed_in_the_same_dtype",
   ("casting(active())", "contextlib.nullcontext()"))

of("precision:_cast", "test_precision.py::test_an_inner_dtype_decides_and_an_exception_leaves_nothing_behind",
   ("value.to(active())", "value.to(torch.bfloat16)"))

of("trainer:Trainer._micro_batches", "test_trainer.py::test_a_step_does_not_depend_on_how_it_is_split_into_micro_batches",
   ("first + place", "place"),
   ("min(self.a_step", "min(1"))

of("trainer:Trainer._passes",
   "test_trainer.py::test_the_logged_loss_and_gradient_are_those_of_the_mean_over_the_steps_tokens",
   ("(self.scale / n_supervised)", "self.scale"),
   ("(self.scale / n_supervised)", "(self.scale / max(1, batch.n_supervised))"),
   ("(self.scale / n_supervised)", "(-self.scale / n_supervised)",
    "test_a_step_is_adamw_on_the_clipped_gradient_at_the_schedules_rate"),
   ("torch.manual_seed(seed)", "pass", "test_an_attacks_passes_drop_the_same_units"))

of("trainer:Trainer._backward",
   "test_trainer.py::test_the_logged_loss_and_gradient_are_those_of_the_mean_over_the_steps_tokens",
   ("totals[name] + value", "value"),
   ("n_supervised, n_texts, seed)", "n_supervised * len(batches), n_texts, seed)"),
   ("n_supervised, n_texts, seed)", "max(1, batch.n_supervised), n_texts, seed)"),  # a mean of means
   ("self.seed, self.state[\"step\"], place", "self.seed, 0, 0",
    "test_dropout_differs_between_steps_and_between_micro_batches"))

of("optim:build_adamw", "test_optim.py::test_adamw_steps_are_the_papers",
   ("torch.optim.AdamW(groups", "torch.optim.Adam(groups"),  # decay through the gradient, as before Loshchilov & Hutter
   ("(cfg.beta1, cfg.beta2)", "(cfg.beta2, cfg.beta1)"),
   ("cfg.adam_eps", "1e-8"),
   ("cfg.weight_decay if DECAYS", "0.0 if DECAYS"),
   ("cfg.weight_decay if DECAYS[role] else 0.0", "cfg.weight_decay",
    "test_decay_pulls_only_where_the_table_says"),
   ("lr=cfg.lr", "lr=1e-3", "test_the_configs_fields_reach_the_optimiser"))

of("optim:learning_rate", "test_optim.py::test_the_schedule_by_pencil",
   ("(step + 1) / cfg.warmup_steps", "step / cfg.warmup_steps"),
   ("(step + 1) / cfg.warmup_steps", "(step + 1) / (cfg.warmup_steps + 1)"),
   ("step < cfg.warmup_steps", "step <= cfg.warmup_steps"),
   ("(1 + math.cos", "(1 - math.cos"),
   ("math.cos(math.pi * p)", "math.cos(math.pi * p / 2)"),
   ("* p)) / 2", "* p))"),
   ("total_steps - 1 - cfg", "total_steps - cfg"),
   ("cfg.min_lr_ratio * cfg.lr", "0.0"),
   ("(lowest - cfg.lr) * p", "(cfg.lr - lowest) * p"),
   ('if cfg.schedule == "linear" else cfg.lr', "", "test_the_schedule_by_pencil[constant-expected2]"),
   ("min(1.0, ", "max(0.0, ", "test_the_last_step_has_the_lowest_rate_and_later_ones_keep_it"))

of("optim:clip_by_global_norm", "test_optim.py::test_clipping_is_the_papers",
   ("max_norm / norm", "norm / max_norm"),
   (".clamp(max=1.0)", ""),
   (".clamp(max=1.0)", ".clamp(min=1.0)"),
   ("max_norm > 0", "max_norm >= 0"),
   ("return norm", "return norm.clamp(max=max_norm)"))

of("optim:global_norm", "test_optim.py::test_clipping_is_the_papers",
   ("if p.grad is not None])", "if p.grad is not None], 1)"),
   ("torch.linalg.vector_norm(", "torch.sum("),
   ("torch.linalg.vector_norm(", "torch.amax("))  # the largest tensor's norm

# ── from logits to a token ───────────────────────────────────────────────────────────────────────

of("sampling:greedy", "test_sampling.py::test_greedy_is_the_likeliest_and_the_lowest_id_wins_a_tie",
   ("argmax(-1)", "argmin(-1)"),
   ("argmax(-1)", "argmax(0)"),
   ("argmax(-1)", "diff(dim=-1).argmax(-1)"),
   ("argmax(-1)", "flip(-1).argmax(-1).sub(2).abs()"))  # the highest id of a tie

of("sampling:choose", "test_sampling.py::test_choices_follow_the_softmax_over_temperature",
   ("/ max(how.temperature", "* max(how.temperature"),
   ("/ max(how.temperature, 1e-30)", ""),
   ("/ max(how.temperature, 1e-30)", "/ max(how.temperature, 1e-30)**2"),
   ("logits_BV.softmax(-1), generators", "logits_BV.sigmoid(), generators"),
   ("how.temperature == 0", "how.temperature <= 1"),
   ("how.temperature, 1e-30", "how.temperature, 0.0", "test_a_temperature_next_to_zero_is_greedy_and_never_nan"),
   (" - logits_BV.amax(-1, keepdim=True)", "", "test_a_temperature_next_to_zero_is_greedy_and_never_nan"),
   ("logits_BV = penalise_repetition", "penalise_repetition", "test_the_penalty_comes_before_the_filters"),
   ("keep_min_p(keep_top_p(logits_BV, how.top_p), how.min_p)", "keep_min_p(logits_BV, how.min_p)",
    "test_penalty_temperature_and_filters_act_in_order"),
   ("keep_top_k(logits_BV, how.top_k)\n    logits_BV = keep_min_p(keep_top_p(logits_BV, how.top_p), how.min_p)",
    "keep_min_p(keep_top_p(logits_BV, how.top_p), how.min_p)\n    logits_BV = keep_top_k(logits_BV, how.top_k)",
    "test_penalty_temperature_and_filters_act_in_order"))

of("sampling:penalise_repetition", "test_sampling.py::test_repetition_penalty_is_the_papers",
   ("logits_BV > 0", "logits_BV < 0"),
   ("logits_BV * penalty", "logits_BV / penalty"),  # the paper's letter: likelier where z < 0
   ("logits_BV / penalty", "logits_BV - penalty"),
   ("torch.where(seen_BV", "torch.where(~seen_BV"),
   ("penalty == 1", "penalty >= 1"))

of("sampling:keep_top_k", "test_sampling.py::test_a_filter_keeps_what_its_definition_names_and_at_least_one_token",
   ("< kth_B1", "<= kth_B1"),
   ("< kth_B1", "> kth_B1"),
   (".topk(k,", ".topk(k + 1,"),
   ("[:, -1:]", "[:, :1]"),
   ("dim=-1)", "dim=-1, largest=False)"),
   ("-math.inf", "0.0"))

of("sampling:keep_top_p", "test_sampling.py::test_a_filter_keeps_what_its_definition_names_and_at_least_one_token",
   (">= p", "> p"),
   (" - sorted_BV.softmax(-1)", ""),
   ("descending=True", "descending=False"),
   ("drop_BV[:, 0] = False", "pass"),
   (".scatter(-1, order_BV, drop_BV)", " | drop_BV"),
   ("sorted_BV.softmax(-1).cumsum", "sorted_BV.exp().sqrt().cumsum"))

of("sampling:keep_min_p", "test_sampling.py::test_a_filter_keeps_what_its_definition_names_and_at_least_one_token",
   ("+ math.log(min_p)", "- math.log(min_p)"),
   ("math.log(min_p)", "min_p"),
   ("logits_BV < logits", "logits_BV <= logits"),
   ("logits_BV < logits", "logits_BV > logits"),
   (".amax(-1", ".amin(-1"))

of("sampling:draw", "test_sampling.py::test_draws_follow_the_distribution",
   ("row_V.cpu()", "row_V.cpu().sqrt()"),
   ("row_V.cpu()", "1 - row_V.cpu()"),
   ("row_V.cpu()", "row_V.cpu().flip(0)"),
   ("row_V.cpu()", "torch.ones_like(row_V)"))
