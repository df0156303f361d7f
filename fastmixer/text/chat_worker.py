"""The process in which chat templates are rendered: a request a line in, an answer a line out, both JSON.

Run as a file, by chat.py. Imports nothing of fastmixer, so that it starts quickly. The environment for templates is the
one that transformers gives them.
"""

import json
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY = 512 << 20  # bytes of address space beyond what the process starts with
LONGEST = 1 << 26  # characters or items that one multiplication may make
MOST_BITS = 1 << 16  # of a power


class Generation(Extension):
    """{% generation %} marks what the model wrote, for training; in rendering it is only its body."""

    tags = {"generation"}  # noqa: RUF012  jinja2 reads it from the class

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Environment(ImmutableSandboxedEnvironment):
    """Multiplications and powers that would fill the memory are refused before they begin."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for thing, times in ((left, right), (right, left)):
                if isinstance(thing, (str, list, tuple)) and isinstance(times, int) and len(thing) * times > LONGEST:
                    raise jinja2.TemplateError(f"{len(thing)} characters or items, {times} times, are too many")
        if operator == "**" and isinstance(left, int) and isinstance(right, int) and right > 0:
            if left.bit_length() * right > MOST_BITS:
                raise jinja2.TemplateError(f"{left} ** {right} is too large")
        return super().call_binop(context, operator, left, right)


class PlainNamespace(Namespace):
    """A namespace whose names cannot begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # without `self`, which may be one of the names
        for name in dict(*args[1:], **values):
            _check_name(name)
        Namespace.__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.TemplateError(f"a namespace may not hold {name!r}")


def make_environment() -> Environment:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return datetime.now().strftime(form)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, namespace=PlainNamespace)
    return environment


@lru_cache(maxsize=8)
def compiled(environment: Environment, template: str) -> jinja2.Template:
    return environment.from_string(template)


def render(environment: Environment, request: dict[str, Any]) -> dict[str, str]:
    limit, length, parts = request["characters"], 0, []
    try:
        template = compiled(environment, request["template"])
        values = {"tools": None, "documents": None, **json.loads(request["variables"])}
        values |= {
            "messages": json.loads(request["messages"]),
            "add_generation_prompt": request["add_generation_prompt"],
        }
        for part in template.generate(values):
            length += len(part)
            if length > limit:
                return {"error": f"writes more than {limit} characters"}
            parts.append(part)
        return {"text": "".join(parts)}
    except jinja2.TemplateSyntaxError as error:
        return {"error": f"is wrong in line {error.lineno}: {error.message}"}
    except (MemoryError, RecursionError) as error:
        return {"error": f"needs too much: {type(error).__name__}"}
    except jinja2.TemplateError as error:
        return {"error": f"refuses: {str(error.message)[:1000]}"}
    except Exception as error:  # noqa: BLE001  a template may raise whatever Python raises; it is told, not hidden
        return {"error": f"fails: {type(error).__name__}: {str(error)[:1000]}"}


def limit_memory() -> None:
    """At most MEMORY more than now, where the system can hold a process to that."""
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        pages = int(open("/proc/self/statm").read().split()[0])
    except OSError:  # no Linux; address space is not limited there
        return
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    environment = make_environment()
    limit_memory()
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    answers.write(b"ready\n")
    answers.flush()
    for line in sys.stdin.buffer:
        answers.write(json.dumps(render(environment, json.loads(line))).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
