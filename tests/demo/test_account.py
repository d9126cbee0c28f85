"""The parts of the demo model's account that need no model."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from account import thin
from chart import Line, line_chart
from measure import last_heldout, read_log


def step(n):
    return {"step": n, "loss": 3.0, "layers": {"1": {"max_vio": 0.5, "load_fractions": [0.5, 0.5]}}}


def evaluation(n, mean):
    return {"step": n, "heldout": {"mean": mean, "code": 1.0}}


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(step(10)) + "\n" + json.dumps(step(20))[:-1])
    assert read_log(path) == [step(10)]


def test_a_thinned_log_keeps_evaluations_and_both_ends():
    log = [evaluation(0, 7.6), *map(step, (10, 40, 50, 60)), evaluation(60, 3.0), *map(step, (100, 110, 120)), evaluation(120, 2.5)]
    thinned = thin(log)
    assert [line["step"] for line in thinned if "loss" in line] == [10, 50, 100, 120]
    assert [line for line in thinned if "heldout" in line] == [line for line in log if "heldout" in line]
    assert thinned[1] == {"step": 10, "loss": 3.0, "layers": {"1": {"max_vio": 0.5}}}
    assert "load_fractions" in log[1]["layers"]["1"]


def test_the_last_evaluation_counts():
    assert last_heldout([evaluation(0, 7.6), evaluation(60, 3.0), step(70)]) == (60, {"all": 3.0, "code": 1.0})
    assert last_heldout([step(10)]) is None


def test_a_chart_is_xml_and_keeps_within_its_frame():
    chart = line_chart(
        [Line("a < b", [(0, 7.63), (2600, 2.31)]), Line("base", [(0, 2.71), (2600, 2.71)], dashed=True)],
        title="Loss",
        x_label="step",
        y_label="nats",
    )
    root = ElementTree.fromstring(chart)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    lines = [node for node in root.iter() if node.tag.endswith("polyline")]
    points = [[tuple(map(float, point.split(","))) for point in line.attrib["points"].split()] for line in lines]
    assert all(0 < x < width and 0 < y < height for line in points for x, y in line)
    (x0, high), (x1, low) = points[0]
    assert x0 < x1
    assert high < points[1][0][1] < low  # SVG counts downwards
    assert "a < b" in [node.text for node in root.iter()]
