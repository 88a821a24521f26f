"""What the stages ask of a template, and the templates by name.

Contract: a `Template` writes prompts and responses as token ids and reads responses back; what
`response` writes, `parse` reads and `citations` finds right. `make_template` builds the one that
the recipe names. Not here: the templates themselves (`compact`, `gr2`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from diffgr2.config import PromptConfig
from diffgr2.decode.grammar import AnswerGrammar
from diffgr2.decode.settings import Frame
from diffgr2.prompts.compact import Compact
from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.request import Request, Trace
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.types import Answer


class Template(Protocol):
    """See the module's docstring."""

    @property
    def name(self) -> str: ...

    @property
    def shows_text(self) -> bool:
        """Whether requests need the items' texts."""
        ...

    def prompt(self, request: Request, *, reasoning: bool = True) -> list[int]: ...

    def response(
        self, request: Request, trace: Trace, *, reasoning: bool = True
    ) -> tuple[list[int], list[int]]:
        """Token ids and each one's kind (REASONING or ANSWER)."""
        ...

    def max_response(self, k: int) -> int:
        """Most tokens a response to k candidates takes."""
        ...

    @property
    def vocab(self) -> Vocabulary: ...

    def grammar(self, request: Request) -> AnswerGrammar:
        """What the permutation rule may know of the answer."""
        ...

    def answer_start(self, tokens: Sequence[int]) -> int:
        """Where the answer's marker begins; the length where there is none."""
        ...

    def split(self, tokens: Sequence[int]) -> tuple[list[int], list[int] | None]:
        """(reasoning, answer or None)."""
        ...

    def parse(self, tokens: Sequence[int], request: Request) -> Answer:
        """Read any tokens; failures are classified, never raised."""
        ...

    def citations(self, tokens: Sequence[int], request: Request) -> tuple[int, int]:
        """(right, all) pieces of evidence that the reasoning cites about a candidate."""
        ...

    def english(
        self,
        tokens: Sequence[int],
        request: Request,
        names: Sequence[str],
        labels: Sequence[str] = (),
    ) -> str:
        """The reasoning for people; `names` are the candidates, `labels` first codes."""
        ...


TEMPLATES: dict[str, type[Compact] | type[Gr2]] = {"compact": Compact, "gr2": Gr2}


SPARE = 32
"""Output tokens beyond the longest proper answer: an overlong one shows as such."""


def frame_of(template: Template) -> Frame:
    """What decoding must know of a template."""
    vocab = template.vocab
    return Frame(vocab.mask_id, vocab.end_id, template.max_response(vocab.spec.k) + SPARE)


def make_template(vocab: Vocabulary, config: PromptConfig) -> Template:
    """The template that the recipe names."""
    return TEMPLATES[config.template](vocab, config)
