"""The items stage and its parts on small catalogues with known structure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffgr2.artifacts import load_arrays, read_json, sha256_of
from diffgr2.config import ItemsConfig
from diffgr2.data.store import Dataset
from diffgr2.items.kmeans import kmeans, nearest
from diffgr2.items.quality import id_report, purity, top_categories
from diffgr2.items.quantize import Encoder, fit_rkmeans
from diffgr2.items.rqvae import Codebooks, contrastive, fit_rqvae, n_epochs
from diffgr2.items.sids import SemanticIds, parse_sid, sid_text, sid_token
from diffgr2.items.uniqueness import distinct_share
from diffgr2.items.vectors import fit_vectors, item_text
from diffgr2.progress import Progress
from diffgr2.stages import items as stage
from diffgr2.types import Catalogue, Histories
from support.items_stage import run_stage

KINDS = ("shampoo", "lipstick", "razor", "lotion", "perfume")
SMALL = ItemsConfig(
    vector_dim=16, levels=3, codes=16, latent_dim=8, hidden_dim=16, epochs=4, min_steps=0
)


def make_catalogue(n: int, seed: int = 0) -> Catalogue:
    rng = np.random.default_rng(seed)
    words = [f"word{i}" for i in range(40)]
    kinds = [KINDS[i % len(KINDS)] for i in range(n)]
    return Catalogue(
        raw_ids=[f"r{i}" for i in range(n)],
        titles=[f"{kind} {' '.join(rng.choice(words, 4))} no {i}" for i, kind in enumerate(kinds)],
        brands=[f"brand{i % 7}" for i in range(n)],
        categories=[["root", kind] for kind in kinds],
        prices=np.full(n, np.nan),
        descriptions=[""] * n,
    )


def make_dataset(n_items: int, n_users: int = 30) -> Dataset:
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 9, size=n_users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    bought = rng.integers(n_items, size=int(offsets[-1])).astype(np.int32)
    histories = Histories(offsets, bought, np.zeros(len(bought), np.int64), n_items)
    return Dataset(histories, make_catalogue(n_items), [str(u) for u in range(n_users)], {})


@pytest.fixture(scope="module")
def vectors_ID() -> np.ndarray:
    texts = [f"{KINDS[i % 5]} alpha{i % 11} beta{i % 13} gamma{i}" for i in range(400)]
    return fit_vectors(texts, SMALL, 0)[0]


@pytest.mark.parametrize("quantizer", ["blend", "rqvae", "rkmeans"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_stage_writes_unique_ids_and_all_its_files(
    tmp_path: Path, quantizer: str, weight: float
) -> None:
    config = SMALL.model_copy(update={"quantizer": quantizer, "copurchase_weight": weight})
    out, metrics = run_stage(tmp_path, make_dataset(200), config)
    ids = SemanticIds.load(out)
    assert len(ids) == 200
    assert len(np.unique(ids.codes_IL, axis=0)) == 200
    vectors_ID = load_arrays(out / "vectors.safetensors")["vectors_ID"]
    np.testing.assert_allclose(np.linalg.norm(vectors_ID, axis=1), 1.0, atol=1e-5)
    index = read_json(out / "items.index.json")
    assert index["7"] == [
        f"<{letter}_{code}>" for letter, code in zip("abc", ids.codes(7), strict=True)
    ]
    assert metrics["unique_after"] == 1.0
    assert metrics["unique_natural"] <= metrics["unique_assigned"] <= 1.0
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert read_json(out / "report.json")["category_depth"] == 1  # depth 0 is "root" for all


@pytest.mark.parametrize("quantizer", ["blend", "rqvae", "rkmeans"])
def test_two_runs_of_the_stage_write_the_same_bytes(tmp_path: Path, quantizer: str) -> None:
    config = SMALL.model_copy(update={"quantizer": quantizer, "copurchase_weight": 0.2})
    outs = [run_stage(tmp_path / name, make_dataset(120), config)[0] for name in ("a", "b")]
    hashes = [{p.name: sha256_of(p) for p in sorted(out.iterdir())} for out in outs]
    assert hashes[0] == hashes[1]
    assert len(hashes[0]) == 7


@pytest.mark.parametrize("quantizer", ["blend", "rqvae", "rkmeans"])
def test_a_loaded_encoder_gives_the_bits_of_the_fitted_one(tmp_path: Path, quantizer: str) -> None:
    catalogue = make_catalogue(150)
    texts = [item_text(t, b, c, "") for t, b, c in zip(*_fields(catalogue), strict=True)]
    vectors_ID, text_vectors = fit_vectors(texts, SMALL, 3)
    config = SMALL.model_copy(update={"quantizer": quantizer})
    fitted, _ = stage.fit_quantizer(vectors_ID, make_dataset(150).histories, config, 3, Progress())
    encoder = Encoder(text_vectors, fitted)
    encoder.save(tmp_path)
    loaded = Encoder.load(tmp_path)
    unseen = ["Shampoo WORD3 brand1", "", "nothing known here at all", texts[5]]
    for one, two in zip(encoder.encode(unseen), loaded.encode(unseen), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(loaded.vectors(texts), vectors_ID)
    assert [part.shape for part in loaded.encode([])] == [(0, 16), (0, 3)]
    np.testing.assert_array_equal(loaded.vectors([""]), np.zeros((1, 16), np.float32))


def _fields(catalogue: Catalogue) -> tuple[list[str], list[str], list[list[str]]]:
    return catalogue.titles, catalogue.brands, catalogue.categories


def test_items_of_one_kind_are_nearer_to_each_other_than_to_others(tmp_path: Path) -> None:
    catalogue = make_catalogue(200)
    texts = [item_text(t, b, c, "") for t, b, c in zip(*_fields(catalogue), strict=True)]
    vectors_ID, _ = fit_vectors(texts, SMALL, 0)
    kind_I = np.arange(200) % len(KINDS)
    similar_II = vectors_ID @ vectors_ID.T
    np.fill_diagonal(similar_II, np.nan)
    same_II = kind_I[:, None] == kind_I
    assert np.nanmean(similar_II[same_II]) > np.nanmean(similar_II[~same_II]) + 0.1


def test_pairs_of_words_do_not_reach_over_fields() -> None:
    _, fitted = fit_vectors([item_text("red lip", "stick", [], "")], SMALL, 0)
    assert sorted(fitted.vocabulary) == ["lip", "red", "red lip", "stick"]


def test_copurchases_stay_within_a_user_and_skip_repeats() -> None:
    histories = Histories(
        np.array([0, 3, 5]), np.array([1, 2, 2, 3, 1], np.int32), np.zeros(5, np.int64), 4
    )
    assert stage.copurchases(histories).tolist() == [[1, 2], [3, 1]]


def test_kmeans_beats_random_centres_and_leaves_no_centre_unused(vectors_ID: np.ndarray) -> None:
    rng = np.random.default_rng(0)

    def error(centres: np.ndarray) -> float:
        return float(np.square(vectors_ID - centres[nearest(vectors_ID, centres)]).sum())

    centres = kmeans(vectors_ID, 16, rng)
    drawn = [vectors_ID[rng.permutation(len(vectors_ID))[:16]] for _ in range(20)]
    assert error(centres) < min(error(one) for one in drawn)
    assert len(np.unique(nearest(vectors_ID, centres))) == 16


def test_codes_are_the_brute_force_nearest_of_each_residual(vectors_ID: np.ndarray) -> None:
    quantizer = fit_rkmeans(vectors_ID, SMALL, 0)
    codes_IL = quantizer.codes(vectors_ID)
    rest_ID = vectors_ID.astype(np.float64)
    for level, book_CD in enumerate(quantizer.codebooks_LCD.astype(np.float64)):
        gap_IC = np.square(rest_ID[:, None] - book_CD).sum(-1)
        chosen_I = gap_IC[np.arange(len(gap_IC)), codes_IL[:, level]]
        np.testing.assert_allclose(chosen_I, gap_IC.min(1), atol=1e-6)
        rest_ID = rest_ID - book_CD[codes_IL[:, level]]


def test_training_lowers_the_reconstruction_error(vectors_ID: np.ndarray) -> None:
    def error(epochs: int) -> float:
        config = SMALL.model_copy(update={"epochs": epochs, "batch": 64, "lr": 3e-3})
        losses: list[float] = []
        fitted = fit_rqvae(vectors_ID, None, config, 0, lambda epoch, loss: losses.append(loss))
        assert len(losses) == epochs
        book_LCE, codes_IL = fitted.codebooks_LCD, fitted.codes(vectors_ID)
        latents_IE = book_LCE[np.arange(len(book_LCE)), codes_IL].sum(axis=1)
        decoded = fitted.mlp("decoder", latents_IE)
        return float(np.square(vectors_ID - decoded).mean())

    spread = float(np.square(vectors_ID - vectors_ID.mean(0)).mean())
    trained = error(40)
    assert trained < 0.7 * spread
    assert trained < 0.5 * error(0)


def test_copurchase_loss_pulls_bought_together_items_together(vectors_ID: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    group_I = np.arange(400) % 13  # items that share their `beta` word are bought together
    left_P = rng.integers(400, size=4_000)
    right_P = np.array([rng.choice(np.flatnonzero(group_I == group_I[i])) for i in left_P])
    pairs_P2 = np.stack([left_P, right_P], 1)[left_P != right_P].astype(np.int32)

    def gap(weight: float) -> float:
        changes = {"copurchase_weight": weight, "epochs": 20, "batch": 64, "lr": 3e-3}
        config = SMALL.model_copy(update=changes)
        latents = fit_rqvae(vectors_ID, pairs_P2, config, 0).latent(vectors_ID)
        latents = latents / np.linalg.norm(latents, axis=1, keepdims=True)
        together = (latents[pairs_P2[:, 0]] * latents[pairs_P2[:, 1]]).sum(1).mean()
        return float(together - (latents @ latents.T).mean())

    assert gap(1.0) > gap(0.0) + 0.05


def test_small_catalogues_train_longer_and_zero_epochs_stay_zero() -> None:
    config = ItemsConfig(batch=100, epochs=5, min_steps=60)
    assert n_epochs(10_000, config) == 5  # 100 batches per epoch
    assert n_epochs(201, config) == 20  # 3 batches per epoch
    assert n_epochs(201, config.model_copy(update={"epochs": 0})) == 0


def test_contrastive_loss_equals_its_definition_and_ignores_own_items() -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.randn(3, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    pairs = torch.tensor([[0, 1], [2, 3], [0, 5]])  # rows 0 and 2 share item 0
    a = left / left.norm(dim=1, keepdim=True)
    b = right / right.norm(dim=1, keepdim=True)
    s = (a @ b.T / 0.1).exp()
    rivals = {0: [0, 1], 1: [0, 1, 2], 2: [1, 2]}
    rows = [-(s[i, i] / s[i, js].sum()).log() for i, js in rivals.items()]
    columns = [-(s[i, i] / s[js, i].sum()).log() for i, js in rivals.items()]
    wanted = (torch.stack(rows).mean() + torch.stack(columns).mean()) / 2
    torch.testing.assert_close(contrastive(left, right, pairs), wanted)


def test_moving_averages_equal_hand_arithmetic() -> None:
    book = torch.tensor([[[0.0], [10.0]]])
    books = Codebooks(book.clone())
    latents = torch.tensor([[1.0], [2.0], [9.0]])
    codes, rests = books.assign(latents)
    assert codes.flatten().tolist() == [0, 0, 1]
    books.update(codes, rests, ema=0.5, dead_after=0)
    # count .5*1 + .5*2 = 1.5, sum 0 + .5*3 -> 1.0; count .5 + .5, sum 5 + 4.5 -> 9.5
    torch.testing.assert_close(books.codes_LCE, torch.tensor([[[1.0], [9.5]]]))


def test_a_dead_code_moves_to_the_worst_served_row_and_only_when_due() -> None:
    book = torch.tensor([[[0.0], [100.0]]])
    books = Codebooks(book.clone())
    latents = torch.tensor([[0.0], [1.0], [-7.0]])
    codes, rests = books.assign(latents)
    books.update(codes, rests, ema=0.99, dead_after=2)
    assert float(books.codes_LCE[0, 1, 0]) == pytest.approx(100.0)
    books.update(codes, rests, ema=0.99, dead_after=2)
    assert float(books.codes_LCE[0, 1, 0]) == -7.0
    assert books.idle_LC[0, 1] == 0


def test_dead_codes_come_back_in_training(vectors_ID: np.ndarray) -> None:
    used = {}
    for dead_after in (0, 3):
        config = SMALL.model_copy(
            update={"epochs": 40, "batch": 64, "dead_after": dead_after, "codes": 64, "lr": 1e-2}
        )
        codes_IL = fit_rqvae(vectors_ID, None, config, 0).codes(vectors_ID)
        used[dead_after] = sum(len(np.unique(column)) for column in codes_IL.T)
    assert used[3] > used[0]


def test_tokens_and_text_are_read_back() -> None:
    assert [sid_token(level, 7) for level in (0, 1, 7)] == ["<s_a_7>", "<s_b_7>", "<s_h_7>"]
    assert sid_text((57, 3)) == "<s_a_57><s_b_3>"
    assert parse_sid("<s_a_57><s_b_3>") == (57, 3)
    for wrong in ("", "<s_b_3>", "<s_a_1><s_c_2>", "<s_a_01>", " <s_a_1>", "<s_a_1>x", "<s_i_1>"):
        assert parse_sid(wrong) is None


def test_report_counts_match_a_hand_made_catalogue() -> None:
    natural = np.array([[0, 0], [0, 0], [0, 0], [1, 1]], np.int32)
    near = np.array([[0, 0], [0, 1], [0, 0], [1, 1]], np.int32)
    pairs = np.array([[0, 1], [0, 3], [1, 2], [2, 0]])
    final = np.array([[0, 0], [0, 1], [0, 2], [1, 1]], np.int32)
    paths = [["x", "p"], ["x", "p"], ["x", "q"], ["x", "q"]]
    report = id_report(natural, near, final, np.array([0, 0, 1, 0]), 4, paths, pairs)
    assert report["unique"] == {"natural": 0.5, "assigned": 0.75, "after": 1.0}
    assert (report["pairs"], report["shared"]) == (4, [0.75, 0.0])
    assert report["collisions"]["natural"] == {"groups": 1, "items": 3, "largest": 3}
    assert report["moved"] == {"assigned": 1, "random": 1, "random_by_levels": {"1": 1}}
    first, second = report["levels"]
    assert (first["used"], first["usage"], first["largest"]) == (2, 0.5, 3)
    # shares 3/4 and 1/4: entropy 0.811278 bits
    assert first["entropy_bits"] == pytest.approx(0.811278, abs=1e-6)
    assert first["perplexity"] == pytest.approx(2**0.811278, abs=1e-3)
    assert first["purity"] == 0.75  # code 0: p p q -> 2; code 1: q -> 1
    assert second["prefix_purity"] == 1.0
    assert report["purity_by_chance"] == 0.5


def test_purity_leaves_unlabelled_items_out() -> None:
    labels, depth = top_categories([["x"], [], ["y"], ["x"]])
    assert (labels.tolist(), depth) == ([0, -1, 1, 0], 0)
    assert purity(np.zeros(4, np.int64), labels) == pytest.approx(2 / 3)
    assert top_categories([[], []])[1] == -1
    assert purity(np.zeros(2, np.int64), np.array([-1, -1])) is None


def test_natural_share_counts_distinct_ids() -> None:
    assert distinct_share(np.array([[1, 2], [1, 2], [3, 4]], np.int32)) == pytest.approx(2 / 3)
