"""Chat templates: the same text as transformers', and templates that would take all time and memory are ended."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fastmixer as fm
from fastmixer.text import Tokenizer, chat
from fastmixer.text.chat import render_chat
from fastmixer.text.conventions import Conventions

DATA = Path(__file__).parent / "data" / "chat"
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def trained():
    from tokenizers import Tokenizer as Inner
    from tokenizers import models

    return Inner(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, "<unk>"))


@pytest.fixture
def with_template(trained):
    def make(template):
        return Tokenizer(trained, Conventions((1,), 0, True, template), name="model.gguf")

    return make


def chats():
    return json.loads((DATA / "chats.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted(DATA.glob("*.jinja")), ids=lambda path: path.stem)
def test_published_templates_give_what_transformers_gives(path, with_template):
    rendered = json.loads((DATA / "rendered.json").read_text(encoding="utf-8"))
    tokenizer = with_template(path.read_text(encoding="utf-8"))
    told = 0
    for name, chat_ in chats().items():
        variables = {"tools": chat_["tools"]} if "tools" in chat_ else {}
        for prompt in (False, True):
            expected = rendered[f"{path.stem} {name} {prompt}"]
            if expected is None:
                with pytest.raises(ValueError, match=r"^the chat template of model\.gguf (refuses|fails): "):
                    render_chat(tokenizer, chat_["messages"], prompt, **variables)
            else:
                assert render_chat(tokenizer, chat_["messages"], prompt, **variables) == expected
                told += 1
    assert told >= 4


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{% for i in range(99999) %}{{ again() }}{% endfor %}{% endmacro %}{{ again() }}",
        "{{ 'x'.ljust(10 ** 10) }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ [0] * 10 ** 10 }}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s | length }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '{:10000000000d}'.format(1) }}",
        "{{ lipsum(n=1000000) }}",
        "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
        "{{ 'a' | center(10000000000) }}",
        "{{ range(10 ** 9) | list | length }}",
        "{{ 'a'.zfill(10 ** 10) }}",
    ],
)
def test_hostile_templates_are_ended(template, with_template):
    start = time.monotonic()
    with pytest.raises(
        ValueError, match=r"^the chat template of model\.gguf (took more than|writes more|needs too|refuses|fails)"
    ):
        render_chat(with_template(template), HELLO)
    assert time.monotonic() - start < 20  # SECONDS, and a new process on a busy machine
    assert render_chat(with_template("{{ messages[0].content }}"), HELLO) == "Hello"


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(
            "{{ ''.__class__.__base__.__subclasses__()[104].load_module('os').system('id') }}", id="CVE-2024-34359"
        ),
        pytest.param(
            "{% for x in ().__class__.__base__.__subclasses__() %}{% if 'warning' in x.__name__ %}"
            "{{ x()._module.__builtins__['__import__']('os').popen('id').read() }}{% endif %}{% endfor %}",
            id="CVE-2026-5760",
        ),
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ namespace(__init__=1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.__getitem__.__globals__ }}",
    ],
)
def test_templates_stay_in_their_box(template, with_template):
    with pytest.raises(ValueError, match=r"^the chat template of model\.gguf (refuses|fails): "):
        render_chat(with_template(template), HELLO)


def test_an_answer_is_never_taken_for_the_next_ones(with_template):
    slow = with_template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    found, errors = [], []

    def ask(index):
        message = [{"role": "user", "content": str(index)}]
        try:
            found.append((index, render_chat(with_template("{{ messages[0].content }}"), message)))
        except ValueError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(20)]
    for index, thread in enumerate(threads):
        thread.start()
        if index == 10:
            with pytest.raises(ValueError, match="took more than 2 seconds"):
                render_chat(slow, HELLO)
    for thread in threads:
        thread.join()
    assert errors == [] and sorted(found) == [(index, str(index)) for index in range(20)]


def test_a_process_that_was_ended_is_started_anew(with_template):
    tokenizer = with_template("{{ messages[0].content }}")
    assert render_chat(tokenizer, HELLO) == "Hello"
    chat._worker._process.kill()
    chat._worker._process.wait()
    assert render_chat(tokenizer, HELLO) == "Hello"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_its_own_process(with_template):
    code = (
        "import os, sys\n"
        "from tokenizers import Tokenizer as Inner, models\n"
        "from fastmixer.text import Tokenizer\n"
        "from fastmixer.text.chat import render_chat, _worker\n"
        "from fastmixer.text.conventions import Conventions\n"
        "t = Tokenizer(Inner(models.WordLevel({'a': 0}, 'a')), Conventions((0,), None, False, '{{ messages[0].content }}'))\n"
        "ask = lambda: render_chat(t, [{'role': 'user', 'content': 'x'}])\n"
        "assert ask() == 'x'; first = _worker._process.pid\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(0 if ask() == 'x' and _worker._process.pid != first and not _worker.end() else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert ask() == 'x' and _worker._process.pid == first\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_leaves_no_answer_behind(with_template):
    slow = with_template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    render_chat(with_template("x"), HELLO)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        render_chat(slow, HELLO)
    assert time.monotonic() - start < 1.5
    assert render_chat(with_template("{{ messages[0].content }}"), HELLO) == "Hello"


def test_variables_reach_the_template(with_template):
    tokenizer = with_template("{{ bos_token }}{{ eos_token }}{{ enable_thinking }}{{ add_generation_prompt }}")
    assert render_chat(tokenizer, HELLO, False, enable_thinking=True) == "<s></s>TrueFalse"
    assert render_chat(tokenizer, HELLO, bos_token="B") == "B</s>True"
    assert re.fullmatch(r"20\d\d", render_chat(with_template("{{ strftime_now('%Y') }}"), HELLO))


@pytest.mark.parametrize(
    ("messages", "error", "text"),
    [
        ("Hello", TypeError, "render_chat: messages must be a list of dicts; got str"),
        ([], ValueError, "render_chat: messages is empty"),
        ([*HELLO, "x"], TypeError, "render_chat: messages[1] must be a dict; got str"),
        ([{"content": "x"}], ValueError, "render_chat: messages[0] has no 'role'; it has ['content']"),
        ([*HELLO, {"role": "user"}], ValueError, "render_chat: messages[1] has no 'content'; it has ['role']"),
        ([{"role": 3, "content": ""}], TypeError, "render_chat: messages[0]['role'] must be a string; got 3"),
        ([{"role": "a", "content": None}], TypeError, "render_chat: messages[0]['content'] must be a string or a list of parts; got NoneType"),
    ],
)  # fmt: skip
def test_bad_messages(messages, error, text, with_template):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        render_chat(with_template("x"), messages)


def test_other_bad_input(with_template):
    with pytest.raises(ValueError, match="^tokenizer has no chat template$"):
        render_chat(fm.train_tokenizer("some text", "words"), HELLO)
    with pytest.raises(TypeError, match="^render_chat: messages and variables must be what JSON can hold: "):
        render_chat(with_template("x"), HELLO, tools={1, 2})
    with pytest.raises(ValueError, match=r"^the chat template of model\.gguf is wrong in line 2: "):
        render_chat(with_template("a\n{% for %}"), HELLO)
    with pytest.raises(ValueError, match=r"^the chat template of model\.gguf refuses: only users$"):
        render_chat(with_template("{{ raise_exception('only users') }}"), HELLO)
    with pytest.raises(ValueError, match=r"refuses: \\x1b\[2J\\nno$"):  # nothing that a terminal would act on
        render_chat(with_template("{{ raise_exception('\x1b[2J\nno') }}"), HELLO)
    with pytest.raises(ValueError, match="^render_chat: messages is a name that the template has already"):
        render_chat(with_template("x"), HELLO, **{"messages": []})


def test_a_last_message_that_goes_on(with_template):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    talk = [*HELLO, {"role": "a", "content": "e "}]
    assert render_chat(with_template(template), talk, continue_final_message=True) == "<user>Hello<end><a>e "
    assert talk[-1]["content"] == "e "
    with pytest.raises(ValueError, match=r"^the chat template of model\.gguf does not write the last message"):
        render_chat(with_template("x"), talk, continue_final_message=True)
    with pytest.raises(ValueError, match="continue_final_message: the last message's content must be a string"):
        render_chat(with_template("x"), [{"role": "a", "content": []}], continue_final_message=True)
