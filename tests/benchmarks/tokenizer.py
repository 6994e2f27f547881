"""Megabytes a second of our tokenizer and of the `tokenizers` package, each on one core, on the same text.

    python tests/benchmarks/tokenizer.py BENCHMARK_TOKENIZER     from the repository's root; that program is built there

English is the play; mixed is the conformance test's text, which half consists of rare scripts (its tokenizers have a
vocabulary of 3000, so words are long in tokens). Both encoders see the text again and again and may remember its words.
"""

import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, "tests/golden")
import test_tokenizers  # noqa: E402


def package_speed(tokenizer, text):
    lines = text.splitlines(keepends=True)
    started = time.perf_counter()
    tokenizer.encode_batch(["".join(lines[i:i + 100]) for i in range(0, len(lines), 100)], add_special_tokens=False)
    return len(text.encode()) / 1e6 / (time.perf_counter() - started)


def main():
    mixed = test_tokenizers.mixed_text(random.Random(7))
    texts = {"English": pathlib.Path("tests/data/text/tinyshakespeare.txt").read_bytes().decode(), "mixed": mixed}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for name, tokenizer in test_tokenizers.tokenizer_kinds(mixed):
            if name not in ("gpt2", "qwen2", "llama3", "llama2", "stories260k", "passkey-teacher"):
                continue
            (folder / "tokenizer.json").write_text(tokenizer.to_str())
            for kind, text in texts.items():
                (folder / "text").write_bytes(text.encode())
                ours = subprocess.run([sys.argv[1], folder / "tokenizer.json", folder / "text"], check=True,
                                      capture_output=True, text=True).stdout.strip()
                print(f"{name:16} {kind:8} ours {ours}; tokenizers {package_speed(tokenizer, text):.1f} MB/s", flush=True)


if __name__ == "__main__":
    main()
