"""CLIP's byte-pair encoding, for texts of systems that keep its vocabulary: from vocab.json and merges.txt, tokenizer.json, or its own bpe file."""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from calmrl_lab.errors import CalmrlError, missing_extra

START, END = "<|startoftext|>", "<|endoftext|>"
BPE_FILE = "bpe_simple_vocab_16e6.txt.gz"
# Lines of CLIP's bpe file that are merges: with 256 bytes, as many at the end of a word, and two special words they are 49,408 words.
_MERGES = 49_152 - 256 - 2
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokens:
    """Texts to numbers of words of CLIP's vocabulary, between the start and the end word; `length` numbers at most."""

    def __init__(self, vocabulary: dict[str, int], merges: list[tuple[str, str]], length: int, unescape: bool) -> None:
        self.length, self.unescape = length, unescape
        self.start, self.end = vocabulary[START], vocabulary[END]
        self.digest = hashlib.sha256(repr((sorted(vocabulary.items()), merges)).encode()).hexdigest()
        self.size = len(vocabulary)
        self._encoder = _encoder(vocabulary, merges)

    def __call__(self, text: str) -> np.ndarray:
        """int64 [n], 2 <= n <= length: the start word, the words of the cleaned text, the end word."""
        ids = self._encoder.encode(self._cleaned(text)).ids
        return np.array([self.start, *ids[: self.length - 2], self.end], dtype=np.int64)

    def _cleaned(self, text: str) -> str:
        """Broken Unicode mended, HTML entities resolved where the system does so, white space as one space, lower case."""
        try:
            import ftfy
        except ImportError:
            raise missing_extra("ftfy", "vast", "CLIP's tokenizer") from None
        text = ftfy.fix_text(text)
        if self.unescape:
            text = html.unescape(html.unescape(text))
        return re.sub(r"\s+", " ", text.strip()).strip().lower()


def read_clip_tokens(folders: list[Path], length: int, unescape: bool, needed_for: str) -> ClipTokens:
    """The vocabulary in the first of `folders` that has one. Raises CalmrlError if none does, or if its file is damaged."""
    for folder in folders:
        for place in (folder, folder / "bpe"):
            try:
                if (place / BPE_FILE).is_file():
                    return ClipTokens(*_from_bpe(place / BPE_FILE), length, unescape)
                if (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
                    return ClipTokens(*_from_pair(place), length, unescape)
                if (place / "tokenizer.json").is_file():
                    return ClipTokens(*_from_json(place / "tokenizer.json"), length, unescape)
            except (OSError, ValueError, KeyError, EOFError, UnicodeDecodeError) as error:
                raise CalmrlError(
                    f"the vocabulary in '{place}' cannot be read: {' '.join(str(error).split())[:160] or type(error).__name__}",
                    hint=f"put CLIP's {BPE_FILE}, or vocab.json and merges.txt, there",
                ) from None
    raise CalmrlError(
        f"{needed_for} needs CLIP's vocabulary, and '{folders[0]}' has none",
        hint=f"put CLIP's {BPE_FILE} (it comes with the code of CLIP and ImageBind), or vocab.json and merges.txt of a CLIP model, there",
    )


def byte_letters() -> list[str]:
    """The letter that stands for each of the 256 bytes: printable ones for themselves, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}
    return [letters[byte] for byte in (*printable, *others)]


def _from_bpe(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : _MERGES + 1]
    merges = [_pair(line) for line in lines if line.strip()]
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    return {word: number for number, word in enumerate(words)}, merges


def _from_pair(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    return vocabulary, [_pair(line) for line in lines if line.strip() and not line.startswith("#version")]


def _from_json(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    added = {word["content"]: word["id"] for word in content.get("added_tokens", [])}
    merges = [
        _pair(merge) if isinstance(merge, str) else (str(merge[0]), str(merge[1])) for merge in content["model"]["merges"]
    ]
    return content["model"]["vocab"] | added, merges


def _pair(line: str) -> tuple[str, str]:
    first, second = line.split()
    return first, second


def _encoder(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    try:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    except ImportError:
        raise missing_extra("transformers", "vast", "CLIP's tokenizer") from None
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer
