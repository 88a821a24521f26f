"""The forward as an ONNX graph: what a CPU runtime compiles, of standard operators only.

Contract: `graph(shape, tables, weight, single=…)` is a stock Qwen3 forward of T new tokens of B
rows behind S slots of a cache, in opset 23. Inputs: `ids`, `position`, an additive `bias`
[B, 1, T, S + T], `first` (from this new token on distributions are asked for), `ban` (added to the
logits) and per layer `past_key`, `past_value`. Outputs: log-probabilities, and per layer the new
keys and values; who keeps them is the caller's matter, so no cache is copied to leave the graph.
Of the last layer only the asked-for tokens are computed. Two layouts of one arithmetic: time-major
([T, B, …]: of a batch's cache any first S slots are one piece of memory, handed over without a
copy) and, for a single row, row-major ([1, T, …]: the same memory and a sixth fewer operators).
Weights stay in [out, in] as checkpoints hold them (the runtime turns them once, at load), so a
graph file may point into `model.safetensors` (`beside`) instead of holding them (`within`). With
`int8` products are of whole numbers: what enters is rounded as it comes, per tensor, the matrices
beforehand, per output (`weights.rounded`). Not here: running it (`ort`), who sees whom (`decode`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from diffgr2.errors import CheckpointError
from diffgr2.model.contract import check_plain
from diffgr2.model.weights import EMBEDDING, INT8, SCALE, placed

OPSET, IR_VERSION = 23, 11
END = np.iinfo(np.int64).max

Weight = Callable[[str], TensorProto]
"""A checkpoint's tensor by its name."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen3 model."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From config.json's values."""
        check_plain(config)
        return cls(
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            kv_heads=int(config["num_key_value_heads"]),
            head_dim=int(config["head_dim"]),
            vocab=int(config["vocab_size"]),
            eps=float(config["rms_norm_eps"]),
            tied=bool(config.get("tie_word_embeddings")),
        )


class _Builder:
    """Nodes and constants under way; every value has a name of its own."""

    def __init__(self, weight: Weight, *, int8: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self._weight, self._int8 = weight, int8
        self._rounded: dict[str, list[str]] = {}

    def __call__(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        out = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

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

    def product(self, x: str, name: str) -> str:
        """x @ weight.T"""
        if not self._int8:
            return self("MatMul", x, self("Transpose", self.weight(name), perm=[1, 0]))
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
    shape: Shape,
    tables: tuple[np.ndarray, np.ndarray],
    weight: Weight,
    *,
    single: bool,
    int8: bool = False,
) -> onnx.ModelProto:
    """See the module's docstring; `tables` are the cosines and sines [positions, head_dim / 2]."""
    make = _Builder(weight, int8=int8)
    time = 1 if single else 0
    for name, table in zip(("cos", "sin"), tables, strict=True):
        make.constant(name, table.astype(np.float32))
    make.constant("flat", np.array([0, 0, -1]))
    make.constant("query_heads", np.array([0, 0, shape.heads, shape.head_dim]))
    make.constant("key_heads", np.array([0, 0, shape.kv_heads, shape.head_dim]))
    for name, value in (("end", END), ("time", time), ("queries", 2)):
        make.constant(name, np.array([value], dtype=np.int64))
    x = make("Gather", make.weight(EMBEDDING), "ids")
    for number in range(shape.layers):
        x = _layer(make, shape, number, x, single=single)
    x = make("RMSNormalization", x, make.weight("model.norm.weight"), epsilon=shape.eps, axis=-1)
    head = EMBEDDING if shape.tied else "lm_head.weight"
    logits = make("Add", make.product(x, head), "ban")
    make("LogSoftmax", logits, name="logp", axis=-1)
    inputs, outputs = _ports(shape, single=single)
    body = helper.make_graph(
        make.nodes, "forward", inputs, outputs, initializer=list(make.constants.values())
    )
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(body, opset_imports=opset, ir_version=IR_VERSION)


def _ports(shape: Shape, *, single: bool) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs."""

    def port(name: str, kind: int, *sizes: str | int) -> Any:
        return helper.make_tensor_value_info(name, kind, list(sizes))

    def placed(length: str) -> tuple[str, str]:
        return ("B", length) if single else (length, "B")

    width, real, whole = shape.kv_heads * shape.head_dim, TensorProto.FLOAT, TensorProto.INT64
    inputs = [
        port("ids", whole, *placed("T")),
        port("position", whole, *placed("T")),
        port("bias", real, "B", 1, "T", "A"),
        port("first", whole, 1),
        port("ban", real, shape.vocab),
    ]
    outputs = [port("logp", real, *placed("R"), shape.vocab)]
    for number in range(shape.layers):
        for kind in ("key", "value"):
            inputs.append(port(f"past_{kind}_{number}", real, *placed("S"), width))
            outputs.append(port(f"new_{kind}_{number}", real, *placed("T"), width))
    return inputs, outputs


def _layer(make: _Builder, shape: Shape, number: int, x: str, *, single: bool) -> str:
    """One decoder layer; the last computes what is asked for."""
    name = f"model.layers.{number}."

    def normed(value: str, which: str) -> str:
        scale = make.weight(f"{name}{which}.weight")
        return make("RMSNormalization", value, scale, epsilon=shape.eps, axis=-1)

    hidden = normed(x, "input_layernorm")
    asking, position, bias = hidden, "position", "bias"
    if number == shape.layers - 1:
        asking, x, position = (
            make("Slice", v, "first", "end", "time") for v in (hidden, x, position)
        )
        bias = make("Slice", bias, "first", "end", "queries")

    def projected(value: str, which: str, place: str, out: str | None = None) -> str:
        heads = "query_heads" if which == "q" else "key_heads"
        value = make.product(value, f"{name}self_attn.{which}_proj.weight")
        value = normed(make("Reshape", value, heads), f"self_attn.{which}_norm")
        count = shape.heads if which == "q" else shape.kv_heads
        flat = make("Reshape", value, "flat")
        return make("RotaryEmbedding", flat, "cos", "sin", place, name=out, num_heads=count)

    query = projected(asking, "q", position)
    new = [projected(hidden, "k", "position", f"new_key_{number}")]
    value = make.product(hidden, f"{name}self_attn.v_proj.weight")
    new.append(make("Identity", value, name=f"new_value_{number}"))
    time = 1 if single else 0
    keys, values = (
        make("Concat", f"past_{kind}_{number}", fresh, axis=time)
        for kind, fresh in zip(("key", "value"), new, strict=True)
    )
    mixed = _attention(make, shape, query, keys, values, bias, single=single)
    x = make("Add", x, make.product(mixed, f"{name}self_attn.o_proj.weight"))
    hidden = normed(x, "post_attention_layernorm")
    gate = make.product(hidden, f"{name}mlp.gate_proj.weight")
    gate = make("Mul", gate, make("Sigmoid", gate))
    inner = make("Mul", gate, make.product(hidden, f"{name}mlp.up_proj.weight"))
    return make("Add", x, make.product(inner, f"{name}mlp.down_proj.weight"))


def _attention(
    make: _Builder, shape: Shape, query: str, keys: str, values: str, bias: str, *, single: bool
) -> str:
    """Grouped-query attention over all slots; what is not seen has a bias of −inf."""
    if single:
        heads: dict[str, Any] = {"q_num_heads": shape.heads, "kv_num_heads": shape.kv_heads}
        return make("Attention", query, keys, values, bias, **heads)
    forth, back = [1, 2, 0, 3], [2, 0, 1, 3]  # [T, B, H, E] to [B, H, T, E] and back
    pairs = ((query, "query_heads"), (keys, "key_heads"), (values, "key_heads"))
    turned = [make("Transpose", make("Reshape", v, h), perm=forth) for v, h in pairs]
    mixed = make("Transpose", make("Attention", *turned, bias), perm=back)
    return make("Reshape", mixed, "flat")


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
