"""Values derived from texts: slugs, tag keys and mentions."""

import unicodedata

import pytest

from posts.post_texts import distinct_tags, is_slug_of, mentions, slug_of, tag_key, with_suffix


@pytest.mark.parametrize(
    ("title", "slug"),
    [
        ("Postbus™ is ㎏", "postbustm-is-kg"),
        ("I ❤\ufe0f you", "i-you"),
        ("❤\ufe0f", "post"),
        ("--- a --- b ---", "a-b"),
        ("x" * 200, "x" * 80),
        ("a" * 79 + " b", "a" * 79),
    ],
)
def test_slug_has_the_words_of_the_title(title: str, slug: str) -> None:
    assert slug_of(title) == slug


def test_slug_of_a_title_like_an_id_is_not_an_id() -> None:
    id_ = "018F3F6E-0000-7000-8000-000000000001"

    assert slug_of(id_) == f"post-{id_.lower()}"


@pytest.mark.parametrize(
    ("slug", "made"),
    [
        ("read-me", True),
        ("read-me-690a58d6", True),
        ("read-me-00000000000a", True),
        ("read-me-20260101", False),
        ("read-me-690a58d6-690a58d6", False),
        ("read-me-690A58D6", False),
        ("read-me-now", False),
        ("read", False),
    ],
)
def test_slug_with_a_suffix_belongs_to_the_same_title(slug: str, made: bool) -> None:
    assert is_slug_of(slug, "read-me", "018f3f6e-0000-7000-8000-00000000000a") is made
    assert is_slug_of(with_suffix("read-me"), "read-me", "")


def test_slug_of_any_character_is_found_in_any_case() -> None:
    every = [chr(code) for code in range(0x30000) if not 0xD800 <= code < 0xE000]

    assert [each for each in every if slug_of(each) != slug_of(each).casefold()] == []


def test_tags_that_differ_in_case_or_composition_are_equal() -> None:
    assert distinct_tags(["Été", "ÉTÉ", "e\u0301te\u0301", "ete"]) == {"été": "Été", "ete": "ete"}
    assert distinct_tags(["ΣΊΣΥΦΟΣ", "σίσυφος", "™", "tm"]) == {"σίσυφοσ": "ΣΊΣΥΦΟΣ", "tm": "™"}


def test_blank_tag_is_dropped() -> None:
    assert distinct_tags(["\u3000", " \u2003", " a\u3000"]) == {"a": "a"}


def test_stored_tag_has_the_key_of_the_original() -> None:
    marked = "\u03b1\u0345\u0301"  # NFC reorders the marks

    [(key, stored)] = distinct_tags([marked]).items()

    assert unicodedata.normalize("NFC", marked) == stored != marked
    assert key == tag_key(stored) == tag_key(marked)


def test_key_of_a_tag_has_at_most_100_characters() -> None:
    assert tag_key("\ufdfa" * 50) == ("صلى الله عليه وسلم" * 50)[:100]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("@alice, @Bob_1! (@carol-x)\n@dave.", ["alice", "bob_1", "carol-x", "dave"]),
        ("@alice @ALICE @Alice", ["alice"]),
        ("me@example.com @@alice x@alice .@alice", []),
        ("@al @1alice @ alice", []),
        (" ".join(f"@user{number}" for number in range(12)), [f"user{n}" for n in range(10)]),
    ],
)
def test_mention_is_an_at_sign_before_a_name(text: str, names: list[str]) -> None:
    assert mentions(text) == names
