"""Scores that no fused kernel computes are written out a block at a time, and do not pile up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import re, sys, torch
from pathlib import Path
from moectl.arch.parts import GroupedQueryAttention
from moectl.model.causal import causal_written_out

def status(key):
    return int(re.search(rf"^{key}:\\s*(\\d+) kB$", Path("/proc/self/status").read_text(), re.M)[1]) * 1024

torch.set_num_threads(1)
S = 3072
spec = GroupedQueryAttention(n_heads=16, n_kv_heads=2, head_dim=32, scale=0.2, rope=None, sinks=True)
q, k, v = (torch.randn(1, n, S, 32, dtype=getattr(torch, sys.argv[1])) for n in (16, 2, 2))
sinks = torch.randn(16, dtype=q.dtype)
with torch.inference_mode():
    causal_written_out(spec, q[:, :, :64], k[:, :, :64], v[:, :, :64], sinks)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    causal_written_out(spec, q, k, v, sinks)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_that_of_a_block_not_of_all_scores(dtype: str) -> None:
    """All scores of the 16 heads would take 604 MB in float32; queries, keys, values and output take 16 MB."""
    run = subprocess.run([sys.executable, "-c", CODE, dtype], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100e6
