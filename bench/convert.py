"""FP8 to bfloat16: `moectl convert` beside a copy of the output, and beside the plain script one would write. The last line is JSON.

python bench/convert.py --gigabytes 6 --rounds 5

A DeepSeek-V3 with ragged blocks and random codes is written into a scratch folder, half as large and as large as asked. Every round
converts it, copies the result with `cp` and writes that through to the disk as moectl does, and runs the script: each shard loaded whole,
dequantised by cast and product, saved. All are processes of their own; shown are medians of gigabytes of output per second over the whole
process, and the peak memory. Files are in the page cache. The three results are compared byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from moectl.arch.registry import spec_in_layout
from moectl.checkpoint.writer import CheckpointWriter, PlannedTensor

BLOCK = 128
CONFIG = {
    "model_type": "deepseek_v3", "vocab_size": 2048, "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16,
    "intermediate_size": 6000, "moe_intermediate_size": 1400, "q_lora_rank": 700, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128, "v_head_dim": 128, "n_routed_experts": 64, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "n_shared_experts": 1, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]},
}  # fmt: skip
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(int(sys.argv[3]))
source, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir()
for shard in sorted(source.glob("*.safetensors")):
    tensors = load_file(shard)
    made = {}
    for name, tensor in tensors.items():
        scales = tensors.get(name + "_scale_inv")
        if scales is not None:
            rows, columns = tensor.shape
            wide = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
            made[name] = (tensor.float() * wide).to(torch.bfloat16)
        elif not name.endswith("_scale_inv"):
            made[name] = tensor
    save_file(made, out / shard.name, metadata={"format": "pt"})
"""


def write_model(folder: Path, gigabytes: float) -> None:
    """A model of about `gigabytes` of FP8 codes, with real scales; no code is a NaN."""
    per_layer = 3 * CONFIG["n_routed_experts"] * CONFIG["hidden_size"] * CONFIG["moe_intermediate_size"]
    config = CONFIG | {"num_hidden_layers": 1 + max(1, round(gigabytes * 1e9 / per_layer))}
    plan = []
    for ref in spec_in_layout(config, "hub", names=()).refs():
        plain = len(ref.shape) < 2 or any(part in ref.name for part in ("embed_tokens", "lm_head", "mlp.gate."))
        plan.append(PlannedTensor(ref.name, "F32" if ref.keep_float32 else "BF16" if plain else "F8_E4M3", ref.shape))
        if not plain:
            plan.append(PlannedTensor(f"{ref.name}_scale_inv", "F32", tuple(-(-size // BLOCK) for size in ref.shape)))
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    with CheckpointWriter(folder, plan, shard_size=1_000_000_000) as writer:
        for planned in plan:
            if planned.dtype == "F8_E4M3":
                codes = torch.randint(0, 256, planned.shape, dtype=torch.uint8, generator=generator)
                codes[(codes & 127) == 127] = 0
                writer.write(planned.name, codes.view(torch.float8_e4m3fn))
            else:
                values = 0.1 + torch.rand(planned.shape, generator=generator)
                writer.write(planned.name, values * 0.01 if planned.dtype == "F32" else values.bfloat16())
    (folder / "config.json").write_text(json.dumps(config))


# A process counts as its own peak what its parent held when it was started, so the parent is a small one.
TIMER = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9)
"""


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds and peak gigabytes of a process."""
    told = subprocess.run([sys.executable, "-S", "-c", TIMER, *command], stdout=subprocess.PIPE, check=True, text=True).stdout
    taken, peak = told.split()
    return float(taken), float(peak)


def tensors_sha256(folder: Path) -> str:
    """Of every tensor's name and bytes, in the order of names, whatever the shards."""
    import hashlib

    from moectl.checkpoint.index import open_index

    digest = hashlib.sha256()
    for name, info in sorted(open_index(folder).tensors.items()):
        digest.update(name.encode())
        with open(info.file, "rb") as file:
            file.seek(info.start)
            left = info.end - info.start
            while left:
                chunk = file.read(min(left, 1 << 24))
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()


def main() -> None:
    """Write, measure in turn, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of FP8 codes in the larger model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="a folder for about five times as many bytes; default: a temporary one")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > 0.7:
        print(f"load is {load:.1f}: other work runs here, figures will be low")
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        for size in (options.gigabytes / 2, options.gigabytes):
            found[f"{size:g}"] = measure(scratch, size, options)
    print(json.dumps({"bench": "convert", "threads": options.threads, "load": load, "cpu": platform.processor(), "sizes": found}))


def measure(scratch: Path, size: float, options: argparse.Namespace) -> dict[str, float]:
    """Medians of one size, printed as a table."""
    source, out, copy, plain = (scratch / name for name in ("source", "out", "copy", "plain"))
    write_model(source, size)
    script = scratch / "script.py"
    script.write_text(SCRIPT)
    commands = {
        "moectl": [sys.executable, "-m", "moectl", "convert", str(source), str(out), "--threads", str(options.threads)],
        "cp": ["sh", "-c", f"cp -r {out} {copy} && sync {copy}/*"],
        "script": [sys.executable, str(script), str(source), str(plain), str(options.threads)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    peak: dict[str, list[float]] = {name: [] for name in commands}
    for at in range(options.rounds):
        for folder in (out, copy, plain):
            shutil.rmtree(folder, ignore_errors=True)
        for name, command in commands.items():
            taken, memory = timed(command)
            seconds[name].append(taken)
            peak[name].append(memory)
        if at == 0 and len({tensors_sha256(folder) for folder in (out, copy, plain)}) != 1:
            raise SystemExit("the results differ")
    written = sum(path.stat().st_size for path in out.glob("*.safetensors")) / 1e9
    median = {name: statistics.median(found) for name, found in seconds.items()}
    print(f"{size:g} GB of codes, {written:.2f} GB of bfloat16; median of {options.rounds}, {options.threads} threads")
    for name, taken in median.items():
        print(f"  {name:8} {written / taken:6.2f} GB/s  {taken:7.2f} s  {median['cp'] / taken:5.2f} of cp  peak {max(peak[name]):.2f} GB")
    for folder in (source, out, copy, plain):
        shutil.rmtree(folder)
    return {
        "output_gb": written,
        **{f"{name}_gb_per_s": round(written / taken, 3) for name, taken in median.items()},
        "of_cp": round(median["cp"] / median["moectl"], 3),
        "over_script": round(median["script"] / median["moectl"], 3),
        **{f"{name}_peak_gb": round(max(some), 3) for name, some in peak.items()},
    }


if __name__ == "__main__":
    main()
