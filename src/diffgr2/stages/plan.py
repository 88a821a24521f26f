"""The table of stages: what reads what, for the runner and the command line.

Contract: `STAGES` maps names to `Stage` objects in pipeline order, `stages_of` those that a recipe
has (its rows of the results depend on what its responses hold); `GOALS` are what `diffgr2 run`
builds, as far as the recipe has it. A stage lists exactly the recipe sections that its result
depends on. Not here: code of any stage; modules are imported when a stage runs, so that `--help`
stays quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffgr2.stage import Stage
from diffgr2.stages.diffusing import ABSENT, diffusing
from diffgr2.stages.rows import ROWS, RowSpec, read_row, rows_of_recipe

if TYPE_CHECKING:
    from diffgr2.config import Recipe

CORPUS = ("vocabulary", "data", "items", "candidates", "evidence")
"""What every language-model stage reads besides its model."""

TRAINED = ("midtrain", "sft", "rl", "direct_rl", "cft", "opd", "block_rl", "cft_rl")
"""Stages with a training loop."""

RANKED = ("retriever", "candidates")
"""Stages that the processes share where the data is large; else the first works alone."""

MEASURED = tuple(f"score_{spec.name}" for spec in ROWS)

SHARED = (*TRAINED, *RANKED, "distill", "calibrate", "probes", *MEASURED)
"""Stages whose work the processes of a torchrun share; timings are the first one's alone."""

READ_BY = {
    "ar": "temperature max_tokens rule",
    "ar_raw": "temperature max_tokens",
    "raw": "temperature max_tokens clean_kv",
    "verify": "temperature max_tokens clean_kv canvas rule",
    "recommended": "temperature max_tokens clean_kv canvas rule "
    "decoder accept threshold per_step entropy_bound",
}
"""What a row of the results reads of `decode` by its way of decoding; read-out and views are the
row's own."""


def _late(place: str, *more: Any) -> Callable[[Any], Any]:
    """A function `module:name` (or `run`) of this room, imported when it is called."""
    module, _, name = f"diffgr2.stages.{place}".partition(":")
    return lambda given: getattr(import_module(module), name or "run")(given, *more)


def _stage(
    name: str, inputs: str, sections: str, summary: str, run: str = "", *more: Any, **keys: Any
) -> Stage:
    """One line of the table; inputs and sections are words, `corpus` stands for CORPUS."""
    read = tuple(inputs.replace("corpus", " ".join(CORPUS)).split())
    call, told = _late(run or name, *more), {"shared": name in SHARED, **keys}
    return Stage(name, call, read, tuple(sections.split()), summary, **told)


_SCORED = "evaluate.users evaluate.max_users prompt candidates"
_PACKED = "data items candidates evidence rival retriever calibrate"
_BUNDLED = "name items candidates evidence prompt decode traces.teacher evaluate.bootstrap"
_TIMED = (
    "evaluate.batch evaluate.speed_lists evaluate.rounds evaluate.thresholds "
    "evaluate.frontier_lists evaluate.lengths"
)
_SAID = " ".join(f"decode.{key}" for key in READ_BY["recommended"].split())
_PROBED = "evaluate.frontier_lists evaluate.list_lengths evaluate.views evaluate.bootstrap"


def _scoring(row: RowSpec) -> Stage:
    """The stage that decodes one row."""
    keys = READ_BY[row.how].split() + ["repair"] * row.mended
    sections = " ".join([_SCORED, *(f"decode.{key}" for key in keys)])
    about = f"decode the test lists: {row.name}"
    name, inputs = f"score_{row.name}", f"corpus {row.model}"
    return _stage(name, inputs, sections, about, "score:run_row", row)


# fmt: off
_TABLE = (
    # name, inputs, recipe sections or single keys of them, summary, module:function if not its own
    _stage("data", "", "data", "import, k-core, leave-one-out",
           files=_late("data:outside_files")),
    _stage("items", "data", "items", "text vectors and semantic IDs", version=2,
           files=_late("warm:files")),
    _stage("retriever", "data", "retriever", "train the retriever"),
    _stage("candidates", "data retriever", "retriever candidates", "cross-fitted candidate lists",
           version=2),
    _stage("evidence", "data items candidates", "evidence candidates.k lists.features",
           "evidence per candidate, scorers without a language model", version=4),
    _stage("tutor", "data candidates evidence",
           "evidence.fit_on evidence.buckets traces.tutor traces.train_weight candidates.k",
           "boosted trees on what prompts show: the ranking that traces imitate"),
    _stage("rival", "data candidates evidence", "evidence candidates.k lists.features",
           "LambdaMART on the raw evidence, and which scorer is the one to beat",
           packages=("lightgbm",)),
    _stage("timely", "data candidates evidence", "evidence candidates.k",
           "the scorecard on counts strictly before each list's moment"),
    _stage("vocabulary", "data evidence", "model prompt items candidates evidence",
           "tokenizer, mask first, then semantic IDs", version=3, files=_late("warm:files")),
    _stage("traces", "corpus", "traces prompt evidence candidates.k",
           "the teacher's reasoning on training lists", version=2),
    _stage("midtrain", "corpus", "model midtrain prompt", "item alignment",
           files=_late("warm:files")),
    _stage("sft", "corpus traces midtrain", "sft prompt candidates", "imitate the traces"),
    _stage("rl", "corpus sft", "rl prompt candidates", "DAPO: the AR teacher"),
    _stage("direct_rl", "corpus sft", "direct_rl prompt candidates",
           "the same without reasoning", "rl"),
    _stage("distill", "corpus rl", "distill prompt candidates", "the AR teacher's own outputs"),
    _stage("convert", "rl", "convert", "AR to block diffusion, bit for bit"),
    _stage("cft", "corpus distill convert", "cft prompt candidates", "conversion fine-tuning"),
    _stage("opd", "corpus distill rl cft", "opd prompt candidates decode.clean_kv",
           "on-policy distillation"),
    _stage("block_rl", "corpus opd", "block_rl prompt candidates decode.clean_kv",
           "RL on the diffusion policy", "rl"),
    _stage("cft_rl", "corpus cft", "cft_rl prompt candidates decode.clean_kv",
           "the same without OPD", "rl"),
    _stage("calibrate", "corpus rl block_rl", f"{_SAID} prompt candidates",
           "what a level of strength is worth as a chance"),
    _stage("bundle", f"{_PACKED} block_rl score_cft_opd_rl", _BUNDLED,
           "one model directory to serve: the diffusion model", "pack", "block_rl", version=8),
    _stage("bundle_ar", f"{_PACKED} rl score_ar", _BUNDLED,
           "the same of the AR teacher", "pack", "rl", version=8),
    *map(_scoring, ROWS),
    _stage("speed", "corpus rl block_rl", f"decode {_TIMED} prompt candidates",
           "decoders timed in one run, quality against speed", version=2),
    _stage("pace", "corpus rival sft rl direct_rl convert cft opd block_rl cft_rl",
           "decode evaluate.speed_lists evaluate.rounds prompt candidates",
           "every row timed, from the request to the ranking"),
    _stage("probes", "corpus retriever rl block_rl calibrate",
           f"{_SAID} {_PROBED} prompt candidates",
           "list lengths, views, faithfulness, reliability"),
)
# fmt: on

STAGES = {stage.name: stage for stage in _TABLE}
GOALS = {
    "candidates": ["evidence", "rival"],
    "teacher": ["rival", "rl", "direct_rl", "score_ar_direct", "score_ar_sft", "score_ar"],
    "story": ["rival", "score_ar", "score_cft_opd_rl", "score_verify", "bundle"],
    "ladder": ["rival", "timely", *MEASURED],
    "all": ["rival", "timely", *MEASURED, "speed", "pace", "probes", "bundle"],
}


_CUT = "lists.split lists.validation lists.test lists.folds lists.fold"
OWN = {
    "data": "lists.file lists.columns lists.gains lists.features lists.max_bad_share",
    "items": _CUT,
    "retriever": _CUT,
    "candidates": _CUT,
    "evidence": f"{_CUT} lists.point_in_time lists.propensity",
    "midtrain": _CUT,
    "rival": "lists.point_in_time",
    "tutor": "lists.file",
}
"""What stages depend on besides, where the lists are a shop's own."""

OWN_SUMMARIES = {
    "data": "import of interactions, items and your lists",
    "candidates": "your lists, split",
}
"""What these then do, for the lines of a run."""


DIFFUSING = {
    "convert": _stage(
        "convert",
        "vocabulary",
        "model",
        "the base, which diffuses already, with this run's vocabulary",
        "diffusing:begin",
        files=_late("diffusing:files"),
    ),
    "distill": _stage(
        "distill",
        "corpus traces",
        "distill prompt candidates",
        "the traces' responses, for conversion fine-tuning",
        "diffusing:texts",
        shared=False,
    ),
}
"""Stages of a recipe whose base is a block-diffusion checkpoint: it starts at CFT."""

TUTORED = ("rival", "traces", "sft", "pace", "bundle", "bundle_ar")
"""What reads the tutor, in recipes that have one beside the evidence's own scorers."""


def with_lists(stage: Stage, recipe: Recipe) -> Stage:
    """The stage as it is in a recipe with own lists, whose candidates need no retriever."""
    more = OWN.get(stage.name, "")
    if stage.name in ("evidence", "rival") and recipe.lists.point_in_time:
        return replace(stage, sections=(*stage.sections, *more.split()))
    if recipe.lists.file is None or not more:
        return stage
    inputs = ("data",) if stage.name == "candidates" else stage.inputs
    summary = OWN_SUMMARIES.get(stage.name, stage.summary)
    sections = (*stage.sections, *more.split())
    return replace(stage, sections=sections, inputs=inputs, summary=summary)


def stages_of(recipe: Recipe) -> dict[str, Stage]:
    """The stages that the recipe has, its rows as it reads them."""
    rows = {f"score_{row.name}": _scoring(row) for row in rows_of_recipe(recipe)}
    absent = {*MEASURED} - rows.keys()
    if recipe.lists.file or recipe.lists.point_in_time:  # evidence is counted as it says
        absent.add("timely")
    tutored, diffuses = recipe.traces.tutor != "scorer", diffusing(recipe)
    if not tutored:
        absent.add("tutor")
    if diffuses:
        absent |= {*ABSENT} | {
            f"score_{r.name}" for r in rows_of_recipe(recipe) if r.model in ABSENT
        }
    found = {name: rows.get(name, stage) for name, stage in STAGES.items() if name not in absent}
    if diffuses:
        found |= DIFFUSING
    for name in {"bundle", "bundle_ar"} & found.keys():  # judged by the row that answers as it will
        read = (
            f"score_{read_row(recipe, needed.removeprefix('score_'))}"
            if needed.startswith("score_")
            else needed
            for needed in found[name].inputs
        )
        found[name] = replace(found[name], inputs=tuple(read))
    if tutored:
        for name in (name for name in TUTORED if name in found):
            found[name] = replace(found[name], inputs=(*found[name].inputs, "tutor"))
    return {name: with_lists(stage, recipe) for name, stage in found.items()}
