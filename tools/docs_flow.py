"""Draws the flowcharts of pages, so that the site needs no script for it.

Contract: `drawn(text)` takes what README and docs use of mermaid (`flowchart`, `A[label]`,
`A & B --> C --> D`, `-->|label|`, subgraphs, which only name nodes) and returns an SVG that runs
downwards, as a column of text does: layers by the longest way from a source, edges behind boxes.
Not here: circles and other kinds, which are refused.
"""

from __future__ import annotations

import re
import textwrap
from html import escape

NODE = re.compile(r"([\w]+)(?:\[([^\]]*)\])?")
ARROW = re.compile(r"\s*-->(?:\|([^|]*)\|)?\s*")
WIDE, HIGH, GAP, ROOM = 132, 40, 44, 18  # of a box, between layers, between boxes
STYLE = (
    "text{font:13px system-ui,sans-serif;text-anchor:middle;dominant-baseline:central;fill:#1d2733}"
    ".box{fill:#eef3fa;stroke:#5b7fae}.edge{fill:none;stroke:#8a97a8;marker-end:url(#tip)}"
    ".said{font-size:12px;text-anchor:start;paint-order:stroke;stroke:#fff;stroke-width:4px}"
)
TIP = (
    '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0L8 4L0 8z" fill="#8a97a8"/></marker>'
)

Edge = tuple[str, str, str]


def read(text: str) -> tuple[dict[str, str], list[Edge]]:
    """Nodes with their labels, edges with theirs."""
    first, *lines = [line.strip() for line in text.strip().splitlines()]
    if not first.startswith("flowchart "):
        raise ValueError(f"{first}: only flowcharts can be drawn")
    nodes: dict[str, str] = {}
    edges: list[Edge] = []

    def named(part: str) -> list[str]:
        found = NODE.findall(part)
        for name, label in found:
            if label or name not in nodes:
                nodes[name] = label or name
        return [name for name, _ in found]

    for line in lines:
        if not line or line == "end" or line.startswith("subgraph"):
            continue
        parts = ARROW.split(line)
        groups = [named(part) for part in parts[::2]]
        for sources, said, targets in zip(groups, parts[1::2], groups[1:], strict=False):
            edges += [(source, target, said or "") for source in sources for target in targets]
    return nodes, edges


def layers(nodes: dict[str, str], edges: list[Edge]) -> list[list[str]]:
    """Nodes by the longest way to them, each layer in the order of what leads there."""
    depth = dict.fromkeys(nodes, 0)
    for _ in nodes:
        for source, target, _said in edges:
            depth[target] = max(depth[target], depth[source] + 1)
    if any(depth[source] >= depth[target] for source, target, _ in edges):
        raise ValueError("a flowchart with a circle cannot be drawn")
    found: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in nodes:
        found[depth[name]].append(name)
    place = {name: at for row in found for at, name in enumerate(row)}
    for row in found[1:]:
        before = {n: [place[s] for s, target, _ in edges if target == n] for n in row}
        row.sort(key=lambda name: sum(before[name]) / max(1, len(before[name])))
        place |= {name: at for at, name in enumerate(row)}
    return found


def drawn(text: str) -> str:
    """See the module's docstring."""
    nodes, edges = read(text)
    rows = layers(nodes, edges)
    width = max(len(row) for row in rows) * (WIDE + ROOM)
    length = len(rows) * (HIGH + GAP) - GAP + 8
    at = {
        name: (width * (number + 0.5) / len(row), layer * (HIGH + GAP) + HIGH / 2 + 4)
        for layer, row in enumerate(rows)
        for number, name in enumerate(row)
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {length:g}" '
        f'width="{width:g}"><style>{STYLE}</style>{TIP}'
        f'<rect width="100%" height="100%" rx="6" fill="#fff"/>'
    ]
    for source, target, said in edges:
        (x, y), (u, v) = at[source], at[target]
        y, v = y + HIGH / 2, v - HIGH / 2
        bend = f"{x:g} {y + GAP / 2:g} {u:g} {v - GAP / 2:g}"
        parts.append(f'<path class="edge" d="M{x:g} {y:g}C{bend} {u:g} {v:g}"/>')
        if said:
            middle = f'x="{(x + u) / 2 + 8:g}" y="{(y + v) / 2:g}"'
            parts.append(f'<text class="said" {middle}>{escape(said)}</text>')
    for name, (x, y) in at.items():
        box = f'x="{x - WIDE / 2:g}" y="{y - HIGH / 2:g}" width="{WIDE}" height="{HIGH}"'
        parts.append(f'<rect class="box" rx="6" {box}/>')
        lines = textwrap.wrap(nodes[name], 19)
        for number, line in enumerate(lines):
            level = y + 16 * (number - (len(lines) - 1) / 2)
            parts.append(f'<text x="{x:g}" y="{level:g}">{escape(line)}</text>')
    return "".join([*parts, "</svg>"])
