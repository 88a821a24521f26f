"""Progress on a terminal and in a log."""

from __future__ import annotations

import io

import pytest

from diffgr2.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("every_s", "lines"), [(0.0, 4), (1e9, 1)])
def test_a_log_gets_plain_lines_now_and_then(every_s: float, lines: int) -> None:
    said = io.StringIO()
    with Progress(said, every_s).task("work", 4) as task:
        for n in range(4):
            task.advance(1, f"loss {n}")
    assert said.getvalue().count("\n") == lines, "the last one always comes"
    assert said.getvalue().splitlines()[-1] == "work: 4/4 [0s] loss 3"
    assert said.getvalue().count(", about 0s to go]") == max(0, lines - 2), "not known at first"


def test_a_terminal_gets_a_bar_that_learns_its_total() -> None:
    said = Terminal()
    with Progress(said).task("work") as task:
        task.total, task.done = 40, 30
        task.advance(5, "half a note")
    text = said.getvalue()
    assert "work" in text
    assert "35/40" in text
    assert "half a note" in text
