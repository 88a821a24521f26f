"""Gathers every page of the documentation, builds the site and checks it.

Contract: `gather(out)` writes README, docs/ and the pages made from the code into one folder, with
links between them mended (what leads to a file that is no page becomes its name); a link to nothing
is an error. `main` has Sphinx build that, every warning an error, and then walks the built pages:
every link and anchor resolves, and nothing is loaded from elsewhere. Not here: what the reference
pages say (`docs_reference`, `docs_python`).
Run: `python tools/docs_site.py build/docs`, with the extra `docs` installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

from docs_flow import drawn
from docs_python import pages, python_page
from docs_reference import UndocumentedError, cli_page, http_page, recipe_page

ROOT = Path(__file__).parents[1]

NAV = {
    "Begin": "first_ranking own_lists how_it_works",
    "Use": "serving export bases scaling",
    "Understand": "pipeline evidence templates backends compatibility",
    "Look up": "recipe cli http python",
    "Judge": "results paper_map lab",
    "Work on it": "architecture contributing security changelog",
}
"""The sidebar: titles, and pages by the names of their files; the others are to look up."""

MADE = {
    "recipe": recipe_page,
    "cli": cli_page,
    "http": http_page,
    "python": partial(python_page, ROOT),
}
LINK = re.compile(r"(?<!\\)(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^(```+).*?^\1\s*$", re.MULTILINE | re.DOTALL)


class BrokenLinkError(Exception):
    """Links that lead nowhere, one a line."""


def page_of(path: Path) -> str | None:
    """The name under which a file of the project is a page, None where it is none."""
    if path.suffix != ".md" or path.parent not in (ROOT, ROOT / "docs"):
        return None
    return "index" if path == ROOT / "README.md" else path.stem.lower()


def mended(text: str, page: Path, out: Path, broken: list[str]) -> str:
    """The page with links as they are in the site; code is left alone, but for flowcharts."""

    def link(match: re.Match[str]) -> str:
        image, words, target = match.groups()
        if re.match(r"[a-z]+:", target) or target.startswith("#"):
            return match[0]
        path, anchor = urldefrag(target)
        place = (page.parent / unquote(path)).resolve()
        if not place.exists():
            broken.append(f"{page.relative_to(ROOT)}: {target} is not there")
        if image:
            return f"![{words}]({place.relative_to(ROOT / 'docs').as_posix()})"
        if name := page_of(place):
            return f"[{words}]({name}.md{'#' * bool(anchor)}{anchor})"
        return f"`{place.relative_to(ROOT).as_posix()}`" if words.strip("/`") in path else words

    parts, at = [], 0
    for number, fence in enumerate(FENCE.finditer(text)):
        code = fence[0]
        if code.startswith("```mermaid\n"):
            picture = f"{page.stem.lower()}_{number}.svg"
            flow = code.split("\n", 1)[1].rpartition("```")[0]
            (out / picture).write_text(drawn(flow), encoding="utf-8")
            code = f"![a flowchart, in words in the page's source]({picture})"
        parts += [LINK.sub(link, text[at : fence.start()]), code]
        at = fence.end()
    return "".join([*parts, LINK.sub(link, text[at:])])


def sidebar(pages: set[str]) -> str:
    """The tables of contents that the first page carries for the sidebar."""
    others = sorted(pages - {"index", *" ".join(NAV.values()).split()})
    parts = []
    for title, names in NAV.items():
        shown = [*names.split(), *(others if title == "Look up" else ())]
        parts.append(
            f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(shown) + "\n```\n"
        )
    return "\n".join(parts)


def gather(out: Path) -> None:
    """See the module's docstring."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(
        ROOT / "docs", out, ignore=shutil.ignore_patterns("*.md", "*.py", "__pycache__")
    )
    broken: list[str] = []
    texts = {
        page_of(path): mended(path.read_text(encoding="utf-8"), path, out, broken)
        for path in pages(ROOT)
    }
    if broken:
        raise BrokenLinkError("\n".join(broken))
    texts |= {name: made() for name, made in MADE.items()}
    texts["index"] += "\n" + sidebar({*texts})
    for name, text in texts.items():
        (out / f"{name}.md").write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------- built pages


class Page(HTMLParser):
    """What a built page refers to, loads and can be referred to by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {value for key in ("id", "name") if (value := given.get(key))}
        if tag == "a" and (target := given.get("href")):
            self.links.append(target)
        loading = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
        if tag in loading and (target := given.get(loading[tag])):
            self.loads.append(target)


def faults(site: Path) -> list[str]:
    """What is wrong with a built site, one line each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        here = path.relative_to(site)
        found += [
            f"{here}: loads {one} from elsewhere"
            for one in page.loads
            if re.match(r"(?:[a-z]+:)?//", one)
        ]
        for target in [*page.links, *page.loads]:
            if re.match(r"(?:[a-z]+:|//)", target):
                continue
            name, anchor = urldefrag(target)
            there = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path
            if not there.exists():
                found.append(f"{here}: {target} leads nowhere")
            elif anchor and there in pages and unquote(anchor) not in pages[there].ids:
                found.append(f"{here}: {target} names no place of that page")
    for path in site.rglob("*.css"):
        for one in re.findall(
            r"(?:url\(|@import )[\"']?(https?:)?//[^\s)]+", path.read_text("utf-8")
        ):
            found.append(f"{path.relative_to(site)}: loads {one} from elsewhere")
    return found


def main(out: Path) -> int:
    """Gather, build, check; the exit code."""
    source, site = out / "source", out / "site"
    try:
        gather(source)
    except (BrokenLinkError, UndocumentedError) as error:
        print(error, file=sys.stderr)
        return 1
    shutil.rmtree(site, ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(ROOT / "docs")]
    done = subprocess.run([*command, "-d", str(out / "trees"), str(source), str(site)], check=False)
    if done.returncode:
        return done.returncode
    found = faults(site.resolve())
    print("\n".join([*found, f"{len(list(site.rglob('*.html')))} pages in {site}"]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
