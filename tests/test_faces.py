"""The public face in a process of its own: nothing is loaded before it is used, and a wrong choice is an error."""

import os
import subprocess
import sys
from importlib.resources import files

import pytest

CHOICES = ("FASTMIXER_KERNELS", "FASTMIXER_ISA", "FASTMIXER_THREADS")
USE = "import fastmixer as fm, numpy as np; a = np.ones((64, 64), np.float32); print(fm.matmul(a, a)[0, 0])"


def python(code, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in CHOICES}
    return subprocess.run([sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True)


def test_nothing_is_loaded_before_it_is_used():
    code = (
        "import sys; before = set(sys.modules); import fastmixer; dir(fastmixer); repr(fastmixer);"
        "loaded = set(sys.modules) - before; print(sorted(m for m in loaded if m.split('.')[0] in"
        " ('fastmixer', 'numpy', 'numba', 'tokenizers', 'safetensors', 'click', 'tqdm')))"
    )
    assert python(code).stdout == "['fastmixer']\n"


def test_dir_lists_every_name_before_any_was_used():
    code = "import fastmixer; print(sorted(set(fastmixer.__all__) - set(dir(fastmixer))), len(fastmixer.__all__) > 30)"
    assert python(code).stdout == "[] True\n"


def test_native_kernels_need_no_numba():
    code = f"{USE}; import sys; print('numba' in sys.modules, fm.matmul.__module__)"
    done = python(f"from fastmixer.kernels.select import native_levels; print(bool(native_levels('matmul'))); {code}")
    assert done.returncode == 0, done.stderr
    native, product, numba, module = done.stdout.split()
    assert (product, module) == ("64.0", "fastmixer.ops.matmul") and {native, numba} == {"True", "False"}


def test_a_name_is_looked_up_once():
    code = "import fastmixer as fm; first = fm.matmul; print('matmul' in vars(fm), fm.matmul is first)"
    assert python(code).stdout == "True True\n"


def test_star_import_brings_the_public_names():
    code = "from fastmixer import *; import fastmixer; print(all(name in globals() for name in fastmixer.__all__))"
    assert python(code).stdout == "True\n"


def test_it_says_that_it_is_typed():
    assert (files("fastmixer") / "py.typed").is_file()


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        (
            "FASTMIXER_KERNELS",
            "cuda",
            "ValueError: FASTMIXER_KERNELS must be one of auto, native, jit, reference; got 'cuda'",
        ),
        ("FASTMIXER_ISA", "sse9", "ValueError: FASTMIXER_ISA must be one of "),
        ("FASTMIXER_THREADS", "0", "ValueError: FASTMIXER_THREADS must be an integer >= 1; got '0'"),
        ("FASTMIXER_THREADS", "-1", "ValueError: FASTMIXER_THREADS must be an integer >= 1; got '-1'"),
        ("FASTMIXER_THREADS", "x", "ValueError: FASTMIXER_THREADS must be an integer >= 1; got 'x'"),
    ],
)
def test_a_wrong_choice_is_no_trouble_until_an_op_runs_and_then_an_error(variable, value, text):
    assert python("import fastmixer; print('imported')", **{variable: value}).stdout == "imported\n"
    done = python(USE, **{variable: value})
    assert done.returncode == 1 and done.stdout == "" and done.stderr.splitlines()[-1].startswith(text), done.stderr


@pytest.mark.parametrize("rank", ["jit", "reference"])
def test_a_choice_that_is_there_is_taken(rank):
    code = f"{USE}; from fastmixer.kernels.select import implementation; print(implementation('matmul'))"
    assert python(code, FASTMIXER_KERNELS=rank).stdout.split() == ["64.0", rank]


def test_a_level_that_this_machine_lacks_is_an_error_that_names_those_it_has():
    from fastmixer.kernels.cpu import runnable_levels
    from fastmixer.kernels.levels import LEVELS

    for level in LEVELS:
        done = python(USE, FASTMIXER_ISA=level)
        if level in runnable_levels():
            assert done.stdout == "64.0\n", done.stderr
        else:
            assert (
                f"ImportError: FASTMIXER_ISA={level} is not available for matmul; built and runnable here: "
                in done.stderr
            )
