"""`report.html` in a real browser: it asks for nothing, complains of nothing, and does what its controls say."""

from __future__ import annotations

import csv
import io
import re
import time

import pytest
from chromium import PROGRAM, Chromium
from page_stats import page_stats

from moectl.report.domains import favourites
from moectl.report.page.build import report_page

pytestmark = [pytest.mark.browser, pytest.mark.skipif(PROGRAM is None, reason="no Chromium")]

DOMAINS = ("code", "</script><b>prose", 'ta"bles\n', "arithmetic")


@pytest.fixture(scope="module")
def stats():
    return page_stats(domains=DOMAINS, name="made-up/<moe>")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture(scope="module")
def path(stats, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(report_page(stats), encoding="utf-8")
    return file


@pytest.fixture
def page(browser, path):
    """A fresh page; whatever the test did, the page must have kept silent and to itself."""
    browser.events.clear()
    opened = browser.open(path)
    yield opened
    assert opened.complaints == []
    assert opened.requests == []


def changed(page, identity, value, event="change"):
    page.run(f"box = document.getElementById('{identity}'); box.value = '{value}'; box.dispatchEvent(new Event('{event}')); 0")


def choose(page, domain):
    changed(page, "text", domain)


def typed(page, identity, text):
    changed(page, identity, text, "input")


def in_figure(name, selector):
    return f"document.querySelector('[data-figure={name}] {selector}')"


def saved(page, figure, kind="CSV"):
    buttons = f"[...document.querySelectorAll('[data-figure={figure}] .save button')]"
    return page.download(f"{buttons}.find((one) => one.textContent === '{kind}').click()").read_bytes()


def rows_of(page, figure):
    return list(csv.DictReader(io.StringIO(saved(page, figure).decode(), newline="")))


def column(page, at):
    return page.run(f"[...document.querySelectorAll('[data-figure=layers] tbody tr')].map((row) => row.children[{at}].textContent)")


def test_draws_every_figure(page):
    drawn = page.run(
        "[...document.querySelectorAll('figure')].map((one) => "
        "[one.dataset.figure, Boolean(one.querySelector('.plot > canvas, .plot > svg, table'))])"
    )
    assert dict(drawn) == dict.fromkeys(
        ["headline", "map", "curves", "balance", "difference", "favourites", "specialists", "pairs", "neighbours", "lags", "layers"], True
    )
    assert page.run("document.querySelector('h1').textContent") == "made-up/<moe>"
    assert page.run("document.title") == "made-up/<moe> · routing statistics"
    # A canvas that is all of one colour shows nothing.
    pixels = f"{in_figure('map', 'canvas')}.getContext('2d').getImageData(0, 0, 600, 200).data.buffer"
    assert page.run(f"new Set(new Uint32Array({pixels})).size") > 20


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_is_no_wider_than_the_window(browser, path, width, height):
    page = browser.open(path, width=width, height=height)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.complaints == []


def test_the_domain_changes_every_figure(page, stats):
    before = rows_of(page, "map")
    choose(page, 2)
    after = rows_of(page, "map")
    for rows, domain in ((before, "all"), (after, DOMAINS[1])):
        table = stats.experts[stats.experts["domain"] == domain]
        assert [row["domain"] for row in rows] == [domain] * len(table)
        for key in ("layer", "expert", "tokens"):
            assert [int(row[key]) for row in rows] == table[key].tolist()
        # The page's own quotients are those of the table.
        assert [float(row["relative_load"]) for row in rows] == table["relative_load"].tolist()
        assert [float(row["share"]) for row in rows] == table["share"].tolist()
    layers = stats.layers[stats.layers["domain"] == DOMAINS[1]]
    assert [float(row["max_vio"]) for row in rows_of(page, "balance")] == layers["max_vio"].tolist()
    assert "prose" in page.run('document.querySelector(\'[data-figure="map"] [data-part="caption"]\').textContent')
    assert page.run("[...document.getElementById('text').options].map((one) => one.textContent)") == [
        "all text", "code", "</script><b>prose", 'ta"bles⟨A⟩', "arithmetic",
    ]  # fmt: skip


def test_lift_needs_a_domain_and_takes_one(page):
    page.run("document.querySelector('input[name=quantity][value=lift]').click()")
    assert page.run("document.getElementById('text').value") == "1"
    choose(page, 0)
    assert page.run("document.querySelector('input[name=quantity]:checked').value") == "load"


def test_the_table_sorts_by_mouse_and_keyboard(page, stats):
    rows = stats.layers[stats.layers["domain"] == "all"].sort_values("gini", ascending=False, kind="stable")
    page.run("document.querySelector('[data-key=gini] button').focus()")
    page.press("Enter")
    assert column(page, 0) == [f"! {layer}" if f"! {layer}" in column(page, 0) else str(layer) for layer in rows["layer"]]
    assert page.run("document.querySelector('[data-key=gini]').getAttribute('aria-sort')") == "descending"
    assert "Gini coefficient" in page.run("document.getElementById('column-help').textContent")
    page.press("Enter")
    assert page.run("document.querySelector('[data-key=gini]').getAttribute('aria-sort')") == "ascending"
    page.run("document.querySelector('[data-key=layer] button').click()")
    assert [int(text.removeprefix("! ")) for text in column(page, 0)] == list(stats.moe_layers)


def test_the_table_is_filtered_and_its_columns_chosen(page, stats):
    rows = stats.layers[stats.layers["domain"] == "all"].set_index("layer")
    limit = round(float(rows["max_vio"].median()), 3)
    typed(page, "filter", f"max_vio > {limit}")
    assert [int(text.removeprefix("! ")) for text in column(page, 0)] == rows.index[rows["max_vio"] > limit].tolist()
    typed(page, "filter", "2-3, 6")
    assert [int(text.removeprefix("! ")) for text in column(page, 0)] == [2, 3, 6]
    # A share is shown as per cent and may be asked for as such, with the sign or without.
    half = rows.index[rows["next_token_overlap"] > float(rows["next_token_overlap"].median())].tolist()
    percent = 100 * float(rows["next_token_overlap"].median())
    for condition in (f"next_token_overlap > {percent}", f"next-token overlap > {percent} %", f"next_token_overlap > {percent / 100}"):
        typed(page, "filter", condition)
        assert [int(text.removeprefix("! ")) for text in column(page, 0)] == half, condition
    typed(page, "filter", "nonsense > 3")
    assert page.run("document.getElementById('filter').getAttribute('aria-invalid')") == "true"
    assert page.run("[...document.querySelectorAll('[data-figure=layers] [role=status]')].at(-1).textContent") == "cannot read this filter"
    typed(page, "filter", "")
    page.run("document.querySelector('input[name=group][value=Confidence]').click()")
    assert "router_entropy" in page.run("[...document.querySelectorAll('[data-figure=layers] th[data-key]')].map((one) => one.dataset.key)")
    assert [float(row["router_entropy"]) for row in rows_of(page, "layers")] == rows["router_entropy"].tolist()


def test_the_table_shows_intervals_on_demand(page, stats):
    table = "[...document.querySelectorAll('[data-figure=layers] tbody tr')].map((row) => [...row.querySelectorAll('small')].length)"
    titles = "[...document.querySelectorAll('[data-figure=layers] tbody tr:first-child td')].map((cell) => cell.title)"
    rows = stats.layers[stats.layers["domain"] == "all"]
    low, high = rows[["max_vio_low", "max_vio_high"]].iloc[0]
    assert page.run(f"{table}.every((n) => n === 0)")
    assert page.run(titles)[0] == f"95\u00a0% interval {low:.2f} \u2013 {high:.2f}"
    assert "max_vio_low" not in rows_of(page, "layers")[0]
    page.run("document.querySelector('[data-figure=layers] .check input').click()")
    assert page.run(f"{table}.every((n) => n > 3)")
    assert page.run("document.querySelector('[data-figure=layers] tbody small').textContent") == f"{low:.2f} \u2013 {high:.2f}"
    saved_rows = rows_of(page, "layers")
    for end in ("max_vio_low", "max_vio_high"):
        assert [float(row[end]) for row in saved_rows] == rows[end].tolist()


def test_a_column_has_the_same_digits_in_every_row(page):
    heads = page.run("[...document.querySelectorAll('[data-figure=layers] th[data-key]')].map((one) => one.dataset.key)")
    for at in range(1, len(heads)):
        digits = {len(text.replace("\u00a0%", "").partition(".")[2]) for text in column(page, at)}
        assert len(digits) == 1, heads[at]
    assert {len(text.partition(".")[2]) for text in column(page, heads.index("max_vio"))} == {2}


def test_specialists_stand_with_the_tokens_of_their_domain(page, stats):
    rows = rows_of(page, "specialists")
    found = favourites(stats)
    table, experts = stats.vocabulary, stats.experts.set_index(["domain", "layer", "expert"])
    for name in DOMAINS:
        mine = [row for row in rows if row["domain"] == name]
        clearest = sorted(found[name].items(), key=lambda pair: -pair[1].gain)[:3]
        assert [(int(row["layer"]), int(row["expert"])) for row in mine] == [(layer, one.expert) for layer, one in clearest]
        for row, (layer, one) in zip(mine, clearest, strict=True):
            own = table[(table["domain"] == name) & (table["layer"] == layer) & (table["expert"] == one.expert)].sort_values("rank")
            assert row["tokens"] == " | ".join(own["token"])
            assert float(row["share_low"]) == experts.loc[(name, layer, one.expert), "share_low"]
            assert float(row["share_of_all_text"]) == experts.loc[("all", layer, one.expert), "share"]
    first = page.run(
        "[...document.querySelectorAll('[data-figure=specialists] tbody tr:first-child .token')].map((one) => one.textContent)"
    )
    assert len(first) == 10
    assert rows_of(page, "headline")[0]["Figure"] == "MaxVio"


def test_the_lag_chart_tells_its_values_and_baselines(page, stats):
    page.run(f"{in_figure('lags', '.plot')}.focus()")
    page.press("ArrowRight")
    spoken = page.run("document.getElementById('live').textContent")
    rows = stats.layers[stats.layers["domain"] == "all"]
    assert spoken.startswith(f"2 tokens apart: median of the layers {100 * rows['overlap_lag_2'].median():.1f}\u00a0%")
    load, even = (100 * rows[f"next_token_overlap_{name}"].median() for name in ("load_aware", "uniform"))
    assert f"by load, median {load:.1f}\u00a0%, even load {even:.1f}\u00a0%" in spoken
    page.press("Home")
    assert "Neighbouring tokens: " in page.run("document.getElementById('live').textContent")


def test_every_panel_tells_its_own_values(page):
    page.run(f"{in_figure('neighbours', '.plot')}.focus()")
    page.press("ArrowDown")
    spoken = page.run("document.getElementById('live').textContent")
    assert spoken.startswith("Layer 1, any expert shared: measured ")
    assert re.search(r"measured [\d.]+\u00a0% \([\d.]+\u00a0% \u2013 [\d.]+\u00a0%\), by load [\d.]+\u00a0%, even load", spoken)


def test_keys_move_through_the_heat_map(page, stats):
    page.run(f"{in_figure('map', '.plot')}.focus()")
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.press(key)
    spoken = page.run("document.getElementById('live').textContent")
    [row] = stats.experts[(stats.experts["domain"] == "all") & (stats.experts["layer"] == 2) & (stats.experts["expert"] == 2)].to_dict(
        "records"
    )
    assert spoken.startswith(f"Layer 2, expert 2: tokens {row['tokens']:,} of 80,000, share of picks ")
    assert page.run("document.getElementById('tip').hidden") is False
    page.press("End")
    assert page.run("document.getElementById('live').textContent").startswith("Layer 2, expert 15:")
    page.run("document.querySelector('input[name=sorted][value=load]').click()")
    page.run(f"{in_figure('map', '.plot')}.focus()")
    page.press("Home")
    busiest = stats.experts[(stats.experts["domain"] == "all") & (stats.experts["layer"] == 2)].sort_values("tokens")["expert"].iloc[-1]
    assert page.run("document.getElementById('live').textContent").startswith(f"Layer 2, expert {busiest}:")


def test_everything_is_reached_by_tab(page):
    page.run("document.body.focus()")
    reached = set()
    for _ in range(120):
        page.press("Tab")
        reached.add(
            page.run(
                "one = document.activeElement; "
                "one.id || one.closest('figure')?.dataset.figure + '/' + (one.className || one.name || one.textContent)"
            )
        )
    assert {
        "text",
        "theme",
        "filter",
        "which",
        "pair-layer",
        "map/plot cells",
        "pairs/plot cells",
        "curves/plot lines",
        "map/CSV",
        "layers/group",
    } <= reached


def test_the_pointer_shows_a_tip(page):
    page.run("document.querySelector('#map').scrollIntoView({behavior: 'instant'})")
    box = page.run(f"box = {in_figure('map', 'canvas')}.getBoundingClientRect(); [box.x, box.y]")
    page.hover(box[0] + 60, box[1] + 40)
    text = page.run("document.getElementById('tip').textContent")
    assert text.startswith("Layer 1, expert 0")
    assert "</script><b>prose" in text


def test_pairs_of_another_layer(page, stats):
    changed(page, "pair-layer", 3)
    rows = rows_of(page, "pairs")
    assert len(rows) == 120
    counts = stats.coactivation_LEE[3]
    for row in rows:
        i, j = int(row["first"]), int(row["second"])
        if row["tokens_of_both"]:
            assert int(row["tokens_of_both"]) == counts[i, j]
        if row["lift"]:
            assert float(row["lift"]) == pytest.approx(counts[i, j] * 80_000 / (counts[i, i] * counts[j, j]), rel=0.025)


@pytest.mark.parametrize("figure", ["map", "curves", "balance", "difference", "favourites", "pairs", "neighbours", "lags"])
def test_drawings_are_saved(page, figure):
    from xml.etree import ElementTree

    drawing = ElementTree.fromstring(saved(page, figure, "SVG"))
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(drawing) > 10
    assert saved(page, figure, "PNG").startswith(b"\x89PNG")
    assert len(rows_of(page, figure)) > 3


def test_tables_stand_in_for_figures(page, stats):
    page.run("document.querySelectorAll('details.alternative').forEach((one) => { one.open = true; })")
    time.sleep(0.2)
    sizes = page.run(
        "Object.fromEntries([...document.querySelectorAll('.alternative')].map((one) => "
        "[one.closest('figure').dataset.figure, one.querySelectorAll('tbody tr').length]))"
    )
    assert sizes["map"] == sizes["balance"] == sizes["neighbours"] == 6
    assert sizes["curves"] == 16
    assert min(sizes.values()) > 0


def test_dark_by_wish_and_by_button(browser, path):
    browser.events.clear()
    page = browser.open(path, media={"prefers-color-scheme": "dark"})
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.run(paper) == "rgb(20, 23, 27)"
    page.run("document.getElementById('theme').click()")
    assert page.run(paper) == "rgb(255, 255, 255)"
    assert page.complaints == []


def test_prints_light_and_opened(browser, path, tmp_path):
    browser.events.clear()
    page = browser.open(path, media={"prefers-color-scheme": "dark"})
    page.run(
        "window.addEventListener('beforeprint', () => { window.seen = [document.querySelector('details.definitions').open, "
        f"{in_figure('balance', 'svg')}.getAttribute('width')] }})"
    )
    page.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    opened, width = page.run("window.seen")
    assert opened is True
    assert float(width) <= 680
    assert page.run("document.querySelector('details.definitions').open") is False
    assert page.complaints == []


def test_a_complaint_would_be_noticed(browser, tmp_path):
    browser.events.clear()
    file = tmp_path / "bad.html"
    file.write_text("<script>console.log(1); fetch('http://127.0.0.1:9/x').catch(() => {}); missing()</script>")
    page = browser.open(file)
    assert len(page.complaints) >= 2
    assert page.requests == ["http://127.0.0.1:9/x"]


def test_a_large_model_is_drawn_in_time(browser, tmp_path):
    browser.events.clear()
    file = tmp_path / "large.html"
    file.write_text(report_page(page_stats(n_layers=61, n_experts=256, top_k=8)), encoding="utf-8")
    page = browser.open(file, width=390, height=844)
    assert page.run(f"{in_figure('pairs', 'canvas')}.width") > 300
    assert page.complaints == []
    assert page.requests == []
