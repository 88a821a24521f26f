"""What an import of a shop's own lists finds that can hardly be meant: one line each.

Contract: `doubts` looks at the lists that are left and returns warnings, most important first;
nothing is changed for it. Not here: rows and lists that cannot be used (`own_rows`, `own_lists`),
and what is only worth knowing (the report).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from diffgr2.data.own_rows import RawList, RawLists
from diffgr2.data.own_values import NUMERIC_FROM, Feature
from diffgr2.own import ListsConfig

FEWEST, NEARLY_ALL = 10, 0.95
"""Candidates with a value, and the share of them with an outcome, from which on it is no chance."""
FEW_WORDS = 5
_NUMERAL = re.compile(r"(?:[A-Z]{3}|[^\w\s]{1,2})? ?[-+]?\d[\d.,' ]*(?:[A-Z]{3}|[^\w\s]{1,2})?")


def doubts(
    own: RawLists,
    lists: Sequence[RawList],
    strangers: int,
    config: ListsConfig,
    *,
    know_users: bool,
) -> list[str]:
    """See the module's docstring; `strangers` are lists of users that nothing is known of, and
    `know_users` says whether there are interactions to know them from."""
    found = []
    if not any(gain > 0 for one in lists for gain in one.gains):
        found.append(f"no list of {own.file} has an outcome: lists.gains name its columns")
    found += _of_people(lists, strangers, know_users=know_users)
    if know_users and not config.point_in_time:
        found += _of_nobodys(lists)
    found += _of_later(own.features, lists)
    found += _of_numerals(own.features, config)
    # Where 0 stands for "not shown", lists have none of it, or several.
    if sum(one.firsts == 1 for one in lists) > len(lists) / 2:
        found.append(
            f"{own.file}: {own.names['shown']} seems to count from 0, which is read as not shown: "
            "the first place is 1 (columns.shown)"
        )
    if own.order == "file":
        found.append(f"{own.file} has no place and no score: its rows are taken in their order")
    return found


def _of_people(lists: Sequence[RawList], strangers: int, *, know_users: bool) -> list[str]:
    """Whose lists they are, and what is known of them."""
    found = []
    if know_users and strangers > len(lists) / 2:
        found.append(
            f"{strangers} of {len(lists)} lists are of users that the interactions do not "
            "know: do both files name users alike?"
        )
    bought = sum(
        one.moment is None and one.history is None and one.user is not None for one in lists
    )
    if bought:
        found.append(
            f"{bought} lists have neither a moment nor a history: all that their users bought "
            "counts as known, which must not hold what came of the list (columns.moment)"
        )
    return found


def _of_nobodys(lists: Sequence[RawList]) -> list[str]:
    """Lists whose shopper cannot be left out of what is counted of the interactions."""
    nobodys = sum(one.user is None and one.history is not None for one in lists)
    if not nobodys:
        return []
    return [
        f"{nobodys} lists bring a history but no user: what their shoppers bought afterwards may "
        "stand in the interactions and count in their evidence (lists.point_in_time: true counts "
        "only what was bought before each list; or columns.user)"
    ]


def _of_later(features: Sequence[Feature], lists: Sequence[RawList]) -> list[str]:
    """Features that have a value (almost) only where something came of a candidate."""
    row_N = np.array([row for one in lists for row in one.rows], dtype=np.int64)
    won_N = np.array([gain > 0 for one in lists for gain in one.gains])
    found = []
    for feature in features if won_N.mean() < 0.5 else ():
        value_N = feature.value_N[row_N]
        said_N = ~np.isnan(value_N) & ((value_N != 0) | (feature.kind == "category"))
        n, with_outcome = int(said_N.sum()), int((said_N & won_N).sum())
        if n >= FEWEST and with_outcome >= NEARLY_ALL * n:
            found.append(
                f"feature {feature.name}: {with_outcome} of the {n} candidates that have it have "
                "an outcome, too: is it known only afterwards? Then it must not be a feature"
            )
    return found


def _of_numerals(features: Sequence[Feature], config: ListsConfig) -> list[str]:
    """Categories whose words are numbers in another spelling."""
    found = []
    for feature in features:
        if config.features[feature.name].kind is not None or len(feature.words) < FEW_WORDS:
            continue
        numerals = [word for word in feature.words if _NUMERAL.fullmatch(word)]
        if len(numerals) >= NUMERIC_FROM * len(feature.words):
            found.append(
                f"feature {feature.name}: {len(feature.words)} words such as {numerals[0]!r} look "
                "like numbers, but are read as a category: a number has a decimal point and no "
                "sign beside it, as in 34.95"
            )
    return found
