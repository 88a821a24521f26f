"""The simulated shop's catalogue: titles, brands, category paths, price tiers, complements.

Contract: `build_catalogue(n_items, seed)` gives a `Catalogue` with unique titles and the item
arrays of the truth: leaf (department, product, need), tier, brand, Zipf-like popularity and, per
item, a small pool of complements with probabilities that sum to 1. Dense numbers and raw ids are
random with respect to all of these, so that neither leaks. Not here: shoppers and what they buy
(`data.shop`), the words themselves (`shop_words.yaml`).
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffgr2 import streams
from diffgr2.config import Section
from diffgr2.data.shop_truth import Truth
from diffgr2.recipe import parse_yaml
from diffgr2.types import Catalogue

POOL = 5  # complements per item
POOL_SHARES = np.array([0.46, 0.24, 0.14, 0.09, 0.07])  # by place in the pool
ZIPF = 0.95  # popularity of the item at popularity rank r is ~ 1 / (r + ZIPF_SHIFT) ** ZIPF
ZIPF_SHIFT = 5.0
BRAND_PULL = 6.0  # how much likelier a complement is of the same brand
TIER_PULL = np.array([1.0, 0.3, 0.06, 0.01])  # by distance in tiers
OTHER_NEED = 0.08  # weight of a complement for another need (curly -> dry)
OTHER_DEPARTMENT = 0.12  # weight of a complement in another department
BLOCK, BLOCK_CHOICE = 256, 512  # complements: items at a time, and how many they choose from
LINES = 8  # product lines of a brand


class Product(Section):
    """A product type: the second level of a category path."""

    name: str  # category, for example "Hair Masks"
    noun: str  # as it reads in a title
    price: float  # of a mid-range item
    sizes: str  # key of `Words.sizes`
    goes_with: list[str]  # names of product types, most natural first
    cared: bool = False  # its variants are ingredients, whatever the department's are


class Department(Section):
    """The first level of a category path; its needs are the third."""

    name: str
    needs: dict[str, str]  # category -> pattern of the noun in a title
    variant: str  # pattern of the variant in a title
    variants: list[str]
    products: list[Product]


class Words(Section):
    """The vocabulary: `shop_words.yaml`, which tells what each list is."""

    sizes: dict[str, list[str]]
    ingredients: list[str]
    departments: list[Department]
    tiers: dict[str, float]  # factor on a product's price
    brand_starts: list[str]
    brand_ends: list[str]
    line_first: list[str]
    line_last: list[str]


_FILE = Path(__file__).with_name("shop_words.yaml")
WORDS = Words.model_validate(parse_yaml(_FILE.read_text(encoding="utf-8"), _FILE.name))


@dataclass(frozen=True)
class Leaf:
    """One category path, and the words of its titles."""

    department: int
    need: int
    product: Product
    path: list[str]  # from general to specific
    noun: str  # with the need
    variants: list[str]  # with what joins them to the noun


@dataclass(frozen=True)
class Shelves:
    """The catalogue and all that the truth needs to know of its items and leaves.

    `truth` holds leaf_I, tier_I, brand_I (int32), popularity_I (sums to 1), complements_IC (-1
    where the pool is smaller) and complement_p_IC (rows sum to 1).
    """

    catalogue: Catalogue
    leaves: list[Leaf]
    truth: Truth
    home_BD: np.ndarray  # bool: brand sells in department


def leaves_for(n_items: int) -> list[Leaf]:
    """As many category paths as a catalogue of this size can fill."""
    n_departments = int(np.clip(n_items // 60, 1, len(WORDS.departments)))
    n_needs = int(np.clip(n_items // 600, 1, 5))
    leaves = []
    for d, department in enumerate(WORDS.departments[:n_departments]):
        for product in department.products:
            joined, variants = department.variant, department.variants
            if product.cared:
                joined, variants = " with {}", WORDS.ingredients
            variants = [joined.format(variant) for variant in variants]
            for need, (category, noun) in enumerate([*department.needs.items()][:n_needs]):
                path = [department.name, product.name, category]
                leaves.append(Leaf(d, need, product, path, noun.format(product.noun), variants))
    return leaves


def zipf(n: int, exponent: float, shift: float) -> np.ndarray:
    """Weights of ranks 0..n-1, summing to 1."""
    weight_N = (np.arange(n) + 1.0 + shift) ** -exponent
    return weight_N / weight_N.sum()


def draw_brands(
    department_I: np.ndarray, n_brands: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(brand per item, tier per brand, home departments per brand)."""
    n_departments = int(department_I.max()) + 1
    size_B = zipf(n_brands, 0.8, 3.0)
    tier_B = rng.choice(4, size=n_brands, p=[0.28, 0.38, 0.24, 0.10])
    home_BD = rng.random((n_brands, n_departments)) < min(1.0, 1.6 / n_departments)
    home_BD[np.arange(n_brands), rng.integers(n_departments, size=n_brands)] = True
    home_BD[0] = True  # one generalist, so that every department has a brand
    brand_I = np.zeros(len(department_I), dtype=np.int32)
    for d in range(n_departments):
        rows = np.flatnonzero(department_I == d)
        weight_B = size_B * home_BD[:, d]
        brand_I[rows] = rng.choice(n_brands, size=len(rows), p=weight_B / weight_B.sum())
    return brand_I, tier_B, home_BD


def leaf_links(leaves: list[Leaf]) -> np.ndarray:
    """How strongly buying in one leaf calls for another, as weights_GG."""
    weights_GG = np.zeros((len(leaves), len(leaves)))
    for g, leaf in enumerate(leaves):
        for h, other in enumerate(leaves):
            if other.product.name not in leaf.product.goes_with:
                continue
            weight = 0.6 ** leaf.product.goes_with.index(other.product.name)
            if other.department != leaf.department:
                weight *= OTHER_DEPARTMENT
            elif other.need != leaf.need:
                weight *= OTHER_NEED
            weights_GG[g, h] = weight
    return weights_GG


def draw_complements(leaves: list[Leaf], truth: Truth, rng: np.random.Generator) -> Truth:
    """Pool and probabilities per item: weighted, without replacement, from the linked leaves."""
    links_GG, leaf_I, tier_I = leaf_links(leaves), truth["leaf_I"], truth["tier_I"]
    brand_I, appeal_I = truth["brand_I"], np.sqrt(truth["popularity_I"])
    pool_IC = np.full((len(leaf_I), POOL), -1, dtype=np.int32)
    p_IC = np.zeros(pool_IC.shape)
    by_leaf = np.argsort(leaf_I, kind="stable")
    starts = np.searchsorted(leaf_I[by_leaf], np.arange(len(links_GG) + 1))
    for g, weight_G in enumerate(links_GG):
        linked = [by_leaf[starts[h] : starts[h + 1]] for h in np.flatnonzero(weight_G)]
        choice_all = np.concatenate(linked)
        members = by_leaf[starts[g] : starts[g + 1]]
        for at in range(0, len(members), BLOCK):
            item_b = members[at : at + BLOCK]
            choice_c = choice_all
            if len(choice_all) > BLOCK_CHOICE:  # large shops: each block sees a random part
                choice_c = rng.choice(choice_all, BLOCK_CHOICE, replace=False)
            weight_bc = (weight_G[leaf_I[choice_c]] * appeal_I[choice_c])[None] * np.where(
                brand_I[item_b][:, None] == brand_I[choice_c][None], BRAND_PULL, 1.0
            )
            weight_bc = weight_bc * TIER_PULL[np.abs(tier_I[item_b][:, None] - tier_I[choice_c])]
            # Gumbel keys: the largest ones are a weighted draw without replacement.
            key_bc = np.log(weight_bc) + rng.gumbel(size=weight_bc.shape)
            best_bC = np.argsort(-key_bc, axis=1, kind="stable")[:, :POOL]
            pool_IC[item_b, : best_bC.shape[1]] = choice_c[best_bC]
            p_IC[item_b, : best_bC.shape[1]] = POOL_SHARES[: best_bC.shape[1]]
    return {"complements_IC": pool_IC, "complement_p_IC": p_IC / p_IC.sum(1, keepdims=True)}


def write_texts(
    leaves: list[Leaf], truth: Truth, brands: list[str], rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """(titles, descriptions); titles are unique because each (brand, leaf) counts through its own
    combinations of line, variant and size."""
    all_lines = [f"{first} {last}" for first in WORDS.line_first for last in WORDS.line_last]
    lines_BL = np.stack([rng.permutation(len(all_lines))[:LINES] for _ in brands])
    offset_I = rng.integers(1 << 30, size=len(truth["leaf_I"])).tolist()
    tiers, offsets, seen = list(WORDS.tiers), {}, Counter()
    titles, descriptions = [], []
    places = (truth[key].tolist() for key in ("leaf_I", "brand_I", "tier_I"))
    for g, brand, tier, offset in zip(*places, offset_I, strict=True):
        leaf = leaves[g]
        sizes = WORDS.sizes[leaf.product.sizes]
        combinations = (LINES, len(leaf.variants), len(sizes))
        # 7919 is prime and divides none of the numbers of combinations: every one comes once.
        edition, place = divmod(seen[brand, g], math.prod(combinations))
        seen[brand, g] += 1
        code = offsets.setdefault((brand, g), offset) + place * 7919
        line, variant, size = np.unravel_index(code % math.prod(combinations), combinations)
        line_name = all_lines[lines_BL[brand, line]]
        title = f"{brands[brand]} {line_name} {leaf.noun}{leaf.variants[variant]}, {sizes[size]}"
        titles.append(f"{title}, Edition {edition + 1}" if edition else title)
        descriptions.append(
            f"A {tiers[tier]} {leaf.product.noun.lower()} ({leaf.path[-1].lower()}) "
            f"from {brands[brand]}'s {line_name} line."
        )
    return titles, descriptions


def build_catalogue(n_items: int, seed: int) -> Shelves:
    """A whole shop's shelves; the same seed and size give the same shop."""
    rng = streams.generator(seed, "shop", "catalogue")
    leaves = leaves_for(n_items)
    weight_G = rng.lognormal(0.0, 0.4, size=len(leaves))
    # One item per leaf first (no leaf is empty), the rest by weight, then all shuffled.
    more = rng.choice(len(leaves), size=n_items - len(leaves), p=weight_G / weight_G.sum())
    leaf_I = rng.permutation(np.concatenate([np.arange(len(leaves)), more])).astype(np.int32)
    department_I = np.array([leaf.department for leaf in leaves])[leaf_I]
    brand_names = [start + end for start in WORDS.brand_starts for end in WORDS.brand_ends]
    n_brands = int(np.clip(1.5 * np.sqrt(n_items), 6, len(brand_names)))
    brand_I, tier_B, home_BD = draw_brands(department_I, n_brands, rng)
    shift_I = rng.choice([-1, 0, 1], size=n_items, p=[0.15, 0.70, 0.15])
    tier_I = np.clip(tier_B[brand_I] + shift_I, 0, 3).astype(np.int32)
    popularity_I = zipf(n_items, ZIPF, ZIPF_SHIFT)[rng.permutation(n_items)]
    truth = {"leaf_I": leaf_I, "tier_I": tier_I, "brand_I": brand_I, "popularity_I": popularity_I}
    truth |= draw_complements(leaves, truth, rng)
    brands = [brand_names[code] for code in rng.permutation(len(brand_names))[:n_brands]]
    titles, descriptions = write_texts(leaves, truth, brands, rng)
    base_I = np.array([leaf.product.price for leaf in leaves])[leaf_I]
    tier_price_I = np.array(list(WORDS.tiers.values()))[tier_I]
    price_I = base_I * tier_price_I * rng.lognormal(0.0, 0.12, size=n_items)
    catalogue = Catalogue(
        raw_ids=[f"P{code:07d}" for code in rng.permutation(n_items).tolist()],
        titles=titles,
        brands=[brands[b] for b in brand_I.tolist()],
        categories=[leaves[g].path for g in leaf_I.tolist()],
        prices=np.maximum(np.round(price_I * 2) / 2, 1.0) - 0.01,
        descriptions=descriptions,
    )
    return Shelves(catalogue, leaves, truth, home_BD)
