"""A training step; from logits to a token."""

from mutants.row import of

# ── a step ────────────────────────────────────────────────────────────────────────────────────────

of("trainer:Trainer._try_step", "trainer/test_step.py::test_a_step_is_adamw_on_the_clipped_gradient_at_the_schedules_rate",
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
   ("global_norm(self.model.parameters())) ", "global_norm(self.model.parameters()) * self.scale)"),
   ("return self.optimizer.zero_grad(set_to_none=True)", "return None", "test_a_skipped_step_moves_nothing_but_the_scale"))

of("trainer:Trainer._backward_penalties", "test_precision.py::test_with_a_scale_the_clipped_step_is_the_same",
   ("(term * self.scale)", "term"))

of("trainer:Trainer._backward_penalties", "trainer/test_l2.py::test_the_norms_gradient_is_two_lambda_theta_once_a_step",
   ("self.l2 * squared_norm", "-self.l2 * squared_norm"),
   ("self.l2 * squared_norm", "self.l2 / 2 * squared_norm"),  # λ/2 ‖θ‖², as some write it
   ("self.l2 * squared_norm", "1.0 * squared_norm"),
   ("squared_norm(local(p) for p in self.model.parameters() if p.requires_grad)",
    "squared_norm(local(p) for p in self.model.parameters() if p.requires_grad).sqrt()"),
   ("self.model.parameters() if p", "self.model.state_dict(keep_vars=True).values() if p"),  # a tied matrix twice
   ("if p.requires_grad)", "if p.ndim > 1)"),  # as weight decay, without the gains
   (" if p.requires_grad)", ")", "test_frozen_parameters_are_not_in_the_norm"),
   ("if self.l2:", "if True:", "test_without_the_norm_nothing_of_it_is_computed"))

of("trainer:Trainer._try_step", "trainer/test_l2.py::test_the_norms_gradient_is_two_lambda_theta_once_a_step",
   ("penalties = self._backward_penalties() ", "penalties = {}"))

of("precision:Casting.__torch_function__", "test_precision.py::test_products_are_short_and_nothing_else_is",
   ("if function in SHORT", "if True"),
   ("if function in SHORT", "if False"),
   ("cast(value) for name", "value for name"))

of("precision:Casting.__torch_function__", "test_precision.py::test_what_is_written_into_a_given_tensor_is_computed_in_its_dtype",
   ('kwargs.get("out") is None', "True"))

of("precision:as_before", "test_precision.py::test_layers_computed_again_are_computed_in_the_same_dtype",
   ("casting(active())", "contextlib.nullcontext()"))

of("precision:short", "test_precision.py::test_an_inner_dtype_decides_and_an_exception_leaves_nothing_behind",
   ("value.to(_entered())", "value.to(torch.bfloat16)"))

of("trainer:Trainer._micro_batches", "trainer/test_step.py::test_a_step_does_not_depend_on_how_it_is_split_into_micro_batches",
   ("first + place", "place"),
   ("min(self.a_step", "min(1"))

of("trainer:Trainer._passes",
   "trainer/test_step.py::test_the_logged_loss_and_gradient_are_those_of_the_mean_over_the_steps_tokens",
   ("(self.scale / n_supervised)", "self.scale"),
   ("(self.scale / n_supervised)", "(self.scale / max(1, batch.n_supervised))"),
   ("(self.scale / n_supervised)", "(-self.scale / n_supervised)",
    "test_a_step_is_adamw_on_the_clipped_gradient_at_the_schedules_rate"),
   ("torch.manual_seed(seed)", "pass", "test_an_attacks_passes_drop_the_same_units"),
   ("functools.partial(seeded, says)", "says", "test_virtual_passes_drop_the_same_units"),
   ("self.scale / n_texts", "1.0 / n_texts", "test_precision.py::test_with_a_scale_the_clipped_step_is_the_same[attack6-None]"))

of("trainer:Trainer._unscale", "test_precision.py::test_with_a_scale_the_clipped_step_is_the_same[attack6-None]",
   ('"virtual_loss"}', '"loss"}'))

of("trainer:Trainer._backward",
   "trainer/test_step.py::test_the_logged_loss_and_gradient_are_those_of_the_mean_over_the_steps_tokens",
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

of("shards:chunk", "test_shards.py::test_rows_are_dealt_out_in_order_and_joined_again",
   ("parts[rank]", "parts[-1 - rank]"),
   ("rank < len(parts)", "rank <= len(parts)"),
   ("values[:0]", "values[:1]"),
   ("values.chunk(size)", "values.tensor_split(size)"))  # 5 rows of four: 2, 1, 1, 1

of("shards:joined", "test_shards.py::test_a_state_is_the_first_ones_but_for_what_is_dealt_out",
   ("torch.cat(parts)", "torch.cat(parts[::-1])"),
   ("torch.cat(parts)", "first"),
   ("part.keys() != first.keys()", "False", "test_parts_of_different_things_are_not_joined"),
   ("strict=True", "strict=False", "test_parts_of_different_things_are_not_joined"))

of("shards:part_of", "test_shards.py::test_a_state_is_the_first_ones_but_for_what_is_dealt_out",
   ("return state if first else None", "return state"))

of("shards:fill", "test_shards.py::test_any_other_tensor_is_its_own_part",
   ("tensor.shape != values.shape", "False"),
   ("copy_(values)", "add_(values)"))

# ── from logits to a token ────────────────────────────────────────────────────────────────────────

of("sampling:greedy", "test_sampling.py::test_greedy_is_the_likeliest_and_the_lowest_id_wins_a_tie",
   ("argmax(-1)", "argmin(-1)"),
   ("argmax(-1)", "argmax(0)"),
   ("argmax(-1)", "diff(dim=-1).argmax(-1)"),
   ("argmax(-1)", "flip(-1).argmax(-1).sub(2).abs()"))  # the highest id of a tie

of("sampling:distribution", "test_sampling.py::test_choices_follow_the_softmax_over_temperature",
   ("/ max(how.temperature", "* max(how.temperature"),
   ("/ max(how.temperature, 1e-30)", ""),
   ("/ max(how.temperature, 1e-30)", "/ max(how.temperature, 1e-30)**2"),
   ("logits_BV.softmax(-1)", "logits_BV.sigmoid()"),
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
