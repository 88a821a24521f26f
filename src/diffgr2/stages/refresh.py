"""A bundle with new purchases and items, without training: `diffgr2 refresh`.

Contract: `refresh(bundle, news, ...)` writes a whole new bundle beside the old one, checks that it
opens, and gives it its name in one rename; the old bundle is only read, or, `in_place`, changes
places with the new one and stays as `<name>.before`. Whatever ends the process leaves no half
bundle under a final name. Weights, vocabulary, calibration, bucket edges and the scale of `lift`
stay (edges and scale on request only), as do all semantic IDs that stand; counts, catalogue,
histories and the retriever's features follow the arrivals. Needs numpy alone, but for parquet files
and item-kNN. Not here: reading and joining (`data.arrivals`), counting (`candidates.recount`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import (
    exchange,
    finish,
    fsync_path,
    locked,
    read_manifest,
    sha256_of,
)
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.recount import Sample, Scores, recounted, refitted, retrained, users_of
from diffgr2.data import columnar
from diffgr2.data.arrivals import Joined, Purchases, Shop, join, read_purchases, read_records
from diffgr2.data.gather import ItemText
from diffgr2.errors import ArtifactError, ConfigError
from diffgr2.items.sids import SemanticIds
from diffgr2.items.uniqueness import placed
from diffgr2.items.vectors import catalogue_texts, unit_rows
from diffgr2.rerank.bundle import PARTS, opened
from diffgr2.rerank.world import World
from diffgr2.types import Catalogue, Histories

SAMPLE = 500  # lists whose evidence is compared
FITTED = 2_000  # users whose newest purchases refit the edges
REMEMBERED = 100  # refreshes that the manifest lists
MUCH = 0.1  # share of moved buckets above which new edges are worth a thought


@dataclass(frozen=True)
class News:
    """What came, and how its files are read."""

    interactions: Path | None = None
    items: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    item_columns: Mapping[str, str] = field(default_factory=dict)
    max_bad_share: float = 0.01
    anew: bool = False  # words of known items are replaced as well


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did; `lines` say it to people."""

    bundle: Path | None  # where the new bundle stands; None: nothing was new
    facts: dict[str, Any]
    lines: list[str]


@dataclass(frozen=True)
class Grown:
    """Every part of the new bundle that differs."""

    joined: Joined
    sids: SemanticIds
    index: EvidenceIndex
    retriever: Scores
    facts: dict[str, Any]


def refresh(
    bundle: Path,
    news: News,
    *,
    out: Path | None = None,
    in_place: bool = False,
    edges: bool = False,
    keep_last: int | None = None,
) -> Refreshed:
    """See the module's docstring."""
    asked = edges or keep_last is not None
    if news.interactions is None and news.items is None and not asked:
        raise ConfigError("refresh: --interactions, --items, --edges or --keep-last is needed")
    if out is not None and in_place:
        raise ConfigError("refresh: --out and --in-place exclude each other")
    bundle = bundle if bundle.name else bundle.resolve()
    final = bundle if in_place else out or bundle.with_name(f"{bundle.name}-refreshed")
    if not in_place and final.exists():
        raise ConfigError(f"{final}: stands already (give --out another name, or --in-place)")
    if not in_place and final.resolve().is_relative_to(bundle.resolve()):
        raise ConfigError(f"{final}: lies within the old bundle")
    if not final.absolute().parent.is_dir():
        raise ConfigError(f"{final.parent}: no such directory")
    with locked(_beside(final, "refresh.lock"), f"{final}: another refresh is at work here"):
        if in_place:
            _rescue(final)
        world = opened(bundle, World)
        shop = Shop(world.histories, world.catalogue, world.raw_users)
        purchases, records, read = _read(news)
        joined = join(shop, purchases, records, world.recipe.seed, anew=news.anew)
        if not joined.changed and not asked and out is None:
            line = f"nothing new ({joined.known:,} purchases were known): {bundle} stands as it is"
            return Refreshed(None, read, [line])
        grown = _grown(world, joined, edges=edges, keep_last=keep_last)
        facts = {**read, **grown.facts}
        _publish(world, grown, final, facts)
    return Refreshed(final, facts, told(facts, final, in_place=in_place))


def _beside(final: Path, what: str) -> Path:
    """A hidden name beside the new bundle's."""
    return final.with_name(f".{final.name}.{what}")


# ----------------------------------------------------------------------------------- what grows


def _read(news: News) -> tuple[Purchases, dict[str, ItemText], dict[str, Any]]:
    """The arrivals, and what is to be said of their files."""
    purchases, records, facts = Purchases(), dict[str, ItemText](), dict[str, Any]()
    if news.interactions is not None:
        given = (news.interactions, news.columns, news.max_bad_share)
        purchases, intake = read_purchases(*given)
        facts["interactions"] = _file(news.interactions, intake)
    if news.items is not None:
        records, intake = read_records(news.items, news.item_columns, news.max_bad_share)
        facts["items"] = _file(news.items, intake)
    return purchases, records, facts


def _file(path: Path, intake: Any) -> dict[str, Any]:
    set_aside = {"lines": intake.lines, "set_aside": intake.rejected, "first": intake.first}
    return {"file": path.name, "sha256": sha256_of(path), **set_aside}


def _grown(world: World, joined: Joined, *, edges: bool, keep_last: int | None) -> Grown:
    """All parts, and what moved."""
    old, shop = world.seats.index, joined.shop
    sids, vectors_IE = _coded(world, joined)
    given = (shop.histories, shop.catalogue, vectors_IE, joined.new_N, keep_last)
    index = recounted(old, *given)
    users = (world.histories.n_users, shop.histories.n_users)
    retriever, how = retrained(world.retriever, old, index, users)
    k, seed = world.recipe.candidates.k, world.recipe.seed
    fitted = 0
    if edges:
        index, fitted = refitted(index, shop.histories, retriever, k, FITTED, seed)
    sample = Sample.of(world.histories, world.retriever, k, SAMPLE, seed)
    counted = index.names[: len(index.fields) - len(index.own)]
    moved_LKF = (sample.buckets(old) != sample.buckets(index))[..., : len(counted)]
    facts = _counts(world, joined, index) | {
        "retriever": how,
        "edges": fitted,
        "lift_users": index.n_users,
        "sample": len(moved_LKF),
        "moved": {name: _share(moved_LKF[..., f]) for f, name in enumerate(counted)},
        "moved_share": _share(moved_LKF),
        "moved_lists": _share(moved_LKF.any((1, 2))),
    }
    return Grown(joined, sids, index, retriever, facts)


def _share(true: np.ndarray) -> float:
    return float(true.mean()) if true.size else 0.0


def _coded(world: World, joined: Joined) -> tuple[SemanticIds, np.ndarray]:
    """Semantic IDs and text vectors of the grown catalogue; what stands keeps its ID."""
    known, catalogue = len(world.catalogue), joined.shop.catalogue
    encoder, codes_IL = world.names.encoder, world.sids.codes_IL
    vectors_IE = world.seats.index.attributes.vectors_IE
    if joined.n_new_items:
        vectors_NE, natural_NL = encoder.encode(catalogue_texts(_some(catalogue, known)))
        latents_NE = encoder.quantizer.latent(vectors_NE)
        items = world.recipe.items
        given = (natural_NL, latents_NE, encoder.quantizer, items.random_last, world.recipe.seed)
        codes_IL = np.concatenate([codes_IL, placed(codes_IL, *given)])
        vectors_IE = np.concatenate([vectors_IE, unit_rows(vectors_NE)])
    if joined.described:
        texts = catalogue_texts(catalogue)
        vectors_IE = vectors_IE.copy()
        again = encoder.vectors([texts[item] for item in joined.described])
        vectors_IE[joined.described] = unit_rows(again)
    return SemanticIds(codes_IL, world.sids.n_codes), vectors_IE


def _some(catalogue: Catalogue, start: int) -> Catalogue:
    """The items from a number on."""
    return Catalogue(**{name: column[start:] for name, column in vars(catalogue).items()})


def _counts(world: World, joined: Joined, index: EvidenceIndex) -> dict[str, Any]:
    """How much came, and how many counts differ."""
    old, new, known = world.seats.index.pairs, index.pairs, len(world.catalogue)
    before = old.pair_P // old.n_items * new.n_items + old.pair_P % old.n_items  # still sorted
    at = np.minimum(np.searchsorted(new.pair_P, before), max(len(new.pair_P) - 1, 0))
    there = new.pair_P[at] == before if len(new.pair_P) else np.zeros(len(before), dtype=bool)
    same = int((new.value_PV[at[there]] == old.value_PV[there]).all(1).sum())
    buyers_I = new.buyers_I.copy()
    buyers_I[:known] -= old.buyers_I
    shop = joined.shop
    touched = np.unique(users_of(shop.histories)[joined.new_N])
    wordless = [not text for text in catalogue_texts(_some(shop.catalogue, known))]
    return {
        "purchases_added": joined.added,
        "purchases_known": joined.known,
        "purchases": len(shop.histories.items_N),
        "users_added": joined.n_new_users,
        "users_touched": int((touched < world.histories.n_users).sum()),
        "users": shop.histories.n_users,
        "items_added": joined.n_new_items,
        "items_without_text": sum(wordless),
        "items_unbought": int((new.buyers_I[known:] == 0).sum()),
        "items_described": len(joined.described),
        "items_differing": joined.differing,
        "catalogue": len(shop.catalogue),
        "pairs_added": len(new.pair_P) - int(there.sum()),
        "pairs_changed": len(before) - same,
        "pairs": len(new.pair_P),
        "buyers_changed": int((buyers_I != 0).sum()),
    }


# ----------------------------------------------------------------------------------- what is said


def told(facts: Mapping[str, Any], final: Path, *, in_place: bool) -> list[str]:
    """What moved, in lines for people."""
    f, lines = facts, []
    for name in ("interactions", "items"):
        if f.get(name, {}).get("set_aside"):
            aside = f[name]
            lines.append(
                f"{aside['file']}: {aside['set_aside']} of {aside['lines']} lines set aside:"
            )
            lines += [f"  {line}" for line in aside["first"]]
    lines += [
        f"purchases  {f['purchases_added']:,} new, {f['purchases_known']:,} known already (dropped)"
        f", now {f['purchases']:,}",
        f"users      {f['users_added']:,} new, {f['users_touched']:,} with new purchases, "
        f"now {f['users']:,}",
        f"items      {f['items_added']:,} new ({f['items_without_text']:,} without text, "
        f"{f['items_unbought']:,} without a counted purchase), now {f['catalogue']:,}",
    ]
    if f["items_described"] or f["items_differing"]:
        lines.append(
            f"words      {f['items_described']:,} known items described anew; "
            f"{f['items_differing']:,} described otherwise in the file, kept as they were"
        )
    lines += [
        f"counts     {f['pairs_changed']:,} pairs changed, {f['pairs_added']:,} new, "
        f"now {f['pairs']:,}; buyers of {f['buyers_changed']:,} items",
        f"retriever  {f['retriever']}",
    ]
    most = sorted(f["moved"].items(), key=lambda entry: -entry[1])
    named = ", ".join(f"{name} {share:.1%}" for name, share in most if share) or "none"
    lines.append(
        f"evidence   {f['moved_share']:.1%} of the buckets moved in {f['moved_lists']:.0%} of "
        f"{f['sample']} lists ({named})"
    )
    if f["edges"]:
        lines.append(
            f"edges      fitted anew on {f['edges']:,} lists: a bucket means another value than "
            "the model learned; measure before you serve"
        )
    else:
        lines.append(
            f"edges      kept, and the scale of lift ({f['lift_users']:,} users) with them"
        )
        if f["moved_share"] > MUCH:
            lines.append("           more than a tenth moved: --edges or training anew may be due")
    if in_place:
        lines.append(f"old        {_backup(final)}")
    return [*lines, f"new        {final}"]


# ---------------------------------------------------------------------------- what is written


def _publish(world: World, grown: Grown, final: Path, facts: dict[str, Any]) -> None:
    """Write the new bundle under a hidden name, open it, and give it its own."""
    temporary = _beside(final, "refresh")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    _write(world, grown, temporary)
    manifest = read_manifest(world.directory)
    log = [*manifest.get("refreshed", []), facts][-REMEMBERED:]
    about = {name: manifest[name] for name in manifest if name not in ("files", "seal")}
    finish(temporary, {**about, "refreshed": log})
    opened(temporary, World)
    _name(temporary, final, in_place=final == world.directory)


def _write(world: World, grown: Grown, out: Path) -> None:
    """All files of the new bundle into an empty directory."""
    written = {f"data/{name}" for name in PARTS["data"]}
    written |= {"items/codes.safetensors", "items/items.index.json"}
    written |= {f"{part}/{name}" for part in ("evidence", "retriever") for name in PARTS[part]}
    for name in read_manifest(world.directory)["files"]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        if name not in written:
            shutil.copyfile(world.directory / name, out / name)
    columnar.pack(out / "data", grown.joined.shop)
    grown.sids.save(out / "items")
    grown.index.save(out / "evidence")
    grown.retriever.save(out / "retriever")
    card = out / "README.md"
    if card.is_file():
        old = (world.histories, world.catalogue)
        new = (grown.joined.shop.histories, grown.joined.shop.catalogue)
        text = card.read_text(encoding="utf-8").replace(_size(old), _size(new))
        card.write_text(text, encoding="utf-8")


def _size(shop: tuple[Histories, Catalogue]) -> str:
    """How large a shop is, as the model card says it."""
    histories, catalogue = shop
    n_users, n = histories.n_users, len(histories.items_N)
    return f"{len(catalogue):,} items, {n_users:,} users, {n:,} interactions"


def _backup(final: Path) -> Path:
    return final.with_name(f"{final.name}.before")


def _name(temporary: Path, final: Path, *, in_place: bool) -> None:
    """The finished bundle gets its name; one that had it becomes the backup."""
    if not in_place:
        if final.exists():
            raise ConfigError(f"{final}: stands already (give --out another name, or --in-place)")
        os.rename(temporary, final)
    elif exchange(temporary, final):
        _keep(temporary, final)
    else:  # two steps, where the system cannot do it in one
        _keep(final, final)
        os.rename(temporary, final)
    fsync_path(final.absolute().parent)


def _keep(old: Path, final: Path) -> None:
    """The old bundle becomes the backup; the one before it goes."""
    backup = _backup(final)
    if backup.exists():
        gone = backup.with_name(f".{backup.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(backup, gone)
        os.rename(old, backup)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        os.rename(old, backup)


def _rescue(final: Path) -> None:
    """After a kill between the exchange and the next step, the old bundle becomes the backup."""
    left = _beside(final, "refresh")
    with suppress(ArtifactError):
        before, now = (len(read_manifest(d).get("refreshed", [])) for d in (left, final))
        if before < now:
            _keep(left, final)
