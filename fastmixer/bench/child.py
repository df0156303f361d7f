"""A Python process that answers in lines of JSON, seen from outside. Knows nothing of what it is asked.

Its errors go to a file: nobody reads them while it runs, and a pipe that is full would stop it for ever.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any


class Child:
    """`python -m module arguments...` with these variables besides ours. name: what errors call it.

    ChildProcessError with its last line of errors if it ends instead of answering.
    """

    def __init__(self, name: str, module: str, arguments: list[str], environment: Mapping[str, str]):
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], env={**os.environ, **environment}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Its answer to this one."""
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:] or [f"it ended with {self._process.returncode}"]
        self.close()
        raise ChildProcessError(f"bench: {self.name} failed in its own process: {last[0]}")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()
