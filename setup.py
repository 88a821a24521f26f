"""The package's description on an index: README with links that lead into the repository.

Contract: in README links and pictures are relative, as the checkout needs them; `described` turns
each into the same file of this version's tag, where a package index finds it. Everything else is
said by pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
REPOSITORY = "https://github.com/diffgr2/diffgr2"
PICTURES = "https://raw.githubusercontent.com/diffgr2/diffgr2"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?![a-z]+:|#)([^()\s]+)\)")
FENCE = re.compile(r"^(```.*?^```)$", re.MULTILINE | re.DOTALL)


def described(text: str, version: str) -> str:
    """The text with absolute links; what stands in fences is left alone."""

    def link(found: re.Match[str]) -> str:
        image, words, path = found.groups()
        where = f"{PICTURES}/v{version}" if image else f"{REPOSITORY}/blob/v{version}"
        return f"{image}[{words}]({where}/{path})"

    parts = FENCE.split(text)
    return "".join(part if at % 2 else LINK.sub(link, part) for at, part in enumerate(parts))


if __name__ == "__main__":
    tag = re.search(r'__version__ = "(.+)"', (HERE / "src/diffgr2/__init__.py").read_text("utf-8"))
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=described(readme, tag[1]),  # type: ignore[index]
        long_description_content_type="text/markdown",
    )
