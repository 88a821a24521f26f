"""What stands of a run: the one reader behind the report, its figures and worked examples.

Contract: `Standing.of(runner)` surveys the runner's recipe, so stages of another recipe are never
mixed in; files are read when first asked for, and once. `systems` are the rows of the results that
stand. Not here: measuring (`evaluate`), what is written (`report`, `examples`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_json
from diffgr2.candidates.lists import load_lists
from diffgr2.config import Recipe
from diffgr2.data.store import Dataset, read_dataset
from diffgr2.errors import ArtifactError
from diffgr2.evaluate.baselines import order_from_scores
from diffgr2.evaluate.calibration import chances
from diffgr2.evaluate.closing import closing
from diffgr2.evaluate.outputs import SystemOutputs, load_outputs
from diffgr2.evaluate.validity import accounting, intervals
from diffgr2.pipeline import OUTDATED, STANDS, Runner
from diffgr2.stages import ties, timely
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.judge import JUDGED, scored, strongest, verdict_of
from diffgr2.stages.plan import CORPUS
from diffgr2.stages.rows import read_row, rows_of_recipe
from diffgr2.stages.score import Decoded, Model, decode_requests
from diffgr2.types import MISS, CandidateLists

SCALED = {"ar": "teacher_ar", "cft_opd_rl": "block", "verify": "verify", "student_ar": "ar"}
"""Row -> the scale that was fitted for its model and decoder."""


@dataclass(frozen=True)
class Standing:
    recipe: Recipe
    root: Path
    stages: frozenset[str]
    models: dict[str, Model] = field(default_factory=dict)  # opened so far

    @classmethod
    def of(cls, runner: Runner, named: str = "") -> Standing:
        """What stands of the runner's recipe; without candidate lists there is nothing to say.

        `named` is the recipe as the user calls it.
        """
        states = runner.survey(list(runner.stages))
        stages = frozenset(name for name, state in states.items() if state == STANDS)
        if not {"data", "candidates"} <= stages:
            named = named or runner.recipe.name
            told = f"no candidate lists stand for recipe {runner.recipe.name}"
            mend = f"run: diffgr2 candidates {named}"
            if {states["data"], states["candidates"]} <= {STANDS, OUTDATED}:
                told = "its candidate lists are those of another version, recipe or file"
                mend = f"what differs: diffgr2 status {runner.root}"
                mend += f"; anew: diffgr2 run {named} --runs {runner.root}"
            raise ArtifactError(f"{runner.root}: {told} ({mend})")
        return cls(runner.recipe, runner.root, stages)

    @cached_property
    def lists(self) -> CandidateLists:
        """The test lists, as long as results are about."""
        return load_lists(self.root / "candidates", "test", self.recipe.candidates.k)

    @cached_property
    def dataset(self) -> Dataset:
        return read_dataset(self.root / "data")

    @cached_property
    def corpus(self) -> Corpus:
        return open_corpus({name: self.root / name for name in CORPUS}, self.recipe)

    @cached_property
    def speed(self) -> dict[str, Any] | None:
        """The timing run's measurements."""
        return read_json(self.root / "speed" / "speed.json") if "speed" in self.stages else None

    @cached_property
    def probes(self) -> dict[str, Any]:
        """What the probes found, {} without them."""
        return read_json(self.root / "probes" / "probes.json") if "probes" in self.stages else {}

    @cached_property
    def truth(self) -> np.ndarray | None:
        """True next-item probabilities of the test candidates, where a simulated shop knows."""
        path = self.root / "data" / "truth.safetensors"
        if not path.is_file():
            return None
        from diffgr2.data.shop_truth import true_probabilities

        lists = self.lists
        return true_probabilities(
            load_arrays(path), self.dataset.histories, lists.user_L, lists.end_L, lists.items_LK
        )

    @cached_property
    def parts(self) -> dict[str, np.ndarray]:
        """Test lists by whether their target was bought on the day of the item before."""
        return {} if self.recipe.lists.file else ties.parts_of(self.dataset, self.lists)

    @cached_property
    def systems(self) -> list[SystemOutputs]:
        """Every row that stands: the order of ids, evidence scorers, then decoded rows."""
        rows = scored(self.recipe, self.places) if "evidence" in self.stages else []
        if "data" in self.stages and not self.recipe.lists.file:
            rows.insert(0, ties.id_above(self.dataset, self.lists))
        path = self.root / "timely" / timely.SCORES
        if "timely" in self.stages and path.is_file():
            order_LK = order_from_scores(load_arrays(path)["score_LK"], path.name)
            rows.append(SystemOutputs("evidence_before", order_LK, len(order_LK)))
        for spec in rows_of_recipe(self.recipe):
            if f"score_{spec.name}" in self.stages:
                outputs = load_outputs(self.root / f"score_{spec.name}", spec.name)
                rows.append(replace(outputs, chance_LK=self._chances(outputs)))
        return [replace(outputs, timing=self._timing(outputs.name)) for outputs in rows]

    @property
    def places(self) -> dict[str, Path]:
        """The directories of the stages that stand."""
        return {name: self.root / name for name in self.stages}

    @cached_property
    def rival(self) -> dict[str, Any]:
        """The row to beat, and what every scorer is worth on selection lists; {} unknown."""
        return strongest(self.recipe, self.places)

    @cached_property
    def judged_row(self) -> str | None:
        """The row that the run is judged by."""
        names = (read_row(self.recipe, name) for name in JUDGED)
        return next((name for name in names if f"score_{name}" in self.stages), None)

    @cached_property
    def verdict(self) -> dict[str, Any] | None:
        """What the run is worth; None as long as no row of a model stands."""
        row = self.judged_row
        return verdict_of(self.recipe, self.places, row) if row else None

    @cached_property
    def account(self) -> dict[str, Any]:
        """What the judged row's outputs and times are, on the lists that it is judged by."""
        by_name = {outputs.name: outputs for outputs in self.systems}
        outputs = by_name.get(self.judged_row or "")
        if outputs is None:
            return {}
        keep_L = self.lists.hit_L[outputs.rows] != MISS
        few = self.recipe.evaluate.bootstrap
        found = accounting(outputs, keep_L)
        if found:
            found["ci"] = intervals(outputs, keep_L, few, self.recipe.seed, "closing")
        ar = by_name.get("ar")
        if ar is not None and ar is not outputs and ar.timing:
            found["ar"] = ar.timing
        return found

    @property
    def closing(self) -> list[str]:
        """What the run is worth, in the three lines that it ends with; [] without a model's row."""
        if self.judged_row is None:
            return []
        if self.verdict is None:
            return ["Not judged: no test list holds its target."]
        return closing(self.verdict, self.account)

    def _chances(self, outputs: SystemOutputs) -> np.ndarray | None:
        """Calibrated probabilities, where strengths are said and their scale is known."""
        scale = self.scales.get(SCALED.get(outputs.name, ""))
        if scale is None or outputs.levels_LK is None:
            return None
        chance_LK = np.full(outputs.levels_LK.shape, np.nan)
        for row, order_K in enumerate(outputs.order_LK):
            n = int((order_K >= 0).sum())
            chance_LK[row, :n] = chances(outputs.levels_LK[row, :n], scale, order_K[:n])
        return chance_LK

    @cached_property
    def scales(self) -> dict[str, float]:
        """What a level of strength is worth, by decoder."""
        path = self.root / "calibrate" / "calibration.json"
        return read_json(path) if "calibrate" in self.stages else {}

    @cached_property
    def pace(self) -> dict[str, Any]:
        """What every row takes, {} without that."""
        return read_json(self.root / "pace" / "pace.json") if "pace" in self.stages else {}

    def _timing(self, name: str) -> dict[str, Any]:
        """A row's milliseconds per list, one at a time."""
        for entry in self.pace.get("rows", ()):
            if (entry["row"], entry["batch"]) == (name, 1):
                return {key: value for key, value in entry.items() if key not in ("row", "lists")}
        return {}

    def last(self, names: Sequence[str]) -> str | None:
        """The first of these stages that stands."""
        return next((name for name in names if name in self.stages), None)

    def decoded(self, stage: str, rows: np.ndarray, how: str) -> Decoded:
        """Test lists decoded one by one with a stage's model."""
        if stage not in self.models:
            self.models[stage] = Model.open(self.root / stage)
        requests = [self.corpus.request("test", int(row)) for row in rows]
        return decode_requests(self.corpus, self.models[stage], requests, how, batch=1)
