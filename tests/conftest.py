"""What all tests share: one fixed seed's random generator, and threads put back as they were."""

import numpy as np
import pytest

from fastmixer.kernels import threads


@pytest.fixture
def rng():
    return np.random.default_rng(20260523)


@pytest.fixture(autouse=True)
def _restore_threads():
    before = threads.get_threads()
    yield
    threads.set_threads(before)
