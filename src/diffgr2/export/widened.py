"""A model with rows that no softmax sees: for engines that fix the mask id and the vocabulary.

Contract: `padded` gives a checkpoint `rows` rows of vocabulary, moves the mask token's row to
`mask_id`, and returns tensors whose logits are the old ones to rounding, except that the mask and
every new row get one so negative that their share of any softmax is exactly zero in floating point.

A head without a bias cannot do that with rows alone: zero rows have logit 0, which takes mass. So
the model gets WIDTH more places per hidden vector, one of which holds a constant c. Nothing reads
it (the norms of the layers weigh it with 0) and nothing writes it (no projection has it as output)
but the last norm, which lifts it by LIFT / c, and the silent rows of the head, which subtract it.
A root mean square over more places is smaller: the stream is scaled by √(new / old), norm weights
by its inverse, and every value is as before; c² is below the rounding of epsilon, so it is unseen.
Not here: who needs that (`sdar`).
"""

import math
from typing import Any

import torch
from torch import Tensor

EMBEDDING, HEAD, LAST_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
WIDTH = 64
"""Hidden sizes stay multiples of it, which kernels want."""

LIFT = 1e8
"""A silent logit is −LIFT / r, where r is the root mean square of the last hidden vector."""

WRITES = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
READS = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")


def width_of(hidden: int) -> int:
    """The new hidden size: at least one place more.

    >>> width_of(128), width_of(100)
    (192, 128)
    """
    return (hidden // WIDTH + 1) * WIDTH


def constant_of(width: int, epsilon: float) -> float:
    """A power of two whose square, in the mean over all places, is lost beside epsilon."""
    return 2.0 ** math.floor(math.log2(math.sqrt(width * epsilon) * 2.0**-13))


def untied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With a head of its own."""
    return {**tensors, HEAD: tensors.get(HEAD, tensors[EMBEDDING]).clone()}


def padded(
    tensors: dict[str, Tensor], config: dict[str, Any], mask_at: int, mask_id: int, rows: int
) -> tuple[dict[str, Tensor], int]:
    """(tensors, hidden size); `mask_at` is where the mask stood, and is silent afterwards."""
    tensors, hidden = untied(tensors), int(config["hidden_size"])
    width = width_of(hidden)
    scale = math.sqrt(width / hidden)
    constant = constant_of(width, float(config["rms_norm_eps"]))
    made = {name: _wider(name, tensor, width, scale) for name, tensor in tensors.items()}
    made[LAST_NORM][hidden] = 2.0 ** math.ceil(math.log2(LIFT / constant))
    for name, silent in ((EMBEDDING, 0.0), (HEAD, -1.0)):
        old = made[name]
        new = torch.zeros(rows, width, dtype=old.dtype)
        new[: len(old)] = old
        if mask_at != mask_id:
            new[mask_id], new[mask_at] = old[mask_at], 0.0
        if name == HEAD:
            new[len(old) :, hidden] = silent
            for row in {mask_at, mask_id}:
                new[row] = 0.0
                new[row, hidden] = silent
        else:
            new[:, hidden] = constant
        made[name] = new
    return made, width


def _wider(name: str, tensor: Tensor, width: int, scale: float) -> Tensor:
    """One tensor with room for the new places, which are zero."""
    exact = tensor.double()
    if name == EMBEDDING:
        exact = exact * scale
    elif name.endswith(WRITES):
        more = torch.zeros(width - len(tensor), tensor.shape[1], dtype=exact.dtype)
        return torch.cat([exact * scale, more]).to(tensor.dtype)
    elif name.endswith(NORMS) or name == LAST_NORM:
        return _longer(exact / scale, width).to(tensor.dtype)
    elif not (name.endswith(READS) or name == HEAD):
        return tensor  # norms of queries and keys have a size of their own
    return _longer(exact, width).to(tensor.dtype)


def _longer(tensor: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]))
