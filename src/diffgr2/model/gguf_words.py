"""The tokenizer that a GGUF file carries, as tokenizer.json and the files beside it.

Contract: `write(fields, out)` writes a byte-level BPE tokenizer that gives the ids that the file's
own engine gives, with its special tokens and chat template; a tokenizer of another kind, a
pre-tokenizer that we do not know, or a vocabulary that contradicts itself is a CheckpointError of
one line. What a file names `unused` is a row without a token. Not here: weights (`gguf_import`),
our own tokens (`prompts.vocab`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as pre

from diffgr2.artifacts import write_json
from diffgr2.errors import CheckpointError, first_line
from diffgr2.model.contract import CHAT_TEMPLATE

CONTROL, OURS, UNUSED = 3, 4, 5
"""Kinds of tokens: special, added, of no text."""

_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_HEAD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"


def _split(digits: str) -> list[Any]:
    return [
        pre.Split(Regex(_HEAD + digits + _TAIL), "isolated"),
        pre.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _bytes(*before: Any) -> list[Any]:
    return [*before, pre.ByteLevel(add_prefix_space=False, use_regex=True)]


PARTS: dict[str, tuple[list[Any], bool, bool]] = {
    "gpt-2": (_bytes(), False, False),
    "smollm": (_bytes(pre.Digits(individual_digits=True)), False, False),
    "qwen2": (_split(r"\p{N}"), True, False),
    "llama-bpe": (_split(r"\p{N}{1,3}"), False, True),
}
"""How text is cut, by the file's name for it; whether it is normalised (NFC), whether a piece that
is a token is taken whole before any merge."""

SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def tokenizer_of(fields: Mapping[str, Any], source: str) -> Tokenizer:
    """The file's tokenizer."""
    kind, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise CheckpointError(f"{source}: tokenizer {kind!r} is not supported (only BPE, 'gpt2')")
    if cut not in PARTS:
        raise CheckpointError(
            f"{source}: pre-tokenizer {cut!r} is not supported ({', '.join(PARTS)})"
        )
    tokens, merges = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.merges")
    if not tokens or merges is None:
        raise CheckpointError(f"{source}: holds no tokenizer (tokens and merges)")
    kinds = fields.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    named = [
        (n, token) for n, (token, k) in enumerate(zip(tokens, kinds, strict=True)) if k != UNUSED
    ]
    vocab = {token: n for n, token in named}
    if len(vocab) != len(named):
        raise CheckpointError(f"{source}: the same token stands twice in its vocabulary")
    parts, normal, whole = PARTS[cut]
    try:
        pairs = [tuple(merge.split(" ")) for merge in merges]
        model = models.BPE(vocab=vocab, merges=pairs, ignore_merges=whole, fuse_unk=False)  # pyright: ignore
    except Exception as error:
        raise CheckpointError(f"{source}: its merges do not fit its tokens ({error})") from None
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    if normal:
        tokenizer.normalizer = normalizers.NFC()
    for n, token in named:
        if kinds[n] in (CONTROL, OURS):
            special = kinds[n] == CONTROL
            added = AddedToken(token, special=special, normalized=False)
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    bos = fields.get("tokenizer.ggml.bos_token_id")
    if fields.get("tokenizer.ggml.add_bos_token") and bos is not None:
        first = str(tokens[int(bos)])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[first, "$A"], pair=[first, "$A", "$B"], special_tokens=[(first, int(bos))]
        )
    return tokenizer


def write(fields: Mapping[str, Any], out: Path, source: str) -> None:
    """See the module's docstring."""
    tokenizer = tokenizer_of(fields, source)
    try:  # what cannot be read back is of no use
        Tokenizer.from_str(tokenizer.to_str())
    except Exception as error:
        raise CheckpointError(f"{source}: its tokenizer is broken ({first_line(error)})") from None
    tokenizer.save(str(out / "tokenizer.json"))
    tokens = fields["tokenizer.ggml.tokens"]
    special: dict[str, str] = {}
    for name, key in SPECIAL.items():
        number = fields.get(f"tokenizer.ggml.{key}")
        if number is not None and int(number) < len(tokens):
            special[name] = tokens[int(number)]
    write_json(out / "special_tokens_map.json", special)
    shared = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(out / "tokenizer_config.json", {**shared, **special})
    if template := fields.get("tokenizer.chat_template"):
        (out / CHAT_TEMPLATE).write_text(str(template), encoding="utf-8")
