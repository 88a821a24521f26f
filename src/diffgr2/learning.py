"""The sections of the stages that learn, from mid-training to RL on the diffusion policy.

Contract: defaults are the shipped recipes' (what was tuned there), so that a recipe may leave all
of this out. `steps: null` (or `auto`) is chosen from the data when the stage starts, and said. Not
here: how many that are (`stages.effort`), the other sections (`config`).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field

from diffgr2.choices import Answering, Rule
from diffgr2.section import Amount, Count, Positive, Rate, Section, Share

Steps = Annotated[Count | None, BeforeValidator(lambda value: None if value == "auto" else value)]


Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

TARGETS: tuple[Target, ...] = get_args(Target)


class AdapterConfig(Section):
    """A low-rank adapter: W x + alpha / rank * B A x (convert.adapter.*, sft.lora.*, …)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16  # rows of A
    alpha: Rate = 32.0  # scale, over the rank
    targets: list[Target] = Field(default_factory=lambda: [*TARGETS], min_length=1)  # matrices


class TrainConfig(Section):
    """What the one training loop needs; every training stage extends it."""

    SILENT = ("lora", "weights", "checkpoint_activations", "attention")

    steps: Steps = None  # null = chosen from the data; 0 = the stage passes its input through
    rows: Positive = 16  # rows per optimizer step, over all processes
    micro_rows: Positive = 16  # rows per forward
    lr: Rate = 1e-3  # peak learning rate
    final_lr: Share = 0.1  # cosine ends at this share of lr
    warmup: Count = 50  # steps
    weight_decay: Amount = 0.01  # of matrices
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for matrices in layers (one process)
    muon_lr: Rate = 6e-3  # its peak learning rate, in AdamW's units
    clip: Rate = 1.0  # of the gradient's norm
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16 = autocast
    weights: Literal["fp32", "bf16"] = "fp32"  # bf16: computed with, beside an fp32 master
    checkpoint_activations: bool = False  # layers are computed again on the way back: less memory
    attention: Literal["auto", "dense", "flex"] = "auto"  # flex: rows joined; auto = on able GPUs
    checkpoint_every: Positive = 200  # steps
    keep: Positive = 2  # checkpoints kept
    lora: AdapterConfig | None = None  # trains only such an adapter, merged when the stage ends

    @property
    def fixed(self) -> int:
        """The steps, once they are chosen."""
        assert self.steps is not None, "steps are chosen where a stage starts"
        return self.steps


class ShowConfig(Section):
    """How a stage shows the lists that it learns from."""

    shuffle: Share = 0.3  # share of lists whose candidates are shuffled (position bias)
    vary: Share = 0.7  # share of lists of another length, from 2 to candidates.k_max
    hide: Share = 0.15  # share of lists that lack some of their evidence


class MidtrainConfig(TrainConfig):
    """Item alignment (midtrain.*)."""

    precision: Literal["fp32", "bf16"] = "bf16"  # weights and optimizer stay fp32
    sequential: Share = 0.6  # share: the next item; the four are normalised
    caption: Share = 0.15  # share: an item's words from its ID
    persona: Share = 0.2  # share: a summary of a history
    general: Share = 0.05  # share: plain text


class SftConfig(TrainConfig, ShowConfig):
    """Supervised fine-tuning on traces (sft.*)."""

    lr: Rate = 2e-3
    optimizer: Literal["adamw", "muon"] = "muon"
    muon_lr: Rate = 4e-3
    precision: Literal["fp32", "bf16"] = "bf16"
    reasoning_weight: Amount = 0.5  # lambda_r, below the answer's
    answer_weight: Rate = 3.0  # lambda_o
    soft_weight: Amount = 0.0  # of the teacher's ranking of a list, by its strengths; 0 = none
    level_weight: Amount = 0.3  # of each level by itself, beside the ranking
    direct: Share = 0.15  # share of rows that answer without reasoning


class RlConfig(TrainConfig, ShowConfig):
    """DAPO on the re-ranking reward (rl.*, direct_rl.*); the diffusion policy extends it."""

    lr: Rate = 3e-5
    warmup: Count = 5
    checkpoint_every: Positive = 5
    group: Annotated[int, Field(ge=2)] = 8  # G
    prompts: Positive = 8  # groups per step
    answer: Answering = "said"  # the read-out that is rewarded
    rule: Rule = "grammar"  # of rollouts: held to the template, or to nothing
    temperature: Rate = 1.0  # of rollouts
    clip_low: Rate = 0.2  # epsilon below 1
    clip_high: Rate = 0.28  # epsilon above 1
    reward: Literal["rank", "ndcg"] | None = None  # what is raised: the best outcome's rank, or the
    # whole list's NDCG with gains; null = ndcg where the lists are a shop's own, else rank
    alpha: Amount = 0.2  # weight of the conditional format reward
    refill: Count = 1  # extra rollout rounds per step to replace groups without variance
    epochs: Positive = 1  # optimizer steps per rollout batch
    overlong_cache: Count = 16  # tokens before the limit over which the penalty grows


# --------------------------------------------------------------------------------- block diffusion


class ConvertConfig(Section):
    """AR to block diffusion: same tensors, new contract (convert.*)."""

    SILENT: ClassVar[tuple[str, ...]] = ("adapter",)

    block_size: Positive = 64  # tokens per block
    alignment: Literal["same_position", "shifted"] = "same_position"  # its own token
    clean_attention: Literal["either", "causal", "block_causal"] = "either"  # either: per row
    origin: Literal["document", "response"] = "response"  # where blocks are counted from
    adapter: AdapterConfig | None = None  # diffusion lives in it, active at masks only; null = in
    # all weights


class DistillConfig(ShowConfig):
    """The AR teacher's own outputs for conversion fine-tuning (distill.*)."""

    lists: Count = 4_000  # training and validation lists decoded; 0 = all
    direct: Share = 0.15  # share answered without reasoning
    keep: Literal["valid", "all"] = "valid"  # outputs that train; all only for dry runs
    batch: Positive = 64  # lists decoded at once


class CftConfig(TrainConfig):
    """Conversion fine-tuning (cft.*)."""

    rows: Positive = 12
    micro_rows: Positive = 12
    optimizer: Literal["adamw", "muon"] = "muon"
    muon_lr: Rate = 4e-3
    precision: Literal["fp32", "bf16"] = "bf16"
    checkpoint_every: Positive = 100
    reasoning_weight: Amount = 1.0  # of masked positions of the reasoning
    answer_weight: Rate = 3.0  # of strengths and permutation
    ar_weight: Amount = 0.5  # AR loss on the clean half
    fully_masked: Share = 0.2  # share of blocks masked entirely
    draws: Positive = 1  # noise draws per row, which share its clean half
    complementary: bool = True  # each draw twice, masks m and 1-m
    causal_share: Share = 0.5  # share of rows with causal clean attention, if the contract has both
    random_origin: bool = False  # block boundaries drawn per row, not where decoding begins
    free: Share = 0.3  # share of rows as `rule: raw` meets them: nothing given, padding to the end
    displaced: Share = 0.0  # share of those whose permutation shows one candidate out of its order
    settled: Share = 0.0  # share of those whose reasoning stands while the permutation is masked
    hesitate: Share = 0.0  # of their permutation's targets, as far as strengths are masked
    loss_scale: Literal["uniform", "inverse_t"] = "uniform"  # by 1 / share masked
    sharpen: Amount = 0.0  # entropy term on correct predictions


class OpdConfig(TrainConfig):
    """On-policy distillation (opd.*)."""

    lr: Rate = 2e-5
    warmup: Count = 5
    checkpoint_every: Positive = 10
    teacher: Literal["ar", "self_careful"] = "ar"  # or the student, careful
    divergence: Literal["forward", "reverse", "jsd"] = "forward"  # forward = teacher to student
    positions: Literal["frontier", "all"] = "frontier"  # all: the trap of a causal teacher
    rollouts: Positive = 1  # per prompt
    temperature: Amount = 0.0  # of the student's rollouts; hotter ones blur the targets
    teacher_temperature: Rate = 0.25  # below 1: nearer to its greedy choice; strengths keep 1
    threshold: Share = 0.2  # tau of rollouts
    rule: Rule = "grammar"  # of rollouts: held to the template, or to nothing
    answer: Answering = "said"  # what is rolled out: to the last strength, or the permutation too
    ar_weight: Amount = 0.2  # keeps the AR head


class BlockRlConfig(RlConfig):
    """RL on the diffusion policy (block_rl.*)."""

    lr: Rate = 2e-5
    warmup: Count = 2
    checkpoint_every: Positive = 5
    prompts: Positive = 4
    micro_rows: Positive = 8
    threshold: Share = 0.2  # tau of rollouts
    clip_high: Rate = 0.2  # symmetric, as in the paper
    objective: Literal["policy", "preference"] = "policy"  # by replay, or between best and worst
    beta: Rate = 0.1  # preference: how far from where it began a bound may move
    draws: Annotated[int, Field(ge=1, le=64)] = 4  # preference: masks per bound
    noise: Literal["antithetic", "shared", "plain"] = "antithetic"  # preference: whose masks
