"""Sequences that share steps write what they write alone; they join, leave and wait for each other; pages come back."""

import numpy as np
import pytest
from fake_decoder import FakeDecoder, greedy_tokens

from fastmixer.generate import Options, Scheduler
from fastmixer.generate.pages import PAGE

WINDOWS = [(0,), (0, 70), (100,), (0, 3)]
GREEDY = Options(max_new_tokens=20, temperature=0)


def prompt_of(rng, count, beginning=()):
    return np.concatenate([np.array(beginning, np.int64), rng.integers(0, 320, count - len(beginning))])


def make(windows=(0,), context=512, chunk=512, cache_tokens=None, **changes):
    return Scheduler(FakeDecoder(windows, context, **changes), chunk=chunk, cache_tokens=cache_tokens)


def run(scheduler, prompts, options=GREEDY):
    """The tokens of each, all submitted at once."""
    sequences = [scheduler.submit(prompt, options, index=index) for index, prompt in enumerate(prompts)]
    while scheduler.step():
        pass
    for sequence in sequences:
        assert sequence.error is None and sequence.is_finished
    assert scheduler.active == 0 and scheduler.pool.held == 0
    return [sequence.tokens for sequence in sequences]


@pytest.mark.parametrize("windows", WINDOWS)
def test_prompts_of_all_lengths_together_write_what_they_write_alone(rng, windows):
    scheduler = make(windows, chunk=100)
    prompts = [prompt_of(rng, count) for count in (1, 2, 63, 64, 65, 130, 300, 7)]
    expected = [greedy_tokens(FakeDecoder(windows, 512), prompt, 20) for prompt in prompts]
    assert run(scheduler, prompts) == expected
    # never padded: prompts and all but the last token of each, and nothing else
    assert scheduler.forwarded_tokens == sum(len(prompt) + 19 for prompt in prompts)
    assert max(tokens for _, tokens in scheduler.decoder.calls) <= 100 + len(prompts)


def test_steps_mix_prompts_and_writing(rng):
    scheduler = make(chunk=64)
    first = scheduler.submit(prompt_of(rng, 10), Options(max_new_tokens=30, temperature=0))
    scheduler.step()
    second = scheduler.submit(prompt_of(rng, 200), GREEDY)
    before = len(first.tokens)
    for _ in range(4):
        scheduler.step()
    assert len(first.tokens) == before + 4 and len(second.tokens) == 1
    assert scheduler.decoder.calls[-4:] == [(2, 65), (2, 65), (2, 65), (2, 9)]
    while scheduler.step():
        pass


def test_prompts_take_turns(rng):
    """A short prompt does not wait until a long one has been read."""
    scheduler = make(chunk=64)
    long = scheduler.submit(prompt_of(rng, 500), GREEDY)
    scheduler.step()
    short = scheduler.submit(prompt_of(rng, 20), GREEDY)
    scheduler.step()
    scheduler.step()
    assert short.tokens and not long.tokens
    while scheduler.step():
        pass


def test_sequences_join_and_leave(rng):
    prompts = [prompt_of(rng, count) for count in (30, 70, 5, 40)]
    lengths = [3, 25, 8, 14]
    scheduler = make()
    sequences = []
    for place, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        sequences.append(scheduler.submit(prompt, Options(max_new_tokens=length, temperature=0), index=place))
        for _ in range(5):
            scheduler.step()
    while scheduler.step():
        pass
    for sequence, prompt, length in zip(sequences, prompts, lengths, strict=True):
        assert sequence.tokens == greedy_tokens(FakeDecoder((0,), 512), prompt, length)
    assert {count for count, _ in scheduler.decoder.calls} == {1, 2, 3} and scheduler.pool.held == 0


# ---- beginnings that are known ----


@pytest.mark.parametrize("windows", WINDOWS)
@pytest.mark.parametrize("shared", [0, 63, 64, 65, 127, 128, 200, 256])
def test_a_known_beginning_is_not_computed_again(rng, windows, shared):
    scheduler = make(windows)
    first = prompt_of(rng, 256)
    run(scheduler, [first])
    before = scheduler.forwarded_tokens
    second = prompt_of(rng, 260, first[:shared])
    sequence = scheduler.submit(second, GREEDY)
    while scheduler.step():
        pass
    assert sequence.reused_tokens == shared // PAGE * PAGE
    assert scheduler.forwarded_tokens - before == 260 - sequence.reused_tokens + 19
    assert sequence.tokens == greedy_tokens(FakeDecoder(windows, 512), second, 20)


@pytest.mark.parametrize("windows", WINDOWS)
def test_the_next_turn_of_a_chat_computes_only_what_is_new(rng, windows):
    scheduler = make(windows)
    ids = prompt_of(rng, 50)
    for turn in range(5):
        before, known = scheduler.forwarded_tokens, (len(ids) - 6) // PAGE * PAGE if turn else 0
        [tokens] = run(scheduler, [ids])
        assert tokens == greedy_tokens(FakeDecoder(windows, 512), ids, 20)
        assert scheduler.forwarded_tokens - before == len(ids) - known + 19
        ids = np.concatenate([ids, tokens, rng.integers(0, 320, 5)])


def test_one_prompt_many_times_is_read_once(rng):
    scheduler = make(chunk=64)
    prompt = prompt_of(rng, 200)
    tokens = run(scheduler, [prompt] * 5)
    assert len(set(map(tuple, tokens))) == 1
    assert scheduler.forwarded_tokens == 200 + 4 * (200 - 192) + 5 * 19


def test_prompts_that_begin_alike_wait_for_the_first(rng):
    scheduler = make(chunk=64)
    beginning = prompt_of(rng, 130)
    prompts = [prompt_of(rng, 150, beginning), prompt_of(rng, 140, beginning), prompt_of(rng, 100)]
    tokens = run(scheduler, prompts)
    assert tokens == [greedy_tokens(FakeDecoder((0,), 512), prompt, 20) for prompt in prompts]
    assert scheduler.forwarded_tokens == 150 + 140 - 128 + 100 + 3 * 19


def test_when_the_first_is_cancelled_the_next_reads_on(rng):
    scheduler = make(chunk=64)
    prompt = prompt_of(rng, 300)
    first, second = scheduler.submit(prompt, GREEDY), scheduler.submit(prompt, GREEDY)
    for _ in range(2):
        scheduler.step()
    assert scheduler.decoder.calls == [(1, 64), (1, 64)]
    scheduler.cancel(first)
    while scheduler.step():
        pass
    assert second.tokens == greedy_tokens(FakeDecoder((0,), 512), prompt, 20) and second.reused_tokens == 128


def test_forget(rng):
    scheduler = make()
    prompt = prompt_of(rng, 100)
    run(scheduler, [prompt])
    scheduler.forget()
    before = scheduler.forwarded_tokens
    run(scheduler, [prompt])
    assert scheduler.forwarded_tokens - before == 119


# ---- room ----


@pytest.mark.parametrize("windows", [(0,), (0, 70), (100,)])
def test_those_that_find_no_room_wait(rng, windows):
    scheduler = make(windows, context=256, cache_tokens=256, chunk=64)
    prompts = [prompt_of(rng, count) for count in (200, 100, 150, 60, 230, 10, 90)]
    assert run(scheduler, prompts) == [greedy_tokens(FakeDecoder(windows, 256), prompt, 20) for prompt in prompts]
    assert max(count for count, _ in scheduler.decoder.calls) > 1


def test_old_pages_make_room(rng):
    scheduler = make(context=256, cache_tokens=256)
    for _ in range(8):
        prompt = prompt_of(rng, 150)
        assert run(scheduler, [prompt]) == [greedy_tokens(FakeDecoder((0,), 256), prompt, 20)]
    assert scheduler.pool.remembered <= 4


def test_a_beginning_that_is_shared_takes_its_room_once(rng):
    """Four of 200 + 20 tokens fit into 6 pages if their first 192 are the same."""
    scheduler = make(context=256, cache_tokens=7 * PAGE)
    prompt = prompt_of(rng, 200)
    run(scheduler, [prompt] * 4)
    assert max(count for count, _ in scheduler.decoder.calls) == 4


@pytest.mark.parametrize(("windows", "pages"), [((70,), 5), ((0, 70), 5)])
def test_a_window_gives_back_what_it_has_passed(rng, windows, pages):
    scheduler = make(windows, context=1024, chunk=128)
    sequence = scheduler.submit(prompt_of(rng, 900), Options(max_new_tokens=40, temperature=0))
    most = 0
    while scheduler.step():
        most = max(most, len(sequence.held(len(windows) - 1)))
    assert most <= pages and scheduler.pool.held == 0
    assert scheduler.pool.sizes[-1] < 1024 * 4 // PAGE


def test_the_cache_is_the_context_if_it_is_smaller(rng):
    scheduler = make(context=512, cache_tokens=130)
    assert (scheduler.context, scheduler.cache_tokens) == (128, 128)
    sequence = scheduler.submit(prompt_of(rng, 120), GREEDY)
    while scheduler.step():
        pass
    assert sequence.finish_reason == "length" and len(sequence.tokens) == 9
    with pytest.raises(ValueError, match="^generate: prompt 0 has 129 tokens, more than the model's context of 128$"):
        scheduler.submit(prompt_of(rng, 129), GREEDY)


def test_too_little_memory_is_an_error_before_any_work(monkeypatch):
    monkeypatch.setattr("fastmixer.generate.memory.available_memory", lambda: 1000)
    monkeypatch.setattr("fastmixer.generate.scheduler.available_memory", lambda: 1000)
    with pytest.raises(
        MemoryError, match=r"^a cache of 512 tokens in bfloat16 takes 0\.00 GB, but 0\.00 GB are available; ask"
    ):
        make(context=512)


def test_the_cache_grows_with_the_memory(monkeypatch):
    for available, tokens in [(10**9, 4 * 512), (8 * 6400 * 8, 2 * 512), (8 * 6400 * 2, 512), (None, 4 * 512)]:
        monkeypatch.setattr("fastmixer.generate.memory.available_memory", lambda value=available: value)
        monkeypatch.setattr("fastmixer.generate.scheduler.available_memory", lambda value=available: value)
        assert make(context=512).cache_tokens == tokens


# ---- numbers that do not depend on others ----


def details(scheduler, prompts, **options):
    options = Options(max_new_tokens=12, logprobs=5, seed=1, **options)
    sequences = [scheduler.submit(prompt, options, index=index) for index, prompt in prompts]
    while scheduler.step():
        pass
    return {index: one.logprobs for (index, _), one in zip(prompts, sequences, strict=True)}


@pytest.mark.parametrize("speculative", [0, 3])
def test_deterministic_numbers_are_those_of_a_sequence_alone_to_the_bit(rng, speculative):
    prompts = list(enumerate(prompt_of(rng, count) for count in (3, 100, 200, 90)))
    prompts.append((4, prompts[2][1]))
    alone = {}
    for one in prompts:
        alone |= details(make(noise=1e-3, chunk=64), [one], deterministic=True, speculative=speculative)
    scheduler = make(noise=1e-3, chunk=64)
    assert details(scheduler, prompts, deterministic=True, speculative=speculative) == alone
    other = scheduler.submit(prompts[1][1], Options(max_new_tokens=40))
    assert (
        details(scheduler, prompts, deterministic=True, speculative=speculative) == alone
    )  # in a used cache, beside another
    assert other.is_finished
    used = make(noise=1e-3, chunk=64)
    details(used, prompts)  # pages that company has left its mark on
    assert details(used, prompts, deterministic=True, speculative=speculative) == alone
    if not speculative:  # the noise is real: without the option, company changes numbers
        mixed = details(make(noise=1e-3, chunk=64), prompts)
        assert mixed != alone


def test_random_numbers_depend_on_seed_and_place_alone(rng):
    prompts = [prompt_of(rng, count) for count in (5, 6, 7)]
    options = Options(max_new_tokens=10, seed=5)
    together = run(make(), prompts, options)
    for index, prompt in enumerate(prompts):
        scheduler = make()
        sequence = scheduler.submit(prompt, options, index=index)
        scheduler.finish(sequence)
        assert sequence.tokens == together[index]
    assert run(make(), [prompts[0]] * 2, options)[0] == together[0] != run(make(), [prompts[0]] * 2, options)[1]


# ---- endings ----


def test_cancelled_at_any_time(rng):
    for steps in (0, 1, 3, 6):
        scheduler = make(chunk=64)
        sequences = [scheduler.submit(prompt_of(rng, 150), GREEDY) for _ in range(3)]
        for _ in range(steps):
            scheduler.step()
        scheduler.cancel(sequences[1])
        assert sequences[1].is_finished and sequences[1].finish_reason == ""
        scheduler.cancel(sequences[1])
        while scheduler.step():
            pass
        assert [len(one.tokens) for one in sequences][::2] == [20, 20] and scheduler.pool.held == 0


def test_listeners_hear_of_every_step_and_of_the_end(rng):
    scheduler, heard = make(chunk=64), []
    sequences = [scheduler.submit(prompt_of(rng, 100), GREEDY) for _ in range(2)]
    for place, sequence in enumerate(sequences):
        sequence.listener = lambda place=place: heard.append((place, sequences[place].is_finished))
    for _ in range(4):
        scheduler.step()
    assert heard == [(0, False), (1, False)] * 3  # reading in turns, then together
    scheduler.cancel(sequences[1])
    assert heard[-1] == (1, True)
    scheduler.finish(sequences[0])
    assert heard[-1] == (0, True)


def test_logits_that_are_no_numbers_fail_their_own_sequence_alone(rng):
    scheduler = make()
    decoder = scheduler.decoder
    forward = decoder.forward

    def spoiled(*given):
        logits, _ = forward(*given)
        if len(decoder.calls) == 4:
            logits[1] = np.nan
        return logits, None

    decoder.forward = spoiled
    sequences = [scheduler.submit(prompt_of(rng, 10), GREEDY, index=index) for index in range(3)]
    while scheduler.step():
        pass
    assert [len(one.tokens) for one in sequences] == [20, 3, 20] and scheduler.pool.held == 0
    with pytest.raises(ValueError, match="^sample: logits must hold neither NaN"):
        scheduler.finish(sequences[1])


def test_a_decoder_that_fails_fails_those_that_were_in_the_call(rng):
    scheduler = make()

    def fail(count):
        if count == 3:
            raise RuntimeError("the decoder failed")

    scheduler.decoder.before_forward = fail
    sequence = scheduler.submit(prompt_of(rng, 100), GREEDY)
    with pytest.raises(RuntimeError, match="^the decoder failed$"):
        scheduler.finish(sequence)
    assert scheduler.pool.held == 0
    scheduler.decoder.before_forward = lambda count: None
    assert len(run(scheduler, [prompt_of(rng, 100)])[0]) == 20


def test_prompts_that_are_wrong():
    scheduler = make()
    with pytest.raises(ValueError, match="^generate: prompt 2 is empty; it must have at least one token$"):
        scheduler.submit(np.empty(0, np.int64), GREEDY, index=2)
    with pytest.raises(IndexError, match=r"^generate: prompt 0\[1\] = 320 is out of range; expected 0\.\.319$"):
        scheduler.submit(np.array([1, 320]), GREEDY)
    with pytest.raises(ValueError, match=r"^generate: stop names token 320, but ids are 0\.\.319$"):
        scheduler.submit(np.array([1]), Options(stop=[320]))
    with pytest.raises(
        ValueError, match="^generate: stop strings and streams of text need a tokenizer; the model has none$"
    ):
        scheduler.submit(np.array([1]), Options(stop="a"))
    assert scheduler.active == 0
