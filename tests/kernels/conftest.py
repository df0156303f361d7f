"""Kernel tests run over every implementation that this machine can run: reference, jit, each native level."""

import pytest

from fastmixer.kernels import select


def pytest_generate_tests(metafunc):
    if "implementation" in metafunc.fixturenames:
        op = metafunc.module.__name__.rsplit("test_", 1)[1]
        metafunc.parametrize("implementation", select.implementations(op))


@pytest.fixture
def kernel(request, implementation):
    """The module of the implementation under test; the op is the test file's name."""
    op = request.module.__name__.rsplit("test_", 1)[1]
    return select.kernel_module(op, implementation)
