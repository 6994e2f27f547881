"""Logits by transformers that tests/unit/model compares with. Run from the repository's root:

    python tests/golden/make_logits.py

Writes logits_teacher.safetensors (the passkey teacher on 512 tokens) and logits_small/ (a random untied model of three
query heads per kv head, whole, with its logits).
"""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

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


def small() -> None:
    torch.manual_seed(11)
    folder = HERE / "logits_small"
    folder.mkdir(exist_ok=True)
    config = Qwen3Config(vocab_size=96, hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=6,
                         num_key_value_heads=2, head_dim=16, max_position_embeddings=128, tie_word_embeddings=False,
                         rope_parameters={"rope_type": "default", "rope_theta": 500.0}, rms_norm_eps=1e-5)
    model = Qwen3ForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(1.0, 0.3) if "norm" in name else value.normal_(0.0, 0.2)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(golden(model, torch.randint(0, 96, (64,)), torch.arange(0, 64, 5)), folder / "logits.safetensors")
    print(json.dumps(json.loads((folder / "config.json").read_text()), indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    teacher()
    small()
