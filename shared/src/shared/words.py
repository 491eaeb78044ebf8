"""Words of texts as they are looked for: without regard to case and accents."""

import unicodedata

__all__ = ["distinct_words", "words"]

_ACCENTS = range(0x300, 0x370)
"""Marks of Latin, Greek and Cyrillic letters. Those of other scripts make other letters."""


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without accents: letters, digits and marks."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(each for each in apart if ord(each) not in _ACCENTS)
    together = unicodedata.normalize("NFKC", plain)
    return "".join(each if _in_word(each) else " " for each in together).split()


def distinct_words(*texts: str) -> list[str]:
    """Return the words of texts, once each."""
    return list(dict.fromkeys(word for text in texts for word in words(text)))


def _in_word(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM"
