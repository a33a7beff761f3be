"""Adversarial training."""

from mutants.row import of

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

of("adversarial.attack:PGD.perturbation", "adversarial/test_attacks.py::test_a_pass_that_breaks_on_the_way_is_counted",
   ("found_B11 & usable(g_BTD)", "found_B11"))

of("adversarial.attack:FreeLB.backward", "adversarial/test_attacks.py::test_a_pass_that_breaks_on_the_way_is_counted",
   ("found & usable(g_BTD)", "usable(g_BTD)"))

of("adversarial.attack:on_real", "adversarial/test_attacks.py::test_nothing_on_padding_enters_the_norm",
   (".masked_fill(~real_BT[..., None], 0.0)", ""))

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
   ("perturbed(self.embedding, r_BTD)", "perturbed(self.embedding)"))

of("adversarial.vat:told_by", "adversarial/test_vat.py::test_virtual_training_is_the_papers_sum",
   ("torch.no_grad()", "torch.enable_grad()"))

of("adversarial.vat:VAT._direction", "adversarial/test_vat.py::test_virtual_training_is_the_papers_sum",
   ("self.cfg.xi * d_BTD", "d_BTD"),
   ("self.cfg.epsilon * d_BTD", "d_BTD"),
   ("self.cfg.epsilon * d_BTD", "-self.cfg.epsilon * d_BTD"),
   ("range(self.cfg.power_iterations)", "range(1)"),
   ("divergence_sum(told, view.says())", "divergence_sum(view.says(), told)"))

of("adversarial.vat:VAT._divergence", "adversarial/test_vat.py::test_the_direction_is_looked_for_in_fp32[dtype0]",
   ("told_by(view) if short else told", "told"), ("precision.casting(torch.float32)", "precision.casting(precision.active())"))

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
