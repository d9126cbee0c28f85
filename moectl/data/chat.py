"""The chat template of a model: messages to the text that the model was trained on, as `transformers` renders it.

    chat = Chat(Path("checkpoint"))
    chat.render([{"role": "user", "content": "Hi"}], "`a.jsonl` line 1")  # "<|im_start|>user\\nHi<|im_end|>\\n"

Templates come with checkpoints and are not trusted: they run in jinja2's sandbox and see nothing but the messages and the special tokens.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moectl.data.chat_environment import make_environment
from moectl.data.tokenizer import read_settings
from moectl.errors import DataError, ModelError

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE_FILE = "chat_template.jinja"
# The names a message's reasoning goes by. Templates read the first; gpt-oss reads the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Chat:
    """The template of the model in `folder`: `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (of several `default`).

    It is looked for when the first chat comes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def render(self, messages: list[Any], where: str) -> str:
        """The text of one chat, BOS and all, without a prompt for an answer. `where` names the row in errors.

        Raises DataError for a model without a template, for messages that are none, for content that is not text, and for what the
        template refuses; ModelError for a template that cannot be read.
        """
        if self._template is None:
            raise DataError(
                f"{where} is a chat, and the model has no chat template: looked for `{TEMPLATE_FILE}` and for `chat_template` in "
                f"`tokenizer_config.json` in `{self._folder}`",
                hint="use the instruction-tuned model, copy its chat template there, or name a field of plain text with `--text-field`",
            )
        prepared = [self._prepared(message, f"{where}: message {number}") for number, message in enumerate(messages, start=1)]
        try:
            return self._render(prepared)
        except MemoryError:
            raise
        except Exception as error:  # a template fails in any way Python can
            reason = str(error).strip() or type(error).__name__
            hint = "correct the row: templates ask for certain roles in a certain order"
            raise DataError(f"{where}: the model's chat template refuses it: {reason}", hint=hint) from error

    def _render(self, messages: list[dict[str, Any]]) -> str:
        assert self._template is not None
        return self._template.render(**self._special_tokens, messages=messages, tools=None, documents=None, add_generation_prompt=False)

    def _prepared(self, message: Any, where: str) -> dict[str, Any]:
        """A message without what is null, its content a string unless the template reads parts."""
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f"{where} has no `role`", hint='write messages like `{"role": "user", "content": "..."}`')
        prepared = {key: value for key, value in message.items() if value is not None}
        reasoning = next((prepared[name] for name in _REASONING if name in prepared), None)
        if reasoning is not None:
            prepared = {"thinking": reasoning} | prepared | {"reasoning_content": reasoning}
        content = prepared.get("content", "")
        if isinstance(content, list):
            texts = [_text_of_part(part, where) for part in content]
            prepared["content"] = [{"type": "text", "text": text} for text in texts] if self._reads_parts else "\n".join(texts)
        elif not isinstance(content, str):
            raise DataError(f"{where}: the content is neither a string nor a list of parts", hint="only text can be read")
        return prepared

    @functools.cached_property
    def _template(self) -> Template | None:
        from jinja2 import TemplateError, TemplateSyntaxError

        text, name = self._source()
        if text is None:
            return None
        try:
            return make_environment().from_string(text)
        except TemplateSyntaxError as error:
            message = f"`{name}` is not a chat template that can be read: {error.message} (line {error.lineno})"
            raise ModelError(message, hint="fetch the file again") from error
        except (TemplateError, RecursionError) as error:
            raise ModelError(f"`{name}` is not a chat template that can be read: {error}", hint="fetch the file again") from error

    @functools.cached_property
    def _special_tokens(self) -> dict[str, str]:
        settings = read_settings(self._folder)
        extra = settings.get("extra_special_tokens")
        if isinstance(extra, dict):
            settings = extra | settings
        values = {key: value.get("content") if isinstance(value, dict) else value for key, value in settings.items()}
        return {key: value for key, value in values.items() if key.endswith("_token") and isinstance(value, str)}

    @functools.cached_property
    def _reads_parts(self) -> bool:
        """Whether the template goes through a list of parts; others print the list, or fail on it."""
        part = {"type": "text", "text": "<the text>", "<a key>": "<a value>"}
        try:
            text = self._render([{"role": "user", "content": [part]}])
        except Exception:
            return False
        return "<the text>" in text and "<a key>" not in text

    def _source(self) -> tuple[str | None, Path]:
        """The text of the template, and the file it comes from."""
        path = self._folder / TEMPLATE_FILE
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8"), path
            except UnicodeDecodeError as error:
                raise ModelError(f"`{path}` is not UTF-8 text", hint="fetch the file again") from error
        path = self._folder / "tokenizer_config.json"
        found = read_settings(self._folder).get("chat_template")
        if isinstance(found, list):
            named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
            if "default" not in named:
                names = ", ".join(f"`{name}`" for name in named)
                raise DataError(
                    f"`{path}` has no chat template `default` (its templates: {names})", hint=f"write the one to use to `{TEMPLATE_FILE}`"
                )
            found = named["default"]
        if found is not None and not isinstance(found, str):
            raise ModelError(f"`chat_template` in `{path}` is not text", hint="fetch the file again")
        return found, path


def _text_of_part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else part
    raise DataError(f"{where}: a part of the content is {json.dumps(str(kind))}, not text", hint="only text can be read")
