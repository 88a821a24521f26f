"""The commit rules of SGLang and LMDeploy, from their own packages, on an export's logits.

Their rules run on a CPU, their models do not: the logits are the exported model's under the mask
that both engines use (block-causal from the document's first token, the open block both ways). They
must commit what our `block` commits, in the same steps. To run these:
`pip install --no-deps lmdeploy sglang`, and of what they import the packages that are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from diffgr2.decode import reference
from diffgr2.export import sdar
from diffgr2.export.writing import export
from support.exported import BLOCK, END, MASK, model_directory, prompts, settings, slow

pytestmark = pytest.mark.slow
TAU, LIMIT, SIZE = 0.3, 14, BLOCK["block_size"]
HOW = "pip install --no-deps lmdeploy sglang, and what they import"

Logits = Callable[[Tensor], Tensor]
"""A block's tokens to its logits."""
Rule = Callable[[Tensor, Logits], list[Tensor]]
"""The block after each step of an engine's rule."""


@dataclass(frozen=True)
class Exported:
    module: Any  # ours
    model: Any  # the export's, opened by transformers

    def logits(self, before: list[int], block_T: Tensor) -> Tensor:
        """What the engines' attention computes of an open block."""
        ids = torch.cat([torch.tensor(before, dtype=torch.long), block_T])
        block = torch.arange(len(ids)) // SIZE
        sees = (block[None, :] <= block[:, None])[None, None]
        hidden = torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.float32).min)
        with torch.no_grad():
            made = self.model(ids[None], attention_mask=hidden, logits_to_keep=len(block_T))
        return made.logits[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    base = tmp_path_factory.mktemp("engines")
    module = model_directory(base / "m", 4, marker=1.5)
    export(base / "m", base / "out", "sdar", pad_vocab=True, threshold=TAU)
    model = AutoModelForCausalLM.from_pretrained(base / "out", trust_remote_code=True)
    return Exported(module, model.eval())


def lmdeploy() -> Rule:
    """`UnmaskingProcessor`, called as its engine calls it: arg-max tokens beside the logits."""
    try:
        from lmdeploy.pytorch import consts
        from lmdeploy.pytorch.config import DLLMConfig
        from lmdeploy.pytorch.strategies.dllm.unmasking import UnmaskingProcessor
    except ImportError as error:
        pytest.skip(f"{error}: {HOW}")
    rule = UnmaskingProcessor(DLLMConfig(block_length=SIZE, confidence_threshold=TAU))

    def run(block_T: Tensor, logits: Logits) -> list[Tensor]:
        ids_T = block_T.clone()
        open_T = torch.where(ids_T == sdar.MASK_ID, consts.DLLM_MASKED, consts.DLLM_UNMASKED)
        states = []
        while (open_T == consts.DLLM_MASKED).any():
            logits_TV = logits(ids_T)
            open_T, token_T = rule(logits_TV, ids_T, logits_TV.argmax(-1), open_T.clone())
            ids_T = torch.where(open_T == consts.DLLM_MASKED, sdar.MASK_ID, token_T)
            states.append(ids_T.clone())
        return states

    return run


def without_images() -> None:
    """SGLang imports functions for images on the way; where they do not load, names stand in."""
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except Exception:

        class Absent(ModuleType):
            __path__: list[str] = []  # noqa: RUF012

            def __getattr__(self, name: str) -> type:
                if name.startswith("__"):
                    raise AttributeError(name)
                return type(name, (), {})

        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for part in ("", ".transforms", ".transforms.functional", ".transforms.v2", ".io"):
            sys.modules[f"torchvision{part}"] = Absent(f"torchvision{part}")


def sglang() -> Rule:
    """`LowConfidence` in its own loop, with a runner that has our logits."""
    without_images()
    try:
        from sglang.srt.dllm.algorithm.low_confidence import LowConfidence
    except ImportError as error:
        pytest.skip(f"{error}: {HOW}")
    how = {"algorithm_config": {"threshold": TAU}, "first_done_first_out_mode": False}
    rule = LowConfidence(SimpleNamespace(block_size=SIZE, mask_id=sdar.MASK_ID, **how))

    def run(block_T: Tensor, logits: Logits) -> list[Tensor]:
        states: list[Tensor] = []
        batch = SimpleNamespace(batch_size=1, input_ids=block_T.clone(), dllm_prompt_mask=None)

        def forward(batch: Any, pp_proxy_tensors: None) -> SimpleNamespace:
            states.append(batch.input_ids.clone())
            output = SimpleNamespace(full_logits=logits(batch.input_ids))
            return SimpleNamespace(logits_output=output, can_run_graph=False)

        rule.run(SimpleNamespace(forward=forward), batch)
        return states[1:]  # before the first step nothing was committed

    return run


@pytest.mark.parametrize("engine", [lmdeploy, sglang])
def test_an_engine_commits_the_same_tokens_in_the_same_steps(exported, engine) -> None:
    rule, several = engine(), 0
    for prompt in prompts(100, multiple=SIZE, seed=11):
        how = settings(threshold=TAU, clean_kv="block_causal")
        expected = reference.block(slow(exported.module), prompt, how)
        tokens, steps, step = list(prompt), [], 0
        while len(steps) < LIMIT and END not in tokens[len(prompt) :]:
            states = rule(
                torch.full((SIZE,), sdar.MASK_ID),
                lambda block_T, before=tuple(tokens): exported.logits(list(before), block_T),
            )
            final_T = states[-1]
            assert not (final_T == sdar.MASK_ID).any()
            for at in range(SIZE):
                known = [state[at] != sdar.MASK_ID for state in states]
                steps.append(step + known.index(True))
            tokens += final_T.tolist()
            step += len(states)
        written = tokens[len(prompt) :][: len(expected.tokens)]
        assert written == expected.tokens
        assert steps[: len(written)] == expected.steps
        several += len(set(expected.steps)) < len(expected.tokens)
    assert several > 30  # commits of several tokens a step are what the rules differ about


def test_a_prompt_that_ends_inside_a_block_is_another_computation(exported) -> None:
    """Why the page asks for whole blocks: the engines' prompt sees the open block's masks."""
    differ = 0
    for prompt in [p for p in prompts(30, seed=3) if len(p) % SIZE]:
        start = len(prompt) // SIZE * SIZE
        rest = torch.tensor(prompt[start:] + [sdar.MASK_ID] * (SIZE - len(prompt) % SIZE))
        theirs_T = exported.logits(prompt[:start], rest).log_softmax(-1)[len(prompt) - start :]
        how = settings(clean_kv="block_causal")
        ours = reference.canvas_logp(
            slow(exported.module), prompt, {}, 0, SIZE - len(prompt) % SIZE, how
        )
        ours_T = torch.stack([ours[at] for at in sorted(ours)])[:, :MASK]
        differ += not torch.allclose(theirs_T[:, :MASK], ours_T, atol=1e-3)
    assert differ > 10
