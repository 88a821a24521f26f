"""The vocabulary stage: a text tokenizer (trained here or the base model's) plus our tokens.

Contract: writes the tokenizer files and vocabulary.json that every model directory carries on, with
the base's chat template and special tokens where there is a base; a run that starts from a bundle
(`warm`) carries on that one's. The mask of a block-diffusion base keeps its id. The mask id comes
first, then semantic IDs and control tokens. Training comes next, so it says how long the rest of
the run will take. Not here: embeddings.
"""

import json
import shutil
from collections.abc import Iterable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from diffgr2.artifacts import load_arrays, read_json, write_json
from diffgr2.candidates.fields import Field, names_of
from diffgr2.candidates.index import read_fields
from diffgr2.config import Recipe
from diffgr2.data.store import read_dataset
from diffgr2.errors import CheckpointError, first_line
from diffgr2.model.contract import CHAT_TEMPLATE, MASK, contract_of
from diffgr2.pipeline import StageContext
from diffgr2.prompts.chat import Chat
from diffgr2.prompts.plain_words import own_lines, plain_words, spelled
from diffgr2.prompts.request import item_text
from diffgr2.prompts.vocab import Vocabulary, train_bpe
from diffgr2.stages import warm
from diffgr2.stages.effort import BEFORE, Size, speed, told, work_of
from diffgr2.types import Catalogue

OFTEN = 2  # how many times as often as there are items a tokenizer trained here meets such a word


def text_tokenizer(recipe: Recipe, texts: Iterable[str]) -> Tokenizer:
    """The base checkpoint's own tokenizer, or one trained on the catalogue's texts."""
    if recipe.model.base is None:
        return train_bpe(texts, recipe.prompt.text_vocab)
    base = Path(recipe.model.base)
    path = base / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: file is missing (model.base needs its tokenizer)")
    contract = contract_of(base)
    try:
        if contract is None:
            return Tokenizer.from_file(str(path))
        return with_mask_at(json.loads(path.read_text(encoding="utf-8")), contract.mask_token_id)
    except Exception as error:
        raise CheckpointError(f"{path}: not a tokenizer ({first_line(error)})") from None


def with_mask_at(values: dict[str, Any], mask_id: int) -> Tokenizer:
    """A tokenizer in which the token of this id, whatever its name was, is the mask."""
    for entry in values["added_tokens"]:
        if entry["id"] == mask_id:
            entry["content"] = MASK
    values["model"]["vocab"] = {
        MASK if number == mask_id else name: number
        for name, number in values["model"]["vocab"].items()
    }
    tokenizer = Tokenizer.from_str(json.dumps(values))
    if tokenizer.token_to_id(MASK) is None:
        tokenizer.add_special_tokens([AddedToken(MASK, special=True)])
    if (found := tokenizer.token_to_id(MASK)) != mask_id:
        raise ValueError(f"its mask would be {found}, the checkpoint's is {mask_id}")
    return tokenizer


OWN = ("tokenizer_class", "added_tokens_decoder", "auto_map", "tokenizer_file", "name_or_path")
"""Keys of a base's tokenizer_config.json that are not true of the tokenizer that we write."""


def keep(source: Path, out: Path) -> None:
    """What the source tells those who chat with it: its template, and special tokens not ours."""
    if (source / CHAT_TEMPLATE).is_file():
        shutil.copyfile(source / CHAT_TEMPLATE, out / CHAT_TEMPLATE)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if not (source / name).is_file():
            continue
        values = read_json(source / name)
        kept = {key: value for key, value in values.items() if key not in OWN}
        write_json(out / name, kept | read_json(out / name))


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
    k, strengths, words = recipe.candidates.k_max, recipe.prompt.strengths, None
    if recipe.prompt.template == "brief":
        # Each of its words has to become one token, whatever the titles say more often.
        often = repeat(spelled(k, fields, strengths), OFTEN * len(texts))
        tokenizer = text_tokenizer(
            recipe, chain(texts, own_lines() * (1 + len(texts) // 10), often)
        )
        words = plain_words(tokenizer, k, fields, strengths)
    else:
        tokenizer = text_tokenizer(recipe, texts)
    return Vocabulary.extend(
        tokenizer,
        levels=recipe.items.levels,
        codes=recipe.items.codes,
        k=k,
        fields=names_of(fields),
        buckets=recipe.evidence.buckets,
        strengths=strengths,
        words=words,
    )


def run(ctx: StageContext) -> dict[str, Any]:
    recipe, fields = ctx.recipe, read_fields(ctx.inputs["evidence"])
    catalogue = read_dataset(ctx.inputs["data"]).catalogue
    begun = warm.vocabulary(recipe, names_of(fields)) if recipe.start else None
    vocab = begun or made(recipe, catalogue, fields)
    vocab.save(ctx.out)
    if source := recipe.start or recipe.model.base:
        keep(Path(source), ctx.out)
    work = work_of(recipe, size_of(ctx, len(fields)))
    work = {name: value for name, value in work.items() if name not in BEFORE}
    ctx.progress.line(f"what is to come: {told(work, speed())}")
    return {"size": vocab.spec.size, "mask_id": vocab.mask_id}
