"""Megabytes a second of processor time of our tokenizer and of the `tokenizers` package on the same text, as a table.

    python tests/benchmarks/tokenizer.py BENCHMARK_TOKENIZER     from the repository's root; that program is built there

English is the play, 1.1 MB; mixed is the conformance test's text, a third of it words of rare scripts. Ours reads it once
(first) and then again until 64 MB are read, as its words are then known; the package reads it once.
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
    started = time.process_time()
    tokenizer.encode_batch(["".join(lines[i:i + 100]) for i in range(0, len(lines), 100)], add_special_tokens=False)
    return len(text.encode()) / 1e6 / (time.process_time() - started)


def main():
    mixed = test_tokenizers.mixed_text(random.Random(7))
    print("| tokenizer | text | bytes a token | ours, first | ours, again | tokenizers |\n|---|---|---|---|---|---|")
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
                first, again, bytes_a_token = ours.split()
                theirs = package_speed(tokenizer, text)
                print(f"| {name} | {kind} | {bytes_a_token} | {first} | {again} | {theirs:.1f} |", flush=True)


if __name__ == "__main__":
    main()
