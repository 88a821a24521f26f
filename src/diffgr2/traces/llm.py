"""The `llm` teacher: traces sampled from an OpenAI-compatible endpoint, each paid for once.

Contract: `generate` asks every prompt until one sample is accepted or `config.n` are spent. Samples
of a prompt are asked in order, `config.wave` per call, and the first accepted one is kept, so the
result depends on the answers alone, not on their timing. Accepted is a permutation with reasoning
to learn from that, where the prompt names a target, ranks it first. A sample counts only once it is
in the journal; a run that was killed continues there and asks for nothing twice, up to the calls in
flight when it died. A prompt that the endpoint refuses is written down as refused and left out;
prompts that stay unanswered end the run with a RemoteError once all others are done. Not here:
prompt texts and their parsers (`diffgr2.prompts`), HTTP (`traces.client`), the file
(`traces.journal`).
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffgr2.config import LlmConfig
from diffgr2.errors import RemoteError
from diffgr2.progress import Progress, Task
from diffgr2.traces.client import ChatClient, Message, PromptRefusedError, UnansweredError
from diffgr2.traces.journal import Journal, content_key, open_journal
from diffgr2.types import Answer


@dataclass(frozen=True)
class TracePrompt:
    """One question: its name, its chat messages and the reader of its answers."""

    id: str
    messages: Sequence[Message]
    parse: Callable[[str], Answer]
    target: int | None = None  # candidate that must come first; None: any order will do


@dataclass(frozen=True)
class Accepted:
    """The accepted sample of one prompt."""

    id: str
    sample: int  # 0-based number of the sample
    answer: Answer


@dataclass(frozen=True)
class TraceReport:
    """Accepted samples in the order of the prompts, and what they took, for a manifest.

    Tokens and cost cover all samples these prompts ever paid for, earlier runs included; `calls`
    covers this run.
    """

    accepted: list[Accepted]
    rejected: dict[str, int]  # samples by kind of failure (one sample may have several)
    metrics: dict[str, int | float]


def generate(
    prompts: Sequence[TracePrompt], config: LlmConfig, journal_path: Path, progress: Progress
) -> TraceReport:
    """Ask all prompts for what the journal does not hold yet."""
    with open_journal(journal_path) as journal:
        run = _Run(config, journal)
        open_prompts = [prompt for prompt in prompts if not run.state(prompt).settled]
        if open_prompts:
            done = len(prompts) - len(open_prompts)
            with progress.task("traces", len(prompts)) as task:
                task.advance(done, f"{done} from the journal")
                _run_to_end(run.ask_all(open_prompts, task))
        return run.report(prompts)


def _run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run`, also where a loop is running already (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


@dataclass
class _State:
    """Where one prompt stands according to the journal."""

    accepted: Accepted | None = None
    refused: bool = False
    settled: bool = False
    records: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)


class _Run:
    """What the workers of one run share; what is known of prompts is in the journal alone."""

    def __init__(self, config: LlmConfig, journal: Journal) -> None:
        self.config, self.journal = config, journal
        # Without temperature another sample would say the same.
        self.attempts = config.n if config.temperature > 0 else 1
        self.calls = 0
        self.unanswered: list[str] = []
        self.in_a_row = 0
        # Equal questions have equal keys: the second waits and then finds the first one's answers.
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def key(self, prompt: TracePrompt, sample: int) -> str:
        config = self.config
        sampling = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        return content_key(config.model, prompt.messages, sampling, sample)

    def state(self, prompt: TracePrompt) -> _State:
        """Walk the samples in order up to the first missing one."""
        state = _State()
        for sample in range(self.attempts):
            record = self.journal.get(self.key(prompt, sample))
            if record is None:
                break
            state.records.append(record)
            if state.accepted or state.refused:
                continue  # paid in the same wave as the accepted one: counted, not read
            if record["kind"] == "refused":
                state.refused = True
                continue
            answer = prompt.parse(record["text"])
            if kinds := rejections(record["finish"], answer, prompt.target):
                state.rejected += kinds
            else:
                state.accepted = Accepted(prompt.id, sample, answer)
        spent = len(state.records) == self.attempts
        state.settled = spent or state.refused or state.accepted is not None
        return state

    async def ask_all(self, prompts: Sequence[TracePrompt], task: Task) -> None:
        """Let `concurrency` workers settle all prompts; raises RemoteError for what stays open."""
        left = iter(prompts)
        async with ChatClient(self.config) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.config.concurrency, len(prompts))):
                        group.create_task(self.work(left, client, task))
            except ExceptionGroup as errors:
                # The first cause is the one to tell; the others follow from it or repeat it.
                raise errors.exceptions[0] from None
        self.calls = client.calls
        if self.unanswered:
            raise RemoteError(
                f"{self.config.base_url}: {len(self.unanswered)} of {len(prompts)} prompts "
                f"unanswered, prompt {self.unanswered[0]}; what was paid is kept in "
                f"{self.journal.path}, run again to continue"
            )

    async def work(self, left: Iterator[TracePrompt], client: ChatClient, task: Task) -> None:
        """Settle prompts until none is left."""
        for prompt in left:
            async with self.locks[self.key(prompt, 0)]:
                try:
                    await self.settle(prompt, client)
                    self.in_a_row = 0
                except UnansweredError as error:
                    self.unanswered.append(f"{prompt.id}: {error}")
                    self.in_a_row += 1
                    # Every worker failed for good, one after the other: the endpoint is down.
                    if self.in_a_row >= max(self.config.concurrency, 3):
                        raise RemoteError(
                            f"{self.config.base_url}: {self.in_a_row} prompts in a row "
                            f"unanswered, prompt {self.unanswered[-1]}"
                        ) from None
            task.advance(1, f"{client.calls} calls")

    async def settle(self, prompt: TracePrompt, client: ChatClient) -> None:
        """Ask wave by wave until the prompt needs no more."""
        while not (state := self.state(prompt)).settled:
            first = len(state.records)
            try:
                samples = await client.complete(
                    prompt.messages, min(self.config.wave, self.attempts - first)
                )
                records = [{"kind": "completion", **asdict(sample)} for sample in samples]
            except PromptRefusedError as refusal:
                records = [{"kind": "refused", "status": refusal.status, "reason": refusal.reason}]
            for n, record in enumerate(records, first):
                record |= {"key": self.key(prompt, n), "id": prompt.id, "sample": n}
            self.journal.append(records)

    def report(self, prompts: Sequence[TracePrompt]) -> TraceReport:
        """Count all from the journal, so that a resumed run reports like an unbroken one."""
        states = [self.state(prompt) for prompt in prompts]
        # Prompts with equal questions share records; each is paid once.
        records = {record["key"]: record for state in states for record in state.records}
        answers = [record for record in records.values() if record["kind"] == "completion"]
        tokens_in = sum(record["prompt_tokens"] for record in answers)
        tokens_out = sum(record["completion_tokens"] for record in answers)
        accepted = [state.accepted for state in states if state.accepted]
        rejected = dict(sorted(Counter(kind for s in states for kind in s.rejected).items()))
        metrics = {
            "prompts": len(prompts),
            "samples": len(answers),
            "refused": sum(state.refused for state in states),
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "unmetered": sum(not record["metered"] for record in answers),
            "cost": (tokens_in * self.config.price_in + tokens_out * self.config.price_out) / 1e6,
            "calls": self.calls,
            "accepted": len(accepted),
            "acceptance_rate": len(accepted) / max(len(prompts), 1),
            "sample_acceptance_rate": len(accepted) / max(len(answers), 1),
        }
        metrics |= {f"rejected/{kind}": n for kind, n in rejected.items()}
        return TraceReport(accepted, rejected, metrics)


def rejections(finish: str, answer: Answer, target: int | None) -> list[str]:
    """Why a sample is not accepted; empty if it is."""
    kinds = [] if finish in ("stop", "unknown") else [f"finish_{finish}"]
    kinds += answer.failures
    if not kinds and not (answer.reasoning and target in (None, answer.order[0])):
        kinds = ["not_accepted"]
    return kinds
