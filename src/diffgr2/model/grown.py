"""More rows for a checkpoint's embeddings, file by file.

Contract: `grow` copies a directory's weights; of the embedding and of an untied head the copies
have more rows: the old ones bit for bit in their own number type, each new one the mean of the old,
which is what a model expects of a token that it knows nothing of. Other files of a sharded
checkpoint are copied byte for byte. Not here: models in memory (`load.build` resizes those).
"""

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffgr2.artifacts import read_json, write_json

GROWN = ("model.embed_tokens.weight", "lm_head.weight")


def with_rows(old_VD: torch.Tensor, rows: int) -> torch.Tensor:
    """More rows; the new ones are the mean of the old."""
    mean_D = old_VD.float().mean(0).to(old_VD.dtype)
    return torch.cat([old_VD, mean_D.expand(rows - len(old_VD), -1)])


def grow(source: Path, out: Path, rows: int) -> None:
    """See the module's docstring."""
    more = 0
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names, metadata = list(file.keys()), file.metadata()
            if not {*names} & {*GROWN}:
                shutil.copyfile(path, out / path.name)
                continue
            tensors = {name: file.get_tensor(name) for name in names}
        for name in {*names} & {*GROWN}:
            before = tensors[name]
            tensors[name] = with_rows(before, rows)
            more += (tensors[name].numel() - before.numel()) * before.element_size()
        save_file(tensors, out / path.name, metadata)
    for path in source.glob("*.safetensors.index.json"):
        index = read_json(path)
        total = (index.get("metadata") or {}).get("total_size")
        if total is not None:
            index["metadata"]["total_size"] = int(total) + more
        write_json(out / path.name, index)
