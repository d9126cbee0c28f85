"""What kind of text a token is: digits, punctuation, code, white space, or letters of a script.

class_of_id_V = class_table(tokenizer, batches)      # int8 [V], an index into CLASSES
CLASSES[token_class(" cat")]                         # "latin"
"""

# Shapes: V ids up to the largest one of the run.

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from moectl.data.batching import MicroBatch
    from moectl.data.tokenizer import TextTokenizer

CLASSES = (
    "special", "whitespace", "digit", "punctuation", "code", "latin", "cjk", "cyrillic", "greek", "arabic", "hebrew", "indic",
    "other_script", "other",
)  # fmt: skip
# Unicode names start with the script.
_SCRIPTS = {
    "LATIN": "latin", "CYRILLIC": "cyrillic", "GREEK": "greek", "ARABIC": "arabic", "HEBREW": "hebrew",
    "CJK": "cjk", "HIRAGANA": "cjk", "KATAKANA": "cjk", "KATAKANA-HIRAGANA": "cjk", "HANGUL": "cjk", "BOPOMOFO": "cjk",
    "DEVANAGARI": "indic", "BENGALI": "indic", "GURMUKHI": "indic", "GUJARATI": "indic", "ORIYA": "indic", "TAMIL": "indic",
    "TELUGU": "indic", "KANNADA": "indic", "MALAYALAM": "indic", "SINHALA": "indic",
}  # fmt: skip
_CODE = frozenset("{}[]<>=+*/\\|&^%$#@~`_")


def token_class(text: str) -> int:
    """The class of one token's text, as an index into CLASSES.

    Letters decide before digits, digits before symbols; among letters the script of most of them. One code symbol makes a token of symbols
    code. What holds none of these, part of a character among them, is "other".
    """
    if text and text.isspace():
        return CLASSES.index("whitespace")
    scripts = Counter(_script(c) for c in text if c.isalpha())
    if scripts:
        return CLASSES.index(min(scripts, key=lambda name: (-scripts[name], CLASSES.index(name))))
    if any(c.isnumeric() for c in text):
        return CLASSES.index("digit")
    if any(c in _CODE for c in text):
        return CLASSES.index("code")
    if any(unicodedata.category(c).startswith("P") for c in text):
        return CLASSES.index("punctuation")
    return CLASSES.index("other")


def class_table(tokenizer: TextTokenizer, batches: Sequence[MicroBatch]) -> NDArray[np.int8]:
    """[V] the class of every id that occurs in `batches`; "other" for the rest, and for ids the tokenizer does not know."""
    occurs_V = np.zeros(1 + max((int(batch.ids_BS.max(initial=0)) for batch in batches), default=0), np.bool_)
    for batch in batches:
        occurs_V[batch.ids_BS] = True
    table_V = np.full(len(occurs_V), CLASSES.index("other"), np.int8)
    for token_id in np.flatnonzero(occurs_V).tolist():
        if token_id in tokenizer.special_ids:
            table_V[token_id] = CLASSES.index("special")
        else:
            table_V[token_id] = token_class(_text(tokenizer, token_id))
    return table_V


def _text(tokenizer: TextTokenizer, token_id: int) -> str:
    """What the token stands for; empty where that is no text of its own."""
    text = tokenizer.decode([token_id])
    if text == f"<{token_id}>" or "\ufffd" in text:  # unknown, or part of a character
        return ""
    # SentencePiece decoders drop the space that starts a text.
    return text or tokenizer.token(token_id).replace("\u2581", " ")


def _script(letter: str) -> str:
    return _SCRIPTS.get(unicodedata.name(letter, "").split(" ")[0], "other_script")
