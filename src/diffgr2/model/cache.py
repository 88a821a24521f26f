"""Keys and values of the rows under way, in the order in which a CPU's products want them.

Contract: a `KeyValues` holds, per layer, a key and a value array. Of one row they lie token by
token, [1, S, W]: any first slots of it are one piece of memory. Of several rows keys are
[B, G, E, S] and values [B, G, S, E], which attention multiplies as they are. `tokens` and `put`
speak of one row token by token, whatever the order. Rows that leave make room: others move into
their places, so that who leaves or joins moves no more than that, and `place` says where each row
lies. Zeros stand where nothing was written: what is unseen is multiplied by a weight of zero, which
NaN would survive. Not here: who sees what (`ort`).

Letters: B rows, S slots, G key-value heads, E head size, W = G * E, N tokens of any rows.
"""

from collections.abc import Sequence

import numpy as np


class KeyValues:
    """See the module's docstring."""

    def __init__(self, layers: int, groups: int, size: int) -> None:
        self._layers, self._groups, self._size = layers, groups, size
        self.place: list[int] = []  # of each row, where it lies
        self.slots = 0
        self._room: list[np.ndarray] = []  # key, value, key, value, … by layer; rows to spare

    @property
    def rows(self) -> int:
        return len(self.place)

    @property
    def arrays(self) -> list[np.ndarray]:
        """Key, value, key, value, … by layer."""
        return [array[: len(self.place)] for array in self._room]

    def grow(self, more: int, slots: int) -> None:
        """Room for so many more rows, of so many slots at least."""
        kept, rows, slots = self.rows, self.rows + more, max(self.slots, slots)
        if kept > 1 and rows <= len(self._room[0]) and slots == self.slots:
            for array in self._room:
                array[kept:rows] = 0.0
        else:
            old, self.slots = self.arrays, slots
            self._make(rows)
            if kept == 1:
                self.put(0, 0, old)
            elif kept:
                for array, source in zip(self._room, old, strict=True):
                    array[tuple(map(slice, source.shape))] = source
        self.place += range(kept, rows)

    def _make(self, rows: int) -> None:
        groups, size, slots = self._groups, self._size, self.slots
        shapes = [(rows, groups, size, slots), (rows, groups, slots, size)]
        if rows == 1:
            shapes = [(1, slots, groups * size)] * 2
        self._room = [np.zeros(shape, dtype=np.float32) for shape in shapes * self._layers]

    def keep(self, rows: Sequence[int]) -> None:
        """These rows only, in this order."""
        if len(rows) == 1 < self.rows:
            left = self.tokens(rows[0], self.slots)
            self.place = [0]
            self._make(1)
            self.put(0, 0, left)
            return
        self.place = [self.place[row] for row in rows]
        free = sorted(set(range(len(rows))) - set(self.place))
        for row, at in enumerate(self.place):
            if at >= len(rows):
                self.place[row] = free.pop()
                for array in self._room:
                    array[self.place[row]] = array[at]
        if not rows:
            self._room, self.slots = [], 0

    def copy(self, row: int, source: int) -> None:
        """One row becomes as another is."""
        for array in self._room:
            array[self.place[row]] = array[self.place[source]]

    def tokens(self, row: int, end: int) -> list[np.ndarray]:
        """The first slots of a row, [1, end, W] each; of a single row no copies."""
        if self._room[0].ndim == 3:
            return [array[:, :end] for array in self._room]
        found, at = [], self.place[row]
        for number, array in enumerate(self._room):
            own = array[at] if number % 2 else array[at].swapaxes(1, 2)  # [G, S, E]
            found.append(own[:, :end].swapaxes(0, 1).reshape(1, end, self._groups * self._size))
        return found

    def put(self, row: int, start: int, fresh: Sequence[np.ndarray]) -> None:
        """New tokens [1, T, W] of a row, from a slot on."""
        end = start + fresh[0].shape[1]
        if self._room[0].ndim == 3:
            for array, new in zip(self._room, fresh, strict=True):
                array[:, start:end] = new
            return
        at = self.place[row] if self.place else row
        for number, (array, new) in enumerate(zip(self._room, fresh, strict=True)):
            by_group = new[0].reshape(-1, self._groups, self._size).swapaxes(0, 1)  # [G, T, E]
            if number % 2:
                array[at, :, start:end] = by_group
            else:
                array[at, :, :, start:end] = by_group.swapaxes(1, 2)

    def scatter(self, at_N: np.ndarray, slot_N: np.ndarray, fresh: Sequence[np.ndarray]) -> None:
        """New tokens [N, W], each into a slot of the row that lies there; of several rows."""
        for number, (array, new) in enumerate(zip(self._room, fresh, strict=True)):
            by_group = new.reshape(-1, self._groups, self._size)  # [N, G, E]
            if number % 2:
                array[at_N, :, slot_N] = by_group
            else:
                array[at_N, :, :, slot_N] = by_group
