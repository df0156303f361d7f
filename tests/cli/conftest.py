"""Commands run in this process, with what they print and how they end; one small training run for all tests."""

import pytest
from click.testing import CliRunner

from fastmixer.cli.main import main
from fastmixer.text.assets import alice_text

TRAIN = [
    "--tokenizer", "characters", "--context", "16", "--steps", "12", "--batch", "2", "--warmup", "2", "--evaluate-every", "6",
    "--evaluate-batches", "2", "--save-every", "4", "--no-progress",
]  # fmt: skip


def run(*arguments, stdin=None):
    """The click result of `fastmixer arguments...`: .output is stdout and stderr as a terminal shows them."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(name="run", scope="session")
def run_fixture():
    return run


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "alice.txt"
    path.write_text(alice_text()[:6000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(text_file):
    """(folder, output) of a short `fastmixer train`."""
    folder = text_file.parent / "run"
    result = run("train", text_file, "--out", folder, *TRAIN)
    assert result.exit_code == 0, result.output
    return folder, result.output


@pytest.fixture(scope="session")
def train_options():
    return TRAIN
