"""Bucket edges: where one level of a field ends and the next begins.

Contract: `bucket_edges(values, n, field)` gives the n - 1 rising edges of a field, padded with
+inf; a value's bucket is how many of them it reaches. Counted fields are cut at quantiles, 0 apart
where it means "none"; an own number at values that occur, so that no change of scale moves a
bucket; categories and flags are bucket numbers already. Not here: the values (`measures`).
"""

from __future__ import annotations

import numpy as np

from diffgr2.candidates.fields import Field

FURTHEST = np.finfo(np.float32).max


def bucket_edges(value_X: np.ndarray, n_buckets: int, field: Field) -> np.ndarray:
    """Increasing edges, padded with +inf; bucket = number of edges that are <= the value."""
    if field.kind in ("category", "flag") or field.name == "rank":
        # Such a value is the number of its bucket; the last places of a list share one.
        return np.arange(1, n_buckets, dtype=np.float32)
    if field.kind == "number":
        return number_edges(value_X, n_buckets)
    first, inside = [], value_X
    if field.zero_is_none:
        first, inside = [np.nextafter(np.float32(0), np.float32(1))], value_X[value_X > 0]
    pieces = n_buckets - len(first)
    cuts = np.quantile(inside, np.arange(1, pieces) / pieces) if len(inside) else []
    found = np.unique(np.concatenate([first, cuts]).astype(np.float32))
    edges = np.full(n_buckets - 1, np.inf, np.float32)
    edges[: len(found)] = found
    return edges


def number_edges(value_X: np.ndarray, n_buckets: int) -> np.ndarray:
    """Edges of an own number: values that occur, so that no change of scale moves a bucket.

    Fewer distinct values than buckets are spread from the first to the last bucket, so that the
    lowest and the highest are what the ends are called; where all are equal, they are the middle.
    """
    cuts = np.arange(1, n_buckets) / n_buckets
    found = np.unique(np.quantile(value_X, cuts, method="higher")) if len(value_X) else value_X
    least = value_X.min(initial=np.inf)
    above = value_X[value_X > least]
    # Where nearly all are the least, the few others are what is high.
    found = found[found > least] if (found > least).any() else np.sort(above)[:1]
    edges = np.append(-FURTHEST, found).astype(np.float32)
    levels = len(edges)
    if levels == 1:
        bucket_V = np.array([(n_buckets - 1) // 2])
    else:
        bucket_V = (np.arange(levels) * (n_buckets - 1) / (levels - 1) + 0.5).astype(int)
    level_B = np.searchsorted(bucket_V, np.arange(1, n_buckets))  # the first one in each bucket
    return np.append(edges, np.float32(np.inf))[level_B]
