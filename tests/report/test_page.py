"""`report.html`: what is in it, that it is harmless, and how large it is."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from page_stats import page_stats

from moectl.report.attention import attention
from moectl.report.findings import findings
from moectl.report.headline import headline
from moectl.report.page.build import report_page, reproduce
from moectl.report.page.data import json_size, page_data
from moectl.report.page.metrics import describe
from moectl.report.page.packing import LIFT_NEVER, LIFT_ONE, LIFT_STEPS, LIFT_UNDEFINED, pack, quantised_lifts
from moectl.routing.frames import BOUND_KEYS, METRIC_KEYS

VOID = {"meta", "input", "br", "link", "img"}


class Reader(HTMLParser):
    """Elements and their text; closing tags must match."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts = [], [], {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def data_of(page):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)[1], parse_constant=pytest.fail
    )


def unpacked(packed):
    return np.frombuffer(base64.b64decode(packed["data"]), dtype=f"<{packed['type']}")


@pytest.fixture(scope="module")
def stats():
    return page_stats()


@pytest.fixture(scope="module")
def page(stats):
    return report_page(stats)


def test_is_a_page_with_landmarks_and_a_title(page):
    reader = Reader(page)
    assert page.startswith("<!doctype html>\n")
    assert reader.all("html") == [{"lang": "en"}]
    assert reader.texts["title"] == ["made-up/moe · routing statistics"]
    for landmark in ("header", "nav", "main", "h1"):
        assert len(reader.all(landmark)) == 1, landmark
    identities = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    for section in reader.all("section"):
        assert section["aria-labelledby"] in identities
    assert {link["href"][1:] for link in reader.all("a")} <= set(identities)
    assert "slot:" not in page


def test_says_what_was_run_and_what_was_found(stats, page):
    text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", page.split("<script")[0])).split())
    for finding in findings(stats):
        assert f"{finding.label}{finding.text}".replace("`", "") in text
    for entry in attention(stats)[:8]:
        assert f"Layer {entry.layer} {'; '.join(entry.reasons)}" in text
    assert "top-4 of 16 by sigmoid(x W) + bias; weights sigmoid(x W), normalised over the selected" in text
    assert "100,000" in text  # tokens of all domains
    assert "moectl route-stats made-up/moe --tokens 20000 --output stats" in text
    for value in ("0" * 64, "bfloat16", "2026-01-01T00:00:00+00:00"):
        assert value in text


def test_data_are_those_of_the_tables(stats, page):
    data = data_of(page)
    assert data["domains"] == ["all", "code", "prose", "tables", "arithmetic", "bytecode"]
    assert data["layers"] == list(stats.moe_layers)
    assert [column[0] for column in data["columns"]] == list(data["metrics"]) == list(stats.layers.columns.drop(["domain", "layer"]))
    for key, packed in data["metrics"].items():
        np.testing.assert_array_equal(unpacked(packed), stats.layers[key].to_numpy())
    np.testing.assert_array_equal(unpacked(data["experts"]["tokens"]), stats.experts["tokens"])
    np.testing.assert_array_equal(unpacked(data["weights"]["mean"]), stats.experts["mean_weight"].to_numpy(np.float32))
    np.testing.assert_allclose(unpacked(data["intervals"]["share_low"]), stats.experts["share_low"], rtol=2**-11, atol=1e-7)
    for key in ("model", "data", "provenance", "throughput"):
        assert data[key] == stats.summary[key]
    assert data["left_out"] == []


def test_shares_and_loads_follow_from_the_token_counts(stats, page):
    """The page divides by itself: the same quotients, to the last bit."""
    tokens_DLE = unpacked(data_of(page)["experts"]["tokens"]).reshape(6, 6, 16).astype(np.float64)
    slots = tokens_DLE.sum(-1, keepdims=True)
    np.testing.assert_array_equal((tokens_DLE / slots).reshape(-1), stats.experts["share"])
    np.testing.assert_array_equal((tokens_DLE * 16 / slots).reshape(-1), stats.experts["relative_load"])


def test_pairs_and_matrices_are_those_of_the_counts(stats, page):
    data = data_of(page)
    kept = unpacked(data["coactivation"]["lifts"]).reshape(6, 120)
    for l, layer in enumerate(stats.moe_layers):
        counts, tokens = stats.coactivation_LEE[l], 100_000
        for first, second, count in data["pairs"]["layers"][l]:
            assert counts[first, second] == count >= data["pairs"]["least_tokens"][l]
        at = 0
        for i in range(16):
            for j in range(i + 1, 16):
                together, apart = int(counts[i, j]) * tokens, int(counts[i, i]) * int(counts[j, j])
                if apart == 0:
                    assert kept[l, at] == LIFT_UNDEFINED, layer
                elif together == 0:
                    assert kept[l, at] == LIFT_NEVER, layer
                else:
                    assert 2 ** ((int(kept[l, at]) - LIFT_ONE) / LIFT_STEPS) == pytest.approx(together / apart, rel=0.018)
                at += 1


def test_lifts_at_the_ends_of_the_scale():
    counts = np.array([[1000, 0, 1, 900], [0, 1000, 1000, 0], [1, 1000, 1000, 0], [900, 0, 0, 0]])
    assert quantised_lifts(counts, 10**9).tolist() == [
        LIFT_NEVER,
        LIFT_UNDEFINED - 1,
        LIFT_UNDEFINED,
        LIFT_UNDEFINED - 1,
        LIFT_UNDEFINED,
        LIFT_UNDEFINED,
    ]
    assert quantised_lifts(np.array([[1000, 1], [1, 1000]]), 1).tolist() == [LIFT_NEVER + 1]
    assert quantised_lifts(np.array([[1000, 1], [1, 1000]]), 10**6).tolist() == [LIFT_ONE]


@pytest.mark.parametrize("values", [[0, 255], [0, 256], [65535], [65536], [2**32 - 1], [2**32], []])
def test_whole_numbers_are_packed_exactly(values):
    packed = pack(np.array(values, np.int64))
    assert unpacked(packed).tolist() == values
    assert packed["type"] == {255: "u1", 256: "u2", 65535: "u2", 65536: "u4", 2**32 - 1: "u4", 2**32: "f8"}.get(max(values, default=255))


def test_every_metric_has_a_label_of_its_own():
    columns = {key: describe(key) for key in (*METRIC_KEYS, *BOUND_KEYS)}
    assert [key for key, column in columns.items() if column.group == "Other" or (column.label == key and "_" in key)] == []
    assert [label for label, n in Counter(column.label for column in columns.values()).items() if n > 1] == []
    assert {column.unit for column in columns.values()} <= {"count", "ratio", "share", "nats", "bits"}
    assert describe("something_new").label == "something_new"


def test_the_figures_of_the_model_stand_in_a_table(stats, page):
    table = re.search(r'<figure data-figure="headline">.*?</figure>', page, flags=re.DOTALL)[0]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", table)]
    rows = [[html.unescape(re.sub(r"<[^>]+>", "", cell)).replace("\u00a0", " ") for cell in row] for row in rows]
    assert rows[0] == ["Figure", "Typical layer", "95 % interval", "Over the layers", "What it tells"]
    assert rows[1:] == [[one.label.strip(), one.value, one.interval, one.extremes, one.meaning] for one in headline(stats)]
    assert 'class="under"' in table


def test_perplexity_stands_with_its_domain():
    stats = page_stats(domains=("code", "prose"), extras=False)
    assert "Perplexity" not in report_page(stats).split("<main>")[0]
    row = {"loss": 2.0, "perplexity": 7.389, "perplexity_low": 6.69, "perplexity_high": 8.17}
    none = dict.fromkeys(row)
    stats.summary["perplexity"] = {"all": row, "code": row, "prose": none}
    text = report_page(stats).split("<main>")[0]
    assert "<td>7.39 (6.69 to 8.17)</td>" in text
    assert "<td>\u2013</td>" in text


def test_asks_for_nothing(page):
    """No address but that of the SVG name space, which nobody fetches; and a policy that would refuse all the same."""
    assert set(re.findall(r"""(?:https?:)?//[\w.-]+\.\w+[^\s"']*""", page)) == {"http://www.w3.org/2000/svg"}
    reader = Reader(page)
    for tag, attributes in reader.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form"), tag
        assert "src" not in attributes
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|importScripts|sendBeacon|eval\(|innerHTML|console\.", page)


def test_policy_allows_its_own_style_and_script_only(page):
    [policy] = [meta["content"] for meta in Reader(page).all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))

    def hashed(text):
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules == {
        "default-src": "'none'",
        "script-src": hashed(re.search(r"<script>(.*?)</script>", page, flags=re.DOTALL)[1]),
        "style-src": hashed(re.search(r"<style>(.*?)</style>", page, flags=re.DOTALL)[1]),
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # Before anything it could refuse.
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<script")


HOSTILE = [
    "</script><script>alert(1)</script>", "<!--<script>", '"><img src=x onerror=alert(1)>', "'; DROP", "&amp; &lt;", "a\x00b\x1b[31mc\x7f",
    "\u202eevil\u2066", "line\u2028feed\n", "<!--slot:script-->", "=cmd()", "שלום", "</title></style>",
]  # fmt: skip


def test_hostile_names_and_tokens_stay_text(stats, page):
    hostile = report_page(page_stats(name=HOSTILE[0] + HOSTILE[1] + "\udcff", domains=tuple(HOSTILE), words=HOSTILE))
    hostile.encode()
    reader, usual = Reader(hostile), Reader(page)
    assert {tag for tag, _ in reader.elements} == {tag for tag, _ in usual.elements}
    for tag in ("script", "style", "title", "h1"):
        assert len(reader.all(tag)) == len(usual.all(tag))
    data = data_of(hostile)
    assert data["domains"] == ["all", *HOSTILE]
    assert data["model"]["name"] == HOSTILE[0] + HOSTILE[1] + "\udcff"
    assert set(data["vocabulary"]["words"]) == set(HOSTILE)
    assert {token for rows in data["specialists"].values() for row in rows for token in row[-1]} <= set(HOSTILE)
    block = re.search(r'id="data">(.*?)</script>', hostile, flags=re.DOTALL)[1]
    assert "<" not in block
    # Nothing invisible or turned around in what is written outside the data.
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u2028\u202e\u2066]", hostile.replace(block, ""))
    assert "⟨202E⟩evil⟨2066⟩" in hostile


@pytest.mark.parametrize(
    ("n_layers", "n_experts", "top_k", "most"), [(6, 16, 4, 250_000), (48, 128, 8, 2_200_000), (61, 256, 8, 6_000_000)]
)
def test_size(n_layers, n_experts, top_k, most):
    """With all there can be: every optional column, five domains, 40,000 different tokens."""
    words = [f" wörd{i * 7919 % 99991}" for i in range(40_000)]
    stats = page_stats(n_layers=n_layers, n_experts=n_experts, top_k=top_k, tokens=100_000, words=words)
    page = report_page(stats)
    assert len(page.encode()) <= most
    assert data_of(page)["left_out"] == []


def test_too_much_is_left_out_and_said(stats):
    whole = json_size(page_data(stats))
    # The matrices are the last to get room.
    data = page_data(stats, limit=whole + 800)
    assert data["coactivation"]["layers"] == [0, 2, 3, 5]
    assert len(unpacked(data["coactivation"]["lifts"])) == 4 * 120
    assert data["left_out"] == ["co-activation matrices of 2 of 6 layers"]
    assert json_size(data) <= whole + 800
    data = page_data(stats, limit=0)
    assert set(data["left_out"]) == {
        "mean weights", "strongest pairs of experts", "intervals of the experts' shares", "tokens of the experts", "co-activation matrices",
    }  # fmt: skip
    assert unpacked(data["experts"]["tokens"]).sum() == stats.experts["tokens"].sum()


def test_equal_runs_give_equal_pages(page):
    assert report_page(page_stats()) == page


def test_without_anything_optional():
    data = data_of(report_page(page_stats(n_layers=1, n_experts=4, top_k=4, domains=("book",), tokens=100, extras=False)))
    assert data["domain_difference"] is None
    assert data["favourites"] == data["specialists"] == {}
    assert not {"vocabulary", "intervals"} & set(data)


def test_no_token_at_all(stats_of):
    page = report_page(stats_of(tokens=0, overlap=None))
    assert "No token counts, so there is nothing to tell." in html.unescape(page)
    assert Reader(page)


def test_the_command_is_the_one_that_was_typed_or_stands_for_the_call():
    assert (
        reproduce({"provenance": {"arguments": ["route-stats", "my model", "--tokens", "9"]}}) == "moectl route-stats 'my model' --tokens 9"
    )
    called = {"arguments": ["script.py"], "model": "m", "sources": ["a=b.txt"], "tokens": None, "seq_len": 512, "skip_special": True}
    assert reproduce({"provenance": called}) == "moectl route-stats m --data a=b.txt --seq-len 512 --skip-special"


def luminance(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return sum(
        w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for w, c in zip((0.2126, 0.7152, 0.0722), channels, strict=True)
    )


def contrast(one, other):
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_marks_stand_out_from_the_paper(page, dark):
    named = {name: pair[dark] for name, *pair in re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", page)}
    full = {name: colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:]) for name, colour in named.items()}
    for text in ("ink", "soft", "accent"):
        for ground in ("paper", "wash", "tip"):
            assert contrast(full[text], full[ground]) >= 4.5, (text, ground)
    assert contrast(full["edge"], full["paper"]) >= 2.8
    series = re.findall(r"series: \[(.*?)\]", page, flags=re.DOTALL)[dark]
    for colour in re.findall(r"#\w{6}", series):
        assert contrast(colour, full["paper"]) >= 3, colour
