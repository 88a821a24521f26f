"""Catalogues and files that cannot give semantic IDs end in one exact line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from diffgr2.artifacts import save_arrays
from diffgr2.config import ItemsConfig
from diffgr2.errors import ArtifactError, ConfigError, DataError, MissingExtraError
from diffgr2.items.quantize import Encoder, Quantizer, fit_rkmeans
from diffgr2.items.sids import SemanticIds
from diffgr2.items.uniqueness import assigned, check_capacity, make_unique
from diffgr2.items.vectors import fit_vectors
from diffgr2.progress import Progress
from diffgr2.recipe import validate
from diffgr2.stages.items import check_unique, fit_quantizer
from diffgr2.types import Histories

SMALL = ItemsConfig(
    vector_dim=8, levels=3, codes=16, latent_dim=4, hidden_dim=8, epochs=2, min_steps=0
)


def fit(vectors_ID: np.ndarray, config: ItemsConfig) -> tuple[Quantizer, np.ndarray]:
    """The quantizer of items that nobody has bought, and their latents."""
    nothing_N = np.zeros(0, np.int64)
    nobody = Histories(np.zeros(1, np.int64), nothing_N, nothing_N, len(vectors_ID))
    return fit_quantizer(vectors_ID, nobody, config, 0, Progress())


def test_no_text_at_all() -> None:
    with pytest.raises(DataError) as caught:
        fit_vectors(["", " ", "!!"], SMALL, 0)
    assert str(caught.value) == (
        "items: no item has any word in title, brand, categories or description"
    )


def test_empty_catalogue() -> None:
    with pytest.raises(DataError, match=r"^items: no item has any word"):
        fit_vectors([], SMALL, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"vectors": "word2vec"},
            "recipe: items: vectors: expected tfidf or sentence-transformers:<name or path> "
            "(got 'word2vec')",
        ),
        (
            {"vectors": "sentence-transformers:"},
            "recipe: items: vectors: expected tfidf or sentence-transformers:<name or path> "
            "(got 'sentence-transformers:')",
        ),
        (
            {"levels": 2, "random_last": 3},
            "recipe: items: random_last: at most items.levels (2) (got 3)",
        ),
    ],
)
def test_recipes_that_contradict_themselves(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"name": "x", "items": values}, "recipe")
    assert str(caught.value) == message


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is not None,
    reason="sentence-transformers is installed",
)
def test_sentence_vectors_name_their_extra() -> None:
    config = SMALL.model_copy(update={"vectors": "sentence-transformers:some/model"})
    with pytest.raises(MissingExtraError) as caught:
        fit_vectors(["a b"], config, 0)
    assert str(caught.value) == (
        "items.vectors sentence-transformers:some/model needs the extra `text`: "
        "pip install 'diffgr2[text]'"
    )


def test_fewer_ids_than_items() -> None:
    check_capacity(16, 2, 4)
    with pytest.raises(ConfigError) as caught:
        check_capacity(17, 2, 4)
    assert str(caught.value) == (
        "items.levels 2 x items.codes 4 allow 16 semantic IDs, fewer than the 17 items"
    )


def test_duplicates_without_a_policy() -> None:
    with pytest.raises(ConfigError) as caught:
        make_unique(np.zeros((3, 2), np.int32), 4, 0, 0)
    assert str(caught.value) == (
        "items: 2 of 3 items share another item's semantic ID and items.random_last is 0"
    )


@pytest.mark.parametrize("quantizer", ["blend", "rqvae", "rkmeans"])
def test_a_thousand_equal_titles_are_loud_and_still_become_unique(quantizer: str) -> None:
    texts = ["same old title"] * 1_000 + [f"item number {i}" for i in range(1_000)]
    config = SMALL.model_copy(update={"quantizer": quantizer})
    vectors_ID, _ = fit_vectors(texts, config, 0)
    fitted, latents_IE = fit(vectors_ID, config)
    natural_IL = fitted.codes(vectors_ID)
    assert len(np.unique(natural_IL[:1_000], axis=0)) == 1
    share = len(np.unique(natural_IL, axis=0)) / 2_000
    assert share < 0.51  # nobody's codes but the equal titles' own
    with pytest.raises(ArtifactError) as caught:
        check_unique(natural_IL, config)
    assert str(caught.value).startswith(
        f"items: {share:.2%} of 2000 semantic IDs are distinct by the quantizer itself, before any "
        "repair; items.min_unique asks for 80.00% ("
    )
    check_unique(natural_IL, config.model_copy(update={"min_unique": 0.99 * share}))
    near_IL = assigned(latents_IE, natural_IL, fitted)
    unique_IL, drawn_I = make_unique(near_IL, config.codes, 1, 0)
    assert len(np.unique(unique_IL, axis=0)) == 2_000
    assert drawn_I.max() > 1  # the last level alone has 16 codes: earlier ones had to help


@pytest.mark.parametrize("quantizer", ["blend", "rqvae", "rkmeans"])
def test_one_item_is_enough(quantizer: str) -> None:
    vectors_ID, _ = fit_vectors(["one lonely lipstick"], SMALL, 0)
    assert vectors_ID.shape == (1, 8)
    fitted, _ = fit(vectors_ID, SMALL.model_copy(update={"quantizer": quantizer}))
    unique_IL, drawn_I = make_unique(fitted.codes(vectors_ID), SMALL.codes, 1, 0)
    ids = SemanticIds(unique_IL, SMALL.codes)
    assert ids.item(ids.codes(0)) == 0
    assert not drawn_I.any()


def test_a_huge_space_of_suffixes_is_drawn_not_listed() -> None:
    codes_IL = np.zeros((500, 4), np.int32)
    unique_IL, drawn_I = make_unique(codes_IL, 65_536, 4, 0)
    assert len(np.unique(unique_IL, axis=0)) == 500
    assert (drawn_I[1:] == 4).all()


def test_broken_id_files_name_themselves(tmp_path: Path) -> None:
    path = tmp_path / "codes.safetensors"
    with pytest.raises(ArtifactError, match="file is missing"):
        SemanticIds.load(tmp_path)
    one = np.array([4], np.int32)
    for arrays, message in [
        ({"codes_IL": np.zeros((2, 2), np.int32), "n_codes": one}, "share the same codes"),
        ({"codes_IL": np.array([[4]], np.int32), "n_codes": one}, r"outside 0\.\.3"),
        ({"codes_IL": np.zeros((1, 2), np.int64), "n_codes": one}, "expected int32"),
        ({"codes_IL": np.zeros((1, 9), np.int32), "n_codes": one}, "expected int32"),
    ]:
        save_arrays(path, **arrays)
        with pytest.raises(ArtifactError, match=message) as caught:
            SemanticIds.load(tmp_path)
        assert str(caught.value).startswith(str(path))
    path.write_bytes(b"junk")
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        SemanticIds.load(tmp_path)


def test_lookups_out_of_range_are_errors() -> None:
    ids = SemanticIds(np.array([[0, 1], [1, 0]], np.int32), 2)
    with pytest.raises(DataError, match=r"^item 2: the catalogue has items 0\.\.1$"):
        ids.codes(2)
    for unknown in [(0,), (0, 0), (0, 1, 0), (-1, 0), (0, 2)]:
        assert ids.item(unknown) is None


def test_broken_encoder_files_name_themselves(tmp_path: Path) -> None:
    vectors_ID, text_vectors = fit_vectors(["red lipstick", "blue shampoo"], SMALL, 0)
    Encoder(text_vectors, fit_rkmeans(vectors_ID, SMALL, 0)).save(tmp_path)
    for name in ("vectorizer.json", "vectorizer.safetensors", "quantizer.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(b"junk")
        with pytest.raises(ArtifactError, match=name):
            Encoder.load(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(ArtifactError, match=f"{name}: file is missing"):
            Encoder.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    Encoder.load(tmp_path)
