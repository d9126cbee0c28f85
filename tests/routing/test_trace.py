"""The trace file: round trip, layout, and what it refuses."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from moectl.errors import DataError, ModelError, ResourceError, UsageError
from moectl.model.events import MoELayerInfo, RoutingEvent
from moectl.routing.trace import TraceRecorder, read_trace


def write(path, run, events=None, **options):
    with TraceRecorder(path, run.layers, run.batches, domain_names=run.names, provenance={"seed": 1}, **options) as trace:
        for event in run.events if events is None else events:
            trace.record(event)
    return path


@pytest.mark.parametrize("weights_dtype", ["float16", "float32"])
def test_round_trip(run_of, tmp_path, weights_dtype):
    run = run_of(counted=0.5, empty=0.2)
    trace = read_trace(write(tmp_path / "trace.safetensors", run, weights_dtype=weights_dtype))
    assert trace.expert_ids_TLK.dtype == np.uint8
    assert trace.weights_TLK.dtype == weights_dtype
    assert (trace.layers, trace.domains, trace.n_experts, trace.top_k) == ((3, 4, 7), ("wiki", "code"), (8, 8, 5), (2, 2, 3))
    assert (trace.pad_id, trace.provenance) == (255, {"seed": 1})
    assert trace.sequence_offsets_Q.tolist() == [0, 6, 12, 18, 24, 30, 34, 39, 44, 49, 54, 56]
    assert trace.domain_ids_Q.tolist() == [0] * 6 + [1] * 5
    assert trace.token_ids_T.tolist() == [token for batch in run.batches for token in batch.ids_BS.ravel().tolist()]
    start = {batch.index: sum(b.ids_BS.size for b in run.batches[: batch.index]) for batch in run.batches}
    for event in run.events:
        position = trace.layers.index(event.layer)
        for t, (ids, weights) in enumerate(zip(event.expert_ids_TK.tolist(), event.weights_TK.tolist(), strict=True)):
            slots = sorted((-w, e) for e, w in zip(ids, weights, strict=True) if e >= 0)
            row = start[event.batch.index] + t
            padding = 3 - len(slots)
            assert trace.expert_ids_TLK[row, position].tolist() == [e for _, e in slots] + [255] * padding
            expected = np.array([-w for w, _ in slots] + [0.0] * padding).astype(weights_dtype)
            assert trace.weights_TLK[row, position].tolist() == expected.tolist()


def test_both_schedules_give_the_same_bytes(run_of, tmp_path):
    run = run_of(empty=0.1, dtype=torch.bfloat16)
    first = write(tmp_path / "a.safetensors", run).read_bytes()
    assert write(tmp_path / "b.safetensors", run, run.batch_outer).read_bytes() == first
    assert write(tmp_path / "c.safetensors", run, run.events[::-1]).read_bytes() == first


def test_blocks_larger_than_a_page_keep_their_neighbours(run_of, tmp_path):
    """Pages are dropped from memory after each block; shared ones at the edges must survive."""
    run = run_of(sizes=((0, 8, 2), (1, 8, 2)), shapes=((0, 3, 1001), (0, 2, 1001), (1, 1, 777)))
    trace = read_trace(write(tmp_path / "t.safetensors", run))
    row = 0
    for batch in run.batches:
        for position in (0, 1):
            (event,) = (e for e in run.events if e.batch is batch and e.layer == position)
            block = trace.expert_ids_TLK[row : row + batch.ids_BS.size, position]
            assert (np.sort(block, axis=1) == event.expert_ids_TK.sort(dim=1).values.numpy()).all()
        row += batch.ids_BS.size


def test_the_file_is_plain_safetensors(run_of, tmp_path):
    run = run_of()
    with safe_open(write(tmp_path / "t.safetensors", run), framework="np") as file:
        assert set(file.keys()) == {"expert_ids", "weights", "token_ids", "sequence_offsets", "domain_ids"}
        assert file.get_tensor("expert_ids").shape == (56, 3, 3)
        assert json.loads(file.metadata()["layers"]) == [3, 4, 7]
        assert json.loads(file.metadata()["domains"]) == ["wiki", "code"]


@pytest.mark.parametrize(
    ("sizes", "dtype", "pad"),
    [
        (((0, 255, 2), (1, 8, 1)), np.uint8, 255),
        (((0, 256, 2), (1, 8, 2)), np.uint8, None),
        (((0, 256, 2), (1, 8, 1)), np.uint16, 65_535),
        (((0, 257, 2),), np.uint16, 65_535),
    ],
)
def test_ids_are_bytes_where_they_and_the_padding_fit(run_of, tmp_path, sizes, dtype, pad):
    run = run_of(sizes=sizes)
    trace = read_trace(write(tmp_path / "t.safetensors", run))
    assert trace.expert_ids_TLK.dtype == dtype
    assert trace.pad_id == pad


def test_an_empty_slot_without_a_free_id_is_refused(run_of, tmp_path):
    run = run_of(sizes=((5, 256, 2),), empty=0.5)
    with pytest.raises(ModelError, match="layer `5` left slots empty, which a trace of 256 experts has no id for"):
        write(tmp_path / "t.safetensors", run)


@pytest.mark.parametrize("bad", [float("nan"), 1e6])
def test_weights_the_file_cannot_hold_are_refused(batches_of, tmp_path, bad):
    batches = batches_of([(0, 1, 1)])
    with TraceRecorder(tmp_path / "t", [MoELayerInfo(2, 4, 1)], batches, domain_names=["a"], provenance={}) as trace:
        with pytest.raises(ModelError, match="layer `2` gave a combine weight that is not a finite float16 number"):
            trace.record(RoutingEvent(2, batches[0], torch.tensor([[1]]), torch.tensor([[bad]]), torch.zeros(1, 4)))
        trace.record(RoutingEvent(2, batches[0], torch.tensor([[1]]), torch.tensor([[1.0]]), torch.zeros(1, 4)))


def test_a_missing_event_is_a_bug(run_of, tmp_path):
    run = run_of()
    with pytest.raises(RuntimeError, match=r"misses 1 events, the first is \(layer, micro-batch\) \(3, 0\)"):
        write(tmp_path / "t.safetensors", run, run.events[1:])


def test_too_many_domains(run_of, tmp_path):
    run = run_of()
    with pytest.raises(UsageError, match="at most 256 domains, not 257"):
        TraceRecorder(tmp_path / "t", run.layers, run.batches, domain_names=["d"] * 257, provenance={})


def test_a_full_disk_is_told_before_the_run(run_of, tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: Full(opened(path, mode)))
    with pytest.raises(ResourceError, match="the disk is full"):
        write(tmp_path / "t.safetensors", run_of())


def _good(run_of, folder):
    run = run_of()
    path = write(folder / "good.safetensors", run)
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("weights"), "it holds no tensor `weights`"),
        (lambda t, m: t.update(token_ids=t["token_ids"].astype(np.int64)), "`token_ids` is `I64`, not `I32`"),
        (lambda t, m: t.update(weights=t["weights"][:-1]), r"`weights` has the shape \[55, 3, 3\], not \[56, 3, 3\]"),
        (lambda t, m: t.update(expert_ids=t["expert_ids"] + np.uint8(9)), "names an expert its layer does not have"),
        (lambda t, m: t["weights"].fill(np.nan), "`weights` holds a number that is not finite"),
        (lambda t, m: t["sequence_offsets"].put(3, 0), "`sequence_offsets` does not rise"),
        (lambda t, m: t["domain_ids"].put(0, 2), "`domain_ids` names domain `2` of 2"),
        (lambda t, m: m.pop("layers"), "its metadata has no `layers`"),
        (lambda t, m: m.update(layers="[3, 4"), "its metadata `layers` is not JSON"),
        (lambda t, m: m.update(layers="{}"), "its metadata `layers` is not a JSON list"),
        (lambda t, m: m.update(layers='[3, 4, "7"]'), "its metadata `layers` has an item of the wrong type"),
        (lambda t, m: m.update(top_k="[2, 2]"), "`layers`, `n_experts` and `top_k` do not fit together"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(run_of, tmp_path, change, message):
    tensors, metadata = _good(run_of, tmp_path)
    change(tensors, metadata)
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(DataError, match=message):
        read_trace(path)


def test_a_truncated_file_is_refused(run_of, tmp_path):
    path = write(tmp_path / "t.safetensors", run_of())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="is truncated: 1 bytes are missing"):
        read_trace(path)
