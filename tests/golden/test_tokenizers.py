"""Trains tokenizers of every supported kind with the `tokenizers` package and compares its tokens with ours.

    python tests/golden/test_tokenizers.py ENCODE_TEXTS     from the repository's root; ENCODE_TEXTS is that program

The text is half a MB made here: a play, many scripts, emoji, combining marks, every kind of line end and space,
digits, code; and every code point once.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
QWEN3_5 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT4O = TEKKEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|").replace("]+|", "]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|", 1)
DEEPSEEK = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"]
BEHAVIORS = ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous")
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SCRIPTS = [(0x20, 0x7e), (0xa0, 0x17f), (0x300, 0x36f), (0x370, 0x3ff), (0x400, 0x4ff), (0x590, 0x5ff), (0x600, 0x6ff),
           (0x900, 0x97f), (0xe00, 0xe7f), (0x1100, 0x11ff), (0x1e00, 0x1eff), (0x2000, 0x206f), (0x2581, 0x2581),
           (0x2600, 0x26ff), (0x3040, 0x30ff), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0xfb00, 0xfb4f), (0x1f300, 0x1faff)]
SPACES = [" ", "  ", "    ", "\n", "\r\n", "\r", "\n\n", "\t", "\u00a0", "\u3000", "\u2028", " \n", "\n ", "\u2581"]


def words(draw, count):
    """Words of one script each, with marks, digits and spaces of every kind between."""
    out = []
    for _ in range(count):
        low, high = draw.choice(SCRIPTS)
        word = "".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 8)))
        if draw.random() < 0.15:
            word += chr(draw.randint(0x300, 0x36f))
        if draw.random() < 0.15:
            word = str(draw.randint(0, 10 ** draw.randint(1, 12)))
        out += [word, draw.choice(SPACES) if draw.random() < 0.4 else " "]
    return "".join(out)


def mixed_text(draw):
    play = pathlib.Path("tests/data/text/tinyshakespeare.txt").read_bytes().decode()[:120_000]
    code = "".join(path.read_text() for path in sorted(pathlib.Path("core/tokenizer").glob("*.cpp")))[:100_000]
    dos = play[:20_000].replace("\n", "\r\n")
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea 1\ufe0f\u20e3 "
    parts = [play, code, dos, family * 200, words(draw, 30_000)]
    return "".join(parts)


def nasty_texts(draw):
    texts = json.load(open("tests/golden/tokenizer.json"))["variants"][0]["nasty"]
    short = [" ", "\u2581", " \u2581 ", "\u2581\u2581a", "<s>", " <s> a </s> b", "a<s>", "<pad>  <pad>x <pad>\n y", "  <pad>",
             "a <mask>b", "a  <mask>", "<mask><mask>", "foo", "a foo b", "afoob", "\n<pad>\n<mask>\n", "<0x41>",
             "\u00a0<mask>", "\u00e9 e\u0301 E\u0301"]
    long = ["x" * 5000, " " * 3000, "\n" * 1000 + "a", "ab " * 3000, "\u4f60" * 3000]
    atoms = short + SPACES + ["x", "e\u0301", "\u0301"]
    joined = ["".join(draw.choice(atoms) for _ in range(40)) for _ in range(150)]
    return [item["text"] for item in texts] + short + long + joined + [words(draw, 20) for _ in range(100)]


def every_code_point():
    return " ".join(chr(code) for code in range(0x110000) if not 0xd800 <= code < 0xe000)


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level(text, normalizer, pre_tokenizer, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pre_tokenizer, decoders.ByteLevel()
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainers.BpeTrainer(
        vocab_size=3000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def byte_fallback(text):
    """As SentencePiece models become: the alphabet is of characters, rare ones fall back to bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainers.BpeTrainer(
        vocab_size=3000, limit_alphabet=500, show_progress=False, special_tokens=special))
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(content))


def with_added(tokenizer, normalized=("foo", "e\u0301x")):
    tokenizer.add_tokens([
        AddedToken("<pad>", rstrip=True, normalized=False), AddedToken("<mask>", lstrip=True, normalized=False),
        AddedToken("<pad>x", normalized=False), *(AddedToken(text, normalized=True) for text in normalized)])
    return tokenizer


def copy_of(tokenizer, **parts):
    changed = Tokenizer.from_str(tokenizer.to_str())
    for name, part in parts.items():
        setattr(changed, name, part)
    return changed


def tokenizer_kinds(text):
    gpt2 = byte_level(text, None, pre_tokenizers.ByteLevel(add_prefix_space=False))
    yield "gpt2", gpt2
    yield "gpt2 prefix", with_added(copy_of(gpt2, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)))
    qwen = byte_level(text, normalizers.NFC(), split(QWEN2))
    yield "qwen2", qwen
    yield "qwen2 added", with_added(copy_of(qwen))
    yield "qwen3.5", byte_level(text, normalizers.NFC(), split(QWEN3_5))
    llama = byte_level(text, None, split(LLAMA3), ignore_merges=True)
    yield "llama3", with_added(llama)
    two = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"), *split(LLAMA3)])
    yield "two patterns", copy_of(qwen, pre_tokenizer=two)
    yield "no pattern", copy_of(qwen, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    piece = byte_fallback(text)
    llama2 = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    llama2_decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                        decoders.Strip(" ", 1, 0)])
    piece.normalizer, piece.pre_tokenizer, piece.decoder = llama2, None, llama2_decoder
    yield "llama2", copy_of(piece)
    yield "llama2 added", with_added(copy_of(piece))
    nfc = normalizers.Sequence([normalizers.NFC(), llama2[0], llama2[1]])
    yield "llama2 nfc", with_added(copy_of(piece, normalizer=nfc))
    for scheme in ("always", "first", "never"):
        for splits in (True, False):
            space = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=splits)
            decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
            variant = copy_of(piece, normalizer=None, pre_tokenizer=space, decoder=decoder)
            yield f"metaspace {scheme} {splits}", with_added(variant)
    yield from pre_tokenizer_kinds(gpt2, piece)
    for name, tokenizer in normalizer_kinds(gpt2, piece):
        yield name, with_added(tokenizer, ("foo",))
    yield from gap_kinds(gpt2, piece)
    yield "stories260k", Tokenizer.from_file("tests/data/stories260k/tokenizer.json")
    yield "passkey-teacher", Tokenizer.from_file("tests/data/passkey-teacher/tokenizer.json")


def pre_tokenizer_kinds(gpt2, piece):
    """Each kind of step before a byte-level encoding, in every behaviour."""
    bytes_as_they_are = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits, one_digit = pre_tokenizers.Digits(False), pre_tokenizers.Digits(True)
    punctuation = pre_tokenizers.Punctuation("contiguous")
    steps = {
        "smollm": [one_digit, gpt2_bytes],
        "falcon": [punctuation, gpt2_bytes, digits, pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")],
        "falcon3": [punctuation, gpt2_bytes, one_digit],
        "bytes first": [bytes_as_they_are, digits],
        "deepseek": [*[pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in DEEPSEEK], one_digit, bytes_as_they_are],
        "tekken": [pre_tokenizers.Split(Regex(TEKKEN), "isolated"), bytes_as_they_are],
        "gpt4o": [pre_tokenizers.Split(Regex(GPT4O), "removed", invert=True), bytes_as_they_are],
        "nested": [pre_tokenizers.Sequence([digits, pre_tokenizers.Sequence([punctuation])]), gpt2_bytes],
        "whitespace": [pre_tokenizers.Whitespace(), bytes_as_they_are],
        "whitespace split": [pre_tokenizers.WhitespaceSplit(), bytes_as_they_are],
    }
    for behavior in BEHAVIORS:
        steps[f"punctuation {behavior}"] = [pre_tokenizers.Punctuation(behavior), bytes_as_they_are]
        for invert in (False, True):
            split_words = pre_tokenizers.Split(Regex(r"\p{L}+|\p{Po}|\s"), behavior, invert)
            steps[f"split {behavior} {invert}"] = [split_words, bytes_as_they_are]
    for name, sequence in steps.items():
        yield name, copy_of(gpt2, pre_tokenizer=pre_tokenizers.Sequence(sequence))
    gemma = copy_of(piece, normalizer=normalizers.Replace(" ", "\u2581"))
    gemma.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    yield "gemma", gemma
    spaces = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="first"), one_digit])
    yield "metaspace digits", copy_of(piece, normalizer=None, pre_tokenizer=spaces)


def normalizer_kinds(gpt2, piece):
    for name in ("NFD", "NFKC", "NFKD", "Lowercase"):
        yield name, copy_of(gpt2, normalizer=getattr(normalizers, name)())
    yield "nfkc then spaces", copy_of(piece, normalizer=normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]))
    yield "strip", copy_of(gpt2, normalizer=normalizers.Strip())
    yield "replace", copy_of(gpt2, normalizer=normalizers.Sequence(
        [normalizers.Replace("th", "e\u0301 "), normalizers.Replace(Regex(r" {2,}|\p{Lu}"), "a"), normalizers.NFC()]))


def changed(tokenizer, edit):
    content = json.loads(tokenizer.to_str())
    edit(content["model"])
    return Tokenizer.from_str(json.dumps(content))


def without_tokens(model, gone):
    """Ids stay without gaps; merges that need the tokens go with them."""
    kept = [token for token in sorted(model["vocab"], key=model["vocab"].get) if token not in gone]
    model["vocab"] = {token: i for i, token in enumerate(kept)}
    model["merges"] = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= set(kept)]


def gap_kinds(gpt2, piece):
    """Vocabularies that lack symbols, with and without a token for the unknown."""
    yield "no bytes", changed(gpt2, lambda model: without_tokens(model, {"\u0120", "a", "\u00e9", "\u00c3"}))
    yield "no type", changed(gpt2, lambda model: (model.pop("type"), model.update(dropout=0.0)))
    for fuses in (False, True):
        unknown = {"unk_token": "<unk>", "fuse_unk": fuses}
        yield f"unknown {fuses}", changed(piece, lambda model: model.update(unknown, byte_fallback=False))
        some = {f"<0x{byte:02X}>" for byte in range(0x80, 0x9f)}
        yield f"some bytes {fuses}", changed(piece, lambda model: (without_tokens(model, some), model.update(unknown)))
    yield "nothing unknown", changed(piece, lambda model: model.update(unk_token=None, byte_fallback=False))
    whole = changed(piece, lambda model: model.update(ignore_merges=True))
    yield "ignore merges, no pattern", copy_of(whole, pre_tokenizer=None)


def first_difference(ours, theirs):
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    return f"at {at}: ours {ours[at:at + 8]}, theirs {theirs[at:at + 8]}"


def compare(name, tokenizer, texts, program, folder):
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "texts.json").write_text(json.dumps(texts))
    subprocess.run([program, folder / "tokenizer.json", folder / "texts.json", folder / "ours.json"], check=True)
    ours = json.loads((folder / "ours.json").read_text())
    wrong = 0
    theirs = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for text, our, their in zip(texts, ours, theirs, strict=True):
        ids = their.ids
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        if our["ids"] != ids:
            print(f"{name}: {ascii(text[:120])}: {first_difference(our['ids'], ids)}")
        elif our["decoded"] != decoded:
            print(f"{name}: decoded: {first_difference(our['decoded'], decoded)!a}")
        wrong += our["ids"] != ids or our["decoded"] != decoded
    print(f"{name}: {len(texts)} texts, {sum(len(our['ids']) for our in ours)} tokens, {wrong} differ", flush=True)
    return wrong


def main():
    draw = random.Random(7)
    text = mixed_text(draw)
    texts = [text] + nasty_texts(draw)
    print(f"mixed text: {len(text.encode())} bytes")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, tokenizer in tokenizer_kinds(text):
            more = [every_code_point()] if name in ("qwen3.5", "llama2") else []
            wrong += compare(name, tokenizer, texts + more, sys.argv[1], pathlib.Path(folder))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
