"""The text path's report: shares of masked tokens against counts one by one, curves by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from text_base import curve_of, parts_of, reached
from text_masked import (
    ANSWER,
    NOTHING,
    REASONING,
    STATES,
    Cases,
    accuracy,
    masked_accuracy,
    masks_of,
    padded,
    position_floor,
    predictions,
    ratio_of_sums,
)

from diffgr2.errors import ConfigError
from support import tiny_stages
from support.tiny_corpus import corpus


def test_the_floor_is_the_commonest_token_of_each_place() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 4, rng.integers(1, 9)).tolist() for _ in range(60)]
    guess_R = position_floor(padded(texts, 12))
    for place, guess in enumerate(guess_R.tolist()):
        counts = Counter(text[place] for text in texts if place < len(text))
        if not counts:
            assert guess == NOTHING
            continue
        most = max(counts.values())
        assert guess == min(token for token, count in counts.items() if count == most)


def test_shares_are_those_of_a_count_one_by_one() -> None:
    rng = np.random.default_rng(1)
    shape = (len(STATES), 7, 11)
    right_SLR, counted_SLR = rng.random(shape) < 0.5, rng.random(shape) < 0.6
    kind_LR = rng.integers(-1, 2, shape[1:])
    found = accuracy(right_SLR, counted_SLR, kind_LR)
    kinds = {"all": (REASONING, ANSWER), "reasoning": (REASONING,), "answer": (ANSWER,)}
    for s, state in enumerate(STATES):
        for part, allowed in kinds.items():
            for n in range(shape[1]):
                right = counted = 0
                for r in range(shape[2]):
                    if counted_SLR[s, n, r] and kind_LR[n, r] in allowed:
                        counted += 1
                        right += int(right_SLR[s, n, r])
                assert found[state][part][n].tolist() == [right, counted]


def test_masks_spare_what_is_known_and_leave_no_block_without_any() -> None:
    block_R = np.repeat(np.arange(5), 4)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        known_R = rng.random(20) < 0.4
        known_R[4:8] = True
        full_R, half_R = masks_of(block_R, known_R, rng)
        assert (full_R == ~known_R).all()
        assert not (half_R & known_R).any()
        for block in range(5):
            own = block_R == block
            assert half_R[own].any() == (~known_R[own]).any()


def test_an_interval_holds_the_ratio_and_is_none_where_lists_agree() -> None:
    top_L, bottom_L = np.arange(40) % 3, np.full(40, 4.0)
    low, high = ratio_of_sums(top_L, bottom_L, 500, 0)
    assert low < top_L.sum() / bottom_L.sum() < high
    assert ratio_of_sums(np.ones(40), bottom_L, 500, 0) == [0.25, 0.25]


def tiny_cases() -> Cases:
    """The flawless teacher's outputs, none of whose tokens is given."""
    shop, outputs = corpus(), tiny_stages.outputs()
    texts = [outputs.response(n) for n in range(len(outputs))]
    prompts = padded([outputs.prompt(shop, n) for n in range(len(outputs))])
    kinds = padded([shop.template.kinds(text.tolist()) for text in texts])
    tokens = padded(texts)
    floor, known = position_floor(tokens), np.zeros(tokens.shape, bool)
    return Cases(prompts, tokens, kinds, known, floor, np.array([len(texts)]))


def test_cases_come_back_from_their_file(tmp_path: Path) -> None:
    cases = tiny_cases()
    cases.save(tmp_path / "cases.safetensors")
    again = Cases.load(tmp_path / "cases.safetensors")
    assert all((vars(again)[name] == part).all() for name, part in vars(cases).items())


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
def test_batches_change_no_prediction_and_rows_are_seen_as_alone(alignment: Any) -> None:
    """Each list alone, unpadded, through transformers' own forward with a mask by hand."""
    cases, net = tiny_cases(), tiny_stages.model().eval()
    size = cases.response_LR.shape[1]  # one block: what is masked sees prompt and its own copy
    contract = tiny_stages.contract_of(block_size=size, alignment=alignment, origin="response")
    pad = corpus().vocab.pad_id
    given: Any = {"causal": True, "seed": 3}
    best_SLR, masked_SLR = predictions(cases, net, contract, pad, batch=5, **given)
    shift = int(alignment == "shifted")
    for n in range(0, len(cases), 3):
        prompt = cases.prompt_LP[n][cases.prompt_LP[n] != NOTHING]
        response = cases.response_LR[n][cases.response_LR[n] != NOTHING]
        for s in range(len(STATES)):
            masked = masked_SLR[s, n, : len(response)]
            noisy = np.where(masked, contract.mask_token_id, response)
            ids = torch.from_numpy(np.concatenate([prompt, noisy]))[None]
            sees = torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
            sees[len(prompt) :, :] = True
            with torch.no_grad():
                logits = net(input_ids=ids, attention_mask=sees[None, None]).logits[0]
            logits[:, contract.mask_token_id] = -torch.inf
            at = len(prompt) + np.flatnonzero(masked) - shift
            assert best_SLR[s, n][np.flatnonzero(masked)].tolist() == logits[at].argmax(-1).tolist()


def test_a_floor_that_is_the_text_itself_is_not_beaten() -> None:
    cases = tiny_cases()
    one = Cases(
        *(part[:1] for part in (cases.prompt_LP, cases.response_LR, cases.kind_LR)),
        cases.known_LR[:1],
        cases.response_LR[0],
        np.array([1]),
    )
    contract = tiny_stages.contract_of()
    found = masked_accuracy(one, tiny_stages.model(), contract, corpus().vocab.pad_id)
    for state in STATES:
        every = found["states"][state]["all"]
        assert every["floor"] == 1.0
        assert every["diff"] == pytest.approx(every["right"] - 1.0)
        assert every["ci"][1] <= 0.0


def test_curves_are_means_of_windows() -> None:
    lines = [{"step": n, "loss": float(n), "lr": 9.0} for n in range(1, 101)]
    lines[0]["answer/loss"] = 7.0
    points = curve_of(lines, window=10)
    assert [point["step"] for point in points] == [1, 26, 51, 75, 100]
    assert points[0]["loss"] == 5.5  # steps 1 to 10
    assert points[-1]["loss"] == 95.5  # steps 91 to 100
    assert points[0]["answer/loss"] == 7.0
    assert "answer/loss" not in points[1]
    assert "lr" not in points[0]
    assert curve_of([]) == []


def row(name: str, value: float, low: float, **more: float) -> dict[str, Any]:
    metrics = dict.fromkeys(("r@1", "ndcg@3", "ndcg@10"), value)
    return {"name": name, "metrics": metrics, "vs_floor": {"r@1": [low, 1.0]}, **more}


def test_what_is_not_reached_is_said_and_nothing_else() -> None:
    good = {"rows": [row("tutor", 0.4, 0.1), row("cft", 0.4, 0.1, raw_valid=1.0, coherent=1.0)]}
    assert reached(good, "tutor") == []
    bad = {"rows": [row("tutor", 0.4, 0.1), row("cft", 0.3, -0.1, raw_valid=0.9)]}
    bad["masked"] = {"cft": {"states": {"full": {"all": {"ci": [-0.1, 0.1]}}}}}
    lines = " ".join(reached(bad, "tutor"))
    for word in ("full, all", "r@1 not shown", "r@1 0.300 below what taught it", "raw_valid 0.9"):
        assert word in lines
    assert "coherent" not in lines


def test_parts_are_known_by_name() -> None:
    assert parts_of("masked,rows") == ["masked", "rows"]
    with pytest.raises(ConfigError, match="--only speed"):
        parts_of("speed")
