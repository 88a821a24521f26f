"""What an import of a shop's own lists finds that can hardly be meant: one line each.

Contract: `doubts` looks at the lists that are left and returns warnings, most important first;
nothing is changed for it. Not here: rows and lists that cannot be used (`own_rows`, `own_lists`),
and what is only worth knowing (the report).
"""

from __future__ import annotations

from collections.abc import Sequence

from diffgr2.data.own_rows import RawList, RawLists
from diffgr2.own import ListsConfig


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
