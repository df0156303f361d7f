"""`fastmixer chat`: a conversation in the terminal. Knows only how to ask and to print."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fastmixer.cli import options

HELP = """\
/system TEXT   the system prompt from here on (alone: show it)
/undo          take back the last message and its answer
/retry         let the last message be answered once more
/reset         begin anew, with the same system prompt
/stats         figures of the last answer
/save FILE     write the conversation as JSON
/load FILE     go on with one that was saved
/exit          end (or Ctrl-D)
A line that ends in \\ goes on in the next; \"\"\" alone begins a message of many lines, and ends it.
Ctrl-C stops an answer."""
QUOTES = '"""'
# What a turn may fail of and the next one need not: too long a conversation, a template that refuses it, a file.
EXPECTED = (ValueError, TypeError, OSError)


@click.command("chat")
@click.argument("model")
@click.option("--system", default="", help="A system prompt (default: what the model's template says).")
@click.option(
    "--max-new-tokens", "-n", type=int, help="Of an answer at most so many tokens (default: the model's, else 512)."
)
@options.sampling
@options.loading
def chat(
    model: str,
    system: str,
    weights: str,
    cache: str,
    context: int | None,
    packed_cache: bool | None,
    offline: bool,
    **choices: Any,
) -> None:
    """Talk with MODEL: a .gguf file, a folder, a training run, or org/name. Ctrl-C stops an answer, Ctrl-D ends; /help.

    Where stdin is no terminal, each line is a message; the exit status is 1 if none of them was answered, but some failed.

    \b
    Examples:
      fastmixer chat model.gguf
      fastmixer chat model.gguf --system "Answer in one sentence." --temperature 0.2
      echo "What is a kernel?" | fastmixer chat model.gguf
    """
    given = options.given(choices)

    opened = options.load_language_model(model, weights, cache, context, packed_cache, offline)
    if opened.tokenizer is None or opened.tokenizer.chat_template is None:
        raise ValueError(f"chat: {opened.name} has no chat template; use fastmixer generate")
    talk = Talk(opened, given, system)
    if sys.stdin.isatty():
        click.echo(f"{opened.name}, context {opened.context:,} tokens; /help tells the commands, Ctrl-D ends")
        _at_terminal(talk)
    else:
        _run(talk, lambda prompt: options.text_from_stdin(sys.stdin.buffer.readline()))
        if talk.failed and not talk.answered:
            sys.exit(1)


def _at_terminal(talk: "Talk") -> None:
    try:
        import readline  # noqa: F401  (input() then knows arrow keys and earlier lines)
    except ImportError:  # Windows: its terminal has both
        pass

    def read(prompt: str) -> str:
        try:
            return input(prompt) + "\n"
        except EOFError:
            click.echo()
            return ""

    _run(talk, read)


def _run(talk: "Talk", read: Callable[[str], str]) -> None:
    """Messages and commands until there are no more."""
    while True:
        try:
            message = _message(read)
            if message is None or message.strip() == "/exit":
                return
            if message.strip():
                talk.take(message)
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D or /exit ends)", err=True)
        except EXPECTED as error:
            talk.failed += 1
            click.echo(f"Error: {options.visible(talk.advice(error))}", err=True)


def _message(read: Callable[[str], str]) -> str | None:
    """The next message, which may be of several lines; None at the end."""
    line = read("> ")
    if not line:
        return None
    text = line.rstrip("\r\n")
    if text.strip() == QUOTES:
        lines: list[str] = []
        while (line := read(". ")) and line.strip() != QUOTES:
            lines.append(line.rstrip("\r\n"))
        return "\n".join(lines)
    while text.endswith("\\"):
        text = text[:-1] + "\n" + read(". ").rstrip("\r\n")
    return text


class Talk:
    """A conversation with a model: messages so far, and what the commands do to them. answered, failed: how many were."""

    def __init__(self, model: Any, given: dict[str, Any], system: str = ""):
        self.model, self.given = model, given
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self.answered = self.failed = 0
        self._details: Any = None

    def take(self, message: str) -> None:
        """A message to the model, or a command."""
        name, _, rest = message.strip().partition(" ")
        if not name.startswith("/") or "\n" in message:
            self.say(message)
            return
        command = getattr(self, f"_do_{name[1:]}", None)
        if command is None:
            raise ValueError(f"there is no command {name}; /help tells those that there are")
        command(rest.strip())

    def say(self, message: str, before: list[dict[str, str]] | None = None) -> None:
        """Print the answer as it comes, to a message after those before (None: all). What Ctrl-C stops stays as far as it
        came; nothing is kept of what failed."""
        messages = [*(self.messages if before is None else before), {"role": "user", "content": message}]
        answer = self.model.chat_stream(messages, **self.given)
        with answer:
            try:
                for piece in answer:
                    click.echo(piece, nl=False)
            except KeyboardInterrupt:
                answer.close()
                click.echo(" (stopped)", nl=False)
            click.echo()
            self._details = answer.details
        self.answered += 1
        if self._details.finish_reason == "length":
            click.echo(self._cut(), err=True)
        if self._details.text:
            self.messages = [*messages, {"role": "assistant", "content": self._details.text}]

    def _cut(self) -> str:
        """Why the last answer ended before its end."""
        if self._details.prompt_tokens + len(self._details.tokens) > self.model.context:
            return f"(cut: the context of {self.model.context:,} tokens is full)"
        count = len(self._details.tokens)
        return f"(cut after {count:,} {'token' if count == 1 else 'tokens'}; -n allows more)"

    def advice(self, error: Exception) -> str:
        """An error, and where the conversation has become too long what to do."""
        from fastmixer.generate.options import PromptTooLong

        if not isinstance(error, PromptTooLong):
            return str(error)
        own = len(self._without_system())
        text = f"the conversation would have {error.tokens:,} tokens, more than the context of {error.context:,}. "
        text += "It stays as it was: /undo takes back its last message, /reset begins anew" if own else "Ask in fewer words"
        return f"{text}; fastmixer chat --context makes room for more, up to what the model was made for"

    # ---- commands ----

    def _do_help(self, rest: str) -> None:
        click.echo(HELP)

    def _do_system(self, rest: str) -> None:
        talk = self._without_system()
        if rest:
            self.messages = [{"role": "system", "content": rest}, *talk]
        elif len(talk) < len(self.messages):
            click.echo(self.messages[0]["content"])
        else:
            click.echo("(no system prompt)")

    def _do_reset(self, rest: str) -> None:
        self.messages = self.messages[: len(self.messages) - len(self._without_system())]

    def _do_undo(self, rest: str) -> None:
        self.messages = self.messages[: self._last("/undo")]

    def _do_retry(self, rest: str) -> None:
        last = self._last("/retry")
        self.say(self.messages[last]["content"], self.messages[:last])

    def _last(self, command: str) -> int:
        """The place of the last message that was answered."""
        if not self._without_system():
            raise ValueError(f"{command}: nothing was said yet")
        return max(index for index, message in enumerate(self.messages) if message["role"] == "user")

    def _do_stats(self, rest: str) -> None:
        details = self._details
        if details is None:
            raise ValueError("/stats: nothing was answered yet")
        length = details.prompt_tokens + len(details.tokens)
        click.echo(options.figures(details))
        click.echo(
            f"{length:,} of {self.model.context:,} tokens of context; {details.reused_tokens:,} were still known, "
            f"first token after {details.prefill_seconds:.2f} s"
        )

    def _do_save(self, rest: str) -> None:
        path = _path("/save", rest)
        path.write_text(
            json.dumps({"model": self.model.name, "messages": self.messages}, indent=2, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
        click.echo(f"saved in {path}")

    def _do_load(self, rest: str) -> None:
        path = _path("/load", rest)
        self.messages = read_messages(path)
        click.echo(f"{len(self.messages)} messages from {path}")

    def _without_system(self) -> list[dict[str, str]]:
        has_system = self.messages and self.messages[0]["role"] == "system"
        return self.messages[1:] if has_system else self.messages


def read_messages(path: Path) -> list[dict[str, str]]:
    """The messages of a saved conversation: a system prompt or none, then questions and answers by turns."""
    from fastmixer.weights.strict_json import read_object

    messages = read_object(path).get("messages")
    if not isinstance(messages, list):
        raise ValueError(f"{path}: messages must be a list; got {type(messages).__name__}")
    first = 1 if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system" else 0
    for index, message in enumerate(messages):
        role = "system" if index < first else ("user", "assistant")[(index - first) % 2]
        if not isinstance(message, dict) or message.get("role") != role or not isinstance(message.get("content"), str):
            raise ValueError(f"{path}: messages[{index}] must have role {role!r} and a text as its content")
    if (len(messages) - first) % 2:
        raise ValueError(f"{path}: the last message must be an answer")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _path(command: str, rest: str) -> Path:
    if not rest:
        raise ValueError(f"{command} needs the name of a file")
    return Path(rest).expanduser()
