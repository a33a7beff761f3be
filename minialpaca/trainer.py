"""The loop. One optimiser step reads as a numbered list; everything a stop would lose is in the checkpoint."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from minialpaca import compiling, determinism, memory, parallel, precision, products
from minialpaca.adversarial import Attack, Clean, Noted, Passes, View, fault_of
from minialpaca.config import OptimConfig, TrainConfig
from minialpaca.config.adapting import LOW_RANK
from minialpaca.data.batch import Batch
from minialpaca.data.order import whole
from minialpaca.duration import batches_of_run, refuse_endless
from minialpaca.errors import Stopped, UserError
from minialpaca.keeper import Keeper
from minialpaca.log import NoLog, RunLog, progress
from minialpaca.objectives import squared_norm
from minialpaca.optim import build_adamw, clip_by_global_norm, global_norm, learning_rate
from minialpaca.peft import Adapter
from minialpaca.precision import LossScaler
from minialpaca.shards import local
from minialpaca.signals import Stop, heard
from minialpaca.spread import Copies
from minialpaca.storage import space
from minialpaca.storage.recipe import Recipe
from minialpaca.tasks import Task
from minialpaca.transfer import queues

Observer = Callable[[nn.Module, RunLog, int], None]  # shows sample answers and attention maps at an evaluation


def evaluate(model: nn.Module, task: Task, device: torch.device) -> dict[str, float]:
    """What the task measures on its validation data, without dropout; the mode is put back."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        measured = task.evaluate(model, device)
    model.train(was_training)
    return measured


def refuse_unmeasured(train: TrainConfig, task: Task) -> None:
    if train.best_by not in task.measures:
        raise UserError(f"train.best_by = {train.best_by!r}: this task measures {', '.join(task.measures)}")


def counted(batches: dict[int, Batch]) -> list[int]:
    """Supervised tokens, texts and tokens, over the micro-batches of all processes."""
    return parallel.summed([sum(getattr(batch, name) for batch in batches.values()) for name in ("n_supervised", "n_texts", "n_tokens")])


def fetched(noted: Noted) -> dict[str, float]:
    """All of a step's numbers in one transfer: each by itself would make the host wait for the device."""
    dtype = functools.reduce(torch.promote_types, (value.dtype for value in noted.values()))
    return dict(zip(noted, torch.stack([value.to(dtype) for value in noted.values()]).tolist()))


class Trainer:
    """θ̂ = argmin_θ L(M_θ, D), L a task's loss, θ the trainable parameters of a model   [adapt.0]
    L_adapt = L + λ‖θ‖₂² in its place, with `l2` = λ > 0   [adapt.1]

    The log has the two terms apart.
    """

    def __init__(self, model: nn.Module, task: Task, optim: OptimConfig, train: TrainConfig, seed: int,
                 folder: Path, observe: Observer = lambda model, log, step: None, l2: float = 0.0,
                 adapter: Adapter | None = None, attack: Attack = Clean(), recipe: Recipe = Recipe()):
        self.model, self.task, self.optim, self.train, self.l2 = model, task, optim, train, l2
        self.attack, self.recipe = attack, recipe
        self.adapter = adapter  # with one, its tensors alone are trained and saved
        refuse_unmeasured(train, task)
        self.seed, self.folder, self.observe = seed, folder, observe
        self.device = next(model.parameters()).device
        determinism.prepare(train.deterministic, self.device)
        precision.refuse_short_weights(model)
        self.policy = precision.policy(train.precision, self.device)
        self.scaler = LossScaler() if self.policy.scales else None
        self.dealt = train.parallel == "fsdp" and parallel.size() > 1
        if self.dealt:
            from minialpaca import fsdp  # a second of imports that nobody else has to wait for

            fsdp.refuse(attack, self.device)
        refuse_endless(train, optim, task.batches_per_epoch())
        self.a_step = train.accumulation * parallel.size()  # micro-batches, of all processes
        self.total_batches = recipe.batches_as_begun(train) or batches_of_run(train, task.batches_per_epoch(), self.a_step)
        self.total_steps = math.ceil(self.total_batches / self.a_step)
        if adapter:
            adapter.refuse_patience(train.patience)
            adapter.start(self.total_steps)
        self.compiles = self._compile()
        self._keep(Copies())
        self.keeper.refuse_little_room()
        self.stop = Stop()
        self.attack_noted = False
        self.ready: dict[int, dict[int, Batch]] = {}  # a step to come → its micro-batches
        self.state = {"step": 0, "best": None, "evaluations_without_gain": 0, "stopped_early": False}

    def _keep(self, spread: Copies) -> None:
        """Everything that holds on to parameters."""
        self.spread, self.optimizer = spread, build_adamw(self.model, self.optim)
        self.keeper = Keeper(self.folder, self.train, self.task, self.adapter or self.model, self.optimizer, self.scaler, self.recipe,
                             self.device, spread, self.total_batches * self.train.batch_size)

    def share(self) -> None:
        """With train.parallel = fsdp, where there are several processes, each keeps its part of the model from here on.

        Not before all of them are here: the others wait for the first to have refused what it will, and made the folder.
        """
        if self.dealt and not self.spread.in_step:
            from minialpaca.fsdp import Shards

            self._keep(Shards(self.model, self.adapter, self.device))

    def refuse_unfit(self) -> None:
        """A run that cannot be continued with this model, adapter and data, or is too large for the machine."""
        self.keeper.refuse_unfit(self.state)
        self.refuse_hopeless()

    def refuse_hopeless(self) -> None:
        """A step that the machine's memory will not hold by far."""
        needed, there = self.memory().peak if self.task.longest()[0] else 0, memory.there(self.device)
        if there and needed > memory.HOPELESS * there:
            raise UserError(f"memory: a step takes about {space.in_words(needed)}, and {self.device} has {space.in_words(there)}; {self._knobs()}")

    # ── the whole run ────────────────────────────────────────────────────────────────────────────

    def fit(self) -> dict:
        """Train to the last step or to the end of patience, continuing from the last checkpoint if there is one."""
        self.share()
        if place := self.keeper.resume(self.state):
            print(f"{place}: step {self.state['step']:,} of {self.total_steps:,}, {'finished' if self._done() else 'going on'}")
        if self.total_steps < self.optim.warmup_steps:
            print(f"note: optim.warmup_steps = {self.optim.warmup_steps} and only {self.total_steps} steps: the learning rate "
                  f"never reaches optim.lr; lower the first, or train longer (train.epochs)")
        print(f"precision: {self.policy.name} ({self.policy.reason})" + products.said(self.device) + f"; layers are {self.compiles}")
        if self.task.longest()[0]:
            print(self.memory())
            if self.device.type == "cpu":
                print("    (of tensors; what the system's allocator holds back comes on top: docs/RELIABILITY.md)")
        with determinism.explained(), heard() as self.stop, progress("training", self.total_steps, "steps", self.state["step"]) as bar:
            self.log, self.bar = RunLog(self.folder, self.state["step"]) if parallel.is_first() else NoLog(), bar
            with contextlib.closing(self.log), self.keeper.saving:
                if self.recipe.now:
                    self.log.note(self.recipe.now)
                    if place and self._done() and self.spread.saves:  # no step will do it
                        self.keeper.save(self.state, improved=False)
                if self.train.deterministic and not self._done():
                    determinism.try_out(self._next_backward, self.model.parameters())
                if self.state["step"] == 0:
                    self._after_step({"step": 0})
                while not self._done():
                    self._after_step(self.take_step())
        if self.keeper.saving.count:
            print(self.keeper.saving)
        return self.state

    def _compile(self) -> compiling.Choice:
        tokens = self.total_batches * self.train.batch_size * sum(self.task.longest())
        found = compiling.choice(self.train.compile, self.device, compiling.flops_of(self.model, tokens), self.dealt,
                                 short=self.policy.dtype != torch.float32)
        if found.compiles:
            compiling.compile_blocks(self.model)
        return found

    def _done(self) -> bool:
        return self.state["step"] >= self.total_steps or self.state["stopped_early"]

    def take_step(self) -> dict[str, float]:
        """One optimiser step; one whose gradient overflowed is taken again at a lower loss scale, and nothing else moved."""
        while True:
            with self._in_memory(f"step {self.state['step'] + 1}"), parallel.together():
                record = self._try_step()
            if record is not None:
                return record

    def memory(self) -> memory.Memory:
        """What a step will take, as estimated from shapes."""
        length, source = self.task.longest()
        how = getattr(self.task, "loss", None)
        return memory.estimate(self.model, memory.Load(
            self.train.batch_size, length, source, self.policy.dtype.itemsize, self.device.type, self.task.padded,
            passes=2 if how and how.r_drop else 1,
            generated=len(getattr(self.observe, "prompts", ())),
            gradients_stay=self.total_batches > self.total_steps or not isinstance(self.attack, Clean),
            parts=self.spread.n_parts, accumulated=self.train.accumulation > 1,
            compiled_bf16=self.compiles.compiles and self.policy.name == "bf16"))

    @contextlib.contextmanager
    def _in_memory(self, where: str) -> Iterator[None]:
        """Within, memory that runs out is one line that says what to turn."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not memory.is_exhausted(error):
                raise
            raise UserError(f"{where}: the memory of {self.device} is exhausted; {self._knobs()}, in another run.dir; the last good checkpoint is "
                            f"{self.keeper.last_good()}") from None

    def _knobs(self) -> str:
        return memory.knobs(self.train.batch_size, self.train.accumulation, self.train.recompute, self.adapter is not None)

    def _try_step(self) -> dict[str, float] | None:
        """One optimiser step over `accumulation` micro-batches; None where its gradient overflowed."""
        started, step, scale = time.perf_counter(), self.state["step"], self.scale
        batches = self._micro_batches(step)                                      # 1. this process's part of the step's data
        n_supervised, n_texts, n_tokens = counted(batches)                       # 2. counts of the whole step
        if n_supervised == 0:
            raise UserError(f"step {step + 1}: no supervised token in its micro-batches; raise train.batch_size or, where "
                            "tokens are hidden, objective.noise_rate, in another run.dir")
        losses = self._backward(batches, n_supervised, n_texts)                  # 3. clean and adversarial backward, scaled
        losses = self.spread.add_up(self.model.parameters(), losses)             # 4. the sum over processes, once
        penalties = self._backward_penalties()                                   #    the penalties' backward, once a step
        self._make_ready(step + 1)                                               #    (the next step's data, while a GPU is at work)
        self._unscale(losses)                                                    # 5. unscale, once
        grad_norm = self.spread.length(global_norm(self.model.parameters()))     # 6. how long the gradient is
        numbers = fetched({**losses, **penalties, "grad_norm": grad_norm})       #    (the step's one look at the device)
        if not self._judge_gradient(numbers, step):                              # 7. finite? the loss scale follows
            return self.optimizer.zero_grad(set_to_none=True)                    #    skipped: nothing else moves
        if self.adapter:
            self.adapter.before_clip(step + 1)                                   # 8. AdaLoRA's sensitivity
        clip_by_global_norm(self.model.parameters(), self.optim.clip_norm, grad_norm)  # 9. clip, all together
        lr = self._set_lr(step)                                                  # 10. the schedule's rate
        self.optimizer.step()                                                    # 11. update
        noted = self.adapter.after_update(step + 1) if self.adapter else {}      # 12. AdaLoRA's mask
        self.optimizer.zero_grad(set_to_none=True)                               # 13. forget the gradient
        self.state["step"] = step + 1
        tokens_per_s = round(n_tokens / (time.perf_counter() - started), 1)
        return {"step": step + 1, **numbers, "lr": lr, "tokens_per_s": tokens_per_s, **self._scale_noted(scale), **noted}

    # ── parts of a step ──────────────────────────────────────────────────────────────────────────

    def _micro_batches(self, step: int) -> dict[int, Batch]:
        """place in the step → micro-batch, dealt out to the processes; the last step of a run may have fewer."""
        made = self.ready.pop(step, None)
        if made is None:
            first = step * self.a_step
            places = range(parallel.rank(), min(self.a_step, self.total_batches - first), parallel.size())
            made = {place: self.task.batch(first + place).to(self.device) for place in places}
        return made

    def _make_ready(self, step: int) -> None:
        """Where the device is still at work: what the step will ask for is there when it asks."""
        if queues(self.device):
            self.ready = {step: self._micro_batches(step)}

    def _backward(self, batches: dict[int, Batch], n_supervised: int, n_texts: int) -> Noted:
        """Adds the gradient of Σ losses / n to .grad, micro-batch by micro-batch, each with its attack; returns what they came to."""
        self.model.train()
        totals: Noted = dict.fromkeys(self.attack.notes, torch.zeros((), device=self.device))
        idle = self._idle(batches)
        for place, batch in batches.items():
            # Dropout is a function of (seed, step, micro-batch), so a resumed run drops the same, and an attack's passes too.
            seed = whole(self.seed, self.state["step"], place, 3) >> 1
            passes = self._passes(batch, n_supervised, n_texts, seed)
            for name, value in self._attacked(passes, last=idle is None and place == max(batches)).items():
                totals[name] = totals[name] + value
        if idle:
            self._attacked(self._passes(idle.to(self.device), math.inf, math.inf, 0), last=True)
        return totals

    def _attacked(self, passes: Passes, last: bool) -> Noted:
        self.spread.sum_after(last)
        with self._products():
            return self.attack.backward(passes)

    def _idle(self, batches: dict[int, Batch]) -> Batch | None:
        """A micro-batch to take part with, which counts nothing, where all must ask at once and this process has one less than others."""
        first = self.state["step"] * self.a_step
        most = math.ceil(min(self.a_step, self.total_batches - first) / parallel.size())
        return self.task.batch(first) if self.spread.in_step and len(batches) < most else None

    @contextlib.contextmanager
    def _products(self) -> Iterator[None]:
        """Within, matrices are multiplied in the policy's dtype; in fp32 on a CPU by the library that is faster there."""
        with precision.casting(self.policy.dtype), products.chosen(self.device):
            yield

    def _passes(self, batch: Batch, n_supervised: int, n_texts: int, seed: int) -> Passes:
        """The ways through the model that an attack may take with a micro-batch; all drop the same units."""
        def seeded(way: Callable):
            torch.manual_seed(seed)
            return self.spread.ask(way)

        views = [View(functools.partial(seeded, says), real, self.scale / n_texts) for says, real in self.task.views(self.model, batch)]
        return Passes(lambda: seeded(lambda: self.task.loss_sum(self.model, batch) * (self.scale / n_supervised)),
                      batch.embedded_BT, seed, views)

    def _next_backward(self) -> None:
        """The next step's, as often as one likes: nothing but .grad knows of it."""
        batches = self._micro_batches(self.state["step"])
        n_supervised, n_texts, _ = counted(batches)
        self._backward(batches, n_supervised, n_texts)

    def _backward_penalties(self) -> dict[str, Tensor]:
        """Adds the gradients of λ‖θ‖₂² (θ being all that is trained; a tied matrix counts once) and of the adapter's term."""
        terms = {}
        if self.l2:
            terms["l2"] = self.l2 * squared_norm(local(p) for p in self.model.parameters() if p.requires_grad)
        if self.adapter and (penalty := self.adapter.penalty()) is not None:
            terms["orthogonality"] = penalty
        for term in terms.values():
            (term * self.scale).backward()
        return {name: self.spread.total(term.detach()) if name == "l2" else term.detach() for name, term in terms.items()}

    @property
    def scale(self) -> float:
        """What all losses are multiplied by before their backward; 1 but in fp16."""
        return self.scaler.scale if self.scaler else 1.0

    def _unscale(self, losses: Noted) -> None:
        """Gradients, and what the log says of losses, are divided by the scale."""
        if self.scaler:
            precision.unscale(self.model.parameters(), self.scale)
            for name in losses.keys() & {"loss", "adversarial_loss", "virtual_loss"}:
                losses[name] = losses[name] / self.scale

    def _judge_gradient(self, numbers: dict[str, float], step: int) -> bool:
        """Whether the step may be taken. Without loss scaling nothing but a finite gradient goes on."""
        finite = math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"])
        if self.scaler:
            tried = self.scaler.scale
            self.scaler.update(finite)
            if self.scaler.skipped_in_a_row >= self.scaler.LIMIT:
                raise UserError(f"step {step + 1}: {self.scaler.LIMIT} times in a row the gradient was not finite, the last at loss scale "
                                f"{tried:.3g}; nothing was updated, the last good checkpoint is {self.keeper.last_good()}; lower optim.lr, or "
                                "set train.precision to bf16 or fp32, in another run.dir")
        elif not finite:
            raise self._diverged(step + 1, f"loss {numbers['loss']}, gradient norm {numbers['grad_norm']}", "updated")
        return finite

    def _scale_noted(self, scale: float) -> dict[str, float]:
        return {"loss_scale": scale, "skipped_steps": self.scaler.skipped} if self.scaler else {}

    def _set_lr(self, step: int) -> float:
        lr = learning_rate(self.optim, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _refuse_broken_weights(self, step: int) -> None:
        """A finite gradient times an enormous rate: what is saved is to be a good checkpoint."""
        names, weights = zip(*self.model.named_parameters())
        broken = self.spread.anywhere([not torch.isfinite(local(p)).all() for p in weights])
        if any(broken):
            raise self._diverged(step, f"{names[broken.index(True)]} is no longer finite", "saved")

    def _diverged(self, step: int, what: str, undone: str) -> UserError:
        lr = learning_rate(self.optim, max(0, step - 1), self.total_steps)
        strength = ", adapter.alpha" if self.adapter and self.adapter.cfg.method in LOW_RANK else ""
        return UserError(f"step {step}: {what} at learning rate {lr:.3g}; nothing was {undone}, the last good checkpoint is "
                         f"{self.keeper.last_good()}; lower optim.lr{strength} or raise optim.warmup_steps, in another run.dir")

    # ── between steps ────────────────────────────────────────────────────────────────────────────

    def _after_step(self, record: dict[str, float]) -> None:
        """Evaluate, log, save: in this order, so that a checkpoint never knows more than the log."""
        self.keeper.saving.check()
        step, is_last = record["step"], record["step"] == self.total_steps
        improved, evaluated = False, step % self.train.eval_every == 0 or is_last
        stopping = self._asked_to_stop()
        saved = evaluated or stopping or (self.train.save_every and step % self.train.save_every == 0)
        if saved:
            self._refuse_broken_weights(step)
        if evaluated:
            record |= self.spread.measured(self._evaluate)
            if not math.isfinite(record["val_loss"]):
                raise self._diverged(step, f"validation loss {record['val_loss']}", "saved")
            improved = self._judge(record[self.train.best_by], self.adapter is None or self.adapter.may_be_best(step))
            self.spread.shown(lambda: self.observe(self.model, self.log, step))
        self.log.metrics(record)
        self._show(record, improved)
        if saved and self.spread.saves:
            self.log.flush()
            self.keeper.save(self.state, improved)
        if stopping or self._done() and self._asked_to_stop():  # or after that question, while the last evaluation went on
            self.keeper.saving.join()
            raise Stopped(f"stopped after step {step:,} of {self.total_steps:,}, which is saved; the same command "
                          f"{'shows its results' if self._done() else 'goes on from there'}")

    def _asked_to_stop(self) -> bool:
        """Any process, and then all of them."""
        return parallel.summed([bool(self.stop.asked)])[0] > 0

    def _evaluate(self) -> dict[str, float]:
        with self._in_memory(f"evaluation after step {self.state['step']}"), self._products():
            return evaluate(self.model, self.task, self.device)

    def _judge(self, value: float, eligible: bool = True) -> bool:
        best, lower = self.state["best"], self.train.best_by == "val_loss"
        improved = eligible and math.isfinite(value) and (best is None or (value < best if lower else value > best))
        if improved:
            self.state["best"], self.state["evaluations_without_gain"] = value, 0
        else:
            self.state["evaluations_without_gain"] += 1
        patience = self.train.patience
        self.state["stopped_early"] = 0 < patience <= self.state["evaluations_without_gain"]
        return improved

    def _show(self, record: dict[str, float], improved: bool) -> None:
        if "loss" in record:
            self.bar.set_postfix_str(f"loss {record['loss']:.4f}, {record['tokens_per_s']:,.0f} tok/s", refresh=False)
            self.bar.update()
        if "val_loss" in record:
            train_loss = f"train loss {record['loss']:.4f}, " if "loss" in record else ""
            others = "".join(f", {name[4:].replace('_', ' ')} {record[name]:.4f}" for name in self.task.measures[1:])
            self.bar.write(f"step {record['step']:>6,} of {self.total_steps:,}: {train_loss}"
                           f"validation loss {record['val_loss']:.4f}{others}{' (best)' if improved else ''}")
        if not self.attack_noted and (fault := fault_of(record)):  # once: the log has the rest
            self.attack_noted = True
            self.bar.write(f"note: {fault}")
        if self.state["stopped_early"]:
            self.bar.write(f"stopped early: {self.train.patience} evaluations without a better {self.train.best_by}")
