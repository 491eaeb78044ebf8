"""Words of texts as they are looked for: without regard to case and accents."""

import re
import unicodedata
from typing import Final

__all__ = ["words"]

_WORD: Final = re.compile(r"[^\W_]+")


def words(*texts: str) -> list[str]:
    """Return the words of texts, letters and digits, once each, in lower case without accents."""
    return list(dict.fromkeys(word for text in texts for word in _WORD.findall(_plain(text))))


def _plain(text: str) -> str:
    """Take the marks off the letters (Unicode's NFKD), and put together what is left (NFKC)."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    kept = "".join(each for each in apart if not unicodedata.combining(each))
    return unicodedata.normalize("NFKC", kept)
