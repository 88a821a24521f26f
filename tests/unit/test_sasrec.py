"""SASRec: the fused loss, causality, determinism, continuation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from diffgr2.artifacts import read_json, write_json
from diffgr2.candidates import kinds
from diffgr2.candidates.attention import AttentionScores, gelu
from diffgr2.candidates.fitting import copurchase_vectors, epoch_batches, train
from diffgr2.candidates.kinds import Popularity
from diffgr2.candidates.retrieval import evaluate, prefixes, ragged
from diffgr2.candidates.sasrec import SasRec, dropped
from diffgr2.candidates.softmax import FullCrossEntropy
from diffgr2.config import RetrieverConfig
from diffgr2.errors import ArtifactError
from diffgr2.types import Histories
from support.losses import assert_same_loss

CONFIG = RetrieverConfig(dim=16, max_len=8, batch_users=32, epochs=4, patience=4, dropout=0.2)


def cyclic(users: int = 120, items: int = 20, seed: int = 0) -> Histories:
    """Everybody walks the same cycle from a random start: the next item is certain."""
    rng = np.random.default_rng(seed)
    rows = [
        (rng.integers(items) + np.arange(int(rng.integers(5, 9)))) % items for _ in range(users)
    ]
    return ragged(rows, items)


@pytest.mark.parametrize("rows", [1, 5, 700])
def test_fused_cross_entropy_equals_torch_in_value_and_gradients(rows: int) -> None:
    source = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, 12, generator=source, requires_grad=True)
    weight = torch.randn(33, 12, generator=source, requires_grad=True)
    target = torch.randint(0, 33, (rows,), generator=source)
    loss = FullCrossEntropy.apply(hidden, weight, target, False)
    wanted = F.cross_entropy(hidden @ weight.T, target, reduction="sum")
    assert_same_loss(loss, wanted, (hidden, weight), 0.5)


def test_bf16_logits_stay_near_full_precision() -> None:
    source = torch.Generator().manual_seed(3)
    hidden = torch.randn(64, 16, generator=source, requires_grad=True)
    weight = torch.randn(50, 16, generator=source, requires_grad=True)
    target = torch.randint(0, 50, (64,), generator=source)
    grads = []
    for bf16 in (False, True):
        loss = FullCrossEntropy.apply(hidden, weight, target, bf16)
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, (hidden, weight))]))
    assert F.cosine_similarity(grads[0], grads[1], dim=0) > 0.999


def test_scores_depend_on_nothing_but_the_own_last_items() -> None:
    model = SasRec(40, CONFIG, seed=1).eval()
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 40, n) for n in (1, 3, 8, 12, 0)]
    together = model.score_all(ragged(rows, 40))
    for row, alone in enumerate(rows):
        single = model.score_all(ragged([alone], 40))[0]
        np.testing.assert_allclose(together[row], single, rtol=1e-4, atol=1e-5)
        cut = model.score_all(ragged([alone[-CONFIG.max_len :]], 40))[0]
        np.testing.assert_allclose(single, cut, rtol=1e-5, atol=1e-6)


def test_hidden_states_never_see_later_items() -> None:
    model = SasRec(40, CONFIG, seed=1).eval()
    items = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(0))
    changed = items.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 40
    with torch.no_grad():
        torch.testing.assert_close(model(items)[:, :5], model(changed)[:, :5])
        assert not torch.allclose(model(items)[:, 5:], model(changed)[:, 5:])


def test_dropout_keeps_the_mean_and_drops_the_asked_share() -> None:
    x = torch.ones(200, 500)
    y = dropped(x, 0.3, np.random.Generator(np.random.Philox(1)))
    assert abs(float((y == 0).float().mean()) - 0.3) < 0.01
    assert abs(float(y.mean()) - 1.0) < 0.01
    assert dropped(x, 0.3, None) is x


def test_batches_hold_every_user_with_a_next_item_once() -> None:
    length_U = np.array([0, 1, 2, 5, 9, 2, 3, 1, 7])
    batches = epoch_batches(length_U, 2, np.random.default_rng(0))
    assert sorted(np.concatenate(batches).tolist()) == [2, 3, 4, 5, 6, 8]
    assert max(map(len, batches)) <= 2


def test_copurchase_start_puts_bought_together_items_close() -> None:
    h = ragged([np.array([i, i + 1]) for i in (0, 0, 2, 2, 4, 4)], 7)
    vectors = copurchase_vectors(h, 5, seed=0)
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.9
    assert abs(float(similar[0, 2])) < 0.1
    assert not vectors[6].any()


def test_it_learns_a_certain_order_that_popularity_cannot() -> None:
    h = cyclic()
    users = np.arange(h.n_users)
    config = CONFIG.model_copy(update={"epochs": 12, "lr": 5e-3, "init": "random"})
    model, curve = train(h, users, config, seed=0)
    queries, target_U = prefixes(h, users, h.lengths_U - 1), h.items_N[h.offsets_U1[1:] - 1]
    # A cycle of 20 items: among unseen items the next one is the best guess.
    assert evaluate(model, queries, target_U, 1)["r@1"] > 0.9
    assert evaluate(Popularity.build(h.train_part()), queries, target_U, 1)["r@1"] < 0.5
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]


def test_the_validation_and_test_items_do_not_reach_the_weights() -> None:
    h = cyclic()
    other = h.items_N.copy()
    ends_U = h.offsets_U1[1:]
    other[ends_U - 1] = (other[ends_U - 1] + 3) % h.n_items  # test items: never read
    changed = Histories(h.offsets_U1, other, h.timestamps_N, h.n_items)
    users = np.arange(h.n_users)
    one, _ = train(h, users, CONFIG, seed=0)
    two, _ = train(changed, users, CONFIG, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    other[ends_U - 2] = (other[ends_U - 2] + 5) % h.n_items  # validation items: choose the epoch
    last = CONFIG.model_copy(update={"epochs": 1})
    three, _ = train(Histories(h.offsets_U1, other, h.timestamps_N, h.n_items), users, last, seed=0)
    four, _ = train(h, users, last, seed=0)
    assert all(
        torch.equal(a, b) for a, b in zip(three.parameters(), four.parameters(), strict=True)
    )


@pytest.mark.parametrize("stopped_after", [1, 3])
def test_continued_training_gives_the_same_bits(tmp_path, stopped_after: int) -> None:
    h = cyclic()
    users = np.arange(h.n_users)
    whole, curve = train(h, users, CONFIG, seed=5)
    early = CONFIG.model_copy(update={"epochs": stopped_after})
    train(h, users, early, seed=5, work=tmp_path)
    rest, curve_again = train(h, users, CONFIG, seed=5, work=tmp_path)
    assert curve == curve_again
    assert all(
        torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters(), strict=True)
    )


@pytest.mark.parametrize(("layers", "heads", "dim"), [(1, 1, 8), (2, 2, 16), (3, 4, 32)])
def test_scores_without_a_tensor_library_are_those_of_the_model(
    layers: int, heads: int, dim: int, tmp_path
) -> None:
    config = CONFIG.model_copy(update={"layers": layers, "heads": heads, "dim": dim})
    model = SasRec(40, config, seed=2).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that a wrong gelu or mask shows
            parameter += torch.from_numpy(rng.normal(0, 0.4, parameter.shape).astype(np.float32))
    model.save(tmp_path)
    rows = [rng.integers(0, 40, n) for n in (1, 0, 2, 7, 8, 9, 30)]
    wanted_LI = model.score_all(ragged(rows, 40))
    found_LI = AttentionScores.load(tmp_path).score_all(ragged(rows, 40))
    assert np.abs(wanted_LI).max() > 1
    np.testing.assert_allclose(found_LI, wanted_LI, rtol=1e-5, atol=1e-5)


def test_gelu_is_torchs() -> None:
    x = np.linspace(-9, 9, 4001, dtype=np.float32)
    wanted = F.gelu(torch.from_numpy(x)).numpy()
    assert np.abs(gelu(x) - wanted).max() < 1e-6


@pytest.mark.parametrize("load", [kinds.load, kinds.load_scores])
def test_a_damaged_file_names_itself(load, tmp_path) -> None:
    SasRec(9, CONFIG).save(tmp_path)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes(b"junk")
        with pytest.raises(ArtifactError, match=name):
            load(tmp_path)


def test_arrays_that_are_not_of_the_configuration_are_refused(tmp_path) -> None:
    SasRec(9, CONFIG).save(tmp_path)
    about = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", about | {"layers": 3})
    with pytest.raises(ArtifactError, match=r"blocks\.2\.down\.bias is None"):
        AttentionScores.load(tmp_path)
    write_json(tmp_path / "config.json", about | {"n_items": 8})
    with pytest.raises(ArtifactError, match=r"items\.weight is"):
        AttentionScores.load(tmp_path)
