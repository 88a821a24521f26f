"""The vocabulary stage: a text tokenizer (trained here or the base model's) plus our tokens.

Contract: writes the tokenizer files and vocabulary.json that every model directory carries on; a
run that starts from a bundle (`warm`) carries on that one's. The mask id comes first, then semantic
IDs and control tokens. Training comes next, so it says how long the rest of the run will take. Not
here: embeddings.
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from diffgr2.artifacts import load_arrays
from diffgr2.candidates.fields import Field, names_of
from diffgr2.candidates.index import read_fields
from diffgr2.config import Recipe
from diffgr2.data.store import read_dataset
from diffgr2.errors import CheckpointError
from diffgr2.pipeline import StageContext
from diffgr2.prompts.chat import Chat
from diffgr2.prompts.request import item_text
from diffgr2.prompts.vocab import Vocabulary, train_bpe
from diffgr2.stages import warm
from diffgr2.stages.effort import BEFORE, Size, speed, told, work_of
from diffgr2.types import Catalogue


def text_tokenizer(recipe: Recipe, texts: list[str]) -> Tokenizer:
    """The base checkpoint's own tokenizer, or one trained on the catalogue's texts."""
    if recipe.model.base is None:
        return train_bpe(texts, recipe.prompt.text_vocab)
    path = Path(recipe.model.base) / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: file is missing (model.base needs its tokenizer)")
    return Tokenizer.from_file(str(path))


def size_of(ctx: StageContext, fields: int) -> Size:
    """How much there is to learn from."""
    histories = read_dataset(ctx.inputs["data"]).histories
    buckets_LKF = load_arrays(ctx.inputs["evidence"] / "train.safetensors")["buckets_LKF"]
    counts = histories.n_users, histories.n_items, len(histories.items_N)
    return Size(*counts, fields, lists=len(buckets_LKF))


def made(recipe: Recipe, catalogue: Catalogue, fields: tuple[Field, ...]) -> Vocabulary:
    """A vocabulary of this run's own."""
    texts = [item_text(catalogue, item) for item in range(len(catalogue))]
    if recipe.prompt.template == "gr2":
        # Every response spells the template's own words: they are worth tokens of their own.
        texts += Chat(fields, recipe.evidence.buckets).own_words() * max(1, len(texts) // 100)
    return Vocabulary.extend(
        text_tokenizer(recipe, texts),
        levels=recipe.items.levels,
        codes=recipe.items.codes,
        k=recipe.candidates.k_max,
        fields=names_of(fields),
        buckets=recipe.evidence.buckets,
        strengths=recipe.prompt.strengths,
    )


def run(ctx: StageContext) -> dict[str, Any]:
    recipe, fields = ctx.recipe, read_fields(ctx.inputs["evidence"])
    catalogue = read_dataset(ctx.inputs["data"]).catalogue
    begun = warm.vocabulary(recipe, names_of(fields)) if recipe.start else None
    vocab = begun or made(recipe, catalogue, fields)
    vocab.save(ctx.out)
    work = work_of(recipe, size_of(ctx, len(fields)))
    work = {name: value for name, value in work.items() if name not in BEFORE}
    ctx.progress.line(f"what is to come: {told(work, speed())}")
    return {"size": vocab.spec.size, "mask_id": vocab.mask_id}
