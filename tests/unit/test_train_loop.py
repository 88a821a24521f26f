"""The training loop's arithmetic: schedule, accumulation, refusal of non-finite values, logs."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffgr2.errors import NonFiniteError
from diffgr2.progress import Progress
from diffgr2.train import loop
from diffgr2.train.lending import lent
from diffgr2.train.log import MetricsLog, without_wall
from diffgr2.train.loop import fit, learning_rate
from diffgr2.train.optimizer import Optimizer
from diffgr2.train.parallel import Lanes
from diffgr2.train.working import Working
from support import battery, toy


@given(st.integers(1, 500), st.integers(0, 600), st.floats(0, 1))
def test_schedule_warms_up_peaks_and_ends_at_its_share(steps, warmup, final):
    config = toy.config_of(steps=steps, warmup=warmup, final_lr=final, lr=0.5)
    rates = [learning_rate(step, config) for step in range(1, steps + 1)]
    assert all(0 <= rate <= 0.5 for rate in rates)
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if warmup < steps:
        assert rates[-1] == pytest.approx(0.5 * final, abs=1e-12)
    if 0 < warmup <= steps:
        assert rates[warmup - 1] == 0.5


def test_only_matrices_decay():
    model = toy.ToyModel()
    groups = Optimizer(model, toy.config_of()).parts[0].param_groups
    assert {p.dim() for p in groups[0]["params"]} == {2}
    assert {p.dim() for p in groups[1]["params"]} == {1}
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.1, 0.0)


def test_one_step_equals_plain_torch(tmp_path):
    """AdamW on the mean over all weighted tokens, clipped: written out with stock optimizers."""
    config = toy.config_of(steps=1, warmup=0, final_lr=1.0, clip=0.05)
    task, model, oracle = toy.ToyTask(config), toy.ToyModel(), toy.ToyModel()
    lines = fit(task, model, config, tmp_path, 0, Progress())
    micros = task.micros(1, oracle)
    loss = sum(task.loss(oracle, m).total for m in micros) / sum(m.count for m in micros)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.05)
    matrices = [p for p in oracle.parameters() if p.dim() > 1]
    vectors = [p for p in oracle.parameters() if p.dim() == 1]
    for parameters, decay in ((matrices, 0.1), (vectors, 0.0)):
        torch.optim.AdamW(parameters, lr=0.01, betas=(0.9, 0.95), weight_decay=decay).step()
    assert lines[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert lines[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-6)
    for mine, other in zip(model.parameters(), oracle.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_muon_takes_the_matrices_inside_layers_and_adamw_the_rest(tmp_path):
    """One step, written out: the orthogonal part of the gradient, as large as an AdamW step."""
    config = toy.config_of(steps=1, warmup=0, final_lr=1.0, optimizer="muon", muon_lr=0.03)
    task, model, oracle = toy.ToyTask(config), toy.ToyModel(), toy.ToyModel()
    inside = [p for p in model.layers.parameters() if p.dim() == 2]
    own = [p for group in Optimizer(model, config).parts[1].param_groups for p in group["params"]]
    assert [id(p) for p in own] == [id(p) for p in inside]
    fit(task, model, config, tmp_path, 0, Progress())
    micros = task.micros(1, oracle)
    loss = sum(task.loss(oracle, m).total for m in micros) / sum(m.count for m in micros)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(oracle.parameters(), config.clip)
    theirs = [p for p in oracle.layers.parameters() if p.dim() == 2]
    for mine, other in zip(inside, theirs, strict=True):
        u, s, v = torch.linalg.svd(other.grad)
        step = (other * (1 - 0.01 * 0.1) - mine) / (0.03 * 0.2 * max(other.shape) ** 0.5)
        # Five iterations in bf16 bring each singular value near 1, no nearer.
        gains = torch.diagonal(u.T @ step @ v.T)[s > 1e-3 * s[0]]
        assert ((gains > 0.5) & (gains < 1.5)).all()
    taken = {id(p) for p in theirs}
    rest = [p for p in oracle.parameters() if id(p) not in taken]
    for parameters, decay in (
        ([p for p in rest if p.dim() > 1], 0.1),
        ([p for p in rest if p.dim() == 1], 0.0),
    ):
        torch.optim.AdamW(parameters, lr=0.01, betas=(0.9, 0.95), weight_decay=decay).step()
    left = [p for p in model.parameters() if all(p is not q for q in inside)]
    for mine, other in zip(left, rest, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_gradient_accumulation_does_not_change_the_step(tmp_path):
    """1 x 16 = 4 x 4 = 16 x 1 rows, although rows have different numbers of tokens."""
    results = []
    for micro_rows in (16, 4, 1):
        config = toy.config_of(rows=16, micro_rows=micro_rows, steps=10)
        model = toy.ToyModel()
        work = tmp_path / str(micro_rows)
        lines = fit(toy.ToyTask(config), model, config, work, 0, Progress())
        results.append((lines, model))
    for lines, model in results[1:]:
        for line, wanted in zip(lines, results[0][0], strict=True):
            for key in ("loss", "grad_norm", "accuracy", "num_tokens", "learning_rate"):
                assert line[key] == pytest.approx(wanted[key], rel=1e-6), key
        for mine, other in zip(model.parameters(), results[0][1].parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=2e-5, atol=2e-6)


def test_accumulated_gradients_agree_to_1e_6(tmp_path):
    """The same sums for one step's gradients alone, before Adam divides by their size."""
    grads = []
    for micro_rows in (16, 4, 1):
        config = toy.config_of(rows=16, micro_rows=micro_rows)
        task, model = toy.ToyTask(config), toy.ToyModel()
        run = loop._Run(
            task,
            model,
            Working(model, config),
            config,
            Optimizer(model, config),
            tmp_path,
            MetricsLog(None),
            threading.Event(),
            Lanes(model),
        )
        micros = task.micros(1, model)
        records = run._backward(micros, sum(micro.count for micro in micros))
        assert [index for index, _, _ in records] == list(range(16 // micro_rows))
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    for other in grads[1:]:
        assert (other - grads[0]).norm() / grads[0].norm() < 1e-6


@pytest.mark.parametrize("step", [1, 4, 5])
@pytest.mark.parametrize("kind", ["data", "loss", "grad", "metric", "count"])
def test_non_finite_values_stop_before_the_update(kind, step, tmp_path):
    config = toy.config_of(checkpoint_every=1, steps=8)
    before = toy.ToyModel()
    if step > 1:  # what an unspoilt run of the same schedule holds after the step before
        good = toy.ToyTask(config)
        stopped = toy.ToyTask(config, poison=("count", step))
        stopped.loss = good.loss  # type: ignore[method-assign]
        with pytest.raises(NonFiniteError):
            fit(stopped, before, config, tmp_path / "good", 0, Progress())
    task, model = toy.ToyTask(config, poison=(kind, step)), toy.ToyModel()
    clean = toy.ToyTask(config)
    task.loss = lambda m, micro: (  # type: ignore[method-assign]
        toy.ToyTask.loss(task, m, micro) if micro.step == step else clean.loss(m, micro)
    )
    with pytest.raises(NonFiniteError) as error:
        fit(task, model, config, tmp_path / "bad", 0, Progress())
    assert f"toy: step {step}: " in str(error.value)
    assert "is not finite, no update made" in str(error.value)
    assert battery.weights_digest(model) == battery.weights_digest(before)
    assert all(p.grad is None for p in model.parameters())
    dump = json.loads((tmp_path / "bad" / "nonfinite.json").read_text())
    assert dump["metrics"]["step"] == str(step)
    if kind == "grad":
        assert dump["culprit"] == "grad_norm"
        assert "head.weight" in dump["gradients"]
    root = tmp_path / "bad" / "checkpoints"
    newest = max((p.name for p in root.iterdir()), default="") if root.exists() else ""
    assert newest == (f"step-{step - 1:08d}" if step > 1 else "")


def test_metrics_file_equals_the_returned_lines_and_has_trl_names(tmp_path):
    task, model, config = toy.make()
    lines = fit(task, model, config, tmp_path, 0, Progress())
    stored = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert stored == lines
    names = {"step", "loss", "grad_norm", "learning_rate", "num_tokens", "accuracy", "step_time"}
    assert all(set(line) == names for line in lines)
    assert [line["num_tokens"] for line in lines] == [40 * step for step in range(1, 13)]


def test_training_learns_what_repeats(tmp_path):
    class Repeating(toy.ToyTask):
        def micros(self, step, model):
            return super().micros(1, model)

    config = toy.config_of(steps=60)
    lines = fit(Repeating(config), toy.ToyModel(), config, tmp_path, 0, Progress())
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]


def test_lines_past_the_checkpoint_are_cut_on_resume(tmp_path):
    whole = battery.run(toy.make, tmp_path)
    path = tmp_path / "metrics.jsonl"
    (tmp_path / "checkpoints" / "step-00000012" / "manifest.json").unlink()
    with path.open("a") as file:
        file.write('{"step": 13, "loss": 0')  # a line that a kill cut short
    battery.same(battery.run(toy.make, tmp_path), whole)
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert without_wall(lines) == whole.lines


def test_a_step_without_weight_changes_nothing(tmp_path):
    class Empty(toy.ToyTask):
        def micros(self, step, model):
            return [] if step == 2 else super().micros(step, model)

        def metrics(self, step):
            return {"kept": float(step != 2)}

        def epoch(self, step):
            return step / 4

    config = toy.config_of(steps=2)
    model, once = toy.ToyModel(), toy.ToyModel()
    lines = fit(Empty(config), model, config, tmp_path / "a", 0, Progress())
    assert (lines[1]["loss"], lines[1]["kept"], lines[1]["epoch"]) == (0.0, 0.0, 0.5)
    assert lines[1]["num_tokens"] == lines[0]["num_tokens"]
    task = Empty(config, poison=("count", 2))
    task.micros = lambda step, m: toy.ToyTask.micros(task, step, m)  # type: ignore[method-assign]
    task.loss = lambda m, x: toy.ToyTask(config).loss(m, x)  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError):
        fit(task, once, config, tmp_path / "b", 0, Progress())
    assert battery.weights_digest(model) == battery.weights_digest(once)


def test_no_steps_do_nothing(tmp_path):
    task, model, config = toy.make()
    before = battery.weights_digest(model)
    none = config.model_copy(update={"steps": 0})
    assert fit(task, model, none, tmp_path / "x", 0, Progress()) == []
    assert battery.weights_digest(model) == before
    assert not (tmp_path / "x").exists()


def test_rollouts_run_in_eval_mode_without_gradients():
    model = toy.ToyModel()
    model.train()
    with lent(model) as (policy, whole), whole(policy):
        assert not policy.training
        assert not policy(torch.ones(1, 2, dtype=torch.long)).requires_grad
    assert model.training
