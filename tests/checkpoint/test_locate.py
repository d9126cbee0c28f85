"""MODEL to files: paths, Hub ids, and the formats that are refused by name. No network."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save_file

from moectl.checkpoint.locate import locate, read_config, require_weights
from moectl.checkpoint.quantised import Quantisation, read_quantisation
from moectl.errors import ModelError, ResourceError

# The HTTP library of the installed huggingface_hub: httpx, later http_library.
http_library = sys.modules[errors.HTTPError.__module__.split(".")[0]]
FP8 = {"quant_method": "fp8"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def weights(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"a": torch.zeros(2)}, path)


def config(folder: Path, **values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "mixtral"} | values))
    return folder


def refused(model: str | Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        locate(str(model))
    assert caught.value.exit_code == 3
    return caught.value


@pytest.fixture
def model(tmp_path):
    weights(tmp_path / "model" / "model.safetensors")
    return config(tmp_path / "model")


def test_folder(model):
    location = locate(str(model))
    assert (location.name, location.folder, location.weights, location.revision) == (str(model), model, model, None)
    assert read_config(location) == {"model_type": "mixtral"}
    assert require_weights(location) == model


def test_single_file(model):
    location = locate(str(model / "model.safetensors"))
    assert (location.folder, location.weights, location.config_path) == (model, model / "model.safetensors", model / "config.json")


@pytest.mark.parametrize("name", ["", "config.json"])
def test_config_alone(tmp_path, name):
    config(tmp_path)
    location = locate(str(tmp_path / name))
    assert location.weights is None
    assert location.folder == tmp_path
    with pytest.raises(ModelError, match=r"holds a `config.json` but no weights"):
        require_weights(location)


def test_config_file_beside_weights_is_still_only_the_config(model):
    assert locate(str(model / "config.json")).weights is None


def test_home_is_expanded(model, monkeypatch):
    monkeypatch.setenv("HOME", str(model.parent))
    assert locate("~/model").folder == model


def test_path_wins_over_hub_id(model, monkeypatch):
    monkeypatch.chdir(model.parent.parent)
    assert locate(f"{model.parent.name}/model").revision is None


def test_missing_path_names_near_ones(model):
    error = refused(model.parent / "modle")
    assert f"the model `{model.parent / 'modle'}` does not exist" in error.message
    assert error.hint == f"did you mean `{model}`?"
    assert "no folder" in (refused("/no/such/place").hint or "")
    assert "does not exist" in refused("").message
    assert "does not exist" in refused("x" * 5000).message
    assert "does not exist" in refused("a\0b").message
    assert "does not exist" in refused("weights/model.safetensors").message


def test_demo_is_the_built_in_model_whatever_lies_around(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config(tmp_path / "demo")
    location = locate("demo")
    assert (location.name, location.folder.name, location.revision) == ("demo", "demo_model", None)
    assert location.folder == location.weights
    assert locate("./demo").folder == Path("demo")


def test_an_installation_without_the_built_in_model_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("moectl.checkpoint.locate._DEMO_FOLDER", tmp_path)
    error = refused("demo")
    assert error.message == "the built-in model is not part of this installation"
    assert "make demo-model" in (error.hint or "")


def test_folder_without_config_says_what_is_inside(tmp_path):
    (tmp_path / "readme.md").touch()
    assert "has no `config.json`; it holds `readme.md`" in refused(tmp_path).message
    (tmp_path / "readme.md").unlink()
    assert "it holds nothing" in refused(tmp_path).message
    weights(tmp_path / "model.safetensors")
    assert "has no `config.json`" in refused(tmp_path / "model.safetensors").message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must hold a JSON object"),
        ("{", "not valid JSON"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":{"__float__":"x"}}', "`__float__`"),
    ],
)
def test_hostile_config(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    assert message in refused(tmp_path).message


def test_config_floats(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"a": {"__float__": "Infinity"}, "b": [{"__float__": "-Infinity"}, {"__float__": "NaN"}], "c": Infinity}'
    )
    found = read_config(locate(str(tmp_path)))
    assert (found["a"], found["b"][0], found["c"]) == (math.inf, -math.inf, math.inf)
    assert math.isnan(found["b"][1])


@pytest.mark.parametrize(
    ("files", "title", "hint"),
    [
        (["model.Q4_K_M.gguf"], "GGUF", "safetensors repository"),
        (["config.json", "model.gguf"], "GGUF", "safetensors repository"),
        (["config.json", "pytorch_model.bin"], "PyTorch pickles, such as `pytorch_model.bin`", "save_pretrained"),
        (["config.json", "pytorch_model-00001-of-00002.bin"], "PyTorch pickles", "save_pretrained"),
        (["consolidated.00.pth", "params.json"], "PyTorch pickles", "save_pretrained"),
        (["config.json", "model.pt"], "PyTorch pickles", "save_pretrained"),
        (["adapter_config.json", "adapter_model.safetensors"], "LoRA adapter", "merge"),
        (["adapter_config.json", "adapter_model.bin", "config.json"], "LoRA adapter", "merge"),
        (["params.json", "consolidated.safetensors"], "Mistral's own layout", "Hugging Face layout"),
        (["config.json", "consolidated-00001-of-00002.safetensors"], "Mistral's own layout", "Hugging Face layout"),
    ],
)
def test_foreign_folders(tmp_path, files, title, hint):
    for file in files:
        (tmp_path / file).write_text("{}")
    error = refused(tmp_path)
    assert title in error.message
    assert hint in (error.hint or "")


@pytest.mark.parametrize(
    ("file", "title"),
    [
        ("model.gguf", "is a GGUF file"),
        ("pytorch_model.bin", "is a PyTorch pickle"),
        ("a.pth", "is a PyTorch pickle"),
        ("notes.txt", "is not a model"),
    ],
)
def test_foreign_files(tmp_path, file, title):
    (tmp_path / file).touch()
    assert title in refused(tmp_path / file).message


def test_adapter_file_and_shard_file(model):
    (model / "adapter_config.json").write_text("{}")
    weights(model / "adapter_model.safetensors")
    assert "LoRA" in refused(model / "adapter_model.safetensors").message
    assert locate(str(model)).weights == model
    weights(model / "model-00001-of-00003.safetensors")
    assert "is one of 3 shards" in refused(model / "model-00001-of-00003.safetensors").message


def test_trainer_state_is_not_weights(tmp_path):
    config(tmp_path)
    for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        (tmp_path / name).touch()
    assert locate(str(tmp_path)).weights is None


@pytest.mark.parametrize(
    ("values", "title", "hint"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "GPTQ", "original bf16"),
        ({"quantization_config": {"quant_method": "awq"}}, "AWQ", "original bf16"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes", "original bf16"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes", "original bf16"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors", "original bf16"),
        ({"compression_config": {"format": "pack"}}, "compressed-tensors", "original bf16"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "have no `weight_block_size`: a scale for each", "bf16 copy"),
        (FP8 | {"weight_block_size": None, "activation_scheme": "static"}, "`activation_scheme` `static`", "each block"),
        (FP8 | {"weight_block_size": [128]}, "`weight_block_size` `[128]`", "each block"),
        (FP8 | {"weight_block_size": [128, 0]}, "`weight_block_size` `[128, 0]`", "each block"),
        (FP8 | {"weight_block_size": [128, True]}, "`weight_block_size` `[128, True]`", "each block"),
        (FP8 | {"weight_block_size": [128, 128], "fmt": "e5m2"}, "the format `e5m2`, not e4m3", "each block"),
        ({"quantization_config": {"quant_method": "hqq"}}, "`hqq`", "bf16 copy"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "`mlx`", "bf16 copy"),
        ({"quantization_config": "gptq"}, "must be an object", None),
    ],
)
def test_quantised_weights(model, values, title, hint):
    config(model, **({"quantization_config": values} if "quant_method" in values else values))
    error = refused(model)
    assert title in error.message
    assert (hint or "") in (error.hint or "")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (FP8 | {"weight_block_size": [128, 64]}, Quantisation("fp8", (128, 64))),
        (
            FP8 | {"weight_block_size": [128, 128], "fmt": "float8_e4m3fn", "scale_fmt": "ue8m0", "modules_to_not_convert": ["gate"]},
            Quantisation("fp8", (128, 128)),
        ),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, Quantisation("mxfp4")),
    ],
)
@pytest.mark.parametrize("inner", [False, True], ids=["outer", "text"])
def test_quantised_weights_that_are_read(model, values, expected, inner):
    config(model, **({"text_config": {"quantization_config": values}} if inner else {"quantization_config": values}))
    assert read_quantisation(read_config(locate(str(model))), where="it") == expected


def test_quantisation_outside_the_config(model):
    (model / "quantize_config.json").write_text("{}")
    assert "GPTQ" in refused(model).message


def test_no_quantisation(model):
    config(model, quantization_config=None, text_config=None)
    assert locate(str(model)).weights == model


# The Hub: `huggingface_hub` is replaced where the network would be, and real where only its cache is read.


class FakeHub:
    """Stands for the Hub: `remote` is the repository, `downloads` the patterns asked for."""

    def __init__(self, cache: Path, remote: dict[str, str]) -> None:
        self.folder, self.remote = cache / "snapshots" / COMMIT, remote
        self.downloads: list[list[str]] = []
        self.revisions: list[str | None] = []

    def snapshot_download(self, name: str, *, revision: str | None, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        assert name == "org/name"
        self.downloads.append(allow_patterns)
        self.revisions.append(revision)
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in huggingface_hub.utils.filter_repo_objects(self.remote, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (self.folder / file).write_text(self.remote[file])
        return str(self.folder)

    def list_repo_files(self, name: str, *, revision: str | None) -> list[str]:
        assert revision == COMMIT
        return list(self.remote)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(
        tmp_path,
        {
            "config.json": '{"model_type": "olmoe"}',
            "tokenizer.json": "{}",
            "chat_template.jinja": "",
            "model.safetensors": "weights",
            "consolidated.safetensors": "again",
            "original/model.safetensors": "again",
            "pytorch_model.bin": "again",
        },
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", fake.list_repo_files)
    monkeypatch.chdir(tmp_path)
    return fake


def test_hub_id(hub):
    location = locate("org/name@v1.0")
    assert (location.name, location.revision, location.weights) == ("org/name", COMMIT, hub.folder)
    assert hub.revisions == ["v1.0", COMMIT]
    assert sorted(path.name for path in hub.folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_hub_id_without_weights(hub):
    location = locate("org/name", weights=False)
    assert location.weights is None
    assert not (hub.folder / "model.safetensors").exists()


def test_hub_quantised_is_refused_before_its_weights_are_fetched(hub):
    hub.remote["config.json"] = '{"quantization_config": {"quant_method": "gptq"}}'
    assert "`org/name` are quantised with GPTQ" in refused("org/name").message
    assert len(hub.downloads) == 1


@pytest.mark.parametrize(
    ("remote", "message"),
    [
        ({"model.gguf": ""}, "only GGUF"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "only PyTorch pickles"),
        ({"params.json": "", "consolidated.safetensors": ""}, "Mistral's own layout"),
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "LoRA adapter"),
        ({"README.md": ""}, "has no `config.json`; it holds `README.md`"),
    ],
)
def test_hub_foreign_repositories(hub, remote, message):
    hub.remote = remote
    error = refused("org/name")
    assert message in error.message
    assert "`org/name`" in error.message


def test_hub_config_only(hub):
    hub.remote = {"config.json": "{}", "README.md": ""}
    assert locate("org/name").weights is None


def http(kind: type[errors.HfHubHTTPError], status: int = 404) -> errors.HfHubHTTPError:
    return kind("refused", response=http_library.Response(status, request=http_library.Request("GET", "http://test")))


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (http(errors.GatedRepoError, 403), "is gated", "hf auth login"),
        (http(errors.RepositoryNotFoundError), "neither a path here nor a model repository", "spelling"),
        (http(errors.RevisionNotFoundError), "has no revision `main`", "commit hash"),
        (http(errors.DisabledRepoError, 403), "was disabled", "another copy"),
        (http(errors.HfHubHTTPError, 503), "with status 503", "later"),
        (errors.LocalEntryNotFoundError("x"), "the Hub cannot be reached (LocalEntryNotFoundError)", "network"),
        (errors.HFValidationError("x"), "nor a legal Hub id", "spelling"),
        (http_library.ConnectError("x"), "the Hub cannot be reached (ConnectError)", "network"),
        (http_library.ReadTimeout("x"), "the Hub cannot be reached (ReadTimeout)", "network"),
        (ConnectionResetError("x"), "the Hub cannot be reached (ConnectionResetError)", "network"),
    ],
)
def test_hub_errors(hub, monkeypatch, error, message, hint):
    def fail(*_args: object, **_kwargs: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    caught = refused("org/name")
    assert message in caught.message
    assert "org/name" in caught.message
    assert hint in (caught.hint or "")


def test_hub_disk_full(hub, monkeypatch):
    def fail(*_args: object, **_kwargs: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ResourceError, match="the disk is full"):
        locate("org/name")


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_offline_with_an_empty_cache(offline_cache):
    error = refused("org/name@v2")
    assert "`org/name` at revision `v2`" in error.message
    assert "`HF_HUB_OFFLINE` forbids the network" in error.message
    assert "nor a legal Hub id" in refused("org/two..dots").message
    assert "Hub" in refused(f"{'x' * 5000}/y").message


def test_offline_near_local_names(offline_cache):
    config(offline_cache.parent / "runs" / "mixtral")
    assert "did you mean `runs/mixtral`?" in (refused("runs/mixtrl").hint or "")


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_offline_with_a_filled_cache(offline_cache, revision):
    repository = offline_cache / "models--org--name"
    weights(repository / "snapshots" / COMMIT / "model.safetensors")
    config(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    location = locate("org/name" + revision)
    assert location.revision == COMMIT
    assert location.weights == location.folder == repository / "snapshots" / COMMIT


def test_offline_cache_without_weights(offline_cache):
    repository = offline_cache / "models--org--name"
    config(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert "not complete in the Hub cache" in refused("org/name").message
    assert locate("org/name", weights=False).revision == COMMIT
