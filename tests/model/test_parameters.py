"""Parameters: one flat buffer, named views, decay segments."""

import itertools

import numpy as np

from fastmixer.model.config import ModelConfig, parameter_shapes
from fastmixer.model.parameters import Parameters

SHAPES = [("a.weight", (3, 5)), ("a.bias", (5,)), ("b.weight", (2,)), ("c.weight", (4, 4)), ("d.weight", (16, 1))]


def test_views_share_the_flat_buffers_and_do_not_overlap():
    parameters = Parameters(SHAPES)
    for number, name in enumerate(parameters, 1):
        parameters[name][...] += number
        parameters.gradient(name)[...] += 10 * number
    for number, (name, shape) in enumerate(SHAPES, 1):
        assert parameters[name].shape == parameters.gradient(name).shape == shape
        assert (parameters[name] == number).all() and (parameters.gradient(name) == 10 * number).all()
        assert np.shares_memory(parameters[name], parameters.data)
        assert np.shares_memory(parameters.gradient(name), parameters.gradients_data)
        assert (parameters[name].ctypes.data - parameters.data.ctypes.data) % 64 == 0
    count = sum(int(np.prod(shape)) for _, shape in SHAPES)
    assert np.count_nonzero(parameters.data) == count, "what lies between views stays zero"
    parameters.zero_gradients()
    assert not parameters.gradients_data.any()


def test_every_place_of_the_buffer_has_a_name():
    parameters = Parameters(SHAPES)
    for name in parameters.names:
        start = (parameters[name].ctypes.data - parameters.data.ctypes.data) // 4
        assert parameters.locate(start) == parameters.locate(start + parameters[name].size - 1) == name


def test_matrices_decay_and_vectors_do_not():
    parameters = Parameters(SHAPES)
    segments = parameters.decay_segments()
    assert [decayed for *_, decayed in segments] == [True, False, True]
    assert segments[0][0] == 0 and segments[-1][1] == parameters.size
    assert all(before[1] == after[0] for before, after in itertools.pairwise(segments))
    for start, stop, decayed in segments:
        inside = {parameters.locate(index) for index in range(start, stop)}
        assert {parameters.decayed(name) for name in inside} == {decayed}


def test_stale_gradients_count_as_zero():
    parameters = Parameters(SHAPES)
    parameters.keep_rewritten(["a.weight", "d.weight"])
    view = parameters.gradient("a.weight")
    parameters.gradients_data[:] = 1
    parameters.stale = True
    assert (view == 1).all(), "nothing is cleared before somebody asks"
    assert not parameters.gradient("a.weight").any() and not parameters.stale
    assert not view.any() and not parameters.gradient("d.weight").any() and (parameters.gradient("c.weight") == 1).all()
    parameters.stale = True
    parameters.gradient("d.weight")[:] = 2
    assert (parameters.gradients_data[-16:] == 2).all(), "what is added after asking stays"
    names = [name for *_, name in parameters.update_segments()]
    assert names.count("a.weight") == names.count("d.weight") == 1 and "c.weight" not in names


def test_absent_names():
    parameters = Parameters(parameter_shapes(ModelConfig.preset("llama-tiny")))
    assert parameters.get("positions.weight") is None and parameters.get_gradient("final_norm.bias") is None
    assert "head.weight" in parameters and "final_norm.bias" not in parameters
