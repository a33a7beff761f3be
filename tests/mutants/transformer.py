"""The Transformer."""

from mutants.row import of

of("model:rms_norm", "model/test_blocks.py::test_rms_norm_is_the_papers_sum",
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

of("model:rotary_angles", "model/test_blocks.py::test_rotary_angles_are_positions_over_growing_wavelengths",
   ("(-2 * i_P", "(2 * i_P"),
   ("(-2 * i_P", "(-i_P"),
   ("(-2 * i_P", "(-2 * (i_P + 1)"),  # the paper counts i from 1 and writes i − 1
   ("m[..., None] *", "m[..., None] /"),
   ("m[..., None] *", "(m[..., None] + 1) *"),
   ("angles.cos(), angles.sin()", "angles.sin(), angles.cos()"),
   ("positions if positions.dtype == torch.float64 else positions.float()", "positions.float()"))

of("model:rotate", "model/test_blocks.py::test_rotation_is_the_papers_matrix",
   ("even * cos - odd * sin", "even * cos + odd * sin"),
   ("even * sin + odd * cos", "odd * cos - even * sin"),
   ("even * cos - odd * sin", "even * sin - odd * cos"),
   ("even, odd = ", "odd, even = "),
   ("-1, 2).unbind(-1)", "2, -1).unbind(-2)"),  # halves, not neighbours
   ("dim=-1)", "dim=-2)"),
   (".to(x.dtype)", "", "model/test_architectures.py::test_rotary_tables_stay_in_fp32_when_the_model_is_bf16"))

of("model:spelled_attention", "model/test_blocks.py::test_attention_is_the_papers_sum_under_any_mask",
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
   ("F.dropout(map_BHTS, dropout)", "map_BHTS", "model/test_dropout.py::test_dropout_acts_in_training_and_never_in_evaluation[map-spelled]"))

of("model:causal", "model/test_blocks.py::test_causal_lets_a_query_look_at_itself_and_before",
   ("<= t_T1", "< t_T1"),
   ("<= t_T1", ">= t_T1"),
   ("<= t_T1", "<= t_T1 + 1"),
   ("torch.arange(offset, offset + length", "torch.arange(length"),
   ("return torch.arange(offset + length", "return torch.arange(length"))

of("model:_causal_among_real",
   "model/test_padding.py::test_what_stands_on_padding_changes_no_real_logit_and_no_gradient[left-spelled]",
   ("see_TS & real_BS[:, None] |", "see_TS |"),
   ("see_TS & real_BS[:, None] |", "real_BS[:, None] |", "model/test_padding.py::test_a_padded_row_has_the_logits_it_has_alone[left-spelled]"),
   ("& real_BS", "& ~real_BS"),
   ("& real_BS", "| real_BS"),
   (" | itself_TS", "", "test_a_row_of_nothing_but_padding_is_finite_forwards_and_backwards"),
   ("keepdim=True) - 1", "keepdim=True)", "test_a_row_of_nothing_but_padding_is_finite_forwards_and_backwards"))

of("model:gated_swish", "model/test_blocks.py::test_gated_swish_is_the_papers_product",
   ("F.silu(gate) * up", "F.silu(up) * gate"),
   ("F.silu", "F.gelu"),
   ("F.silu", "F.sigmoid"),
   ("F.silu", "-F.silu"),
   ("F.silu(gate) * up", "F.silu(gate) + up"),
   ("F.silu(gate) * up", "F.silu(gate * up)"))

of("compiled_forms:side_by_side", "model/test_compiled_forms.py::test_products_side_by_side_are_each_ones_own",
   ("[linear.weight for linear in linears]", "[linear.weight for linear in reversed(linears)]"),
   ("[len(linear.weight) for linear in linears]", "[len(linear.weight) for linear in reversed(linears)]"),
   ("!= torch.float32", "== torch.float32", "test_what_is_more_than_its_matrix_is_asked_by_itself"),
   ("_compiled_for_a_cpu(x) and ", "", "test_what_is_more_than_its_matrix_is_asked_by_itself"),
   (" and _are_alike(linears)", "", "test_what_is_more_than_its_matrix_is_asked_by_itself"))

of("compiled_forms:_are_alike", "model/test_compiled_forms.py::test_what_is_more_than_its_matrix_is_asked_by_itself",
   ("type(linear) is nn.Linear and ", "isinstance(linear, nn.Module) and "),
   (" and linear.bias is None", ""),
   (" and not is_hooked(linear)", ""),
   (" and len({linear.weight.requires_grad for linear in linears}) == 1", ""))

of("compiled_forms:is_hooked", "model/test_compiled_forms.py::test_what_is_more_than_its_matrix_is_asked_by_itself",
   ("module._forward_hooks or ", ""),
   ("module._forward_pre_hooks or ", ""),
   ("module._backward_hooks or ", ""),
   (" or module._backward_pre_hooks", ""))

of("compiled_forms:_compiled_for_a_cpu", "model/test_compiled_forms.py::test_other_devices_have_forms_of_their_own",
   ('x.device.type == "cpu"', "True"),
   ("torch.compiler.is_compiling()", "True", "test_what_is_more_than_its_matrix_is_asked_by_itself"))

of("compiled_forms:spelled_is_faster", "model/test_compiled_forms.py::test_attention_is_spelled_where_that_is_faster",
   ("_compiled_for_a_cpu(q_BHTK) and ", ""),
   ("== torch.bfloat16", "!= torch.float32"),
   ("<= CONTEXT", "< CONTEXT"),
   ("context <= CONTEXT", "True"))

of("model:MLP.forward", "model/test_blocks.py::test_mlp_gates_with_gate_proj",
   ("(self.gate_proj, self.up_proj)", "(self.up_proj, self.gate_proj)"),
   ("self.gate_proj", "self.up_proj"))

of("model:Attention._for_each_query_head", "model/test_architectures.py::test_the_model_is_the_papers_decoder[GQA-spelled]",
   ("repeat_interleave(group, dim=1)", "repeat(1, group, 1, 1)"),  # head h takes g = h mod G, not ⌊h G/H⌋
   ("repeat_interleave(group, dim=1)", "repeat_interleave(group, dim=1).flip(1)"),
   ("repeat_interleave(group, dim=1)", "repeat_interleave(group, dim=1).roll(1, 1)"),
   ("repeat_interleave(group, dim=1)", "mean(1, keepdim=True).expand(-1, self.n_heads, -1, -1)"))

of("model:Attention.project", "model/test_architectures.py::test_the_model_is_the_papers_decoder[GQA-fused]",
   ("self.k_proj,", "self.v_proj,"),
   ("q_BHTK = rotate(self._heads(q, self.n_heads), *angles)", "q_BHTK = self._heads(q, self.n_heads)"),
   ("v_BGTK = self._heads(v, self.n_kv_heads)", "v_BGTK = rotate(self._heads(v, self.n_kv_heads), *angles)"),
   ("(q_BHTK, k_BGTK, v_BGTK) if", "(q_BHTK, v_BGTK, k_BGTK) if"))

of("model:Block.forward", "model/test_architectures.py::test_the_model_is_the_papers_decoder[MHA-fused]",
   ("x_BTD + self.dropout(self.attn(", "self.dropout(self.attn("),
   ("x_BTD + self.dropout(self.mlp(", "x_BTD - self.dropout(self.mlp("),
   ("self.attn(self.attn_norm(x_BTD)", "self.attn(x_BTD"),
   ("self.mlp_norm(x_BTD)", "self.attn_norm(x_BTD)"))

of("model:Transformer.hidden", "model/test_architectures.py::test_the_model_is_the_papers_decoder[GQA-fused]",
   ("self.final_norm(x_BUD)", "x_BUD"),
   ("enumerate(self.layers)", "enumerate(reversed(self.layers))"),
   ("enumerate(self.layers)", "enumerate(self.layers[1:])"),
   ("x_BUD = self.dropout(x_BUD)", "x_BUD = x_BUD",
    "model/test_dropout.py::test_dropout_acts_in_training_and_never_in_evaluation[embedding-fused]"))

of("model:Transformer._angles", "model/test_architectures.py::test_the_model_is_the_papers_decoder[GQA-fused]",
   ("self.cfg.rope_theta", "10_000.0"),
   ("places.double() if", "places if"))

of("model:Transformer._view",
   "model/test_cache.py::test_cached_logits_are_the_uncached_ones_at_every_position[GQA-[5, 8]-full-fused]",
   ("if offset and T > 1 else None", "if False else None"),
   ("(offset, offset + T, device", "(0, T, device"),
   ("[:, offset:]", "[:, :T]",
    "test_cached_logits_are_the_uncached_ones_at_every_position[GQA-[5, 8]-left-padded-spelled]"),
   (".cumsum(-1) - 1)", ".cumsum(-1) * 0)", "model/test_padding.py::test_a_padded_row_has_the_logits_it_has_alone[left-spelled]"),
   (".cumsum(-1)", ".flip(-1).cumsum(-1)", "model/test_padding.py::test_a_padded_row_has_the_logits_it_has_alone[left-spelled]"))

of("cache:refuse_overflow", "model/test_cache.py::test_the_context_ends_where_the_config_says",
   ("taken + new > limit", "taken + new >= limit"),
   ("if taken + new > limit", "if new > limit", "test_the_cache_ends_where_its_room_does"))

of("model:Transformer.logits", "model/test_architectures.py::test_logits_and_loss_inputs_are_fp32_at_least",
   ("torch.promote_types(logits.dtype, torch.float32)", "logits.dtype"),
   ("torch.promote_types(logits.dtype, torch.float32)", "torch.float32"))

of("model:init_std", "model/test_parameters.py::test_initial_weights_have_the_spread_of_the_table",
   ("1 / math.sqrt(cfg.d_model)", "cfg.init_std"),
   ("1 / math.sqrt(cfg.d_model)", "1 / cfg.d_model"),
   ("per_layer * cfg.n_layers", "cfg.n_layers"),
   ("matrix / math.sqrt(", "matrix * math.sqrt("),
   ('(("embed", "lm_head"), cfg.init_std)', '(("embed", "lm_head"), matrix)'),
   ('("o_proj", "down_proj")', '("o_proj", "up_proj", "down_proj")'))  # llama2.c's slip

# ── one token at a time ──────────────────────────────────────────────────────────────────────────

of("held:quantised", "test_decode.py::test_rows_are_rounded_to_a_scale_of_their_own",
   ("keepdim=True) / 127", "keepdim=True) / 128"), ("amax(-1, ", "amax(0, "), (".abs()", ""), (".round()", ""), ("s_F1 == 0, 1", "s_F1 == 0, 0.5"))

of("held:quantised", "test_decode.py::test_a_bf16_rows_largest_weight_keeps_its_sign",
   ("torch.promote_types(weight_FD.dtype, torch.float32)", "weight_FD.dtype"), (".clamp(-127, 127)", ""))

of("decode:look_by_sums", "test_decode.py::test_attention_by_sums_is_attention[2]",
   ("/ math.sqrt(q_BH1K.shape[-1])", "/ q_BH1K.shape[-1]"), (" + attn_mask", ""), ("softmax(-1)", "softmax(-2)"), ("(k_BGSK.shape[1], -1)", "(-1, k_BGSK.shape[1])"))

ALIKE = "test_decode.py::test_however_a_matrix_is_held_it_multiplies_alike"
of("held:Held.forward", f"{ALIKE}[True-False-3]", ("y_BF * self.scale_F if self.int8", "y_BF if self.int8"), ("filled[:, :self.n_rows]", "filled"))

of("held:in_blocks", f"{ALIKE}[True-False-3]", (".sum(2)", ".sum(3)"), ("x_BD[:, None, :, None]", "x_BD[:1, None, :, None]"))

of("held:in_parts", f"{ALIKE}[False-False-3]", (".flatten(0, 1).T", ".flatten(0, 1)"))

of("decode:turned_by", "test_decode.py::test_a_step_says_what_the_model_says[True-GQA-padded]",
   ("wide * cos + swapped * sin", "wide * cos - swapped * sin"), (".flip(-1)", ".flip(-2)"))

of("decode:HeldBlock.forward", "test_decode.py::test_a_step_says_what_the_model_says[True-GQA-padded]",
   ("attn_mask=may_look", "attn_mask=None"), ("qkv[:, :H + G], *turn", "qkv[:, :H + G], turn[0], -turn[1]"),
   ("qkv[:, H + G:, None]", "turned[:, H:, None]"), ("self.mlp_norm(x_BD)", "self.attn_norm(x_BD)"))

of("decode:Step.forward", "test_decode.py::test_a_step_says_what_the_model_says[True-GQA-padded]",
   ("looks_BE.sum(-1) - 1", "looks_BE.sum(-1)"), ("looks_BE.sum(-1) - 1", "slice(end - 1, end)"), ("masked_fill(~looks_BE", "masked_fill(looks_BE"))

of("decode:Step.forward", "test_decode.py::test_a_step_says_what_the_model_says[True-GQA-one row]", ("slice(end - 1, end)", "slice(end - 2, end - 1)"))

of("decode:put", "test_decode.py::test_a_step_says_what_the_model_says[True-GQA-padded]", ("narrow(2, end - 1, 1)", "narrow(2, end - 2, 1)"))

of("decode:Step.forward", "test_decode.py::test_a_recorded_step_says_what_the_model_says[padded]", ("<= place_1", "< place_1"))

FULL = "test_decode.py::test_no_token_is_taken_beyond_the_context[True]"
of("recorded:LentCache.__init__", FULL, ("self.max_len, self.room = cfg.max_seq_len, room", "self.room = room"))

of("decode:Stepper.next_logits", FULL, ("cache.length, 1, ", "cache.length, 0, "))

AS_COMPILED = "test_decode.py::test_one_row_is_compiled_once_and_so_are_several"
of("decode:Stepper._taken", AS_COMPILED, ("[:, :end].contiguous()", "[:, :end]"), ("[:, :end].contiguous()", ""))

of("decode:Stepper._as_compiled", AS_COMPILED, ("frozen=several and not self.int8", "frozen=several"), ("if several not in self.captured", "if True"))

of("speculate:chance", "test_speculate.py::test_drafted_and_judged_a_token_is_distributed_as_the_large_model_has_it",
   ("p_V[token] / q_V[token]", "q_V[token] / p_V[token]"),
   ("p_V[token] / q_V[token]", "p_V[token]"),
   ("min(1.0", "max(1.0"),
   ("min(1.0, (p_V[token] / q_V[token]).item())", "float(p_V[token] >= q_V[token])"))  # the draft stays or not by the sign alone

of("speculate:residual", "test_speculate.py::test_drafted_and_judged_a_token_is_distributed_as_the_large_model_has_it",
   ("p_V - q_V", "q_V - p_V"),
   (".clamp(min=0)", ".abs()"),
   ("more_V / total if total > 0 else p_V", "p_V"),
   ("more_V / total", "more_V"))

of("speculate:judged", "test_speculate.py::test_the_draft_stays_up_to_the_first_that_does_not",
   (">= chance", "< chance"),
   ("p_NV[-1:]", "p_NV[:1]"),
   ("drafted[:n]", "drafted[:n + 1]"))

of("speculate:Speculator._round", "test_speculate.py::test_greedy_it_is_the_same_text[penalised-5]",
   ("*tokens[:m]", "*tokens"),
   ("[-len(tokens) - 1:]", "[:len(tokens) + 1]"))

of("speculate:Speculator.stream", "test_speculate.py::test_greedy_it_is_the_same_text[greedy-5]",
   ("reader.forget(len(ids) - 1)", "reader.forget(len(ids))"))
