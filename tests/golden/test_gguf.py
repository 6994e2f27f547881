"""deploy/gguf_to_hf.py: GGUF files made of the golden families come back as they were; what it does not know is refused.
deploy/hf_to_gguf.py: files of exports, as gguf_exports.py says.

    python tests/golden/test_gguf.py     from the repository's root
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf_exports
import numpy as np
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

FAMILIES = Path("tests/golden/families")
PARTS = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
# A byte-level vocabulary of 64: two special tokens, letters, two merges.
LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [chr(c) for c in range(ord("A"), ord("Z") + 1)]
TOKENS = ["<|bos|>", "<|end|>", *LETTERS, "Ġ", ".", "0", "1", "th", "the"]
KINDS = [3, 3] + [1] * (len(TOKENS) - 2)
MERGES = ["t h", "th e"]


def ggml_name(name):
    *front, kind = name.split(".")
    if front[1:2] == ["layers"]:
        return f"blk.{front[2]}.{PARTS['.'.join(front[3:])]}.{kind}"
    return f"{PARTS['.'.join(front)]}.{kind}"


def interleaved(rows, heads):
    """As llama.cpp stores a Llama's queries and keys: channels i and i + K/2 of a head side by side."""
    size = rows.shape[0] // heads
    order = np.arange(size).reshape(2, size // 2).T.ravel()
    return rows.reshape(heads, size, -1)[:, order].reshape(rows.shape)


def write_gguf(path, family, change=lambda writer: None, pre="smollm"):
    config = json.loads((FAMILIES / family / "config.json").read_text())
    kind = config["model_type"]
    writer = GGUFWriter(path, kind)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    size = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    scaling = config.get("rope_scaling")
    writer.add_rope_freq_base(config["rope_theta"] if scaling else config["rope_parameters"]["rope_theta"])
    if scaling:
        writer.add_string(f"{kind}.rope.scaling.type", scaling["type"])
        writer.add_float32(f"{kind}.rope.scaling.factor", scaling["factor"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    padding = config["vocab_size"] - len(TOKENS)
    writer.add_token_list(TOKENS + [f"[PAD{place}]" for place in range(padding)])
    writer.add_token_types(KINDS + [5] * padding)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    change(writer)
    for name, tensor in load_file(FAMILIES / family / "model.safetensors").items():
        values = tensor.float().numpy()
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            values = interleaved(values, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        writer.add_tensor(ggml_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(gguf, folder):
    return subprocess.run([sys.executable, "deploy/gguf_to_hf.py", gguf, folder], capture_output=True, text=True)


def check_family(family, work):
    write_gguf(work / "x.gguf", family)
    converted = convert(work / "x.gguf", work / family)
    assert converted.returncode == 0, converted.stderr
    made, original = load_file(work / family / "model.safetensors"), load_file(FAMILIES / family / "model.safetensors")
    assert made.keys() == original.keys(), made.keys() ^ original.keys()
    for name, tensor in original.items():
        assert torch.equal(made[name], tensor), name
    model, loading = AutoModelForCausalLM.from_pretrained(work / family, dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values()), loading
    golden = load_file(FAMILIES / family / "logits.safetensors")
    with torch.no_grad():
        logits = model.eval()(golden["tokens"][None]).logits[0][golden["positions"]]
    assert (logits - golden["logits"]).abs().max() < 1e-5, (logits - golden["logits"]).abs().max()


def check_tokenizer(work):
    tokenizer = AutoTokenizer.from_pretrained(work / "qwen3")
    ids = tokenizer("the the<|end|>01").input_ids
    expected = ["the", "Ġ", "the", "<|end|>", "0", "1"]
    assert ids == [TOKENS.index(token) for token in expected], tokenizer.convert_ids_to_tokens(ids)
    assert len(tokenizer) == len(TOKENS), "tokens that only fill up the vocabulary are left out"
    assert tokenizer.decode(ids) == "the the<|end|>01" and tokenizer.eos_token == "<|end|>"


# What is changed, and what the one line must say.
REFUSALS = [
    (dict(change=lambda w: w.add_expert_count(4)), "qwen3.expert_count is 4"),
    (dict(change=lambda w: w.add_sliding_window(128)), "qwen3.attention.sliding_window is 128"),
    (dict(change=lambda w: w.add_tensor("blk.0.attn_sinks.weight", np.ones(4, np.float32))), "blk.0.attn_sinks.weight is not known"),
    (dict(change=lambda w: w.add_rope_dimension_count(8)), "rope.dimension_count is 8, expected the size of a head, 16"),
    (dict(change=lambda w: w.add_tensor("rope_freqs.weight", np.full(8, 2, np.float32))), "not those of Llama 3.1 or 3.2"),
    (dict(pre="tekken"), "tokenizer.ggml.pre is tekken"),
]


def check_refusals(work):
    for place, (made, expected) in enumerate(REFUSALS):
        write_gguf(work / f"{place}.gguf", "qwen3", **made)
        refused = convert(work / f"{place}.gguf", work / "refused")
        assert refused.returncode == 2 and expected in refused.stderr, refused.stderr
        assert not (work / "refused").exists()
    again = convert(work / "x.gguf", work / "qwen3")
    assert again.returncode == 2 and "is there already" in again.stderr, again.stderr


def main():
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for family in ["llama-linear", "llama-bias", "qwen2", "qwen3"]:
            check_family(family, work)
        check_tokenizer(work)
        check_refusals(work)
        gguf_exports.check(work)
    print("all GGUF files come back as they were, those of exports are what llama.cpp has run")


if __name__ == "__main__":
    main()
