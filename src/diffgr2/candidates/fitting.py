"""Training SASRec: epochs over users, early stop, continuation, one process or several.

Contract: `train(histories, ...)` fits on each user's train part and stops early on the validation
items' NDCG@10. The loss is over all items, or over a sample of them (`samples`: as the recipe says,
by default where all would take minutes an epoch); with a sample, a step reads and changes the rows
of the items that it saw alone, and the others follow when they are seen. Same seed, data and
threads give the same bits on CPUs, also when training was cut off and continued from `work`.
Several processes share each batch and add up their gradients: what one process trains, up to the
order of sums. Only real (non-padded) positions reach the item logits. Not here: the
model (`sasrec`) and the losses (`softmax`).
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

from diffgr2.artifacts import replacing
from diffgr2.candidates.extent import samples
from diffgr2.candidates.ranks import ALONE, Ranks, ShareOfNoise
from diffgr2.candidates.retrieval import bought, evaluate, padded_last, prefixes
from diffgr2.candidates.sampled import Proposal, RowAdam
from diffgr2.candidates.sasrec import Noise, SasRec, here
from diffgr2.candidates.softmax import FullCrossEntropy, SampledCrossEntropy
from diffgr2.config import RetrieverConfig
from diffgr2.errors import NonFiniteError
from diffgr2.items.vectors import unit_rows
from diffgr2.progress import Progress
from diffgr2.streams import generator, key_of, permutation
from diffgr2.types import Histories

WATCHED_USERS = 8_192  # whose validation items decide the early stop (a random choice of more)
SORT_BATCHES = 16  # whose users are sorted by length together, so that little is padding


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors."""
    return {name: t.clone() for name, t in model.state_dict().items()}


def epoch_batches(length_U: np.ndarray, rows: int, source: np.random.Generator) -> list[np.ndarray]:
    """Users in random batches of similar length, in random order."""
    order_U = source.permutation(np.flatnonzero(length_U >= 2))
    batches: list[np.ndarray] = []
    for begin in range(0, len(order_U), rows * SORT_BATCHES):
        group = order_U[begin : begin + rows * SORT_BATCHES]
        group = group[np.argsort(length_U[group], kind="stable")]
        batches += [group[at : at + rows] for at in range(0, len(group), rows)]
    return [batches[i] for i in source.permutation(len(batches))]


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

    def __init__(
        self, model: SasRec, seed: int, proposal: Proposal | None = None, ranks: Ranks = ALONE
    ) -> None:
        self.model, self.seed, self.proposal, self.ranks = model, seed, proposal, ranks
        config, table_IC = model.config, model.items.weight
        self.rows = None if proposal is None else RowAdam(table_IC, config.lr, config.weight_decay)
        dense = [p for p in model.parameters() if self.rows is None or p is not table_IC]
        self.optimizer = torch.optim.AdamW(dense, lr=config.lr, weight_decay=config.weight_decay)
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

    def epoch(self, train: Histories) -> float:
        """One pass over all users; returns the mean loss of its batches.

        A batch's loss is the mean cross-entropy of every next item of its users' histories (of the
        last `max_len` items).
        """
        epoch, config = len(self.curve), self.model.train().config
        order, losses = generator(self.seed, "sasrec", "order", epoch), []
        for step, users in enumerate(epoch_batches(train.lengths_U, config.batch_users, order)):
            loss = self._step(prefixes(train, users, train.lengths_U[users]), epoch, step)
            if not np.isfinite(loss):
                raise NonFiniteError(f"retriever: loss is {loss} in epoch {epoch} step {step}")
            losses.append(loss)
        if self.rows is not None:
            self.rows.settle()
        return float(np.mean(losses))

    def _step(self, queries: Histories, epoch: int, step: int) -> float:
        """One step on a batch of users, of whom each process has its share."""
        device, table_IC = self.model.items.weight.device, self.model.items.weight
        length_L = np.minimum(queries.lengths_U, self.model.config.max_len + 1)
        # What is padded with is never looked at, but with a sample its row is stepped.
        fill = 0 if self.proposal is None else int(queries.items_N[-1])
        items_LT = padded_last(queries, int(length_L.max()), fill).astype(np.int64)
        sample: tuple[Tensor, ...] = ()
        rows_R = None
        if self.proposal is not None and self.rows is not None:
            sample_M, weight_M = self.proposal.draw(epoch, step)
            rows, place_LT = np.unique(items_LT, return_inverse=True)
            # The batch's own items are at hand, and likely for its users: they stand for
            # themselves, the sample for all others, so the sum is right on average as before.
            others_M = ~np.isin(sample_M, rows, assume_unique=True)
            weight_M = np.concatenate([np.zeros(len(rows), np.float32), weight_M[others_M]])
            rows, items_LT = np.append(rows, sample_M[others_M]), place_LT.reshape(items_LT.shape)
            sample = (torch.arange(len(rows)).to(device), torch.from_numpy(weight_M).to(device))
            rows_R = torch.from_numpy(rows).to(device)
            table_IC = self.rows.current(rows_R).requires_grad_()
        self.optimizer.zero_grad(set_to_none=True)
        mine, loss = self.ranks.share(len(items_LT)), torch.zeros((), device=device)
        if mine.stop > mine.start:
            noise: Noise = generator(self.seed, "sasrec", "dropout", epoch, step)
            if self.ranks.size > 1:
                noise = ShareOfNoise(noise, len(items_LT), mine)
            total = int((length_L - 1).sum())
            items = torch.from_numpy(items_LT[mine]).to(device)
            length = torch.from_numpy(length_L[mine]).to(device)
            loss = self._loss(items, length, table_IC, sample, noise) / total
            loss.backward()
        value = self._added_up(loss.detach(), table_IC)
        if np.isfinite(value):
            self.optimizer.step()
            if self.rows is not None and rows_R is not None and table_IC.grad is not None:
                self.rows.step(rows_R, table_IC.grad)
        return value

    def _loss(
        self,
        items_LT: Tensor,
        length_L: Tensor,
        table_RC: Tensor,
        sample: tuple[Tensor, ...],
        noise: Noise,
    ) -> Tensor:
        """Sum over all next items of these rows."""
        real_LT = (
            torch.arange(items_LT.shape[1] - 1, device=items_LT.device) < length_L[:, None] - 1
        )
        hidden_LTC = self.model(items_LT[:, :-1], noise, table_RC)
        hidden_NC, target_N = hidden_LTC[real_LT], items_LT[:, 1:][real_LT]
        bf16 = self.model.config.precision == "bf16"
        loss = SampledCrossEntropy if sample else FullCrossEntropy
        return loss.apply(hidden_NC, table_RC, target_N, *sample, bf16)

    def _added_up(self, loss: Tensor, table_RC: Tensor) -> float:
        """The loss of all processes; gradients become the sum of theirs, too."""
        if self.ranks.size > 1:
            leaves = {id(p): p for p in (*self.model.parameters(), table_RC)}
            if self.rows is not None:
                del leaves[id(self.model.items.weight)]
            for p in leaves.values():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            parts = [loss, *(p.grad for p in leaves.values())]
            flat = torch.cat([part.reshape(-1) for part in parts])
            self.ranks.add(flat)
            for part, summed in zip(parts, flat.split([p.numel() for p in parts]), strict=True):
                part.copy_(summed.view_as(part))
        return loss.item()

    def save(self, path: Path) -> None:
        """One file, replaced in one rename: never a half state."""
        parts = {"model": self.model.state_dict(), "best": self.best}
        parts |= self.optimizer.state_dict()["state"]  # by the parameter's number
        if self.rows is not None:
            parts["rows"] = self.rows.state
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
        if self.rows is not None:
            for name, tensor in parts.pop("rows").items():
                self.rows.state[name].copy_(tensor)
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
    ranks: Ranks = ALONE,
) -> tuple[SasRec, list[dict[str, float]]]:
    """Fit on these users' train parts; early stop on their validation items.

    Returns the model of the best epoch and the training curve, on every process.
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
    proposal = None
    if samples(histories, config):
        count_I = np.bincount(part.items_N, minlength=part.n_items)
        proposal = Proposal(count_I, config.negatives, seed)
    state = Training(model.to(here()), seed, proposal, ranks)
    path = None if work is None else work / f"{name}.safetensors"
    if path is not None and path.is_file():
        state.load(path)
    with (progress or Progress()).task(name, config.epochs) as task:
        if state.curve:
            task.advance(len(state.curve), "continued")
        while not state.finished:
            loss = state.epoch(part)
            metrics = evaluate(model.eval(), watched_part, target_U, ranks=ranks)
            state.curve.append({"loss": loss, **metrics})
            if state.best_epoch == len(state.curve) - 1:
                state.best = state_of(model)
            if path is not None and ranks.first:
                state.save(path)
            task.advance(1, f"loss {loss:.3f} validation ndcg@10 {metrics['ndcg@10']:.4f}")
    model.load_state_dict(state.best)
    return model.eval(), state.curve
