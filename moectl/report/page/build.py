"""The page as HTML: what it says in words is written here, its figures are drawn in the browser from the data block.

    html = report_page(stats)

Nothing is fetched: styles and scripts stand in the page, and its Content-Security-Policy allows these by their hashes and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import shlex
import unicodedata
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from moectl.report.attention import attention
from moectl.report.findings import findings
from moectl.report.headline import headline
from moectl.report.numerals import extent, three_digits
from moectl.report.page.data import json_text, page_data
from moectl.report.rows import overall_rows

if TYPE_CHECKING:
    from moectl.routing.result import RouteStats

# In this order: later ones use what earlier ones define.
_SCRIPTS = (
    "text",
    "store",
    "theme",
    "surface",
    "figure",
    "matrix",
    "chart",
    "map",
    "curves",
    "balance",
    "domains",
    "pairs",
    "neighbours",
    "table",
    "start",
)
_MOST_ATTENTION = 8
_CODE = re.compile("`([^`]*)`")
_PERCENT = re.compile(r"(?<=\d) %")
_ABBREVIATIONS = {"gb": "(GB)", "rss": "RSS", "sha256": "SHA-256", "seq": "sequence", "len": "length"}
_SLOT = re.compile(r"<!--slot:(\w+)-->")


def report_page(stats: RouteStats) -> str:
    """The whole of `report.html`. Equal statistics give equal text; `provenance` and `throughput` of the summary are in it as they are."""
    style = _asset("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(f"{name}.js") for name in _SCRIPTS) + "})();\n"
    model = stats.summary.get("model", {})
    slots = {
        "policy": html.escape(
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:; "
            "base-uri 'none'; form-action 'none'"
        ),
        "title": _plain(model.get("name", "")),
        "name": _text(model.get("name", "")),
        "facts": _facts(stats),
        "verdict": _verdict(stats),
        "attention": _attention(stats),
        "headline": _headline(stats),
        "provenance": _provenance(stats.summary),
        "command": _text(reproduce(stats.summary)),
        "style": style,
        "script": script,
        "data": json_text(page_data(stats)),
    }
    # In one pass, so that nothing put in is read as a slot.
    return _SLOT.sub(lambda match: slots[match[1]], _asset("page.html"))


def reproduce(summary: Mapping[str, Any]) -> str:
    """The command line that measures the same again."""
    provenance = summary.get("provenance", {})
    arguments = provenance.get("arguments") or []
    if arguments[:1] == ["route-stats"]:
        return shlex.join(["moectl", *arguments])
    line = ["moectl", "route-stats", str(provenance.get("model", summary.get("model", {}).get("name", "MODEL")))]
    for source in provenance.get("sources", []):
        line += ["--data", str(source)]
    for name in ("tokens", "seq_len", "batch_tokens", "dtype"):
        if provenance.get(name) is not None:
            line += [f"--{name.replace('_', '-')}", str(provenance[name])]
    return shlex.join([*line, *(["--skip-special"] if provenance.get("skip_special") else [])])


def _facts(stats: RouteStats) -> str:
    model, data, rows = stats.summary.get("model", {}), stats.summary.get("data", {}), overall_rows(stats)
    shared = model.get("shared_experts")
    entries = [
        ("Family", model.get("model_type")),
        ("Layers", f"{len(rows)} with experts, of {model['layers']}" if "layers" in model else len(rows)),
        ("Experts", extent(rows["n_experts"])),
        ("Per token", f"{extent(rows['top_k'])}{f' + {shared} shared' if shared else ''}"),
        ("Tokens", f"{sum(row['tokens'] for row in data.values()):,}" if data else None),
        ("Sequences", f"{sum(row['sequences'] for row in data.values()):,}" if data else None),
    ]
    facts = "".join(f"<div><dt>{name}</dt><dd>{_text(value)}</dd></div>" for name, value in entries if value is not None)
    routing = f'<p class="routing"><span>Routing</span> {_text(model["routing"])}</p>' if "routing" in model else ""
    return f'<dl class="facts">{facts}</dl>\n{routing}\n{_domains(data, stats.summary.get("perplexity") or {})}'


def _domains(data: Mapping[str, Mapping[str, Any]], perplexity: Mapping[str, Mapping[str, Any]]) -> str:
    if not data:
        return ""
    known = {name: row for name, row in perplexity.items() if name in data and row.get("perplexity") is not None}
    cells = "".join(
        f'<tr><th scope="row">{_text(name)}</th>'
        + "".join(f"<td>{row[key]:,}</td>" for key in ("documents", "sequences", "tokens"))
        + (f"<td>{_of_perplexity(known.get(name))}</td>" if known else "")
        + "</tr>"
        for name, row in data.items()
    )
    names = ("Domain", "Documents", "Sequences", "Tokens", *(["Perplexity (95 % interval)"] if known else []))
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f'<div class="scroll"><table class="small"><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'


def _of_perplexity(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "\N{EN DASH}"
    between = ""
    if row.get("perplexity_low") is not None:
        between = f" ({three_digits(row['perplexity_low'])} to {three_digits(row['perplexity_high'])})"
    return f"{three_digits(row['perplexity'])}{between}"


def _verdict(stats: RouteStats) -> str:
    entries = ((_text(finding.label), _CODE.sub(r"<code>\1</code>", _sentence(finding.text))) for finding in findings(stats))
    return "\n".join(f"<div><dt>{label}</dt><dd>{text}</dd></div>" for label, text in entries)


def _headline(stats: RouteStats) -> str:
    """The table of the figures, if there are any; a label that starts with spaces goes under the one above it."""
    figures = headline(stats)
    if not figures:
        return ""
    typical = "Typical layer" if len(overall_rows(stats)) > 1 else "Value"
    names = ("Figure", typical, "95 % interval", "Over the layers")
    head = "".join(f'<th scope="col">{_sentence(name)}</th>' for name in names) + '<th scope="col" class="words">What it tells</th>'
    under = ' class="under"'
    rows = "".join(
        f'<tr><th scope="row"{under if figure.label.startswith(" ") else ""}>{_text(figure.label.strip())}</th>'
        + "".join(f"<td>{_sentence(text) if text else ''}</td>" for text in (figure.value, figure.interval, figure.extremes))
        + f'<td class="words">{_sentence(figure.meaning)}</td></tr>'
        for figure in figures
    )
    return (
        '<h3>The model in figures</h3>\n<figure data-figure="headline">\n'
        "<figcaption><b>Table 1.</b> A typical layer is the median over the layers, and so are the two ends of its interval: the layer in "
        "the middle is as sure as that. The lowest and the highest value come with their layer in brackets.</figcaption>\n"
        '<div class="scroll" tabindex="0" role="region" aria-label="The model in figures">'
        f'<table class="small"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n</figure>'
    )


def _attention(stats: RouteStats) -> str:
    entries = attention(stats)
    if not entries:
        return "<p>None stands out from the others.</p>"
    # One line more is no longer than a line that says that there is one.
    named = entries if len(entries) == _MOST_ATTENTION + 1 else entries[:_MOST_ATTENTION]
    items = [f"<li><b>Layer {entry.layer}</b> {_sentence('; '.join(entry.reasons))}</li>" for entry in named]
    if len(entries) > len(named):
        items.append(f'<li>and {len(entries) - len(named)} more, marked ! in <a href="#layers">the layer table</a></li>')
    return f"<ul>{''.join(items)}</ul>"


def _provenance(summary: Mapping[str, Any]) -> str:
    entries = []
    for key, value in {**summary.get("provenance", {}), **summary.get("throughput", {})}.items():
        if value in (None, [], ()):
            continue
        name = " ".join(_ABBREVIATIONS.get(word, word) for word in key.split("_"))
        if isinstance(value, Mapping):
            shown = "<br>".join(f"{_text(name)} {_text(entry)}" for name, entry in value.items())
        elif isinstance(value, list | tuple):
            shown = _text(shlex.join(str(item) for item in value))
        elif isinstance(value, bool):
            shown = "yes" if value else "no"
        elif isinstance(value, float):
            shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        else:
            shown = _text(value)
        entries.append(f"<div><dt>{_text(name)}</dt><dd>{shown}</dd></div>")
    return "".join(entries)


def _text(value: Any) -> str:
    """For the body: escaped, and in a direction of its own."""
    return f"<bdi>{_plain(value)}</bdi>"


def _sentence(text: str) -> str:
    """The same of words for people: a per cent sign stays on the line of its number."""
    return _PERCENT.sub("\N{NO-BREAK SPACE}%", _text(text))


def _plain(value: Any) -> str:
    """Escaped; characters that have no look of their own, or would turn the text around, by their number."""
    shown = "".join(f"⟨{ord(c):X}⟩" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in str(value))
    return html.escape(shown)


def _asset(name: str) -> str:
    return (files("moectl.report.page") / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
