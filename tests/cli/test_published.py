from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/guides/inspect.md", "docs/guides/route-stats.md", "docs/reference/cli.md"]
# Scripts rely on these. A flag is added here on purpose, and never taken away by accident.
FLAGS = {
    "convert": [
        "--debug", "--dry-run", "--dtype", "--format", "--layout", "--overwrite", "--shard-size", "--threads", "--verbose", "-v",
    ],
    "inspect": ["--cache-bits", "--context", "--debug", "--format", "--ranks", "--tensors", "--what-if"],
    "route-stats": [
        "--active-experts", "--batch-tokens", "--data", "--debug", "--device", "--dry-run", "--dtype", "--export", "--format", "--from",
        "--memory", "--order", "--output", "--overwrite", "--perplexity", "--seq-len", "--skip-special", "--text-field", "--threads",
        "--tokens", "--trace", "--verbose", "-v",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands_in(page):
    """The `moectl` command lines of a page's console blocks, without shell redirections."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.removeprefix("$ ").split(" > ")[0] for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("moectl ") and "[OPTIONS]" not in line]


def test_the_flags_are_frozen(generate):
    found = {name: sorted(f for _, option, _ in generate.parameters(info.callback) for f in generate.flags(option))
             for name, info in generate.commands().items()}  # fmt: skip
    assert found == FLAGS


def test_the_reference_is_fresh(generate):
    assert (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8") == generate.reference(), "run `make docs`"


def test_the_completions_are_fresh(generate):
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "completions").iterdir()}
    assert files == generate.completions(), "run `make docs`"


@pytest.mark.parametrize("command", FLAGS)
def test_the_reference_covers_every_flag_of_the_help(generate, run, command):
    _, out, _ = run(command, "--help")
    for flag in FLAGS[command]:
        assert flag in out
        assert re.search(rf"[`, ]{flag}[ ,`]", generate.reference())


@pytest.mark.parametrize(
    ("shell", "variables", "expected"),
    [
        ("bash", {"COMP_WORDS": "moectl route-stats --tok", "COMP_CWORD": "2"}, "--tokens"),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "moectl rou"}, "route-stats"),
        ("fish", {"_TYPER_COMPLETE_ARGS": "moectl rou", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}, "route-stats"),
    ],
)
def test_completion_completes(shell, variables, expected):
    code = "import sys; from moectl.cli.app import main; sys.exit(main())"
    environment = {**variables, "_MOECTL_COMPLETE": f"complete_{shell}", "PYTHONPATH": str(ROOT), "PATH": ""}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert expected in result.stdout, result.stderr


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_documents_work(page, api, run, monkeypatch):
    from moectl.report.terminal import summary

    monkeypatch.setattr(summary, "render", lambda stats, width: "")
    commands = commands_in(page)
    assert commands
    for command in commands:
        code, _, err = run(*command)
        assert code == 0, f"{command}: {err}"


def test_the_examples_of_the_help_work(api, run, monkeypatch, generate):
    from moectl.report.terminal import summary

    monkeypatch.setattr(summary, "render", lambda stats, width: "")
    for info in generate.commands().values():
        examples = [line for line in info.epilog.splitlines() if line.startswith("moectl")]
        assert examples
        for example in examples:
            code, _, err = run(*shlex.split(example.split(" > ")[0])[1:])
            assert code == 0, f"{example}: {err}"


def test_the_python_of_readme_calls_what_exists(monkeypatch, capsys):
    import pandas as pd

    import moectl

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    seen = {}

    def route_stats(model, *, data, tokens):
        seen.update(model=model, data=data, tokens=tokens)
        row = {"domain": ["all"], "layer": [0], "max_vio": [0.1], "max_vio_noise_floor": [0.1]}
        return SimpleNamespace(layers=pd.DataFrame(row))

    monkeypatch.setitem(vars(moectl), "route_stats", route_stats)
    exec(compile(code, "README.md", "exec"), {})
    assert seen["tokens"] == 10_000
    assert "max_vio" in capsys.readouterr().out


def test_links_between_the_documents_lead_somewhere():
    for page in [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "docs/dev-log.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("https://"):
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_make_targets_the_documents_name_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for page in ["README.md", "CONTRIBUTING.md", ".pre-commit-config.yaml", ".github/workflows/ci.yml", ".ci/run"]:
        for name in re.findall(r"(?:`|\$ |entry: |run: |exec )make ([a-z]+)", (ROOT / page).read_text(encoding="utf-8")):
            assert name in targets, f"{page}: make {name}"


def test_every_dependency_is_pinned():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "==" in line}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[<>=]", name)[0] for name in wanted} - {"moectl"}
    assert names <= pinned
    assert "+" not in (ROOT / "constraints.txt").read_text(encoding="utf-8")
