"""The templates by name, and what decoding must know of one.

Contract: a `Template` writes prompts and responses as token ids and reads responses back; what
`response` writes, `parse` reads and `citations` finds right. `make_template` builds the one that
the recipe names. Not here: the templates themselves (`compact`, `gr2`).
"""

from diffgr2.config import PromptConfig
from diffgr2.decode.settings import Frame
from diffgr2.prompts.compact import Compact
from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.vocab import Vocabulary

Template = Compact | Gr2
TEMPLATES: dict[str, type[Template]] = {"compact": Compact, "gr2": Gr2}

SPARE = 32
"""Output tokens beyond the longest proper answer: an overlong one shows as such."""


def frame_of(template: Template) -> Frame:
    """What decoding must know of a template."""
    vocab = template.vocab
    return Frame(vocab.mask_id, vocab.end_id, template.max_response(vocab.spec.k) + SPARE)


def make_template(vocab: Vocabulary, config: PromptConfig) -> Template:
    """The template that the recipe names."""
    return TEMPLATES[config.template](vocab, config)
