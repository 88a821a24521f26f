"""The vocabulary of the simulated beauty-and-care shop, read from `shop_words.yaml`.

Contract: `WORDS` holds the file's lists in its order, which `data.shop_catalogue` combines; the
file tells what each of them is. Not here: how many items there are, who buys them, or any real
product.
"""

from pathlib import Path

from diffgr2.config import Section
from diffgr2.recipe import parse_yaml


class Product(Section):
    """A product type: the second level of a category path."""

    name: str  # category, for example "Hair Masks"
    noun: str  # as it reads in a title
    price: float  # of a mid-range item
    sizes: str  # key of `Words.sizes`
    goes_with: list[str]  # names of product types, most natural first
    cared: bool = False  # its variants are ingredients, whatever the department's are


class Department(Section):
    """The first level of a category path; its needs are the third."""

    name: str
    needs: dict[str, str]  # category -> pattern of the noun in a title
    variant: str  # pattern of the variant in a title
    variants: list[str]
    products: list[Product]

    def need(self, place: int) -> tuple[str, str]:
        """(category, pattern of the noun) of one need."""
        return list(self.needs.items())[place]


class Words(Section):
    """The whole file."""

    sizes: dict[str, list[str]]
    ingredients: list[str]
    departments: list[Department]
    tiers: dict[str, float]  # factor on a product's price
    brand_starts: list[str]
    brand_ends: list[str]
    line_first: list[str]
    line_last: list[str]


_FILE = Path(__file__).with_name("shop_words.yaml")
WORDS = Words.model_validate(parse_yaml(_FILE.read_text(encoding="utf-8"), _FILE.name))
