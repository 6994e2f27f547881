#!/usr/bin/env python3
"""The text of every HTML page under some folders as JSON lines, a document each, in the order of their paths.

    python deploy/docs_to_jsonl.py FOLDER... > documents.jsonl
"""

import gzip
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

SHORTEST = 1000  # characters; shorter pages are indices and redirections
PARAGRAPHS = {"p", "div", "li", "tr", "br", "pre", "dt", "dd", "table", "section", *(f"h{level}" for level in range(1, 7))}
UNSEEN = {"script", "style", "head", "nav"}


class Text(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.pieces, self.unseen, self.kept = [], 0, 0

    def handle_starttag(self, tag, attributes):
        self.unseen += tag in UNSEEN
        self.kept += tag == "pre"
        if tag in PARAGRAPHS:
            self.pieces.append("\n")

    def handle_endtag(self, tag):
        self.unseen -= tag in UNSEEN and self.unseen > 0
        self.kept -= tag == "pre" and self.kept > 0
        if tag in PARAGRAPHS:
            self.pieces.append("\n")

    def handle_data(self, data):
        if not self.unseen:
            self.pieces.append(data if self.kept else re.sub(r"\s+", " ", data))


def text_of(path):
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as page:
        parser = Text()
        parser.feed(page.read().decode("utf-8", "replace"))
    return re.sub(r"\s*\n\s*\n\s*", "\n\n", "".join(parser.pieces)).strip()


def main():
    for folder in sys.argv[1:]:
        for path in sorted(Path(folder).rglob("*")):
            if not path.name.removesuffix(".gz").endswith((".html", ".htm", ".xhtml")) or path.is_symlink() or not path.is_file():
                continue
            text = text_of(path)
            if len(text) >= SHORTEST:
                print(json.dumps({"text": text, "path": str(path.relative_to(folder))}, ensure_ascii=False))


if __name__ == "__main__":
    main()
