"""The forward as an ONNX graph: what a CPU runtime compiles, of standard operators only.

Contract: `graph(sizes, tables, weight, single=…)` is a stock forward, of any family of `family`, of
T new tokens of B rows behind S slots of a cache, in opset 23. Inputs: `ids`, `position`, an
additive `bias` [B, 1, T, S + T], `first` (from this new token on distributions are asked for),
`ban` (added to the logits) and per layer `past_key`, `past_value`. Outputs: log-probabilities, and
per layer the new keys and values [B, T, W]; who keeps them is the caller's matter, so no cache is
copied to leave the graph. Of the last layer only the asked-for tokens are computed. Two layouts of
the cache under one arithmetic: of a single row [1, S, W], token by token, of which any first slots
are one piece of memory and one operator does the rest; of a batch keys [B, G, E, S] and values [B,
G, S, E], as products want them, so that what is cached is read and never moved (twice as fast at 64
rows). Weights stay in [out, in] as checkpoints hold them (the runtime turns them once, at load), so
a graph file may point into `model.safetensors` (`beside`) instead of holding them (`within`). With
`int8` products are of whole numbers: what enters is rounded as it comes, per tensor, the matrices
beforehand, per output (`weights.rounded`). A gated adapter is part of the graph, in floats: its
input is zero but at mask tokens, so that elsewhere it adds exactly nothing. Not here: running it
(`ort`), who sees whom (`decode`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from diffgr2.errors import CheckpointError
from diffgr2.model.adapter import FOLDER, PREFIX, Adapter
from diffgr2.model.family import Sizes
from diffgr2.model.weights import EMBEDDING, INT8, SCALE, placed

OPSET, IR_VERSION = 23, 11
END = np.iinfo(np.int64).max

Weight = Callable[[str], TensorProto]
"""A checkpoint's tensor by its name."""


class _Builder:
    """Nodes and constants under way; every value has a name of its own."""

    def __init__(self, weight: Weight, adapter: Adapter | None, *, int8: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self._weight, self._adapter, self._int8 = weight, adapter, int8
        self._gated: dict[tuple[str, str], str] = {}
        self._rounded: dict[str, list[str]] = {}

    def __call__(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        out = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    @property
    def gated(self) -> bool:
        return self._adapter is not None

    def rounded(self, x: str) -> list[str]:
        """x in eight bits, its scale and its zero point."""
        if x not in self._rounded:
            outs = [f"{x}_{part}" for part in ("rounded", "scale", "zero")]
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], outs))
            self._rounded[x] = outs
        return self._rounded[x]

    def constant(self, name: str, values: Any) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(values), name)
        return name

    def weight(self, name: str) -> str:
        """A tensor of the checkpoint, in fp32."""
        if name not in self.constants:
            self.constants[name] = self._weight(name)
        if self.constants[name].data_type == TensorProto.FLOAT:
            return name
        return self("Cast", name, to=TensorProto.FLOAT)

    def product(self, x: str, name: str, gate: str | None = None) -> str:
        """x @ weight.T, and what a gated adapter adds to it where x is a masked token's."""
        made, adapter, stem = self._product(x, name), self._adapter, name.removesuffix(".weight")
        if gate is None or adapter is None or stem.rpartition(".")[2] not in adapter.targets:
            return made
        if (x, gate) not in self._gated:  # 0 where it adds nothing, so that it adds exactly 0
            self._gated[x, gate] = self("Mul", x, gate)
        low = self._plain(self._gated[x, gate], f"{stem}.lora_A.weight")
        return self("Add", made, self._plain(self("Mul", low, "strength"), f"{stem}.lora_B.weight"))

    def _plain(self, x: str, name: str) -> str:
        return self("MatMul", x, self("Transpose", self.weight(name), perm=[1, 0]))

    def _product(self, x: str, name: str) -> str:
        if not self._int8:
            return self._plain(x, name)
        height, width = self._weight(name).dims
        kinds = ((INT8, TensorProto.INT8, (width, height)), (SCALE, TensorProto.FLOAT, (height,)))
        turned, scale = (self._given(name + end, kind, dims) for end, kind, dims in kinds)
        value, step, zero = self.rounded(x)
        none = self.constant(f"{name}.zero", np.zeros(height, dtype=np.int8))
        whole = self("Cast", self("MatMulInteger", value, turned, zero, none), to=TensorProto.FLOAT)
        return self("Mul", whole, self("Mul", step, scale))

    def _given(self, name: str, kind: int, dims: tuple[int, ...]) -> str:
        """A tensor that comes beside the graph and stands in no file."""
        tensor = TensorProto(name=name, data_type=kind, dims=dims)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="given")
        self.constants[name] = tensor
        return name


def graph(
    sizes: Sizes,
    tables: tuple[np.ndarray, np.ndarray],
    weight: Weight,
    *,
    single: bool,
    int8: bool = False,
    adapter: Adapter | None = None,
) -> onnx.ModelProto:
    """See the module's docstring; `tables` are the cosines and sines [positions, head_dim / 2]."""
    make = _Builder(weight, adapter, int8=int8)
    for name, table in zip(("cos", "sin"), tables, strict=True):
        make.constant(name, table.astype(np.float32))
    make.constant("flat", np.array([0, 0, -1]))
    make.constant("query_heads", np.array([0, 0, sizes.heads, sizes.head_dim]))
    make.constant("key_heads", np.array([0, 0, sizes.kv_heads, sizes.head_dim]))
    groups, repeats = sizes.kv_heads, sizes.heads // sizes.kv_heads
    make.constant("by_group", np.array([0, 0, groups, repeats, sizes.head_dim]))
    make.constant("joined", np.array([0, 0, -1, sizes.head_dim]))
    make.constant("parted", np.array([0, 0, repeats, -1, sizes.head_dim]))
    make.constant("repeats", np.array([1, 1, repeats, 1]))
    make.constant("scale", np.float32(sizes.head_dim**-0.5))
    for name, value in (("start", 0), ("end", END), ("time", 1), ("queries", 2), ("slots", 3)):
        make.constant(name, np.array([value], dtype=np.int64))
    if adapter is not None:
        make.constant("strength", np.float32(adapter.scale))
        masked = make("Equal", "ids", make.constant("mask", np.array([adapter.mask_id])))
        gate = make("Cast", masked, to=TensorProto.FLOAT)
        make("Unsqueeze", gate, make.constant("last", np.array([-1])), name="gate")
    x = make("Gather", make.weight(EMBEDDING), "ids")
    for number in range(sizes.layers):
        x = _layer(make, sizes, number, x, single=single)
    x = make("RMSNormalization", x, make.weight("model.norm.weight"), epsilon=sizes.eps, axis=-1)
    head = EMBEDDING if sizes.tied else "lm_head.weight"
    logits = make("Add", make.product(x, head), "ban")
    make("LogSoftmax", logits, name="logp", axis=-1)
    inputs, outputs = _ports(sizes, single=single)
    body = helper.make_graph(
        make.nodes, "forward", inputs, outputs, initializer=list(make.constants.values())
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(body, opset_imports=opset, ir_version=IR_VERSION)


def _ports(sizes: Sizes, *, single: bool) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs."""

    def port(name: str, kind: int, *sizes: str | int) -> Any:
        return helper.make_tensor_value_info(name, kind, list(sizes))

    groups, size = sizes.kv_heads, sizes.head_dim
    width, real, whole = groups * size, TensorProto.FLOAT, TensorProto.INT64
    inputs = [
        port("ids", whole, "B", "T"),
        port("position", whole, "B", "T"),
        port("bias", real, "B", 1, "T", "A"),
        port("first", whole, 1),
        port("ban", real, sizes.vocab),
    ]
    past = {"key": ("B", groups, size, "S"), "value": ("B", groups, "S", size)}
    if single:
        past = dict.fromkeys(past, ("B", "S", width))
    else:
        inputs.append(port("past", whole, 1))  # S, as a number
    outputs = [port("logp", real, "B", "R", sizes.vocab)]
    for number in range(sizes.layers):
        for kind, dims in past.items():
            inputs.append(port(f"past_{kind}_{number}", real, *dims))
            outputs.append(port(f"new_{kind}_{number}", real, "B", "T", width))
    return inputs, outputs


def _layer(make: _Builder, sizes: Sizes, number: int, x: str, *, single: bool) -> str:
    """One decoder layer; the last computes what is asked for."""
    name = f"model.layers.{number}."

    def normed(value: str, which: str) -> str:
        scale = make.weight(f"{name}{which}.weight")
        return make("RMSNormalization", value, scale, epsilon=sizes.eps, axis=-1)

    hidden = normed(x, "input_layernorm")
    asking, position, bias, gate = hidden, "position", "bias", "gate"
    if number == sizes.layers - 1:
        asking, x, position = (
            make("Slice", v, "first", "end", "time") for v in (hidden, x, position)
        )
        bias = make("Slice", bias, "first", "end", "queries")
        gate = make("Slice", gate, "first", "end", "time") if make.gated else gate

    def projected(value: str, which: str) -> str:
        where = gate if which == "q" else "gate"
        value = make.product(value, f"{name}self_attn.{which}_proj.weight", where)
        if not sizes.family.biases:
            return value
        return make("Add", value, make.weight(f"{name}self_attn.{which}_proj.bias"))

    def turned(value: str, which: str, place: str, out: str | None = None) -> str:
        value = projected(value, which)
        if sizes.family.norms:
            heads = "query_heads" if which == "q" else "key_heads"
            value = normed(make("Reshape", value, heads), f"self_attn.{which}_norm")
            value = make("Reshape", value, "flat")
        count = sizes.heads if which == "q" else sizes.kv_heads
        return make("RotaryEmbedding", value, "cos", "sin", place, name=out, num_heads=count)

    query = turned(asking, "q", position)
    new = [turned(hidden, "k", "position", f"new_key_{number}")]
    new.append(make("Identity", projected(hidden, "v"), name=f"new_value_{number}"))
    attention = _of_a_row if single else _of_a_batch
    mixed = attention(make, sizes, number, query, new, bias)
    x = make("Add", x, make.product(mixed, f"{name}self_attn.o_proj.weight", gate))
    hidden = normed(x, "post_attention_layernorm")
    act = make.product(hidden, f"{name}mlp.gate_proj.weight", gate)
    act = make("Mul", act, make("Sigmoid", act))
    inner = make("Mul", act, make.product(hidden, f"{name}mlp.up_proj.weight", gate))
    return make("Add", x, make.product(inner, f"{name}mlp.down_proj.weight", gate))


def _of_a_row(
    make: _Builder, sizes: Sizes, number: int, query: str, new: list[str], bias: str
) -> str:
    """Grouped-query attention over all slots; what is not seen has a bias of −inf."""
    keys, values = (
        make("Concat", f"past_{kind}_{number}", fresh, axis=1)
        for kind, fresh in zip(("key", "value"), new, strict=True)
    )
    heads: dict[str, Any] = {"q_num_heads": sizes.heads, "kv_num_heads": sizes.kv_heads}
    return make("Attention", query, keys, values, bias, **heads)


def _of_a_batch(
    make: _Builder, sizes: Sizes, number: int, query: str, new: list[str], bias: str
) -> str:
    """The same: scores of the cache and of the new tokens apart, under one softmax."""
    by_group = make("Transpose", make("Reshape", query, "by_group"), perm=[0, 2, 3, 1, 4])
    asking = make("Mul", make("Reshape", by_group, "joined"), "scale")  # [B, G, R * T, E]
    key, value = (make("Reshape", fresh, "key_heads") for fresh in new)
    scores = make(
        "Concat",
        make("MatMul", asking, f"past_key_{number}"),
        make("MatMul", asking, make("Transpose", key, perm=[0, 2, 3, 1])),
        axis=3,
    )
    scores = make("Add", scores, make("Tile", bias, "repeats"))
    share = make("Softmax", scores, axis=-1)
    old, own = (
        make("Slice", share, *ends, "slots") for ends in (("start", "past"), ("past", "end"))
    )
    mixed = make(
        "Add",
        make("MatMul", old, f"past_value_{number}"),
        make("MatMul", own, make("Transpose", value, perm=[0, 2, 1, 3])),
    )
    turned = make("Transpose", make("Reshape", mixed, "parted"), perm=[0, 3, 1, 2, 4])
    return make("Reshape", turned, "flat")


# ------------------------------------------------------------------------------------- weights


def within(arrays: Mapping[str, np.ndarray]) -> Weight:
    """Weights that the graph itself holds."""

    def weight(name: str) -> TensorProto:
        if name not in arrays:
            raise CheckpointError(f"tensor {name} is missing")
        return numpy_helper.from_array(np.ascontiguousarray(arrays[name]), name)

    return weight


KINDS = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}


def beside(directory: Path) -> Weight:
    """Weights that are given beside the graph; it says where in the directory's files they are."""
    places = placed(directory)
    if (directory / FOLDER).is_dir():
        found = placed(directory / FOLDER)
        inside = {n: replace(place, file=f"{FOLDER}/{place.file}") for n, place in found.items()}
        places |= {name.removeprefix(PREFIX): place for name, place in inside.items()}

    def weight(name: str) -> TensorProto:
        if name not in places:
            raise CheckpointError(f"{directory}: tensor {name} is missing")
        place = places[name]
        tensor = TensorProto(name=name, data_type=KINDS[place.kind], dims=place.shape)
        tensor.data_location = TensorProto.EXTERNAL
        facts = {"location": place.file, "offset": place.start, "length": place.length}
        for key, value in facts.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    return weight
