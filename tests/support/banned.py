"""A process that cannot import some packages: `python -m support.banned BUNDLE NAMES WHAT`.

WHAT is `request` (everything but the model: names, scores, evidence, prompt, grammar, explanation)
or `all` (rank in Python, as a cross-encoder and on the command line, then serve: HTTP and the
page). It ends with one JSON line: what was answered, and what was loaded all the same.
"""

from __future__ import annotations

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any


class Banned(MetaPathFinder):
    """Finds the banned packages first, and then does not."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        package = fullname.partition(".")[0]
        if package in self.names:
            raise ModuleNotFoundError(f"No module named {package!r} (banned)", name=package)


def make_request(bundle: Path) -> dict[str, Any]:
    """A request of known items and a stranger, without scores, up to what the model is fed."""
    from diffgr2.decode.batch import make_writer
    from diffgr2.rerank.reranker import Query, RankTask
    from diffgr2.rerank.world import World

    world = World(bundle)
    raw = world.catalogue.raw_ids
    words = {"title": f"{world.catalogue.titles[7]} and more", "brand": world.catalogue.brands[7]}
    past = world.names.resolve([raw[0], words], "history")
    items = world.names.resolve([raw[3], raw[4], raw[5], words], "candidates")
    query = Query(past, items, items, world.scores_of(past, items, None), -1)
    task = RankTask(world, query, world.ways(), reasoning=True)
    (_, wanted), *_ = task.pending()
    writer = make_writer(0, wanted, task.settings)
    return {"prompt": len(wanted.prompt), "planned": len(writer.plan().ids), "told": task.english()}


def rank_and_serve(bundle: Path) -> dict[str, Any]:
    """Every door once."""
    import urllib.request

    from diffgr2 import Reranker
    from diffgr2.cli import run
    from diffgr2.integrations.cross_encoder import CrossEncoder
    from support.live import Live

    reranker = Reranker.from_pretrained(bundle)
    raw = reranker.catalogue.raw_ids
    ranked = reranker.rank(raw[:2], raw[5:10])
    paired = CrossEncoder(reranker).rank(json.dumps(raw[:2]), raw[5:10])
    code = run(["rerank", "-m", str(bundle), "-H", raw[0], "-c", raw[5], "-c", raw[6], "--json"])
    with Live(reranker) as live:
        body = json.dumps({"history": raw[:2], "documents": raw[5:10]}).encode()
        asked = urllib.request.Request(f"{live.url}/v1/rerank", body)
        asked.add_header("content-type", "application/json")
        with urllib.request.urlopen(asked) as reply:
            served = json.load(reply)
        pages = {}
        for path in ("/", f"/page/candidates?h={raw[0]}", "/openapi.json", "/metrics"):
            with urllib.request.urlopen(live.url + path) as reply:
                pages[path.partition("?")[0]] = reply.status
    order = [one["index"] for one in served["results"]]
    pairs = [one["corpus_id"] for one in paired]
    return {"order": ranked.order, "paired": pairs, "served": order, "code": code, "pages": pages}


if __name__ == "__main__":
    directory, names, what = Path(sys.argv[1]), tuple(sys.argv[2].split(",")), sys.argv[3]
    sys.meta_path.insert(0, Banned(names))
    told = (rank_and_serve if what == "all" else make_request)(directory)
    told["loaded"] = sorted({name.partition(".")[0] for name in sys.modules} & {*names})
    print(json.dumps(told))
