"""The templates by name, and what decoding must know of one.

Contract: a `Template` turns a request into token ids and token ids back into what they say:

    prompt(request, reasoning)              token ids of the prompt
    grammar(request, reasoning, answer)     what may stand where in a response
    response(request, trace, ...)           the response that says a trace, which the grammar allows
    read(tokens, request, level_T)          a `Reading` of any tokens
    parse(tokens, request)                  the written permutation alone
    citations(tokens, request)              (right, all) pieces of evidence that it cites
    kinds(tokens)                           REASONING or ANSWER of each token
    item_text                               how an item is told in the prompt; None: not at all
    untold(request)                         the evidence that the prompt says nothing of
    answers, max_response(k)                read-outs it has; its grammar's longest text

`words` and `phrases` are what `account` renders a reading with; `gr2`, whose reasoning is the
model's own words, tells those with `english`. No reader raises, whatever the tokens.
`make_template` builds the one that the recipe names. Not here: the templates themselves.
"""

from collections.abc import Sequence

from diffgr2.candidates.fields import Field
from diffgr2.config import Answering, PromptConfig
from diffgr2.decode.settings import Frame
from diffgr2.prompts.brief import Brief
from diffgr2.prompts.compact import Compact
from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.vocab import Vocabulary

Template = Compact | Gr2
TEMPLATES: dict[str, type[Template]] = {"compact": Compact, "gr2": Gr2, "brief": Brief}

SPARE = 32
"""Output tokens beyond the longest proper answer: a raw one that is overlong shows as such."""


def frame_of(template: Template) -> Frame:
    """What decoding must know of a template; `spec.k` is the longest list that one prompt holds."""
    vocab = template.vocab
    return Frame(vocab.mask_id, vocab.end_id, template.max_response(vocab.spec.k) + SPARE)


def trained_answers(template: Template, config: PromptConfig) -> tuple[Answering, ...]:
    """The read-outs that a recipe trains: the template's, up to `prompt.answer`."""
    known, wanted = template.answers, config.answer
    return known[: known.index(wanted) + 1] if wanted in known else known


def make_template(
    vocab: Vocabulary, config: PromptConfig, fields: Sequence[Field] | None = None
) -> Template:
    """The template that the recipe names, over these fields of evidence."""
    return TEMPLATES[config.template](vocab, config, fields)
