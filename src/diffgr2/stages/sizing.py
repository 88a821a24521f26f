"""What each training stage of a recipe needs on so many GPUs: memory from `train.memory`, and time.

Contract: `base_sizes(recipe, config)` are the backbone's sizes, from the recipe's dimensions, a
config.json or a base whose sizes are known by name; `needs(recipe, sizes, machine)` is a `Need` per
training stage, and `Need.advice` the first change of keys that makes a stage fit. Reads no data and
no weights: lengths are those of the templates' longest lists, in round numbers. Time is arithmetic
over an assumed share of the card's, rollouts are bytes over its bandwidth; both are assumptions of
`Machine`, which whoever prints them says. Not here: minutes on a CPU (`effort`), the memory model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from diffgr2.config import (
    AdapterConfig,
    BlockRlConfig,
    CftConfig,
    OpdConfig,
    Recipe,
    RlConfig,
    TrainConfig,
)
from diffgr2.errors import CheckpointError, ConfigError
from diffgr2.model.adapter import Adapter
from diffgr2.model.contract import read_config
from diffgr2.model.family import Sizes, sizes_of
from diffgr2.stages.effort import Size, steps_of
from diffgr2.train.memory import How, Memory, Shape, flops, memory, parameters

ROOM = 0.92
"""Share of a card's memory that tensors may take: the rest is the driver's, and gaps."""

DECODED = 64
"""Rollouts at once."""

LISTS = Size(users=20_000, items=12_000, interactions=180_000)
"""Data that is assumed where a stage's steps are open."""

OWN_WORDS = 500
"""Tokens that a template adds beside semantic IDs."""


def _qwen3(hidden: int, layers: int, heads: int, ffn: int, tied: bool) -> dict[str, Any]:
    rest = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}
    return {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 40_960,
        **rest,
    }


SMOL = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
}

KNOWN = {
    "smollm2-135m": SMOL,
    "qwen3-0.6b": _qwen3(1024, 28, 16, 3072, True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 6144, True),
    "qwen3-4b": _qwen3(2560, 36, 32, 9728, True),
    "qwen3-8b": _qwen3(4096, 36, 32, 12_288, False),
}
"""Sizes of bases by the name of their directory, for plans before anything is downloaded."""


@dataclass(frozen=True)
class Machine:
    """So many equal GPUs, and what is assumed of them."""

    gpus: int = 1
    memory: float = 80e9
    tflops: float = 989.0  # dense bf16
    single: float = 67.0  # fp32
    share: float = 0.4  # of these that training reaches
    bandwidth: float = 3.35e12  # bytes/s
    read: float = 0.5  # of it that decoding reaches

    def seconds(self, work: float, how: How) -> float:
        return work / (self.share * 1e12 * (self.tflops if how.half else self.single))


@dataclass(frozen=True)
class Need:
    """One stage: what it takes as the recipe has it, and what a change of keys would make of it."""

    stage: str
    config: TrainConfig
    recipe: Recipe = field(repr=False)
    sizes: Sizes = field(repr=False)
    machine: Machine = field(repr=False)
    steps: int

    @property
    def adapter(self) -> AdapterConfig | None:
        """What alone is trained, where something is."""
        gated = self.recipe.convert.adapter if self.stage in DIFFUSING else None
        return self.config.lora or gated

    @cached_property
    def added(self) -> int:
        """Weights of the adapter."""
        if self.adapter is None:
            return 0
        shapes = Adapter.of(self.adapter, None).shapes(self.sizes).values()
        return sum(wide * narrow for wide, narrow in shapes)

    @property
    def how(self) -> How:
        config, here, adapter = self.config, self.machine, self.adapter
        return How(
            precision=config.precision,
            weights=config.weights,
            recompute=config.checkpoint_activations,
            optimizer=config.optimizer,
            dense=config.attention == "dense" and self.stage not in CAUSAL,
            gpus=here.gpus,
            trained=None if adapter is None else 0,
            added=self.added,
            ranks=0 if adapter is None else adapter.rank * len(adapter.targets),
            everywhere=self.config.lora is not None,
        )

    @cached_property
    def shape(self) -> Shape:
        return shape_of(self)

    @cached_property
    def memory(self) -> Memory:
        return memory(self.sizes, self.how, self.shape)

    @property
    def fits(self) -> bool:
        return self.memory.peak <= ROOM * self.machine.memory

    @property
    def forwards(self) -> int:
        """Of a step, over all processes: one that has none computes along with weight 0."""
        return -(-rows_of(self.config) // min(self.config.micro_rows, rows_of(self.config)))

    def changed(self, **keys: Any) -> Need:
        return replace(self, config=self.config.model_copy(update=keys))

    @property
    def recomputed(self) -> Memory:
        """With `checkpoint_activations`, whatever the recipe says."""
        return self.changed(checkpoint_activations=True).memory

    @property
    def stored(self) -> Memory:
        """Without."""
        return self.changed(checkpoint_activations=False).memory

    def advice(self) -> str:
        """The fewest changes that make it fit, in words; "" where it does."""
        if self.fits:
            return ""
        keys: dict[str, Any] = {}
        for change in (
            {"checkpoint_activations": True},
            {"attention": "auto"},
            {"micro_rows": 1},
            {"weights": "bf16"},
        ):
            keys |= {k: v for k, v in change.items() if getattr(self.config, k) != v}
            if keys and self.changed(**keys).fits:
                for key in list(keys):  # what a later key made needless
                    fewer = {k: v for k, v in keys.items() if k != key}
                    keys = fewer if self.changed(**fewer).fits else keys
                said = " ".join(f"{self.stage}.{k}={_word(v)}" for k, v in keys.items())
                return f"--set {said} fits"
        for gpus in (2, 4, 8, 16, 32, 64):
            more = replace(self.changed(**keys), machine=replace(self.machine, gpus=gpus))
            if gpus > self.machine.gpus and more.fits:
                said = " ".join(f"{self.stage}.{k}={_word(v)}" for k, v in keys.items())
                return f"--gpus {gpus} fits" + (f", with --set {said}" if said else "")
        return "no key of the stage makes it fit: a smaller base, or GPUs with more memory"

    @property
    def seconds(self) -> tuple[float, float]:
        """(learning, rollouts) of all steps."""
        here, longest = self.machine, sum(lengths(self.recipe, self.recipe.candidates.k_max))
        usual = sum(lengths(self.recipe, mean_k(self.recipe))) / longest
        work = flops(self.sizes, self.how, self.shape, self.context) * self.shape.micros * usual
        rolled = rollouts_of(self.config)
        own = 2 if self.config.weights == "bf16" else 4
        forwards = lengths(self.recipe, mean_k(self.recipe))[1]
        if self.stage not in CAUSAL:
            forwards = copies_of(self) * 2
        read = own * parameters(self.sizes) / (here.read * here.bandwidth)
        batches = -(-rolled // here.gpus // DECODED)  # of one process's share
        return self.steps * here.seconds(work, self.how), self.steps * batches * forwards * read

    @property
    def context(self) -> float:
        """Tokens that a token sees on average: half of its row's clean part."""
        return sum(lengths(self.recipe, self.recipe.candidates.k_max)) / 2


CAUSAL = ("midtrain", "sft", "rl", "direct_rl")
"""Stages whose rows are plain causal texts."""

DIFFUSING = ("cft", "opd", "block_rl", "cft_rl")
"""Stages that train the adapter of `convert.adapter`, where there is one."""

ORDER = ("midtrain", "sft", "rl", "direct_rl", "cft", "opd", "block_rl", "cft_rl")


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def needs(recipe: Recipe, sizes: Sizes, machine: Machine) -> list[Need]:
    """Every training stage that has steps."""
    found = []
    for stage in ORDER:
        config: TrainConfig = getattr(recipe, stage)
        steps = config.steps
        if steps is None:
            lists, words = LISTS.training_lists(recipe), recipe.items.levels * recipe.items.codes
            lists = min(recipe.distill.lists or lists, lists) if stage == "cft" else lists
            steps = steps_of(stage, lists, words, config.optimizer)
        if steps:
            found.append(Need(stage, config, recipe, sizes, machine, steps))
    return found


def base_sizes(recipe: Recipe, given: Path | None) -> tuple[Sizes, str]:
    """(sizes with the run's vocabulary, where they are from)."""
    model, own = recipe.model, recipe.items.levels * recipe.items.codes + OWN_WORDS
    if given is None and model.base is None:
        rows = recipe.prompt.text_vocab + own
        values = {
            "model_type": "qwen3",
            "hidden_size": model.dim,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.kv_heads,
            "head_dim": model.head_dim,
            "intermediate_size": model.ffn,
            "vocab_size": -(-rows // model.pad_vocab_to) * model.pad_vocab_to,
            "tie_word_embeddings": True,
        }
        return sizes_of(values), "the recipe's model"
    values, source = _base_config(model.base, given)
    sizes = sizes_of(values, source)
    shown = own if recipe.prompt.template != "brief" else 0  # others add words of their own
    return replace(sizes, vocab=sizes.vocab + shown), source


def _base_config(base: str | None, given: Path | None) -> tuple[Mapping[str, Any], str]:
    if given is not None:
        folder = given.parent if given.name == "config.json" else given
        if (folder / "config.json").is_file():
            return read_config(folder), str(given)
        if given.name.lower() not in KNOWN:
            known = ", ".join(KNOWN)
            told = f"neither a directory with config.json nor one of {known}"
            raise ConfigError(f"--base-config {given}: {told}")
        return KNOWN[given.name.lower()], given.name.lower()
    assert base is not None
    if (Path(base) / "config.json").is_file():
        return read_config(Path(base)), base
    name = Path(base).name.lower()
    if name in KNOWN:
        return KNOWN[name], f"{name}, by its name"
    raise CheckpointError(f"model.base {base}: config.json is not there (--base-config says one)")


# ------------------------------------------------------------------------------- rows and lengths


def mean_k(recipe: Recipe) -> float:
    return (recipe.candidates.k + recipe.candidates.k_max / 2) / 2 + 0.5


def lengths(recipe: Recipe, k: float) -> tuple[float, float]:
    """About how many tokens the prompt and the response of a list of k have."""
    history, levels = recipe.prompt.history, recipe.items.levels
    fields = 10 if recipe.evidence.fields is None else len(recipe.evidence.fields)
    if recipe.prompt.template == "gr2":  # semantic IDs, titles and categories as chat
        return 300 + 30 * history + 40 * k, 130 + 12 * k
    if recipe.prompt.template == "brief":
        return 45 + 8 * history + k * (13 + fields), 4 * k
    return history * levels + k * (levels + fields + 1), 5 * k


def copies_of(need: Need) -> int:
    """Noisy copies in a row; of a replay as many as a block takes steps."""
    config = need.config
    if isinstance(config, CftConfig):
        return config.draws * (2 if config.complementary else 1)
    if isinstance(config, BlockRlConfig):
        if config.objective == "preference":
            return config.draws
        # What was seen: two or three forwards a block under a grammar, 2.5 tokens each without.
        return 4 if config.rule == "grammar" else -(-2 * need.recipe.convert.block_size // 5)
    return 1 if isinstance(config, OpdConfig) else 0


def rollouts_of(config: TrainConfig) -> int:
    """Texts that a step decodes."""
    if isinstance(config, RlConfig):
        return config.prompts * config.group * (2 if config.refill else 1)
    return config.rows if isinstance(config, OpdConfig) else 0


def rows_of(config: TrainConfig) -> int:
    """Texts that a step learns from."""
    return config.prompts * config.group if isinstance(config, RlConfig) else config.rows


def shape_of(need: Need) -> Shape:
    """The largest forward of a stage, all of its rows as long as the longest."""
    recipe, config, stage = need.recipe, need.config, need.stage
    prompt, response = lengths(recipe, recipe.candidates.k_max)
    if stage == "midtrain":
        prompt, response = prompt / 10, prompt / 10
    copies, rows = copies_of(need), rows_of(config)
    one = min(config.micro_rows, rows)
    row = prompt + response * (1 + copies)
    scored, logits = response, 4.0
    if isinstance(config, CftConfig):
        masked = response / 2 if config.complementary else response * (1 + config.fully_masked) / 2
        scored = masked * copies + (response if config.ar_weight else 0)
    elif isinstance(config, OpdConfig):
        scored, logits = response * (2 if config.ar_weight else 1), 7.0  # of two models
    elif isinstance(config, RlConfig):
        logits = 6.0  # scores among what was allowed, and entropies
    share = -(-rollouts_of(config) // need.machine.gpus)  # that one process decodes
    cached = int(min(DECODED, share) * (prompt + response * 1.5))
    preference = isinstance(config, BlockRlConfig) and config.objective == "preference"
    return Shape(
        tokens=int(one * row),
        scored=int(one * scored),
        micros=-(-need.forwards // need.machine.gpus),
        pairs=int(one * row * row),
        logits=logits,
        teacher=preference or (isinstance(config, OpdConfig) and config.teacher == "ar"),
        cached=cached,
    )
