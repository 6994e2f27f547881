"""Writes tokenizer.json: what the `tokenizers` package makes of a book, of nasty strings and of broken byte sequences.

The teacher's tokenizer as it is, and variants of it: each a JSON merge patch (RFC 7396) of its tokenizer.json.
Run from the repository's root: python tests/golden/make_tokenizer.py
"""

import hashlib
import json
import random
import struct

from tokenizers import Tokenizer

TEACHER = "tests/data/passkey-teacher/tokenizer.json"
NASTY = [
    "", " ", "\n", "\r\n\r\n", "  two  spaces ", "tab\tand\u00a0nbsp\u3000wide", "it's we'LL they'Ve I'd",
    "12345678901234567890 3.14 1,000", "emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 flag \U0001f1e9\U0001f1ea",
    "combining e\u0301 o\u0308\u0323 n\u0303 \u1100\u1161\u11a8", "\u4f60\u597d\uff0c\u4e16\u754c \u3053\u3093\u306b\u3061\u306f",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd", "<|endoftext|>", "a<|endoftext|>b<|im_start|> <|im_end|>\n",
    "<|endoftext", "<<|endoftext|>>", "!!!???...\n\n\n  x", "a\u200bb\ufeffc", "\u212b \ufb01 \u2460 \u00bd", "\x00\x01\x7f\u0080",
    "Passkey: zulu kilo\n\nWhat is the third passkey", "x" * 300, " " * 40 + "end", "\u0301start", "CamelCaseHTTPServer2024",
    "line\r\nline\rline\n\r \r\n", "a \u180e b\u180ec \u0085\u2028\u2029 d \x1c\x1f", "it'\u017f \u212a I'M", "ab" * 150,
    "e\u0301<|im_start|>\u0301 \u212b\u00c5A\u030a im_end <|im_start|>x zzzz", "  the\u0301 \uac00\u11a8 \uac00\u11a7",
    "marks after Unicode 9: a\u0358\u1ac0\u0334b b\u0309\u0c3c\u0345",
]
PRE_TOKENIZER = lambda regex: {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]}
LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")


def added(token, content, normalized=False):
    return {"id": token, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": normalized, "special": False}


with open(TEACHER) as file:
    teacher = json.load(file)
patches = {
    "teacher": {},
    "gpt2": {"normalizer": None,
             "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}},
    "llama3": {"normalizer": None, "pre_tokenizer": PRE_TOKENIZER(LLAMA),
               "model": {"ignore_merges": True, "merges": [" ".join(pair) for pair in teacher["model"]["merges"][:200]]}},
    "added": {"added_tokens": teacher["added_tokens"] + [
        added(1024, "<|im_start|>x"), added(1025, "im_"), added(1026, "e\u0301", normalized=True),
        added(1027, "\u212b"), added(1028, "zz", normalized=True), added(1029, "z z"), added(1030, "\u00c5\u00c5")]},
    "empty_matches": {"pre_tokenizer": PRE_TOKENIZER("x*")},
}


def patched(patch):
    model = teacher["model"] | patch.get("model", {})
    return Tokenizer.from_str(json.dumps(teacher | patch | {"model": model}))


def decoded(tokenizer, ids):
    return {"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=False)}


def encoded(tokenizer, text):
    return {"text": text} | decoded(tokenizer, tokenizer.encode(text, add_special_tokens=False).ids)


tokenizer = patched({})
with open("tests/data/text/tinyshakespeare.txt", newline="") as file:
    ids = tokenizer.encode(file.read(), add_special_tokens=False).ids
draw = random.Random(1)
bytes_beyond_ascii = range(94, 256)  # of the teacher's vocabulary: mostly broken UTF-8
broken = [[draw.choice(bytes_beyond_ascii) for _ in range(8)] for _ in range(60)]
golden = {
    "book": {"count": len(ids), "sha256": hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest(), "first": ids[:200]},
    "broken": [decoded(tokenizer, ids) for ids in broken],
    "variants": [{"name": name, "patch": patch, "nasty": [encoded(patched(patch), text) for text in NASTY]}
                 for name, patch in patches.items()],
}
with open("tests/golden/tokenizer.json", "w") as file:
    json.dump(golden, file)
    file.write("\n")
