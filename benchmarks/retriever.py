"""What a loss over a sample and a search in cells cost a retriever, and what they lose.

Usage: `python benchmarks/retriever.py DATA --work DIR --out FILE [--fits full:0,sampled:0]
[--known full:0=RETRIEVER] [--search full:0] [--epoch 0.1] [--set key=value ...]`, DATA being what
the stage `data` wrote. `--fits` trains by loss and seed (or takes a retriever that a run has
trained with the same keys) and tells NDCG@10 and R@10 over all users, and each sampled loss's
difference to the full one of the same seed, paired over users. `--search` asks 4,000 users' ten
best exactly and in cells. `--epoch` trains that share of an epoch with the sampled loss and
searches with what came of it. CPU seconds of one thread; what stands in DIR is not trained again,
and FILE keeps what it held. Not a test: nothing passes or fails.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

from diffgr2.artifacts import read_json, write_json
from diffgr2.candidates import fitting, kinds
from diffgr2.candidates.cells import Cells
from diffgr2.candidates.extent import positions_of
from diffgr2.candidates.retrieval import Retriever, prefixes, target_ranks, top_k
from diffgr2.candidates.sampled import Proposal
from diffgr2.candidates.sasrec import SasRec
from diffgr2.candidates.search import searched, shared_share
from diffgr2.config import RetrieverConfig
from diffgr2.data.store import read_dataset
from diffgr2.evaluate.significance import bootstrap_means, interval
from diffgr2.pipeline import source_commit
from diffgr2.progress import Progress
from diffgr2.streams import key_of, permutation
from diffgr2.types import Histories, ndcg_of

K, ASKED, RESAMPLES = 10, 4_000, 2_000
SPLITS = {"validation": 2, "test": 1}  # items held back


def ranks_of(model: Retriever, histories: Histories) -> dict[str, np.ndarray]:
    """The target's rank for every user, by split."""
    users, found = np.arange(histories.n_users), {}
    for split, held in SPLITS.items():
        end_L = histories.lengths_U - held
        target_L = histories.items_N[histories.offsets_U1[users] + end_L]
        found[split] = target_ranks(model, prefixes(histories, users, end_L), target_L)
    return found


def fitted(
    name: str, histories: Histories, config: RetrieverConfig, known: Path | None, work: Path
) -> dict[str, Any]:
    """Train, or take, one retriever; its ranks lie beside it."""
    loss, _, seed = name.partition(":")
    place = work / name.replace(":", "-")
    place.mkdir(parents=True, exist_ok=True)
    begin, told = time.process_time(), {}
    if known is not None:
        model, facts = kinds.load(known), read_json(known / "manifest.json")["metrics"]
    else:
        config = config.model_copy(update={"loss": loss})
        users = np.arange(histories.n_users)
        asked: dict[str, Any] = {"work": place, "name": "state", "progress": Progress()}
        model, facts = kinds.fit(histories, users, config, key_of(int(seed), "retriever"), **asked)
        told["cpu_s"] = round(time.process_time() - begin, 1)
    model.save(place)
    ranks = ranks_of(model, histories)
    np.savez(place / "ranks.npz", **ranks)  # type: ignore[arg-type]
    told |= {key: facts[key] for key in ("epochs", "best_epoch", "softmax")}
    for split, rank_L in ranks.items():
        told[f"{split}_ndcg@{K}"] = round(float(ndcg_of(rank_L, K).mean()), 5)
        told[f"{split}_r@{K}"] = round(float((rank_L < K).mean()), 5)
    return told


def differences(work: Path, fits: list[str]) -> dict[str, Any]:
    """NDCG@10 of each sampled loss less that of the full one with its seed, and of all seeds."""
    ndcg = {
        fit: {split: ndcg_of(rank_L, K) for split, rank_L in np.load(path).items()}
        for fit in fits
        if (path := work / fit.replace(":", "-") / "ranks.npz").exists()
    }
    found: dict[str, Any] = {}
    pairs = {
        fit: other
        for fit in ndcg
        if fit.startswith("sampled") and (other := "full:" + fit.partition(":")[2]) in ndcg
    }
    for split in SPLITS:
        less = {fit: ndcg[fit][split] - ndcg[other][split] for fit, other in pairs.items()}
        if len(less) > 1:
            less["all"] = np.mean(list(less.values()), 0)
        for fit, less_U in less.items():
            drawn_B1 = bootstrap_means(less_U[:, None], RESAMPLES, 0, "retriever", split)
            low, high = interval(drawn_B1[:, 0])
            means = [round(float(value), 5) for value in (less_U.mean(), low, high)]
            found[f"{fit} - full, {split} ndcg@{K}"] = means
    return found


def search(model: Any, histories: Histories, config: RetrieverConfig, seed: int) -> dict[str, Any]:
    """Recall of the ten best in cells, and CPU milliseconds a list."""
    begin = time.process_time()
    chosen, facts = searched(model, histories, config, seed)
    made_s = time.process_time() - begin
    # Nobody of these has chosen how many cells are looked into.
    users = permutation(histories.n_users, seed, "search", "sample")[2_000:][:ASKED]
    queries = prefixes(histories, users, histories.lengths_U[users] - 1)
    found, ms = {}, {}
    for word, retriever in (("exact", model), ("approximate", chosen)):
        begin = time.process_time()
        found[word] = top_k(retriever, queries, K)[0]
        ms[word] = round((time.process_time() - begin) / len(users) * 1e3, 3)
    recall = shared_share(found["approximate"], found["exact"])
    told = {"items": model.n_items, **facts, "lists": len(users), f"recall@{K}": round(recall, 4)}
    if isinstance(chosen, Cells):
        told["largest_cell"] = int(np.diff(chosen.start_D1).max())
    return {**told, "ms_a_list": ms, "cells_made_and_chosen_cpu_s": round(made_s, 1)}


def epoch(
    histories: Histories, config: RetrieverConfig, share: float, work: Path
) -> tuple[SasRec, dict[str, Any]]:
    """Train a share of an epoch with the sampled loss."""
    users = np.arange(histories.n_users)
    part = prefixes(histories, users, histories.lengths_U - 2)
    model, begin = SasRec(part.n_items, config, 0), time.process_time()
    if config.init == "copurchase":
        with torch.no_grad():
            model.items.weight += fitting.copurchase_vectors(part, config.dim, 0)
    start_s, begin = time.process_time() - begin, time.process_time()
    some = np.sort(permutation(part.n_users, 0, "share")[: round(share * part.n_users)])
    proposal = Proposal(np.bincount(part.items_N, minlength=part.n_items), config.negatives, 0)
    proposal.draw(0, 0)
    state = fitting.Training(model, 0, proposal)
    once_s, begin = time.process_time() - begin, time.process_time()
    loss = state.epoch(prefixes(part, some, part.lengths_U[some]))
    spent_s, begin = time.process_time() - begin, time.process_time()
    assert state.rows is not None
    state.rows.settle()  # as an epoch has done in its end, however many its steps
    settled_s = time.process_time() - begin
    done = positions_of(part.lengths_U[some], config) / positions_of(part.lengths_U, config)
    whole_s = once_s + settled_s + (spent_s - settled_s) / done
    place = work / "epoch"
    place.mkdir(parents=True, exist_ok=True)
    model.eval().save(place)
    return model, {
        "users": part.n_users,
        "items": part.n_items,
        "share_of_the_epoch": round(done, 5),
        "loss": round(loss, 3),
        "copurchase_cpu_s": round(start_s, 1),
        "cpu_s": round(spent_s, 1),
        "once_an_epoch_cpu_s": round(once_s + settled_s, 1),
        "epoch_cpu_min_scaled": round(whole_s / 60, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--subject", default="DATA", help="what the data is, in the file")
    parser.add_argument("--fits", default="")
    parser.add_argument("--known", action="append", default=[])
    parser.add_argument("--search", default="")
    parser.add_argument("--epoch", type=float, default=0.0)
    parser.add_argument("--set", nargs="*", default=[])
    args = parser.parse_args()
    torch.set_num_threads(1)
    keys = {"precision": "bf16", **dict(pair.split("=", 1) for pair in args.set)}
    config = RetrieverConfig.model_validate(keys)
    histories = read_dataset(args.data).histories
    known = {name: Path(place) for name, _, place in (one.partition("=") for one in args.known)}
    found: dict[str, Any] = read_json(args.out) if args.out.exists() else {}
    approximate = config.model_copy(update={"search": "approximate"})
    fits = [name for name in args.fits.split(",") if name]
    about = {"commit": source_commit(), **machine.about(), "keys": config.model_dump(mode="json")}

    def tell(step: str, told: dict[str, Any]) -> None:
        found[f"{args.subject}, {step}"] = {**told, "run": about}
        write_json(args.out, found)
        print(step, told, flush=True)

    for name in fits:
        if not (args.work / name.replace(":", "-") / "ranks.npz").exists():
            tell(name, fitted(name, histories, config, known.get(name), args.work))
    if fits:
        tell("differences", differences(args.work, fits))
    if args.search:
        model = kinds.load(args.work / args.search.replace(":", "-"))
        tell(f"search {args.search}", search(model, histories, approximate, 0))
    if args.epoch:
        model, told = epoch(histories, config, args.epoch, args.work)
        tell("epoch", told)
        tell("search epoch", search(model, histories, approximate, 0))


if __name__ == "__main__":
    main()
