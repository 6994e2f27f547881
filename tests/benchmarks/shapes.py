"""Shapes of published models, and model folders of them without the models."""

import json
import math
import struct

SHAPES = {"1.7B": dict(hidden_size=2048, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
                       intermediate_size=6144, vocab_size=151936, tie_word_embeddings=True, model_type="qwen3"),
          "8B": dict(hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
                     intermediate_size=12288, vocab_size=151936, tie_word_embeddings=False, model_type="qwen3"),
          "135M": dict(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64,
                       intermediate_size=1536, vocab_size=49152, tie_word_embeddings=True, model_type="llama"),
          "tiny": dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                       intermediate_size=128, vocab_size=4096, tie_word_embeddings=True, model_type="qwen3")}


def tensors_of(shape):
    """Sizes by name."""
    c = SHAPES[shape]
    hidden, head, wide = c["hidden_size"], c["head_dim"], c["intermediate_size"]
    queries, keys = c["num_attention_heads"] * head, c["num_key_value_heads"] * head
    layer = {"input_layernorm": [hidden], "post_attention_layernorm": [hidden], "self_attn.q_proj": [queries, hidden],
             "self_attn.k_proj": [keys, hidden], "self_attn.v_proj": [keys, hidden], "self_attn.o_proj": [hidden, queries],
             "mlp.gate_proj": [wide, hidden], "mlp.up_proj": [wide, hidden], "mlp.down_proj": [hidden, wide]}
    if c["model_type"] == "qwen3":
        layer |= {"self_attn.q_norm": [head], "self_attn.k_norm": [head]}
    tensors = {"model.embed_tokens": [c["vocab_size"], hidden], "model.norm": [hidden]}
    if not c["tie_word_embeddings"]:
        tensors["lm_head"] = [c["vocab_size"], hidden]
    for number in range(c["num_hidden_layers"]):
        tensors |= {f"model.layers.{number}.{name}": sizes for name, sizes in layer.items()}
    return tensors


def in_files(tensors, most):
    """Names by file of at most so many bytes, as checkpoints are published."""
    files, room = [[]], most
    for name, sizes in tensors.items():
        if files[-1] and bytes_of(sizes) > room:
            files.append([])
            room = most
        files[-1].append(name)
        room -= bytes_of(sizes)
    return files


def bytes_of(sizes):
    return 2 * math.prod(sizes)


def write_model(folder, shape, values=None, most=5 << 30):
    """A model folder in bfloat16: of the bytes that values(name, sizes) gives, or its weights are a hole in the file."""
    folder.mkdir(parents=True)
    tensors = tensors_of(shape)
    files = in_files(tensors, most)
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    if len(files) == 1:
        names = ["model.safetensors"]
    else:
        places = {f"{tensor}.weight": name for name, held in zip(names, files) for tensor in held}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for name, held in zip(names, files):
        write_tensors(folder / name, {tensor: tensors[tensor] for tensor in held}, values)
    (folder / "config.json").write_text(json.dumps(SHAPES[shape] | {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6,
                                                                    "max_position_embeddings": 1 << 20, "attention_bias": False}))


def write_tensors(path, tensors, values):
    header, end = {}, 0
    for name, sizes in tensors.items():
        start, end = end, end + bytes_of(sizes)
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": sizes, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, sizes in tensors.items() if values else ():
            file.write(values(name, sizes))
        file.truncate(8 + len(text) + end)
