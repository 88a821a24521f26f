"""The header of RecBole's atomic files: NAME.inter and NAME.item, tab-separated, unquoted.

    user_id:token<TAB>item_id:token[<TAB>timestamp:float ...]

Contract: `field_types` reads such a header or raises one DataError line, `names_in` says which of
its fields are ours. Not here: RecBole's pre-split benchmark files, whose lines are prefixes and not
interactions.
"""

from collections.abc import Collection

from diffgr2.errors import DataError

FIELD_TYPES = ("token", "token_seq", "float", "float_seq")

FIELDS = {  # our word -> what it may be called, and the type it must have
    "user": (("user_id",), "token"),
    "item": (("item_id",), "token"),
    "timestamp": (("timestamp",), "float"),
    "title": (("title", "item_title", "item_name", "movie_title", "name"), None),
    "brand": (("brand", "store"), None),
    "categories": (("categories", "category", "genre", "class"), None),
    "price": (("price",), None),
    "description": (("description",), None),
}


def field_types(header: list[str], file: str) -> dict[str, str]:
    """Type of each field, in the header's order."""
    types: dict[str, str] = {}
    for field in header:
        name, _, kind = field.partition(":")
        if not name or kind not in FIELD_TYPES:
            raise DataError(
                f"{file}: line 1: {field[:80]!r} is not name:type (types: {', '.join(FIELD_TYPES)})"
            )
        if name in types:
            raise DataError(f"{file}: line 1: column {name!r} stands twice")
        types[name] = kind
    return types


def names_in(types: dict[str, str], words: Collection[str], file: str) -> dict[str, str]:
    """Our words that the file has, mapped to its fields."""
    if "user" in words and "item_id_list" in types:
        raise DataError(
            f"{file}: line 1: item_id_list marks a split file; "
            "the .inter file with one interaction per line is needed"
        )
    names: dict[str, str] = {}
    for word in words:
        fields, kind = FIELDS.get(word, ((), None))
        name = next((field for field in fields if field in types), None)
        if name is None and word in ("user", "item"):
            raise DataError(f"{file}: line 1: column {fields[0]}:{kind} is missing")
        if name is None:
            continue
        if kind and types[name] != kind:
            raise DataError(f"{file}: line 1: {name} is {types[name]}, expected {kind}")
        names[word] = name
    return names


def token_sequence(cell: str) -> list[str]:
    """Parts of a token_seq: quoted and comma-separated, or separated by spaces."""
    if "'" in cell and "," in cell:
        return [part.strip().strip("'\"") for part in cell.split(",")]
    return [part.strip("'\"") for part in cell.split()]
