"""Losses, tasks, classes."""

from mutants.row import of

# ── losses and tasks ──────────────────────────────────────────────────────────────────────────────

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
   ("batch.learned(targets_BT)", "batch.learned(inputs_BT)"),
   ("batch.learned(model.hidden(inputs_BT))", "batch.learned(model.hidden(inputs_BT).roll(1, 1))"),
   ("batch.learned(model.hidden(inputs_BT))", "batch.learned(model.hidden(inputs_BT).flip(0))"),
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
   ("batch.learned(hidden_BTD)", "batch.learned(hidden_BTD.roll(1, 1))"),
   ("batch.learned(batch.labels_BT)", "batch.learned(batch.tokens_BT)"),
   ("None if batch.n_tokens == batch.tokens_BT.numel() else batch.real_BT", "None"),
   ("model.hidden(batch.tokens_BT", "model.hidden(batch.labels_BT.clamp(min=0)"))  # it would see the answer

of("tasks.pretrain:source_loss", "test_tasks.py::test_the_span_loss_is_that_of_the_target_given_the_source",
   ("model.encode(batch.source_BS, batch.real_BS)", "model.encode(batch.source_BS)"),
   ("model.encode(batch.source_BS, batch.real_BS)", "model.encode(batch.source_BS.flip(0), batch.real_BS.flip(0))"),
   ("batch.learned(targets_BT)", "batch.learned(inputs_BT)"),
   ("batch.learned(hidden_BTD)", "batch.learned(hidden_BTD.roll(1, 1))"))

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
   ("batch.learned(targets_BT)", "batch.learned(inputs_BT)"),
   ("[IGNORE] * len(x)", "[IGNORE] * (len(x) - 1), x[-1]", "test_each_token_is_scored_given_all_before_it"),
   ("batch.learned(model.hidden(inputs_BT))", "batch.learned(model.hidden(inputs_BT).roll(1, 1))"))

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

of("linear_cross_entropy:at_once", "test_linear_cross_entropy.py::test_loss_and_gradients_are_those_of_all_logits",
   ("log_softmax(-1)", "log_softmax(0)"),
   ("dtype) * (1 - smoothing)", "dtype)"),
   ("+ smoothing / z_RV.shape[1]", ""),
   ("return -((1 - smoothing)", "return ((1 - smoothing)"),
   ("((1 - smoothing) * told_R1", "(told_R1"),
   ("+ smoothing * mean_R1", "- smoothing * mean_R1"),
   (".mean(-1", ".sum(-1"),
   ("log_p_RV.exp() - q_RV", "log_p_RV.exp() + q_RV"),
   ("z_RV.to(dtype)", "z_RV", "test_a_slice_in_bf16_is_judged_in_fp32"))

of("linear_cross_entropy:LinearCrossEntropy.forward", "test_linear_cross_entropy.py::test_loss_and_gradients_are_those_of_all_logits",
   ("targets_N[here, None]", "targets_N[:len(hidden_ND[here]), None]"),
   ("= d_logits @ w_VD", "= -d_logits @ w_VD"),
   ("d_weight_VD += summed", "d_weight_VD = summed"),
   ("total += loss", "total = loss"),
   ("first + rows)", "first + rows - 1)"))

of("linear_cross_entropy:summed_over_rows", "test_linear_cross_entropy.py::test_many_rows_in_fp16_do_not_overflow_the_heads_gradient",
   ("part * product_VD", "product_VD"),
   ("hidden_RD / part if", "hidden_RD if"),
   ("d_logits_RV.T @", "-d_logits_RV.T @"),
   ("== torch.float16", "== torch.float64"))

of("linear_cross_entropy:LinearCrossEntropy.backward", "test_linear_cross_entropy.py::test_loss_and_gradients_are_those_of_all_logits",
   ("d_total * d_weight_VD", "d_weight_VD"),
   ("d_total.to(d_hidden_ND.dtype) * d_hidden_ND", "d_hidden_ND"))

# ── classes ───────────────────────────────────────────────────────────────────────────────────────

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
   (".masked_fill(~real_BT[..., None], -torch.inf)", ""),
   ("real_BT | ~real_BT.any(-1, keepdim=True)", "real_BT",
    "model/test_padding.py::test_a_row_of_nothing_but_padding_adds_nothing_to_loss_and_gradient"))

of("heads:Classifier.forward", "test_heads.py::test_a_head_is_the_pooled_state_times_its_matrix",
   ("hidden(tokens_BT, real_BT)", "hidden(tokens_BT)"),
   ("self.pooling)", "'mean')"),
   ("head(pooled_BD)", "self.heads[0](pooled_BD)"),
   ("self.dropout(pool(", "(pool(", "test_dropout_stands_before_the_heads_and_only_in_training"))

of("heads:Classifier.__init__", "test_heads.py::test_heads_start_small_from_the_seed_and_leave_the_backbone_alone",
   ("0.0, backbone.cfg.init_std", "0.0, 1.0"),
   ("whole(seed, 0, 7)", "whole(0, 0, 7)"),
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

of("metrics:one_against_rest", "test_metrics.py::test_each_class_of_several_has_a_confusion_matrix_of_its_own",
   ("->cab", "->cba"),
   ("(right_NC, ~right_NC)", "(~right_NC, right_NC)"),
   ("(said_NC, ~said_NC)", "(~said_NC, said_NC)"),
   ("(said_NC, ~said_NC)", "(said_NC, said_NC)"))

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
