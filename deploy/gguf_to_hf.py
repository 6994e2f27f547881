#!/usr/bin/env python3
"""Makes a Hugging Face folder of a GGUF file: config.json, model.safetensors, the tokenizer.

    python deploy/gguf_to_hf.py MODEL.gguf FOLDER [--dtype bfloat16|float16|float32]

Needs the packages gguf and numpy. Reads the architectures llama, qwen2 and qwen3 with a byte-level BPE tokenizer; weights of
any quantization that the package gguf can undo. Whatever it does not know is refused: exit code 2, one line.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize


class Unsupported(Exception):
    pass


# ---- What the file says ---------------------------------------------------------------------------------------------

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Keys of an architecture (after its name) that are read here, or change nothing.
READ_KEYS = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon", "rope.dimension_count",
    "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "vocab_size",
}  # fmt: skip
IGNORED_KEYS = {"rope.scaling.finetuned", "tensor_data_layout"}


class File:
    """The metadata and tensors of a GGUF file, checked to be of a kind that is known here."""

    def __init__(self, path):
        reader = GGUFReader(path)
        self.fields = {name: field.contents() for name, field in reader.fields.items()}
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.architecture = self.fields.get("general.architecture")
        if self.architecture not in ARCHITECTURES:
            raise Unsupported(f"general.architecture is {self.architecture}, expected one of {', '.join(ARCHITECTURES)}")
        prefix = self.architecture + "."
        for name, value in self.fields.items():
            known = READ_KEYS | IGNORED_KEYS
            if name.startswith(prefix) and name.removeprefix(prefix) not in known and value not in (0, 0.0, False, None):
                raise Unsupported(f"{name} is {value}, which is not known here")

    def get(self, key, otherwise=None):
        """A key of the architecture."""
        value = self.fields.get(f"{self.architecture}.{key}", otherwise)
        if value is None:
            raise Unsupported(f"{self.architecture}.{key} is missing")
        if isinstance(value, list):
            raise Unsupported(f"{self.architecture}.{key} differs from layer to layer")
        return value

    def token_id(self, kind):
        return self.fields.get(f"tokenizer.ggml.{kind}_token_id")


# ---- Tensors --------------------------------------------------------------------------------------------------------

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA3_FACTORS = "rope_freqs.weight"


def hugging_face_name(name):
    """blk.3.attn_q.weight: model.layers.3.self_attn.q_proj.weight"""
    *place, part, kind = name.split(".")
    if part not in NAMES or kind not in ("weight", "bias") or (place and (place[0] != "blk" or len(place) != 2)):
        raise Unsupported(f"the tensor {name} is not known here")
    layer = f"model.layers.{place[1]}." if place else ""
    return f"{layer}{NAMES[part]}.{kind}"


def values_of(file, tensor):
    """In float32, with the rows as transformers orders them."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False).reshape(shape)
    part = tensor.name.split(".")[-2]
    if file.architecture == "llama" and part in ("attn_q", "attn_k"):
        heads = file.get("attention.head_count") if part == "attn_q" else kv_heads_of(file)
        values = with_halves_apart(values, heads)
    return values


def with_halves_apart(rows, heads):
    """ggml's Llama rotates channels 2i and 2i + 1 of a head together, transformers channels i and i + K/2."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def as_bytes(values, dtype):
    if dtype == "float32":
        return values.astype("<f4").tobytes()
    if dtype == "float16":
        return values.astype("<f2").tobytes()
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()  # to the nearest, ties to even


def write_safetensors(path, file, dtype):
    """One tensor after another, so that no more than one is in memory."""
    name_and_bytes = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
    code, size = name_and_bytes[dtype]
    header, start = {"__metadata__": {"format": "pt"}}, 0
    tensors = {hugging_face_name(name): tensor for name, tensor in file.tensors.items() if name != LLAMA3_FACTORS}
    for name, tensor in tensors.items():
        shape = [int(size) for size in reversed(tensor.shape)]
        end = start + int(np.prod(shape)) * size
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            values = values_of(file, tensor)
            if not np.isfinite(values).all():
                raise Unsupported(f"the tensor {tensor.name} holds values that are not finite")
            out.write(as_bytes(values, dtype))


# ---- config.json ----------------------------------------------------------------------------------------------------


def kv_heads_of(file):
    return file.get("attention.head_count_kv", file.get("attention.head_count"))


def head_dim_of(file):
    size = file.get("attention.key_length", file.get("embedding_length") // file.get("attention.head_count"))
    for key in ("attention.value_length", "rope.dimension_count"):
        if file.get(key, size) != size:
            raise Unsupported(f"{file.architecture}.{key} is {file.get(key)}, expected the size of a head, {size}")
    return size


def llama3_frequency_factors(theta, size, factor, low, high, original):
    """By how much each frequency is divided (Llama 3.1)."""
    turns = original * theta ** (-np.arange(0, size, 2) / size) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / (kept + (1 - kept) / factor)


def rope_scaling_of(file):
    kind = file.get("rope.scaling.type", "none")
    theta, size = file.get("rope.freq_base", 10000.0), head_dim_of(file)
    if LLAMA3_FACTORS in file.tensors:  # numbers only: which settings made them?
        factors = values_of(file, file.tensors[LLAMA3_FACTORS])
        for factor in (8.0, 32.0):  # Llama 3.1 and 3.3; Llama 3.2
            if kind == "none" and np.allclose(factors, llama3_frequency_factors(theta, size, factor, 1, 4, 8192), rtol=1e-3):
                return {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 8192}  # fmt: skip
        raise Unsupported(f"{LLAMA3_FACTORS} holds factors that are not those of Llama 3.1 or 3.2")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": file.get("rope.scaling.factor")}
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": file.get("rope.scaling.factor"),
                "original_max_position_embeddings": file.get("rope.scaling.original_context_length")}  # fmt: skip
    raise Unsupported(f"{file.architecture}.rope.scaling.type is {kind}, expected none, linear or yarn")


def config_of(file, dtype):
    layers = file.get("block_count")
    config = {
        "architectures": [ARCHITECTURES[file.architecture]],
        "model_type": file.architecture,
        "vocab_size": int(file.tensors["token_embd.weight"].shape[1]),
        "hidden_size": file.get("embedding_length"),
        "intermediate_size": file.get("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": file.get("attention.head_count"),
        "num_key_value_heads": kv_heads_of(file),
        "head_dim": head_dim_of(file),
        "hidden_act": "silu",
        "max_position_embeddings": file.get("context_length"),
        "rms_norm_eps": float(f"{file.get('attention.layer_norm_rms_epsilon'):.6g}"),  # stored in float32
        "rope_theta": file.get("rope.freq_base", 10000.0),
        "rope_scaling": rope_scaling_of(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "bos_token_id": file.token_id("bos"),
        "eos_token_id": file.token_id("eos"),
        "dtype": dtype,
    }
    if file.architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    return config


# ---- The tokenizer --------------------------------------------------------------------------------------------------

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# tokenizer.ggml.pre: how text is cut before the merges.
PRE_TOKENIZERS = {
    "gpt-2": [byte_level(True)],
    "default": [byte_level(True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, byte_level(True)],
    "llama-bpe": [split(LLAMA3_PATTERN), byte_level(False)],
    "qwen2": [split(QWEN2_PATTERN), byte_level(False)],
}


def tokens_of(file):
    """The tokens with their kinds, without those that only fill up the vocabulary."""
    tokens = list(zip(file.fields["tokenizer.ggml.tokens"], file.fields["tokenizer.ggml.token_type"]))
    while tokens and tokens[-1][1] == UNUSED:
        tokens.pop()
    for token, kind in tokens:
        if kind not in (NORMAL, CONTROL, USER_DEFINED):
            raise Unsupported(f"the token {token!r} is of kind {kind}, expected a normal, control or user-defined one")
    return tokens


def tokenizer_of(file):
    kind, pre = file.fields.get("tokenizer.ggml.model"), file.fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise Unsupported(f"tokenizer.ggml.model is {kind}, expected gpt2 (byte-level BPE)")
    if pre not in PRE_TOKENIZERS:
        raise Unsupported(f"tokenizer.ggml.pre is {pre}, expected one of {', '.join(PRE_TOKENIZERS)}")
    tokens = tokens_of(file)
    added = [
        {"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind == CONTROL}
        for index, (token, kind) in enumerate(tokens) if kind != NORMAL
    ]  # fmt: skip
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
             "fuse_unk": False, "byte_fallback": False, "ignore_merges": pre == "llama-bpe",
             "vocab": {token: index for index, (token, kind) in enumerate(tokens)},
             "merges": file.fields["tokenizer.ggml.merges"]}  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]},
        "post_processor": post_processor_of(file, pre),
        "decoder": byte_level(True),
        "model": model,
    }


def post_processor_of(file, pre):
    if not file.fields.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        return None
    index = file.token_id("bos")
    token = file.fields["tokenizer.ggml.tokens"][index]
    begin = {"SpecialToken": {"id": token, "type_id": 0}}
    sequence = [{"Sequence": {"id": name, "type_id": place}} for place, name in enumerate("AB")]
    return {"type": "TemplateProcessing", "single": [begin, sequence[0]], "pair": [begin, sequence[0], begin, sequence[1]],
            "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}}}  # fmt: skip


def tokenizer_config_of(file):
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": file.get("context_length"),
              "clean_up_tokenization_spaces": False}  # fmt: skip
    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    for kind, name in names.items():
        if file.token_id(kind) is not None:
            config[name] = file.fields["tokenizer.ggml.tokens"][file.token_id(kind)]
    if "tokenizer.chat_template" in file.fields:
        config["chat_template"] = file.fields["tokenizer.chat_template"]
    return config


def generation_config_of(file):
    ids = {"bos_token_id": file.token_id("bos"), "eos_token_id": file.token_id("eos"), "pad_token_id": file.token_id("padding")}
    return {key: value for key, value in ids.items() if value is not None}


# ---------------------------------------------------------------------------------------------------------------------


def convert(path, folder, dtype):
    """The folder is whole or absent."""
    file = File(path)
    files = {
        "config.json": config_of(file, dtype),
        "generation_config.json": generation_config_of(file),
        "tokenizer.json": tokenizer_of(file),
        "tokenizer_config.json": tokenizer_config_of(file),
    }
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, content in files.items():
        (part / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    write_safetensors(part / "model.safetensors", file, dtype)
    part.rename(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path, help="must not exist")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16", help="of the weights")
    arguments = parser.parse_args()
    try:
        if arguments.folder.exists():
            raise Unsupported(f"{arguments.folder} is there already: move it aside, or name another folder")
        convert(arguments.gguf, arguments.folder, arguments.dtype)
    except (Unsupported, ValueError, OSError) as refusal:
        print(f"{arguments.gguf}: {refusal}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
