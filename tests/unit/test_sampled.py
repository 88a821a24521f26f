"""The loss over a sample: against the exact one, on average, continued; which rows it touches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diffgr2.candidates import extent
from diffgr2.candidates.fitting import Training, train
from diffgr2.candidates.retrieval import evaluate, prefixes, ragged
from diffgr2.candidates.sampled import Proposal, RowAdam, chances
from diffgr2.candidates.sasrec import SasRec
from diffgr2.candidates.softmax import SampledCrossEntropy
from diffgr2.config import RetrieverConfig
from diffgr2.errors import ConfigError
from diffgr2.types import Histories
from support.losses import assert_same_loss

CONFIG = RetrieverConfig(
    dim=16, max_len=8, batch_users=32, epochs=4, patience=4, dropout=0.2, loss="sampled"
)


def walkers(users: int = 120, items: int = 60) -> Histories:
    rng = np.random.default_rng(0)
    starts = rng.integers(items, size=users)
    return ragged([(s + np.arange(int(rng.integers(5, 9)))) % items for s in starts], items)


def made(rows: int, items: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 12, generator=source, requires_grad=True)
    table = torch.randn(items, 12, generator=source, requires_grad=True)
    return hidden, table, torch.randint(0, items, (rows,), generator=source)


@pytest.mark.parametrize("rows", [1, 5, 700])
def test_a_sample_of_all_items_is_the_exact_loss(rows: int) -> None:
    hidden, table, target = made(rows, 33)
    items_M, weight_M = Proposal(np.arange(33), 50, 0).draw(2, 3)
    assert items_M.tolist() == list(range(33))
    sample = (torch.from_numpy(items_M), torch.from_numpy(weight_M))
    loss = SampledCrossEntropy.apply(hidden, table, target, *sample, False)
    wanted = F.cross_entropy(hidden @ table.T, target, reduction="sum")
    assert_same_loss(loss, wanted, (hidden, table), 0.5)


def test_gradients_of_a_part_are_those_of_its_formula() -> None:
    hidden, table, target = made(40, 33)
    sample, weight = torch.tensor([1, 4, 9, 30]), torch.tensor([0.0, 0.5, 2.0, 1.0])
    loss = SampledCrossEntropy.apply(hidden, table, target, sample, weight, False)
    logits = hidden @ table[sample].T + weight
    logits = logits.masked_fill(sample[None] == target[:, None], -torch.inf)
    own = (hidden * table[target]).sum(1, keepdim=True)
    wanted = (torch.cat([own, logits], 1).logsumexp(1) - own[:, 0]).sum()
    assert_same_loss(loss, wanted, (hidden, table))


def test_the_sum_of_exponentials_and_the_gradient_are_right_on_average() -> None:
    count_I = np.arange(200) ** 2
    proposal, rng = Proposal(count_I, 40, 1), np.random.default_rng(0)
    value_I, seen_I, sums = np.exp(rng.normal(size=200)), np.zeros(200), []
    hidden, table, target = made(6, 200)
    with torch.no_grad():
        hidden *= 0.3
    exact = F.cross_entropy(hidden @ table.T, target, reduction="sum")
    wanted = torch.autograd.grad(exact, table)[0]
    total, draws = torch.zeros_like(wanted), 1_000
    for step in range(draws):
        items_M, weight_M = proposal.draw(step // 50, step)
        assert (np.diff(items_M) > 0).all()
        seen_I[items_M] += 1
        sums.append((value_I[items_M] * np.exp(weight_M)).sum())
        sample = (torch.from_numpy(items_M), torch.from_numpy(weight_M))
        loss = SampledCrossEntropy.apply(hidden, table, target, *sample, False)
        total += torch.autograd.grad(loss, table)[0]
    np.testing.assert_allclose(seen_I / draws, proposal.chance_I, atol=0.06)
    assert np.mean(sums) == pytest.approx(value_I.sum(), rel=0.02)
    # A quotient of means, so right up to what 40 items of 200 leave.
    assert F.cosine_similarity((total / draws).flatten(), wanted.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("size", [1, 7, 99, 100, 500])
def test_chances_add_up_and_follow_popularity(size: int) -> None:
    count_I = np.random.default_rng(size).integers(0, 1_000, 100)
    chance_I = chances(count_I, size)
    assert chance_I.sum() == pytest.approx(min(size, 100))
    assert ((chance_I > 0) & (chance_I <= 1)).all()
    assert (np.diff(chance_I[np.argsort(count_I)]) >= -1e-12).all()
    assert chances(np.zeros(10), 4) == pytest.approx(np.full(10, 0.4))


@pytest.mark.parametrize(("decay", "steps"), [(0.0, 60), (0.1, 60), (2.0, 900)])
def test_steps_of_some_rows_are_adamw_of_the_whole_table(decay: float, steps: int) -> None:
    """Rows that are seen always, often, in the beginning alone, late for the first time, never."""
    source = torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(torch.randn(9, 4, generator=source))
    ours, theirs = table.detach().clone(), torch.optim.AdamW([table], lr=0.01, weight_decay=decay)
    rows = RowAdam(ours, 0.01, decay)
    for step in range(steps):
        seen = torch.rand(9, generator=source) < torch.arange(9) / 8
        seen[1], seen[2] = step < 3, step == steps - 20
        seen[3] = step in (0, steps // 2)
        seen = seen.nonzero()[:, 0]
        table.grad = torch.zeros(9, 4)
        table.grad[seen] = torch.randn(len(seen), 4, generator=source)
        torch.testing.assert_close(rows.current(seen), table.detach()[seen], rtol=1e-4, atol=1e-5)
        theirs.step()
        rows.step(seen, table.grad[seen])
    rows.settle()
    torch.testing.assert_close(ours, table.detach(), rtol=1e-4, atol=1e-5)


def test_a_decay_that_outruns_the_moments_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^retriever.weight_decay: .* at most 0.09"):
        RowAdam(torch.zeros(2, 2), 0.1, 1.5)


def test_a_step_changes_the_rows_that_it_saw_alone() -> None:
    h = walkers(items=900)
    part = prefixes(h, np.arange(4), h.lengths_U[:4] - 2)
    model = SasRec(900, CONFIG.model_copy(update={"negatives": 20}), 0)
    before = model.items.weight.detach().clone()
    proposal = Proposal(np.bincount(part.items_N, minlength=900), 20, 0)
    Training(model, 0, proposal).epoch(part)
    changed = set((model.items.weight != before).any(1).nonzero()[:, 0].tolist())
    seen = set(part.items_N.tolist()) | set(proposal.draw(0, 0)[0].tolist())
    assert changed <= seen
    assert set(part.items_N.tolist()) <= changed


def test_the_batchs_items_count_once_and_all_others_by_their_chance(monkeypatch) -> None:
    h = walkers(items=900)
    part = prefixes(h, np.arange(30), h.lengths_U[:30] - 2)
    seen_I, told = np.bincount(part.items_N, minlength=900), []
    proposal = Proposal(seen_I, 60, 0)
    training = Training(SasRec(900, CONFIG, 0), 0, proposal)
    before = training._loss

    def noted(items_LT, length_L, table_RC, sample, noise):
        told.append((items_LT, len(table_RC), *sample))
        return before(items_LT, length_L, table_RC, sample, noise)

    monkeypatch.setattr(training, "_loss", noted)
    training.epoch(part)
    ((items_LT, rows, sample_M, weight_M),) = told
    own = np.unique(part.items_N)
    drawn_M, chance_M = proposal.draw(0, 0)
    others_M = ~np.isin(drawn_M, own)
    assert sample_M.tolist() == list(range(rows)) == list(range(len(own) + others_M.sum()))
    assert weight_M[: len(own)].tolist() == [0.0] * len(own)
    assert weight_M[len(own) :].tolist() == chance_M[others_M].tolist()
    assert set(items_LT.unique().tolist()) <= set(range(len(own)))


def test_it_learns_from_a_sixth_of_the_items() -> None:
    h = walkers(300)
    users = np.arange(h.n_users)
    more = {"epochs": 15, "lr": 5e-3, "init": "random", "negatives": 10, "patience": 15}
    model, _ = train(h, users, CONFIG.model_copy(update=more), seed=0)
    queries, target_U = prefixes(h, users, h.lengths_U - 1), h.items_N[h.offsets_U1[1:] - 1]
    assert evaluate(model, queries, target_U, 1)["r@1"] > 0.9


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_continued_training_gives_the_same_bits(tmp_path, stopped_after: int) -> None:
    h, config = walkers(), CONFIG.model_copy(update={"negatives": 12})
    users = np.arange(h.n_users)
    whole, curve = train(h, users, config, seed=5)
    early = config.model_copy(update={"epochs": stopped_after})
    train(h, users, early, seed=5, work=tmp_path)
    rest, curve_again = train(h, users, config, seed=5, work=tmp_path)
    assert curve == curve_again
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True)
    )


def test_size_chooses_and_the_recipe_overrules(monkeypatch) -> None:
    h, auto = walkers(), RetrieverConfig()
    asked = int((h.lengths_U - 3).sum()) * h.n_items  # train parts lack two, first items are given
    monkeypatch.setattr(extent, "FULL_UP_TO", asked)
    assert not extent.samples(h, auto)
    monkeypatch.setattr(extent, "FULL_UP_TO", asked - 1)
    assert extent.samples(h, auto)
    assert not extent.samples(h, RetrieverConfig(loss="full"))
    assert [extent.approximates(n, auto) for n in (100_000, 100_001)] == [False, True]
    assert not extent.approximates(10**7, RetrieverConfig(search="exact"))


def test_what_was_trained_before_these_keys_keeps_its_hash() -> None:
    assert not {"loss", "negatives", "search"} & RetrieverConfig().model_dump().keys()
    assert RetrieverConfig(negatives=9).model_dump()["negatives"] == 9
