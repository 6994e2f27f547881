"""deploy/hf_to_gguf.py: files of small exports are those that llama.cpp has run, and its logits are transformers'.

    python tests/golden/gguf_exports.py        from the repository's root, with the package llama-cpp-python: runs llama.cpp and
                                               writes gguf_exports.json and gguf_exports.safetensors
test_gguf.py calls check(): each export is made again, its file must be the recorded one, byte by byte, and the logits that
transformers computes of the folder must be those that llama.cpp computed of the file.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES, GGUFReader
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parent))
from test_export import in_float64, load  # noqa: E402

HERE = Path("tests/golden")
TOLERANCE = 1e-4  # of logits: llama.cpp computes in float32
TOKENS, EACH = np.arange(150) * 37 % 61, 5  # the logits of each fifth are compared
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 16,
         "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_dropout": 0.0,
         "initializer_range": 0.02, "dtype": "float32"}  # fmt: skip
GRANITE = SIZES | {
    "architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid", "num_attention_heads": 2, "num_key_value_heads": 1,
    "shared_intermediate_size": 48, "position_embedding_type": "rope", "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
    "attention_multiplier": 0.25, "logits_scaling": 1.0, "num_local_experts": 0, "num_experts_per_tok": 0,
    "layer_types": ["mamba", "attention", "attention", "mamba"], "mamba_n_heads": 2, "mamba_n_groups": 2, "mamba_d_head": 16,
    "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 1, "mamba_conv_bias": True, "mamba_proj_bias": False,
}  # fmt: skip
ROPES = {
    "plain": {"rope_type": "default", "rope_theta": 100000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
}  # fmt: skip
QWEN = SIZES | {
    "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "num_attention_heads": 4, "num_key_value_heads": 2,
    "attention_bias": False, "tie_word_embeddings": False, "rope_parameters": ROPES["plain"] | {"partial_rotary_factor": 1.0},
    "layer_types": ["linear_attention", "full_attention", "full_attention", "linear_attention"], "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 4, "linear_num_value_heads": 4,
}  # fmt: skip


def granite(rope, bias, tied, **more):
    return GRANITE | {"rope_parameters": ROPES[rope], "attention_bias": bias, "tie_word_embeddings": tied} | more


CASES = {
    "granite-plain": granite("plain", bias=False, tied=True),
    "granite-multipliers": granite("plain", bias=False, tied=False, embedding_multiplier=12.0, residual_multiplier=0.22,
                                   attention_multiplier=0.1, logits_scaling=8.0),
    "granite-linear": granite("linear", bias=False, tied=False),
    "granite-llama3": granite("llama3", bias=False, tied=True),
    "granite-yarn-bias": granite("yarn", bias=True, tied=False),
    "granite-wide": granite("plain", bias=False, tied=True, num_attention_heads=4, mamba_n_heads=4, mamba_n_groups=4, mamba_expand=2),
    "qwen3_5": QWEN,
}  # fmt: skip


def write_export(folder, config):
    """With numbers that are the same everywhere, in the shapes that the class of transformers has."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes = {name: tensor.shape for name, tensor in sorted(model.named_parameters())}
    random = np.random.RandomState(0)
    tensors = {}
    for name, shape in shapes.items():
        values = random.uniform(-1, 1, shape)
        if name.endswith(("norm.weight", ".D")):
            values = 0.3 * values + (0 if "qwen3_5" in config["model_type"] and "linear_attn" not in name else 1)
        elif len(shape) > 1:
            values *= 1.5 / np.sqrt(np.prod(shape[1:]))
        tensors[name] = values.astype(np.float32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def convert(folder, file):
    return subprocess.run([sys.executable, "deploy/hf_to_gguf.py", folder, file, "--dtype", "float32"], capture_output=True, text=True)


def made(name, work):
    """The export and its file."""
    folder, file = work / name, work / f"{name}.gguf"
    write_export(folder, CASES[name])
    converted = convert(folder, file)
    assert converted.returncode == 0, converted.stderr
    return folder, file


def logits_in_transformers(folder):
    """In float64, so that the difference is llama.cpp's rounding alone."""
    with in_float64(folder), torch.no_grad():
        model, loading = load(folder, torch.float64)
        assert not any(loading.values()), loading
        return model.eval()(torch.tensor(TOKENS)[None]).logits[0, ::EACH].numpy()


def check_names(file):
    """Those of gguf's own table for the architecture."""
    reader = GGUFReader(file)
    name = reader.fields["general.architecture"].contents()
    architecture = next(kind for kind in MODEL_ARCH if MODEL_ARCH_NAMES[kind] == name)
    known = {TENSOR_NAMES[tensor].format(bid="N") for tensor in MODEL_TENSORS[architecture]} | {"rope_freqs"}
    for tensor in reader.tensors:
        parts = ["N" if part.isdigit() else part for part in tensor.name.removesuffix(".weight").removesuffix(".bias").split(".")]
        assert ".".join(parts) in known, tensor.name


REFUSALS = [
    (CASES["granite-plain"] | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "model_type is llama, expected one of"),
    (CASES["granite-plain"] | {"num_attention_heads": 5, "mamba_n_heads": 5}, "5 heads of 16 channels do not fit into llama.cpp's"),
    (CASES["granite-yarn-bias"] | {"rope_parameters": ROPES["yarn"] | {"truncate": False}}, "llama.cpp's YaRN truncates"),
    (QWEN | {"rope_parameters": ROPES["llama3"]}, "llama.cpp's qwen35 has default"),
]


def check_refusals(work):
    for config, expected in REFUSALS:
        (work / "granite-plain/config.json").write_text(json.dumps(config))
        refused = convert(work / "granite-plain", work / "refused.gguf")
        assert refused.returncode == 2 and expected in refused.stderr, refused.stderr
        assert not (work / "refused.gguf").exists()


def check(work):
    recorded = json.loads((HERE / "gguf_exports.json").read_text())
    logits = load_file(HERE / "gguf_exports.safetensors")
    for name in CASES:
        folder, file = made(name, work)
        check_names(file)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == recorded["sha256"][name], name
        error = np.abs(logits_in_transformers(folder) - logits[name]).max()
        print(f"{name}: logits of llama.cpp and of transformers differ by {error:.1e}")
        assert error <= TOLERANCE, name
    check_refusals(work)


def main():
    from llama_cpp import GGML_TYPE_F32, Llama, __version__

    record, logits = {"llama-cpp-python": __version__, "sha256": {}}, {}
    with tempfile.TemporaryDirectory() as work:
        for name in CASES:
            folder, file = made(name, Path(work))
            record["sha256"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
            model = Llama(str(file), logits_all=True, n_ctx=256, n_threads=1, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32, verbose=False)
            model.eval(TOKENS.tolist())
            logits[name] = model.scores[: len(TOKENS) : EACH].astype(np.float32)
            error = np.abs(logits_in_transformers(folder) - logits[name]).max()
            print(f"{name}: logits of llama.cpp and of transformers differ by {error:.1e} of {np.abs(logits[name]).max():.1f}", flush=True)
    (HERE / "gguf_exports.json").write_text(json.dumps(record, indent=1) + "\n")
    save_file(logits, HERE / "gguf_exports.safetensors")


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    main()
