"""The blend: co-purchase vectors against slow counts, and what new items are taken for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.artifacts import load_arrays, read_json, sha256_of
from diffgr2.config import ItemsConfig
from diffgr2.data.store import Dataset
from diffgr2.items.blend import (
    PENALTY,
    WINDOW,
    blended,
    bought_vectors,
    fit_blend,
    ppmi,
    ridge,
    together,
)
from diffgr2.items.quality import next_pairs, shared_share
from diffgr2.items.quantize import Encoder, Quantizer, fit_rkmeans
from diffgr2.items.sids import SemanticIds
from diffgr2.items.uniqueness import distinct_share
from diffgr2.items.vectors import unit_rows
from diffgr2.types import Catalogue, Histories
from support.items_stage import run_stage

N = 60
SMALL = ItemsConfig(vector_dim=8, text_dim=8, bought_dim=8, levels=3, codes=8, min_unique=0.3)


def histories_of(rows: list[list[int]], n_items: int) -> Histories:
    items = np.array([item for row in rows for item in row], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Histories(offsets, items, np.arange(len(items), dtype=np.int64), n_items)


def shop(last: int = 0) -> Dataset:
    """Items of five kinds that are bought by kind; `last` turns everybody's last two purchases."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(80):
        row = (rng.permutation(N // 5)[:8] * 5 + user % 5).tolist()
        row[-2:] = [(item + last) % N for item in row[-2:]]
        rows.append(row)
    titles = [f"kind{i % 5} word{i % 7} shade{i}" for i in range(N)]
    blank = [""] * N
    paths = [["root", f"kind{i % 5}"] for i in range(N)]
    raw = [f"r{i}" for i in range(N)]
    catalogue = Catalogue(raw, titles, blank, paths, np.full(N, np.nan), blank)
    return Dataset(histories_of(rows, N), catalogue, [str(u) for u in range(80)], {})


ROWS = st.lists(st.lists(st.integers(0, 6), max_size=16), min_size=1, max_size=8)


@given(ROWS)
@settings(max_examples=100, deadline=None)
def test_counts_are_those_of_two_loops(rows: list[list[int]]) -> None:
    wanted = np.zeros((7, 7))
    for row in rows:
        for at, first in enumerate(row):
            for second in row[at + 1 : at + WINDOW + 1]:
                if first != second:
                    wanted[first, second] += 1
                    wanted[second, first] += 1
    count = together(histories_of(rows, 7))
    np.testing.assert_array_equal(count.toarray(), wanted)
    total, sums = wanted.sum(), wanted.sum(1)
    value = ppmi(count).toarray()
    for i in range(7):
        for j in range(7):
            told = np.log(wanted[i, j] * total / (sums[i] * sums[j])) if wanted[i, j] else 0.0
            assert value[i, j] == pytest.approx(max(told, 0.0), abs=1e-9)


def test_what_is_bought_together_is_near_and_what_nobody_bought_is_zero() -> None:
    rows = [[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 4, 5], [5, 4, 3], [4, 3, 5]]
    vectors = bought_vectors(histories_of(rows, 8), 4, 0)
    similar = vectors @ vectors.T
    assert similar[:3, :3].min() > 0.5 > similar[:3, 3:6].max()
    assert not vectors[6:].any()
    np.testing.assert_allclose(np.linalg.norm(vectors[:6], axis=1), 1.0, atol=1e-5)
    assert not bought_vectors(histories_of([[], [1]], 3), 4, 0).any()
    assert bought_vectors(histories_of(rows, 8), 20, 0).shape == (8, 20), "more than the rank"


def test_ridge_is_the_least_of_its_own_loss() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 4)), rng.standard_normal((50, 3)) + 2.0
    weight, bias = ridge(x, y)

    def loss(w: np.ndarray, b: np.ndarray) -> float:
        return float(np.square(x @ w.T + b - y).sum() + PENALTY * np.square(w).sum())

    for _ in range(50):
        other = weight + 0.01 * rng.standard_normal(weight.shape)
        assert loss(weight, bias) < loss(other, bias)
        assert loss(weight, bias) < loss(weight, bias + 0.01 * rng.standard_normal(3))


def test_an_item_that_nobody_bought_is_taken_for_what_its_text_promises() -> None:
    rng = np.random.default_rng(0)
    texts = unit_rows(rng.standard_normal((200, 6)))
    promised = unit_rows(texts @ rng.standard_normal((6, 5)))
    bought = np.where(np.arange(200)[:, None] < 150, promised, 0.0).astype(np.float32)
    latents, weights = blended(texts, bought, 6)
    fitted = Quantizer(np.zeros((1, 2, 11), np.float32), weights, unit=True)
    np.testing.assert_array_equal(latents[:150, 6:], bought[:150])
    np.testing.assert_allclose(latents[:, :6] @ latents[:, :6].T, texts @ texts.T, atol=1e-5)
    np.testing.assert_allclose(latents[150:], fitted.latent(texts[150:]), atol=1e-6)
    assert (unit_rows(latents[150:, 6:]) * promised[150:]).sum(1).mean() > 0.9
    assert not blended(texts, np.zeros((200, 5), np.float32), 6)[0][:, 6:].any()


def test_every_level_after_the_first_sees_residuals_of_length_one() -> None:
    rng = np.random.default_rng(1)
    texts, bought = (unit_rows(rng.standard_normal((300, 6))) for _ in range(2))
    fitted, latents = fit_blend(texts, bought, SMALL, 0)
    codes, error = fitted.walk(latents)
    rest, length = latents.astype(np.float64), np.ones(300)
    for level, book in enumerate(fitted.codebooks_LCD.astype(np.float64)):
        gap = np.square(rest[:, None] - book).sum(-1)
        np.testing.assert_allclose(gap[np.arange(300), codes[:, level]], gap.min(1), atol=1e-5)
        rest = rest - book[codes[:, level]]
        shrunk = np.linalg.norm(rest, axis=1)
        rest, length = rest / shrunk[:, None], length * shrunk
    np.testing.assert_allclose(error, length**2, rtol=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unit_residuals_tell_families_apart_that_plain_ones_confuse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    family = np.repeat(unit_rows(rng.standard_normal((20, 8))), 15, axis=0)
    spread = np.repeat(0.05 * np.exp(rng.normal(0, 1, (20, 1))), 15, axis=0)
    vectors = unit_rows(family + spread * rng.standard_normal((300, 8)))
    config = SMALL.model_copy(update={"levels": 4})
    blend, latents = fit_blend(vectors, np.zeros((300, 8), np.float32), config, seed)
    plain = fit_rkmeans(vectors, config, seed)
    assert distinct_share(blend.walk(latents)[0]) > distinct_share(plain.codes(vectors)) + 0.05


def test_validation_and_test_purchases_change_no_byte_of_what_is_learned(tmp_path: Path) -> None:
    outs = [run_stage(tmp_path / str(last), shop(last), SMALL)[0] for last in (0, 7)]
    hashes = [{p.name: sha256_of(p) for p in sorted(out.iterdir())} for out in outs]
    assert {name for name in hashes[0] if hashes[0][name] != hashes[1][name]} == {"report.json"}
    shared = [read_json(out / "report.json").pop("shared") for out in outs]
    assert shared[0] != shared[1], "what comes next is judged by them"


def test_the_guard_asks_what_the_quantizer_did_and_no_repair(tmp_path: Path) -> None:
    _, metrics = run_stage(tmp_path / "one", shop(), SMALL)
    assert metrics["unique_natural"] < metrics["unique_assigned"] == 1.0
    over = SMALL.model_copy(update={"min_unique": metrics["unique_natural"] + 0.01})
    with pytest.raises(Exception, match="distinct by the quantizer itself, before any repair"):
        run_stage(tmp_path / "two", shop(), over)


def test_shuffled_ids_are_the_same_ones_of_other_items(tmp_path: Path) -> None:
    shuffled = SMALL.model_copy(update={"shuffle": True})
    (one, said), (two, told) = (
        run_stage(tmp_path / str(config.shuffle), shop(), config) for config in (SMALL, shuffled)
    )
    ids = [SemanticIds.load(out).codes_IL for out in (one, two)]
    assert (ids[0] != ids[1]).any(1).mean() > 0.9
    assert sorted(ids[0].tolist()) == sorted(ids[1].tolist())
    assert said["unique_natural"] == told["unique_natural"]
    assert said["shared_l1"] > 2 * told["shared_l1"]
    vectors = [load_arrays(out / "vectors.safetensors")["vectors_ID"] for out in (one, two)]
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_words_alone_find_the_kind_of_a_new_item(tmp_path: Path) -> None:
    out, _ = run_stage(tmp_path, shop(), SMALL)
    encoder, ids = Encoder.load(out), SemanticIds.load(out)
    assert encoder.quantizer.unit
    _, codes = encoder.encode([f"kind{kind} word9" for kind in range(5)])
    for kind, first in enumerate(codes[:, 0]):
        kinds = np.flatnonzero(ids.codes_IL[:, 0] == first) % 5
        assert (kinds == kind).mean() > 0.5


def test_pairs_are_what_came_next_beside_what_was_known() -> None:
    rows = [[0, 1, 2, 3, 4], [5, 6, 5, 6], [1, 2], [3, 4, 5]]
    full = histories_of(rows, 7)
    known = histories_of([[0, 1, 2], [5, 6], [], [4, 3]], 7)
    assert next_pairs(full, known).tolist() == [[3, 0], [3, 1], [3, 2], [5, 6]]
    assert not len(next_pairs(full, full))
    codes = np.array([[0, 0], [0, 1], [1, 0], [0, 0], [0, 0], [2, 2], [2, 3]], np.int32)
    shared = shared_share(codes, next_pairs(full, known))
    assert shared == [0.75, 0.25]  # 3-0 both codes, 3-1 and 5-6 the first
    assert shared_share(codes, np.zeros((0, 2), np.int32)) == []
