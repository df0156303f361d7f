"""The probes of the machine's limits: every implementation does the work that it reports."""

import numpy as np
import pytest

from fastmixer.kernels import peak, select

BLOCK = 1 << 16


@pytest.mark.parametrize("name", select.implementations("peak"))
def test_an_update_reaches_every_number_once(name):
    data = np.zeros(3 * BLOCK, np.float32)
    for expected in (0.5, 0.75):
        assert select.kernel_module("peak", name).update_memory(data) == 8.0 * data.size
        assert (data == expected).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_call_of_so_many_operations(precision):
    assert peak.flops_call(1e9, precision)() == pytest.approx(1e9, rel=0.01)


@pytest.mark.parametrize("name", select.implementations("peak"))
def test_every_thread_s_integers_are_multiplied(name):
    sinks = [np.zeros(2, np.float32) for _ in range(2)]
    few, many = (
        select.kernel_module("peak", name).int8_rounds(sink, r)
        for sink, r in zip(sinks, (1 << 18, 1 << 20), strict=True)
    )
    assert many == pytest.approx(4 * few)
    assert (sinks[0] > 0).all() and (name == "reference" or (sinks[1] > 3.5 * sinks[0]).all())


def test_a_processor_multiplies_integers_at_least_as_fast_as_floats():
    assert peak.probe_flops(0.01, "int8") > 0.5 * peak.probe_flops(0.01)


@pytest.mark.parametrize("stream", peak.STREAMS)
def test_bandwidth_is_bytes_over_time(stream):
    data = np.ones(64 * BLOCK, np.float32)
    assert 1e8 < peak.probe_bandwidth(data, stream) < 1e13
    assert (data == 1).all()
