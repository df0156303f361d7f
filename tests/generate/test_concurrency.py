"""Threads, coroutines and Ctrl-C: everybody gets what they would get alone, and the model stays usable."""

import asyncio
import threading
import time

import pytest

OPTIONS = {"max_new_tokens": 20, "temperature": 0, "ignore_eos": True}
PROMPTS = ["Alice was", "th", "The Rabbit said", "x" * 30, "Off with her head", "Alice was beginning"]


@pytest.fixture
def alone(make_model):
    """What each prompt gives on its own."""
    return [make_model().generate(prompt, **OPTIONS) for prompt in PROMPTS]


def in_threads(calls, timeout=30):
    """The results of functions, each called in a thread of its own."""
    results = [None] * len(calls)

    def call(place, function):
        try:
            results[place] = function()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            results[place] = error

    threads = [threading.Thread(target=call, args=item, daemon=True) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), "a thread waits for ever"
    return results


# ---- threads ----


def test_threads_share_one_model(model, alone):
    calls = [lambda prompt=prompt: model.generate(prompt, **OPTIONS) for prompt in PROMPTS]
    calls += [lambda prompt=prompt: "".join(model.stream(prompt, **OPTIONS)) for prompt in PROMPTS]
    assert in_threads(calls) == alone * 2


def test_calls_of_several_threads_go_together(model):
    barrier = threading.Barrier(3)
    model.decoder.before_forward = lambda count: time.sleep(0.005)  # time for the others to come

    def call(prompt):
        barrier.wait()
        return model.generate(prompt, **OPTIONS)

    in_threads([lambda prompt=prompt: call(prompt) for prompt in PROMPTS[:3]])
    assert max(count for count, _ in model.decoder.calls) == 3 and len(model.decoder.calls) < 60


def test_a_thread_does_not_wait_for_the_end_of_another(model):
    """Pieces of a stream come while another thread makes all the steps."""
    model.decoder.before_forward = lambda count: time.sleep(0.002)
    order = []

    def long():
        model.generate("Alice", **{**OPTIONS, "max_new_tokens": 200})
        order.append("long")

    def short():
        while not model.decoder.calls:
            time.sleep(0.001)
        for _ in model.stream("th", **{**OPTIONS, "max_new_tokens": 5}):
            pass
        order.append("short")

    in_threads([long, short])
    assert order == ["short", "long"]


def test_one_thread_fails_alone(model, alone):
    def wrong():
        return model.generate("x" * 400, **OPTIONS)

    results = in_threads(
        [lambda: model.generate(PROMPTS[0], **OPTIONS), wrong, lambda: model.generate(PROMPTS[2], **OPTIONS)]
    )
    assert isinstance(results[1], ValueError) and [results[0], results[2]] == [alone[0], alone[2]]


def test_resetting_the_cache_while_others_write(model, alone):
    model.decoder.before_forward = lambda count: time.sleep(0.001)
    calls = [lambda prompt=prompt: model.generate(prompt, **OPTIONS) for prompt in PROMPTS]
    calls.append(lambda: [model.reset_cache() for _ in range(10)] and None)
    assert in_threads(calls) == [*alone, None]


# ---- Ctrl-C ----


def interrupt_at(model, when):
    def before_forward(count):
        if count == when:
            model.decoder.before_forward = lambda count: None
            raise KeyboardInterrupt

    model.decoder.before_forward = before_forward


@pytest.mark.parametrize("when", [0, 1, 5])
def test_ctrl_c_leaves_the_model_usable(model, alone, when):
    interrupt_at(model, when)
    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPTS, **OPTIONS)
    assert model.scheduler.active == 0 and model.scheduler.pool.held == 0
    assert model.generate(PROMPTS, **OPTIONS) == alone


def test_ctrl_c_ends_a_stream(model, alone):
    stream = model.stream(PROMPTS[0], **OPTIONS)
    next(stream)
    interrupt_at(model, len(model.decoder.calls) + 1)
    with pytest.raises(KeyboardInterrupt):
        list(stream)
    assert model.scheduler.active == 0 and model.scheduler.pool.held == 0
    assert list(stream) == [] and model.generate(PROMPTS[0], **OPTIONS) == alone[0]


def test_ctrl_c_of_one_thread_leaves_the_others_alone(model, alone):
    """Whoever steps is interrupted, all others write on."""
    model.decoder.before_forward = lambda count: time.sleep(0.003)
    barrier = threading.Barrier(3)

    def call(prompt):
        barrier.wait()
        time.sleep(0.01)
        return model.generate(prompt, **OPTIONS)

    def set_up():
        barrier.wait()
        interrupt_at(model, 8)

    results = in_threads([lambda: call(PROMPTS[0]), lambda: call(PROMPTS[2]), set_up])[:2]
    interrupted = [isinstance(result, KeyboardInterrupt) for result in results]
    assert sorted(interrupted) == [False, True] or not any(interrupted)  # or it came when nobody wrote any more
    for result, expected in zip(results, [alone[0], alone[2]], strict=True):
        assert isinstance(result, KeyboardInterrupt) or result == expected
    assert any(interrupted)


@pytest.mark.parametrize("place", ["accept", "keep_pages", "make_room", "release"])
@pytest.mark.parametrize("when", [1, 2, 7])
def test_ctrl_c_in_the_middle_of_bookkeeping_loses_no_page(model, alone, monkeypatch, place, when):
    from fastmixer.generate.sequence import Sequence

    inner, count = getattr(Sequence, place), 0

    def interrupted(self, *given):
        nonlocal count
        count += 1
        if count == when:
            if place in ("make_room", "release"):  # half way
                if place == "make_room":
                    model.scheduler.pool.take(0)
                raise KeyboardInterrupt
            inner(self, *given)
            raise KeyboardInterrupt
        return inner(self, *given)

    monkeypatch.setattr(Sequence, place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPTS * 2, **OPTIONS)
    monkeypatch.undo()
    model.scheduler.step()
    assert model.scheduler.active == 0 and model.scheduler.pool.held == 0
    assert model.generate(PROMPTS, **OPTIONS) == alone


# ---- coroutines ----


def test_coroutines_share_one_model(model, alone):
    async def stream(prompt):
        return "".join([piece async for piece in model.astream(prompt, **OPTIONS)])

    async def main():
        written = [model.agenerate(prompt, **OPTIONS) for prompt in PROMPTS]
        return await asyncio.gather(*written, *map(stream, PROMPTS), model.agenerate(PROMPTS, **OPTIONS))

    results = asyncio.run(main())
    assert results == [*alone, *alone, alone]
    assert max(count for count, _ in model.decoder.calls) > 6
    time.sleep(0.05)
    assert "fastmixer-generate" not in {thread.name for thread in threading.enumerate()}


def test_the_event_loop_is_free_meanwhile(model):
    model.decoder.before_forward = lambda count: time.sleep(0.02)
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.002)

    async def main():
        ticker = asyncio.create_task(tick())
        await model.agenerate("Alice", **{**OPTIONS, "max_new_tokens": 10})
        ticker.cancel()

    asyncio.run(main())
    assert ticks > 20


def wait_until_idle(model):
    for _ in range(200):
        if model.scheduler.active == 0 and model.scheduler.pool.held == 0:
            return
        time.sleep(0.01)
    raise AssertionError("a sequence goes on though nobody waits for it")


@pytest.mark.parametrize("kind", ["agenerate", "astream"])
def test_cancelling_a_task_stops_its_sequence(make_model, alone, kind):
    model = make_model(context=4096)
    model.decoder.before_forward = lambda count: time.sleep(0.002)
    options = {**OPTIONS, "max_new_tokens": 3000}

    kept = model.astream("Alice", **options)

    async def stream():
        async for _ in kept:
            pass

    async def main():
        task = asyncio.create_task(stream() if kind == "astream" else model.agenerate("Alice", **options))
        await asyncio.sleep(0.05)
        assert model.scheduler.pool.held
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_until_idle, model)

    asyncio.run(main())
    assert len(model.decoder.calls) < 500 and model.generate(PROMPTS[0], **OPTIONS) == alone[0]


def test_an_async_stream_that_is_left_early_ends(make_model):
    model = make_model(context=4096)

    async def main():
        async with model.astream("Alice", **{**OPTIONS, "max_new_tokens": 3000}) as stream:
            await anext(stream)
        assert [piece async for piece in stream] == []

    asyncio.run(main())
    wait_until_idle(model)
    assert len(model.decoder.calls) < 1000


def test_a_loop_that_has_closed_stops_its_sequences(make_model):
    model = make_model(context=4096)
    model.decoder.before_forward = lambda count: time.sleep(0.001)
    kept = []

    async def main():
        kept.append(model.astream("Alice", **{**OPTIONS, "max_new_tokens": 3000}))
        await anext(kept[0])

    asyncio.run(main())
    wait_until_idle(model)
    assert len(model.decoder.calls) < 1000
    kept.clear()


def test_a_coroutine_does_not_wait_for_a_sequence_that_another_has_cancelled(make_model):
    model = make_model(context=4096)
    model.decoder.before_forward = lambda count: time.sleep(0.001)

    async def main():
        stream = model.astream("Alice", **{**OPTIONS, "max_new_tokens": 3000})
        await anext(stream)
        model.scheduler.cancel(stream._sequence)
        return [piece async for piece in stream]

    assert len(asyncio.run(asyncio.wait_for(main(), 10))) < 1000


def test_errors_reach_the_coroutine_that_waits(model):
    def fail(count):
        raise RuntimeError("the decoder failed")

    async def stream():
        return [piece async for piece in model.astream("Alice", **OPTIONS)]

    model.decoder.before_forward = fail
    for make in (stream, lambda: model.agenerate("Alice", **OPTIONS)):
        with pytest.raises(RuntimeError, match="^the decoder failed$"):
            asyncio.run(make())
    with pytest.raises(ValueError, match="^generate: prompt 0 is empty"):
        asyncio.run(model.agenerate(""))
    with pytest.raises(ValueError, match="^stream: prompt is empty"):
        model.astream("")


def test_threads_and_coroutines_together(model, alone):
    async def main():
        return await asyncio.gather(*(model.agenerate(prompt, **OPTIONS) for prompt in PROMPTS))

    calls = [
        lambda: asyncio.run(main()),
        *(lambda prompt=prompt: model.generate(prompt, **OPTIONS) for prompt in PROMPTS),
    ]
    results = in_threads(calls)
    assert results == [alone, *alone]
