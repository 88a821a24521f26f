"""Masked accuracy of a diffusion model against the floor of guessing by position.

Contract: `Cases` are responses that the AR teacher wrote (greedy, under the grammar, with
reasoning) for validation lists of selection users, which train nothing (`distill` keeps training
lists alone, so these are decoded here); they hold plain arrays, and a file of them (`save`, `load`)
needs no corpus. `masked_accuracy` masks them as CFT does, blocks entirely and each token with
probability 1/2; what the grammar gives before the first forward stands in clear and does not count.
A prediction is the likeliest token of the whole vocabulary, without grammar. The floor says, at
each place of a response, the token that stands there most often in the training responses of the
same kind. The means are over tokens, intervals over lists. Imports neither polars nor lightgbm:
what opens a corpus is imported when it is called. Not here: the rows of the results (`text_base`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

REASONING, ANSWER = 0, 1
STATES = ("full", "half")
"""All of a block masked, the decoder's first step; half of the tokens."""

NOTHING = -1


@dataclass(frozen=True)
class Cases:
    """L responses and their prompts, padded on the right with NOTHING; and what guesses them."""

    prompt_LP: np.ndarray
    response_LR: np.ndarray
    kind_LR: np.ndarray  # as the template's `kinds`
    known_LR: np.ndarray  # given by the grammar
    guess_R: np.ndarray  # the commonest training token of each place
    trained: np.ndarray  # how many training responses that was counted on, [1]

    def __len__(self) -> int:
        return len(self.response_LR)

    def save(self, path: Path) -> None:
        from diffgr2.artifacts import save_arrays

        save_arrays(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Cases:
        from diffgr2.artifacts import load_arrays

        found = load_arrays(path)
        return cls(**{field.name: found[field.name] for field in fields(cls)})


def padded(rows: Sequence[Sequence[int]], width: int = 0) -> np.ndarray:
    """Rows side by side, NOTHING behind the shorter ones."""
    out = np.full((len(rows), max(width, *(len(row) for row in rows))), NOTHING, np.int64)
    for n, row in enumerate(rows):
        out[n, : len(row)] = row
    return out


def position_floor(tokens_NR: np.ndarray) -> np.ndarray:
    """The commonest token [R] of each place, the smallest of equals; NOTHING where none stands.

    >>> position_floor(np.array([[5, 1], [5, 2], [4, NOTHING]])).tolist()
    [5, 1]
    """
    guess_R = np.full(tokens_NR.shape[1], NOTHING, np.int64)
    for place, token_N in enumerate(tokens_NR.T):
        values, counts = np.unique(token_N[token_N != NOTHING], return_counts=True)
        if len(values):
            guess_R[place] = values[counts.argmax()]
    return guess_R


def masks_of(block_R: np.ndarray, known_R: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Masked [S, R] in each of STATES; of the second at least one token a block, where one may."""
    full_R = ~known_R
    half_R = full_R & (rng.random(len(block_R)) < 0.5)
    for block in np.unique(block_R[full_R]):
        own = np.flatnonzero(full_R & (block_R == block))
        if not half_R[own].any():
            half_R[rng.choice(own)] = True
    return np.stack([full_R, half_R])


def accuracy(
    right_SLR: np.ndarray, counted_SLR: np.ndarray, kind_LR: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """state -> part (all, reasoning, answer) -> (right, counted) of each list, [L, 2]."""
    parts = {"all": kind_LR >= 0, "reasoning": kind_LR == REASONING, "answer": kind_LR == ANSWER}
    result: dict[str, dict[str, np.ndarray]] = {}
    for s, state in enumerate(STATES):
        result[state] = {}
        for part, in_LR in parts.items():
            there_LR = counted_SLR[s] & in_LR
            pair = ((right_SLR[s] & there_LR).sum(1), there_LR.sum(1))
            result[state][part] = np.stack(pair, axis=1)
    return result


def predictions(
    cases: Cases, model: Any, contract: Any, pad_id: int, *, causal: bool, batch: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(likeliest token [S, L, R], masked [S, L, R]) on the device that the model is on."""
    import torch

    from diffgr2.model.layout import response_shift
    from diffgr2.stages.noisy import NoisyRow, noisy_batch, response_blocks
    from diffgr2.streams import generator

    shape = (len(STATES), *cases.response_LR.shape)
    best_SLR, masked_SLR = np.full(shape, NOTHING, np.int64), np.zeros(shape, bool)
    place = next(model.parameters()).device
    was = model.training
    model.eval()
    order = np.argsort((cases.prompt_LP != NOTHING).sum(1), kind="stable")
    for start in range(0, len(cases), batch):
        rows, at, where = [], [], []
        for b, n in enumerate(order[start : start + batch].tolist()):
            prompt = cases.prompt_LP[n][cases.prompt_LP[n] != NOTHING].tolist()
            response_R = cases.response_LR[n][cases.response_LR[n] != NOTHING]
            length, size = len(response_R), contract.block_size
            shift = response_shift(len(prompt), size, contract.origin)
            block_R = response_blocks(len(prompt), length, size, shift)
            known_R = cases.known_LR[n, :length].astype(bool)
            masked_SR = masks_of(block_R, known_R, generator(seed, "masked", n))
            masked_SLR[:, n, :length] = masked_SR
            row = NoisyRow(prompt, response_R, masked_SR, shift, causal, contract)
            copy_N, at_N = np.nonzero(masked_SR)
            rows.append(row)
            at.append(np.stack([np.full(len(at_N), b), row.noisy_places(copy_N, at_N)]))
            where.append(np.stack([copy_N, np.full(len(at_N), n), at_N]))
        made = noisy_batch(rows, pad_id).to(place)
        row_N, place_N = (torch.from_numpy(part).to(place) for part in np.concatenate(at, axis=1))
        with torch.inference_mode():
            index_N = made.flat(row_N, place_N)
            logits_NV = made.logits(model, index_N, contract.mask_token_id)
        best_SLR[tuple(np.concatenate(where, axis=1))] = logits_NV.argmax(-1).cpu().numpy()
    model.train(was)
    return best_SLR, masked_SLR


def masked_accuracy(
    cases: Cases | Path | str,
    model: Any,
    contract: Any = None,
    pad_id: int = 0,
    *,
    causal: bool | None = None,
    batch: int = 32,
    seed: int = 0,
    resamples: int = 2_000,
) -> dict[str, Any]:
    """What share of the masked tokens a model gets right, beside the floor.

    `cases` may be their file; `model` a model directory (which then tells the contract), or a
    model, on whatever device it is, with its contract. Padding is seen by nobody.
    """
    if not isinstance(cases, Cases):
        cases = Cases.load(Path(cases))
    if isinstance(model, str | Path):
        from diffgr2.model.contract import contract_of
        from diffgr2.model.load import open_model

        contract, model = contract or contract_of(Path(model)), open_model(Path(model))
    assert contract is not None, "a model without a block-diffusion contract predicts no masks"
    if causal is None:  # what the decoder keeps of clean tokens by default
        causal = contract.clean_attention != "block_causal"
    given = {"causal": causal, "batch": batch, "seed": seed}
    best_SLR, masked_SLR = predictions(cases, model, contract, pad_id, **given)
    width = cases.response_LR.shape[1]
    right_SLR = best_SLR == cases.response_LR
    floor_LR = np.broadcast_to(cases.guess_R[:width] == cases.response_LR, right_SLR.shape)
    model_of = accuracy(right_SLR, masked_SLR, cases.kind_LR)
    floor_of = accuracy(floor_LR, masked_SLR, cases.kind_LR)
    return {
        "lists": len(cases),
        "trained": int(cases.trained.item()),
        "causal": causal,
        "states": {s: _compared(model_of[s], floor_of[s], resamples, seed) for s in STATES},
    }


def _compared(
    model_of: Mapping[str, np.ndarray],
    floor_of: Mapping[str, np.ndarray],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Per part both shares and the paired difference with its interval over lists."""
    result = {}
    for part, model_L2 in model_of.items():
        count_L = model_L2[:, 1].astype(np.float64)
        if not count_L.sum():
            continue
        right_L, floor_L = model_L2[:, 0], floor_of[part][:, 0]
        result[part] = {
            "tokens": int(count_L.sum()),
            "right": right_L.sum() / count_L.sum(),
            "floor": floor_L.sum() / count_L.sum(),
            "diff": (right_L - floor_L).sum() / count_L.sum(),
            "ci": ratio_of_sums(right_L - floor_L, count_L, resamples, seed),
        }
    return {part: {k: _plain(v) for k, v in values.items()} for part, values in result.items()}


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, np.floating) else value


def ratio_of_sums(
    top_L: np.ndarray, bottom_L: np.ndarray, resamples: int, seed: int
) -> list[float]:
    """The 95 % bootstrap interval over lists of a ratio of sums."""
    from diffgr2.streams import generator

    rng, n = generator(seed, "masked", "bootstrap"), len(top_L)
    counts_BL = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    bottom_B = counts_BL @ bottom_L
    values_B = (counts_BL @ top_L)[bottom_B > 0] / bottom_B[bottom_B > 0]
    return [float(value) for value in np.percentile(values_B, (2.5, 97.5))]


def cases_of(corpus: Any, teacher: Path, distill: Path, *, lists: int, batch: int = 16) -> Cases:
    """What the teacher writes for the first validation lists of selection users."""
    from diffgr2.decode.grammar import Guide
    from diffgr2.decode.spelling import UNKNOWN
    from diffgr2.stages.distill import Outputs
    from diffgr2.stages.score import Model, decode_requests, selection_lists

    _, requests = selection_lists(corpus, lists)
    answer, template = corpus.answers[0], corpus.template
    given: Any = {"batch": batch, "answer": answer, "temperature": 0.0}
    decoded = decode_requests(corpus, Model.open(teacher), requests, "ar", **given)
    answer, texts = decoded.answer, [t.tokens_T for t in decoded.trajectories]
    known = []
    for request, text in zip(requests, texts, strict=True):
        grammar = template.grammar(request, reasoning=True, answer=answer)
        given_T = np.full(max(grammar.longest, len(text)), UNKNOWN)
        Guide(grammar, given_T)
        known.append((given_T[: len(text)] != UNKNOWN).astype(np.int64))
    # Training responses of another length or kind would be worse guesses.
    outputs, k = Outputs.load(distill), corpus.k
    same = [
        n
        for n in range(len(outputs))
        if not outputs.direct_N[n] and (outputs.places_NK[n] >= 0).sum() == k
    ]
    taught = [outputs.response(n) for n in same or range(len(outputs))]
    width = max(len(text) for text in texts)
    guess_R = position_floor(padded(taught, width))
    known_LR = padded(known, width) == 1
    kind_LR = padded([template.kinds(text.tolist()) for text in texts], width)
    prompts = padded([prompt.prompt for prompt in decoded.prompts])
    responses = padded(texts, width)
    trained = np.array([len(taught)])
    return Cases(prompts, responses, kind_LR, known_LR, guess_R, trained)
