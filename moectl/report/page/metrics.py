"""What each column of `layers.parquet` is, for people: a label, a unit, a group and one line of definition.

    describe("max_vio").label      # "MaxVio"

A column it does not know is shown all the same, under its own name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BASELINES = {
    "_uniform": ("even", "the same if every expert were equally likely"),
    "_load_aware": ("by load", "the same if tokens picked independently with the experts as busy as they were measured"),
}
_INTERVALS = {"_low": ("from", "lower end of the 95 % interval"), "_high": ("to", "upper end of the 95 % interval")}
INTERVALS = "Intervals"
_LAG = re.compile(r"(?:next_token_)?overlap_lag_?(\d+)")


@dataclass(frozen=True, slots=True)
class Column:
    """`unit`: count, ratio (times an even share or a plain number), share (0 to 1, shown as per cent), nats or bits."""

    label: str
    unit: str
    group: str
    text: str


_COLUMNS = {
    "n_experts": Column("experts", "count", "Layer", "routed experts of the layer"),
    "top_k": Column("top-k", "count", "Layer", "experts a token picks"),
    "tokens": Column("tokens", "count", "Layer", "tokens counted"),
    "max_vio": Column("MaxVio", "ratio", "Balance", "largest relative load minus 1, over all tokens: 0 is even, 1 is twice the even share"),
    "max_vio_noise_floor": Column(
        "MaxVio, chance", "ratio", "Balance", "MaxVio that a perfectly even router shows on a sample of this size"
    ),
    "max_vio_sequence": Column(
        "MaxVio, sequence", "ratio", "Balance", "mean MaxVio of one sequence; short ones have a high MaxVio by chance alone"
    ),
    "max_vio_batch": Column("MaxVio, batch", "ratio", "Balance", "mean MaxVio of one full micro-batch"),
    "max_over_mean": Column("max load", "ratio", "Balance", "largest relative load"),
    "min_over_mean": Column("min load", "ratio", "Balance", "smallest relative load"),
    "dead_experts": Column("dead", "count", "Balance", "experts without a token"),
    "cold_experts": Column("cold", "count", "Balance", "experts below a tenth of their even share, dead ones included"),
    "effective_experts": Column("effective experts", "ratio", "Spread", "evenly loaded experts with the same entropy"),
    "cv": Column("CV", "ratio", "Spread", "standard deviation of the loads over their mean"),
    "gini": Column("Gini", "ratio", "Spread", "Gini coefficient of the loads: 0 is even, near 1 is one expert alone"),
    "entropy": Column("entropy", "nats", "Spread", "entropy of the shares"),
    "entropy_normalized": Column("entropy / ln E", "ratio", "Spread", "entropy over that of an even load"),
    "kl_uniform": Column("KL", "nats", "Spread", "Kullback-Leibler divergence from an even load"),
    "tv_uniform": Column("TV", "share", "Spread", "part of the picks that would have to move to make the load even"),
    "top_quarter_share": Column("top quarter", "share", "Spread", "part of the picks on the busiest quarter of the experts"),
    "chi2": Column("chi²", "ratio", "Spread", "Pearson's statistic against an even load, E - 1 degrees of freedom"),
    "balance_loss": Column(
        "balance loss", "ratio", "Losses", "load-balancing loss, 1 if even: E times the sum of share times mean probability"
    ),
    "sequence_balance_loss": Column("balance loss, sequence", "ratio", "Losses", "the balance loss of each sequence, averaged"),
    "z_loss": Column("z-loss", "ratio", "Losses", "mean squared log-sum-exp of the router's logits"),
    "router_entropy": Column("router entropy", "ratio", "Confidence", "entropy of a token's probabilities over all experts, over ln E"),
    "captured_mass": Column("captured mass", "share", "Confidence", "probability that the selected experts hold together"),
    "margin": Column("margin", "ratio", "Confidence", "score of the last expert selected minus that of the first left out"),
    "fragile_tokens": Column(
        "fragile tokens", "share", "Confidence", "tokens whose margin is so small that rounding to bfloat16 may change the selection"
    ),
    "effective_used_experts": Column(
        "effective used experts", "ratio", "Confidence", "evenly weighted experts with the entropy of a token's weights"
    ),
    "bias_effect": Column("bias effect", "share", "Confidence", "part of the selected experts that the correction bias brought in"),
    "first_choice_repeat": Column("same first choice", "share", "Neighbours", "neighbouring tokens with the same first choice"),
    "any_overlap": Column("any expert shared", "share", "Neighbours", "neighbouring tokens that share at least one expert"),
    "next_token_overlap": Column("next-token overlap", "share", "Neighbours", "part of a token's experts that the next one shares"),
    "domain_information_bits": Column("I(domain; expert)", "bits", "Domains", "what one pick of an expert tells about the text's domain"),
    "domain_jsd_bits": Column("JSD", "bits", "Domains", "Jensen-Shannon divergence of two domains' loads, mean over all pairs"),
}

_COLUMNS |= {
    f"vocabulary_{ids}{choice}{weighting}": Column(
        f"{label}{', 1st choice' if choice else ''}{', by tokens' if weighting else ''}",
        "share",
        "Vocabulary",
        f"tokens {which} that ran its usual {'first choice' if choice else 'expert'}, mean over {'tokens' if weighting else 'ids'}",
    )
    for ids, label, which in (
        ("input", "own id", "of one id"),
        ("next", "next id", "before one id"),
        ("predicted", "predicted id", "for which the model predicts one id"),
    )
    for choice in ("", "_first_choice")
    for weighting in ("", "_weighted")
}


def describe(key: str) -> Column:
    """The column `key`; `_low` and `_high` of a known one are its interval, `_uniform` and `_load_aware` its baselines."""
    if key in _COLUMNS:
        return _COLUMNS[key]
    for suffix, (word, meaning) in _INTERVALS.items():
        if key.endswith(suffix):
            base = describe(key.removesuffix(suffix))
            return Column(f"{base.label}, {word}", base.unit, INTERVALS, f"{meaning} of {base.label}")
    for suffix, (word, meaning) in _BASELINES.items():
        if key.endswith(suffix) and key.removesuffix(suffix) in _COLUMNS:
            base = _COLUMNS[key.removesuffix(suffix)]
            return Column(f"{base.label}, {word}", base.unit, base.group, f"{base.text}: {meaning}")
    if match := _LAG.fullmatch(key):
        return Column(f"overlap {match[1]} on", "share", "Neighbours", f"part of a token's experts that the token {match[1]} later shares")
    return Column(key, "ratio", "Other", "see the guide to route-stats")
