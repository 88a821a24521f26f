"""The recipe's schema: one strict, frozen section per stage.

Contract: unknown keys, wrong types (no silent "3" -> 3) and values out of range are all refused. A
section holds what its stage depends on and no more: the runner hashes it. Not here: reading a
recipe (`recipe`), defaults that depend on data, and anything that reads artifacts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from diffgr2.choices import DECODERS as DECODERS
from diffgr2.choices import SHOWN, Answering, Counted, Decoder, Rule
from diffgr2.learning import AdapterConfig as AdapterConfig
from diffgr2.learning import BlockRlConfig as BlockRlConfig
from diffgr2.learning import CftConfig as CftConfig
from diffgr2.learning import ConvertConfig as ConvertConfig
from diffgr2.learning import DistillConfig as DistillConfig
from diffgr2.learning import MidtrainConfig as MidtrainConfig
from diffgr2.learning import OpdConfig as OpdConfig
from diffgr2.learning import RlConfig as RlConfig
from diffgr2.learning import SftConfig as SftConfig
from diffgr2.learning import ShowConfig as ShowConfig
from diffgr2.learning import TrainConfig as TrainConfig
from diffgr2.own import K_MAX, ListsConfig, with_own_lists
from diffgr2.section import Amount, Count, Positive, Rate, Section, Share

# ---------------------------------------------------------------------------- data and candidates


class ShopConfig(Section):
    """The simulated shop (data.shop)."""

    n_items: Annotated[int, Field(ge=50, le=1_000_000)] = 2_000  # catalogue size
    n_users: Annotated[int, Field(ge=10, le=5_000_000)] = 4_000  # shoppers
    mean_length: Annotated[float, Field(ge=5.0, le=100.0)] = 9.0  # mean history length, minimum 5
    noise: Share = 0.1  # share of purchases that follow nothing but popularity

    @model_validator(mode="after")
    def _enough_items(self) -> ShopConfig:
        if self.mean_length > self.n_items / 4:
            raise ValueError(f"mean_length: at most a quarter of n_items ({self.n_items / 4:g})")
        return self


Source = Literal[
    "shop", "amazon2014", "amazon2018", "amazon2023", "recbole", "p5", "table", "lists"
]
TEXT_WORDS = ("title", "brand", "categories", "price", "description")
"""What an item file may say."""
COLUMN_WORDS = ("user", "item", "timestamp", "position", *TEXT_WORDS)
"""What `data.columns` may map."""


class DataConfig(Section):
    """Where interactions come from and how they become histories (data.*)."""

    source: Source = "shop"  # kind of the interactions; table = your columns
    interactions: str | None = None  # file with interactions; not for the shop
    items: str | None = None  # file with item metadata; optional
    columns: dict[str, str] = {}  # table only: our word -> column, of both files
    item_columns: dict[str, str] = {}  # the item file's, where it has others
    category_separator: str | None = None  # between a path's parts; null = seen, none = no paths
    repeats: Literal["drop", "keep"] = "drop"  # identical lines of a file without a clock
    k_core: Count = 5  # iterative: every user and item keeps at least this many; 0 = off
    tie_order: Literal["file", "shuffle"] = "file"  # order of interactions with equal timestamps
    tie_seed: Count = 0  # seed of `shuffle`
    max_bad_share: Share = 0.01  # the import stops when more lines than this are malformed
    shop: ShopConfig = Field(default_factory=ShopConfig)

    @model_validator(mode="before")
    @classmethod
    def _columns_per_file(cls, values: Any) -> Any:
        """`columns: {interactions: {…}, items: {…}}` is another way to say both."""
        match values:
            case {"columns": {**each}} if each and each.keys() <= {"interactions", "items"}:
                if "item_columns" in values:
                    raise ValueError("item_columns: columns.items says them already")
                of, texts = each.get("interactions", {}), each.get("items", {})
                return {**values, "columns": of, "item_columns": texts}
        return values

    @model_validator(mode="after")
    def _file_given(self) -> DataConfig:
        if self.source not in ("shop", "lists") and not self.interactions:
            raise ValueError(f"interactions: source {self.source} needs a file")
        if (self.columns or self.item_columns) and self.source not in ("table", "lists"):
            raise ValueError(f"columns: source {self.source} has none, only source table")
        for word in self.item_columns:
            if word not in ("item", *TEXT_WORDS):
                known = ", ".join(("item", *TEXT_WORDS))
                raise ValueError(f"item_columns: unknown word {word} (known: {known})")
        if self.item_columns and not self.items:
            raise ValueError("item_columns: the item file is not given")
        for word in self.columns:
            if word not in COLUMN_WORDS:
                raise ValueError(f"columns: unknown word {word} (known: {', '.join(COLUMN_WORDS)})")
            if word in TEXT_WORDS and not self.items:
                raise ValueError(f"columns: {word} is read from the item file, which is not given")
        return self


class ItemsConfig(Section):
    """Text vectors and semantic IDs (items.*)."""

    vectors: str = "tfidf"  # or sentence-transformers:<name or path>
    vector_dim: Positive = 64  # SVD dimensions of the TF-IDF vectors
    quantizer: Literal["blend", "rqvae", "rkmeans"] = "blend"  # blend: text and purchases
    levels: Annotated[int, Field(ge=1, le=8)] = 4  # codes per item
    codes: Annotated[int, Field(ge=2, le=65_536)] = 256  # codes per level
    text_dim: Positive = 16  # blend: leading dimensions of the text vectors
    bought_dim: Positive = 16  # blend: SVD dimensions of the co-purchase vectors
    bought_weight: Amount = 1.0  # blend: their length beside a text's of 1; 0 = text alone
    latent_dim: Positive = 32  # RQ-VAE bottleneck
    hidden_dim: Positive = 128  # RQ-VAE encoder and decoder
    epochs: Count = 30  # RQ-VAE; 0 = k-means codes of an untrained network
    min_steps: Count = 1_000  # small catalogues get more epochs, until this many batches
    batch: Positive = 1024  # RQ-VAE: items per step
    lr: Rate = 1e-3  # RQ-VAE's learning rate
    ema: Annotated[float, Field(ge=0.5, lt=1.0)] = 0.97  # codebook decay
    commitment: Amount = 0.25  # RQ-VAE: weight that holds encodings near their codes
    copurchase_weight: Amount = 0.0  # RQ-VAE: contrastive loss on co-purchases
    dead_after: Count = 20  # batches without use until a code is reset; 0 = never
    random_last: Count = 1  # how many last levels take free codes at random for uniqueness
    min_unique: Share = 0.8  # distinct by the quantizer itself; below, the stage fails
    shuffle: bool = False  # deal the IDs out among the items: what would meaning nothing cost?

    @model_validator(mode="after")
    def _consistent(self) -> ItemsConfig:
        kind, _, name = self.vectors.partition(":")
        if self.vectors != "tfidf" and not (kind == "sentence-transformers" and name):
            told = "expected tfidf or sentence-transformers:<name or path>"
            raise ValueError(f"vectors: {told} (got {self.vectors!r})")
        if self.random_last > self.levels:
            told = f"at most items.levels ({self.levels}) (got {self.random_last})"
            raise ValueError(f"random_last: {told}")
        return self


class RetrieverConfig(Section):
    """SASRec, or counts (retriever.*)."""

    SILENT = ("loss", "negatives", "search")

    kind: Literal["sasrec", "itemknn", "popularity"] = "sasrec"  # SASRec, or counts, ready at once
    dim: Positive = 64  # width
    layers: Positive = 2  # transformer blocks
    heads: Positive = 2  # attention heads
    dropout: Share = 0.5  # on embeddings and blocks
    max_len: Positive = 50  # purchases that it reads, the latest
    lr: Rate = 1e-3  # learning rate
    weight_decay: Amount = 0.0  # AdamW's
    batch_users: Positive = 128  # users per step
    epochs: Positive = 30  # at most; validation stops earlier
    patience: Positive = 2  # epochs without a better validation NDCG@10 until it stops
    init: Literal["copurchase", "random"] = "copurchase"  # of the item embeddings
    precision: Literal["fp32", "bf16"] = "fp32"  # of the item logits in training
    loss: Literal["auto", "full", "sampled"] = "auto"  # over all items, or a sample; auto: by size
    negatives: Positive = 1024  # sampled: items of a step that stand for all
    search: Literal["auto", "exact", "approximate"] = "auto"  # of the best items; auto: by size


class CandidatesConfig(Section):
    """Candidate lists (candidates.*)."""

    k: Annotated[int, Field(ge=2, le=100)] = 10  # length of the lists that results are about
    k_max: Annotated[int, Field(ge=2, le=100)] = K_MAX  # longest list that one prompt can hold
    folds: Annotated[int, Field(ge=2, le=20)] = 2  # cross-fitting by user
    prefixes: Positive = 4  # training lists per user: its last `prefixes` train positions
    inject_target: bool = False  # puts missed targets into training lists: a trap

    @model_validator(mode="after")
    def _consistent(self) -> CandidatesConfig:
        if self.k > self.k_max:
            raise ValueError(f"k: at most candidates.k_max ({self.k_max}) (got {self.k})")
        return self


class EvidenceConfig(Section):
    """Evidence per candidate and the scorer without an LLM (evidence.*)."""

    fields: list[Counted] | None = list(SHOWN)  # what is counted; null = all that the data can tell
    moment: bool = False  # also what only the moment of a request tells; serving takes the clock's
    buckets: Annotated[int, Field(ge=2, le=16)] = 8  # quantile buckets per field
    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.8  # recency weight per step back in history
    history: Positive = 20  # how far back evidence looks
    scorer: Literal["linear", "mlp", "gbdt"] = "linear"  # the row `evidence`; all are reported
    l2: Amount | None = None  # of the scorecard's weights; null = chosen on the lists that teach it
    smooth: Amount | None = None  # of differences between neighbouring buckets; null = as l2
    fit_on: Literal["train", "validation", "both"] = "both"  # lists whose targets are known


# ------------------------------------------------------------------------------ language and traces


class PromptConfig(Section):
    """Template and tokenizer (prompt.*)."""

    template: Literal["compact", "gr2", "brief"] = "compact"  # see docs/templates.md
    history: Positive = 8  # most recent items shown
    text_vocab: Annotated[int, Field(ge=256, le=65_536)] = 512  # BPE size when trained here
    cites: Annotated[int, Field(ge=1, le=8)] = 3  # pieces of evidence cited per candidate, at most
    strengths: Annotated[int, Field(ge=2, le=64)] = 16  # levels of the verdict on a candidate
    sparse: bool = False  # no token where a field counts none, one of its own where it is missing
    answer: Answering = "written"  # what is trained: strengths, or the permutation after them too


class LlmConfig(Section):
    """An OpenAI-compatible endpoint (traces.llm.*)."""

    base_url: str = "http://127.0.0.1:8000/v1"  # where it is served
    model: str = "default"  # its name there
    api_key_env: str = "OPENAI_API_KEY"  # name of the environment variable that holds the key
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.8  # of its samples
    n: Positive = 4  # samples per prompt at most; the first accepted one ends it
    wave: Positive = 1  # samples asked per call; more saves prompt tokens, fewer saves answers
    max_tokens: Positive = 1024  # of an answer
    concurrency: Positive = 8  # calls under way at once
    retries: Count = 6  # of a call, later and later
    timeout_s: Rate = 60.0  # per try; all tries of a question share (retries + 1) times as much
    knowledge_priming: bool = True  # also tells how people buy
    price_in: Amount = 0.0  # per million prompt tokens, for the report
    price_out: Amount = 0.0  # per million completion tokens


class TracesConfig(Section):
    """Teacher traces (traces.*)."""

    teacher: Literal["evidence", "llm"] = "evidence"  # llm: an endpoint writes them
    tutor: Literal["scorer", "trees", "both"] = "scorer"  # whose ranking: evidence.scorer's, trees'
    # or the mean of scorecard and trees, which few lists are taught best by
    train_weight: Amount | None = None  # trees: of a training list; null = .5, of own lists 1
    mode: Literal["plain", "targeted", "rejection"] = "plain"  # the last two know the target
    attempts: Positive = 8  # rejection: orders sampled per list
    noise: Amount = 1.0  # rejection: scale of the Gumbel noise
    max_lists: Count = 0  # 0 = all
    llm: LlmConfig = Field(default_factory=LlmConfig)


class ModelConfig(Section):
    """The backbone: a checkpoint directory (docs/bases.md) or dimensions (model.*)."""

    base: str | None = None  # directory of a Qwen3-, Qwen2- or Llama-family checkpoint
    dim: Positive = 128  # width
    layers: Positive = 4  # decoder layers
    heads: Positive = 4  # query heads
    kv_heads: Positive = 2  # key and value heads
    head_dim: Positive = 32  # per head
    ffn: Positive = 512  # feed-forward width
    rope_theta: Rate = 10_000.0  # base of the rotary embedding
    pad_vocab_to: Positive = 64  # rows of the vocabulary are a multiple of this


# ------------------------------------------------------------------------------- decode and report


class DecodeConfig(Section):
    """The recommended way to decode the final model (decode.*); requests may change most of it."""

    decoder: Decoder = "block"  # token by token, blocks in parallel, or drafts that are verified
    accept: Literal["threshold", "static", "entropy"] = "threshold"  # what a step commits
    threshold: Share = 0.2  # tau
    per_step: Annotated[int, Field(ge=1, le=256)] = 8  # static accept: positions a step
    entropy_bound: Annotated[float, Field(gt=0.0, le=100.0)] = 0.3  # entropy: of a step
    rule: Rule = "grammar"  # grammar: held to the template; raw: to nothing
    answer: Answering = "said"  # read from the strengths, or the permutation that is written
    views: Annotated[int, Field(ge=1, le=16)] = 1  # shuffled presentations, strengths averaged
    clean_kv: Literal["causal", "block_causal"] = "causal"  # attention of committed blocks
    canvas: Annotated[int, Field(ge=1, le=256)] = 64  # verify: positions looked ahead
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 0.0  # 0 = greedy
    max_tokens: Annotated[int, Field(ge=1, le=4096)] | None = None  # null = the template's most
    repair: Literal["repair", "floor"] = "repair"  # of a written answer that is none


class EvaluateConfig(Section):
    """Evaluation and report (evaluate.*)."""

    bootstrap: Positive = 10_000  # resamples behind every interval
    batch: Positive = 64  # lists at once
    users: Literal["hit", "all"] = "hit"  # which test lists are decoded; misses count 0 anyway
    max_users: Count = 0  # at most this many of them; 0 = no limit
    speed_lists: Positive = 8  # lists timed per decoder
    rounds: Positive = 3  # timing rounds, decoders interleaved
    thresholds: list[float] = [1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]  # of tau
    frontier_lists: Positive = 200  # hit lists decoded per threshold
    lengths: list[Positive] = [64, 128, 256, 512, 1024]  # output tokens, for throughput
    list_lengths: list[Positive] = [*range(1, 21), 25, 40, 100]  # candidates, for the probes
    views: list[Positive] = [1, 2, 3, 5]  # presentations averaged, for the probes


class Recipe(Section):
    """Everything one run depends on."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # runs/<name>
    seed: Count = 0  # every random draw is a function of it
    threads: Count = 0  # of torch, and of linear algebra; 0 = their own choice
    start: str | None = (
        None  # bundle whose vocabulary, semantic IDs and weights training starts from
    )
    data: DataConfig = Field(default_factory=DataConfig)
    items: ItemsConfig = Field(default_factory=ItemsConfig)
    retriever: RetrieverConfig = Field(default_factory=RetrieverConfig)
    lists: ListsConfig = Field(default_factory=ListsConfig)
    candidates: CandidatesConfig = Field(default_factory=CandidatesConfig)
    evidence: EvidenceConfig = Field(default_factory=EvidenceConfig)
    prompt: PromptConfig = Field(default_factory=PromptConfig)
    traces: TracesConfig = Field(default_factory=TracesConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    midtrain: MidtrainConfig = Field(default_factory=MidtrainConfig)
    sft: SftConfig = Field(default_factory=SftConfig)
    rl: RlConfig = Field(default_factory=RlConfig)
    direct_rl: RlConfig = Field(default_factory=RlConfig)
    convert: ConvertConfig = Field(default_factory=ConvertConfig)
    distill: DistillConfig = Field(default_factory=DistillConfig)
    cft: CftConfig = Field(default_factory=CftConfig)
    opd: OpdConfig = Field(default_factory=OpdConfig)
    block_rl: BlockRlConfig = Field(default_factory=BlockRlConfig)
    cft_rl: BlockRlConfig = Field(default_factory=BlockRlConfig)
    decode: DecodeConfig = Field(default_factory=DecodeConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)

    @model_validator(mode="before")
    @classmethod
    def _own_lists(cls, values: object) -> object:
        return with_own_lists(values) if isinstance(values, dict) else values
