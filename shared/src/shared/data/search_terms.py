"""Words of texts as they are looked for: without regard to case and accents."""

import unicodedata

__all__ = ["distinct_words", "words"]

_ACCENTS = range(0x300, 0x370)
"""Marks of Latin, Greek and Cyrillic letters. Those of other scripts make other letters."""
_EMOJI = str.maketrans("", "", "\ufe0e\ufe0f\u20e3")
"""Marks that make a picture of what they follow, and an invisible word of nothing."""


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without accents: letters, digits and marks."""
    apart = unicodedata.normalize("NFKD", text.translate(_EMOJI).casefold())
    plain = "".join(each for each in apart.casefold() if ord(each) not in _ACCENTS)  # ™ is TM
    together = unicodedata.normalize("NFKC", plain)
    found = "".join(each if _in_word(each) else " " for each in together).split()
    return [word for word in found if any(map(_is_letter_or_digit, word))]


def distinct_words(*texts: str) -> list[str]:
    """Return the words of texts, once each."""
    return list(dict.fromkeys(word for text in texts for word in words(text)))


def _in_word(character: str) -> bool:
    return _is_letter_or_digit(character) or unicodedata.category(character)[0] == "M"


def _is_letter_or_digit(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN"
