"""The sequence files of S3-Rec, P5 and TIGER.

    sequential_data.txt  `user item item ...`, one user per line, oldest first
    datamaps.json        beside it, if at all: `item2id`, `user2id` from raw ids to those numbers

Contract: as in `data.columns`. A sequence file has no clock: its order is the history. Not here:
the metadata, which is as in the Amazon set of 2014.
"""

from pathlib import Path

from diffgr2.data.gather import Gatherer, RawData, renamed
from diffgr2.data.lines import BadLine, Intake, each, json_object, read_lines
from diffgr2.data.values import identifier
from diffgr2.errors import DataError


def read_p5(path: Path, intake: Intake) -> RawData:
    """Interactions of a sequence file, under their raw ids where there are maps."""
    gatherer = Gatherer()

    def parse(text: str) -> tuple[str, list[str]]:
        user, *items = (identifier(word, "id") for word in text.split(" ") if word)
        if not items:
            raise BadLine("a user without items")
        if user in gatherer.users:
            raise BadLine(f"user {user[:80]} stands twice")
        return user, items

    for _, _, (user, items) in each(read_lines(path, intake), intake, parse):
        for item in items:
            gatherer.add(user, item)
    intake.finish()
    raw = gatherer.finish(intake.name, timed=False)
    maps = datamaps_beside(path)
    return renamed(raw, *read_datamaps(maps)) if maps else raw


def datamaps_beside(interactions: Path) -> Path | None:
    """datamaps.json in the folder of a sequence file, if there is one."""
    path = interactions.parent / "datamaps.json"
    return path if path.is_file() else None


def read_datamaps(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(number -> raw user id, number -> raw item id)."""
    maps: list[dict[str, str]] = []
    try:
        value = json_object(path.read_text(encoding="utf-8"))
        for key in ("user2id", "item2id"):
            entries = value.get(key, {})
            if not isinstance(entries, dict):
                raise BadLine(f"{key} is not a map")
            raw = [identifier(name, f"{key}: name") for name in entries]
            numbers = [identifier(n, f"{key}: number", numbers=True) for n in entries.values()]
            maps.append(dict(zip(numbers, raw, strict=True)))
    except (BadLine, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path.name}: {error}") from None
    return maps[0], maps[1]
