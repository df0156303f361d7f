"""The probes of the machine's limits: every implementation does the work that it reports."""

import numpy as np
import pytest

from fastmixer.kernels import peak, select

BLOCK = 1 << 16


@pytest.mark.parametrize("name", select.implementations("peak"))
def test_an_update_reaches_every_number_once(name):
    data = np.zeros(3 * BLOCK, np.float32)
    expected = 0.0 if name == "reference" else 0.5  # NumPy halves, the others also add a half
    for _ in range(2):
        assert select.kernel_module("peak", name).update_memory(data) == 8.0 * data.size
        assert (data == expected).all()
        expected = 0.5 * expected + (0.0 if name == "reference" else 0.5)


@pytest.mark.parametrize("stream", peak.STREAMS)
def test_bandwidth_is_bytes_over_time(stream):
    data = np.ones(64 * BLOCK, np.float32)
    assert 1e8 < peak.probe_bandwidth(data, stream) < 1e13
    assert (data == 1).all()
