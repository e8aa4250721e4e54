"""One model, many requests: a bounded queue whose waiting requests are embedded together.

A model runs one batch at a time whatever the number of threads, so requests wait in one line, and those that
want the same prompt and width share a call: short texts then fill the batch functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from corembed.embedder import Embedder
from corembed.errors import TextError
from corembed.server.errors import ApiError
from corembed.server.settings import Settings

Vectors = npt.NDArray[np.float32]
Result = tuple[Vectors, int]
"""Vectors of a request, and how many tokens the model saw for them."""


@dataclasses.dataclass
class Job:
    """An accepted request on its way to the model; `gone` tells whether its client still listens."""

    texts: Sequence[str]
    prompt_name: str | None
    dimensions: int | None
    gone: Callable[[], Awaitable[bool]]
    started: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    done: asyncio.Future[Result] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Queue:
    """Accepts requests, runs them in order on one thread, and finishes what it accepted when it is closed."""

    def __init__(self, embedder: Embedder, settings: Settings) -> None:
        self._embedder, self._settings = embedder, settings
        self._jobs: deque[Job] = deque()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "corembed-model")
        self.pending = 0
        self.closing = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works while the context is open; on leaving, accepted requests are finished first."""
        worker = asyncio.create_task(self._work())
        try:
            yield
        finally:
            self.closing = True
            self._wake.set()
            await worker
            self._thread.shutdown()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the line, taken before a request's body is read, so that memory is bounded too; 429 if full."""
        if self.closing:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        if self.pending >= self._settings.waiting:
            message = f"{self.pending} requests are waiting, which is this server's limit: try again later"
            raise ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})
        self.pending += 1
        try:
            yield
        finally:
            self.pending -= 1

    async def submit(self, job: Job) -> Result:
        """Wait for a turn, then for the vectors; 503 where the turn does not come."""
        self._jobs.append(job)
        self._wake.set()
        try:
            async with asyncio.timeout(self._settings.wait_seconds) as limit:
                await job.started.wait()
                limit.reschedule(None)
                return await job.done
        except TimeoutError as error:
            message = f"no turn within {self._settings.wait_seconds:g} s: the server is overloaded"
            raise ApiError(503, message, code="overloaded", headers={"Retry-After": "5"}) from error
        finally:
            job.done.cancel()

    async def _work(self) -> None:
        while self._jobs or not self.closing:
            if not self._jobs:
                self._wake.clear()
                await self._wake.wait()
                continue
            jobs = await self._next()
            if not jobs:
                continue
            for job in jobs:
                job.started.set()
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(self._thread, self._embed, jobs)
            for job, result in zip(jobs, results, strict=True):
                if job.done.done():
                    continue
                if isinstance(result, Exception):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)

    async def _next(self) -> list[Job]:
        """The oldest request whose client is there, and others like it up to `combined` texts."""
        first: tuple[str | None, int | None] | None = None
        jobs: list[Job] = []
        texts = 0
        for job in list(self._jobs):
            if job.done.done() or await job.gone():
                self._jobs.remove(job)
                if not job.done.done():
                    job.done.set_exception(
                        ApiError(499, "the client is gone")
                    )  # nginx's number; nobody reads it
                job.started.set()
                continue
            key = (job.prompt_name, job.dimensions)
            first = first or key
            if key == first and (not jobs or texts + len(job.texts) <= self._settings.combined):
                self._jobs.remove(job)
                jobs.append(job)
                texts += len(job.texts)
        return jobs

    def _embed(self, jobs: Sequence[Job]) -> list[Result | Exception]:
        """Embed all in one call; where that fails each alone, so that one bad text fails one request."""
        results: dict[int, Result | Exception] = {}
        counts: dict[int, int] = {}
        for index, job in enumerate(jobs):
            try:
                counts[index] = self._count(job)
            except Exception as error:  # noqa: BLE001  # whatever it is belongs to this request
                results[index] = error
        groups = [list(counts)]
        while groups:
            group = groups.pop()
            texts = [text for index in group for text in jobs[index].texts]
            if not group:
                continue
            try:
                job = jobs[group[0]]
                vectors = self._embedder.encode(texts, job.prompt_name, job.dimensions, truncate="silent")
            except Exception as error:  # noqa: BLE001  # likewise
                if len(group) == 1:
                    results[group[0]] = error
                groups += [[index] for index in group if len(group) > 1]
                continue
            ends = np.cumsum([len(jobs[index].texts) for index in group])
            for index, end in zip(group, ends, strict=True):
                results[index] = (vectors[end - len(jobs[index].texts) : end], counts[index])
        return [results[index] for index in range(len(jobs))]

    def _count(self, job: Job) -> int:
        """Tokens the model sees; a text that would be cut is refused unless the server may cut."""
        try:
            tokens = self._embedder.tokenize(job.texts, job.prompt_name)
        except TextError as error:
            raise ApiError(400, str(error), param="input") from error
        except ValueError as error:
            raise ApiError(400, str(error), param="prompt_name") from error
        for index, item in enumerate(tokens):
            if item.cut and not self._settings.truncate:
                longest = self._embedder.max_length
                raise ApiError(
                    400,
                    f"input[{index}] has {longest + item.cut} tokens, this model takes {longest}: send shorter texts, "
                    "or start the server with --truncate",
                    param="input",
                    code="context_length_exceeded",
                )
        return sum(len(item.ids) for item in tokens)
