"""The tables of benchmarks against others, from a small report."""

from __future__ import annotations

from typing import Any

from readme_table import table_of


def row(name: str, batch: int, ms: float, **more: Any) -> dict[str, Any]:
    """A way that writes nothing, unless `more` says so."""
    nothing = dict.fromkeys(("tokens_per_s", "share_of_limit", "same_tokens", "forwards"))
    return {"name": name, "batch": batch, "threads": 1, "ms_per_list": ms, **nothing, **more}


def report() -> dict[str, Any]:
    wrote = {"tokens_per_s": 1234.5, "share_of_limit": 0.256, "same_tokens": 1.0, "forwards": 50.0}
    return {
        "machine": {"processor": "Abacus", "cores": 2, "load": 0.1},
        "limit": [
            {"threads": 1, "flop": 2.2e11, "bytes": 4e10, "memory": 1e10},
            {"threads": 2, "flop": 4e11, "bytes": 6e10, "memory": 1e10},
        ],
        "left_out": ["llama.cpp"],
        "command": "make it",
        "rows": [
            row("LightGBM", 1, 0.05),
            row("ar (onnx)", 1, 9.0, tokens_per_s=5000.0),
            row("ar (torch)", 1, 50.0),
            row("ONNX Runtime, plain loop", 1, 10.0, **wrote),
            row("ar (onnx)", 8, 7.0),
            row("ar (onnx)", 32, 6.0),
            row("LightGBM", 32, 0.01),
            {**row("LightGBM", 1, 0.04), "threads": 2},
        ],
    }


def test_the_short_table_has_one_line_each_ours_first() -> None:
    lines = table_of("results", report()).splitlines()
    assert lines[2:5] == [
        "| ar | 9.00 | 5,000 | – | 6.00 | – | – | – |",
        "| ONNX Runtime, plain loop | 10.00 | 1,234 | 26 % | – | – | – | – |",
        "| LightGBM | 0.05 | – | – | 0.01 | – | – | – |",
    ]
    assert lines[-1] == (
        "Abacus, 2 cores, load 0.1; limit by 1 thread: 220 GFLOP/s, 40 GB/s; "
        "2 threads: 400 GFLOP/s, 60 GB/s. Not installed: llama.cpp. Made by `make it`."
    )


def test_the_long_table_has_every_row() -> None:
    lines = table_of("rows", report()).splitlines()
    assert len(lines) == 2 + len(report()["rows"]) + 2
    assert "| ONNX Runtime, plain loop | 1 | 1 | 10.00 | 1,234 | 50.0 | 26 % | 100 % |" in lines
    assert "| ar (torch) | 1 | 1 | 50.00 | – | – | – | – |" in lines


def test_costs_as_lists_grow_show_what_was_not_measured_as_a_dash() -> None:
    point = {"axis": "model", "value": "3 M", "ar_ms": 50.0, "ar_forwards": 30.0, "least_ms": 20.0}
    point |= {"least_forwards": 2.5, "further_forward_ms": 5.0, "pays_up_to": None}
    grown = {"machine": {"processor": "Abacus", "load": 0.1}, "command": "x", "rows": [point]}
    line = table_of("growth", grown).splitlines()[2]
    assert line == "| model | 3 M | 50.0 | 30.0 | – | – | 20.0 | 2.5 | 5.00 | – |"


def test_semantic_ids_stand_in_one_line_per_variant_with_what_seeds_differ_in() -> None:
    def row(seed: int, natural: float, new: float | None) -> dict[str, Any]:
        shared = {name: [0.08 + seed / 1_000, 0.01, 0.002] for name in ("test", "counted")}
        told = {"natural": natural, "assigned": 1.0, "usage": [1.0, 0.98], "seconds": 3.2}
        about = {"shop": "demo", "variant": "blend", "levels": 4, "codes": 64, "seed": seed}
        return about | told | {"shared": shared, "new_first_code": new}

    told = {"command": "x", "rows": [row(0, 0.991, 0.7), row(1, 0.9932, 0.72)]}
    line = table_of("sids", told).splitlines()[2]
    assert line == (
        "| demo | blend (4 × 64) | 0.991–0.993 | 1.000 | 0.98 | 8.0–8.1 / 1.0 / 0.2 "
        "| 8.0–8.1 / 1.0 / 0.2 | 0.70–0.72 | 3 |"
    )
    mute = {"command": "x", "rows": [row(0, 0.991, None)]}
    assert table_of("sids", mute).splitlines()[2].endswith("| – | 3 |")
