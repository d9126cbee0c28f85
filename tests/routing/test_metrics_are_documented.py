"""docs/concepts/metrics.md and the code name the same metrics, and its worked example holds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from moectl.routing.bounds import BOUNDED_KEYS
from moectl.routing.counters import Counters
from moectl.routing.frames import METRIC_KEYS, expert_frame, layer_frame
from moectl.routing.metrics import coactivation, domains, load, specialisation
from moectl.routing.pair_frames import DOMAIN_PAIR_DTYPES, EXPERT_PAIR_DTYPES
from moectl.routing.token_frames import CLASS_DTYPES, VOCABULARY_DTYPES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/concepts/metrics.md"
TEXT = PAGE.read_text(encoding="utf-8")
CODE = re.compile(r"`([^`]+)`")
# An interval is documented once for all: by these ends of a name.
INTERVAL_ENDS = ("_low", "_high")
# The heading of a table's first column says what its names are.
LAYERS, FUNCTIONS, INTERVALS = "column", "function", "interval of"


def tables():
    """(first heading, rows of cells, the header among them) of every table."""
    for block in re.findall(r"(?:^\|.*\n)+", TEXT, flags=re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in block.splitlines()]
        yield rows[0][0].strip("| "), [rows[0], *rows[2:]]


def names_under(heading):
    """The names in code font in the first column of the tables with this heading."""
    return [name for head, rows in tables() if head == heading for row in rows[1:] for name in CODE.findall(row[0])]


@pytest.fixture(scope="module")
def columns(run_of):
    """By heading, the names of the columns of each file of results, without those of intervals."""
    run = run_of()
    counters = Counters(run.layers, len(run.names), run.batches)
    for event in run.events:
        counters.record(event)
    return {
        LAYERS: without_intervals(layer_frame(counters, run.names).columns),
        "column of experts.parquet": without_intervals(expert_frame(counters, run.names).columns),
        "column of vocabulary.parquet": set(VOCABULARY_DTYPES),
        "column of token_classes.parquet": set(CLASS_DTYPES),
        "column of expert_pairs.parquet": set(EXPERT_PAIR_DTYPES),
        "column of domain_pairs.parquet": set(DOMAIN_PAIR_DTYPES),
    }


def without_intervals(names):
    names = set(names)
    return {name for name in names if not any(name.endswith(end) and name.removesuffix(end) in names for end in INTERVAL_ENDS)}


def test_every_metric_has_a_row_and_every_row_is_one(columns):
    assert without_intervals(METRIC_KEYS) <= columns[LAYERS]
    for heading, names in columns.items():
        shown = names_under(heading)
        assert sorted(names - set(shown)) == [], f"not on the page, under {heading!r}"
        assert sorted(set(shown) - names) == [], f"on the page under {heading!r}, but no column"


def test_every_function_exists():
    functions = names_under(FUNCTIONS)
    assert functions
    modules = (coactivation, domains, specialisation)
    assert [name for name in functions if not any(callable(getattr(module, name, None)) for module in modules)] == []


def test_metrics_with_an_interval_are_named():
    of_files = {"share", "loss", "perplexity", "experts.parquet", "summary.json"}
    assert set(names_under(INTERVALS)) == set(BOUNDED_KEYS) | of_files


def test_names_in_the_text_exist(columns):
    """What looks like a metric anywhere on the page: a lower-case word with an underscore."""
    known = set().union(*columns.values(), names_under(FUNCTIONS), INTERVAL_ENDS, {"_uniform", "_load_aware", "_weighted"})
    found = {name for name in CODE.findall(TEXT) if re.fullmatch(r"[a-z0-9]*(_[a-z0-9]+)+", name)}
    assert len(found) > len(METRIC_KEYS) / 2
    assert sorted(found - known) == []


def test_the_worked_example_of_loads_holds():
    (rows,) = (rows for head, rows in tables() if head == LAYERS and re.fullmatch(r"`[\d ]+`", rows[0][1]))
    loads_RE = np.array([CODE.findall(cell)[0].split() for cell in rows[0][1:]], dtype=np.int64)
    assert loads_RE.shape == (3, 8)
    assert (loads_RE.sum(1) == 2 * 400).all(), "top-2, 400 tokens"
    for row in rows[1:]:
        found = getattr(load, CODE.findall(row[0])[0])(loads_RE)
        for shown, value in zip(row[1:], found, strict=True):
            assert float(shown) == pytest.approx(value, abs=0.5 * 10.0 ** -len(shown.partition(".")[2]) + 1e-9), row[0]


def test_links_and_anchors_lead_somewhere():
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", TEXT, flags=re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (PAGE.parent / target).exists(), target


def test_the_pages_about_results_link_here():
    for page, link in (("README.md", "docs/concepts/metrics.md"), ("docs/guides/route-stats.md", "../concepts/metrics.md")):
        assert f"]({link}" in (ROOT / page).read_text(encoding="utf-8"), page
