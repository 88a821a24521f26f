"""SASRec: a small causal transformer over item ids, trained with cross-entropy over all items.

Contract: `train(histories, ...)` fits on each user's train part and stops early on the validation
items' NDCG@10; `SasRec.score_all` rates the catalogue for arbitrary histories. Same seed, data and
threads give the same bits, also when training was cut off and continued from `work`. Only real
(non-padded) positions reach the item logits, and those are made, used and dropped chunk by chunk.
Not here: negative sampling, candidate lists (`lists`), other retrievers (`kinds`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn
from torch.nn import functional as F

from diffgr2.artifacts import load_arrays, read_json, replacing, write_json
from diffgr2.candidates.retrieval import bought, evaluate, padded_last, prefixes
from diffgr2.config import RetrieverConfig
from diffgr2.errors import NonFiniteError
from diffgr2.items.vectors import unit_rows
from diffgr2.progress import Progress
from diffgr2.streams import generator, key_of, permutation, torch_generator
from diffgr2.types import Histories

LOGIT_ROWS = 256  # positions whose logits over all items exist at one time
WATCHED_USERS = 8_192  # whose validation items decide the early stop (a random choice of more)
SORT_BATCHES = 16  # whose users are sorted by length together, so that little is padding


def dropped(x: Tensor, rate: float, source: np.random.Generator | None) -> Tensor:
    """Dropout from an explicit generator, in steps of 1/256; none without a generator."""
    level = min(round(rate * 256), 255)
    if source is None or level == 0:
        return x
    # Bytes are several times cheaper than one float or Bernoulli draw per element.
    noise = torch.frombuffer(bytearray(source.bytes(x.numel())), dtype=torch.uint8)
    keep = (noise >= level).view(x.shape)
    return x * keep * (256.0 / (256 - level))


class Block(nn.Module):
    """Pre-norm causal self-attention and a feed-forward layer."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm_attention, self.norm_ffn = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x_BTC: Tensor, source: np.random.Generator | None) -> Tensor:
        rows, length, dim = x_BTC.shape
        qkv = self.qkv(self.norm_attention(x_BTC)).view(rows, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        # Padding stands at the right, so the causal mask alone hides it from real positions.
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = self.out(mixed.transpose(1, 2).reshape(rows, length, dim))
        x_BTC = x_BTC + dropped(mixed, self.rate, source)
        hidden = self.down(F.gelu(self.up(self.norm_ffn(x_BTC))))
        return x_BTC + dropped(hidden, self.rate, source)


class SasRec(nn.Module):
    """Item and position embeddings, blocks, a final norm; logits by the tied item embeddings."""

    def __init__(self, n_items: int, config: RetrieverConfig, seed: int = 0) -> None:
        super().__init__()
        self.n_items, self.config = n_items, config
        self.items = nn.Embedding(n_items, config.dim)
        self.positions = nn.Embedding(config.max_len, config.dim)
        self.norm_in, self.norm_out = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, config.dropout) for _ in range(config.layers)
        )
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 2:
                    source = torch_generator(seed, "sasrec", "init", name)
                    parameter.normal_(0.0, 0.02, generator=source)
                elif name.endswith("bias"):
                    parameter.zero_()

    def forward(self, items_BT: Tensor, source: np.random.Generator | None = None) -> Tensor:
        """Hidden states of padded rows (padding at the right, any valid id)."""
        position_T = torch.arange(items_BT.shape[1])
        x_BTC = self.norm_in(self.items(items_BT) + self.positions(position_T))
        x_BTC = dropped(x_BTC, self.config.dropout, source)
        for block in self.blocks:
            x_BTC = block(x_BTC, source)
        return self.norm_out(x_BTC)

    @torch.no_grad()
    def score_all(self, queries: Histories) -> np.ndarray:
        """Logits of every item for every query, f32 (L, I); all 0 for an empty history."""
        length_L = np.minimum(queries.lengths_U, self.config.max_len)
        padded_LT = padded_last(queries, max(1, int(length_L.max(initial=1))), fill=0)
        state_LTC = self(torch.from_numpy(padded_LT).long())
        last_L = torch.from_numpy(np.maximum(length_L, 1) - 1)
        state_LC = state_LTC[torch.arange(len(last_L)), last_L]
        state_LC = state_LC * torch.from_numpy(length_L > 0)[:, None]
        return (state_LC @ self.items.weight.T).float().numpy()

    def save(self, directory: Path) -> None:
        """Write model.safetensors and config.json."""
        save_file(self.state_dict(), directory / "model.safetensors")
        about = {"n_items": self.n_items, **self.config.model_dump(mode="json")}
        write_json(directory / "config.json", about)

    @staticmethod
    def load(directory: Path) -> SasRec:
        """Read what `save` wrote."""
        about = read_json(directory / "config.json")
        model = SasRec(about.pop("n_items"), RetrieverConfig.model_validate(about))
        arrays = load_arrays(directory / "model.safetensors")
        model.load_state_dict({name: torch.tensor(array) for name, array in arrays.items()})
        return model.eval()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors."""
    return {name: t.clone() for name, t in model.state_dict().items()}


class FullCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies over all items; gradients are made in the forward pass.

    The N x I logits never exist as a whole and are computed once instead of twice.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden_NC: Tensor, weight_IC: Tensor, target_N: Tensor, bf16: bool
    ) -> Tensor:
        kind = torch.bfloat16 if bf16 else torch.float32
        weight = weight_IC.to(kind)
        grad_NC, grad_IC = torch.empty_like(hidden_NC), torch.zeros_like(weight_IC)
        loss = torch.zeros((), dtype=torch.float64)
        for begin in range(0, len(target_N), LOGIT_ROWS):
            rows = slice(begin, begin + LOGIT_ROWS)
            hidden, target = hidden_NC[rows].to(kind), target_N[rows]
            p_RI = torch.softmax(hidden @ weight.T, 1)
            own_R = p_RI.gather(1, target[:, None]).float()
            loss -= own_R.clamp_min(1e-30).log().double().sum()
            p_RI.scatter_(1, target[:, None], (own_R - 1.0).to(kind))
            grad_NC[rows] = (p_RI @ weight).float()
            if bf16:
                grad_IC += (p_RI.T @ hidden).float()
            else:
                grad_IC.addmm_(p_RI.T, hidden)
        ctx.save_for_backward(grad_NC, grad_IC)
        return loss.float()

    @staticmethod
    def backward(ctx: Any, scale: Tensor):  # type: ignore[override]
        grad_NC, grad_IC = ctx.saved_tensors
        return grad_NC * scale, grad_IC * scale, None, None


def epoch_batches(length_U: np.ndarray, rows: int, source: np.random.Generator) -> list[np.ndarray]:
    """Users in random batches of similar length, in random order."""
    order_U = source.permutation(np.flatnonzero(length_U >= 2))
    batches: list[np.ndarray] = []
    for begin in range(0, len(order_U), rows * SORT_BATCHES):
        group = order_U[begin : begin + rows * SORT_BATCHES]
        group = group[np.argsort(length_U[group], kind="stable")]
        batches += [group[at : at + rows] for at in range(0, len(group), rows)]
    return [batches[i] for i in source.permutation(len(batches))]


def train_epoch(
    model: SasRec, optimizer: torch.optim.Optimizer, train: Histories, epoch: int, seed: int
) -> float:
    """One pass over all users; returns the mean loss of its batches.

    A batch's loss is the mean cross-entropy of every next item of its users' histories (of the last
    `max_len` items).
    """
    config, order = model.config, generator(seed, "sasrec", "order", epoch)
    losses = []
    for step, users in enumerate(epoch_batches(train.lengths_U, config.batch_users, order)):
        queries = prefixes(train, users, train.lengths_U[users])
        length_L = np.minimum(queries.lengths_U, config.max_len + 1)
        items_LT = torch.from_numpy(padded_last(queries, int(length_L.max()), fill=0)).long()
        real_LT = torch.arange(items_LT.shape[1] - 1) < torch.from_numpy(length_L - 1)[:, None]
        hidden_LTC = model(items_LT[:, :-1], generator(seed, "sasrec", "dropout", epoch, step))
        hidden_NC, target_N = hidden_LTC[real_LT], items_LT[:, 1:][real_LT]
        bf16 = config.precision == "bf16"
        loss = FullCrossEntropy.apply(hidden_NC, model.items.weight, target_N, bf16) / len(target_N)
        if not bool(torch.isfinite(loss)):
            raise NonFiniteError(f"retriever: loss is {loss.item()} in epoch {epoch} step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def copurchase_vectors(train: Histories, dim: int, seed: int) -> Tensor:
    """Unit vectors per item whose products follow co-purchase (zero for items nobody bought).

    Started from these, the model ranks by co-purchase with the newest item before its first step,
    which saves the epochs that it takes to find this structure from noise.
    """
    users_UI = bought(train)
    scale_U = sp.diags_array(1.0 / np.sqrt(np.maximum(users_UI.sum(1), 1.0)))
    scale_I = sp.diags_array(1.0 / np.sqrt(np.maximum(users_UI.sum(0), 1.0)))
    matrix_UI = sp.csr_array(scale_U @ users_UI @ scale_I)
    rank = min(dim, train.n_users, train.n_items)
    state = key_of(seed, "sasrec", "svd") % (1 << 32)
    svd: Any = randomized_svd  # its stubs want n_iter to be text
    _, value_D, right_DI = svd(matrix_UI, rank, n_iter=4, random_state=state)
    vectors_ID = np.zeros((train.n_items, dim), np.float32)
    vectors_ID[:, :rank] = right_DI.T * np.sqrt(value_D)
    return torch.from_numpy(unit_rows(vectors_ID, least=1e-6))  # rounding dust stays dust


class Training:
    """All that is carried from epoch to epoch."""

    def __init__(self, model: SasRec) -> None:
        self.model, config = model, model.config
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        self.best = state_of(model)
        self.curve: list[dict[str, float]] = []  # one entry per finished epoch

    @property
    def best_epoch(self) -> int:
        """Number of the epoch with the best validation NDCG@10 (the first such)."""
        return int(np.argmax([entry["ndcg@10"] for entry in self.curve])) if self.curve else -1

    @property
    def finished(self) -> bool:
        config, done = self.model.config, len(self.curve)
        return done >= config.epochs or (done > 0 and done - 1 - self.best_epoch >= config.patience)

    def save(self, path: Path) -> None:
        """One file, replaced in one rename: never a half state."""
        parts = {"model": self.model.state_dict(), "best": self.best}
        parts |= self.optimizer.state_dict()["state"]  # by the parameter's number
        tensors = {f"{part}.{name}": t for part in parts for name, t in parts[part].items()}
        with replacing(path) as temporary:
            save_file(tensors, temporary, {"curve": json.dumps(self.curve)})

    def load(self, path: Path) -> None:
        """Go on where `save` was called last."""
        parts: dict[str, dict[str, Tensor]] = {}
        with safe_open(path, "pt") as file:
            self.curve = json.loads(file.metadata()["curve"])
            for key in file.keys():  # noqa: SIM118 (the file is no dict)
                part, _, name = key.partition(".")
                parts.setdefault(part, {})[name] = file.get_tensor(key)
        self.model.load_state_dict(parts.pop("model"))
        self.best = parts.pop("best")
        moments = {int(number): moments for number, moments in parts.items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def train(
    histories: Histories,
    users: np.ndarray,
    config: RetrieverConfig,
    seed: int,
    *,
    work: Path | None = None,
    name: str = "sasrec",
    progress: Progress | None = None,
) -> tuple[SasRec, list[dict[str, float]]]:
    """Fit on these users' train parts; early stop on their validation items.

    Returns the model of the best epoch and the training curve.
    """
    part = prefixes(histories, users, histories.lengths_U[users] - 2)
    watched = users[permutation(len(users), seed, "sasrec", "watched")[:WATCHED_USERS]]
    watched_end = histories.lengths_U[watched] - 2
    watched_part = prefixes(histories, watched, watched_end)
    target_U = histories.items_N[histories.offsets_U1[watched] + watched_end]
    model = SasRec(histories.n_items, config, seed)
    if config.init == "copurchase":
        with torch.no_grad():
            model.items.weight += copurchase_vectors(part, config.dim, seed)
    state = Training(model)
    path = None if work is None else work / f"{name}.safetensors"
    if path is not None and path.is_file():
        state.load(path)
    with (progress or Progress()).task(name, config.epochs) as task:
        if state.curve:
            task.advance(len(state.curve), "continued")
        while not state.finished:
            loss = train_epoch(model.train(), state.optimizer, part, len(state.curve), seed)
            metrics = evaluate(model.eval(), watched_part, target_U)
            state.curve.append({"loss": loss, **metrics})
            if state.best_epoch == len(state.curve) - 1:
                state.best = state_of(model)
            if path is not None:
                state.save(path)
            task.advance(1, f"loss {loss:.3f} validation ndcg@10 {metrics['ndcg@10']:.4f}")
    model.load_state_dict(state.best)
    return model.eval(), state.curve
