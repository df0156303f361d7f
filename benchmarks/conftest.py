"""Benchmarks run over every implementation that this machine can run, grouped so that the ratio to NumPy reads off."""

from fastmixer.kernels import select


def pytest_generate_tests(metafunc):
    if "implementation" in metafunc.fixturenames:
        op = metafunc.module.__name__.rsplit("bench_", 1)[1]
        metafunc.parametrize("implementation", select.implementations(op))
