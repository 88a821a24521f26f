"""OPD: on-policy distillation of the AR teacher into the diffusion student (paper §3.5; DESIGN §6).

Contract: the student rolls out under its real decoder; the frozen teacher reads prompt + rollout in
one plain causal forward; per block one realised denoising state is drawn from the trajectory and
all blocks are stitched into one row; the loss is KL(teacher ‖ student) over the full vocabulary at
still-masked positions up to and including the end token. `positions: frontier` keeps the positions
right of their block's last commit: left of it a causal teacher does not see what already stands
there and would teach duplicates. `teacher: self_careful` instead distils the model's own careful
decoding (one token a step, sees both sides) into its aggressive one: the latency lever. Not here:
the rollouts' grading (`rollouts`), layouts (`noisy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffgr2.config import OpdConfig
from diffgr2.decode.batch import DecodeRequest, decode
from diffgr2.decode.settings import DecodeSettings
from diffgr2.model.contract import BlockContract, read_config, read_contract
from diffgr2.model.forward import LeanQwen3
from diffgr2.model.layout import response_shift
from diffgr2.model.load import device, open_model
from diffgr2.objectives.divergence import divergence
from diffgr2.objectives.likelihood import chosen_logp, logits_at
from diffgr2.objectives.noise import frontier, replay_state
from diffgr2.pipeline import StageContext
from diffgr2.stages.batches import chunks, epoch_order
from diffgr2.stages.common import train_stage
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.distill import Outputs
from diffgr2.stages.noisy import NoisyBatch, NoisyRow, response_blocks
from diffgr2.stages.rollouts import block_settings
from diffgr2.streams import generator
from diffgr2.train.dist import rollout_model
from diffgr2.train.loop import Loss
from diffgr2.types import Trajectory

DECODE_BATCH = 64


def terminal(trajectory: Trajectory, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [R], step [R]) up to the end of the terminal block; never committed: fill, −1."""
    assert trajectory.canvas_T is not None
    assert trajectory.canvas_step_T is not None
    tokens_R = np.where(trajectory.canvas_step_T < 0, fill, trajectory.canvas_T)
    return tokens_R.astype(np.int64), trajectory.canvas_step_T


def one_state_per_block(
    step_R: np.ndarray, block_R: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Masked [R]: for every block one of its realised states, drawn uniformly."""
    masked_R = np.zeros(len(step_R), dtype=bool)
    for block in np.unique(block_R):
        members = np.flatnonzero(block_R == block)
        rounds = np.unique(step_R[members][step_R[members] >= 0])
        step = int(rng.choice(rounds))
        masked_R[members] = replay_state(step_R[members], step)
    return masked_R


@dataclass(frozen=True)
class OpdMicro:
    """Rows for the student, the same texts for the teacher, and which positions are compared."""

    batch: NoisyBatch
    student_N: Tensor  # flat places of the student's predictions
    target_N: Tensor  # the tokens that stand there in the rollout or the careful output
    clean: Tensor  # [B, T] prompt + response for the teacher
    teacher_N: Tensor  # flat places of the teacher's predictions
    head_M: Tensor  # flat places in `batch` of the student's AR head
    teach_head_M: Tensor  # the same in `clean`
    count: float
    tokens: int


class OpdTask:
    """See the module's docstring."""

    name = "opd"
    round_steps = 1

    def __init__(
        self,
        corpus: Corpus,
        outputs: Outputs,
        contract: BlockContract,
        config: OpdConfig,
        settings: DecodeSettings,
        teacher: nn.Module | None,
        seed: int,
    ) -> None:
        self.corpus, self.outputs, self.contract = corpus, outputs, contract
        self.config, self.settings, self.teacher, self.seed = config, settings, teacher, seed
        self._metrics: dict[str, float] = {}

    def metrics(self, step: int) -> dict[str, float]:
        return self._metrics

    # -------------------------------------------------------------------------- rollouts

    def micros(self, step: int, model: nn.Module) -> list[OpdMicro]:
        """Roll out `rows` outputs: rows / rollouts prompts, each `rollouts` times."""
        config, corpus = self.config, self.corpus
        n_prompts = max(config.rows // config.rollouts, 1)
        picks, _ = epoch_order(len(self.outputs), n_prompts, step, self.seed, self.name)
        requests = []
        for n in picks.tolist():
            request = self.outputs.request(corpus, n)
            prompt = self.outputs.prompt(corpus, n)
            for g in range(config.rollouts):
                stream = (self.seed, self.name, "rollout", step, n, g)
                requests.append(DecodeRequest(prompt, corpus.template.grammar(request), stream))
        owners = np.repeat(picks, config.rollouts)
        with rollout_model(model) as inner:
            lean = LeanQwen3(inner)
            trajectories = decode(lean, requests, self.settings, batch=DECODE_BATCH)
            careful = self._careful(lean, requests)
        valid = [
            corpus.template.parse(t.tokens_T.tolist(), self.outputs.request(corpus, int(n))).valid
            for t, n in zip(trajectories, owners, strict=True)
        ]
        self._metrics = {
            "rank/valid_rate": float(np.mean(valid)),
            "completions/mean_length": float(np.mean([len(t.tokens_T) for t in trajectories])),
            "decode/tokens_per_forward": float(np.mean([t.tpf for t in trajectories])),
        }
        rows = []
        for place, (request, trajectory) in enumerate(zip(requests, trajectories, strict=True)):
            source = careful[place] or trajectory
            if not source.finished:
                continue  # cut by the limit: there is no end to teach
            rng = generator(self.seed, self.name, "state", step, place)
            rows.append(self._row(request.prompt, source, rng))
        return [self._micro(list(part)) for part in chunks(rows, config.micro_rows)]

    def _careful(self, lean: LeanQwen3, requests: list[DecodeRequest]) -> list[Trajectory | None]:
        """The same prompts decoded one token a step, for `self_careful`."""
        if self.config.teacher == "ar":
            return [None] * len(requests)
        values = {**vars(self.settings), "threshold": 1.0, "temperature": 0.0}
        return list(decode(lean, requests, DecodeSettings(**values), batch=DECODE_BATCH))

    def _row(
        self,
        prompt: list[int],
        source: Trajectory,
        rng: np.random.Generator,
    ) -> tuple[NoisyRow, np.ndarray, int]:
        """(row, compared positions, response length) of a rollout or of a careful output."""
        size = self.contract.block_size
        tokens_R, step_R = terminal(source, self.corpus.vocab.pad_id)
        shift = response_shift(len(prompt), size, self.contract.origin)
        block_R = response_blocks(len(prompt), len(tokens_R), size, shift)
        masked_R = one_state_per_block(step_R, block_R, rng)
        if self.config.teacher == "self_careful":
            # The careful text is the target wherever the aggressive decoder still had a mask:
            # whole blocks open, as in its first step, or any realised state.
            open_R = rng.random() < 0.5
            masked_R = np.ones_like(masked_R) if open_R else masked_R
        compared_R = masked_R
        if self.config.teacher == "ar" and self.config.positions == "frontier":
            compared_R = frontier(masked_R, block_R)
        length = len(source.tokens_T)
        compared_R = compared_R & (np.arange(len(tokens_R)) < length)
        causal = self.settings.clean_kv == "causal"
        row = NoisyRow(prompt, tokens_R, masked_R[None], shift, causal)
        return row, np.flatnonzero(compared_R), length

    def _micro(self, rows: list[tuple[NoisyRow, np.ndarray, int]]) -> OpdMicro:
        vocab = self.corpus.vocab
        batch = NoisyBatch.pack(
            [row for row, _, _ in rows], vocab.mask_id, vocab.pad_id, self.contract.block_size
        )
        width = max(len(row.prompt) + length for row, _, length in rows)
        clean = np.full((len(rows), width), vocab.pad_id, dtype=np.int64)
        student, teacher, head, teach_head, target = [], [], [], [], []
        for b, (row, at_N, length) in enumerate(rows):
            text = [*row.prompt, *row.response_R[:length]]
            clean[b, : len(text)] = text
            student.append(b * batch.width + row.noisy_places(0, at_N, self.contract))
            teacher.append(b * width + row.clean_places(at_N))
            target.append(row.response_R[at_N])
            if row.clean_causal:
                every = np.arange(length)
                head.append(b * batch.width + row.clean_places(every))
                teach_head.append(b * width + row.clean_places(every))
        count = float(sum(len(at_N) for _, at_N, _ in rows))

        def joined(parts: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate([*parts, np.zeros(0, dtype=np.int64)]))

        return OpdMicro(
            batch,
            joined(student),
            joined(target),
            torch.from_numpy(clean),
            joined(teacher),
            joined(head),
            joined(teach_head),
            count,
            int(count),
        )

    # ------------------------------------------------------------------------------ loss

    def loss(self, model: nn.Module, micro: OpdMicro) -> Loss:
        where, config, mask_id = device(), self.config, self.corpus.vocab.mask_id
        n = len(micro.student_N)
        index = torch.cat([micro.student_N, micro.head_M]).to(where)
        logits = logits_at(
            model,
            micro.batch.ids_BT.to(where),
            index,
            mask_id,
            attends_B1TT=micro.batch.attends_B1TT.to(where),
            position_BT=micro.batch.position_BT.to(where),
        )
        logp = torch.log_softmax(logits, -1)
        if self.teacher is None:
            loss_N = -chosen_logp(logits[:n], micro.target_N.to(where))
            return Loss(loss_N.sum(), {"distill/nll": (loss_N.detach().sum(), n)})
        with torch.no_grad():
            at = torch.cat([micro.teacher_N, micro.teach_head_M]).to(where)
            taught = logits_at(self.teacher, micro.clean.to(where), at, mask_id)
            taught = torch.log_softmax(taught / config.teacher_temperature, -1)
        gap_N = divergence(taught[:n], logp[:n], config.divergence)
        metrics: dict[str, Any] = {"kl": (gap_N.detach().sum(), n)}
        total = gap_N.sum()
        if config.ar_weight and len(micro.head_M):
            head_M = divergence(taught[n:], logp[n:], "forward")
            metrics["kl/ar_head"] = (head_M.detach().sum(), len(head_M))
            total = total + config.ar_weight * head_M.sum()
        return Loss(total, metrics)


def run(ctx: StageContext) -> dict[str, Any]:
    recipe, config = ctx.recipe, ctx.recipe.opd
    corpus = open_corpus(ctx.inputs, recipe)
    source = ctx.inputs["cft"]
    model = open_model(source)
    contract = read_contract(read_config(source), model.config.vocab_size, str(source))
    outputs = Outputs.load(ctx.inputs["distill"] / "outputs.safetensors")
    teacher = None
    if config.teacher == "ar":
        teacher = open_model(ctx.inputs["rl"]).eval().requires_grad_(False)
    settings = block_settings(corpus, contract, config)
    task = OpdTask(corpus, outputs, contract, config, settings, teacher, ctx.seed)
    return train_stage(ctx, task, model, config, source)
