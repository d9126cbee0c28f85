"""Blocks of sequences as a stratified sample: domains are strata, and what makes a sum over blocks uncertain is left, block by block.

for row, blocks, stratum_X in rows(domain_X, n_domains):
    deviation_X = deviations(part_X[blocks], size_X[blocks], stratum_X)
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# Shapes: X blocks of all domains, S strata.


def rows(domain_X: IntArray, n_domains: int) -> Iterator[tuple[int, IntArray, IntArray]]:
    """(row, its blocks, their strata) of each row that has an interval."""
    if len(domain_X) > 1:
        yield 0, np.arange(len(domain_X)), _collapsed(domain_X)
    for domain in range(n_domains):
        blocks = np.flatnonzero(domain_X == domain)
        if len(blocks) > 1:
            yield domain + 1, blocks, np.zeros(len(blocks), dtype=np.int64)


def _collapsed(domain_X: IntArray) -> IntArray:
    _, stratum_X, size_S = np.unique(domain_X, return_inverse=True, return_counts=True)
    lonely_X = size_S[stratum_X] == 1
    stratum_X = np.where(lonely_X, len(size_S) if lonely_X.sum() > 1 else size_S.argmax(), stratum_X)
    return np.asarray(np.unique(stratum_X, return_inverse=True)[1], dtype=np.int64)


def deviations(part_X: FloatArray, size_X: FloatArray, stratum_X: IntArray) -> FloatArray:
    """What makes the sum of `part_X` uncertain, block by block: they sum to zero, their squares to an unbiased variance.

    Each block against the ratio of its own stratum, since how much text a domain has is not left to chance.
    """
    result_X = np.empty(part_X.shape)
    for stratum in range(stratum_X.max() + 1):
        inside_X = stratum_X == stratum
        n = int(inside_X.sum())
        ratio = np.nan_to_num(divide(part_X[inside_X].sum(0), size_X[inside_X].sum(0)))
        result_X[inside_X] = (part_X[inside_X] - ratio * size_X[inside_X]) * sqrt(n / (n - 1))
    return result_X


def freedom(squares_X: FloatArray, stratum_X: IntArray) -> IntArray:
    """[...] degrees of freedom of the sum over strata (Satterthwaite 1946), rounded down."""
    size_S = np.bincount(stratum_X)
    if len(size_S) == 1:
        return np.full(squares_X.shape[1:], size_S[0] - 1)
    variance_S = np.stack([squares_X[stratum_X == stratum].sum(0) for stratum in range(len(size_S))])
    each_S = (variance_S**2 / (size_S - 1).reshape(-1, *[1] * (squares_X.ndim - 1))).sum(0)
    freedom = divide(variance_S.sum(0) ** 2, each_S)
    return np.where(np.isnan(freedom), size_S.sum() - len(size_S), np.maximum(np.floor(freedom + 1e-9), 1)).astype(np.int64)


def position(domain_X: IntArray) -> IntArray:
    """[X] 0, 1, ... within the domain."""
    position_X = np.empty_like(domain_X)
    for domain in np.unique(domain_X):
        inside_X = domain_X == domain
        position_X[inside_X] = np.arange(inside_X.sum())
    return position_X


def divide(top: NDArray[np.int64 | np.float64], bottom: NDArray[np.int64 | np.float64]) -> FloatArray:
    shape = np.broadcast_shapes(top.shape, bottom.shape)
    result: FloatArray = np.divide(top, bottom, out=np.full(shape, np.nan), where=bottom > 0)
    return result
