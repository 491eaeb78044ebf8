"""Words of texts for search, normalised: without case and accents."""

import unicodedata

__all__ = ["distinct_words", "words"]

_ACCENTS = range(0x300, 0x370)
"""Combining marks of Latin, Greek and Cyrillic. Marks of other scripts distinguish letters."""
_EMOJI = str.maketrans("", "", "\ufe0e\ufe0f\u20e3")
"""Variation selectors and the keycap mark; alone they would form an invisible word."""


def words(text: str) -> list[str]:
    """Return the words of a text, case-folded and without accents.

    A word consists of letters, digits and combining marks. The function is idempotent.
    """
    decomposed = unicodedata.normalize("NFKD", text.translate(_EMOJI).casefold())
    # folded again, because NFKD can produce capital letters: ™ becomes TM
    plain = "".join(each for each in decomposed.casefold() if ord(each) not in _ACCENTS)
    composed = unicodedata.normalize("NFKC", plain)
    found = "".join(each if _in_word(each) else " " for each in composed).split()
    return [word for word in found if any(map(_is_letter_or_digit, word))]


def distinct_words(*texts: str) -> list[str]:
    """Return the words of several texts without duplicates, in order of first occurrence."""
    return list(dict.fromkeys(word for text in texts for word in words(text)))


def _in_word(character: str) -> bool:
    return _is_letter_or_digit(character) or unicodedata.category(character)[0] == "M"


def _is_letter_or_digit(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN"
