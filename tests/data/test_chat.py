"""Chat templates: the text and the ids that `transformers` gives, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from moectl.data.chat import Chat
from moectl.data.packing import Domain, load_domains
from moectl.errors import DataError, ModelError

CHATML = (
    "{% for message in messages %}\n    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}\n"
    "{% endfor %}\n{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}\n{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = 'You are kind.' %}{%- endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}\n"
    "{%- for message in messages %}\n    {%- if message.content is string %}{%- set content = message.content %}{%- else %}"
    "{%- set content = message.content | map(attribute='text') | join('|') %}{%- endif %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + content | trim + '<|eot_id|>' }}\n{%- endfor %}"
)
DEEPSEEK = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = ns.system_prompt + message['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{ '<\uff5cUser\uff5c>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<\uff5cAssistant\uff5c>' + content + eos_token }}"
    "{%- endif %}{%- endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
EVERYTHING = (
    "{# a comment #}\n{% for message in messages %}\n  {% if message.role == 'system' %}\n    {% continue %}\n  {% endif %}\n"
    "  {% generation %}{{ message | tojson }}{% endgeneration %}\n  {{ message.get('reasoning_content', 'none') }}{{ message.thinking }}\n"
    "  {{ dict(a='<é>', b=1) | tojson(indent=2) }}{{ strftime_now('%Y') }}{{ unk_token }}{{ tools is none }}{{ documents is none }}\n"
    "  {{ add_generation_prompt }}{{ missing }}{{ dict.fromkeys('ab', 1) }}\n  {% if loop.index > 5 %}{% break %}{% endif %}\n{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "deepseek": DEEPSEEK, "mistral": MISTRAL, "everything": EVERYTHING}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "The quick <b>brown</b> fox & naïve café \U0001f600"}, {"role": "assistant", "content": " jumps\n over "}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>hm</think>b", "name": None},
        {"role": "user", "content": "c"},
    ],
    [{"role": "system", "content": "  Be brief."}, {"role": "user", "content": "def f(x):\n    return x"}],
    [{"role": "user", "content": "a", "thinking": "deep"}, {"role": "assistant", "content": "b", "reasoning_content": "deeper"}],
]


@pytest.fixture
def model(tmp_path: Path, raw_tokenizers: dict[str, Tokenizer]) -> Callable[..., Path]:
    """`model(template, kind="template", **settings)`: a model folder with a chat template in a file of its own."""

    def make(template: str | None, kind: str = "template", **settings: object) -> Path:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        tokenizer = Tokenizer.from_str(raw_tokenizers[kind].to_str())
        tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>", "<|eot_id|>")])
        tokenizer.save(str(folder / "tokenizer.json"))
        names = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
        (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return folder

    return make


def _oracle(folder: Path, template: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def _domain(folder: Path, rows: list[Any], **options: Any) -> Domain:
    path = folder.parent / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (domain,) = load_domains([str(path)], folder=folder, vocab_size=1000, seq_len=64, **options)
    return domain


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("kind", ["plain", "template", "both_ends", "sentencepiece"])
def test_text_and_ids_are_those_of_transformers(name: str, kind: str, model: Callable[..., Path]) -> None:
    folder = model(TEMPLATES[name], kind, add_bos_token=True)
    oracle, chat = _oracle(folder, TEMPLATES[name]), Chat(folder)
    expected: list[int] = []
    chats = [messages for messages in CHATS if name != "mistral" or messages[0]["role"] != "system"]
    for messages in chats:
        text = oracle.apply_chat_template(messages, tokenize=False)
        assert chat.render(messages, "row") == text
        expected += oracle.apply_chat_template(messages, tokenize=True, return_dict=False)
        assert len(text) > 10
    domain = _domain(folder, [{"messages": messages} for messages in chats])
    assert domain.token_ids.tolist() == expected
    assert domain.n_documents == len(chats)
    assert _domain(folder, [{"messages": messages} for messages in chats], tokens=50).token_ids.tolist() == expected[:50]


@pytest.mark.parametrize("kind", ["plain", "template"])
def test_bos_comes_once_and_only_from_the_template(kind: str, model: Callable[..., Path]) -> None:
    for template, n_bos in ((LLAMA3, 1), (CHATML, 0)):
        ids = _domain(model(template, kind, add_bos_token=True), [{"messages": CHATS[0]}]).token_ids.tolist()
        assert ids.count(0) == n_bos
        assert ids[:1].count(0) == n_bos


def test_a_long_chat_in_windows(model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"role": role, "content": "The quick brown fox\n" * 30} for role in ("user", "assistant")] * 3
    folder = model(LLAMA3, "template", add_bos_token=True)
    whole = _oracle(folder, LLAMA3).apply_chat_template(messages, tokenize=True, return_dict=False)
    monkeypatch.setattr("moectl.data.windows._WINDOW_CHARS", 300)
    monkeypatch.setattr("moectl.data.windows._MARGIN_CHARS", 32)
    assert _domain(folder, [{"messages": messages}]).token_ids.tolist() == whole


def test_parts_of_text(model: Callable[..., Path]) -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}]
    folder = model(LLAMA3)
    assert Chat(folder).render(messages, "row") == _oracle(folder, LLAMA3).apply_chat_template(messages, tokenize=False)
    assert "a |b" in Chat(folder).render(messages, "row")
    for template in (CHATML, DEEPSEEK, "{% for m in messages %}{{ m.content }}{% endfor %}"):
        folder = model(template)
        assert "a \nb" in Chat(folder).render(messages, "row")
        assert Chat(folder).render(messages, "row") == Chat(folder).render([{"role": "user", "content": "a \nb"}], "row")


def test_where_the_template_comes_from(model: Callable[..., Path]) -> None:
    one, two = "{{ 'one' }}", "{{ 'two' }}"
    named = [{"name": "tool_use", "template": one}, {"name": "default", "template": two}]
    assert Chat(model(one, chat_template=two)).render(CHATS[0], "row") == "one"
    assert Chat(model(None, chat_template=two)).render(CHATS[0], "row") == "two"
    assert Chat(model(None, chat_template=named)).render(CHATS[0], "row") == "two"
    with pytest.raises(DataError, match=r"has no chat template `default` \(its templates: `tool_use`\)"):
        Chat(model(None, chat_template=named[:1])).render(CHATS[0], "row")


def test_special_tokens_are_variables(model: Callable[..., Path]) -> None:
    template = "{{ bos_token }} {{ eos_token }} {{ unk_token }} {{ image_token }} {{ video_token }} {{ add_bos_token }}"
    folder = model(template, image_token="<i>", extra_special_tokens={"video_token": "<v>"}, add_bos_token=True, unk_token=None)
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<other>", "pad_token": "<pad>"}))
    assert Chat(folder).render(CHATS[0], "row") == "<s> </s>  <i> <v> "


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "assistant", "content": "x"}], r"refuses it: Roles must alternate user/assistant/\.\.\.$"),
        ([{"role": "user"}], r"refuses it: "),
        (["hello"], r"message 1 has no `role`$"),
        ([{"role": "user", "content": "x"}, {"content": "x"}], r"message 2 has no `role`$"),
        ([{"role": None, "content": "x"}], r"message 1 has no `role`$"),
        ([{"role": "user", "content": 3}], r"message 1: the content is neither a string nor a list of parts$"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], r'message 1: a part of the content is "image", not text$'),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], r'a part of the content is "text", not text$'),
        ([{"role": "user", "content": "\ud800"}], r"the field `messages` holds half a surrogate pair"),
    ],
)
def test_chats_that_are_refused_name_their_row(messages: list[Any], message: str, model: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"`.*rows\.jsonl` line 2: .*" + message) as caught:
        _domain(model(MISTRAL), [{"text": "fine"}, {"messages": messages}])
    assert caught.value.exit_code == 5
    assert caught.value.hint


@pytest.mark.parametrize(
    "template",
    ["{{ messages[0].content.__class__ }}{{ messages[0].__init__.__globals__ }}", "{{ 1 // 0 }}", "{% set _ = messages.append(1) %}",
     "{% set n = namespace(__class__=1) %}", "{% set n = namespace() %}{% set n.__init__ = 1 %}", "{{ 'x' * 3 + 1 }}",
     "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"],
)  # fmt: skip
def test_a_template_stays_in_its_sandbox(template: str, model: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="the model's chat template refuses it: "):
        Chat(model(template)).render(CHATS[0], "row")


def test_templates_that_cannot_be_read(model: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"`.*chat_template\.jinja` is not a chat template that can be read: .* \(line 2\)$"):
        Chat(model("\n{% for %}")).render(CHATS[0], "row")
    with pytest.raises(ModelError, match=r"`.*tokenizer_config\.json` is not a chat template"):
        Chat(model(None, chat_template="{{ x | no_such_filter }}")).render(CHATS[0], "row")
    with pytest.raises(ModelError, match=r"`chat_template` in `.*` is not text"):
        Chat(model(None, chat_template=3)).render(CHATS[0], "row")
    folder = model("")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match="is not UTF-8"):
        Chat(folder).render(CHATS[0], "row")


def test_text_and_chats_side_by_side(model: Callable[..., Path]) -> None:
    folder = model(CHATML, "template")
    oracle = _oracle(folder, CHATML)
    rows = [{"text": "The quick", "messages": CHATS[0]}, {"messages": CHATS[0], "text": None}, {"messages": []}, {"talk": CHATS[1]}]
    chat = oracle.apply_chat_template(CHATS[0], tokenize=True, return_dict=False)
    assert _domain(folder, rows[:3]).token_ids.tolist() == [*oracle.encode("The quick"), 1, *chat]
    assert _domain(folder, rows[:3]).n_documents == 2
    assert _domain(folder, rows[:1], text_field="messages").token_ids.tolist() == chat
    assert _domain(folder, rows[3:], text_field="talk").token_ids.tolist() == oracle.apply_chat_template(CHATS[1], return_dict=False)
    with pytest.raises(DataError, match="line 4 has no field `text`"):
        _domain(folder, rows)
