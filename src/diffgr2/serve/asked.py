"""What a request asks for, resolved against its bundle.

Contract: `prepare` makes a `RankTask` of an `Ask`, on any thread, or raises the `Problem` that its
client is told, in the client's own words for its fields; `facts_of` is what an answer says of each
document. Not here: reading bodies (`schema`), decoding (`ranking`).
"""

from diffgr2.errors import ConfigError, DataError
from diffgr2.items.sids import sid_text
from diffgr2.rerank.names import ID_LIKE, ListProblem
from diffgr2.rerank.query import wished
from diffgr2.rerank.readout import Ways
from diffgr2.rerank.reranker import Reranker
from diffgr2.rerank.task import RankTask
from diffgr2.serve.limits import Limits
from diffgr2.serve.schema import Ask, Problem


def prepare(reranker: Reranker, ask: Ask, limits: Limits) -> RankTask:
    """Resolve what was asked; runs off the event loop."""
    ways = ways_of(reranker, ask, limits)
    history = ask.history
    if ask.wish is not None:
        history = wished(reranker.names, ask.wish)
        if history is None:
            history = []
            ask.warnings.append("query: none of its words is known, it says nothing")
    try:
        return reranker.prepare(
            history,
            ask.documents,
            scores=ask.scores,
            user=ask.user,
            decode=ways,
            reasoning=ask.reasoning,
            rules=ask.rules,
            strict=ask.strict,
        )
    except ListProblem as error:
        name = ask.listed if error.field == "candidates" else error.field
        told = named_by(ask, str(error))
        raise Problem(422, told, name, ask.tei, list(error.problems)) from None
    except DataError as error:
        raise Problem(422, str(error), str(error).partition(":")[0], ask.tei) from None


def named_by(ask: Ask, told: str) -> str:
    """A message that calls the candidates what the client calls them."""
    return told.replace("candidates[", f"{ask.listed}[")


def ways_of(reranker: Reranker, ask: Ask, limits: Limits) -> Ways:
    """How to decode; a long list in many views is a lot of work for one request."""
    try:
        ways = reranker.ways(ask.decode)
    except ConfigError as error:
        raise Problem(422, str(error), "decode", ask.tei) from None
    views = ways.read_out.views
    shown = views * len(ask.documents)
    if views > 1 and shown > limits.shown:
        told = f"decode.views: {views} views of {len(ask.documents)} documents show {shown}"
        raise Problem(422, f"{told}, at most {limits.shown}", "decode", ask.tei)
    return ways


def facts_of(task: RankTask) -> list[dict[str, str]]:
    """Id and semantic ID of each document that the catalogue knows; of others what id they have."""
    world, facts = task.world, []
    for item, named in zip(task.query.candidates, task.query.named, strict=True):
        if item.number is not None:
            raw = world.catalogue.raw_ids[item.number]
            facts.append({"id": raw, "sid": sid_text(item.codes)})
        else:
            alone = named if isinstance(named, str) and ID_LIKE.fullmatch(named) else None
            given = named.get("id") if isinstance(named, dict) else alone
            facts.append({"id": given} if given else {})
    return facts
