"""Words of texts."""

import pytest

from shared.data.search_terms import distinct_words, words


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Crème BRÛLÉE", ["creme", "brulee"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("ﬁne ①", ["fine", "1"]),
        ("a_b-c.d/e'f", ["a", "b", "c", "d", "e", "f"]),
        ("Ёлка", ["елка"]),
        ("がぎ", ["がぎ"]),
        ("हिन्दी", ["हिन्दी"]),
        ("한국어", ["한국어"]),
        ("🎉 ' & !", []),
        ("I ❤\ufe0f 1\ufe0f\u20e3", ["i", "1"]),
        ("❤\ufe0f \u094d", []),
        ("Postbus™ ㎅", ["postbustm", "kb"]),
        ("\u13a0 \uab70", ["\u13a0", "\u13a0"]),  # the large letter is the plain one here
        ("", []),
    ],
)
def test_words_have_neither_case_nor_accents(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_text_and_the_same_text_composed_otherwise_have_the_same_words() -> None:
    assert words("e\u0301te\u0301") == words("\u00e9t\u00e9") == ["ete"]


def test_words_stay_as_they_are_when_they_are_taken_for_a_text() -> None:
    every = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]

    assert [each for each in every if words(" ".join(words(each))) != words(each)] == []


def test_words_are_found_once() -> None:
    assert distinct_words("One two", "TWO three") == ["one", "two", "three"]
