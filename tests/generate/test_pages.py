"""Pages find their way back, beginnings are found again, and what was let go longest ago is used first."""

import numpy as np
import pytest

from fastmixer.generate.pages import PAGE, PagePool, first_visible, most_pages


def block_ids(*names):
    """Blocks of 64 equal ids, one after another."""
    return np.repeat(np.array(names, np.int64), PAGE)


def write(pool, ids, parent=None):
    """Take and publish pages for all full blocks of ids; the pages of each block."""
    taken = []
    for start in range(0, len(ids) // PAGE * PAGE, PAGE):
        taken.append([pool.take(group) for group in range(len(pool.sizes))])
        parent = pool.publish(parent, ids[start : start + PAGE], taken[-1])
    return taken


def let_go(pool, taken):
    for pages in reversed(taken):
        for group, page in enumerate(pages):
            pool.release(group, page)


def test_pages_are_taken_once_and_given_back():
    pool = PagePool([3], [0])
    pages = [pool.take(0) for _ in range(3)]
    assert sorted(pages) == [0, 1, 2] and pool.available(0) == 0 and pool.held == 3
    pool.hold(0, pages[1])
    for page in pages:
        pool.release(0, page)
    assert pool.held == 1 and pool.is_held(0, pages[1]) and not pool.is_held(0, pages[0])
    pool.release(0, pages[1])
    assert pool.held == 0 and pool.remembered == 0


def test_beginnings_are_found_up_to_the_last_full_page_before_the_end():
    pool = PagePool([8], [0])
    taken = write(pool, block_ids(1, 2, 3))
    for ids, count in [
        (block_ids(1, 2, 3, 4), 3),
        (block_ids(1, 2, 3), 2),  # one token at least has to be computed
        (block_ids(1, 2, 3)[:-1], 2),
        (np.append(block_ids(1, 2, 3), 9), 3),
        (block_ids(1, 3, 2), 1),
        (block_ids(2, 3), 0),
        (block_ids(1)[:5], 0),
    ]:
        found = pool.find(ids)
        assert [block.pages for block in found] == taken[:count]
    let_go(pool, taken)
    assert pool.held == 0 and len(pool.find(block_ids(1, 2, 3, 4))) == 3  # nobody holds them, they are still known


def test_the_end_of_what_was_let_go_longest_ago_is_used_first():
    pool = PagePool([5], [0])
    first, second = write(pool, block_ids(1, 2)), write(pool, block_ids(3, 4))
    let_go(pool, first)
    let_go(pool, second)
    pool.take(0)  # the one that was never used
    assert len(pool.find(block_ids(1, 2, 0))) == 2
    assert pool.take(0) == first[1][0]
    assert (len(pool.find(block_ids(1, 2, 0))), len(pool.find(block_ids(3, 4, 0)))) == (1, 2)
    pool.hold(0, first[0][0])  # used again: now the others are older
    assert [pool.take(0), pool.take(0)] == [second[1][0], second[0][0]]
    assert (len(pool.find(block_ids(1, 2, 0))), len(pool.find(block_ids(3, 4, 0)))) == (1, 0)


def test_a_block_that_two_wrote_is_known_once():
    pool = PagePool([6], [0])
    first = write(pool, block_ids(1, 2))
    second = write(pool, block_ids(1, 2))
    assert pool.remembered == 2 and [block.pages for block in pool.find(block_ids(1, 2, 0))] == first
    let_go(pool, second)
    assert pool.available(0) == 4
    let_go(pool, first)
    assert pool.held == 0 and pool.remembered == 2


def test_a_window_needs_only_its_own_pages():
    pool = PagePool([4, 4], [0, 100])
    taken = write(pool, block_ids(1, 2, 3))
    pool.release(1, taken[0][1])  # the window has passed it
    assert len(pool.find(block_ids(1, 2, 3, 4))) == 3
    pool.take(1)
    assert pool.take(1) == taken[0][1]  # needed for something else
    # at 192 positions from 93 on are seen, at 128 those from 29 on: the first page
    assert len(pool.find(block_ids(1, 2, 3, 4))) == 3
    assert len(pool.find(block_ids(1, 2, 4))) == 0


def test_blocks_without_pages_and_followers_are_forgotten():
    pool = PagePool([2], [50])
    for name in range(50):
        let_go(pool, write(pool, block_ids(name, name)))
    assert pool.remembered == 2 and len(pool._blocks) <= 4


def test_forget():
    pool = PagePool([4], [0])
    held, other = write(pool, block_ids(1)), write(pool, block_ids(2))
    let_go(pool, other)
    pool.forget()
    assert pool.remembered == 0 and pool.held == 1 and pool.available(0) == 3 and not pool.find(block_ids(1, 2))
    let_go(pool, held)
    assert sorted(pool.take(0) for _ in range(4)) == [0, 1, 2, 3]


def test_recount_after_an_interruption():
    pool = PagePool([6], [0])
    kept, idle = write(pool, block_ids(1)), write(pool, block_ids(2))
    let_go(pool, idle)
    pool.take(0)  # and nobody wrote down who took it
    pool.hold(0, kept[0][0])
    pool.recount([[kept[0][0]]])
    assert pool.held == 1 and pool.available(0) == 5
    pool.release(0, kept[0][0])
    assert pool.held == 0 and pool.remembered == 2
    assert sorted(pool.take(0) for _ in range(6)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_used_twice(seed):
    """Random sequences over few pages: who finds a block finds what was written for these ids."""
    rng = np.random.default_rng(seed)
    pool = PagePool([12], [0])
    content = {}  # page -> the ids up to its end
    holders = []
    reused = 0
    for _ in range(600):
        if holders and (pool.available(0) < 4 or rng.random() < 0.4):
            let_go(pool, holders.pop(int(rng.integers(len(holders)))))
            continue
        ids = block_ids(*rng.integers(0, 2, int(rng.integers(1, 4))))
        found = pool.find(np.append(ids, 0))
        taken = []
        for place, block in enumerate(found):
            assert content[block.pages[0]] == ids[: (place + 1) * PAGE].tobytes()
            pool.hold(0, block.pages[0])
            taken.append(list(block.pages))
        reused += len(found)
        parent = found[-1] if found else None
        for place in range(len(found), len(ids) // PAGE):
            page = pool.take(0)
            assert not any([page] in pages for pages in [*holders, taken])
            content[page] = ids[: (place + 1) * PAGE].tobytes()
            taken.append([page])
            parent = pool.publish(parent, ids[place * PAGE : (place + 1) * PAGE], [page])
        holders.append(taken)
    for taken in holders:
        let_go(pool, taken)
    assert pool.held == 0 and pool.available(0) == 12 and reused > 100


def test_what_is_visible():
    assert [first_visible(100, window) for window in (0, 1, 10, 101, 200)] == [0, 100, 91, 0, 0]


@pytest.mark.parametrize(("window", "chunk"), [(1, 1), (64, 64), (100, 512), (5, 65), (130, 1)])
def test_the_most_pages_of_a_window(window, chunk):
    """However it grows, a sequence that gives back what it no longer sees holds no more."""
    most = 0
    for start in range(700):
        first = first_visible(start, window) // PAGE
        last = (start + chunk - 1) // PAGE
        most = max(most, last - first + 1)
    assert most_pages(10_000, window, chunk) >= most >= most_pages(10_000, window, chunk) - 1
    assert most_pages(100, window, chunk) <= 2 and most_pages(10_000, 0, chunk) == 157
