"""OPD: on-policy distillation of the AR teacher into the diffusion student (paper §3.5).

Contract: the student rolls out under its real decoder; the frozen teacher reads prompt + rollout in
one plain causal forward; per block one realised denoising state is drawn from the trajectory and
all blocks are stitched into one row; the loss is KL(teacher ‖ student) over the full vocabulary at
still-masked positions up to and including the end token. `positions: frontier` keeps the positions
right of their block's last commit: left of it a causal teacher does not see what already stands
there and would teach duplicates. `teacher: self_careful` instead distils the model's own careful
decoding (one token a step, sees both sides) into its aggressive one: the latency lever. Not here:
the rollouts' grading (`rollouts`), layouts (`noisy`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffgr2.config import OpdConfig
from diffgr2.decode.batch import DecodeRequest
from diffgr2.decode.grammar import Grammar
from diffgr2.decode.settings import DecodeSettings
from diffgr2.model.contract import BlockContract, contract_of
from diffgr2.model.load import device, open_model
from diffgr2.objectives.divergence import divergence
from diffgr2.objectives.likelihood import chosen_logp
from diffgr2.objectives.noise import frontier
from diffgr2.pipeline import StageContext
from diffgr2.stages.batches import Micro, TokenBatch, causal_batch, chunks, columns, epoch_order
from diffgr2.stages.common import train_stage
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.distill import Outputs
from diffgr2.stages.effort import chosen
from diffgr2.stages.noisy import NoisyRow, Realised, noisy_batch, realised
from diffgr2.stages.rollouts import DECODE_BATCH, rollout_settings, text_metrics
from diffgr2.streams import generator
from diffgr2.train.lending import policy
from diffgr2.train.loop import Loss
from diffgr2.train.parallel import micro_rows
from diffgr2.train.shares import decode_in_shares
from diffgr2.train.working import prepare
from diffgr2.types import Trajectory


def one_state_per_block(
    text: Realised, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """(masked [R], on the canvas [R]): of every block one of its realised states.

    Drawn uniformly, without a generator the first.
    """
    picks = {
        block: int(steps[0] if rng is None else rng.choice(steps))
        for block, steps in text.rounds.items()
    }
    return text.state(picks)


@dataclass(frozen=True)
class OpdMicro(Micro):
    """The student's predictions of the targets, then its AR head's; the same of the teacher."""

    clean: TokenBatch  # prompt + response for the teacher
    teacher_N: Tensor  # flat places in it
    heat_N: Tensor  # the teacher's temperature there


@dataclass
class OpdTask:
    corpus: Corpus
    outputs: Outputs
    contract: BlockContract
    config: OpdConfig
    settings: DecodeSettings
    teacher: nn.Module | None
    seed: int
    _metrics: dict[str, float] = field(default_factory=dict)

    name = "opd"
    round_steps = 1

    def metrics(self, step: int) -> dict[str, float]:
        return self._metrics

    def micros(self, step: int, model: nn.Module) -> list[OpdMicro]:
        """Roll out `rows` outputs: rows / rollouts prompts, each `rollouts` times."""
        config, corpus = self.config, self.corpus
        n_prompts = max(config.rows // config.rollouts, 1)
        picks = epoch_order(len(self.outputs), n_prompts, step, self.seed, self.name)
        requests: list[DecodeRequest] = []
        for n in picks:
            prompt, grammar = self.outputs.prompt(corpus, n), self._grammar(n)
            for g in range(config.rollouts):
                stream = (self.seed, self.name, "rollout", step, n, g)
                requests.append(DecodeRequest(prompt, grammar, stream))
        with policy(model) as student:
            given: dict[str, Any] = {"batch": DECODE_BATCH}
            texts = sampled = decode_in_shares(student, requests, self.settings, **given)[0]
            if config.teacher == "self_careful":  # the same prompts, one token a step
                careful = replace(self.settings, threshold=1.0, temperature=0.0)
                texts = decode_in_shares(student, requests, careful, **given)[0]
        self._metrics = text_metrics(sampled, [text.finished for text in sampled])
        rows = [
            self._row(request, text, generator(self.seed, self.name, "state", step, place))
            for place, (request, text) in enumerate(zip(requests, texts, strict=True))
            if text.finished  # else cut by the limit: there is no end to teach
        ]
        return [self._micro(part) for part in chunks(rows, micro_rows(config, model))]

    def _grammar(self, n: int) -> Grammar:
        """What the student is asked for: the read-out that it is trained for, where it knows it."""
        template, direct = self.corpus.template, bool(self.outputs.direct_N[n])
        answer = self.outputs.answer(n)
        if not direct and self.config.answer in self.corpus.answers:
            answer = self.config.answer
        request = self.outputs.request(self.corpus, n)
        return template.grammar(request, reasoning=not direct, answer=answer)

    def _row(
        self, request: DecodeRequest, trajectory: Trajectory, rng: np.random.Generator
    ) -> tuple[NoisyRow, np.ndarray, int]:
        """(row, compared positions, response length) of a rollout or of a careful output."""
        config, contract, pad_id = self.config, self.contract, self.corpus.vocab.pad_id
        grammar = request.grammar if self.settings.rule == "grammar" else None
        text = realised(request.prompt, trajectory, contract, pad_id, grammar)
        # The careful text is the target wherever the aggressive decoder still had a mask: in its
        # first step, or in any realised state.
        careful = config.teacher == "self_careful"
        first = careful and rng.random() < 0.5
        masked_R, there_R = one_state_per_block(text, None if first else rng)
        compared_R = masked_R
        if config.positions == "frontier" and not careful:
            compared_R = frontier(masked_R, text.block_R, text.step_R < 0)
        length = len(trajectory.tokens_T)
        causal = self.settings.clean_kv == "causal"
        given = (request.prompt, text.tokens_R, masked_R[None], text.shift, causal, contract)
        row = NoisyRow(*given, there_R[None])
        return row, np.flatnonzero(compared_R[:length]), length

    def _micro(self, rows: Sequence[tuple[NoisyRow, np.ndarray, int]]) -> OpdMicro:
        pad_id = self.corpus.vocab.pad_id
        batch = noisy_batch([row for row, _, _ in rows], pad_id)
        texts = [row.prompt + row.response_R[:length].tolist() for row, _, length in rows]
        clean = causal_batch(texts, pad_id)
        compared, heads = [], []  # (row, place in the student's batch, in the teacher's, token)
        for b, (row, at_N, length) in enumerate(rows):
            places = (row.noisy_places(0, at_N), row.clean_places(at_N))
            compared.append((b, *places, row.response_R[at_N]))
            if row.clean_causal and self.contract.adapter is None:  # else it cannot change
                head_M = row.clean_places(np.arange(length))
                heads.append((b, head_M, head_M, row.response_R[:length]))
        row_N, student_N, teacher_N, token_N = columns([*compared, *heads])
        (target_N,) = columns([row.response_R[at_N]] for row, at_N, _ in rows)
        student_N, teacher_N = batch.flat(row_N, student_N), clean.flat(row_N, teacher_N)
        # A strength is its whole distribution: a colder teacher would say another one.
        said_N = torch.tensor(
            [self.corpus.vocab.strength_of(t) is not None for t in token_N.tolist()]
        )
        heat_N = torch.where(said_N, 1.0, self.config.teacher_temperature)
        return OpdMicro(batch, student_N, target_N, clean, teacher_N, heat_N)

    def loss(self, model: nn.Module, micro: OpdMicro) -> Loss:
        config, mask_id, n = self.config, self.corpus.vocab.mask_id, micro.tokens
        micro = micro.to(device())
        logits = micro.logits(model, mask_id)
        if self.teacher is None:
            loss_N = -chosen_logp(logits[:n], micro.target_N)
            return Loss(loss_N.sum(), {"distill/nll": (loss_N.detach().sum(), n)})
        logp = torch.log_softmax(logits, -1)
        with torch.no_grad():
            taught = micro.clean.logits(self.teacher, micro.teacher_N, mask_id)
            taught = torch.log_softmax(taught / micro.heat_N[:, None], -1)
        gap_N = divergence(taught[:n], logp[:n], config.divergence)
        metrics: dict[str, Any] = {"kl": (gap_N.detach().sum(), n)}
        total = gap_N.sum()
        if config.ar_weight and len(logp) > n:
            head_M = divergence(taught[n:], logp[n:], "forward")
            metrics["kl/ar_head"] = (head_M.detach().sum(), len(head_M))
            total = total + config.ar_weight * head_M.sum()
        return Loss(total, metrics)


def run(ctx: StageContext) -> dict[str, Any]:
    corpus = open_corpus(ctx.inputs, ctx.recipe)
    config = chosen(ctx.recipe.opd, ctx.name, 0, corpus.vocab.spec.size, ctx.progress)
    source = ctx.inputs["cft"]
    contract, outputs = contract_of(source), Outputs.load(ctx.inputs["distill"])
    assert contract is not None  # `convert` wrote it
    teacher = None
    if config.teacher == "ar":
        teacher = open_model(ctx.inputs["rl"]).eval().requires_grad_(False)
        prepare(teacher, config)  # it computes as the student does
    settings = rollout_settings(corpus, contract, config)
    task = OpdTask(corpus, outputs, contract, config, settings, teacher, ctx.seed)
    return train_stage(ctx, task, open_model(source), config, source)
