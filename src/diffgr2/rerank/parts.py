"""Whether a bundle's parts are what they say and fit together, before a request meets them.

Contract: `check_config` compares config.json with the shapes in the weights' headers, before a
model of that size is built; `check_arrays` refuses numbers that are none in the parts' arrays;
`check_vocabulary` and `check_shop` hold the vocabulary, the catalogue, the histories and the
evidence against each other. Each raises one ArtifactError or CheckpointError that names the file.
Not here: hashes and names (`bundle`), reading the parts (their own modules).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import safe_open

from diffgr2.artifacts import mapped_arrays
from diffgr2.config import Decoder, Recipe
from diffgr2.data.columnar import HISTORIES, ITEMS, USERS
from diffgr2.errors import ArtifactError, CheckpointError, first_line
from diffgr2.items.sids import SemanticIds
from diffgr2.model.contract import BlockContract, read_config
from diffgr2.model.family import Family, check_plain
from diffgr2.prompts.template import Template
from diffgr2.prompts.vocab import Vocabulary, own_tokens
from diffgr2.rerank.bundle import CALIBRATION, PARTS, read_strict
from diffgr2.rerank.names import Names, Seats
from diffgr2.types import Catalogue, Histories


class Opened(Protocol):
    """What was read of a bundle's parts (a `World`)."""

    directory: Path
    recipe: Recipe
    k_max: int
    decoders: tuple[Decoder, ...]
    template: Template
    scales: dict[str, float]
    contract: BlockContract | None
    histories: Histories
    catalogue: Catalogue
    raw_users: list[str]
    sids: SemanticIds
    names: Names
    vocab: Vocabulary
    seats: Seats
    retriever: Any


MOST_POSITIONS = 1 << 20
"""Tables are made for every position of a model."""

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
)
FLOATS = ("F32", "F16", "BF16")


# ------------------------------------------------------------------------------------- weights


def check_config(directory: Path) -> None:
    """config.json says the sizes that the weights have."""
    path = directory / "config.json"
    config = read_strict(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected an object")
    sizes: dict[str, Any] = {name: config.get(name) for name in SIZES}
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise CheckpointError(f"{path}: {name}: expected a whole number above 0")
    if sizes["max_position_embeddings"] > MOST_POSITIONS:
        raise CheckpointError(f"{path}: max_position_embeddings: more than {MOST_POSITIONS}")
    if sizes["num_attention_heads"] % sizes["num_key_value_heads"]:
        raise CheckpointError(f"{path}: num_key_value_heads does not divide num_attention_heads")
    for name, value in _settings(config):
        if type(value) not in (int, float) or value <= 0:
            raise CheckpointError(f"{path}: {name}: expected a number above 0")
    found = tensors_of(directory)
    if sizes["num_hidden_layers"] > len(found):
        raise CheckpointError(f"{path}: num_hidden_layers: more than the weights have")
    tied = config.get("tie_word_embeddings") is True
    wanted = shapes_of(sizes, check_plain(config, str(path)), tied=tied)
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(f"{directory}: tensor {name} is missing")
        if found[name] != shape:
            told = f"tensor {name} is {found[name]}, by config.json {shape}"
            raise CheckpointError(f"{directory}: {told}")
    strange = sorted(found.keys() - wanted.keys() - ({"lm_head.weight"} if tied else set()))
    if strange:
        raise CheckpointError(f"{directory}: tensor {strange[0][:80]} is unknown")


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Numbers that must be positive."""
    yield "rms_norm_eps", config.get("rms_norm_eps")
    parameters = config.get("rope_parameters")
    for place in (config, parameters if isinstance(parameters, dict) else {}):
        if "rope_theta" in place:
            yield "rope_theta", place["rope_theta"]


def tensors_of(directory: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in the weights' headers; nothing else is read."""
    found: dict[str, tuple[int, ...]] = {}
    paths = sorted(directory.glob("*.safetensors"))
    _check_shards(directory / "model.safetensors.index.json", {path.name for path in paths})
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as file:
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                facts = {n: (p.get_dtype(), tuple(p.get_shape())) for n, p in parts.items()}
        except Exception as error:
            told = f"not a readable safetensors file ({first_line(error)})"
            raise ArtifactError(f"{path}: {told}") from None
        for name, (dtype, shape) in facts.items():
            if name in found:
                raise CheckpointError(f"{path}: tensor {name[:80]} stands twice")
            if dtype not in FLOATS:
                raise CheckpointError(f"{path}: tensor {name[:80]} is {dtype}, no float")
            found[name] = shape
    return found


def _check_shards(path: Path, names: set[str]) -> None:
    """An index of weights names the files beside it and no others."""
    if not path.exists():
        return
    index = read_strict(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(name in names for name in places.values()):
        raise CheckpointError(f"{path}: weight_map: names what is not in the bundle")


def shapes_of(sizes: dict[str, Any], family: Family, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Every tensor of a family's model of these sizes."""
    width, inner, head = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    queries, keys = sizes["num_attention_heads"] * head, sizes["num_key_value_heads"] * head
    layer = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    wide = {"q": queries, "k": keys, "v": keys}
    layer = {f"{name}.weight": size for name, size in layer.items()}
    if family.norms:
        layer |= {f"self_attn.{which}_norm.weight": (head,) for which in "qk"}
    if family.biases:
        layer |= {f"self_attn.{which}_proj.bias": (size,) for which, size in wide.items()}
    embedding = (sizes["vocab_size"], width)
    wanted = {"model.embed_tokens.weight": embedding, "model.norm.weight": (width,)}
    if not tied:
        wanted["lm_head.weight"] = embedding
    for number in range(sizes["num_hidden_layers"]):
        wanted |= {f"model.layers.{number}.{name}": size for name, size in layer.items()}
    return wanted


# --------------------------------------------------------------------------------------- parts


def check_arrays(directory: Path) -> None:
    """The parts' arrays hold numbers; only bucket edges may be endless, prices unknown."""
    for part, names in PARTS.items():
        for name in names:
            if not name.endswith(".safetensors"):
                continue
            path = directory / part / name
            for key, array in mapped_arrays(path).items():
                if array.dtype.kind != "f":
                    continue
                other = {"edges_FB": np.isposinf, "price": np.isnan}.get(key, np.zeros_like)
                if not (np.isfinite(array) | other(array).astype(bool)).all():
                    raise ArtifactError(f"{path}: {key} holds what is no finite number")


def check_vocabulary(directory: Path, vocab: Vocabulary) -> None:
    """vocabulary.json says where the tokenizer has its tokens."""
    path, spec = directory / "vocabulary.json", vocab.spec
    numbers = (spec.levels, spec.codes, spec.k, spec.buckets, spec.strengths, spec.size)
    if any(type(number) is not int or number < 1 for number in numbers):
        raise ArtifactError(f"{path}: expected whole numbers above 0")
    if vocab.mask_id != spec.mask_id or vocab.tokenizer.get_vocab_size() != spec.size:
        raise ArtifactError(f"{path}: of another tokenizer")
    if not spec.sound:
        raise ArtifactError(f"{path}: words: not those of this vocabulary")
    counts = (spec.levels, spec.codes, spec.k, spec.fields, spec.buckets, spec.strengths)
    wanted = {} if spec.words else own_tokens(*counts)
    for kind, names in wanted.items():
        base = spec.bases.get(kind) if isinstance(spec.bases, dict) else None
        if type(base) is not int or not 0 <= base <= spec.size - len(names):
            raise ArtifactError(f"{path}: bases.{kind}: not within the vocabulary")
        if [vocab.tokenizer.id_to_token(base + at) for at in range(len(names))] != names:
            raise ArtifactError(f"{path}: bases.{kind}: the tokenizer has other tokens there")


def check_shop(world: Opened) -> None:
    """The parts are of one shop, one vocabulary and one recipe."""
    _check_data(world)
    directory, spec, n = world.directory, world.vocab.spec, len(world.catalogue)
    counts = {
        "items": len(world.sids),
        "evidence": world.seats.n_items,
        "retriever": world.retriever.n_items,
    }
    for part, size in counts.items():
        if size != n:
            raise ArtifactError(f"{directory / part}: {size} items, the catalogue has {n}")
    index, recipe, codebooks = world.seats.index, world.recipe, world.names.encoder.quantizer
    pairs = {
        "levels": (spec.levels, world.sids.levels, codebooks.codebooks_LCD.shape[0]),
        "codes": (spec.codes, world.sids.n_codes, codebooks.codebooks_LCD.shape[1]),
        "k_max": (spec.k, world.k_max),
        "fields": (spec.fields, index.names),
        "buckets": (spec.buckets, recipe.evidence.buckets, index.n_buckets),
        "strengths": (spec.strengths, recipe.prompt.strengths),
        "history": (index.history, recipe.evidence.history),
        "mask": (spec.mask_id, world.contract.mask_token_id if world.contract else spec.mask_id),
    }
    if read_config(directory)["vocab_size"] < spec.size:
        raise CheckpointError(f"{directory}: weights are of another vocabulary")
    for name, values in pairs.items():
        if len(set(values)) > 1:
            told = f"vocabulary, recipe and parts do not fit ({name}: "
            raise ArtifactError(f"{directory}: {told}{', '.join(map(str, values))})"[:400])
    _check_evidence(world)
    _check_scales(world)


def read_scales(directory: Path) -> dict[str, float]:
    """What turns strengths into probabilities, by decoder."""
    path = directory / CALIBRATION
    scales = read_strict(path)
    if not isinstance(scales, dict):
        raise ArtifactError(f"{path}: expected an object")
    for name, scale in scales.items():
        if type(scale) not in (int, float) or not 0 <= scale < 1e6:
            raise ArtifactError(f"{path}: {name[:80]!r}: expected a number from 0 on")
    return scales


def _check_scales(world: Opened) -> None:
    """Every decoder whose strengths are read has a scale."""
    for decoder in world.decoders if "said" in world.template.answers else ():
        if decoder not in world.scales:
            raise ArtifactError(f"{world.directory / CALIBRATION}: no scale of {decoder}")


def _check_data(world: Opened) -> None:
    """Items and shoppers are there, each once, and histories point at items."""
    data, catalogue, histories = world.directory / "data", world.catalogue, world.histories
    for name, ids in ((ITEMS, catalogue.raw_ids), (USERS, world.raw_users)):
        if not ids or len(set(ids)) < len(ids):
            raise ArtifactError(f"{data / name}: nothing stands there, or an id stands twice")
    if histories.n_users != len(world.raw_users):
        raise ArtifactError(
            f"{data}: {histories.n_users} histories of {len(world.raw_users)} users"
        )
    items_N, offsets_U1 = histories.items_N, histories.offsets_U1
    whole = items_N.dtype.kind == offsets_U1.dtype.kind == "i"
    inside = whole and (items_N >= 0).all() and (items_N < len(catalogue)).all()
    if not inside or offsets_U1[0] != 0 or (np.diff(offsets_U1) < 0).any():
        raise ArtifactError(f"{data / HISTORIES}: no histories of this catalogue")
    if offsets_U1[-1] != len(items_N):
        raise ArtifactError(f"{data / HISTORIES}: offsets do not cover the items")


def _check_evidence(world: Opened) -> None:
    """Shapes and types of what the evidence index and the encoder multiply."""
    directory, n, index = world.directory, len(world.catalogue), world.seats.index
    pairs, known, vectors = index.pairs, index.attributes, world.names.encoder.vectors
    width = known.vectors_IE.shape[-1]
    places, purchases = len(pairs.pair_P), len(pairs.key_M)
    shapes = {
        "brand_I": (known.brand_I, (n,), "i"),
        "category_ID": (known.category_ID, (n, *known.category_ID.shape[1:2]), "i"),
        "vectors_IE": (known.vectors_IE, (n, width), "f"),
        "edges_FB": (index.edges_FB, (len(index.names), index.n_buckets - 1), "f"),
        "pair_P": (pairs.pair_P, (places,), "i"),
        "value_PV": (pairs.value_PV, (places, len(pairs.kinds)), "f"),
        "key_M": (pairs.key_M, (purchases,), "i"),
        "position_M": (pairs.position_M, (purchases,), "i"),
        "day_M": (pairs.day_M, (purchases,), "i"),
        "buyers_I": (pairs.buyers_I, (n,), "i"),
    }
    if (titles := index.titles) is not None:
        words, start_I1, word_T = len(titles.mark_W), titles.start_I1, titles.word_T
        shapes["mark_W"] = (titles.mark_W, (words,), "i")
        shapes["idf_W"] = (titles.idf_W, (words,), "f")
        shapes["start_I1"] = (start_I1, (n + 1,), "i")
        shapes["word_T"] = (word_T, (len(word_T),), "i")
    path = directory / "evidence" / "index.safetensors"
    for name, (array, shape, kind) in shapes.items():
        if array.shape != shape or array.dtype.kind != kind or array.ndim != len(shape):
            raise ArtifactError(f"{path}: {name} is {array.dtype} {array.shape}, not {shape}")
    if titles is not None:
        wrong = word_T.min(initial=0) < 0 or word_T.max(initial=-1) >= words
        wrong |= start_I1[0] != 0 or np.diff(start_I1).min() < 0 or start_I1[-1] != len(word_T)
        if wrong or titles.idf_W.min(initial=1) <= 0:
            raise ArtifactError(f"{path}: no words of these titles")
    if not -1 <= known.brand_I.min() <= known.brand_I.max() < n:
        raise ArtifactError(f"{path}: brand_I: no numbers of brands")
    late = n if index.late_from is None else index.late_from
    numbers = (index.n_users, index.history, index.n_buckets, pairs.window, late)
    whole = all(type(number) is int and number > 0 for number in numbers) and late <= n
    if not whole or type(index.decay) not in (int, float) or not 0 < index.decay <= 1:
        raise ArtifactError(f"{directory / 'evidence' / 'index.json'}: a number is out of range")
    columns = vectors.components_DV.shape
    if vectors.sentence_model is None and (
        columns != (width, len(vectors.vocabulary)) or vectors.idf_V.shape != columns[1:]
    ):
        path = directory / "items" / "vectorizer.safetensors"
        raise ArtifactError(f"{path}: not of this vectorizer.json or evidence")
