#!/usr/bin/env python3
"""Makes a GGUF file for llama.cpp of an exported hybrid.

    python deploy/hf_to_gguf.py FOLDER MODEL.gguf [--dtype bfloat16|float16|float32]

Needs the packages gguf and numpy. Reads exports of the formats qwen3_5_text and granitemoehybrid with a byte-level BPE tokenizer
or none; llama.cpp's tools quantize the file further. Whatever has no exact place there is refused: exit code 2, one line.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType
from gguf.quants import quantize
from gguf_to_hf import CONTROL, NORMAL, PRE_TOKENIZERS, UNUSED, USER_DEFINED, Unsupported, byte_level, llama3_frequency_factors

# ---- model.safetensors ----------------------------------------------------------------------------------------------

STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class Weights:
    """The tensors of a safetensors file, read one by one in float32."""

    def __init__(self, path):
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            self.entries = json.loads(file.read(size))
        self.entries.pop("__metadata__", None)
        self.bytes = np.memmap(path, mode="r", offset=8 + size)

    def __getitem__(self, name):
        entry = self.entries[name]
        if entry["dtype"] not in STORED:
            raise Unsupported(f"the tensor {name} is stored as {entry['dtype']}, expected one of {', '.join(STORED)}")
        first, last = entry["data_offsets"]
        values = self.bytes[first:last].view(STORED[entry["dtype"]])
        if entry["dtype"] == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        return values.astype(np.float32).reshape(entry["shape"])


# ---- Tensors --------------------------------------------------------------------------------------------------------

COMMON = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
COMMON_OF_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
}


class Architecture:
    """One of llama.cpp's, as the tensors and keys of a folder's format."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.head_dim = config["head_dim"]

    def is_full(self, layer):
        return self.config["layer_types"][layer] in ("full_attention", "attention")

    def values(self, name):
        return self.weights[name]

    def tensors(self):
        """Each one's name there, and its values."""
        for name in self.weights.entries:
            if name in COMMON:
                yield COMMON[name], self.values(name)
                continue
            layer, part = name.removeprefix("model.layers.").split(".", 1)
            for theirs, change in self.part(part):
                yield f"blk.{layer}.{theirs}", change(self.values(name))


class Qwen35(Architecture):
    """Its norms are stored as they are, not minus one; decays as -exp(A_log)."""

    name = "qwen35"
    ropes = ("default",)
    parts = COMMON_OF_LAYER | {
        "post_attention_layernorm.weight": "post_attention_norm.weight",
        "self_attn.q_norm.weight": "attn_q_norm.weight",
        "self_attn.k_norm.weight": "attn_k_norm.weight",
        "mlp.gate_proj.weight": "ffn_gate.weight",
        "mlp.up_proj.weight": "ffn_up.weight",
        "mlp.down_proj.weight": "ffn_down.weight",
        "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
        "linear_attn.in_proj_z.weight": "attn_gate.weight",
        "linear_attn.in_proj_b.weight": "ssm_beta.weight",
        "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
        "linear_attn.conv1d.weight": "ssm_conv1d.weight",
        "linear_attn.A_log": "ssm_a",
        "linear_attn.dt_bias": "ssm_dt.bias",
        "linear_attn.norm.weight": "ssm_norm.weight",
        "linear_attn.out_proj.weight": "ssm_out.weight",
    }

    def part(self, part):
        if part not in self.parts:
            raise Unsupported(f"a layer has the tensor {part}, which has no place in {self.name}")
        yield self.parts[part], lambda values: values

    def values(self, name):
        values = super().values(name)
        if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
            return values + 1
        if name.endswith("A_log"):
            return minus_exp(values)
        return values.squeeze(1) if name.endswith("conv1d.weight") else values

    def write_keys(self, writer):
        writer.add_head_count_kv(self.config["num_key_value_heads"])
        third = -(-self.head_dim // 6)  # of the pairs that are turned, by time, height and width, which a text has not
        writer.add_rope_dimension_sections([third, third, third, 0])
        writer.add_ssm_conv_kernel(self.config["linear_conv_kernel_dim"])
        writer.add_ssm_state_size(self.config["linear_key_head_dim"])
        writer.add_ssm_group_count(self.config["linear_num_key_heads"])
        writer.add_ssm_time_step_rank(self.config["linear_num_value_heads"])
        writer.add_ssm_inner_size(self.config["linear_num_value_heads"] * self.config["linear_value_head_dim"])
        writer.add_array(f"{self.name}.attention.recurrent_layers", [not self.is_full(i) for i in range(self.layers)])


class GraniteHybrid(Architecture):
    """Its recurrence has 2 hidden channels, no other number: heads of zeros, which change nothing, fill them up."""

    name = "granitehybrid"
    ropes = ("default", "linear", "llama3", "yarn")
    parts = COMMON_OF_LAYER | {
        "post_attention_layernorm.weight": "ffn_norm.weight",
        "self_attn.q_proj.bias": "attn_q.bias",
        "self_attn.k_proj.bias": "attn_k.bias",
        "self_attn.v_proj.bias": "attn_v.bias",
        "self_attn.o_proj.bias": "attn_output.bias",
        "shared_mlp.output_linear.weight": "ffn_down.weight",
        "mamba.in_proj.weight": "ssm_in.weight",
        "mamba.conv1d.weight": "ssm_conv1d.weight",
        "mamba.conv1d.bias": "ssm_conv1d.bias",
        "mamba.A_log": "ssm_a",
        "mamba.dt_bias": "ssm_dt.bias",
        "mamba.D": "ssm_d",
        "mamba.norm.weight": "ssm_norm.weight",
        "mamba.out_proj.weight": "ssm_out.weight",
    }

    def __init__(self, config, weights):
        super().__init__(config, weights)
        channels = 2 * config["hidden_size"]
        self.all_heads, rest = divmod(channels, self.head_dim)
        if rest != 0 or self.all_heads < self.heads:
            raise Unsupported(f"{self.heads} heads of {self.head_dim} channels do not fit into llama.cpp's 2 x hidden_size, {channels}")

    def part(self, part):
        if part == "shared_mlp.input_linear.weight":
            yield "ffn_gate.weight", lambda both: np.split(both, 2)[0]
            yield "ffn_up.weight", lambda both: np.split(both, 2)[1]
        elif part in self.parts:
            yield self.parts[part], lambda values: values
        else:
            raise Unsupported(f"a layer has the tensor {part}, which has no place in {self.name}")

    def filled(self, values, heads, size):
        """Rows of `heads` heads, each `size` of them, filled up with rows of zeros."""
        rows = values.reshape(heads, size, *values.shape[1:])
        zeros = np.zeros((self.all_heads - heads, *rows.shape[1:]), np.float32)
        return np.concatenate((rows, zeros)).reshape(-1, *values.shape[1:])

    def filled_parts(self, values, count):
        """`count` times the rows of all heads, then perhaps a row a head."""
        wide = self.heads * self.head_dim
        parts = [self.filled(values[i * wide : (i + 1) * wide], self.heads, self.head_dim) for i in range(count)]
        rest = values[count * wide :]
        return np.concatenate((*parts, *([self.filled(rest, self.heads, 1)] if len(rest) else [])))

    def values(self, name):
        values, part = super().values(name), name.split(".", 3)[-1]
        if part.startswith(("self_attn.q_proj.", "self_attn.k_proj.")):
            heads = self.heads if "q_proj" in part else self.config["num_key_value_heads"]
            return with_halves_together(values, heads)
        if part == "mamba.in_proj.weight":
            return self.filled_parts(values, 4)  # gate, values, keys, queries, steps
        if part.startswith("mamba.conv1d"):
            return self.filled_parts(values.squeeze(1) if part.endswith("weight") else values, 3)
        if part in ("mamba.A_log", "mamba.D", "mamba.dt_bias"):
            values = self.filled(minus_exp(values) if part == "mamba.A_log" else values, self.heads, 1)
            return values if part == "mamba.dt_bias" else values.reshape(-1, 1)
        if part == "mamba.norm.weight":
            return self.filled(values, self.heads, self.head_dim).reshape(self.all_heads, self.head_dim)
        return self.filled_parts(values.T, 1).T if part == "mamba.out_proj.weight" else values

    def write_keys(self, writer):
        config = self.config
        writer.add_head_count_kv([config["num_key_value_heads"] if self.is_full(i) else 0 for i in range(self.layers)])
        writer.add_rope_scaling_finetuned(True)  # that is: queries and keys are rotated
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
        writer.add_ssm_conv_kernel(config["mamba_d_conv"])
        writer.add_ssm_state_size(config["mamba_d_state"])
        writer.add_ssm_group_count(self.all_heads)
        writer.add_ssm_time_step_rank(self.all_heads)
        writer.add_ssm_inner_size(2 * config["hidden_size"])


def minus_exp(values):
    return -np.exp(values.astype(np.float64)).astype(np.float32)


def with_halves_together(rows, heads):
    """transformers rotates channels i and i + K/2 of a head together, ggml's Llama channels 2i and 2i + 1."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


ARCHITECTURES = {"qwen3_5_text": Qwen35, "granitemoehybrid": GraniteHybrid}

# ---- Rotation -------------------------------------------------------------------------------------------------------


def write_rope(writer, model):
    rope = model.config["rope_parameters"]
    kind = rope.get("rope_type", "default")
    if kind not in model.ropes or rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise Unsupported(f"rope_parameters are {rope}; llama.cpp's {model.name} has {', '.join(model.ropes)}, of all channels")
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(model.head_dim)
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        usual = 0.1 * np.log(rope["factor"]) + 1
        if abs(rope.get("attention_factor", usual) / usual - 1) > 1e-6 or not rope.get("truncate", True):
            raise Unsupported(f"rope_parameters are {rope}; llama.cpp's YaRN truncates, and its attention_factor is {usual:.6g}")
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast", 32.0))
        writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow", 1.0))


def frequency_factors(model):
    """Llama 3's, which llama.cpp reads as a tensor; nothing for others."""
    rope = model.config["rope_parameters"]
    if rope.get("rope_type") != "llama3":
        return None
    return llama3_frequency_factors(rope["rope_theta"], model.head_dim, rope["factor"], rope["low_freq_factor"],
                                    rope["high_freq_factor"], rope["original_max_position_embeddings"])  # fmt: skip


# ---- The tokenizer --------------------------------------------------------------------------------------------------


def cut_of(pre_tokenizer):
    """What of a pre-tokenizer decides where it cuts."""
    parts = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    return [{key: value for key, value in part.items() if key != "trim_offsets"} for part in parts]


def pre_tokenizer_name(tokenizer):
    wanted = cut_of(tokenizer["pre_tokenizer"] or byte_level(True))
    for name, parts in PRE_TOKENIZERS.items():
        if wanted == cut_of({"type": "Sequence", "pretokenizers": parts}):
            return name
    raise Unsupported(f"tokenizer.json: pre_tokenizer is none of {', '.join(PRE_TOKENIZERS)}")


def write_tokenizer(writer, folder, vocabulary):
    if not (folder / "tokenizer.json").exists():
        writer.add_tokenizer_model("none")
        return
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or tokenizer["decoder"] is None or tokenizer["decoder"]["type"] != "ByteLevel":
        raise Unsupported("tokenizer.json is no byte-level BPE; remove it from a copy of the folder for a file without a tokenizer")
    tokens, kinds = [f"[PAD{place}]" for place in range(vocabulary)], [UNUSED] * vocabulary
    for token, place in model["vocab"].items():
        tokens[place], kinds[place] = token, NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    write_special_tokens(writer, folder, tokens, tokenizer)


def write_special_tokens(writer, folder, tokens, tokenizer):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for kind, add in {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "pad": writer.add_pad_token_id,
                      "unk": writer.add_unk_token_id}.items():  # fmt: skip
        token = config.get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in tokens:
            add(tokens.index(token))
    begins = (tokenizer.get("post_processor") or {}).get("single", [{}])[0]
    writer.add_add_bos_token("SpecialToken" in begins)
    template = folder / "chat_template.jinja"
    template = template.read_text(encoding="utf-8") if template.exists() else config.get("chat_template")
    if isinstance(template, str):
        writer.add_chat_template(template)


# ---------------------------------------------------------------------------------------------------------------------

DTYPES = {"float32": GGMLQuantizationType.F32, "float16": GGMLQuantizationType.F16, "bfloat16": GGMLQuantizationType.BF16}


def write(model, folder, path, dtype):
    config = model.config
    writer = GGUFWriter(path, model.name, use_temp_file=True)  # so that no two tensors are in memory
    writer.add_name(folder.resolve().name)
    writer.add_block_count(model.layers)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(model.heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    write_rope(writer, model)
    model.write_keys(writer)
    write_tokenizer(writer, folder, config["vocab_size"])
    for name, values in model.tensors():
        add_tensor(writer, name, values, DTYPES[dtype])
    if (factors := frequency_factors(model)) is not None:
        add_tensor(writer, "rope_freqs.weight", factors.astype(np.float32), DTYPES[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tensor(writer, name, values, dtype):
    """Products' matrices in `dtype`, all else in float32, which llama.cpp expects there."""
    if not np.isfinite(values).all():
        raise Unsupported(f"the tensor {name} holds values that are not finite")
    is_matrix = values.ndim == 2 and name.endswith(".weight") and not name.endswith(("ssm_conv1d.weight", "ssm_norm.weight"))
    kind = dtype if is_matrix else GGMLQuantizationType.F32
    writer.add_tensor(name, quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)


def convert(folder, path, dtype):
    """The file is whole or absent."""
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") not in ARCHITECTURES:
        raise Unsupported(f"model_type is {config.get('model_type')}, expected one of {', '.join(ARCHITECTURES)}")
    model = ARCHITECTURES[config["model_type"]](config, Weights(folder / "model.safetensors"))
    part = path.with_name(f".{path.name}.part")
    try:
        write(model, folder, part, dtype)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="an export")
    parser.add_argument("gguf", type=Path, help="must not exist")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights")
    arguments = parser.parse_args()
    try:
        if arguments.gguf.exists():
            raise Unsupported(f"{arguments.gguf} is there already: move it aside, or name another file")
        convert(arguments.folder, arguments.gguf, arguments.dtype)
    except (Unsupported, ValueError, KeyError, OSError) as refusal:
        reason = f"{refusal} is missing" if isinstance(refusal, KeyError) else refusal
        print(f"{arguments.folder}: {reason}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
