"""What the text of a row is: a string, or a chat written by the model's chat template. The same for every format that has rows.

rows = RowText("text", Chat(folder))
rows.read({"messages": [{"role": "user", "content": "Hi"}]}, "`a.jsonl` line 3")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from moectl.data.chat import Chat
from moectl.errors import DataError

DEFAULT_FIELD = "text"
MESSAGES = "messages"


class Text(NamedTuple):
    """The text of a row; `is_chat` if the chat template wrote it."""

    text: str
    is_chat: bool


@dataclass(frozen=True, slots=True)
class RowText:
    """Reads rows: `text_field` is where they keep their text, `chat` writes those that are lists of messages.

    A field of text is taken as it is; a list of messages, in whatever field, goes through the chat template. Only where `text_field` is
    `text` and a row has none, or null, its `messages` are taken. A null is an empty document.
    """

    text_field: str
    chat: Chat

    def fields(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that can hold the text, the first choice first."""
        wanted = [self.text_field] + [MESSAGES] * (self.text_field == DEFAULT_FIELD)
        present = set(names)
        return [name for name in wanted if name in present]

    def read(self, row: Any, where: str) -> Text:
        """The text of one row. `where` names the row in the DataError raised if it has none that can be read."""
        if not isinstance(row, dict):
            raise DataError(f"{where} is a JSON {_json_type(row)}, not an object", hint=f'write rows like `{{"{self.text_field}": "..."}}`')
        fields = self.fields(row)
        if not fields:
            raise self._no_field(row, where)
        field = next((field for field in fields if row[field] is not None), fields[0])
        value = row[field]
        if value is None or (field == MESSAGES and value == []):
            return Text("", False)
        if is_chat(value) or (isinstance(value, list) and field == MESSAGES):
            return Text(_checked(self.chat.render(value, where), field, where), True)
        if not isinstance(value, str) or field != self.text_field:
            expected = "a string" if field == self.text_field else "a list of messages with `role` and `content`"
            raise DataError(
                f"{where}: the field `{field}` is a {_json_type(value)}, not {expected}", hint="choose another with `--text-field`"
            )
        return Text(_checked(value, field, where), False)

    def _no_field(self, row: Mapping[str, Any], where: str) -> DataError:
        fields = ", ".join(f"`{ascii(field)[1:-1]}`" for field in row) or "none"
        hint = "name the field that holds the text with `--text-field`"
        if MESSAGES in row:
            hint += f"; `--text-field {MESSAGES}` reads the chats"
        return DataError(f"{where} has no field `{self.text_field}` (its fields: {fields})", hint=hint)


def is_chat(value: Any) -> bool:
    """Whether `value` is a list of messages, by the first of them."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def _checked(text: str, field: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"{where}: the field `{field}` holds half a surrogate pair (`\\u{ord(text[error.start]):04x}`), which is no character"
        raise DataError(message, hint="write the row again with whole characters") from error
    return text


def _json_type(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names.get(type(value), type(value).__name__)
