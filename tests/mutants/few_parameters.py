"""What trains few parameters."""

from mutants.row import of

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
   ("F.linear(x, A_RI)", "F.linear(x, 2 * A_RI)"))

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
   ("add_(self.base(x))", "sub_(self.base(x))"),
   (".add_(self.base(x))", ""))

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
   ("scale * lambda_R", "lambda_R"),
   ("scale * lambda_R", "-scale * lambda_R"),
   ("lambda_R * F", "F"),
   ("lambda_R * F", "lambda_R.abs() * F"))

of("peft.adalora:orthogonality", "peft/test_formulas.py::test_the_orthogonality_term_is_the_papers_two_squared_norms",
   ("P_OR.mT @ P_OR - one_RR", "P_OR.mT @ P_OR + one_RR"),
   ("Q_RI @ Q_RI.mT - one_RR", "Q_RI @ Q_RI.mT"),
   ("(Q_RI @ Q_RI.mT - one_RR).square().sum()", "(Q_RI @ Q_RI.mT - one_RR).norm()"),  # as the program has it
   (".square().sum() + (Q", ".square().mean() + (Q"))

of("peft.adalora:AdaLoRALinear.prune", "peft/test_adalora.py::test_budget_scores_and_masks_are_the_papers_over_a_whole_schedule",
   ("self.kept", "~self.kept"),
   ("* self.kept", "+ self.kept"),
   ("fill(self.lambdas, whole(self.lambdas) * self.kept)", "None"),
   ("* self.kept", "* 0"))

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

of("peft.houlsby:Houlsby.modules", "peft/test_sites.py::test_a_bottleneck_stands_behind_both_sub_layers_or_behind_the_mlp",
   ('else ("mlp",)', 'else ("attn",)'),
   ('("attn", "mlp") if', '("mlp",) if'))

of("peft.lora:LoRA.modules", "peft/test_sites.py::test_where_nothing_is_named_it_is_the_papers_matrices",
   ("self.otherwise", '("q_proj", "k_proj")'))

of("peft.adalora:AdaLoRALinear.__init__",
   "peft/test_formulas.py::test_adaloras_columns_and_rows_begin_near_length_one_and_its_lambdas_at_zero",
   ("/ math.sqrt(O)", "/ math.sqrt(I)"),
   ("/ math.sqrt(I)", "/ math.sqrt(O)"),
   ("torch.zeros(cfg.rank", "torch.ones(cfg.rank"))

of("peft.virtual:PrefixAttention.__init__", "peft/test_formulas.py::test_a_prefix_begins_with_gaussian_keys_and_no_values",
   ("torch.randn(shape", "torch.rand(shape"),
   ("torch.zeros(shape", "torch.ones(shape"))

of("peft.adalora:AdaLoRA.after_update", "peft/test_adalora.py::test_with_more_steps_no_rank_comes_back_and_the_new_schedule_ends_it",
   ("min(self.schedule.budget(step), before)", "self.schedule.budget(step)"),
   (" or (self.schedule.is_spent(step) and before > self.schedule.last)", "",
    "test_with_fewer_steps_the_budget_is_spent_at_once_where_it_should_have_been_before"))

of("peft.adalora:AdaLoRA.may_be_best", "peft/test_adalora.py::test_no_weights_are_best_whose_budget_is_unspent_though_it_is_time",
   (" and self.kept_triplets() <= self.schedule.last", ""))

of("peft.adapter:Adapter.fingerprint", "peft/test_sites.py::test_a_base_of_the_same_tensors_that_computes_something_else_is_another",
   ("isinstance(module, Transformer)", "False"))

of("peft:trained_rows", "peft/test_contract.py::test_the_table_says_of_each_part_how_many_it_is_and_its_per_cent_of_the_base",
   ("100 * sum(n) / base", "100 * sum(n) / (base + sum(n))"),
   ("100 * total / base", "100 * total / (base + total)"))
