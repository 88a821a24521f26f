"""What is typed finds the items that have every word, as a look at each item would."""

from __future__ import annotations

import numpy as np
import pytest

from diffgr2.serve import finder
from diffgr2.serve.finder import Finder
from diffgr2.streams import generator
from diffgr2.types import Catalogue

WORDS = [
    "lip",
    "lipstick",
    "stick",
    "Rose",
    "rosé",
    "STRASSE",
    "straße",
    "洗发水",
    "a",
    "gel",
    "x1",
]
TYPED = [
    *WORDS,
    "",
    "zqxwv",
    "i00",
    "i0012 ",
    "sti lip",
    "A gel rose",
    "k sti",
    "水",
    "kind3 gel",
    "0",
]


def made(n: int) -> Catalogue:
    rng = generator(3, "finder")
    titles = [
        " ".join(rng.choice(WORDS, 3)) + (f" only{i}" if i % 7 == 0 else "") for i in range(n)
    ]
    brands = [str(rng.choice(["Velberry", "Gel\nCo", ""])) for _ in range(n)]
    kinds = [["All", f"Kind{i % 5}"][: i % 3] for i in range(n)]
    ids = [f"I{i:04d}" for i in range(n)]
    return Catalogue(ids, titles, brands, kinds, np.full(n, np.nan), [""] * n)


def one_by_one(known: Catalogue, text: str, most: int) -> list[int]:
    found = []
    columns = (known.raw_ids, known.titles, known.brands, known.categories)
    for item, (raw, title, brand, path) in enumerate(zip(*columns, strict=True)):
        told = " ".join((raw, title, brand, *path)).casefold()
        if all(word in told for word in text.casefold().split()):
            found.append(item)
    return found[:most]


@pytest.mark.parametrize("few", [0, 1, 40, 5_000])
def test_it_finds_what_a_look_at_every_item_finds(few: int, monkeypatch) -> None:
    monkeypatch.setattr(finder, "FEW", few)
    known = made(300)
    index = Finder(known)
    for text in [*WORDS, *TYPED, "only7", "only29", "only7 lip", "velberry only"]:
        for most in (1, 12, 1_000):
            assert index.find(text, most) == one_by_one(known, text, most), (text, most)


def test_odd_catalogues_and_odd_words_are_no_trouble() -> None:
    alone = Catalogue(["\ud800"], [""], [""], [[]], np.full(1, np.nan), [""])
    assert Finder(alone).find("\ud800", 3) == [0]
    assert Finder(alone).find("\udfff x", 3) == []
    assert Finder(made(0)).find("lip", 3) == []
