"""Byte-level byte-pair encoding as GPT-2 defined it: train, encode, and write HF's tokenizer.json.

A text is cut into words by GPT-2's pattern; each word, as UTF-8 bytes, starts as one token a byte, and merges join
neighbouring tokens in the order in which training found them. Ids: the special token is 0, the bytes follow in the
order of their printable stand-ins, then the merges. Only the standard library is used.
Sources: Radford et al. 2019 (GPT-2, its `encoder.py`); the file format is that of HF's `tokenizers`.
"""
import functools
import re
import sys
import unicodedata
from collections import Counter


def printable_bytes():
    """GPT-2's bijection from the 256 bytes to printable characters, in the order of the characters."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def unicode_class(category):
    """The inside of a regular expression's [...] for a general category such as "L": `re` has no \\p{L}."""
    members = [c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c))[0] == category]
    firsts = [c for c, before in zip(members, [None, *members]) if before != c - 1]
    lasts = [c for c, after in zip(members, [*members[1:], None]) if after != c + 1]
    return "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in zip(firsts, lasts))


@functools.cache
def word_pattern():
    """GPT-2's: 's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"""
    letter, number = unicode_class("L"), unicode_class("N")
    space = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # White_Space; re's \s has four more
    return re.compile(rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{letter}]+| ?[{number}]+| ?[^{space}{letter}{number}]+"
                      rf"|[{space}]+(?![^{space}])|[{space}]+")


def merge_pair(tokens, pair):
    """`tokens` with every occurrence of `pair`, from the left, joined into one token."""
    merged, i = [], 0
    while i < len(tokens):
        joined = tuple(tokens[i:i + 2]) == pair
        merged.append(tokens[i] + tokens[i + 1] if joined else tokens[i])
        i += 2 if joined else 1
    return merged


class Tokenizer:
    """Tokens are `bytes`; `merges` is the list of pairs in the order of training; `special` is both bos and eos."""

    def __init__(self, merges, special):
        self.merges, self.special = merges, special
        self.byte_names = printable_bytes()
        single = [bytes([byte]) for byte in sorted(self.byte_names, key=self.byte_names.get)]
        distinct = dict.fromkeys(single + [left + right for left, right in merges])  # two merges may make one token
        self.ids = {token: 1 + i for i, token in enumerate(distinct)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.encode_word = functools.cache(self.encode_word)

    @classmethod
    def train(cls, text, vocabulary_size, special):
        """Merges the most frequent pair until the vocabulary is full; a tie goes to the pair that sorts last."""
        words = [([bytes([byte]) for byte in word.encode()], count)
                 for word, count in Counter(word_pattern().findall(text)).items()]
        merges = []
        while 1 + 256 + len({left + right for left, right in merges}) < vocabulary_size:
            pairs = Counter()
            for tokens, count in words:
                for pair in zip(tokens, tokens[1:]):
                    pairs[pair] += count
            best = max(pairs, key=lambda pair: (pairs[pair], pair))
            words = [(merge_pair(tokens, best), count) for tokens, count in words]
            merges.append(best)
        return cls(merges, special)

    def encode_word(self, word):
        """The ids of one word: repeatedly join the pair that training found first."""
        tokens = [bytes([byte]) for byte in word.encode()]
        while pairs := self.ranks.keys() & set(zip(tokens, tokens[1:])):
            tokens = merge_pair(tokens, min(pairs, key=self.ranks.get))
        return [self.ids[token] for token in tokens]

    def encode(self, text):
        """The ids of a text, in which the special token's name has no special meaning."""
        return [token for word in word_pattern().findall(text) for token in self.encode_word(word)]

    def decode(self, ids):
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        tokens = {token_id: token for token, token_id in self.ids.items()} | {0: self.special.encode()}
        return b"".join(tokens[token_id] for token_id in ids).decode(errors="replace")

    def to_json(self):
        """The contents of a tokenizer.json."""
        def name(token):
            return "".join(self.byte_names[byte] for byte in token)
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        return {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": 0, "content": self.special, "single_word": False, "lstrip": False,
                              "rstrip": False, "normalized": False, "special": True}],
            "normalizer": None, "pre_tokenizer": byte_level, "post_processor": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "vocab": {self.special: 0} | {name(token): token_id for token, token_id in self.ids.items()},
                      "merges": [f"{name(left)} {name(right)}" for left, right in self.merges]},
        }

    @classmethod
    def from_json(cls, contents):
        """Reads back what `to_json` wrote; any other file raises ValueError or, missing something, LookupError."""
        byte_of = {char: byte for byte, char in printable_bytes().items()}
        merges = [tuple(bytes(byte_of[char] for char in name) for name in merge.split(" "))
                  for merge in contents["model"]["merges"]]
        tokenizer = cls(merges, contents["added_tokens"][0]["content"])
        if tokenizer.to_json() != contents:
            raise ValueError("a tokenizer of another kind")
        return tokenizer
