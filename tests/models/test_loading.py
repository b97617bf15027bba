"""Loading: saved folders and what can be wrong with them, hub snapshots, random families, the default model."""

import json
from pathlib import Path

import huggingface_hub.errors
import pytest
import torch
from safetensors.torch import load_file, save_file

from kvbench.errors import FetchError, KvbenchError
from kvbench.models import hub
from kvbench.models.loading import LoadedModel, load
from kvbench.models.random_families import FAMILIES, parse
from kvbench.models.random_models import build, byte_tokenizer

SENTENCE = "Hello, wörld! 東京"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build("llama", seed=3).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, key: str, tensor: torch.Tensor | None) -> None:
    """Replace a weight of a saved folder, or drop it."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[key]
    save_file(tensors | ({} if tensor is None else {key: tensor}), file, metadata={"format": "pt"})


@torch.no_grad()
def logits(loaded: LoadedModel) -> torch.Tensor:
    return loaded.model(loaded.tokenizer(SENTENCE, return_tensors="pt").input_ids).logits


# Saved folders


def test_saved_folder_loads_the_same_model(folder: Path):
    loaded = load(str(folder))
    assert torch.equal(logits(loaded), logits(load("random:llama?seed=3")))
    assert loaded.context_length == 2048
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())


def test_dtype_is_that_asked_for(folder: Path):
    assert load(str(folder), torch.bfloat16).model.dtype == torch.bfloat16


def test_digest_follows_the_weights(folder: Path):
    before = load(str(folder)).weights_sha256
    assert load(str(folder)).weights_sha256 == before
    change(folder, "model.norm.weight", torch.ones(64))
    assert load(str(folder)).weights_sha256 != before


def test_truncated_weights_are_refused(folder: Path):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(KvbenchError, match=r"cannot read the model in folder \S+: .*incomplete"):
        load(str(folder))


def test_corrupt_header_is_refused(folder: Path):
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(KvbenchError, match="cannot read the model"):
        load(str(folder))


def test_corrupt_config_is_refused(folder: Path):
    (folder / "config.json").write_text("{")
    with pytest.raises(KvbenchError, match="cannot read the model"):
        load(str(folder))


def test_unknown_architecture_is_refused(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    with pytest.raises(KvbenchError, match="no_such_model"):
        load(str(folder))


def test_missing_weight_is_refused_not_drawn_at_random(folder: Path):
    change(folder, "model.layers.1.mlp.up_proj.weight", None)
    with pytest.raises(KvbenchError, match=r"holds no weights for \['model.layers.1.mlp.up_proj.weight'\]"):
        load(str(folder))


def test_misshapen_weight_is_refused(folder: Path):
    change(folder, "model.norm.weight", torch.ones(63))
    with pytest.raises(KvbenchError, match="cannot read the model"):
        load(str(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, value: float):
    change(folder, "model.norm.weight", torch.tensor([1.0] * 63 + [value]))
    with pytest.raises(KvbenchError, match=r"tensor model\.norm\.weight holds NaN or infinite values"):
        load(str(folder))


def test_pickled_weights_are_not_read(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(KvbenchError, match=r"no \.safetensors weights"):
        load(str(folder))


def test_folder_without_tokenizer_is_refused(folder: Path):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(KvbenchError, match="cannot read the tokenizer"):
        load(str(folder))


def test_unusable_device_is_refused(folder: Path):
    with pytest.raises(KvbenchError, match="device 'abacus' cannot be used"):
        load(str(folder), device="abacus")


# The hub: the same path from a snapshot folder on


def test_hub_model_is_read_from_its_pinned_snapshot(folder: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = {}

    def snapshot(repo: str, **options: object) -> str:
        arguments.update(options, repo=repo)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    loaded = load("pythia-160m", fetch=False)
    assert loaded.weights_sha256 == load(str(folder)).weights_sha256
    assert arguments["repo"] == "EleutherAI/pythia-160m"
    assert arguments["revision"] == "50f5173d932e8e61f858120bcb800b97af589f46"
    assert arguments["local_files_only"] is True
    assert not any("bin" in pattern or "py" in pattern for pattern in arguments["allow_patterns"])


def test_unreachable_hub_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch):
    def snapshot(repo: str, **options: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("nothing\nhere")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    with pytest.raises(FetchError, match=r"openai-community/gpt2@607a30d7 .* the hub cannot be reached"):
        load("gpt2")


# Random models


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_generates_in_every_dtype(family: str):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        loaded = load(f"random:{family}", dtype)
        ids = loaded.tokenizer(SENTENCE, return_tensors="pt").input_ids
        generated = loaded.model.generate(ids, max_new_tokens=3, do_sample=False)
        assert generated.shape[1] == ids.shape[1] + 3
        assert loaded.model.dtype == dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_no_parameter_is_trivial(family: str):
    for name, parameter in build(family).named_parameters():
        assert parameter.std() > 0.01, name


def test_weights_are_the_same_in_every_dtype_and_for_the_same_seed_only():
    single, double = load("random:gpt2"), load("random:gpt2", torch.float64)
    assert single.weights_sha256 == double.weights_sha256
    assert torch.allclose(logits(single), logits(double).float(), atol=1e-4)
    assert load("random:gpt2?seed=1").weights_sha256 != single.weights_sha256


def test_building_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build("llama", seed=9)
    assert torch.rand(1) == expected


def test_families_are_written_as_models_are():
    assert (
        parse("random:deepseek-v3?layers=2") == parse("random:deepseek_v3?layers=2") == ("deepseek_v3", {"layers": 2})
    )


def test_geometry_can_be_asked_for():
    model = load("random:llama?layers=2,hidden=576,heads=9,kv_heads=3,head_dim=64,context=64").model
    ids = torch.arange(5)[None]
    layers = model(ids, use_cache=True).past_key_values.layers
    assert len(layers) == 2
    assert layers[0].keys.shape == (1, 3, 5, 64)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("random:lama", r"unknown random model family 'lama'; did you mean 'llama'\?"),
        ("random:llama?layer=2", r"unknown geometry key of random:llama 'layer'; did you mean 'layers'\?"),
        ("random:gpt2?kv_heads=2", "unknown geometry key of random:gpt2 'kv_heads'"),
        ("random:llama?layers=0", "'layers=0' is not <key>=<positive integer>"),
        ("random:llama?layers", "'layers' is not <key>=<positive integer>"),
        ("random:llama?hidden=65", "hidden must be a multiple of heads"),
        ("random:llama?heads=8,kv_heads=3", "heads must be a multiple of kv_heads"),
        ("random:llama?vocab=100", "vocab must be at least 259"),
    ],
)
def test_impossible_random_models_are_refused(name: str, complaint: str):
    with pytest.raises(KvbenchError, match=complaint):
        load(name)


def test_byte_tokenizer_reads_everything_back():
    tokenizer = byte_tokenizer()
    ids = tokenizer(SENTENCE).input_ids
    assert len(ids) == len(SENTENCE.encode())
    assert tokenizer.decode(ids) == SENTENCE


# The default model


@pytest.mark.model
def test_default_model_knows_the_capital_of_france(smollm2: LoadedModel):
    ids = smollm2.tokenizer("The capital of France is", return_tensors="pt").input_ids
    generated = smollm2.model.generate(ids, max_new_tokens=2, do_sample=False)
    assert smollm2.tokenizer.decode(generated[0]) == "The capital of France is Paris."
    assert smollm2.context_length == 8192
    assert smollm2.weights_sha256.startswith("b179c952")
