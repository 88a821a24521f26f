"""How a model directory becomes a backend: the one place where rankers and servers open a model.

Contract: `open_backend(directory, name)` gives a backend whose weights are numbers and belong to
nobody else: nothing that happens to the directory's files reaches it. `use_threads` is for backends
that compute on the CPU. Tensor libraries are imported here, when a model is opened, and nowhere
above. Not here: training and evaluation, which open modules (`load`), and what a backend can do
(`backend`).
"""

import os
from pathlib import Path

from diffgr2.errors import CheckpointError, ConfigError
from diffgr2.model.backend import Backend

BACKENDS = ("torch",)


def open_backend(directory: Path, name: str = "auto") -> Backend:
    """The model of a directory; `auto` takes the backend that suits this machine."""
    if name not in ("auto", *BACKENDS):
        raise ConfigError(f"backend: {name}: no such backend (known: auto, {', '.join(BACKENDS)})")
    return _torch_backend(directory)


def _torch_backend(directory: Path) -> Backend:
    from diffgr2.model.forward import LeanQwen3
    from diffgr2.model.load import open_model

    # oneDNN keeps a compiled kernel per shape, 1,024 of them, and a server's batches come in all
    # shapes: memory would grow by 40 MB before it levels off. Read at the first wide forward.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    module = open_model(directory)
    for parameter in module.parameters():
        # Weights come mapped from their file: who writes to it would write into this model.
        parameter.data = parameter.data.clone()
    model = LeanQwen3(module)
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)  # the module lingers, what it held not
    if not model.finite:
        raise CheckpointError(f"{directory}: weights are not finite")
    return model


def use_threads(threads: int) -> None:
    """So many for backends on the CPU; 0 leaves the choice to them."""
    if threads:
        import torch

        torch.set_num_threads(threads)
