"""Other people's engines, writing the teacher's greedy text from the same weights and prompts.

Contract: each is the plain autoregressive way at its best: prompts in one batch, then one token
after the other, as many as our `ar` writes and not one more, no grammar, arg-max. Not here: our
decoders (`ours`), rankers that write nothing (`rankers`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import Contest, Texts
from machine import Work
from safetensors.numpy import load_file

from diffgr2.export import llama_cpp
from diffgr2.model.contract import read_config
from diffgr2.model.load import open_model
from diffgr2.prompts.request import Request


class Plain:
    """What they share; see `contest.Way`."""

    equals = "teacher"

    def __init__(self, contest: Contest, batch: int, threads: int) -> None:
        self.contest = contest
        # Compiled graphs and slots of a cache are as long as the longest prompt.
        self.longest = max(map(len, contest.prompts(contest.requests)))

    def rank(self, requests: Sequence[Request]) -> Texts:
        return self.write(self.contest.prompts(requests), self.contest.tokens)

    def work(self, requests: Sequence[Request]) -> Work:
        lengths = [len(prompt) for prompt in self.contest.prompts(requests)]
        return self.contest.shape.written(lengths, self.contest.tokens)

    def write(self, prompts: Texts, tokens: int) -> Texts:
        raise NotImplementedError


def left_padded(prompts: Texts, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids [B, T], how much of each row is padding [B]); padding has id 0."""
    ids_BT = np.zeros((len(prompts), width), dtype=np.int64)
    pad_B = np.array([width - len(prompt) for prompt in prompts])
    for row_T, pad, prompt in zip(ids_BT, pad_B.tolist(), prompts, strict=True):
        row_T[pad:] = prompt
    return ids_BT, pad_B


class Generate(Plain):
    """`generate` of transformers as it comes."""

    how: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, contest: Contest, batch: int, threads: int) -> None:
        super().__init__(contest, batch, threads)
        self.model: Any = open_model(contest.teacher)
        self.width = 0  # of a batch: its longest prompt's

    @torch.inference_mode()
    def write(self, prompts: Texts, tokens: int) -> Texts:
        width = self.width or max(map(len, prompts))
        ids_BT, pad_B = left_padded(prompts, width)
        seen_BT = torch.from_numpy(np.arange(width) >= pad_B[:, None]).long()
        out = self.model.generate(
            torch.from_numpy(ids_BT),
            attention_mask=seen_BT,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            **self.how,
        )
        return out[:, width:].tolist()


class CompiledGenerate(Generate):
    """With its static cache, and the forward compiled for two shapes: prompts and one token."""

    how: dict[str, Any] = {"cache_implementation": "static", "disable_compile": True}  # noqa: RUF012

    def __init__(self, contest: Contest, batch: int, threads: int) -> None:
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            raise ImportError("a C++ compiler")
        super().__init__(contest, batch, threads)
        self.width = self.longest
        torch._dynamo.reset()
        self.model.forward = torch.compile(self.model.forward, dynamic=False)


class OnnxRuntime(Plain):
    """A loop in Python over a graph whose cache stays where it is."""

    def __init__(self, contest: Contest, batch: int, threads: int) -> None:
        from onnx_graphs import causal, session_of
        from onnxruntime import OrtValue

        super().__init__(contest, batch, threads)
        shape, self.value = contest.shape, OrtValue.ortvalue_from_numpy
        self.session: Any = session_of(causal(contest.teacher), threads)
        self.binding = self.session.io_binding()
        slots = self.longest + contest.tokens
        size = (batch, shape.kv_heads, slots, shape.head_dim)
        self.bound: dict[str, Any] = {}  # a value on the CPU lies in its array
        for name in (x.name for x in self.session.get_inputs() if x.name.startswith("past")):
            cache = self.bound[name] = self.value(np.zeros(size, dtype=np.float32))
            self.binding.bind_ortvalue_input(name, cache)
            self.binding.bind_ortvalue_output(name.replace("past", "now"), cache)
        self.logits_BV = np.zeros((batch, shape.vocab), dtype=np.float32)
        self.bound["logits"] = self.value(self.logits_BV)
        self.binding.bind_ortvalue_output("logits", self.bound["logits"])

    def write(self, prompts: Texts, tokens: int) -> Texts:
        length_B = np.array([len(prompt) for prompt in prompts], dtype=np.int32)
        ids_BT = np.zeros((len(prompts), length_B.max()), dtype=np.int64)
        for row_T, prompt in zip(ids_BT, prompts, strict=True):
            row_T[: len(prompt)] = prompt  # what stands behind a prompt is written over
        most, seen_B = np.array(length_B.max(), dtype=np.int32), length_B - np.int32(1)
        self._bind(ids=ids_BT, last=seen_B[:, None].astype(np.int64), seen=seen_B, most=most)
        token_B1 = np.zeros((len(prompts), 1), dtype=np.int64)
        written_BT = np.empty((len(prompts), tokens), dtype=np.int64)
        for step in range(tokens):
            self.session.run_with_iobinding(self.binding)
            written_BT[:, step] = token_B1[:, 0] = self.logits_BV.argmax(-1)
            if step == 0:
                self._bind(ids=token_B1, last=np.zeros_like(token_B1))
            seen_B += 1  # the runtime reads where these lie
            most += 1
        return written_BT.tolist()

    def _bind(self, **arrays: np.ndarray) -> None:
        for name, array in arrays.items():
            self.bound[name] = self.value(array)
            self.binding.bind_ortvalue_input(name, self.bound[name])


def write_gguf(directory: Path, path: Path, *, eight_bits: bool = False) -> None:
    """A checkpoint for llama.cpp; token n is spelled `<n>`, so that text can be read back."""
    config, tensors = read_config(directory), load_file(directory / "model.safetensors")
    theta = float((config.get("rope_parameters") or config)["rope_theta"])
    words = llama_cpp.numbered(config["vocab_size"])
    llama_cpp.write_gguf(config, tensors, theta, words, path, eight_bits=eight_bits)


class LlamaCpp(Plain):
    """Its server's engine within this process, one slot per list, nothing kept between calls."""

    eight_bits = False

    def __init__(self, contest: Contest, batch: int, threads: int) -> None:
        import xllamacpp

        super().__init__(contest, batch, threads)
        path = contest.scratch / ("teacher-q8.gguf" if self.eight_bits else "teacher.gguf")
        if not path.is_file():
            write_gguf(contest.teacher, path, eight_bits=self.eight_bits)
        given = xllamacpp.CommonParams()
        given.model.path = str(path)
        given.cpuparams.n_threads = given.cpuparams_batch.n_threads = threads
        given.n_parallel = batch
        given.n_ctx = batch * (self.longest + contest.tokens + 1)
        given.n_batch = max(512, batch * self.longest)
        given.cache_prompt, given.cache_ram_mib = False, 0
        given.warmup, given.verbosity = False, -1
        self.server = xllamacpp.Server(given)

    def write(self, prompts: Texts, tokens: int) -> Texts:
        greedy = {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True}
        asked = {"prompt": prompts, "n_predict": tokens, "cache_prompt": False, **greedy}
        answer = self.server.handle_completions(asked)
        parts = answer if isinstance(answer, list) else [answer]
        choices = [choice for part in parts for choice in part["choices"]]
        choices.sort(key=lambda choice: choice["index"])
        return [[int(n) for n in c["text"].strip("<>").split("><")] for c in choices]


class LlamaCppQ8(LlamaCpp):
    """With matrices in eight bits: faster, and free to write other tokens."""

    equals = ""
    eight_bits = True


ENTRIES = {
    "transformers generate": Generate,
    "transformers generate, static cache, compiled": CompiledGenerate,
    "llama.cpp": LlamaCpp,
    "llama.cpp, Q8_0": LlamaCppQ8,
    "ONNX Runtime, plain loop": OnnxRuntime,
}
