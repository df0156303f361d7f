"""A chat as the text a model was trained on: its own jinja2 template, rendered in another process.

Templates come with models, from strangers. The sandbox keeps them from Python, but not from taking all time and memory
("a" * 10 ** 10 is one call that nothing can interrupt), so they run in a process that can be ended. It starts with the
first chat and stays for the next. What it does: chat_worker.py.
"""

import atexit
import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmixer.text.pieces import printable
from fastmixer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import subprocess

SECONDS = 2.0  # for one rendering; published templates take about a millisecond
CHARACTERS = 1 << 20  # of output beyond eight times what came in
_START_SECONDS = 60.0  # for the process to begin, on a machine however busy
_GOES_ON = "[fastmixer: the answer goes on here]"
_WORKER = Path(__file__).with_name("chat_worker.py")


def render_chat(
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    /,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    **variables: Any,
) -> str:
    """The text of a chat, by tokenizer.chat_template; what transformers' apply_chat_template(tokenize=False) gives.

    messages: [{"role": "user", "content": "..."}, ...]; content may be a list of parts, or None beside "tool_calls", where
    the template takes that. add_generation_prompt: end with the beginning of the model's answer. continue_final_message: end
    with the last message's own text instead, for the model to go on with it. variables: what else the template asks for
    (tools, enable_thinking, ...), as JSON knows it. Encode the text without begin=True: a template that wants the begin
    token writes it itself.

    ValueError if there is no template, if it is wrong, refuses the messages, or takes more than SECONDS or too much output
    or memory; TypeError or ValueError names the message that is not one.
    """
    if tokenizer.chat_template is None:
        raise ValueError(f"{tokenizer.name} has no chat template")
    _check_messages(messages)
    if "messages" in variables:
        raise ValueError("render_chat: messages is a name that the template has already; give what else it asks for")
    for name, value in (
        ("add_generation_prompt", add_generation_prompt),
        ("continue_final_message", continue_final_message),
    ):
        if not isinstance(value, bool):
            raise TypeError(f"render_chat: {name} must be True or False; got {value!r}")
    values = {**_special_texts(tokenizer), **variables}
    told = _marked(messages) if continue_final_message else messages
    try:
        values_text = json.dumps(values)
        messages_text = json.dumps(told)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"render_chat: messages and variables must be what JSON can hold: {error}") from error
    request = {
        "template": tokenizer.chat_template,
        "messages": messages_text,
        "variables": values_text,
        "add_generation_prompt": add_generation_prompt and not continue_final_message,
        "characters": CHARACTERS + 8 * (len(values_text) + len(messages_text)),
    }
    answer = _worker.ask(request)
    if "error" in answer:
        raise ValueError(f"the chat template of {tokenizer.name} {printable(answer['error'])}")
    if not continue_final_message:
        return answer["text"]
    begun, mark, _ = answer["text"].rpartition(_GOES_ON)
    if not mark:
        raise ValueError(f"the chat template of {tokenizer.name} does not write the last message, which was to be continued")
    return begun


def _marked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """messages with a mark at the end of the last one, to tell where its text ends and what closes it begins."""
    said = messages[-1].get("content")
    if not isinstance(said, str):
        raise ValueError("render_chat: continue_final_message: the last message's content must be a string")
    return [*messages[:-1], {**messages[-1], "content": said + _GOES_ON}]


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise TypeError(f"render_chat: messages must be a list of dicts; got {type(messages).__name__}")
    if not messages:
        raise ValueError("render_chat: messages is empty")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise TypeError(f"render_chat: messages[{index}] must be a dict; got {type(message).__name__}")
        for key in ("role", "content"):
            if key not in message and not (key == "content" and "tool_calls" in message):
                raise ValueError(f"render_chat: messages[{index}] has no {key!r}; it has {sorted(map(str, message))}")
        if not isinstance(message["role"], str):
            raise TypeError(f"render_chat: messages[{index}]['role'] must be a string; got {message['role']!r}")
        content = message.get("content")
        if not (isinstance(content, (str, list)) or (content is None and "tool_calls" in message)):
            raise TypeError(
                f"render_chat: messages[{index}]['content'] must be a string or a list of parts; "
                f"got {type(content).__name__}"
            )


def _special_texts(tokenizer: Tokenizer) -> dict[str, str]:
    ids = {"bos_token": tokenizer.begin_id, "eos_token": tokenizer.end_id}
    return {name: tokenizer.piece_bytes(i).decode() for name, i in ids.items() if i is not None}


class _Worker:
    """The process that renders, one request at a time; ended and started anew when it takes too long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            process = self._running()
            answer = self._exchange(process, line, SECONDS)
            if answer is None:
                return {"error": f"took more than {SECONDS:g} seconds"}
            if not answer.endswith(b"\n"):
                self.end()
                return {"error": "ended the process that rendered it"}
            return json.loads(answer)

    def _running(self) -> "subprocess.Popen[bytes]":
        import subprocess  # what models that do not chat need not wait for

        if self._process is not None and self._process.poll() is None:
            return self._process
        self.end()
        # The worker finds jinja2 where this process does; -P: never what lies beside the worker's own file.
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        if self._exchange(self._process, b"", _START_SECONDS) != b"ready\n":
            self.end()
            raise RuntimeError(f"render_chat: {sys.executable} did not start {_WORKER.name}")
        return self._process

    def _exchange(self, process: "subprocess.Popen[bytes]", line: bytes, seconds: float) -> bytes | None:
        """The line that answers a line; None if it took too long, and what there was if the process ended."""
        assert process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def end_it() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end_it)
        timer.start()
        answer = b""
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # the process ended while it was written to: there is no answer
            pass
        except BaseException:  # Ctrl-C: an answer may still come, which must not be taken for the next one's
            self.end()
            raise
        finally:
            timer.cancel()
            timer.join()
        if late.is_set():
            self.end()
        return None if late.is_set() and not answer.endswith(b"\n") else answer

    def end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not written yet has nobody to read it
                    pass

    def forget(self) -> None:
        """In a forked child: the process is the parent's."""
        self.__init__()  # type: ignore[misc]


_worker = _Worker()
atexit.register(_worker.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_worker.forget)
