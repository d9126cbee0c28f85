"""How long `moectl --help` takes, beside a Python that does nothing. The last line is JSON.

python bench/startup.py --runs 11
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    """Wall time of one process from start to exit."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Time both in turn, so that a busy spell of the machine falls on both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=11)
    runs = parser.parse_args().runs
    commands = {"help": [sys.executable, "-m", "moectl", "--help"], "python": [sys.executable, "-c", "pass"]}
    for command in commands.values():
        seconds(command)  # caches
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            times[name].append(seconds(command))
    median = {name: statistics.median(values) for name, values in times.items()}
    where = f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}"
    print(f"moectl --help: {median['help']:.3f} s; python -c pass: {median['python']:.3f} s; median of {runs} runs, {where}")
    print(json.dumps({"bench": "startup", "runs": runs, "help_s": round(median["help"], 4), "python_s": round(median["python"], 4)}))


if __name__ == "__main__":
    main()
