"""What every decoder promises, whatever it does with its distributions.

`Decoder` holds the promises; a class per decoder inherits them and says how it differs. The models
are tiny and random; `decode.reference` says what is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from diffgr2.decode import reference
from diffgr2.decode.batch import Batch, DecodeRequest, decode, make_writer
from diffgr2.decode.grammar import Grammar
from diffgr2.decode.reference import Slow, Text
from diffgr2.decode.replay import decisions
from diffgr2.decode.settings import DecodeSettings
from diffgr2.errors import DecodeError
from diffgr2.model.backend import Backend
from diffgr2.model.backends import backend_of
from diffgr2.model.forward import LeanModel
from diffgr2.model.session import TorchSession
from diffgr2.model.slow import SlowModel
from diffgr2.types import Trajectory
from support.grammars import GRAMMARS, accepts
from support.tiny_qwen import VOCAB, tiny

MASK, END = VOCAB - 1, 0
MAX_TOKENS = 21
RULED = 40  # room for every grammar
PROMPTS = (1, 7, 8, 9, 16)  # lengths around multiples of the block size


def prompts(seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(8, MASK, size=length).tolist() for length in PROMPTS]


class Spoilt:
    """A model whose forwards give one value that no distribution has."""

    def __init__(self, model: LeanModel, value: float) -> None:
        self._model, self._value = model, value

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def __call__(self, *args, **more) -> torch.Tensor:
        logits_BTV = self._model(*args, **more)
        logits_BTV[..., -1, 5] = self._value
        return logits_BTV

    def session(self, mask_id: int) -> TorchSession:
        return TorchSession(self, mask_id)  # type: ignore[arg-type]


def same(one: Trajectory, two: Trajectory) -> None:
    assert one.tokens_T.tolist() == two.tokens_T.tolist()
    assert one.step_of_T.tolist() == two.step_of_T.tolist()
    np.testing.assert_allclose(one.logprob_T, two.logprob_T, atol=1e-4)
    assert (one.nfe, one.finished) == (two.nfe, two.finished)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Decoder:
    """The promises; a subclass gives `settings`, `slow` and `replayed`."""

    settings: DecodeSettings
    temperature = 0.8

    def slow(
        self,
        model: SlowModel,
        prompt: list[int],
        settings: DecodeSettings,
        grammar: Grammar | None = None,
    ) -> Slow:
        """The reference's greedy output."""
        raise NotImplementedError

    def replayed(
        self, model: SlowModel, prompt: list[int], out: Trajectory, grammar: Grammar | None = None
    ) -> list[torch.Tensor]:
        """Per token, the log-probabilities in the state in which it was committed."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def module(self) -> Qwen3ForCausalLM:
        return tiny(1)

    @pytest.fixture(scope="class")
    def model(self, module: Qwen3ForCausalLM) -> Backend:
        return backend_of(module, "onnx")

    def run(
        self,
        model: Backend,
        batch: int = 64,
        name: str = "a",
        grammar: Grammar | None = None,
        **changes,
    ) -> list:
        requests = [
            DecodeRequest(prompt, grammar, ("contract", name, i))
            for i, prompt in enumerate(prompts())
        ]
        return decode(model, requests, replace(self.settings, **changes), batch=batch)

    def test_greedy_equals_the_reference(self, module, model) -> None:
        for prompt, out in zip(prompts(), self.run(model), strict=True):
            wanted = self.slow(SlowModel(module, MASK), prompt, self.settings)
            assert out.tokens_T.tolist() == wanted.tokens
            assert out.step_of_T.tolist() == wanted.steps
            np.testing.assert_allclose(out.logprob_T, wanted.logps, atol=1e-4)
            assert (out.nfe, out.finished) == (wanted.nfe, wanted.finished)

    @pytest.mark.parametrize("name", GRAMMARS)
    def test_greedy_equals_the_reference_under_a_grammar(self, module, model, name: str) -> None:
        chosen = replace(self.settings, rule="grammar", max_tokens=RULED)
        grammar = GRAMMARS[name]
        outs = self.run(model, grammar=grammar, rule="grammar", max_tokens=RULED)
        for prompt, out in zip(prompts(), outs, strict=True):
            wanted = self.slow(SlowModel(module, MASK), prompt, chosen, grammar)
            assert out.tokens_T.tolist() == wanted.tokens
            assert out.step_of_T.tolist() == wanted.steps
            assert out.forced_T.tolist() == wanted.forced
            np.testing.assert_allclose(out.logprob_T, wanted.logps, atol=1e-4)
            np.testing.assert_allclose(out.level_T, wanted.levels, atol=1e-5)
            assert out.nfe == wanted.nfe
            assert out.finished
            assert accepts(grammar, out.tokens_T.tolist())

    @pytest.mark.parametrize("name", GRAMMARS)
    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_a_replay_under_a_grammar_gives_the_log_probabilities(
        self, module, model, temperature: float, name: str
    ) -> None:
        grammar = GRAMMARS[name]
        heat = {"temperature": temperature, "rule": "grammar", "max_tokens": RULED}
        outs = self.run(model, grammar=grammar, **heat)
        for prompt, out in zip(prompts(), outs, strict=True):
            logp_of = self.replayed(SlowModel(module, MASK), prompt, out, grammar)
            found = decisions(out, grammar)
            assert sorted(found.at_D.tolist()) == np.flatnonzero(~out.forced_T).tolist()
            for at, allowed_A, banned in zip(
                found.at_D.tolist(), found.allowed_DA, found.banned_D, strict=True
            ):
                logp_V = logp_of[at].clone()
                if banned is None:
                    keep_A = torch.from_numpy(allowed_A[allowed_A >= 0])
                    logp_V = torch.full_like(logp_V, -torch.inf)
                    logp_V[keep_A] = logp_of[at][keep_A]
                else:
                    logp_V[torch.from_numpy(banned)] = -torch.inf
                hot_V = torch.log_softmax(logp_V / (temperature or 1.0), -1)
                own = float(hot_V[out.tokens_T[at]])
                assert own == pytest.approx(float(out.logprob_T[at]), abs=1e-4)

    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_a_batch_gives_what_single_decoding_gives(self, model, temperature: float) -> None:
        alone = self.run(model, batch=1, temperature=temperature)
        for size in (2, 5):
            together = self.run(model, batch=size, temperature=temperature)
            for one, two in zip(alone, together, strict=True):
                same(one, two)

    def test_lanes_change_nothing(self, module, monkeypatch) -> None:
        """Decodes side by side give what one gives, each list once, and the same every time."""
        monkeypatch.setattr("diffgr2.decode.batch.FULL", 1)
        heat = replace(self.settings, temperature=0.8)
        requests = [
            DecodeRequest(prompt, None, ("lanes", i)) for i, prompt in enumerate(prompts() * 3)
        ]
        model, found = backend_of(module, "onnx"), []
        for model.lanes in (1, 3, 3):
            seen: list[int] = []
            found.append(decode(model, requests, heat, batch=6, on_done=seen.append))
            assert sorted(seen) == list(range(len(requests)))
        for one, two, three in zip(*found, strict=True):
            same(one, two)
            np.testing.assert_array_equal(two.logprob_T, three.logprob_T)

    def test_a_lane_that_breaks_ends_the_others(self, model, monkeypatch) -> None:
        monkeypatch.setattr("diffgr2.decode.batch.FULL", 1)
        requests = [DecodeRequest(prompt) for prompt in prompts()]
        monkeypatch.setattr(model, "lanes", 2)
        requests[-1] = DecodeRequest([])
        with pytest.raises(DecodeError, match="empty"):
            decode(model, requests, self.settings, batch=2)

    @pytest.mark.parametrize("name", ["onnx", "torch"])
    def test_prompts_that_begin_alike_change_nothing(self, module, name: str) -> None:
        model, begin = backend_of(module, name), (prompts()[-1] * 2)[:20]
        ends = ([], [], [3], [3, 4], [5, 3, 4])
        asked = [*(begin + end for end in ends), begin[5:]]
        requests = [DecodeRequest(prompt, None, ("alike", i)) for i, prompt in enumerate(asked)]
        heat = replace(self.settings, temperature=0.8)
        alone = decode(model, requests, heat, batch=1)
        for one, two in zip(alone, decode(model, requests, heat, batch=6), strict=True):
            same(one, two)

    def test_it_ends_at_the_end_token_or_at_the_limit(self, model) -> None:
        whole = self.run(model)
        unfinished = [out for out in whole if not out.finished]
        assert unfinished, "no output reaches the limit"
        assert {len(out.tokens_T) for out in unfinished} == {MAX_TOKENS}
        for at, out in enumerate(whole):
            written = out.tokens_T.tolist()
            end = written[len(written) // 2]
            stopped = self.run(model, end_id=end)[at]
            assert stopped.finished
            assert stopped.tokens_T.tolist() == written[: written.index(end) + 1]
            short = self.run(model, max_tokens=5)[at]
            assert short.tokens_T.tolist() == written[:5]

    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_every_position_is_committed_once_in_the_step_it_names(
        self, model, temperature: float
    ) -> None:
        chosen = replace(self.settings, temperature=temperature)
        for i, prompt in enumerate(prompts()):
            row = make_writer(i, DecodeRequest(prompt, None, ("once", i)), chosen)
            running = Batch(model)
            running.add([row])
            step_of: dict[int, int] = {}
            token_of: dict[int, int] = {}
            forwards = 0
            while not row.done:
                running.step()
                for at, token in row.fresh():
                    assert at not in step_of, "committed twice"
                    step_of[at], token_of[at] = forwards, token
                forwards += 1
                assert row.nfe == forwards
            out = row.result()
            every = range(len(out.tokens_T))
            assert out.nfe == forwards
            assert out.tokens_T.tolist() == [token_of[at] for at in every]
            assert out.step_of_T.tolist() == [step_of[at] for at in every]
            assert out.step_of_T.max() == out.nfe - 1, "the last forward ended it"
            assert MASK not in out.tokens_T

    def test_what_is_sampled_is_a_function_of_the_stream(self, model) -> None:
        first = self.run(model, name="a", temperature=self.temperature)
        again = self.run(model, name="a", temperature=self.temperature)
        other = self.run(model, name="b", temperature=self.temperature)
        for one, two in zip(first, again, strict=True):
            assert one.tokens_T.tobytes() == two.tokens_T.tobytes()
            assert one.step_of_T.tobytes() == two.step_of_T.tobytes()
            assert one.logprob_T.tobytes() == two.logprob_T.tobytes()
        pairs = zip(first, other, strict=True)
        assert any(one.tokens_T.tolist() != two.tokens_T.tolist() for one, two in pairs)

    def test_an_empty_prompt_is_a_named_error(self, model) -> None:
        with pytest.raises(DecodeError, match="prompt is empty"):
            make_writer(0, DecodeRequest([]), self.settings)
        with pytest.raises(DecodeError, match="prompt is empty"):
            decode(model, [DecodeRequest([3]), DecodeRequest([])], self.settings)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_broken_logits_are_a_named_error(self, module, value, temperature: float) -> None:
        spoilt = Spoilt(LeanModel(module), value)
        with pytest.raises(DecodeError, match="logits"):
            self.run(spoilt, temperature=temperature)  # type: ignore[arg-type]

    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_a_replay_gives_the_sum_of_log_probabilities(
        self, module, model, temperature: float
    ) -> None:
        outs = self.run(model, temperature=temperature)
        for prompt, out in zip(prompts(), outs, strict=True):
            logp_of = self.replayed(SlowModel(module, MASK), prompt, out)
            if temperature:
                logp_of = [torch.log_softmax(logp_V / temperature, -1) for logp_V in logp_of]
            own = [
                float(logp_V[token])
                for logp_V, token in zip(logp_of, out.tokens_T.tolist(), strict=True)
            ]
            assert sum(own) == pytest.approx(float(out.logprob_T.sum()), abs=1e-3)


def causal(model: SlowModel, prompt: list[int], out: Trajectory) -> list[torch.Tensor]:
    """What the AR head says of each token, given those before it."""
    ids = [*prompt, *out.tokens_T.tolist()]
    logp_TV = model.logp(ids, [t + 1 for t in range(len(ids))])
    return list(logp_TV[len(prompt) - 1 : -1])


def settings(**changes) -> DecodeSettings:
    base = DecodeSettings(mask_id=MASK, end_id=END, max_tokens=MAX_TOKENS, block_size=8, canvas=6)
    return replace(base, **changes)


class TestAr(Decoder):
    settings = settings(decoder="ar")

    def slow(self, model, prompt, settings, grammar=None):
        return reference.ar(model, prompt, settings, grammar)

    def replayed(self, model, prompt, out, grammar=None):
        return causal(model, prompt, out)

    def test_it_writes_one_token_a_forward(self, model) -> None:
        assert all(out.nfe == len(out.tokens_T) for out in self.run(model))

    @pytest.mark.parametrize("name", GRAMMARS)
    def test_it_makes_one_decision_a_forward(self, model, name: str) -> None:
        for out in self.run(model, grammar=GRAMMARS[name], rule="grammar", max_tokens=RULED):
            assert out.nfe == (~out.forced_T).sum()


class TestVerify(Decoder):
    settings = settings(decoder="verify")

    def slow(self, model, prompt, settings, grammar=None):
        return reference.verify(model, prompt, settings, grammar)

    def replayed(self, model, prompt, out, grammar=None):
        return causal(model, prompt, out)

    def test_it_writes_what_ar_writes(self, model) -> None:
        for one, two in zip(self.run(model), self.run(model, decoder="ar"), strict=True):
            assert one.tokens_T.tolist() == two.tokens_T.tolist()
            assert one.nfe <= two.nfe


class TestBlock(Decoder):
    settings = settings(decoder="block", threshold=0.3)

    def slow(self, model, prompt, settings, grammar=None):
        return reference.block(model, prompt, settings, grammar)

    def replayed(self, model, prompt, out, grammar=None):
        """A token's own canvas, with what stood on it when the token was committed."""
        canvas, step_T = out.canvas_T.tolist(), out.canvas_step_T.tolist()
        chosen, p = self.settings, len(prompt)
        ends = [end - p for end in reference.boundaries(p + len(canvas), chosen, p)[p:]]
        result = []
        for at, step in enumerate(out.step_of_T.tolist()):
            text = Text(replace(chosen, max_tokens=RULED), grammar)
            text.known = {t: canvas[t] for t, s in enumerate(step_T) if s < step}
            # A canvas ends with the response, as far as its end was known then.
            end = min(ends[at], text.limit()) if grammar else ends[at]
            logp = reference.canvas_logp(
                model, prompt, text.known, ends.index(ends[at]), max(end, at + 1), chosen
            )
            result.append(logp[at])
        return result

    def test_it_needs_fewer_forwards_than_tokens(self, model) -> None:
        outs = self.run(model)
        assert sum(out.nfe for out in outs) < sum(len(out.tokens_T) for out in outs)


class TestBlockOfAConversion(TestBlock):
    """The other contract: shifted logits, block-causal keys, blocks counted from the response."""

    settings = settings(
        decoder="block",
        accept="static",
        per_step=3,
        alignment="shifted",
        clean_kv="block_causal",
        origin="response",
        fused=False,
    )

    def test_it_needs_fewer_forwards_than_tokens(self, model) -> None:
        outs = self.run(model)
        fused = self.run(model, fused=True)
        for one, two in zip(outs, fused, strict=True):
            assert one.tokens_T.tolist() == two.tokens_T.tolist()
            assert one.nfe >= two.nfe
