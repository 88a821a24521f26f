"""`diffgr2 data check` of a shop's own lists: what it says of good files, and of bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from diffgr2.cli import app, run
from support import shop_lists


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["data", "check", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_files_by_name(tmp_path: Path) -> None:
    paths = shop_lists.write(tmp_path, "csv")
    text = said(
        *(str(paths["interactions"]), str(paths["items"])),
        *("--column", "user=user_id", "item=item_id", "--lists", str(paths["lists"])),
        *("--gain", "click=1", "purchase=3", "--features", "price,ctr,stock,kind"),
    )
    for line in (
        "rows, 240 lists of",
        "read as: list=list user=user moment=moment item=item place=place score=score",
        "outcomes: click (worth 1), purchase (worth 3):",
        "feature price: number, 9",
        "feature stock: flag, 100.0% known, set in ",
        "feature kind: category, 100.0% known, 3 words:",
        "histories: from the interactions, before the list's time;",
        "set aside: nothing",
        "split by list: 168 train, 24 validation, 48 test lists",
        "the shop's order on lists with an outcome (n = 196): R@1 0.3",
        "NDCG@10 0.",
    ):
        assert line in text, line


def test_a_recipe_and_what_it_cannot_use(tmp_path: Path) -> None:
    paths = shop_lists.write(tmp_path, "csv")
    with paths["lists"].open("a") as file:
        file.write("r0,u0,soon,i3,9,.1,0,0,1,.5,true,new\n")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(shop_lists.values(paths)))
    text = said(str(tmp_path / "own.yaml"), "--set", "lists.split=user", "lists.max_bad_share=0.1")
    assert "set aside: 1 entries" in text
    assert "moment is neither a number nor an ISO date" in text
    assert "split by user:" in text


def test_scores_that_some_candidates_lack(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("list,item,place,score,bought\nr1,a,1,.5,1\nr1,b,2,,0\n")
    assert "score: 50.0% known" in said("--lists", str(path))
    path.write_text("list,item,place,score,bought\nr1,a,1,.5,1\nr1,b,2,.4,0\n")
    assert "score: " not in said("--lists", str(path))


def test_an_outcome_without_a_place_is_said(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    rows = "list,item,place,bought\nr1,a,1,1\nr1,b,2,0\nr2,a,1,0\nr2,b,2,0\n"
    path.write_text(f"{rows}r1,c,,1\nr1,d,,1\nr2,c,,1\n")
    text = said("--lists", str(path))
    assert "  3 rows with an outcome and no place: taken as outcomes outside their lists" in text
    assert "  1 lists whose outcome was about an item outside them" in text
    path.write_text(rows)
    assert "no place:" not in said("--lists", str(path))


def test_lists_alone(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("list,user,item,bought,history\nr1,u,a,1,x|y\nr1,u,b,0,x|y\n")
    text = said("--lists", str(path))
    assert "histories: 1 with the lists" in text
    assert "in the order of: the file's own order" in text
    assert "split: lists.split: list gives" in text, "one list cannot be split, and is told"
    assert "warning: l.csv has no place and no score" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected a recipe, interactions, or --lists FILE"),
        (("--lists", "none.csv"), "none.csv: no such file"),
        (("nothing",), "nothing: no such recipe"),
        (("--lists", "{l}", "--gain", "bought=much"), "--gain: 'much' is not a number"),
        (("--lists", "{l}", "--list-column", "place"), "--list-column place: expected word=column"),
        (("{l}", "--column", "user=a", "user=b"), "--column user=b: user stands twice"),
        (("{l}", "--column", "user=a", "item=a"), "--column item=a: a is the user already"),
        (("--lists", "{l}", "--gain", "bought=1", "bought=2"), "--gain bought=2: bought stands"),
        (("--lists", "{s}"), "s.csv: line 1: one column only, with ';' in its name; .csv is"),
        (("--lists", "{l}", "--features", "rank"), "features: rank: evidence of that name"),
        (("--lists", "{l}", "--features", "x"), "lists.features.x: no column 'x'"),
    ],
)
def test_wrong_arguments_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "l.csv"
    path.write_text("list,user,item,bought\nr1,u,a,1\nr1,u,b,0\n")
    other = tmp_path / "s.csv"
    other.write_text(path.read_text().replace(",", ";"))
    code = run(["data", "check", *(text.format(l=path, s=other) for text in arguments)])
    told = capsys.readouterr().err
    assert code == 2
    assert told.startswith("error: ")
    assert message in told
    assert told.count("\n") == 1
