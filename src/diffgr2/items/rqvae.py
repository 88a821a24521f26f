"""RQ-VAE: an MLP auto-encoder with a residual quantizer in its bottleneck.

Contract: `fit_rqvae(vectors_ID, pairs_P2, config, seed)` trains and returns a `Quantizer` in plain
arrays. Codebooks start from k-means on each level's residuals, follow the data by exponential
moving averages (they get no gradient), and a code unused for `dead_after` batches moves to one of
the worst served residuals. The encoder learns through the straight-through estimate from
reconstruction + commitment + (optionally) a contrastive loss that pulls co-purchased items
together. Same input, seed and threads: same bits. Not here: uniqueness (`items.uniqueness`).
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffgr2.config import ItemsConfig
from diffgr2.errors import NonFiniteError
from diffgr2.items.quantize import Quantizer, fit_codebooks
from diffgr2.streams import generator, permutation, torch_generator

INIT_ROWS_PER_CODE = 64  # behind the first k-means, at least one batch
TEMPERATURE = 0.1  # of the contrastive loss, on cosine similarities
MIN_COUNT = 1e-4  # moving count under which a code's mean says nothing and the code stays put


class Codebooks:
    """The moving codebooks of all levels; changed in place by `update`."""

    def __init__(self, codes_LCE: Tensor) -> None:
        self.codes_LCE, self.sum_LCE = codes_LCE, codes_LCE.clone()
        self.count_LC = torch.ones(codes_LCE.shape[:2])
        self.idle_LC = torch.zeros(codes_LCE.shape[:2])  # batches since a code was last used

    def assign(self, latents_BE: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and the residual in front of each level."""
        rest_BE = latents_BE.detach()
        codes, rests = [], []
        for book_CE in self.codes_LCE:
            rests.append(rest_BE)
            gap_BC = book_CE.square().sum(1) - 2.0 * rest_BE @ book_CE.T
            codes.append(gap_BC.argmin(1))
            rest_BE = rest_BE - book_CE[codes[-1]]
        return torch.stack(codes, 1), torch.stack(rests, 1)

    def update(self, codes_BL: Tensor, rests_BLE: Tensor, ema: float, dead_after: int) -> None:
        """One moving-average step; codes idle for `dead_after` batches move (0: never)."""
        levels = zip(self.codes_LCE, self.count_LC, self.sum_LCE, self.idle_LC, strict=True)
        for level, (book_CE, count_C, sum_CE, idle_C) in enumerate(levels):
            code_B, rest_BE = codes_BL[:, level], rests_BLE[:, level]
            hot_BC = F.one_hot(code_B, len(book_CE)).float()
            used_C = hot_BC.sum(0)
            count_C.mul_(ema).add_(used_C, alpha=1.0 - ema)
            sum_CE.mul_(ema).add_(hot_BC.T @ rest_BE, alpha=1.0 - ema)
            live_C = count_C > MIN_COUNT
            mean_CE = sum_CE / count_C.clamp_min(MIN_COUNT)[:, None]
            book_CE.copy_(torch.where(live_C[:, None], mean_CE, book_CE))
            idle_C.copy_(torch.where(used_C > 0, 0.0, idle_C + 1.0))
            if not dead_after:
                continue
            dead_D = torch.nonzero(idle_C >= dead_after).flatten()[: len(rest_BE)]
            error_B = (rest_BE - book_CE[code_B]).square().sum(1)
            hard_B = torch.argsort(error_B, descending=True, stable=True)
            book_CE[dead_D] = sum_CE[dead_D] = rest_BE[hard_B[: len(dead_D)]]
            count_C[dead_D], idle_C[dead_D] = 1.0, 0.0


def init_weights(sizes: dict[str, list[int]], seed: int) -> dict[str, Tensor]:
    """He-initialised layers `part.i.weight` / `part.i.bias`."""
    weights: dict[str, Tensor] = {}
    for part, dims in sizes.items():
        for layer, (fan_in, fan_out) in enumerate(pairwise(dims)):
            rng = torch_generator(seed, "items", "rqvae", "init", part, layer)
            weight_OD = torch.randn(fan_out, fan_in, generator=rng) * (2.0 / fan_in) ** 0.5
            weights[f"{part}.{layer}.weight"] = weight_OD.requires_grad_()
            weights[f"{part}.{layer}.bias"] = torch.zeros(fan_out).requires_grad_()
    return weights


def mlp(weights: dict[str, Tensor], part: str, x_BD: Tensor) -> Tensor:
    """ReLU between layers, none after the last (`Quantizer.mlp` is the same in NumPy)."""
    depth = sum(name.startswith(part) for name in weights) // 2
    for layer in range(depth):
        x_BD = F.linear(x_BD, weights[f"{part}.{layer}.weight"], weights[f"{part}.{layer}.bias"])
        if layer < depth - 1:
            x_BD = torch.relu(x_BD)
    return x_BD


def contrastive(latents_PE: Tensor, others_PE: Tensor, pairs_P2: Tensor) -> Tensor:
    """Each pair against the other pairs' second items of the batch (symmetric).

    Entries whose item equals the pair's own are no negatives and drop out.
    """
    similar_PP = F.normalize(latents_PE, dim=1) @ F.normalize(others_PE, dim=1).T / TEMPERATURE
    left_P, right_P = pairs_P2[:, 0], pairs_P2[:, 1]
    same_PP = (right_P[:, None] == right_P) | (left_P[:, None] == left_P)
    same_PP |= (left_P[:, None] == right_P) | (right_P[:, None] == left_P)
    same_PP.fill_diagonal_(False)
    similar_PP = similar_PP.masked_fill(same_PP, float("-inf"))
    goal_P = torch.arange(len(pairs_P2))
    return (F.cross_entropy(similar_PP, goal_P) + F.cross_entropy(similar_PP.T, goal_P)) / 2


def _loss(
    weights: dict[str, Tensor], x_BD: Tensor, books: Codebooks, config: ItemsConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction + commitment, and what the codebooks learn from."""
    latents_BE = mlp(weights, "encoder", x_BD)
    codes_BL, rests_BLE = books.assign(latents_BE)
    chosen_BLE = books.codes_LCE[torch.arange(codes_BL.shape[1]), codes_BL]
    through_BE = latents_BE + (chosen_BLE.sum(1) - latents_BE).detach()
    loss = F.mse_loss(mlp(weights, "decoder", through_BE), x_BD)
    # Level l is committed to what stands after it: the latent minus the codes up to l.
    partial_BLE = chosen_BLE.cumsum(1)
    gap = F.mse_loss(latents_BE[:, None].expand_as(partial_BLE), partial_BLE)
    return loss + config.commitment * gap, codes_BL, rests_BLE


def n_epochs(n_items: int, config: ItemsConfig) -> int:
    """`epochs`, or as many as it takes to make `min_steps` batches; 0 stays 0."""
    batches = -(-n_items // config.batch)
    return max(config.epochs, -(-config.min_steps // batches)) if config.epochs else 0


def fit_rqvae(
    vectors_ID: np.ndarray,
    pairs_P2: np.ndarray | None,
    config: ItemsConfig,
    seed: int,
    report: Callable[[int, float], None] = lambda epoch, loss: None,
) -> Quantizer:
    """Train on all items; `report(epoch, mean loss)` is called after every epoch."""
    n_items, dim = vectors_ID.shape
    sizes = [dim, config.hidden_dim, config.latent_dim]
    weights = init_weights({"encoder": sizes, "decoder": sizes[::-1]}, seed)
    # Unit rows have entries of about 1/sqrt(dim); the network sees them at unit scale.
    x_ID = torch.from_numpy(vectors_ID * np.float32(dim**0.5))
    count = max(config.batch, INIT_ROWS_PER_CODE * config.codes)
    first = permutation(n_items, seed, "items", "rqvae", "start")[:count]
    with torch.no_grad():
        latents_IE = mlp(weights, "encoder", x_ID[first]).numpy()
    codes_LCE = fit_codebooks(latents_IE, config.levels, config.codes, seed, "items", "rqvae")
    books = Codebooks(torch.from_numpy(codes_LCE))
    optimizer = torch.optim.Adam(weights.values(), lr=config.lr)
    step = 0
    for epoch in range(n_epochs(n_items, config)):
        order = torch.from_numpy(permutation(n_items, seed, "items", "rqvae", "epoch", epoch))
        total = 0.0
        for batch in order.split(config.batch):
            loss, codes_BL, rests_BLE = _loss(weights, x_ID[batch], books, config)
            if pairs_P2 is not None and len(pairs_P2):
                rng = generator(seed, "items", "rqvae", "pairs", step)
                drawn_P = rng.integers(len(pairs_P2), size=min(config.batch, 512))
                drawn_P2 = torch.from_numpy(pairs_P2[drawn_P]).long()
                sides = [mlp(weights, "encoder", x_ID[drawn_P2[:, side]]) for side in (0, 1)]
                loss = loss + config.copurchase_weight * contrastive(*sides, drawn_P2)
            if not torch.isfinite(loss):
                raise NonFiniteError(f"items: RQ-VAE loss is {loss.item()} at step {step}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                books.update(codes_BL, rests_BLE, config.ema, config.dead_after)
            total += loss.item() * len(batch)
            step += 1
        report(epoch, total / n_items)
    # The network's input scale is folded into the first layer, so that a Quantizer takes vectors.
    plain = {name: value.detach().numpy() for name, value in weights.items()}
    plain["encoder.0.weight"] = plain["encoder.0.weight"] * np.float32(dim**0.5)
    for name in ("decoder.1.weight", "decoder.1.bias"):
        plain[name] = plain[name] / np.float32(dim**0.5)
    return Quantizer(books.codes_LCE.numpy(), plain)
