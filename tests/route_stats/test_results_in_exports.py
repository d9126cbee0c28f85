"""`--export`: the files, read back in the way their programs do."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from route_runs import route
from safetensors import safe_open
from safetensors.torch import load_file

# Shapes: L MoE layers, N decoder layers, E experts.

EXPORTS = ("eplb=load.npy", "eplb=load.safetensors", "vllm=vllm.safetensors", "sglang=sglang.json", "ktransformers=kt.pt")
OPTIONS = tuple(part for item in EXPORTS for part in ("--export", item))


@pytest.fixture
def exported(checkpoints, standard, family, tmp_path, monkeypatch):
    """A run with every export, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return route(tmp_path / "out", checkpoints[family].folder, *standard, *OPTIONS)


def read_by_sglang(path):
    """`compute_initial_expert_location_metadata` and `init_by_eplb` of sglang/srt/eplb/expert_location.py."""
    data = torch.load(path, weights_only=True) if path.endswith(".pt") else json.loads(Path(path).read_text())
    assert "physical_to_logical_map" not in data
    count = data["logical_count"]
    count = count if isinstance(count, torch.Tensor) else torch.tensor(count)
    return count.unsqueeze(0) if count.dim() == 2 else count


def read_by_ktransformers(path, n_layers, n_experts):
    """`_init_kt_gpu_experts_masks` of sglang/srt/layers/moe/kt_ep_wrapper.py."""
    assert path.endswith(".pt")
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    counts = loaded["logical_count"] if isinstance(loaded, dict) else loaded
    assert counts.dim() == 3
    assert tuple(counts.shape[1:]) == (n_layers, n_experts)
    return counts.sum(dim=0).float()


def packs(weight_LE, n_gpus):
    """Greedy packing of experts to GPUs, as EPLB's `balanced_packing`: what the balancers of EPLB and vLLM do with a load."""
    assert weight_LE.dim() == 2
    assert weight_LE.shape[1] % n_gpus == 0
    loads = []
    for weight_E in weight_LE.float():
        packs_D, room_D = torch.zeros(n_gpus), torch.full((n_gpus,), weight_LE.shape[1] // n_gpus)
        for expert in weight_E.argsort(descending=True):
            pack = packs_D.masked_fill(room_D == 0, torch.inf).argmin()
            packs_D[pack] += weight_E[expert]
            room_D[pack] -= 1
        loads.append(packs_D)
    return torch.stack(loads)


def test_every_program_reads_its_file(exported, checkpoints, family):
    loads_LE = torch.from_numpy(exported.of("tokens").copy())
    layers, (L, E) = [layer for layer, _, _ in checkpoints[family].moe_layers], loads_LE.shape
    all_layers_NE = torch.zeros(3, E, dtype=torch.int64)
    all_layers_NE[layers] = loads_LE
    assert (L < 3) == (family != "mixtral")

    array = np.load("load.npy", allow_pickle=False)
    assert array.dtype == np.int64
    assert torch.equal(torch.from_numpy(array), loads_LE)
    for path, name in (("load.safetensors", "weight"), ("vllm.safetensors", "global_expert_load_window")):
        tensors = load_file(path)
        assert list(tensors) == [name]
        assert tensors[name].dtype == torch.int64
        assert torch.equal(tensors[name], loads_LE)
        assert torch.allclose(packs(tensors[name], E // 3 if E % 3 == 0 else E).sum(1), loads_LE.sum(1).float())
        with safe_open(path, framework="np") as file:
            assert json.loads(file.metadata()["layers"]) == layers
            assert json.loads(file.metadata()["provenance"])["command"] == "route-stats"
    count = read_by_sglang("sglang.json")
    assert torch.equal(count, all_layers_NE[None])
    assert count.dtype == torch.int64
    assert torch.equal(read_by_ktransformers("kt.pt", 3, E), all_layers_NE.float())
    assert torch.equal(read_by_sglang("kt.pt"), count)


def test_a_saved_run_gives_the_same_files(exported, moectl):
    before = {item: Path(item.partition("=")[2]).read_bytes() for item in EXPORTS}
    for options in (OPTIONS, ("--overwrite",)):
        result = moectl("route-stats", "--from", "out", "--format", "json", *OPTIONS, *options[-1:])
        if options is OPTIONS:
            assert result.code == 2
            continue
        assert result.code == 0
        assert "note: wrote `kt.pt`" in result.err
    assert {item: Path(item.partition("=")[2]).read_bytes() for item in EXPORTS} == before
    assert moectl("route-stats", "--from", "out/trace.safetensors", "--export", "sglang=again.json").code == 0
    assert json.loads(Path("again.json").read_text())["logical_count"] == json.loads(Path("sglang.json").read_text())["logical_count"]


@pytest.mark.parametrize(
    ("exports", "message"),
    [
        (("tensorrt=a.json",), "`--export tensorrt=a.json` is not FORMAT=PATH with a known format"),
        (("sglang",), "is not FORMAT=PATH"),
        (("sglang=",), "is not FORMAT=PATH"),
        (("sglang=load.pt",), "the file of `sglang` must end in `.json`"),
        (("ktransformers=load.json",), "the file of `ktransformers` must end in `.pt`"),
        (("eplb=load.json",), "must end in `.safetensors` or `.npy`"),
        (("sglang=a.json", "sglang=./a.json"), "`./a.json` is to be written twice"),
        (("sglang=there.json",), "the output `there.json` already exists"),
        (("sglang=folder.json", "--overwrite"), "`folder.json` is a folder"),
    ],
)
def test_refused_before_any_work(runs, moectl, exports, message):
    Path("there.json").write_text("mine")
    Path("folder.json").mkdir()
    options = [part for item in exports for part in ((item,) if item.startswith("--") else ("--export", item))]
    result = moectl("route-stats", "--from", runs["mixtral"].folder, *options)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert Path("there.json").read_text() == "mine"
    assert sorted(os.listdir()) == ["folder.json", "there.json"]
    # And where a model would have to be run first.
    assert moectl("route-stats", "no-such-model", *options).code == 2


def test_written_whole_or_not_at_all(runs, moectl, monkeypatch):
    Path("load.npy").write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = moectl(
        "route-stats", "--from", runs["mixtral"].folder, "--export", "eplb=load.npy", "--export", "eplb=deep/er.npy", "--overwrite"
    )
    assert result.code == 4
    assert "the disk is full" in result.err
    assert Path("load.npy").read_text() == "old"
    assert os.listdir() == ["load.npy"]


def test_parents_are_made(runs, moectl):
    assert moectl("route-stats", "--from", runs["mixtral"].folder, "--export", "eplb=deep/er/load.npy").code == 0
    assert np.load("deep/er/load.npy").shape == (3, 5)
