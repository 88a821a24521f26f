"""Stage `convert`: the AR teacher, byte for byte, as a block-diffusion checkpoint (paper §3.2)."""

from typing import Any

from diffgr2.model.conversion import convert
from diffgr2.pipeline import StageContext


def run(ctx: StageContext) -> dict[str, Any]:
    return convert(ctx.inputs["rl"], ctx.out, ctx.recipe.convert, ctx.seed).model_dump()
