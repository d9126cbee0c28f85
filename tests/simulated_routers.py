"""Made-up routers whose true loads and scores are known exactly."""

from __future__ import annotations

import numpy as np


def true_shares(E, K, kind):
    """[K, E / K]: a token takes one expert of each of K groups, so the chances are exact and no expert is taken twice."""
    rng = np.random.default_rng(5)
    p = np.ones((K, E // K))
    if kind == "skewed":
        p *= (np.arange(E // K) + 2.0) ** -0.8 * np.exp(0.05 * rng.standard_normal(p.shape))
    return p / p.sum(1, keepdims=True)


def simulate(shares, n_sequences, L, topics, rng, tokens=256):
    """counts [X, L, E] of L independent runs. `topics`: each sequence has loads of its own, Dirichlet(topics E share), mean as true."""
    return to_blocks(simulate_sequences(shares, n_sequences, L, topics, rng, tokens)[0])


def simulate_sequences(shares, n_sequences, L, topics, rng, tokens=256):
    """counts [N, L, E] of single sequences, the chances [N, L, E] that they were drawn with, and the tokens [N] of each."""
    K, G = shares.shape
    tokens_N = np.where(np.arange(n_sequences) % 7 == 6, tokens // 3, tokens)  # tails
    counts_NLKG, chances_NLKG = np.zeros((n_sequences, L, K, G), np.int64), np.empty((n_sequences, L, K, G))
    for k in range(K):
        p = np.broadcast_to(shares[k], (n_sequences, L, G))
        if topics:
            p = rng.gamma(topics * G * shares[k], size=p.shape)
            p /= p.sum(-1, keepdims=True)
        counts_NLKG[:, :, k] = rng.multinomial(np.broadcast_to(tokens_N[:, None], (n_sequences, L)), p)
        chances_NLKG[:, :, k] = p
    return counts_NLKG.reshape(n_sequences, L, -1), chances_NLKG.reshape(n_sequences, L, -1), tokens_N


def to_blocks(values_N):
    """Sums over the sequences of each of at most 64 blocks."""
    blocks = np.zeros((min(len(values_N), 64), *values_N.shape[1:]), values_N.dtype)
    np.add.at(blocks, np.arange(len(values_N)) % 64, values_N)
    return blocks
