"""Logits by transformers that tests/unit/model compares with. Run from the repository's root:

    python tests/golden/make_logits.py

Writes logits_teacher.safetensors and logits_stories260k.safetensors (logits of the models in tests/data), families/: a
small random model of each supported family and kind of rotary embedding, in bfloat16, with its float32 logits, and
rope.json: frequencies of more ways to write a rotary embedding.
"""

import json
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    MixtralForCausalLM,
    Olmo2ForCausalLM,
    Phi3ForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
    SmolLM3ForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HERE = Path(__file__).parent
TEACHER = HERE.parent / "data" / "passkey-teacher"
TEXT = HERE.parent / "data" / "text" / "tinyshakespeare.txt"
ORDINALS = ["first", "second", "third", "fourth"]
WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima mike november oscar papa".split()


def passkey_text(rng: random.Random) -> str:
    keys = {ordinal: " ".join(rng.choices(WORDS, k=8)) for ordinal in ORDINALS}
    lines = TEXT.read_text()[-100_000:].splitlines()[1:31]
    for ordinal, words in keys.items():
        lines.insert(rng.randrange(len(lines)), f"Remember this sequence of words, it is the {ordinal} passkey to the vault: {words}")
    questions = [f"\nWhat is the {o} passkey to the vault?\nPasskey: {keys[o]}\n" for o in ORDINALS]
    return "\n".join(lines) + "\n" + "".join(questions)


def golden(model, tokens: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        logits = model(tokens[None]).logits[0].float()
    return {"tokens": tokens, "positions": positions, "logits": logits[positions].contiguous()}


def teacher() -> None:
    text = passkey_text(random.Random(7))
    tokens = torch.tensor(AutoTokenizer.from_pretrained(TEACHER)(text).input_ids)[-512:]
    assert len(tokens) == 512, len(tokens)
    model = AutoModelForCausalLM.from_pretrained(TEACHER, dtype=torch.float32).eval()
    save_file(golden(model, tokens, torch.linspace(0, 511, 16).long()), HERE / "logits_teacher.safetensors")


SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=16, max_position_embeddings=512, tie_word_embeddings=False, rms_norm_eps=1e-5)
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 8.0}
# name: (architecture, what it has beyond SIZES, rope scaling); the published files write it as rope_scaling.
FAMILIES = {
    "llama3": (LlamaForCausalLM, {}, LLAMA3),
    "llama-linear": (LlamaForCausalLM, {"tie_word_embeddings": True}, {"type": "linear", "factor": 2.5}),
    "mistral": (MistralForCausalLM, {"sliding_window": None}, None),
    "qwen2": (Qwen2ForCausalLM, {}, None),
    "qwen2-yarn": (Qwen2ForCausalLM, {"tie_word_embeddings": True}, YARN),
    "qwen3": (Qwen3ForCausalLM, {"num_attention_heads": 6, "hidden_size": 40}, None),
    "qwen3-moe": (Qwen3MoeForCausalLM, {"num_hidden_layers": 3, "num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True,
                                        "moe_intermediate_size": 16, "mlp_only_layers": [1]}, None),
    "llama-bias": (LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}, None),
    "smollm3": (SmolLM3ForCausalLM, {"num_hidden_layers": 3, "no_rope_layer_interval": 2, "tie_word_embeddings": True, "pad_token_id": None}, None),
    "granite": (GraniteForCausalLM, {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.015625,
                                     "logits_scaling": 0.5, "tie_word_embeddings": True}, None),
    "phi3": (Phi3ForCausalLM, {"sliding_window": None, "pad_token_id": None}, None),
    "mixtral": (MixtralForCausalLM, {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}, None),
    "olmo2": (Olmo2ForCausalLM, {"num_attention_heads": 6, "hidden_size": 40, "pad_token_id": None}, None),
    "qwen3-moe-plain": (Qwen3MoeForCausalLM, {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": False,
                                              "decoder_sparse_step": 2, "moe_intermediate_size": 24}, None),
}


def family(name: str) -> None:
    architecture, more, scaling = FAMILIES[name]
    torch.manual_seed(11)
    sizes = SIZES | more
    if architecture in (Qwen2ForCausalLM, Phi3ForCausalLM):
        sizes = {key: value for key, value in sizes.items() if key != "head_dim"} | {"hidden_size": 64}
    rope = {"rope_type": "default", "rope_theta": 500.0}
    config = architecture.config_class(**sizes, rope_parameters=rope)
    model = architecture(config).bfloat16()
    with torch.no_grad():
        for key, value in model.named_parameters():
            value.normal_(1.0, 0.3) if "norm" in key else value.normal_(0.0, 0.2)
    folder = HERE / "families" / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if scaling is not None:
        written = json.loads((folder / "config.json").read_text())
        del written["rope_parameters"]
        written |= {"rope_theta": 500.0, "rope_scaling": scaling}
        (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(loaded) is architecture
    tokens = torch.randint(0, sizes["vocab_size"], (320,))
    save_file(golden(loaded, tokens, torch.arange(0, 320, 11)), folder / "logits.safetensors")


def rope_frequencies() -> None:
    """rope.json: what transformers makes of each way to write a rotary embedding."""
    theta, yarn = {"rope_theta": 1e6}, {"type": "yarn", "factor": 4.0}
    original = {"original_max_position_embeddings": 512}
    ways = [
        {"rope_theta": 5e5},
        theta | {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": theta | {"rope_type": "default"}},
        theta | {"rope_scaling": yarn},
        theta | {"rope_scaling": yarn | original | {"truncate": True}},
        theta | {"rope_scaling": yarn | original | {"truncate": False}},
        theta | {"rope_scaling": yarn | original | {"mscale": 0.7, "mscale_all_dim": 1.1}},
        theta | {"rope_scaling": yarn | original | {"mscale": 0.7}},
        theta | {"rope_scaling": yarn | original | {"attention_factor": 0.9}},
        theta | {"rope_scaling": yarn | original | {"factor": None}},
        theta | original | {"rope_scaling": yarn},
        theta | {"rope_scaling": yarn | original | {"beta_fast": 16.0, "beta_slow": 2.0, "finetuned": True}},
        theta | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    ]
    made = []
    for way in ways:
        config = LlamaForCausalLM.config_class(**SIZES | {"max_position_embeddings": 2048, "head_dim": 32}, **json.loads(json.dumps(way)))
        kind = config.rope_parameters["rope_type"]
        if kind == "default":
            frequencies, scale = config.rope_parameters["rope_theta"] ** (-torch.arange(0, 32, 2) / 32), 1.0
        else:
            frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
        made.append({"config": way, "frequencies": frequencies.tolist(), "scale": scale})
    (HERE / "rope.json").write_text(json.dumps(made, indent=1) + "\n")


def stories() -> None:
    folder = HERE.parent / "data" / "stories260k"
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. " * 8
    tokens = torch.tensor(AutoTokenizer.from_pretrained(folder)(text).input_ids)[:300]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    save_file(golden(model, tokens, torch.arange(0, len(tokens), 23)), HERE / "logits_stories260k.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    teacher()
    stories()
    rope_frequencies()
    for name in FAMILIES:
        family(name)
