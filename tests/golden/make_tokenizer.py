"""Writes tokenizer.json: what the `tokenizers` package makes of a book and of nasty strings.

Run from the repository's root: python tests/golden/make_tokenizer.py
"""

import hashlib
import json
import struct

from tokenizers import Tokenizer

NASTY = [
    "", " ", "\n", "\r\n\r\n", "  two  spaces ", "tab\tand\u00a0nbsp\u3000wide", "it's we'LL they'Ve I'd",
    "12345678901234567890 3.14 1,000", "emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 flag \U0001f1e9\U0001f1ea",
    "combining e\u0301 o\u0308\u0323 n\u0303 \u1100\u1161\u11a8", "\u4f60\u597d\uff0c\u4e16\u754c \u3053\u3093\u306b\u3061\u306f",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd", "<|endoftext|>", "a<|endoftext|>b<|im_start|> <|im_end|>\n",
    "<|endoftext", "<<|endoftext|>>", "!!!???...\n\n\n  x", "a\u200bb\ufeffc", "\u212b \ufb01 \u2460 \u00bd", "\x00\x01\x7f\u0080",
    "Passkey: zulu kilo\n\nWhat is the third passkey", "x" * 300, " " * 40 + "end", "\u0301start", "CamelCaseHTTPServer2024",
]

tokenizer = Tokenizer.from_file("tests/data/passkey-teacher/tokenizer.json")
with open("tests/data/text/tinyshakespeare.txt", newline="") as file:
    ids = tokenizer.encode(file.read(), add_special_tokens=False).ids
golden = {
    "book": {"count": len(ids), "sha256": hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()},
    "nasty": [
        {"text": text, "ids": (made := tokenizer.encode(text, add_special_tokens=False).ids),
         "decoded": tokenizer.decode(made, skip_special_tokens=False)}
        for text in NASTY
    ],
}
with open("tests/golden/tokenizer.json", "w") as file:
    json.dump(golden, file, indent=0)
    file.write("\n")
