"""`fastmixer chat`: what it keeps of a conversation, its commands, and Ctrl-C at a terminal."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from random_models import random_source, tiny_tokenizer

from fastmixer.opening import load
from fastmixer.text import Tokenizer
from fastmixer.text.conventions import Conventions
from fastmixer.weights.convert import convert

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
CUT = "(cut after 4 tokens; -n allows more)\n"
OPTIONS = ["--temperature", 0, "-n", 4, "--ignore-eos", "--weights", "float32", "--cache", "float32"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with random weights, whose context is 64 tokens, and a chat template."""
    tokenizer = tiny_tokenizer()
    conventions = Conventions((tokenizer.end_id,), chat_template=TEMPLATE)
    source = replace(random_source("llama"), tokenizer=Tokenizer(tokenizer._inner, conventions))
    return convert(source, tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture
def chat(run, model):
    def talk(*lines, options=OPTIONS):
        return run("chat", model, *options, stdin="".join(f"{line}\n" for line in lines))

    return talk


def answers(model, *messages):
    """What the model says to messages, one after another."""
    opened = load(model, weights="float32", cache="float32", progress=False)
    talk = [{"role": "system", "content": "S"}]
    for message in messages:
        talk.append({"role": "user", "content": message})
        text = opened.chat(talk, temperature=0, max_new_tokens=4, ignore_eos=True)
        talk.append({"role": "assistant", "content": text})
    return [message["content"] for message in talk if message["role"] == "assistant"]


def test_each_line_is_a_message_and_what_was_said_counts(chat, model):
    result = chat("Hi", "And?", options=[*OPTIONS, "--system", "S"])
    first, second = answers(model, "Hi", "And?")
    assert (result.exit_code, result.stderr) == (0, CUT * 2)
    assert result.stdout == f"{first}\n{second}\n"
    assert answers(model, "And?") != [second]


def test_undo_and_reset(chat, model):
    first, second = answers(model, "Hi", "And?")
    result = chat("/system S", "Hi", "No", "/undo", "And?", "/reset", "Hi", "/system", "/exit", "Hi")
    lines = result.stdout.split("\n")
    assert lines[0] == first and result.stdout.endswith(f"{second}\n{first}\nS\n")


def test_save_and_load(chat, model, tmp_path):
    first, second = answers(model, "Hi", "And?")
    path = tmp_path / "talk.json"
    assert chat("/system S", "Hi", f"/save {path}").stdout == f"{first}\nsaved in {path}\n"
    saved = json.loads(path.read_text())
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    assert chat("Something else", f"/load {path}", "And?").stdout.endswith(f"3 messages from {path}\n{second}\n")


def test_messages_of_many_lines(chat, model, tmp_path):
    path = tmp_path / "talk.json"
    chat("a\\", "b", '"""', "c", "", "/d", '"""', f"/save {path}")
    said = [one["content"] for one in json.loads(path.read_text())["messages"] if one["role"] == "user"]
    assert said == ["a\nb", "c\n\n/d"]


def test_stats_and_help(chat):
    result = chat("Hi", "/stats", "/help")
    assert re.search(
        r"4 tokens, end: length; read [\d,]+, wrote [\d,]+ tokens/s\n\d+ of 64 tokens of context; ", result.stdout
    )
    assert "/undo" in result.stdout and "Ctrl-C stops an answer." in result.stdout


def test_mistakes_are_one_line_and_the_conversation_goes_on(chat, model, tmp_path):
    path = tmp_path / "wrong.json"
    for command, error in (
        ("/nope", "there is no command /nope; /help tells those that there are"),
        ("/undo", "/undo: nothing was said yet"),
        ("/stats", "/stats: nothing was answered yet"),
        ("/save", "/save needs the name of a file"),
        (f"/load {path}", f"{path} does not exist"),
        ("long " * 40, ""),
    ):
        result = chat("/system S", command, "Hi")
        assert result.exit_code == 0 and result.stdout == answers(model, "Hi")[0] + "\n", result.output
        if "long" in command:
            assert re.match(
                r"Error: the conversation would have \d+ tokens, more than the context of 64\. Ask in fewer words; fastmixer "
                r"chat --context makes room for more, up to what the model was made for\n",
                result.stderr,
            )
        else:
            assert result.stderr == f"Error: {error}\n{CUT}"


def test_a_full_context_says_what_to_do_and_keeps_what_was_said(chat, model):
    first = answers(model, "Hi")[0]
    long = "What is it that you do here? " * 2
    result = chat("/system S", "Hi", long, long, "/undo", "Hi", "/stats", options=[*OPTIONS[:2], "-n", 4, *OPTIONS[4:]])
    assert result.exit_code == 0 and result.stdout.startswith(first + "\n")
    assert "It stays as it was: /undo takes back its last message, /reset begins anew; fastmixer chat" in result.stderr
    result = chat("Hi", options=[*OPTIONS[:2], "-n", 100, *OPTIONS[4:]])
    assert result.stderr == "(cut: the context of 64 tokens is full)\n"
    assert chat("Hi", options=[*OPTIONS[:2], "-n", 1, *OPTIONS[4:]]).stderr == "(cut after 1 token; -n allows more)\n"


def test_retry_answers_the_last_message_again(chat, model):
    first, second = answers(model, "Hi", "And?")
    result = chat("/retry", "/system S", "Hi", "/retry", "And?", "/retry", "/save x/y/z")
    assert result.stdout == f"{first}\n{first}\n{second}\n{second}\n"
    assert result.stderr.startswith("Error: /retry: nothing was said yet\n")


def test_the_exit_status_tells_of_a_talk_without_any_answer(chat):
    assert chat("long " * 40).exit_code == 1 and chat("/nope").exit_code == 1
    assert chat().exit_code == chat("/help").exit_code == chat("/nope", "Hi").exit_code == 0


def test_lines_end_in_any_way_and_must_be_utf8(run, model):
    first = answers(model, "Hi")[0]
    result = run("chat", model, *OPTIONS, "--system", "S", stdin=b"Hi\r\n")
    assert result.stdout == f"{first}\n"
    result = run("chat", model, *OPTIONS, "--system", "S", stdin=b"\xff\nHi")
    assert (result.stdout, result.stderr) == (f"{first}\n", f"Error: stdin is not UTF-8: byte 0 is 0xff\n{CUT}")


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        (3, "messages must be a list; got int"),
        ([{"role": "assistant", "content": "a"}], "messages[0] must have role 'user' and a text as its content"),
        ([{"role": "user", "content": None}], "messages[0] must have role 'user' and a text as its content"),
        ([{"role": "user", "content": "a"}], "the last message must be an answer"),
    ],
)
def test_conversations_that_are_none(chat, tmp_path, messages, error):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({"messages": messages}))
    assert chat(f"/load {path}").stderr == f"Error: {path}: {error}\n"


def test_without_a_template(run, trained):
    result = run("chat", trained[0], stdin="Hi\n")
    assert (result.exit_code, result.output) == (
        1, "Error: chat: step-00000012 has no chat template; use fastmixer generate\n",
    )  # fmt: skip


def test_bad_options_are_told_before_the_model_is_opened(run):
    result = run("chat", "nowhere", "-n", 0)
    assert result.output == "Error: generate: max_new_tokens must be >= 1; got 0\n"


# ---- at a terminal ----


class Terminal:
    """A `fastmixer chat` with a terminal of its own."""

    def __init__(self, *arguments):
        import pty

        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from fastmixer.cli.main import main; main()", "chat", *map(str, arguments)],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(slave)
        self.seen = ""

    def send(self, text):
        self.seen = ""
        os.write(self.master, text.encode())

    def wait_for(self, pattern, seconds=60.0):
        """Read until the pattern has come; how long it took."""
        began = time.monotonic()
        while not re.search(pattern, self.seen):
            left = began + seconds - time.monotonic()
            ready = left > 0 and select.select([self.master], [], [], left)[0]
            assert ready, f"{pattern!r} did not come; there is {self.seen!r}"
            self.seen += os.read(self.master, 65536).decode(errors="replace")
        return time.monotonic() - began

    def end(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_ctrl_c_stops_an_answer_and_ctrl_d_the_program(smollm2_path):
    terminal = Terminal(smollm2_path, "--ignore-eos", "--temperature", "0", "--context", "2048", "-n", "2000")
    try:
        terminal.wait_for(r"> $")
        terminal.send("Tell me a long story.\n")
        terminal.wait_for(r"story\.\r\n.{40,}")
        terminal.seen = ""
        os.kill(terminal.process.pid, signal.SIGINT)
        assert terminal.wait_for(r"\(stopped\)\r\n> $") < 0.2
        terminal.send("/stats\n")
        terminal.wait_for(r"tokens, end: interrupted; .*\r\n.*of 2,048 tokens of context.*\r\n> $")
        time.sleep(0.3)  # readline shows the prompt a moment before it minds signals
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.wait_for(r"\(Ctrl-D or /exit ends\)\r\n> $")
        terminal.send("And then?\n")
        terminal.wait_for(r"then\?\r\n.{20,}")
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.wait_for(r"\(stopped\)\r\n> $")
        terminal.send("\x04")
        assert terminal.process.wait(timeout=20) == 0
    finally:
        terminal.end()
