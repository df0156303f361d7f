"""Every command explains itself; what a user gets wrong is one line on stderr, without a traceback."""

import re
import subprocess
import sys

import click
import pytest

from fastmixer import __version__
from fastmixer.cli.main import COMMANDS, main

RUN = [sys.executable, "-c", "from fastmixer.cli.main import main; main()"]


def test_the_list_of_commands(run):
    result = run("--help")
    assert result.exit_code == 0 and all(f"\n  {command} " in result.output for command in COMMANDS)
    assert "fastmixer quickstart" in result.output
    assert run("--version").output == f"fastmixer, version {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    options = result.output.split("Options:\n")[1].splitlines()
    flags = [line for line in options if line.startswith("  -")]
    assert len(flags) >= 1
    for number, line in enumerate(options):
        if line.startswith("  -"):
            explained = line[2:].split("  ", 1)[1:] or options[number + 1 : number + 2]
            assert explained and explained[0].strip(), line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_value_has_its_default_or_says_what_happens_without(command):
    command = main.get_command(None, command)
    context = click.Context(command)
    absent_unless_asked_for = {"stop", "json_path", "tokenizer_path"}
    for option in command.params:
        if (
            isinstance(option, click.Option)
            and not (option.is_flag or option.required)
            and option.name not in absent_unless_asked_for
        ):
            assert re.search(r"[\[(]default: \S", option.get_help_record(context)[1]), option.name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_gives_examples_that_parse(run, command):
    help_text = run(command, "--help").output
    examples = re.findall(
        rf"^    fastmixer {command}(.*)$", help_text.split("Examples:\n")[1].split("Options:")[0], re.M
    )
    assert examples
    for flag in re.findall(r"--[a-z-]+", " ".join(examples)):
        assert f"{flag} " in help_text.split("Options:\n")[1], flag


def test_the_list_says_what_each_command_does(run):
    lines = run("--help").output.split("Commands:\n")[1].splitlines()
    for line in lines:
        assert len(line.split()) >= 6, line  # a name and a sentence, not cut off after its first words


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["trian"], 2, "Error: No such command 'trian'"),
        (["train", "--stepz", "3"], 2, "Error: No such option '--stepz'"),
        (["generate", "absent", "x"], 1, "Error: absent does not exist (expected a .gguf file, a model's folder, or org/name)"),
        (["train", "--out", "x"], 2, "Error: give one or more TEXT files, or --resume"),
        (["tokenize", ""], 1, "Error: tokenize: TEXT is empty"),
        (["bench", "matmull"], 1, "Error: bench: op must be one of embedding, "),
        (["generate", "x", "--threads", "0"], 2, "Error: Invalid value for '--threads': must be >= 1; got 0"),
        (["train", "x.txt", "--out", "y", "--threads", "-2"], 2, "Error: Invalid value for '--threads': must be >= 1; got -2"),
        (["bench", "--threads", str(10**20)], 2, "Error: Invalid value for '--threads': must be at most 1024; got more than 10^18"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_clear_line(run, tmp_path, monkeypatch, arguments, code, text):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == code
    assert any(line.startswith(text) for line in result.output.splitlines()), result.output
    assert not list(tmp_path.iterdir())


def test_errors_go_to_stderr_and_defects_show_where(tmp_path):
    done = subprocess.run([*RUN, "generate", str(tmp_path / "none")], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    done = subprocess.run([*RUN, "--traceback", "generate", str(tmp_path / "none")], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "FileNotFoundError" in done.stderr


def test_usage_errors_name_the_command_and_end_with_2():
    done = subprocess.run([*RUN, "train", "--stepz", "3"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("Usage: ") and done.stderr.splitlines()[-1].startswith(
        "Error: No such option '--stepz'"
    )


def test_a_reader_that_stops_reading_is_no_error(text_file):
    text = " ".join(text_file.read_text().split()[:600])
    process = subprocess.Popen(
        [*RUN, "tokenize", text, "--file", str(text_file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 1
    process.stderr.close()


def test_too_little_memory_is_one_line(run, tmp_path, text_file):
    result = run(
        "train", text_file, "--out", tmp_path / "run", "--tokenizer", "characters", "--context", 10**12, "--time", 8
    )
    assert result.exit_code == 1 and re.fullmatch(
        r"Error: training on batches of 8 x 8 tokens needs at least .* Choose a smaller preset, context or vocabulary\n",
        result.stderr,
    ), result.output


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("FASTMIXER_KERNELS", "fortran", "fortran"),
        ("FASTMIXER_ISA", "x86_64_v9", "x86_64_v9"),
        ("FASTMIXER_THREADS", "0", "FASTMIXER_THREADS must be an integer >= 1; got '0'"),
        ("FASTMIXER_THREADS", "many", "FASTMIXER_THREADS must be an integer >= 1; got 'many'"),
    ],
)
def test_a_forced_choice_that_is_not_there(variable, value, text):
    code = "import os; os.environ[{!r}] = {!r}; from fastmixer.cli.main import main; main(['show-config'])"
    done = subprocess.run([sys.executable, "-c", code.format(variable, value)], capture_output=True, text=True)
    assert done.returncode == 1 and text in done.stderr and "Traceback" not in done.stderr, done.stderr
