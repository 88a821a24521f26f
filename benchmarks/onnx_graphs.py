"""The rivals' graphs for ONNX Runtime, built node by node.

Contract: `causal` is a Qwen3 checkpoint as a plain autoregressive loop wants it: new tokens, rows'
lengths and the cache in; each row's last logits and the cache out. Its attention is the runtime's
own causal one, which turns queries and keys and writes into the cache where it lies: about a tenth
faster than the standard operator with keys and values passed along. `cross_encoder` is a scorer of
BERT's shape with random weights, one score per document. `product` is one large matrix product.
Not here: our own graph, which knows canvases and blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

from diffgr2.model.contract import read_config

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
INT32, OPSET, IR = TensorProto.INT32, 23, 10
OWN = "com.microsoft"  # the domain of the runtime's own operators


def session_of(model: ModelProto, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    given = {"sess_options": options, "providers": ["CPUExecutionProvider"]}
    return onnxruntime.InferenceSession(model.SerializeToString(), **given)


class Graph:
    """Nodes, weights, inputs and outputs under way."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, also: tuple[str, ...] = (), **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name, *also], **attributes))
        return name

    def take(self, name: str, kind: int, shape: list[Any]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def give(self, name: str, shape: list[Any]) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, FLOAT, shape))

    def rename(self, result: str, name: str) -> str:
        """Let the last node's first output be called this."""
        assert self.nodes[-1].output[0] == result
        self.nodes[-1].output[0] = name
        return name

    def model(self, name: str) -> ModelProto:
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, self.weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(OWN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR)


def product(size: int) -> ModelProto:
    """`left` times a matrix of ones."""
    graph = Graph()
    left = graph.take("left", FLOAT, [size, size])
    right = graph.weight(np.ones((size, size), dtype=np.float32))
    graph.give(graph.rename(graph.op("MatMul", left, right), "product"), [size, size])
    return graph.model("product")


def causal(directory: Path) -> ModelProto:
    """See the module's docstring. Inputs: ids [B, T], seen [B] (a row's tokens with the new ones,
    less one), most (of all rows), last [B, 1] (the new token whose logits are wanted), and past_k0,
    past_v0, past_k1, …, as long as they may get; outputs logits and now_k0, … in their place."""
    config, tensors = read_config(directory), load_file(directory / "model.safetensors")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size, eps = config["head_dim"], config["rms_norm_eps"]
    graph, cached = Graph(), ["B", kv_heads, "S", size]
    ids, last = graph.take("ids", INT64, ["B", "T"]), graph.take("last", INT64, ["B", 1])
    lengths = graph.take("seen", INT32, ["B"]), graph.take("most", INT32, [])
    tables = [graph.weight(table) for table in _angles(config)]
    per_head, flat = (graph.weight(np.array(v)) for v in ([0, 0, -1, size], [0, 0, -1]))

    def norm(x: str, name: str) -> str:
        scale = graph.weight(tensors[f"{name}.weight"])
        return graph.op("RMSNormalization", x, scale, axis=-1, epsilon=eps)

    def linear(x: str, name: str) -> str:
        return graph.op("MatMul", x, graph.weight(tensors[f"{name}.weight"].T))

    def per_head_norm(x: str, name: str) -> str:
        split = graph.op("Reshape", linear(x, f"{name}_proj"), per_head)
        return graph.op("Reshape", norm(split, f"{name}_norm"), flat)

    embedding = tensors["model.embed_tokens.weight"]
    x = graph.op("Gather", graph.weight(embedding), ids)
    for n in range(config["num_hidden_layers"]):
        layer, now = f"model.layers.{n}", (f"now_k{n}", f"now_v{n}")
        past = [graph.take(f"past_{y}{n}", FLOAT, cached) for y in "kv"]
        h = norm(x, f"{layer}.input_layernorm")
        q, k = (per_head_norm(h, f"{layer}.self_attn.{name}") for name in "qk")
        given = (q, k, linear(h, f"{layer}.self_attn.v_proj"), *past, *lengths, *tables)
        how = {"num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 1, "domain": OWN}
        mixed = graph.op("GroupQueryAttention", *given, also=now, **how)
        x = graph.op("Add", x, linear(mixed, f"{layer}.self_attn.o_proj"))
        h = norm(x, f"{layer}.post_attention_layernorm")
        gate, up = (linear(h, f"{layer}.mlp.{name}_proj") for name in ("gate", "up"))
        gate = graph.op("Mul", gate, graph.op("Sigmoid", gate))
        x = graph.op("Add", x, linear(graph.op("Mul", gate, up), f"{layer}.mlp.down_proj"))
    x = norm(graph.op("GatherND", x, last, batch_dims=1), "model.norm")
    head = graph.weight(tensors.get("lm_head.weight", embedding).T)
    graph.give(graph.rename(graph.op("MatMul", x, head), "logits"), ["B", len(embedding)])
    for n in range(config["num_hidden_layers"]):
        for kind in "kv":
            graph.give(f"now_{kind}{n}", cached)
    return graph.model("causal")


def _angles(config: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [position, half a head]."""
    size, most = config["head_dim"], config["max_position_embeddings"]
    theta = (config.get("rope_parameters") or config)["rope_theta"]
    angle = np.arange(most)[:, None] * theta ** (-np.arange(0, size, 2) / size)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def cross_encoder(layers: int, dim: int, heads: int, ffn: int, vocab: int) -> ModelProto:
    """Documents' tokens in (`ids`), one score each out; nobody's weights."""
    graph, rng = Graph(), np.random.default_rng(0)

    def linear(x: str, rows: int, columns: int) -> str:
        weight = (rng.standard_normal((rows, columns)) * 0.02).astype(np.float32)
        bias = graph.weight(np.zeros(columns, dtype=np.float32))
        return graph.op("Add", graph.op("MatMul", x, graph.weight(weight)), bias)

    def norm(x: str) -> str:
        ones, zeros = (graph.weight(np.full(dim, v, dtype=np.float32)) for v in (1.0, 0.0))
        return graph.op("LayerNormalization", x, ones, zeros, axis=-1)

    ids = graph.take("ids", INT64, ["B", "T"])
    table = (rng.standard_normal((vocab, dim)) * 0.02).astype(np.float32)
    x = norm(graph.op("Gather", graph.weight(table), ids))
    for _ in range(layers):
        q, k, v = (linear(x, dim, dim) for _ in range(3))
        mixed = graph.op("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads)
        x = norm(graph.op("Add", x, linear(mixed, dim, dim)))
        h = linear(graph.op("Gelu", linear(x, dim, ffn)), ffn, dim)
        x = norm(graph.op("Add", x, h))
    first = graph.op("Gather", x, graph.weight(np.array(0)), axis=1)
    pooled = graph.op("Tanh", linear(first, dim, dim))
    graph.give(graph.rename(linear(pooled, dim, 1), "score"), ["B", 1])
    return graph.model("cross_encoder")
