"""A teacher that says too much: the gr2 template cuts the words and keeps the answer."""

from __future__ import annotations

import numpy as np
import pytest

from diffgr2.candidates.fields import COUNTED, names_of
from diffgr2.config import PromptConfig
from diffgr2.prompts.chat import Chat, UserText
from diffgr2.prompts.gr2 import Gr2, quotable
from diffgr2.prompts.request import Request, Trace
from diffgr2.prompts.vocab import Vocabulary, train_bpe
from support.templates import follow

TEN = COUNTED[:10]
NAMES = names_of(TEN)

LEVELS, K, BUCKETS = 3, 4, 8
WORDS = ["rose", "shampoo", "again", 'so "nice"', "it's", "50 %", "crème", "back\\slash"]
ORDER = (2, 0, 3, 1)


@pytest.fixture(scope="module")
def made() -> Gr2:
    vocabulary = Vocabulary.extend(
        train_bpe(Chat(TEN, BUCKETS).own_words(), 700),
        levels=LEVELS,
        codes=16,
        k=K,
        fields=NAMES,
        buckets=BUCKETS,
        strengths=12,
    )
    return Gr2(vocabulary, PromptConfig(template="gr2"))


@pytest.fixture
def request_K() -> Request:
    codes_KL = np.arange(K * LEVELS).reshape(K, LEVELS)
    return Request(codes_KL[:0], codes_KL, np.zeros((K, len(NAMES)), np.uint8))


def limit(made: Gr2) -> int:
    return int(made.chat.words["explanation_tokens"])


def mention(codes_L: np.ndarray) -> str:
    return "".join(f"<s_{'abc'[i]}_{code}>" for i, code in enumerate(codes_L))


def told(made: Gr2, request: Request, text: str) -> list[int]:
    level_K = -np.argsort(ORDER).astype(float)
    written = made.response(request, Trace(level_K, np.zeros((K, 0), np.int32), text))
    assert len(written.tokens) == len(written.kinds) <= made.max_response(K)
    follow(made.grammar(request), written.tokens)
    return written.tokens


def explained(made: Gr2, request: Request, text: str) -> tuple[list[int], int, str]:
    """(all tokens, how many of them are the explanation's, the explanation read back)."""
    tokens = told(made, request, text)
    answer = made.parse(tokens, request)
    assert answer.valid
    assert answer.order == ORDER
    frame = len(told(made, request, "a")) - len(made.vocab.text_ids("a"))
    names = [f"item {i}" for i in range(K)]
    return tokens, len(tokens) - frame, made.english(tokens, request, names)


def test_short_words_stay_as_they_are(made: Gr2, request_K: Request) -> None:
    text = " ".join(WORDS)
    read = explained(made, request_K, text)[2]
    assert read == "rose shampoo again so “nice” it's 50 % crème back/slash"
    assert read == quotable(text)


@pytest.mark.parametrize("seed", range(5))
def test_long_words_are_cut_at_a_word_and_as_late_as_possible(
    made: Gr2, request_K: Request, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    said = [WORDS[i] for i in rng.integers(0, len(WORDS), 400)]
    text = " ".join(said)
    _, thought, read = explained(made, request_K, text)
    parts = quotable(" ".join(WORDS)).split()
    longest = max(len(made.vocab.text_ids(f" {part}")) for part in parts)
    assert limit(made) - 2 * longest - 4 <= thought <= limit(made)
    assert quotable(text).startswith(f"{read} "), "whole words from the beginning"


def test_an_item_that_no_longer_fits_is_left_out_whole(made: Gr2, request_K: Request) -> None:
    """Words fill the room but for less than a semantic ID; nothing comes after the cut."""
    vocab, room = made.vocab, LEVELS + 1
    words = "a"
    while len(vocab.text_ids(f"{words} a")) <= limit(made) - room:
        words += " a"
    assert limit(made) - len(vocab.text_ids(words)) < LEVELS + 2 + 2
    text = f"{words}{mention(request_K.codes_KL[1])} {mention(request_K.codes_KL[0])} and more"
    tokens, thought, read = explained(made, request_K, text)
    said = made.thought(tokens)
    assert not [token for token in said if vocab.sid_of(token)]
    assert thought <= limit(made)
    assert read == words


def test_an_item_before_the_cut_is_written_and_one_behind_it_is_not(
    made: Gr2, request_K: Request
) -> None:
    first, second = (mention(request_K.codes_KL[i]) for i in (1, 0))
    text = f"see {first} and {'then ' * 400}{second}"
    tokens, thought, read = explained(made, request_K, text)
    said = [token for token in made.thought(tokens) if made.vocab.sid_of(token)]
    assert said == made.vocab.sid_ids(request_K.codes_KL[1]).tolist()
    assert thought <= limit(made)
    assert read.startswith("see item 1 and then then"), "the piece that is cut keeps its blank"


def test_an_items_kind_is_cut_at_a_word(made: Gr2) -> None:
    cap = int(made.chat.words["kind_tokens"])
    for lead in range(2 * cap):
        kind = " ".join(["a"] * lead + ['"', "\\", '"\\"'] * cap)
        ids = made._tokens([UserText(kind)], quoted=True)
        assert len(ids) <= cap
        words = made.vocab.tokenizer.decode(ids).split(" ")
        assert words == quotable(kind).split(" ")[: len(words)]
