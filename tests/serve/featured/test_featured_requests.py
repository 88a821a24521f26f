"""A shop's own features from the recipe to the answer: prompt, English, page, requests, bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffgr2 import Reranker
from diffgr2.artifacts import load_arrays, read_json
from diffgr2.candidates.fields import names_of
from diffgr2.choices import SHOWN
from diffgr2.cli import run
from diffgr2.errors import DataError
from diffgr2.integrations.asking import entry, rank
from diffgr2.prompts.request import MISSING
from diffgr2.rerank.names import ListProblem
from diffgr2.serve.page import candidates
from diffgr2.traces.decide import Traces
from support import bundles, featured_shop
from support.bundles import edit_json
from support.live import Live

OWN = ("price", "ctr", "badge", "in_stock")
AT = {name: len(SHOWN) + g for g, name in enumerate(OWN)}
FULL = {"price": 3, "ctr": 0.9, "badge": "bestseller", "in_stock": True}


def raw(reranker: Reranker, *numbers: int) -> list[str]:
    return [reranker.catalogue.raw_ids[number] for number in numbers]


def buckets(reranker: Reranker, candidates: list[Any], history: Any = None, **given: Any):
    history = raw(reranker, 0, 1) if history is None else history
    return reranker.prepare(history, candidates, **given).whole.buckets_KF


# ------------------------------------------------------------------------------------ the stages


def test_the_fields_reach_index_vocabulary_and_metrics(own_dir: Path, reranker: Reranker) -> None:
    names = (*SHOWN, *OWN)
    assert names_of(reranker.fields) == names == reranker.vocab.spec.fields
    assert read_json(own_dir / "evidence" / "manifest.json")["metrics"]["fields"] == " ".join(names)
    assert reranker.vocab.tokenizer.token_to_id("<e_in_stock_1>") is not None
    badge = reranker.fields[AT["badge"]]
    assert set(badge.words) >= {"bestseller", "refill"}, "words with a side have buckets"


def test_buckets_are_those_of_the_columns(own_dir: Path, reranker: Reranker) -> None:
    own_LKG = load_arrays(own_dir / "candidates" / "own_test.safetensors")["own_LKG"]
    found_LKF = load_arrays(own_dir / "evidence" / "test.safetensors")["buckets_LKF"]
    assert ((found_LKF[..., AT["price"]] == MISSING) == np.isnan(own_LKG[..., 0])).all()
    lists = load_arrays(own_dir / "candidates" / "test.safetensors")
    dataset = reranker.histories
    for row in range(5):
        user = int(lists["user_L"][row])
        history = raw(reranker, *dataset.of(user)[:-1].tolist())
        candidates = raw(reranker, *lists["items_LK"][row].tolist())
        features = []
        for price, ctr, badge, stock in own_LKG[row].tolist():
            word = None if np.isnan(badge) else featured_shop.WORDS[int(badge)]
            flag = None if np.isnan(stock) else bool(stock)
            features.append({"price": price, "ctr": ctr, "badge": word, "in_stock": flag})
        given = {"scores": lists["scores_LK"][row].tolist(), "features": features}
        served = buckets(reranker, candidates, history, user=reranker.raw_users[user], **given)
        np.testing.assert_array_equal(served, found_LKF[row])


def test_the_teacher_cites_them(own_dir: Path) -> None:
    traces = Traces.load(own_dir / "traces" / "train.safetensors")
    cited = set(np.unique(traces.cites_NKC).tolist())
    assert {AT["ctr"], AT["badge"]} <= cited
    buckets_LKF = load_arrays(own_dir / "evidence" / "train.safetensors")["buckets_LKF"]
    for n, row in enumerate(traces.row_N[:200]):
        for k, fields in enumerate(traces.cites_NKC[n]):
            for field in fields[fields >= 0].tolist():
                if not np.isnan(traces.level_NK[n, k]):
                    assert buckets_LKF[row, k, field] != MISSING


def test_evidence_is_the_same_on_any_scale(own_dir: Path, reranker: Reranker) -> None:
    from diffgr2.candidates.edges import bucket_edges

    own_LKG = featured_shop.features_of("train", own_dir / "candidates")
    hundred = featured_shop.features_of("train", own_dir / "candidates", scale=100.0)
    for g, name in enumerate(("price", "ctr")):
        field = reranker.fields[AT[name]]
        level = []
        for value_X in (own_LKG[..., g].ravel(), hundred[..., g].ravel()):
            known_X = value_X[~np.isnan(value_X)]
            level.append(np.searchsorted(bucket_edges(known_X, 4, field), known_X, side="right"))
        np.testing.assert_array_equal(*level)


# ---------------------------------------------------------------------------------- one request


def test_values_stand_in_the_candidates_or_beside_them(reranker: Reranker) -> None:
    two = raw(reranker, 5, 6)
    within = [{"id": two[0], "features": FULL}, {"id": two[1]}]
    one_KF, other_KF = buckets(reranker, within), buckets(reranker, two, features=[FULL, None])
    np.testing.assert_array_equal(one_KF, other_KF)
    assert (one_KF[0] != MISSING).all()
    assert (one_KF[1, list(AT.values())] == MISSING).all()
    assert one_KF[0, AT["in_stock"]] == 1
    assert one_KF[0, AT["ctr"]] == 3
    with pytest.raises(DataError, match=r"^candidates\[0\]\.features: given beside the list, too"):
        buckets(reranker, within, features=[FULL, None])


def test_what_is_left_out_is_missing_and_no_error(reranker: Reranker) -> None:
    two = raw(reranker, 5, 6)
    given = [{"price": None, "ctr": float("nan"), "badge": ""}, {}]
    task = reranker.prepare(raw(reranker, 0), two, features=given)
    assert (task.whole.buckets_KF[:, list(AT.values())] == MISSING).all()
    assert task.query.warnings == ()
    known_KF = buckets(reranker, two, raw(reranker, 0))
    np.testing.assert_array_equal(task.whole.buckets_KF[:, :2], known_KF[:, :2])


def test_a_word_that_training_never_met(reranker: Reranker) -> None:
    badge = reranker.fields[AT["badge"]]
    assert badge.rest
    [[*_, level, _], _] = buckets(
        reranker, raw(reranker, 5, 6), features=[{"badge": "glows in the dark"}, {}]
    )
    assert level == len(badge.words)
    phrases = reranker.template.phrases
    assert phrases.say(AT["badge"], int(level)) == "with another badge"


def test_names_that_are_no_evidence_are_warnings_and_errors_when_strict(reranker: Reranker) -> None:
    two = raw(reranker, 5, 6)
    given = [{"margin": 1, "price": 2}, {"margin": [1], "stock": object()}]
    task = reranker.prepare(raw(reranker, 0), two, features=given)
    known = "(known: price, ctr, badge, in_stock"
    assert list(task.query.warnings) == [
        f"features.margin: no evidence here, in 2 of 2 {known}), ignored",
        f"features.stock: no evidence here, in 1 of 2 {known}; did you mean in_stock?), ignored",
    ]
    with pytest.raises(DataError, match=r"^features\.margin: no evidence here, in 2 of 2 \(known"):
        reranker.prepare(raw(reranker, 0), two, features=given, strict=True)
    many = [{f"x{i}": 1 for i in range(40)}, {}]
    told = reranker.prepare(raw(reranker, 0), two, features=many).query.warnings
    assert len(told) == 9
    assert told[-1] == "features: 32 more unknown names, ignored"


def test_an_unknown_id_is_ranked_on_what_came_with_it(reranker: Reranker) -> None:
    fresh = {"id": "new-17", "features": FULL}
    result = reranker.rank(raw(reranker, 0, 1), [*raw(reranker, 5, 6), fresh, "new-18"])
    assert sorted(result.order) == [0, 1, 2, 3]
    assert result.levels[result.order.index(2)] is not None
    assert [w for w in result.warnings if "new-17" in w] == []
    assert [w for w in result.warnings if "new-18" in w]
    row = reranker.prepare(raw(reranker, 0), [*raw(reranker, 5), fresh]).whole.buckets_KF[1]
    told = {reranker.fields[f].name for f in np.flatnonzero(row != MISSING)}
    assert told == {"rank", "gap", *OWN}, "nothing is said of words that nobody knows"


def test_a_new_shopper_is_answered_where_something_came_with_the_list(reranker: Reranker) -> None:
    three = raw(reranker, 5, 6, 7)
    silent = reranker.rank([], three)
    assert silent.trajectories == ()
    spoken = reranker.rank([], three, features=[{}, FULL, None], return_reasoning=True)
    assert spoken.trajectories
    assert spoken.sure is not None
    assert str(spoken.reasoning).startswith("No earlier purchases to go by.")
    assert "stays in the shop's order" not in str(spoken.reasoning)


def test_what_is_told_of_them_is_so(reranker: Reranker) -> None:
    """Every reading that the grammar allows, of every own field, on the side of its grade."""
    phrases, k = reranker.template.phrases, 4
    given = [FULL, {"price": 49, "in_stock": False, "badge": "refill"}, {"ctr": 0.0001}, {}]
    task = reranker.prepare(raw(reranker, 0), raw(reranker, 5, 6, 7, 8), features=given)
    said = {}
    for i in range(k):
        for name, f in AT.items():
            side = int(phrases.sides(task.whole.buckets_KF)[i, f])
            if side:
                said[i, name] = (side, phrases.say(f, int(task.whole.buckets_KF[i, f])))
    assert said == {
        (0, "price"): (1, "with a very low price"),
        (0, "ctr"): (1, "clicked remarkably often"),
        (0, "badge"): (1, "with badge bestseller"),
        (0, "in_stock"): (1, "marked in stock"),
        (1, "price"): (-1, "with a remarkably high price"),
        (1, "badge"): (-1, "with badge refill"),
        (1, "in_stock"): (-1, "not marked in stock"),
        (2, "ctr"): (-1, "clicked hardly ever"),
    }


MANY = {f"x{i}": 1 for i in range(65)}
BAD: dict[str, tuple[Any, str]] = {
    "a long word": ({"badge": "x" * 2049}, "features.badge: text of more than 2048 characters"),
    "a long number in quotes": ({"price": "9" * 2049}, "features.price: text of more than 2048"),
    "a list": ([1, 2], "features: expected an object of names and values"),
    "an empty list": ([], "features: expected an object of names and values"),
    "pairs": ([["price", 1]], "features: expected an object of names and values"),
    "text": ("price=1", "features: expected an object of names and values"),
    "an empty text": ("", "features: expected an object of names and values"),
    "a number": (7, "features: expected an object of names and values"),
    "zero": (0, "features: expected an object of names and values"),
    "true": (True, "features: expected an object of names and values"),
    "false": (False, "features: expected an object of names and values"),
    "too many names": (MANY, "65 given, at most 64"),
}


@pytest.mark.parametrize(("value", "told"), BAD.values(), ids=BAD)
def test_a_malformed_value_is_one_clear_line(value: Any, told: str, reranker, live) -> None:
    good, bad = raw(reranker, 5, 6)
    documents = [{"id": good, "features": FULL}, {"id": bad, "features": value}]
    history = raw(reranker, 0)
    with live.client() as client:
        body = {"history": history, "documents": documents}
        reply = client.post("/v1/rerank", json=body)
        assert reply.status_code == 422
        error = reply.json()
        assert error["message"].startswith("documents[1]")
        assert told in error["message"]
        assert "\n" not in error["message"]
        assert len(error["message"]) < 200
        assert error["error"]["param"] == "documents"
        assert client.post("/v1/rerank", json={**body, "documents": documents[:1]}).is_success
    with pytest.raises(DataError) as raised:
        reranker.rank(history, documents)
    assert str(raised.value).startswith("candidates[1]")


@pytest.mark.parametrize(
    "text",
    ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "0x10", "1_0", "+1", "01", "'7'", "None"],
)
def test_numbers_that_json_has_not_are_refused(text: str, live, reranker) -> None:
    body = '{"history": [], "documents": [{"id": "%s", "features": {"ctr": %s}}]}'
    body %= (raw(reranker, 5)[0], text)
    with live.client() as client:
        headers = {"content-type": "application/json"}
        reply = client.post("/v1/rerank", content=body, headers=headers)
    assert reply.status_code in (400, 422)
    assert "\n" not in reply.json()["message"]


def test_several_wrong_values_are_all_named(reranker: Reranker) -> None:
    features = [{"ctr": "x"}, FULL, {"price": True, "ctr": "y"}]
    given = (raw(reranker, 0), raw(reranker, 5, 6, 7))
    with pytest.raises(ListProblem) as raised:
        reranker.prepare(*given, features=features, strict=True)
    assert list(raised.value.problems) == [0, 2]
    assert reranker.prepare(*given, features=features).query.warnings == (
        "features.ctr: expected a number (got 'x'), in 2 of 3, taken as missing",
        "features.price: expected a number (got True), in 1 of 3, taken as missing",
    )
    for wrong, told in (
        ([FULL], "features: 1 for 3 candidates"),
        (FULL, "features: expected a list"),
        ("x", "features: expected a list"),
        (5, "features: expected a list"),
    ):
        with pytest.raises(DataError, match=f"^{told}"):
            reranker.prepare(raw(reranker, 0), raw(reranker, 5, 6, 7), features=wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- the doors


def test_http_takes_them_and_warns_of_what_it_does_not_know(live: Live, reranker) -> None:
    documents = [{"id": one, "features": {**FULL, "margin": 1}} for one in raw(reranker, 5, 6)]
    past = [{"id": raw(reranker, 0)[0], "features": FULL}]
    with live.client() as client:
        body = {"history": past, "documents": documents, "decode": {"details": True}}
        answer = client.post("/v1/rerank", json=body).json()
        strict = client.post("/v1/rerank", json={**body, "strict": True})
        described = client.get("/openapi.json").json()["components"]["schemas"]["Document"]
    warnings = answer["meta"]["warnings"]
    assert any(line.startswith("features.margin: no evidence here, in 2 of 2") for line in warnings)
    assert "history: features are evidence of candidates only, ignored" in warnings
    assert strict.status_code == 422
    assert strict.json()["message"].startswith("features.margin: no evidence here")
    pieces = [piece["field"] for one in answer["decisions"] for piece in one["evidence"][0]]
    assert {"price", "ctr", "badge", "in_stock"} <= set(pieces)
    assert "description" in described["properties"]["features"]


def test_a_model_without_own_fields_says_so(run_dir: Path) -> None:
    plain = Reranker.from_pretrained(run_dir / "bundle")
    raw_ids = plain.catalogue.raw_ids
    task = plain.prepare(raw_ids[:1], [{"id": raw_ids[3], "features": {"ctr": "x"}}, raw_ids[4]])
    told = "features.ctr: no evidence here, in 1 of 2 (this model has none of its own), ignored"
    assert task.query.warnings == (told,)


def test_the_command_line_takes_them(own_dir, reranker, tmp_path, capsys) -> None:
    one, two, past = raw(reranker, 5, 6, 0)
    request = {"history": [past], "candidates": [{"id": one, "features": FULL}, two]}
    beside = {"history": [past], "candidates": [one, two], "features": [FULL, None]}
    wrong = {**beside, "features": [{"ctr": "x"}, None]}
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in (request, beside, wrong)))
    model = str(own_dir / "bundle")
    assert run(["rerank", "-m", model, "-i", str(source), "-o", str(output)]) == 0
    first, second, third = map(json.loads, output.read_text().splitlines())
    assert first["levels"] == second["levels"]
    told = "features.ctr: expected a number (got 'x'), in 1 of 2, taken as missing"
    assert third["warnings"] == [told]
    capsys.readouterr()


def test_the_adapters_take_them(reranker: Reranker) -> None:
    one, two, past = raw(reranker, 5, 6, 0)
    entries = [entry("soap", {"item_id": one, "features": FULL}), entry("x", {"item_id": two})]
    assert entries == [{"id": one, "features": FULL}, two]
    found = rank(reranker, json.dumps([past]), entries, None)
    assert found is not None
    direct = reranker.rank([past], [one, two], features=[FULL, None])
    assert found.levels == direct.levels


def test_the_page_says_what_each_bar_means(live: Live, reranker: Reranker) -> None:
    with live.client() as client:
        data = client.get("/page/candidates", params={"h": raw(reranker, 0, 1)}).json()
    for card in data["candidates"]:
        for piece in card["evidence"]:
            at = names_of(reranker.fields).index(piece["name"])
            assert piece["said"] == reranker.template.phrases.say(at, piece["level"])
            assert piece["low"] == (piece["name"] in ("rank", "gap", "price"))


# ------------------------------------------------------------------------------------ the bundle


def fields(change: Any):
    """A bundle whose index has other fields."""
    return lambda b: edit_json(b / "evidence/index.json", lambda i: change(i["fields"]) and None)


CHANGES = {
    "a field less": fields(lambda f: f.pop()),
    "a field twice": fields(lambda f: f.append(f[-1])),
    "another name": fields(lambda f: f[-1].update(name="stocked")),
    "the name of a counted one": fields(lambda f: f[-1].update(name="rank")),
    "another order": fields(lambda f: f.reverse()),
    "a phrase that looks into things": fields(lambda f: f[-1].update(phrase="{grade.__class__}")),
    "a phrase without a slot": fields(lambda f: f[-1].update(phrase="in stock")),
    "a phrase of another field": fields(lambda f: f[-3].update(phrase="with a {grade} price")),
    "an unknown kind": fields(lambda f: f[-1].update(kind="text")),
    "words that are numbers": fields(lambda f: f[-2].update(words=[1, 2])),
    "more words than buckets": fields(lambda f: f[-2].update(words=list("abcdefgh"))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_bundle_with_other_fields_is_refused(change, own_dir, tmp_path, capsys) -> None:
    bundle = bundles.copy_of(own_dir / "bundle", tmp_path / "bundle")
    change(bundle)
    bundles.seal(bundle)
    assert run(["rerank", "-c", "a", "-c", "b", "--model", str(bundle)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {bundle}")
    assert err.count("\n") == 1


# ---------------------------------------------------------------------------------------- scores


def gap(reranker: Reranker, **given: Any) -> tuple[list[int], tuple[str, ...]]:
    task = reranker.prepare(raw(reranker, 0, 1), raw(reranker, 5, 6, 7, 8, 9), **given)
    at = reranker.seats.index.names.index("gap")
    return task.whole.buckets_KF[:, at].tolist(), task.query.warnings


@pytest.mark.parametrize("scale", [100.0, 1e4, 1e-4, 1e30])
def test_scores_of_another_scale_are_passed_over_and_named(reranker: Reranker, scale) -> None:
    edges_B = reranker.seats.index.edges_FB[1]
    top = float(edges_B[np.isfinite(edges_B)][-1])
    scores = [0.0, -0.2 * top, -0.5 * top, -1.1 * top, -2.0 * top]
    usual, warnings = gap(reranker, scores=scores)
    assert warnings == ()
    assert MISSING not in usual
    other, warnings = gap(reranker, scores=[score * scale for score in scores])
    assert other == [MISSING] * 5
    [told] = warnings
    assert told.startswith("scores: up to ")
    assert told.endswith("another scale, ignored")
    with pytest.raises(DataError, match=r"^scores: .*another scale$"):
        gap(reranker, scores=[score * scale for score in scores], strict=True)
    assert gap(reranker, scores=[3.0] * 5) == ([0] * 5, ()), "equal ones are of any scale"


def test_a_model_of_a_shops_scores_takes_no_others_for_them(own_dir, tmp_path) -> None:
    bundle = bundles.copy_of(own_dir / "bundle", tmp_path / "bundle")
    edit_json(bundle / "evidence/index.json", lambda index: index.update(own_scores=True))
    opened = Reranker.from_pretrained(bundles.seal(bundle))
    assert gap(opened) == ([MISSING] * 5, ())
    assert MISSING not in gap(opened, scores=[0.5, 0.4, 0.3, 0.2, 0.1])[0]
    assert opened.rank(raw(opened, 0), raw(opened, 5, 6, 7)).order
    shown = candidates(opened, raw(opened, 0, 1), None)["candidates"]
    assert {card["score"] for card in shown} == {None}
    assert "gap" not in {piece["name"] for card in shown for piece in card["evidence"]}
