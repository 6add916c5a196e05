"""Many callers, one model: what they ask at the same time is answered together, and what was answered is kept."""

import asyncio
import contextlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class Busy(Exception):
    """Too much is waiting; after `retry_s` it might have been done."""

    def __init__(self, what: str, retry_s: float):
        super().__init__(f"too many {what} are waiting; come again in {math.ceil(retry_s)} s")
        self.headers = {"retry-after": str(math.ceil(retry_s))}


class Kept(Generic[T]):
    """The answers to the latest questions; who asks what is just being answered waits for that answer."""

    def __init__(self, most: int):
        self.most = most
        self.answers: OrderedDict[Hashable, asyncio.Future[T]] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self.answers

    async def __call__(self, key: Hashable, answer: Callable[[], Awaitable[T]]) -> T:
        if key not in self.answers:
            self.answers[key] = future = asyncio.ensure_future(answer())
            future.add_done_callback(lambda done: self._forget_failure(key, done))
            while len(self.answers) > self.most:
                self.answers.popitem(last=False)
        self.answers.move_to_end(key)
        return await asyncio.shield(self.answers[key])  # a caller that leaves takes nobody's answer with it

    def _forget_failure(self, key: Hashable, done: "asyncio.Future[T]") -> None:
        if (done.cancelled() or done.exception() is not None) and self.answers.get(key) is done:
            del self.answers[key]


def pool(name: str, threads: int, cores: int = 1) -> ThreadPoolExecutor:
    """Threads whose tensors take `cores` cores each; where many work at once, more than one costs more than it gains.

    Torch counts them for each thread, and a thread that does not say has what another one said last.
    """
    return ThreadPoolExecutor(threads, name, torch.set_num_threads, (cores,))


class Lane:
    """Threads for one kind of work, which is refused when too much of it waits."""

    def __init__(self, what: str, most: int, time_limit_s: float, pool: ThreadPoolExecutor):
        self.what, self.most, self.time_limit_s, self.pool = what, most, time_limit_s, pool
        self.waiting, self.mean_s = 0, 1.0

    async def __call__(self, work: Callable[..., T], *given: Any) -> T:
        """What `work` returns.

        Raises:
            Busy: too much waits.
            TimeoutError: it was not done in time; what has begun ends all the same, and counts until then.
        """
        if self.waiting >= self.most:
            raise Busy(self.what, max(1.0, self.waiting * self.mean_s))
        loop, start = asyncio.get_running_loop(), time.monotonic()
        self.waiting += 1
        job = self.pool.submit(work, *given)
        job.add_done_callback(lambda _: _tell(loop, self._done, start))
        async with asyncio.timeout(self.time_limit_s):
            return await asyncio.wrap_future(job)

    def _done(self, start: float) -> None:
        self.mean_s = 0.9 * self.mean_s + 0.1 * (time.monotonic() - start) / self.waiting
        self.waiting -= 1

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


class Batcher(Generic[T]):
    """Rows of many callers, one forward after the other.

    While the model is busy rows gather; once it is free it takes up to `batch` of them, and where there are fewer it
    waits for `wait_s`.

    Args:
        free: held by the batcher whose forward is running, where several share a model.
        observe: is told the rows and the seconds of each forward.
    """

    def __init__(
        self,
        forward: Callable[[list[T]], Any],
        pool: ThreadPoolExecutor,
        free: asyncio.Lock,
        *,
        batch: int,
        wait_s: float,
        observe: Callable[[int, float], None],
    ):
        self.forward, self.pool, self.free, self.observe = forward, pool, free, observe
        self.batch, self.wait_s = batch, wait_s
        self.queue: deque[tuple[T, asyncio.Future[Any]]] = deque()
        self.some = asyncio.Event()

    async def __call__(self, item: T) -> Any:
        """The item's row."""
        future = asyncio.get_running_loop().create_future()
        self.queue.append((item, future))
        self.some.set()
        return await future

    async def run(self) -> None:
        """Serves until cancelled."""
        while True:
            await self.some.wait()
            if len(self.queue) < self.batch and not self.free.locked():
                await asyncio.sleep(self.wait_s)
            async with self.free:
                taken = [self.queue.popleft() for _ in range(min(self.batch, len(self.queue)))]
                if not self.queue:
                    self.some.clear()
                await self._serve(taken)

    async def _serve(self, taken: list[tuple[T, "asyncio.Future[Any]"]]) -> None:
        start = time.perf_counter()
        try:
            rows = await asyncio.get_running_loop().run_in_executor(
                self.pool, self.forward, [item for item, _ in taken]
            )
        except Exception as error:  # theirs to raise: the batcher goes on
            rows = [error] * len(taken)
        self.observe(len(taken), time.perf_counter() - start)
        for (_, future), row in zip(taken, rows):
            if future.cancelled():
                continue
            future.set_exception(row) if isinstance(row, Exception) else future.set_result(row)


def _tell(loop: asyncio.AbstractEventLoop, *call: Any) -> None:
    with contextlib.suppress(RuntimeError):  # the server closed while work was being done
        loop.call_soon_threadsafe(*call)
