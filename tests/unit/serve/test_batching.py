import asyncio
import threading
import time

import pytest

from openvocab.serve.batching import Batcher, Busy, Kept, Lane, pool


def test_what_is_asked_by_many_at_once_is_answered_once():
    asked = []

    async def main():
        kept = Kept(8)

        async def answer():
            asked.append(1)
            await asyncio.sleep(0.01)
            return "yes"

        assert await asyncio.gather(*(kept("question", answer) for _ in range(5))) == ["yes"] * 5
        assert await kept("question", answer) == "yes"

    asyncio.run(main())
    assert len(asked) == 1


def test_a_caller_who_leaves_takes_nobodys_answer_with_him():
    async def main():
        kept = Kept(8)

        async def answer():
            await asyncio.sleep(0.02)
            return "yes"

        first = asyncio.ensure_future(kept("question", answer))
        second = asyncio.ensure_future(kept("question", answer))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == "yes"

    asyncio.run(main())


def test_failures_are_not_kept_and_old_answers_leave():
    async def main():
        kept, outcomes = Kept(2), iter([ValueError("no"), "yes"])

        async def answer():
            outcome = next(outcomes)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        with pytest.raises(ValueError, match="no"):
            await kept("a", answer)
        assert await kept("a", answer) == "yes"

        async def other():
            return "other"

        for key in "bc":
            await kept(key, other)
        assert "a" not in kept
        assert "c" in kept

    asyncio.run(main())


async def empty(lane):
    while lane.waiting:
        await asyncio.sleep(0.001)


def test_a_full_lane_refuses_and_says_when_to_come_again():
    async def main():
        lane, held = Lane("questions", 2, 60.0, pool("questions", 1)), threading.Event()
        first = [asyncio.ensure_future(lane(held.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Busy, match="too many questions") as refused:
            await lane(held.wait)
        assert int(refused.value.headers["retry-after"]) >= 1
        held.set()
        await asyncio.gather(*first)
        await empty(lane)
        assert await lane(lambda: 3) == 3
        lane.close()

    asyncio.run(main())


def test_work_that_is_too_slow_counts_until_it_ends():
    async def main():
        lane, held = Lane("questions", 1, 0.01, pool("questions", 1)), threading.Event()
        with pytest.raises(TimeoutError):
            await lane(held.wait)
        with pytest.raises(Busy):
            await lane(held.wait)
        held.set()
        await empty(lane)
        lane.time_limit_s = 60.0
        assert await lane(lambda: 3) == 3
        lane.close()

    asyncio.run(main())


def test_rows_of_many_callers_share_a_forward():
    batches = []

    def forward(items):
        batches.append(len(items))
        time.sleep(0.01)
        return [item * 10 for item in items]

    async def main():
        with pool("model", 1) as threads:
            batcher = Batcher(forward, threads, asyncio.Lock(), batch=8, wait_s=0.005, observe=lambda *_: None)
            runs = asyncio.ensure_future(batcher.run())
            assert await asyncio.gather(*(batcher(row) for row in range(20))) == [row * 10 for row in range(20)]
            runs.cancel()

    asyncio.run(main())
    assert batches == [8, 8, 4]


def test_a_forward_that_fails_fails_its_rows_only():
    def forward(items):
        if "bad" in items:
            raise RuntimeError("broken")
        return items

    async def main():
        with pool("model", 1) as threads:
            batcher = Batcher(forward, threads, asyncio.Lock(), batch=1, wait_s=0.0, observe=lambda *_: None)
            runs = asyncio.ensure_future(batcher.run())
            found = await asyncio.gather(batcher("bad"), batcher("good"), return_exceptions=True)
            assert str(found[0]) == "broken"
            assert found[1] == "good"
            runs.cancel()

    asyncio.run(main())
