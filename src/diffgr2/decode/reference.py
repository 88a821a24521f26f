"""What the decoders mean: plain loops over the stock model, no cache, no batching. Read this first.

Contract: every forward recomputes the whole document through `Qwen3ForCausalLM` with an explicit
boolean mask, permutations are enumerated, and nothing else of `decode` or `model.layout` is used;
the fast decoders (`ar`, `block`, `verify`) must write the same tokens in the same steps, which the
oracle tests check. Not here: speed; nothing but tests and readers uses this module.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3ForCausalLM

from diffgr2.decode.grammar import AnswerGrammar
from diffgr2.decode.settings import DecodeSettings

MARKER_GUESS = 0.5

Slots = dict[int, tuple[int, int]]  # position -> (entry, index in the entry)
Known = dict[tuple[int, int], int]  # (entry, index in the entry) -> committed token
Choice = tuple[int, float, float]  # token, log-probability at the temperature, confidence
Random = np.random.Generator | None


@dataclass
class Slow:
    """What a decode produced."""

    tokens: list[int]
    steps: list[int]
    logps: list[float]
    nfe: int
    finished: bool


class SlowModel:
    """Log-probabilities of a document in which token t sees the positions below `sees[t]`."""

    def __init__(self, module: Qwen3ForCausalLM, mask_id: int) -> None:
        self.module, self.mask_id = module, mask_id

    @torch.no_grad()
    def logp(self, ids: list[int], sees: list[int]) -> torch.Tensor:
        mask = torch.arange(len(ids))[None, :] < torch.tensor(sees)[:, None]
        logits = self.module(
            input_ids=torch.tensor([ids]),
            attention_mask=mask[None, None],
            position_ids=torch.arange(len(ids))[None],
        ).logits[0]
        logits[:, self.mask_id] = -torch.inf
        return torch.log_softmax(logits, -1)


def pick(logp_V: Tensor, temperature: float, uniform: float) -> Choice:
    """(token, log-probability at the temperature, confidence)."""
    if temperature == 0:
        token = int(logp_V.argmax())
        return token, float(logp_V[token]), float(logp_V[token].exp())
    hot_V = torch.log_softmax(logp_V / temperature, -1)
    total = 0.0
    sums = [total := total + float(x) for x in hot_V.double().exp()]
    token = next(i for i, s in enumerate(sums) if s > uniform * total)
    return token, float(hot_V[token]), float(logp_V[token].exp())


# ------------------------------------------------------------------------- permutation rule


def first_marker(tokens: Sequence[int | None], marker: Sequence[int]) -> int | None:
    """Where the answer begins: behind the first complete marker. None = masked token."""
    for at in range(len(tokens) - len(marker) + 1):
        if tuple(tokens[at : at + len(marker)]) == tuple(marker):
            return at + len(marker)
    return None


def answer_slots(grammar: AnswerGrammar, start: int) -> Slots:
    """{position: (entry, index in entry)}."""
    k, n = grammar.choices_KN.shape
    return {
        start + grammar.offset + grammar.stride * j + i: (j, i) for j in range(k) for i in range(n)
    }


def spelled(tokens: Sequence[int | None], slots: Slots) -> Known:
    """{(entry, index): token} of the committed entry tokens."""
    found = {where: tokens[at] for at, where in slots.items() if at < len(tokens)}
    return {where: token for where, token in found.items() if token is not None}


def orders(grammar: AnswerGrammar, known: Known) -> list[tuple[int, ...]]:
    """All permutations that agree with the committed entry tokens."""
    choices = grammar.choices_KN.tolist()
    return [
        order
        for order in permutations(range(len(choices)))
        if all(choices[order[j]][i] == token for (j, i), token in known.items())
    ]


def may_take(grammar: AnswerGrammar, known: Known, j: int, i: int) -> list[int]:
    """Tokens that entry j may take at index i."""
    choices = grammar.choices_KN.tolist()
    possible = orders(grammar, known)
    if possible:
        return sorted({choices[order[j]][i] for order in possible})
    # No permutation is left: candidates that agree with the entry, unused ones first.
    agree = [c for c in choices if all(c[b] == t for (a, b), t in known.items() if a == j)]
    full = [
        [known.get((a, b)) for b in range(len(choices[0]))] for a in range(len(choices)) if a != j
    ]
    unused = [c for c in agree if c not in full]
    return sorted({c[i] for c in unused or agree})


def settle(
    grammar: AnswerGrammar, known: Known, wanted: Iterable[tuple[float, int, int, int]]
) -> set[tuple[int, int]]:
    """Of (confidence, entry, index, token), those that commit, the surest first."""
    known = dict(known)
    kept: set[tuple[int, int]] = set()
    broken = not orders(grammar, known)
    single = grammar.choices_KN.shape[1] == 1
    for _, j, i, token in sorted(wanted, key=lambda w: (-w[0], w[1], w[2])):
        if broken:
            fits = not single or token not in known.values()
        else:
            fits = bool(orders(grammar, {**known, (j, i): token}))
        if fits:
            known[j, i] = token
            kept.add((j, i))
    return kept


# ---------------------------------------------------------------------------------- decoders


def ar(
    model: SlowModel,
    prompt: list[int],
    settings: DecodeSettings,
    grammar: AnswerGrammar | None = None,
    rng: Random = None,
) -> Slow:
    """One token a forward."""
    out = Slow([], [], [], 0, False)
    while not out.finished and len(out.tokens) < settings.max_tokens:
        ids = prompt + out.tokens
        logp_V = model.logp(ids, [t + 1 for t in range(len(ids))])[-1]
        if settings.rule == "permutation" and grammar is not None:
            start = first_marker(out.tokens, grammar.marker)
            slots = answer_slots(grammar, start) if start is not None else {}
            if len(out.tokens) in slots:
                allowed = may_take(grammar, spelled(out.tokens, slots), *slots[len(out.tokens)])
                keep_V = torch.full_like(logp_V, -torch.inf)
                keep_V[allowed] = logp_V[allowed]
                logp_V = torch.log_softmax(keep_V, -1)
        token, logp, _ = pick(logp_V, settings.temperature, rng.random() if rng else 0)
        out.tokens.append(token)
        out.logps.append(logp)
        out.steps.append(out.nfe)
        out.nfe += 1
        out.finished = token == settings.end_id
    return out


def boundaries(length: int, settings: DecodeSettings, prompt_length: int) -> list[int]:
    """The end of the block that holds each document position below `length`."""
    first = 0 if settings.origin == "document" else prompt_length % settings.block_size
    ends, size = [], settings.block_size
    for position in range(length):
        end = first
        while end <= position:
            end += size
        ends.append(end)
    return ends


def surest(confidence: dict[int, float]) -> int:
    """The position of the highest confidence, the first of equals."""
    return max(confidence, key=lambda at: (confidence[at], -at))


def accepted(
    settings: DecodeSettings, confidence: dict[int, float], entropy: dict[int, float]
) -> set[int]:
    """The positions that commit, of {position: confidence}."""
    commit = {surest(confidence)}
    if settings.accept == "threshold":
        commit |= {at for at, c in confidence.items() if c > settings.threshold}
    elif settings.accept == "static":
        commit |= set(sorted(confidence, key=lambda at: (-confidence[at], at))[: settings.per_step])
    else:
        total = 0.0
        for at in sorted(confidence, key=lambda at: (entropy[at], at)):
            if total > settings.entropy_bound:
                break
            commit.add(at)
            total += entropy[at]
    return commit


def canvas_logp(
    model: SlowModel,
    prompt: list[int],
    tokens: Sequence[int | None],
    start: int,
    end: int,
    settings: DecodeSettings,
) -> dict[int, Tensor]:
    """{canvas position: log-probabilities} of one denoising forward."""
    p = len(prompt)
    ends = boundaries(p + end, settings, p)
    ids = prompt + [settings.mask_id if t is None else t for t in tokens[:end]]
    if settings.clean_kv == "causal":
        sees = [t + 1 for t in range(p + start)]
    else:
        sees = [min(ends[t], p) for t in range(p)] + ends[p : p + start]
    sees += [p + end] * (end - start)
    logp_TV = model.logp(ids, sees)
    back = 1 if settings.alignment == "shifted" else 0
    return {at: logp_TV[p + at - back] for at in range(start, end)}


def block(
    model: SlowModel,
    prompt: list[int],
    settings: DecodeSettings,
    grammar: AnswerGrammar | None = None,
    rng: Random = None,
) -> Slow:
    """Denoise block after block; every step commits what is sure, and at least one position."""
    tokens: list[int | None] = []
    steps: list[int] = []
    logps: list[float] = []
    nfe = start = 0
    while True:
        end = boundaries(len(prompt) + start + 1, settings, len(prompt))[-1] - len(prompt)
        tokens += [None] * (end - start)
        steps += [-1] * (end - start)
        logps += [0.0] * (end - start)
        while None in tokens:
            logp = canvas_logp(model, prompt, tokens, start, end, settings)
            choice = {
                at: pick(logp[at], settings.temperature, rng.random() if rng else 0) for at in logp
            }
            for at, (token, value) in _one_step(
                tokens, start, end, logp, choice, settings, grammar
            ).items():
                tokens[at], logps[at], steps[at] = token, value, nfe
            nfe += 1
            known = tokens.index(None) if None in tokens else len(tokens)
            for length in range(start + 1, min(known, settings.max_tokens) + 1):
                if tokens[length - 1] == settings.end_id:
                    return _cut(tokens, steps, logps, length, nfe, finished=True)
            if known >= settings.max_tokens:
                return _cut(tokens, steps, logps, settings.max_tokens, nfe, finished=False)
        start = end
        nfe += 0 if settings.fused else 1


def _cut(
    tokens: Sequence[int | None],
    steps: list[int],
    logps: list[float],
    n: int,
    nfe: int,
    *,
    finished: bool,
) -> Slow:
    """The first n positions, all of them committed."""
    whole = [token for token in tokens[:n] if token is not None]
    assert len(whole) == n
    return Slow(whole, steps[:n], logps[:n], nfe, finished)


def _one_step(
    tokens: Sequence[int | None],
    start: int,
    end: int,
    logp: dict[int, Tensor],
    choice: dict[int, Choice],
    settings: DecodeSettings,
    grammar: AnswerGrammar | None,
) -> dict[int, tuple[int, float]]:
    """{position: (token, log-probability)} that commit in this step."""
    masked = [at for at in range(start, end) if tokens[at] is None]
    entropy = {at: float(-(logp[at].exp() * logp[at].clamp(min=-1e9)).sum()) for at in masked}
    commit = accepted(settings, {at: choice[at][2] for at in masked}, entropy)
    if settings.rule == "permutation" and grammar is not None:
        soon = [choice[at][0] if at in commit else token for at, token in enumerate(tokens)]
        answer = first_marker(soon, grammar.marker)
        if answer is None and len(grammar.marker) == 1:
            sure = {at: float(logp[at][grammar.marker[0]].exp()) for at in masked}
            if sure[surest(sure)] > MARKER_GUESS:
                answer = surest(sure) + 1
        if answer is not None:
            assert settings.temperature == 0, "the reference restricts greedy choices only"
            slots = answer_slots(grammar, answer)
            known = spelled(tokens, slots)
            for at in masked:
                if at in slots:
                    allowed = may_take(grammar, known, *slots[at])
                    if not allowed:  # a token that spells no candidate got there before the rule
                        continue
                    among = torch.log_softmax(logp[at][allowed], -1)
                    best = int(among.argmax())
                    token = allowed[best]
                    choice[at] = (token, float(among[best]), float(logp[at][token].exp()))
            marker = {at for at in commit if answer - len(grammar.marker) <= at < answer}
            commit = accepted(settings, {at: choice[at][2] for at in masked}, entropy)
            wanted = [(choice[at][2], *slots[at], choice[at][0]) for at in commit if at in slots]
            kept = settle(grammar, known, wanted)
            commit = {at for at in commit if at not in slots or slots[at] in kept} | marker
            soon = [choice[at][0] if at in commit else token for at, token in enumerate(tokens)]
            found = first_marker(soon, grammar.marker)
            if found not in (None, answer):  # another one got in: it commits alone
                commit = {at for at in commit if found - len(grammar.marker) <= at < found}
    return {at: choice[at][:2] for at in commit}


def verify(model: SlowModel, prompt: list[int], settings: DecodeSettings) -> Slow:
    """Greedy verified decoding."""
    out = Slow([], [], [], 0, False)

    def room() -> int:
        return settings.max_tokens - len(out.tokens)

    def commit(logp_V: Tensor) -> int:
        token, logp, _ = pick(logp_V, 0, 0)
        out.tokens.append(token)
        out.logps.append(logp)
        out.steps.append(out.nfe)
        out.finished = token == settings.end_id
        return token

    draft: list[int] = []
    while not out.finished and room():
        known = prompt + out.tokens
        end = len(known) + min(settings.canvas, room())
        ids = known + draft
        masks = end - len(ids)
        causal = [t + 1 for t in range(len(ids))]
        logp_TV = model.logp(ids + [settings.mask_id] * masks, causal + [end] * masks)
        # Who predicts which position: clean tokens the next, masks their own (or the next).
        ahead = {t + 1: logp_TV[t] for t in range(len(known) - 1, len(ids))}
        for t in range(len(ids), end):
            at = t + 1 if settings.alignment == "shifted" else t
            if at < end:
                ahead.setdefault(at, logp_TV[t])
        for token in [*draft, None]:
            if commit(ahead[len(prompt + out.tokens)]) != token or out.finished or not room():
                break
        start = len(prompt + out.tokens)
        draft = [int(ahead[at].argmax()) for at in range(start, end)][: room()]
        out.nfe += 1
    return out
