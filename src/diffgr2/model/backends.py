"""Which backend runs a model, and how it is opened: the one door to `Backend`s.

Contract: `open_backend(directory)` opens a model directory, `backend_of(module)` a model under
training; both decode alike. `onnx` (a compiled graph on the CPU) is the way where there is no
accelerator, `torch` where there is one; `onnx-int8` is faster and not the same to the last token.
The caller, `use`, or the environment's DIFFGR2_BACKEND decide otherwise. A directory that holds its
graphs (`write_graphs`) is opened with NumPy and ONNX Runtime alone; for others the graph is made on
the spot, which takes the package `onnx`. Not here: the backends themselves (`ort`, `session`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from diffgr2.errors import CheckpointError, one_of
from diffgr2.model.adapter import Adapter, adapter_of, arrays_of
from diffgr2.model.backend import Backend
from diffgr2.model.contract import read_config
from diffgr2.model.family import rope_of, sizes_of

if TYPE_CHECKING:
    from diffgr2.model.whole import Whole

Name = Literal["onnx", "onnx-int8", "torch"]
NAMES: tuple[Name, ...] = get_args(Name)
VARIABLE = "DIFFGR2_BACKEND"

DRIVERS = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/kfd")

GRAPHS = {
    (False, True): "forward_single.onnx",
    (False, False): "forward.onnx",
    (True, True): "forward_single_int8.onnx",
    (True, False): "forward_int8.onnx",
}
"""A directory's graphs, by (int8, single row)."""


def chosen(name: str = "auto") -> Name:
    """The backend that the caller, the environment or the machine asks for."""
    name = _wish.name if name == "auto" else name
    name = os.environ.get(VARIABLE, "auto") if name == "auto" else name
    if name in NAMES:
        return cast(Name, name)
    if name != "auto":
        one_of("backend", name, ("auto", *NAMES))
    return "torch" if _accelerated() else "onnx"


def _accelerated() -> bool:
    """Whether there is a GPU that torch can use; without torch nobody looks."""
    from importlib.util import find_spec

    # A machine without a driver has none, and need not import torch to learn it.
    driver = any(Path(place).exists() for place in DRIVERS)
    if not driver or find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def open_backend(directory: Path, name: str = "auto") -> Backend:
    """The model of a directory; nothing that happens to its files later reaches the backend."""
    name = chosen(name)
    if name == "torch":
        return _torch_backend(directory)
    from diffgr2.model.ort import OrtBackend
    from diffgr2.model.weights import read, rounded

    config, int8, graphs = read_config(directory), name == "onnx-int8", {}
    sizes_of(config, str(directory))  # what is no plain model is told before its weights are read
    adapter = adapter_of(directory)
    weights = rounded(read(directory)) if int8 else read(directory)
    if adapter is not None:
        weights |= arrays_of(directory, adapter)
    for single in (False, True):
        path = directory / GRAPHS[int8, single]
        if path.is_file():
            graphs[single] = path.read_bytes()

    def source(single: bool) -> bytes:
        if single in graphs:
            return graphs[single]
        from diffgr2.model.graph import beside

        return _graph(config, beside(directory), adapter, single=single, int8=int8)

    return OrtBackend(_facts(config), source, default_threads(), weights, name)


def _torch_backend(directory: Path) -> Backend:
    from diffgr2.model.forward import LeanModel
    from diffgr2.model.load import open_model

    module = open_model(directory)
    for parameter in module.parameters():
        # Weights come mapped from their file: who writes to it would write into this model.
        parameter.data = parameter.data.clone()
    model = LeanModel(module)
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)  # the module lingers, what it held not
    if not model.finite:
        raise CheckpointError(f"{directory}: weights are not finite")
    return model


def backend_of(module: Any, name: str = "auto", whole: Whole | None = None) -> Backend:
    """A stock model as it is now, to be read once; `whole` is where its weights come from.

    `torch` shares the memory of a model that stands whole, so its weights must stay while it
    decodes; `onnx` has copies of its own, in fp32, whatever the process was told: training replays
    what a backend wrote.
    """
    from diffgr2.model.forward import LeanModel
    from diffgr2.model.whole import HERE

    whole = whole or HERE
    if chosen(name) == "torch" or module.device.type != "cpu":
        return LeanModel(module, whole)
    from diffgr2.model.gated import adapter_in, plain_state
    from diffgr2.model.graph import within
    from diffgr2.model.ort import OrtBackend
    from diffgr2.model.whole import parts_of

    config: dict[str, Any] = module.config.to_dict()
    arrays: dict[str, np.ndarray] = {}
    for name, part in parts_of(module):
        with whole(part):
            found = plain_state(part).items()
            arrays |= {f"{name}.{n}": t.float().numpy().copy() for n, t in found}
    adapter = adapter_in(module)
    if adapter is not None and adapter.mask_id is None:
        adapter = None  # it is in the arrays

    def source(single: bool) -> bytes:
        return _graph(config, within(arrays), adapter, single=single)

    return OrtBackend(_facts(config), source, default_threads())


def write_graphs(directory: Path) -> None:
    """Put the graphs into a model directory, so that it opens without the package `onnx`."""
    from diffgr2.model.graph import beside

    config, weight, adapter = read_config(directory), beside(directory), adapter_of(directory)
    for (int8, single), file in GRAPHS.items():
        made = _graph(config, weight, adapter, single=single, int8=int8)
        (directory / file).write_bytes(made)


@dataclass
class _Wish:
    """What the process was told."""

    name: str = "auto"
    threads: int = 0


_wish = _Wish()


def use(name: str = "auto", threads: int = 0) -> None:
    """This backend, and so many threads on the CPU, from now on; auto and 0 leave the choice."""
    chosen(name)  # an unknown one is an error here
    _wish.name, _wish.threads = name, threads
    if threads and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """As many as was said, torch uses, or the environment says; else all cores."""
    if _wish.threads or "torch" in sys.modules:
        return _wish.threads or int(sys.modules["torch"].get_num_threads())
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > 0:
        return int(told)
    return cores()


def _facts(config: Mapping[str, Any]) -> Any:
    from diffgr2.model.ort import Facts

    own = sizes_of(config)
    shape = (own.layers, own.kv_heads, own.head_dim, own.vocab, own.positions)
    return Facts(*shape, own.weights)


def _graph(
    config: Mapping[str, Any],
    weight: Any,
    adapter: Adapter | None,
    *,
    single: bool,
    int8: bool = False,
) -> bytes:
    from diffgr2.model.graph import graph

    how: dict[str, Any] = {"single": single, "int8": int8, "adapter": adapter}
    return graph(sizes_of(config), _tables(config), weight, **how).SerializeToString()


def _tables(config: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [positions, head_dim / 2] of the rotary embedding."""
    own, parameters = sizes_of(config), rope_of(config)
    size, scale = own.head_dim, 1.0
    if parameters["rope_type"] == "default":
        place = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        frequency = np.float32(1.0) / np.float32(parameters["rope_theta"]) ** place
    else:
        frequency, scale = _scaled_frequencies(config)
    position = np.arange(own.positions, dtype=np.float32)
    angle = position[:, None] * frequency
    return np.cos(angle) * np.float32(scale), np.sin(angle) * np.float32(scale)


def _scaled_frequencies(config: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    """What transformers makes of a scaled rotary embedding."""
    from diffgr2.model.load import rotary

    table = rotary(config)
    return table.inv_freq.float().numpy(), float(table.attention_scaling)


def described() -> str:
    """What a model that is opened now is run by."""
    name = chosen()
    if name == "torch":
        return "torch"
    import onnxruntime

    threads = default_threads()
    return f"{name} (ONNX Runtime {onnxruntime.__version__}, {threads} thread{'s'[: threads > 1]})"
