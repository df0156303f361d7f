"""Makes tests/text/data/chat/rendered.json: what transformers makes of each chat with each template there.

python tests/text/make_chat_goldens.py
"""

import json
from pathlib import Path

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

FOLDER = Path(__file__).parent / "data" / "chat"


def main():
    chats = json.loads((FOLDER / "chats.json").read_text(encoding="utf-8"))
    rendered = {}
    for path in sorted(FOLDER.glob("*.jinja")):
        for name, chat in chats.items():
            for prompt in (False, True):
                rendered[f"{path.stem} {name} {prompt}"] = render(path.read_text(encoding="utf-8"), chat, prompt)
    text = json.dumps(rendered, ensure_ascii=False, indent=1)
    (FOLDER / "rendered.json").write_text(text + "\n", encoding="utf-8")


def render(template, chat, prompt):
    """The text, or None where the template refuses the chat."""
    try:
        texts, _ = render_jinja_template(
            conversations=[chat["messages"]], tools=chat.get("tools"), chat_template=template,
            add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>",
        )  # fmt: skip
        return texts[0]
    except (TemplateError, TypeError):
        return None


if __name__ == "__main__":
    main()
