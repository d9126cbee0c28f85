from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from types import ModuleType

import pytest

from moectl.errors import DataError, ModelError, MoectlError, ResourceError, UsageError

HEAVY = ("torch", "pandas", "pyarrow", "huggingface_hub", "tokenizers", "transformers", "numpy")
BASE = ("route-stats", "some/model", "--data", "a.txt")


def python(code, *arguments, **options):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["route-stats", "--help"],
        ["--version"],
        ["route-stats"],
        ["inspect", "--help"],
        ["inspect", "demo"],
        ["inspect", "demo", "--format", "json", "--ranks", "4", "--what-if", "8,2"],
        ["inspect", "demo", "--tensors", "--format", "csv"],
    ],
)
def test_looking_around_imports_nothing_heavy(command):
    code = f"""
        import sys
        from moectl.cli.app import main
        main(sys.argv[1:])
        loaded = [name for name in {HEAVY!r} if name in sys.modules]
        sys.exit(f"imported {{loaded}}" if loaded else 0)
    """
    result = python(code, *command)
    assert result.returncode == 0, result.stderr


def test_version(run):
    assert run("--version") == (0, "moectl 0.1.0\n", "")


def test_python_m_is_the_same():
    result = subprocess.run([sys.executable, "-m", "moectl", "--version"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "moectl 0.1.0\n", "")
    result = subprocess.run([sys.executable, "-m", "moectl", "nope"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (2, "error: no such command `nope`\nhint: `moectl --help` lists what it takes\n")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_goes_to_stdout(run, flag):
    code, out, err = run(flag)
    assert (code, err) == (0, "")
    assert "route-stats" in out
    assert "--version" in out
    assert max(len(line) for line in out.splitlines()) <= 80


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_command_help(run, flag):
    code, out, err = run("route-stats", flag)
    assert (code, err) == (0, "")
    for text in ("MODEL", "--data", "Input", "Compute", "Output", "Examples:", "[default: 512]"):
        assert text in out
    assert "\x1b" not in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_no_command_is_a_usage_error_that_shows_the_help_on_stderr(run):
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "route-stats" in err


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["nope"], "no such command `nope`", "`moectl --help` lists what it takes"),
        (["--nope"], "no such option: `--nope`", "`moectl --help` lists what it takes"),
        (["route-stats"], "missing argument `MODEL`", "name a model, or a saved run with `--from DIR`"),
        (
            ["route-stats", "m", "--overwrit"],
            "no such option: `--overwrit`; did you mean `--overwrite`?",
            "`moectl route-stats --help` lists what it takes",
        ),
        (["route-stats", "m", "--data"], "option `--data` requires an argument", "add `--help` to see what the command takes"),
        (
            [*BASE, "--dtype", "int8"],
            "invalid value for `--dtype`: `int8` is not one of `auto`, `float32`, `bfloat16`",
            "`moectl route-stats --help` lists what it takes",
        ),
        ([*BASE, "--tokens", "many"], "`--tokens`: `many` is not a count", "write it like `4096`, `100k` or `1.5M`"),
        ([*BASE, "--memory", "16XB"], "`--memory`: `16XB` is not a size in bytes", "write it like `16GB`, `500MB` or `8GiB`"),
        (
            [*BASE, "--threads", "0"],
            "`--threads`: `0` is not a count: it must be above zero and below 2^63",
            "write it like `4096`, `100k` or `1.5M`",
        ),
        ([*BASE, "--device", "gpu"], "`--device`: `gpu` is not a device", "write `auto`, `cpu`, `cuda` or `cuda:1`"),
    ],
)
def test_usage_errors(run, api, arguments, message, hint):
    assert run(*arguments) == (2, "", f"error: {message}\nhint: {hint}\n")
    assert api.calls == []


def test_a_mistyped_command_is_recognised(run):
    code, _, err = run("route-stat", "m")
    assert code == 2
    assert "`route-stats`" in err


@pytest.mark.parametrize(("error", "code"), [(UsageError, 2), (ModelError, 3), (ResourceError, 4), (DataError, 5), (MoectlError, 1)])
def test_errors_of_the_library_are_one_message_and_their_code(run, api, error, code):
    api.error = error("cannot open `x`: no such file", hint="check the path")
    assert run(*BASE) == (code, "", "note: dtype is float32\nerror: cannot open `x`: no such file\nhint: check the path\n")


def test_an_error_without_a_hint_has_none(run, api):
    api.error = DataError("`a.txt` is empty")
    code, _, err = run(*BASE)
    assert (code, err.splitlines()[-1]) == (5, "error: `a.txt` is empty")


@pytest.mark.parametrize("arguments", [["--debug", *BASE], [*BASE, "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(run, api, arguments):
    api.error = ModelError("broken", hint="mend it")
    code, out, err = run(*arguments)
    assert (code, out) == (3, "")
    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: broken\nhint: mend it\n")


@pytest.mark.parametrize(("value", "traceback"), [("1", True), ("0", False), ("", False)])
def test_debug_by_environment(run, api, monkeypatch, value, traceback):
    monkeypatch.setenv("MOECTL_DEBUG", value)
    api.error = ModelError("broken")
    code, _, err = run(*BASE)
    assert code == 3
    assert ("Traceback" in err) is traceback


def test_debug_does_not_outlive_its_command(run, api):
    api.error = ModelError("broken")
    run(*BASE, "--debug")
    assert "Traceback" not in run(*BASE)[2]


def test_anything_else_is_a_bug(run, api):
    api.error = ZeroDivisionError("division by zero")
    code, out, err = run(*BASE)
    assert (code, out) == (1, "")
    assert "error: this is a bug in moectl: ZeroDivisionError: division by zero\n" in err
    assert "hint: run again with `--debug`" in err
    assert "Traceback" not in err


def test_a_bug_under_debug_does_not_ask_for_debug(run, api):
    api.error = ZeroDivisionError()
    _, _, err = run(*BASE, "--debug")
    assert "Traceback" in err
    assert err.endswith("error: this is a bug in moectl: ZeroDivisionError\n")


def test_ctrl_c(run, api):
    api.error = KeyboardInterrupt()
    code, out, err = run(*BASE)
    assert (code, out, err.splitlines()[-1]) == (130, "", "error: interrupted")


def test_out_of_memory(run, api):
    api.error = MemoryError()
    code, _, err = run(*BASE)
    assert code == 4
    assert "error: out of memory\nhint: lower `--memory`" in err


def test_out_of_memory_of_torch(run, api, monkeypatch):
    torch = ModuleType("torch")
    torch.OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})
    monkeypatch.setitem(sys.modules, "torch", torch)
    api.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
    code, _, err = run(*BASE)
    assert code == 4
    assert "error: out of memory: CUDA out of memory. Tried to allocate 2 GiB\n" in err


def test_out_of_memory_of_torch_on_a_cpu(run, api):
    api.error = RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
    assert run(*BASE)[0] == 4
    api.error = RuntimeError("shapes do not match")
    assert run(*BASE)[0] == 1


def test_a_reader_that_leaves_ends_the_command_quietly(tmp_path):
    # The pipe is closed before anything is written.
    code = """
        import sys
        from moectl.cli.app import main
        sys.exit(main(["--help"]))
    """
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (process.returncode, process.stderr) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("option", ["--version", "--help"])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_named(unbuffered, option, monkeypatch):
    """Whether the failure shows at the write or at the last flush."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        process = subprocess.run([sys.executable, "-m", "moectl", option], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert process.returncode == 4
    assert process.stderr.splitlines()[0] == "error: cannot write to standard output: the disk is full"
    assert "Exception ignored" not in process.stderr


@pytest.mark.parametrize(("number", "code", "last"), [("SIGTERM", 143, "error: stopped by SIGTERM"), ("SIGINT", 130, "error: interrupted")])
def test_a_signal_unwinds_and_leaves_nothing_behind(tmp_path, number, code, last):
    script = """
        import os, signal, sys, types
        from pathlib import Path
        from moectl.staging import staged_directory
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def run_route_stats(options, progress):
            with staged_directory(options.output, overwrite=False) as folder:
                (folder / "half").write_text("x")
                os.kill(os.getpid(), getattr(signal, sys.argv[2]))
                signal.pause()
        sys.modules["moectl.api"] = types.SimpleNamespace(run_route_stats=run_route_stats)
        from moectl.cli.app import main
        sys.exit(main(["route-stats", "m", "--data", "x", "--output", sys.argv[1]]))
    """
    result = python(script, str(tmp_path / "out"), number)
    assert (result.returncode, result.stdout, result.stderr.splitlines()[-1]) == (code, "", last)
    assert list(tmp_path.iterdir()) == []


def test_signal_handlers_are_given_back(run):
    before = signal.getsignal(signal.SIGTERM)
    run("--version")
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_ignored_signal_stays_ignored(run, api, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        seen = []
        monkeypatch.setattr(api, "run_route_stats", lambda options, progress: seen.append(signal.getsignal(signal.SIGHUP)) or api.stats)
        assert run(*BASE, "--format", "json")[0] == 0
        assert seen == [signal.SIG_IGN]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_colour_needs_a_terminal_and_no_color_wins(monkeypatch, capsys):
    from moectl.cli.console import Console

    console = Console()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    console.error("a", hint="b")
    assert capsys.readouterr().err == "error: a\nhint: b\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console.error("a")
    assert capsys.readouterr().err == "\x1b[1;31merror:\x1b[0m a\n"
    monkeypatch.setenv("NO_COLOR", "1")
    console.warn("a")
    assert capsys.readouterr().err == "warning: a\n"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    console.hint("a")
    assert capsys.readouterr().err == "hint: a\n"
