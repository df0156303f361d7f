"""What all tests share: one fixed seed's random generator, and threads put back as they were.

hypothesis draws the same examples every time; HYPOTHESIS_PROFILE=fresh draws new ones, to go looking for trouble.
"""

import os
import signal

import numpy as np
import pytest
from cached_models import SMOLLM2, NotAvailable, cached_model
from hypothesis import settings

from fastmixer.kernels import threads

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as of what a script starts in the background, and of its children
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("fresh", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.fixture
def rng():
    return np.random.default_rng(20260523)


@pytest.fixture(autouse=True)
def _restore_threads():
    before = threads.get_threads()
    yield
    threads.set_threads(before)


@pytest.fixture(scope="session")
def smollm2_path():
    """The file SmolLM2-135M-Instruct.Q4_1.gguf."""
    try:
        return cached_model(SMOLLM2)
    except NotAvailable as error:
        pytest.skip(str(error))
