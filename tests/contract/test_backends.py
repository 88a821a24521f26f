"""What every backend promises: the slow forward's distributions, whatever its cache went through.

`BackendPromises` holds them; a class per backend inherits them. The stock model with a mask of its
own is the reference: it recomputes every row from its first token, without a cache.
"""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from diffgr2.errors import CheckpointError, DecodeError
from diffgr2.model.backend import NO_TOKEN, Backend, Session, Span
from diffgr2.model.backends import backend_of, open_backend, write_graphs
from diffgr2.model.forward import LeanModel
from diffgr2.model.load import Backbone, save
from diffgr2.model.ort import OrtBackend
from diffgr2.model.pools import Pools
from diffgr2.model.static import StaticSession
from support.tiny_qwen import VOCAB, tiny

MASK, SLOTS = VOCAB - 1, 60
CLOSE = {"atol": 2e-5, "rtol": 0}


@dataclass
class Row:
    """What the reference knows of a row: its tokens, and how far each of them sees."""

    model: Backbone
    ids: list[int] = field(default_factory=list)
    hi: list[int] = field(default_factory=list)

    @property
    def settled(self) -> int:
        """So many tokens see nothing behind themselves."""
        ahead = (at for at, hi in enumerate(self.hi) if hi > at + 1)
        return next(ahead, len(self.hi))

    def shown(self, span: Span) -> np.ndarray:
        """Log-probabilities of a span's asked-for tokens; its tokens replace what stood there."""
        self.ids[span.start :], self.hi[span.start :] = span.ids, span.hi
        mask_TT = torch.arange(len(self.ids)) < torch.tensor(self.hi)[:, None]
        with torch.no_grad():
            logits_TV = self.model(
                torch.tensor([self.ids]), attention_mask=mask_TT[None, None]
            ).logits[0]
        logits_TV[:, MASK] = -torch.inf
        return torch.log_softmax(logits_TV, -1)[span.start + span.logits_from :].numpy()


REFERENCE = tiny(1)


def causal(ids: list[int], start: int, asked: int = 0) -> Span:
    return Span(ids, start, list(range(start + 1, start + len(ids) + 1)), asked)


def canvas(ids: list[int], start: int, clean: int) -> Span:
    """The first `clean` tokens causally, the rest as one block."""
    end = start + len(ids)
    return Span(ids, start, [start + i + 1 if i < clean else end for i in range(len(ids))], clean)


class BackendPromises:
    """The promises; a subclass gives `backend`, and another `reference` for another family."""

    reference: Backbone = REFERENCE

    def backend(self, module: Backbone) -> Backend:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def model(self) -> Backend:
        return self.backend(self.reference)

    def check(self, session: Session, rows: list[Row], spans: list[Span]) -> None:
        views = session.forward(spans)
        for row, span, view in zip(rows, spans, views, strict=True):
            assert len(view) == len(span.ids) - span.logits_from
            every = np.arange(len(view))
            np.testing.assert_allclose(view.rows(every), row.shown(span), **CLOSE)

    def joined(self, session: Session, rng: np.random.Generator, lengths: list[int]) -> list[Row]:
        prompts = [causal(rng.integers(0, VOCAB, n).tolist(), 0) for n in lengths]
        session.add(prompts, SLOTS)
        return [Row(self.reference, list(p.ids), list(p.hi)) for p in prompts]

    @pytest.mark.parametrize("lengths", [[9], [1], [5, 5, 5], [3, 11, 7, 1]])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_distributions_are_the_references(self, model, lengths, seed) -> None:
        """Random spans, canvases and steps back, rows in and out of step."""
        rng = np.random.default_rng(seed)
        session = model.session(MASK)
        rows = self.joined(session, rng, lengths)
        for _ in range(6):
            spans = []
            for row in rows:
                # Nothing that stays may have seen what is replaced.
                start = max(row.settled - int(rng.integers(0, 3)), 0)
                n = int(rng.integers(1, 8))
                ids = rng.integers(0, VOCAB, n).tolist()
                asked = int(rng.integers(0, n))
                spans.append(
                    canvas(ids, start, asked) if rng.random() < 0.5 else causal(ids, start, asked)
                )
            self.check(session, rows, spans)

    def test_prompts_may_ride_with_the_first_forward(self, model) -> None:
        rng, session = np.random.default_rng(3), model.session(MASK)
        session.add([Span([], 0, [], 0)] * 2, SLOTS)
        rows = [Row(self.reference), Row(self.reference)]
        spans = [canvas(rng.integers(0, VOCAB, n).tolist(), 0, n - 3) for n in (12, 7)]
        self.check(session, rows, spans)

    def test_long_prompts_may_be_read_in_pieces(self, model, monkeypatch) -> None:
        monkeypatch.setattr("diffgr2.model.ort.PIECE", 4)
        rng, session = np.random.default_rng(5), model.session(MASK)
        rows = self.joined(session, rng, [11, 3, 8])
        self.check(session, rows, [causal([7, 8], len(row.ids), 1) for row in rows])

    def test_rows_come_and_go(self, model) -> None:
        rng, session = np.random.default_rng(4), model.session(MASK)
        rows = self.joined(session, rng, [4, 9, 6])
        session.keep([0, 2])
        rows = [rows[0], rows[2]]
        session.add([causal([3, 4, 5], 0)], SLOTS + 20)  # more room than the others have
        rows.append(Row(self.reference, [3, 4, 5], [1, 2, 3]))
        self.check(session, rows, [causal([7, 8], len(row.ids), 1) for row in rows])
        session.keep([2])
        self.check(session, rows[2:], [causal([9], len(rows[2].ids))])
        session.keep([])
        rows = self.joined(session, rng, [5])
        self.check(session, rows, [causal([1], 5)])

    def test_a_view_answers_from_the_same_distribution(self, model) -> None:
        session = model.session(MASK)
        session.add([causal([5, 6, 7], 0)], SLOTS)
        (view,) = session.forward([causal([8, 9], 3)])
        row_N, tokens_NA = np.array([1, 0]), np.array([[4, 2, NO_TOKEN], [3, NO_TOKEN, 5]])
        logp_NV = view.rows(row_N)
        np.testing.assert_allclose(np.exp(logp_NV).sum(-1), 1.0, atol=1e-5)
        assert (logp_NV[:, MASK] == -np.inf).all()
        there_NA = tokens_NA != NO_TOKEN
        among_NA = view.among(row_N, tokens_NA)
        assert (among_NA[~there_NA] == -np.inf).all()
        expected_NA = np.take_along_axis(logp_NV, np.where(there_NA, tokens_NA, 0), -1)
        np.testing.assert_array_equal(among_NA[there_NA], expected_NA[there_NA])
        token_N, logp_N, raw_N = view.best(row_N)
        np.testing.assert_array_equal(token_N, logp_NV.argmax(-1))
        np.testing.assert_allclose(logp_N, logp_NV.max(-1), atol=1e-6)
        second_N, _, _ = view.best(row_N[:1], token_N[:1])
        assert second_N[0] == np.argsort(-logp_NV[0], kind="stable")[1]
        drawn_N, hot_N, _ = view.drawn(row_N, 0.7, np.array([0.0, 0.999]), token_N)
        assert not set(drawn_N.tolist()) & set(token_N.tolist()) or (drawn_N != token_N).all()
        assert np.isfinite(hot_N).all()
        np.testing.assert_array_equal(raw_N, logp_NV.max(-1))

    def test_no_room_is_an_error(self, model) -> None:
        with pytest.raises(DecodeError, match="positions"):
            model.session(MASK).add([causal([1], 0)], model.max_positions + 1)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_broken_weights_are_an_error(self, value) -> None:
        module = tiny(2)
        with torch.no_grad():
            module.model.norm.weight[0] = value
        session = self.backend(module).session(MASK)
        session.add([causal([1, 2], 0)], SLOTS)
        with pytest.raises(DecodeError, match="logits"):
            session.forward([causal([3], 2)])


class TestTorch(BackendPromises):
    def backend(self, module: Backbone) -> Backend:
        return backend_of(module, "torch")


class _Static(LeanModel):
    """Accelerators' session, on the CPU: the same shapes and memory, nothing recorded."""

    def session(self, mask_id: int) -> Session:
        return StaticSession(self, mask_id)


class TestStatic(BackendPromises):
    def backend(self, module: Backbone) -> Backend:
        return _Static(module)

    def test_memory_is_used_again_and_clean(self) -> None:
        model = _Static(self.reference)
        for seed in range(3):
            session, rng = model.session(MASK), np.random.default_rng(seed)
            rows = self.joined(session, rng, [4, 7])
            self.check(session, rows, [causal([7, 8], len(row.ids), 1) for row in rows])
            session.keep([])
        (slab,) = model.spare
        with torch.inference_mode():
            for array in (*slab.keys, *slab.values):
                array.fill_(torch.nan)  # a model that broke left it so
        session = model.session(MASK)
        self.check(session, self.joined(session, rng, [5]), [causal([1], 5)])

    def test_two_sessions_never_share_memory(self) -> None:
        model, rng = _Static(self.reference), np.random.default_rng(0)
        sessions = [model.session(MASK) for _ in range(2)]
        rows = [self.joined(session, rng, [3, 6]) for session in sessions]
        for session, own in zip(sessions, rows, strict=True):
            self.check(session, own, [causal([2, 3], len(row.ids)) for row in own])


def test_a_pool_is_given_out_for_as_long_as_something_lives_in_it() -> None:
    """Torch records nothing more into a pool whose graphs are all freed."""
    numbers = itertools.count()
    pools = Pools(lambda: next(numbers))
    first, second = pools.get(), pools.get()
    assert first is second
    del first
    assert pools.get() is second, "one is still there"
    del second
    last = pools.get()
    assert last.handle == 1
    assert pools.get() is last


class TestStaticAsItIs(TestStatic):
    """As wide forwards run."""

    @pytest.fixture(autouse=True)
    def _narrow(self, monkeypatch) -> None:
        monkeypatch.setattr("diffgr2.model.static.WIDE", 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestGraphs(BackendPromises):
    """The same with CUDA graphs."""

    def backend(self, module: Backbone) -> Backend:
        return LeanModel(copy.deepcopy(module).to("cuda"))

    def test_what_comes_often_is_replayed(self, model) -> None:
        rng, session = np.random.default_rng(0), model.session(MASK)
        rows = self.joined(session, rng, [5, 5, 5])
        for step in range(12):
            self.check(session, rows, [causal([step, 3], len(row.ids) - 1) for row in rows])
        recorded = [shape.graph for shape in session._slab.shapes.values()]
        assert any(graph is not None for graph in recorded)


class TestOnnx(BackendPromises):
    def backend(self, module: Backbone) -> Backend:
        return backend_of(module, "onnx")


class TestOnnxRowByRow(TestOnnx):
    """As wide rows are computed."""

    @pytest.fixture(autouse=True)
    def _narrow(self, monkeypatch) -> None:
        monkeypatch.setattr("diffgr2.model.ort.WIDE", 3)


class TestOnnxWithTwoThreads(TestOnnx):
    def backend(self, module: Backbone) -> Backend:
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            return backend_of(module, "onnx")
        finally:
            torch.set_num_threads(before)


class TestOnnxFromADirectory(TestOnnx):
    """Graphs that point into the weights' file, as bundles carry them."""

    @pytest.fixture(autouse=True, scope="class")
    def _folder(self, tmp_path_factory) -> None:
        type(self).folder = tmp_path_factory.mktemp("models")

    def backend(self, module: Backbone) -> Backend:
        directory = self.folder / str(len(list(self.folder.iterdir())))
        directory.mkdir()
        save(module, directory)
        write_graphs(directory)
        return open_backend(directory, "onnx")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_broken_weights_are_an_error(self, value) -> None:
        """Here they are noticed earlier."""
        module = tiny(2)
        with torch.no_grad():
            module.model.layers[0].mlp.up_proj.weight[0, 0] = value
        with pytest.raises(CheckpointError, match="not finite"):
            self.backend(module)

    def test_a_change_of_the_files_does_not_reach_it(self) -> None:
        model = self.backend(tiny(3))
        before, after = (self._first(model, change) for change in (False, True))
        np.testing.assert_array_equal(before, after)

    def _first(self, model: Backend, change: bool) -> np.ndarray:
        if change:
            for path in max(self.folder.iterdir(), key=lambda p: int(p.name)).iterdir():
                path.write_bytes(bytes(path.stat().st_size))
        session = model.session(MASK)
        session.add([causal([1, 2, 3], 0)] * 2, SLOTS)
        views = session.forward([causal([4], 3)] * 2)
        return views[0].rows(np.array([0]))


class TestTorchOfLlama(TestTorch):
    reference = tiny(1, family="Llama", rope="llama3")


class TestTorchOfQwen2(TestTorch):
    reference = tiny(1, family="Qwen2", tied=False)


class TestStaticOfLlama(TestStatic):
    reference = tiny(1, family="Llama", tied=False, kv_heads=4)


class TestStaticOfQwen2(TestStatic):
    reference = tiny(1, family="Qwen2", rope="yarn")


class TestOnnxOfLlama(TestOnnxFromADirectory):
    reference = tiny(1, family="Llama", rope="linear", kv_heads=1)


class TestOnnxOfQwen2(TestOnnxFromADirectory):
    reference = tiny(1, family="Qwen2", tied=False, rope="llama3")


def test_equal_prompts_are_computed_once(monkeypatch) -> None:
    model, read = backend_of(tiny(1), "onnx"), []
    answers = OrtBackend.answers

    def noted(self: OrtBackend, single: bool, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        read.append(feed["ids"].tolist())
        return answers(self, single, feed)

    monkeypatch.setattr(OrtBackend, "answers", noted)
    session, ids = model.session(MASK), [5, 6, 7, 8]
    session.add([causal(ids, 0), causal([6, *ids], 0), causal(ids, 0)], 12)
    assert read == [[ids], [[6, *ids]]]
    views = session.forward([causal([9], 4), causal([9], 5), causal([9], 4)])
    first, _, last = (view.rows(np.array([0])) for view in views)
    np.testing.assert_allclose(first, last, atol=1e-6)


def test_eight_bits_stay_close(tmp_path) -> None:
    save(tiny(4), tmp_path)
    write_graphs(tmp_path)
    rng = np.random.default_rng(6)
    prompts = [causal(rng.integers(0, VOCAB, n).tolist(), 0) for n in (9, 6)]
    for rows in (1, 2):
        found = []
        for name in ("onnx", "onnx-int8"):
            session = open_backend(tmp_path, name).session(MASK)
            session.add(prompts[:rows], SLOTS)
            (view, *_) = session.forward([causal([1, 2, 3], 9), causal([4], 6)][:rows])
            found.append(view.rows(np.arange(3)))
        exact, near = (np.exp(logp_NV) for logp_NV in found)
        assert not np.array_equal(exact, near), "it is in fewer bits"
        np.testing.assert_allclose(near, exact, atol=0.02)
