"""What a recipe's stages take at a size of the data, which breaks first, and what would help.

Contract: `costs(table, recipe, sizes)` are CPU seconds and peak memory of the stages up to the
evidence, each with how far outside the measured range it lies; `breaking` finds for each stage the
multiple of the data at which it takes more than it may, `advice` the first keys of the recipe that
keep it within; `index` is what a replica holds. Nothing is run. Not here: training stages
(`stages.sizing`), traffic (`queueing`), words (`sheet`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from diffgr2.candidates.extent import FULL_UP_TO, approximates
from diffgr2.capacity.costtable import Table
from diffgr2.config import Recipe
from diffgr2.stages.effort import EPOCHS, Size

Sizes = Mapping[str, float]
What = Literal["memory", "time"]

SLACK = 1.01
"""Up to here a size counts as measured."""

FREE = 0.9
"""Share of a machine's memory that a stage may take."""

LARGEST = 1e5
"""Multiple of the data up to which is looked."""

HELPS: dict[tuple[str, What], tuple[str, ...]] = {
    ("retriever", "time"): ("retriever.loss=sampled", "retriever.kind=itemknn"),
    ("retriever", "memory"): ("retriever.kind=itemknn",),
    ("candidates", "time"): (
        "retriever.search=approximate",
        "retriever.loss=sampled",
        "retriever.loss=sampled retriever.search=approximate",
        "candidates.prefixes=1",
        "retriever.loss=sampled retriever.search=approximate candidates.prefixes=1",
        "retriever.kind=itemknn",
        "retriever.kind=itemknn candidates.prefixes=1",
    ),
    ("candidates", "memory"): ("candidates.prefixes=1",),
    ("evidence", "time"): ("candidates.prefixes=1", "candidates.prefixes=1 candidates.k_max=10"),
    ("evidence", "memory"): ("candidates.prefixes=1", "candidates.prefixes=1 candidates.k_max=10"),
}
"""Keys that make a stage cheaper, the least change first; where there is none, a larger machine."""


@dataclass(frozen=True)
class Figure:
    """A number, and how it is known."""

    value: float
    beyond: float = 1.0  # times outside of what was measured
    here: bool = True  # measured on this machine, with these keys

    @property
    def measured(self) -> bool:
        return self.here and self.beyond <= SLACK

    @property
    def mark(self) -> str:
        if self.measured:
            return "measured"
        if self.beyond <= SLACK:
            return "extrapolated"
        far = f"{self.beyond:,.0f}" if self.beyond >= 10 else f"{self.beyond:.1f}"
        return f"extrapolated ×{far}"

    def plus(self, other: Figure, times: float = 1.0) -> Figure:
        beyond = max(self.beyond, other.beyond)
        return Figure(self.value + times * other.value, beyond, self.here and other.here)


@dataclass(frozen=True)
class Cost:
    """Of one stage."""

    stage: str
    seconds: Figure
    peak: Figure
    laws: tuple[str, ...]  # fits in words

    def takes(self, what: What) -> float:
        return self.peak.value if what == "memory" else self.seconds.value


@dataclass(frozen=True)
class Break:
    """Where a stage takes more than it may."""

    stage: str
    what: What
    times: float  # multiple of the data, at most 1: it breaks at what was asked


def sizes_of_data(recipe: Recipe, size: Size) -> dict[str, float]:
    """Everything that costs grow with."""
    lists = size.training_lists(recipe) + 2.0 * size.users
    found = {"interactions": size.interactions, "users": size.users, "items": size.items}
    return {
        **{name: float(value) for name, value in found.items()},
        "lists": lists,
        "shown": lists * recipe.candidates.k_max,
    }


def costs(table: Table, recipe: Recipe, sizes: Sizes) -> list[Cost]:
    """See the module's docstring; stages that the table does not know are left out."""
    kind, epochs = recipe.retriever.kind, min(recipe.retriever.epochs, EPOCHS)
    own, others = recipe.lists.file is not None, other_keys(table, recipe)

    def cost(part: str, section: str) -> Cost | None:
        return _cost(table, part, sizes, not any(key.startswith(f"{section}.") for key in others))

    found = [cost("data", "data"), cost("items", "items")]
    loss, search = ways(table, recipe, sizes)
    trained = cost(f"retriever:{kind}", "retriever")  # popularity is a count, which has none
    asked = None if own else cost(f"candidates:{search}", "retriever")
    epoch = cost(f"epoch:{loss}", "retriever")
    if epoch is not None:
        trained = _with_epochs(trained, epoch, epochs)
        # Each fold trains on the users outside it.
        asked = _with_epochs(asked, epoch, (recipe.candidates.folds - 1) * epochs)
    return _there([*found, trained, asked, cost("evidence", "evidence")])


def ways(table: Table, recipe: Recipe, sizes: Sizes) -> tuple[str, str]:
    """Which parts of the table say what an epoch and the lists take: a loss over a sample and a
    search in cells have their own, where they were measured."""
    config, kind = recipe.retriever, recipe.retriever.kind
    if kind != "sasrec":
        return kind, kind
    asked = max(sizes["interactions"] - 3.0 * sizes["users"], 0.0)  # next items of train parts
    sampled = config.loss == "sampled" or (
        config.loss == "auto" and asked * sizes["items"] > FULL_UP_TO
    )
    loss = "sampled" if sampled and "epoch:sampled" in table.points else kind
    cells = approximates(round(sizes["items"]), config) and "candidates:cells" in table.points
    return loss, "cells" if cells else kind


def other_keys(table: Table, recipe: Recipe) -> list[str]:
    """Keys that have other values than where costs were measured."""
    values = recipe.model_dump(mode="json")
    counted = recipe.retriever.kind != "sasrec"
    return [
        f"{section}.{key}"
        for section, keys in table.recipe.items()
        if not (counted and section == "retriever")
        for key, value in keys.items()
        if values[section].get(key, value) != value
    ]


def _there(costs: Sequence[Cost | None]) -> list[Cost]:
    return [cost for cost in costs if cost is not None]


def _cost(table: Table, part: str, sizes: Sizes, same: bool = True) -> Cost | None:
    laws = [table.laws.get((part, what)) for what in ("seconds", "peak")]
    if None in laws:
        return None
    here = table.here and same
    figures = [Figure(law.at(sizes), law.beyond(sizes), here) for law in laws if law]
    name = part.partition(":")[0]
    said = f"{part.replace(':', ' ')} {laws[0].said()} s" if laws[0] else ""
    return Cost(name, figures[0], figures[1], (said,))


def _with_epochs(cost: Cost | None, epoch: Cost, times: float) -> Cost | None:
    if cost is None:
        return None
    larger = max(cost.peak, epoch.peak, key=lambda figure: figure.value)
    seconds = cost.seconds.plus(epoch.seconds, times)
    return Cost(cost.stage, seconds, larger, (*cost.laws, *epoch.laws))


def grown(sizes: Sizes, times: float) -> dict[str, float]:
    """So many times the data: users, items and lists alike."""
    return {name: value * times for name, value in sizes.items()}


def breaking(
    table: Table, recipe: Recipe, sizes: Sizes, memory: float, seconds: float
) -> list[Break]:
    """Stages by when they break as the data grows, the first first."""
    limits: dict[What, float] = {"memory": FREE * memory, "time": seconds}

    def over(stage: str, what: What, times: float) -> bool:
        by_stage = {cost.stage: cost for cost in costs(table, recipe, grown(sizes, times))}
        return by_stage[stage].takes(what) > limits[what]

    found = []
    for cost in costs(table, recipe, sizes):
        for what in limits:
            low, high = 1e-6, LARGEST
            if not over(cost.stage, what, high):
                continue
            for _ in range(60):
                middle = (low * high) ** 0.5
                low, high = (low, middle) if over(cost.stage, what, middle) else (middle, high)
            found.append(Break(cost.stage, what, high))
    return sorted(found, key=lambda one: one.times)


def changed(recipe: Recipe, keys: str) -> Recipe:
    """The recipe with `section.key=value` words."""
    for word in keys.split():
        path, _, text = word.partition("=")
        section, _, key = path.partition(".")
        value: Any = int(text) if text.isdigit() else text
        part = getattr(recipe, section)
        least = {"k": min(part.k, value)} if path == "candidates.k_max" else {}
        recipe = recipe.model_copy(update={section: part.model_copy(update={key: value, **least})})
    return recipe


def advice(
    table: Table, recipe: Recipe, size: Size, found: Break, memory: float, seconds: float
) -> str:
    """What to switch, in words."""
    limit = FREE * memory if found.what == "memory" else seconds
    before = _taken(table, recipe, size, found)
    best: tuple[float, str] | None = None
    for keys in HELPS.get((found.stage, found.what), ()):
        after = _taken(table, changed(recipe, keys), size, found)
        if after <= limit:
            return f"--set {keys} keeps it within ({after / max(before, 1e-12):.0%} of it)"
        if best is None or after < best[0]:
            best = after, keys
    larger = "a machine with more memory" if found.what == "memory" else "more time (--within)"
    if best is not None and best[0] < 0.9 * before:
        return f"--set {best[1]} brings it to {best[0] / before:.0%}; beyond that {larger}"
    return f"no key of the recipe helps: {larger}"


def _taken(table: Table, recipe: Recipe, size: Size, found: Break) -> float:
    sizes = sizes_of_data(recipe, size)
    return next(
        (c.takes(found.what) for c in costs(table, recipe, sizes) if c.stage == found.stage), 0.0
    )


def index(table: Table, recipe: Recipe, sizes: Sizes) -> Figure | None:
    """Bytes of purchases, catalogue, counts and retriever, as a bundle holds them."""
    parts = ("data", "evidence", f"retriever:{recipe.retriever.kind}")
    laws = [table.laws[part, "kept"] for part in parts if (part, "kept") in table.laws]
    if not laws:
        return None
    beyond = max(law.beyond(sizes) for law in laws)
    return Figure(sum(law.at(sizes) for law in laws), beyond, table.here)
