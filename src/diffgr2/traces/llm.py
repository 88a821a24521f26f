"""The `llm` teacher: traces sampled from an OpenAI-compatible endpoint, each paid for once.

Contract: `generate` asks every prompt until one sample is accepted or `config.n` are spent. Samples
of a prompt are asked in order, `config.wave` per call, and the first accepted one is the trace, so
the result depends on the answers alone, not on their timing. A sample counts only once it is synced
to the journal; a run that was killed continues there and asks for nothing twice, up to the calls in
flight when it died. Modes: `plain` accepts any permutation; `targeted` (the caller's messages
reveal the target) and `rejection` (they do not) accept only orders that rank the target first. A
prompt that the endpoint refuses is written down as refused and left out; prompts that stay
unanswered end the run with a RemoteError once all others are done. Not here: prompt texts and their
parsers (`diffgr2.prompts`), HTTP (`traces.client`), the file (`traces.journal`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from diffgr2.config import LlmConfig
from diffgr2.errors import ConfigError, RemoteError
from diffgr2.progress import Progress, Task
from diffgr2.traces.client import ChatClient, Message, Meter, PromptRefusedError, UnansweredError
from diffgr2.traces.journal import Commit, Journal, content_key, group_commit, report_lines
from diffgr2.types import Answer

Mode = Literal["plain", "targeted", "rejection"]

KNOWLEDGE = """How people buy, for orientation:
- Purchases follow each other in sequence. Something bought now often prepares the next step of \
the same routine: a shampoo calls for a conditioner and then for styling, a device for its \
accessories.
- Complements go together, substitutes compete. Who has just bought one product seldom wants a \
second one that does the same job, but may want what is used along with it.
- What is used up is bought again. For consumables, the same product or its larger pack returns \
after a while; durable goods do not.
- Brands bind. Someone who chose a brand or a product line more than once tends to stay with it \
and to try its other products, at a similar price.
- Recent purchases say more than old ones, and a repeated interest more than a single one."""
"""General knowledge for the system message (`knowledge_priming`); names no item of any shop."""


Parse = Callable[[str], Answer]


@dataclass(frozen=True)
class TracePrompt:
    """One question: its name, its chat messages and the target's place in the candidate list."""

    id: str
    messages: tuple[Message, ...]
    target: int | None = None  # None: the list does not hold it
    parse: Parse | None = None  # where reading an answer needs to know what was asked


@dataclass(frozen=True)
class Trace:
    """The accepted sample of one prompt."""

    id: str
    sample: int  # 0-based number of the accepted sample
    text: str
    answer: Answer


@dataclass(frozen=True)
class TraceReport:
    """Accepted traces in the order of the prompts, and what they took.

    Tokens and cost cover all samples these prompts ever paid for, earlier runs included; `calls`,
    `retries` and `faults` cover this run.
    """

    traces: tuple[Trace, ...]
    prompts: int
    samples: int  # journaled answers read for these prompts
    refused: int  # prompts the endpoint refuses
    rejected: dict[str, int]  # samples not accepted, by kind (one sample may have several)
    prompt_tokens: int
    completion_tokens: int
    unmetered: int  # samples whose endpoint told no token counts
    cost: float
    calls: int
    retries: int
    faults: dict[str, int]
    torn_bytes: int
    damaged_lines: int

    @property
    def acceptance_rate(self) -> float:
        """Share of prompts that have a trace."""
        return len(self.traces) / max(self.prompts, 1)

    def metrics(self) -> dict[str, int | float]:
        """Flat figures for a manifest."""
        flat: dict[str, int | float] = {}
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if isinstance(value, dict):
                flat |= {f"{name}/{kind}": n for kind, n in sorted(value.items())}
            elif isinstance(value, int | float):
                flat[name] = value
        rates = {
            "accepted": len(self.traces),
            "acceptance_rate": self.acceptance_rate,
            "sample_acceptance_rate": len(self.traces) / max(self.samples, 1),
        }
        return flat | rates


Accept = Callable[[TracePrompt, Answer], bool]


def ranks_target_first(prompt: TracePrompt, answer: Answer) -> bool:
    """The order is a permutation and begins with the target."""
    return answer.valid and answer.order[0] == prompt.target


def is_permutation(prompt: TracePrompt, answer: Answer) -> bool:
    """The order is a permutation."""
    return answer.valid


ACCEPT: dict[Mode, Accept] = {
    "plain": is_permutation,
    "targeted": ranks_target_first,
    "rejection": ranks_target_first,
}


def prime(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages with the general knowledge at the end of their system message."""
    first, *rest = messages
    if first["role"] != "system":
        return ({"role": "system", "content": KNOWLEDGE}, *messages)
    if KNOWLEDGE in first["content"]:
        return tuple(messages)
    return ({"role": "system", "content": f"{first['content']}\n\n{KNOWLEDGE}"}, *rest)


def generate(
    prompts: Sequence[TracePrompt],
    config: LlmConfig,
    mode: Mode,
    journal_path: Path | str,
    progress: Progress,
    parse: Parse,
    accept: Accept | None = None,
    *,
    seed: int = 0,
) -> TraceReport:
    """Traces for all prompts; `accept` overrides the mode's own rule."""
    _check(prompts, mode)
    with Journal(journal_path) as journal:
        for line in report_lines(journal):
            progress.line(line)
        book = _Book(config, journal, parse, accept or ACCEPT[mode])
        open_prompts = [prompt for prompt in prompts if not book.state(prompt).settled]
        done = len(prompts) - len(open_prompts)
        meter = Meter()
        if open_prompts:
            with progress.task("traces", len(prompts)) as task:
                task.advance(done, f"{done} from the journal")
                meter = _run_to_end(_ask_all(open_prompts, book, task, seed))
        return _report(prompts, book, meter)


def _run_to_end(work: Coroutine[Any, Any, Meter]) -> Meter:
    """`asyncio.run`, also where a loop is running already (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _check(prompts: Sequence[TracePrompt], mode: Mode) -> None:
    twice = [name for name, n in Counter(prompt.id for prompt in prompts).items() if n > 1]
    if twice:
        raise ConfigError(f"trace prompt {twice[0]}: id stands twice")
    for prompt in prompts:
        if not prompt.messages:
            raise ConfigError(f"trace prompt {prompt.id}: no messages")
        if mode != "plain" and prompt.target is None:
            raise ConfigError(f"trace prompt {prompt.id}: mode {mode} needs a target")


@dataclass
class _State:
    """Where one prompt stands according to the journal."""

    next_sample: int = 0
    trace: Trace | None = None
    refused: bool = False
    settled: bool = False
    records: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Book:
    """Reads prompts' states from the journal; holds no state of its own."""

    config: LlmConfig
    journal: Journal
    parse: Parse
    accept: Accept

    @property
    def attempts(self) -> int:
        """Samples per prompt at most; without temperature another sample would say the same."""
        return self.config.n if self.config.temperature > 0 else 1

    def messages(self, prompt: TracePrompt) -> tuple[Message, ...]:
        return prime(prompt.messages) if self.config.knowledge_priming else prompt.messages

    def key(self, prompt: TracePrompt, sample: int) -> str:
        config = self.config
        sampling = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        messages = [dict(message) for message in self.messages(prompt)]
        return content_key(config.model, messages, sampling, sample)

    def state(self, prompt: TracePrompt) -> _State:
        """Walk the samples in order up to the first accepted, refused or missing one."""
        state = _State()
        for sample in range(self.attempts):
            record = self.journal.get(self.key(prompt, sample))
            if record is None:
                break
            state.next_sample = sample + 1
            state.records.append(record)
            if state.settled:
                continue  # paid in the same wave as the accepted one: counted, not read
            if record["kind"] == "refused":
                state.refused = state.settled = True
                continue
            kinds, answer = self._judge(prompt, record)
            if not kinds:
                state.trace = Trace(prompt.id, sample, record["text"], answer)
                state.settled = True
            state.rejected += kinds
        state.settled |= state.next_sample == self.attempts
        return state

    def _judge(self, prompt: TracePrompt, record: dict[str, Any]) -> tuple[list[str], Answer]:
        """Why a sample is not accepted (nothing: it is), and what it says."""
        answer = (prompt.parse or self.parse)(record["text"])
        kinds = [] if record["finish"] in ("stop", "unknown") else [f"finish_{record['finish']}"]
        kinds += answer.failures
        if not kinds and not self.accept(prompt, answer):
            kinds = ["not_accepted"]
        return kinds, answer


async def _ask_all(prompts: Sequence[TracePrompt], book: _Book, task: Task, seed: int) -> Meter:
    """Let `concurrency` workers settle all prompts; raises RemoteError for what stays open."""
    run = _Run(book, task, iter(prompts))
    async with ChatClient(book.config, seed=seed) as client, group_commit(book.journal) as commit:
        run.client, run.commit = client, commit
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(book.config.concurrency, len(prompts))):
                    group.create_task(run.work())
        except ExceptionGroup as errors:
            # The first cause is the one to tell; the others follow from it or repeat it.
            raise _first(errors) from None
        if run.unanswered:
            raise RemoteError(
                f"{book.config.base_url}: {len(run.unanswered)} of {len(prompts)} prompts "
                f"unanswered, prompt {run.unanswered[0]}; what was paid is kept in "
                f"{book.journal.path}, run again to continue"
            )
        return client.meter


def _first(errors: ExceptionGroup[Any]) -> Exception:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


class _Run:
    """What the workers of one run share."""

    client: ChatClient
    commit: Commit

    def __init__(self, book: _Book, task: Task, prompts: Iterator[TracePrompt]) -> None:
        self.book, self.task, self.prompts = book, task, prompts
        self.unanswered: list[str] = []
        self.in_a_row = 0
        # Equal questions have equal keys: the second waits and then finds the first one's answers.
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def work(self) -> None:
        """Settle prompts until none is left."""
        for prompt in self.prompts:
            async with self.locks[self.book.key(prompt, 0)]:
                try:
                    await self.settle(prompt)
                    self.in_a_row = 0
                except UnansweredError as error:
                    self.unanswered.append(f"{prompt.id}: {error}")
                    self.in_a_row += 1
                    # Every worker failed for good, one after the other: the endpoint is down.
                    if self.in_a_row >= max(self.book.config.concurrency, 3):
                        raise RemoteError(
                            f"{self.book.config.base_url}: {self.in_a_row} prompts in a row "
                            f"unanswered, prompt {self.unanswered[-1]}"
                        ) from None
            self.task.advance(1, f"{self.client.meter.retries} retries")

    async def settle(self, prompt: TracePrompt) -> None:
        """Ask wave by wave until the prompt needs no more."""
        book = self.book
        while not (state := book.state(prompt)).settled:
            first = state.next_sample
            last = min(first + book.config.wave, book.attempts)
            keys = [book.key(prompt, sample) for sample in range(first, last)]
            # Behind a damaged line later samples may be at hand; those are not asked again.
            keys = list(takewhile(lambda key: key not in book.journal, keys))
            records = await self.ask(prompt, keys)
            for sample, record in enumerate(records, first):
                record |= {"id": prompt.id, "sample": sample, "model": book.config.model}
            await self.commit(records)

    async def ask(self, prompt: TracePrompt, keys: list[str]) -> list[dict[str, Any]]:
        """One call for the samples of these keys, as records: maybe fewer than asked."""
        messages = self.book.messages(prompt)
        try:
            reply = await self.client.complete(messages, len(keys), keys[0])
        except PromptRefusedError as refusal:
            record = {"key": keys[0], "kind": "refused", "status": refusal.status}
            return [record | {"reason": refusal.reason}]
        records: list[dict[str, Any]] = []
        for key, completion in zip(keys, reply.completions, strict=False):
            # A call is paid as a whole: its tokens stand on its first sample, so sums are true.
            paid = not records
            records.append(
                {
                    "key": key,
                    "kind": "completion",
                    "text": completion.text,
                    "finish": completion.finish,
                    "prompt_tokens": reply.prompt_tokens if paid else 0,
                    "completion_tokens": reply.completion_tokens if paid else 0,
                    "metered": reply.metered,
                }
            )
        return records


def _report(prompts: Sequence[TracePrompt], book: _Book, meter: Meter) -> TraceReport:
    """Count everything from the journal, so that a resumed run reports like an unbroken one."""
    states = [book.state(prompt) for prompt in prompts]
    # Prompts with equal questions share records; each is paid once.
    records = {record["key"]: record for state in states for record in state.records}
    answers = [record for record in records.values() if record["kind"] == "completion"]
    tokens_in = sum(record["prompt_tokens"] for record in answers)
    tokens_out = sum(record["completion_tokens"] for record in answers)
    config = book.config
    return TraceReport(
        traces=tuple(state.trace for state in states if state.trace),
        prompts=len(prompts),
        samples=len(answers),
        refused=sum(state.refused for state in states),
        rejected=dict(Counter(kind for state in states for kind in state.rejected)),
        prompt_tokens=tokens_in,
        completion_tokens=tokens_out,
        unmetered=sum(not record["metered"] for record in answers),
        cost=(tokens_in * config.price_in + tokens_out * config.price_out) / 1e6,
        calls=meter.calls,
        retries=meter.retries,
        faults=dict(meter.faults),
        torn_bytes=book.journal.torn_bytes,
        damaged_lines=len(book.journal.damaged),
    )
