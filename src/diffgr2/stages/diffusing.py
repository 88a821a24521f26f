"""A run whose base is a block-diffusion checkpoint already: it starts at conversion fine-tuning.

Contract: such a base (SDAR's format, Fast-dLLM v2's, or one of ours) has no AR teacher, so the AR
stages and what compares with them are not in the recipe (`ABSENT`): `convert` (`begin`) gives the
base the run's vocabulary and keeps its contract, whatever the recipe's `convert` says; `distill`
(`texts`) takes what CFT learns from straight from the traces. Not here: training (`cft`), formats
(`model.contract`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffgr2.errors import ArtifactError, ConfigError
from diffgr2.stage import StageContext

if TYPE_CHECKING:
    from diffgr2.config import Recipe
    from diffgr2.prompts.vocab import Vocabulary

ABSENT = (
    *("midtrain", "sft", "rl", "direct_rl", "opd", "block_rl"),
    *("calibrate", "bundle", "bundle_ar", "speed", "pace", "probes"),
)
"""Stages that need an AR teacher, or what was distilled from one."""


def diffusing(recipe: Recipe) -> bool:
    """Whether the run's weights diffuse already; those of a run that starts from a bundle do not.

    A directory without config.json does not either: whoever opens it says what is missing.
    """
    base = recipe.model.base
    if base is None or recipe.start or not (Path(base) / "config.json").is_file():
        return False
    from diffgr2.model.contract import diffuses, read_config

    return diffuses(read_config(Path(base)))


def files(recipe: Recipe) -> list[Path]:
    """What the stage `convert` then depends on besides."""
    return [Path(recipe.model.base) / "config.json"] if recipe.model.base else []


def begin(ctx: StageContext) -> dict[str, Any]:
    """The base with rows for the run's vocabulary, and its contract in our words."""
    from diffgr2.artifacts import write_json
    from diffgr2.model.contract import SECTION, contract_of, read_config
    from diffgr2.model.load import build
    from diffgr2.prompts.vocab import Vocabulary
    from diffgr2.stages.common import write_model

    if ctx.recipe.convert.adapter is not None:
        raise ConfigError(
            "convert.adapter: the base diffuses by all its weights (cft.lora trains a part of them)"
        )
    vocab = Vocabulary.load(ctx.inputs["vocabulary"])
    contract = contract_of(Path(ctx.recipe.model.base or ""))
    assert contract is not None  # else the recipe had its AR stages
    if contract.mask_token_id != vocab.mask_id:
        raise ArtifactError(
            f"vocabulary: its mask is {vocab.mask_id}, the base's {contract.mask_token_id}"
        )
    model = build(ctx.recipe.model, vocab.spec.size, ctx.seed)
    write_model(model, ctx.inputs["vocabulary"], ctx.out)
    values = read_config(ctx.out) | {SECTION: contract.model_dump()}
    write_json(ctx.out / "config.json", values)
    return contract.model_dump()


def level_of(vocab: Vocabulary, token: int, other: int, share: float) -> float:
    """The expected level of a strength that is, to a share, another; NaN of other tokens."""
    low, high = vocab.strength_of(token), vocab.strength_of(other)
    if low is None:
        return float("nan")
    return low if high is None else low + share * (high - low)


def texts(ctx: StageContext) -> dict[str, Any]:
    """The traces' responses, as the AR teacher's outputs would be kept."""
    import numpy as np

    from diffgr2.artifacts import save_arrays
    from diffgr2.stages.common import answer_to_learn
    from diffgr2.stages.corpus import KNOWN, open_corpus
    from diffgr2.stages.distill import FILE, Asked, packed
    from diffgr2.streams import generator
    from diffgr2.types import Trajectory

    config, corpus = ctx.recipe.distill, open_corpus(ctx.inputs, ctx.recipe)
    rng, every = generator(ctx.seed, "distill"), corpus.examples
    if not every:
        raise ArtifactError("distill: no trace trains")
    count, kept = min(config.lists or len(every), len(every)), []
    for n in np.sort(rng.choice(len(every), count, replace=False)):
        split, at = every[n]
        shown, trace = corpus.lesson(split, at, config, rng)
        direct = bool(rng.random() < config.direct)
        answer = answer_to_learn(corpus, rng, reasoning=not direct)
        made = corpus.template.response(shown.request, trace, reasoning=not direct, answer=answer)
        length = len(made.tokens)
        other, share = made.other or made.tokens, made.share or [0.0] * length
        triples = zip(made.tokens, other, share, strict=True)
        levels = np.array([level_of(corpus.vocab, *three) for three in triples], np.float32)
        none = np.zeros(length)
        text = Trajectory(np.array(made.tokens), none, none, length, True, level_T=levels)
        row = int(corpus.traces[split].row_N[at])
        kept.append((Asked(KNOWN.index(split), row, shown, direct, answer), text))
    save_arrays(ctx.out / FILE, **vars(packed(kept, ctx.recipe.candidates.k_max)))
    return {"lists": count, "kept": count}
