"""What `flashmorph-dist tokenize` writes, read by a reader made from the format's byte table alone, against the
`tokenizers` package; killed at random moments it must end with the same bytes; its refusals.

    python tests/golden/test_token_files.py FLASHMORPH_DIST     from the repository's root
"""

import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer

WORKED_EXAMPLE = bytes.fromhex(
    "4d4d4944494458000001000000000000000403000000000000000300000000000000"
    "030000000200000004000000" "00000000000000000c000000000000001400000000000000"
    "000000000000000002000000000000000300000000000000")
ELEMENTS = {4: ("i", 4), 8: ("H", 2)}


def read_index(content):
    """The arrays of an .idx: element code, lengths, byte offsets, documents."""
    assert content[:9] == b"MMIDIDX\0\0", content[:9]
    version, code, sequences, entries = struct.unpack_from("<QBQQ", content, 9)
    assert version == 1
    at = 34
    lengths = struct.unpack_from(f"<{sequences}i", content, at)
    offsets = struct.unpack_from(f"<{sequences}q", content, at + 4 * sequences)
    documents = struct.unpack_from(f"<{entries}q", content, at + 12 * sequences)
    assert len(content) == 34 + 12 * sequences + 8 * entries
    assert documents[0] == 0 and documents[-1] == sequences
    return code, lengths, offsets, documents


def read_documents(prefix):
    code, lengths, offsets, documents = read_index(pathlib.Path(prefix + ".idx").read_bytes())
    letter, size = ELEMENTS[code]
    tokens = pathlib.Path(prefix + ".bin").read_bytes()
    assert sum(lengths) * size == len(tokens)
    sequences = [list(struct.unpack_from(f"<{length}{letter}", tokens, offset)) for length, offset in zip(lengths, offsets)]
    return code, [sum(sequences[a:b], []) for a, b in zip(documents, documents[1:])]


def check_worked_example():
    assert len(WORKED_EXAMPLE) == 94
    assert read_index(WORKED_EXAMPLE) == (4, (3, 2, 4), (0, 12, 20), (0, 2, 3))


class Program:
    def __init__(self, path, model):
        self.path, self.model = path, model

    def arguments(self, inputs, prefix, *more):
        return [self.path, "tokenize", *inputs, "--model", self.model, "--output", prefix, *more]

    def run(self, *arguments):
        return subprocess.run(self.arguments(*arguments), capture_output=True, text=True)

    def tokenized(self, *arguments):
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done

    def refused(self, expected, *arguments):
        done = self.run(*arguments)
        assert done.returncode == 2 and expected in done.stderr, (done.returncode, done.stderr, expected)

    def killed_until_done(self, draw, seconds, *arguments):
        """Starts and kills until a start lives long enough; how many starts that took."""
        for starts in range(1, 200):
            process = subprocess.Popen(self.arguments(*arguments), stdout=subprocess.DEVNULL)
            try:
                if process.wait(timeout=draw.uniform(0.2, 1.0) * seconds * starts) == 0:
                    return starts
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        raise AssertionError("never done")


def files(prefix):
    return [pathlib.Path(f"{prefix}.{kind}").read_bytes() for kind in ("bin", "idx", "json")]


def check_json_lines(program, folder, tokenizer, code):
    texts = ["one", "", "a longer one\nof two lines", "\u00e9t\u00e9 \u4f60\u597d \U0001f600", " ", "last"] * 20
    lines = folder / "lines.jsonl"
    lines.write_text("".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(texts)))
    prefix = str(folder / "lines")
    program.tokenized([lines], prefix, "--jsonl", "body", "--append-eod")
    end = next(id for id in map(tokenizer.token_to_id, ("<|endoftext|>", "</s>")) if id is not None)
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert read_documents(prefix) == (code, [document + [end] for document in ids if document])
    origin = json.loads(pathlib.Path(prefix + ".json").read_text())
    assert origin["end_of_document"] == end and origin["documents"] == 100
    program.refused("line 1: has no text at \"text\"", [lines], str(folder / "none"), "--jsonl", "text")
    program.refused("other inputs or settings", [lines], prefix, "--jsonl", "body")


def check_resumption(program, folder, tokenizer):
    play = pathlib.Path("tests/data/text/tinyshakespeare.txt").read_bytes()
    book = folder / "book.txt"
    book.write_bytes(play * 60)  # 67 MB: two commits
    at_once, killed = str(folder / "at_once"), str(folder / "killed")
    program.tokenized([book], at_once)
    starts = program.killed_until_done(random.Random(3), 0.4, [book], killed)
    assert files(killed) == files(at_once)
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert not left, left
    print(f"killed {starts - 1} times: the same bytes")
    assert "already" in program.tokenized([book], killed).stdout
    ids = tokenizer.encode(play.decode(), add_special_tokens=False).ids
    document = read_documents(at_once)[1][0]
    assert document[:len(ids) - 1] == ids[:-1]
    book.write_bytes(play)
    program.refused("other inputs or settings", [book], killed)
    program.tokenized([book], killed, "--fresh")
    assert read_documents(killed)[1] == [ids]


def main():
    check_worked_example()
    for model, code in (("tests/data/passkey-teacher", 8), ("tests/data/stories260k", 8)):
        program = Program(sys.argv[1], model)
        tokenizer = Tokenizer.from_file(model + "/tokenizer.json")
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            check_json_lines(program, folder, tokenizer, code)
            if model.endswith("teacher"):
                check_resumption(program, folder, tokenizer)
            (folder / "empty").mkdir()
            program.refused("is a folder without files", [folder / "empty"], str(folder / "none"))
    print("token files: all checks passed")


if __name__ == "__main__":
    main()
