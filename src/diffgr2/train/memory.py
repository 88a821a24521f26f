"""How much memory a training step takes, in arithmetic: what `diffgr2 plan` prints.

Contract: `memory(sizes, how, shape)` says in bytes, for one of `gpus` processes, what stands all
the time (weights, gradients, optimizer) and what comes and goes (activations, logits), for the
stock modules of `model.family` as `train` runs them. Tests hold its peak against torch's own count
of every allocation of a step on a CPU, within 15 %. Not here: fragmentation and the driver's share
(`stages.sizing` leaves room for them), rows and lengths (`stages.sizing`), any tensor.

What stands. A trained weight has an fp32 master, an fp32 gradient and two fp32 moments (Muon: one
for matrices in layers): 16 bytes. One process that computes in bf16 beside the master adds 2. A
frozen weight is 4 bytes, or 2 with `weights: bf16`, and nothing else; with an adapter all weights
of the base are frozen, and the adapter's are trained ones besides. All of it is divided by the
number of processes; what FSDP2 gathers to compute with is added: the root's tables, two layers
(one at work, one on its way), and the whole gradient of one of each. Rollouts, when nothing is
learned, read a whole copy of a sharded model in the precision that computes, gathered layer by
layer into the matrices that are multiplied with (`train.lending`); one process reads the weights
that stand. The keys and values are of the rollouts that one process decodes at once.

What comes and goes. Autograd keeps, per token and layer, what the backward of each operation reads;
d is the width, q and k the widths of all query and of all key heads, f of the feed-forward:

    operation            fp32           bf16 autocast        bf16 weights
    two norms: input     2 · 4d         2 · 4d               2 · 4d, a copy in fp32
      normalised         2 · 4d         2 · 4d               2 · 2d
      what linears read  2 · 4d         2d · (3 + 2) casts   2 · 2d
    head norms: input    4(q + k)       4(q + k)             4(q + k)
      normalised         4(q + k)       2(q + k)             2(q + k)
    attention q, k, v    4(q + 2k)      2(q + 2k)            2(q + 2k)
      its output         4q             2q                   2q
    gate, up, silu, ·    4 · 4f         4 · 2f               4 · 2f

plus an fp32 number per norm and head. A norm whose weight is frozen does not keep what it
normalised; a matrix with an adapter keeps what it reads all the same, and a number per rank. Dense
masks make key heads as many as query heads first, and each layer keeps its own copy of the mask as
numbers. Under autocast each matrix is cast once per step, 2 bytes a weight, kept until its
backward; a sharded model gathers the cast ones instead. With recomputation a layer keeps its input
alone, and one layer's tensors at a time come back, the last one's after the logits have gone.
Logits are
`LOGITS` fp32 tensors of scored places times vocabulary where they are most: the scores, their
logarithms, and the gradients of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffgr2.model.family import Sizes

LOGITS = 4
"""Tensors [scored, vocabulary] in fp32 that are alive at once, in losses on one distribution."""


@dataclass(frozen=True)
class How:
    """How a stage trains: the recipe's keys, and over how many processes."""

    precision: Literal["fp32", "bf16"] = "fp32"
    weights: Literal["fp32", "bf16"] = "fp32"
    recompute: bool = False
    optimizer: Literal["adamw", "muon"] = "adamw"
    dense: bool = False  # attention by masks over padded rows
    gpus: int = 1
    trained: int | None = None  # weights of the base that are trained; None = all of them
    added: int = 0  # an adapter's weights, trained
    ranks: int = 0  # of all its matrices in a layer, summed
    everywhere: bool = False  # whether that adapter has no gate

    @property
    def half(self) -> bool:
        """Whether products are computed in bf16."""
        return "bf16" in (self.precision, self.weights)


@dataclass(frozen=True)
class Shape:
    """One forward of training, and the frozen models and rollouts beside it."""

    tokens: int
    scored: int  # places with logits
    micros: int = 1  # forwards per step of one process
    pairs: int = 0  # of a dense mask: rows times tokens times tokens
    logits: float = LOGITS
    teacher: bool = False  # a frozen model of the same size, whole in every process
    cached: int = 0  # tokens in the cache of rollouts; 0 = none


@dataclass(frozen=True)
class Memory:
    """Bytes in one process."""

    weights: int  # masters, working copies, frozen ones
    gradients: int
    optimizer: int
    gathered: int  # by FSDP2, or cast by autocast
    activations: int
    logits: int
    frozen: int  # a teacher
    rollouts: int  # what they hold besides the standing weights, and keys and values
    again: int  # of the activations: what comes back of one layer, when the logits are gone
    micros: int

    @property
    def standing(self) -> int:
        return self.weights + self.optimizer + self.frozen

    @property
    def peak(self) -> int:
        """A step first rolls out, then learns."""
        forward = self.gathered + self.activations + self.logits - min(self.again, self.logits)
        # What a first backward needs less of activations it needs more of gradients.
        learning = max(forward, self.gradients) if self.micros == 1 else forward + self.gradients
        return self.standing + max(learning, self.rollouts)


def layer_weights(sizes: Sizes) -> tuple[int, int]:
    """(numbers in the matrices, in all) of one layer."""
    q, k, d = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim, sizes.hidden
    matrices = d * (2 * q + 2 * k + 3 * sizes.ffn)
    biases = (q + 2 * k) * sizes.family.biases
    return matrices, matrices + 2 * d + 2 * sizes.head_dim * sizes.family.norms + biases


def parameters(sizes: Sizes) -> int:
    """Numbers in a model."""
    tables = sizes.vocab * sizes.hidden * (1 if sizes.tied else 2)
    return tables + sizes.layers * layer_weights(sizes)[1] + sizes.hidden


def layer_bytes(sizes: Sizes, how: How) -> int:
    """What one token leaves in one layer for the way back."""
    q, k = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    d, f, norms = sizes.hidden, sizes.ffn, sizes.family.norms
    small = 4 * (2 + sizes.heads + norms * (sizes.heads + sizes.kv_heads))
    keys = q if how.dense else k  # as attention reads them
    if how.weights == "bf16":
        wide, unit, normalised = 16 * d, 2, 4 * d
    elif how.precision == "bf16":
        wide, unit, normalised = 26 * d, 2, 8 * d
    else:
        wide, unit, normalised = 24 * d, 4, 8 * d
    heads = norms * (4 + unit) * (q + k)
    if how.trained == 0:  # norms whose weights are frozen
        wide, heads = wide - normalised, norms * 4 * (q + k)
    low = unit * how.ranks
    return wide + heads + unit * (2 * q + 2 * keys) + 4 * unit * f + small + low


def activations(sizes: Sizes, how: How, shape: Shape) -> int:
    """What a forward leaves for the way back, its logits apart."""
    d, each = sizes.hidden, layer_bytes(sizes, how)
    stream = 2 if how.weights == "bf16" else 4
    layers = sizes.layers * each
    if how.recompute:
        layers = sizes.layers * stream * d + each
    end = (6 if how.weights == "bf16" else 8) * d  # the last norm
    masks = (1 if how.recompute else sizes.layers) * shape.pairs * (2 if how.half else 4)
    return shape.tokens * (layers + end) + masks * how.dense


def memory(sizes: Sizes, how: How, shape: Shape) -> Memory:
    """See the module's docstring."""
    whole = parameters(sizes)
    own_trained = whole if how.trained is None else how.trained
    frozen, trained, alone = whole - own_trained, own_trained + how.added, how.gpus == 1
    matrices, layer = layer_weights(sizes)
    own = 2 if how.weights == "bf16" else 4  # bytes of a weight that is not trained
    kept = 4 * trained + own * frozen
    copies = 2 * trained if alone and how.weights == "bf16" else 0
    one_moment = sizes.layers * matrices if how.optimizer == "muon" else 0
    if one_moment:  # an adapter's factors lie in layers, too
        one_moment = min(one_moment, own_trained) + how.added
    moments = 8 * trained - 4 * one_moment
    unit = 2 if how.half else 4
    gathered = 0
    if not alone:
        tables = whole - sizes.layers * layer
        gathered = unit * (2 * layer + tables) + unit * min(layer + tables, trained)
    elif how.precision == "bf16" and how.weights == "fp32":
        gathered = 2 * (sizes.layers * matrices + sizes.vocab * sizes.hidden)
    cache = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * own * shape.cached
    return Memory(
        weights=-(-kept // how.gpus) + copies,
        gradients=-(-4 * trained // how.gpus),
        optimizer=-(-moments // how.gpus),
        gathered=gathered,
        activations=activations(sizes, how, shape),
        logits=int(shape.logits * 4 * shape.scored * sizes.vocab),
        frozen=own * whole if shape.teacher else 0,
        rollouts=cache and _lent(sizes, how, own) + cache,
        again=shape.tokens * layer_bytes(sizes, how) if how.recompute else 0,
        micros=shape.micros,
    )


def _lent(sizes: Sizes, how: How, own: int) -> int:
    """Bytes of weights that rollouts read, where those that stand cannot be read as they lie."""
    whole, (matrices, layer) = parameters(sizes), layer_weights(sizes)
    if (
        how.gpus > 1
    ):  # one copy, made of shards; the last layer's parts are there twice for a moment
        return own * (whole + how.added + layer)
    if how.everywhere and how.weights == "fp32":  # an adapter is added to each matrix
        return own * sizes.layers * matrices
    return 0


def flops(sizes: Sizes, how: How, shape: Shape, context: float) -> float:
    """Arithmetic of one forward and its way back; `context` is what a token sees on average."""
    matrices, _ = layer_weights(sizes)
    seen = 4 * sizes.layers * sizes.heads * sizes.head_dim * context
    forward = shape.tokens * (2 * sizes.layers * matrices + seen)
    head = 2 * shape.scored * sizes.hidden * sizes.vocab
    whole = parameters(sizes)
    trained = 1.0 if how.trained is None else (how.trained + how.added) / whole
    back = 1.0 + trained  # through the activations, and to the weights that are trained
    again = 1.0 if how.recompute else 0.0
    return forward * (1.0 + back + again) + head * (1.0 + back) + shape.teacher * (forward + head)
