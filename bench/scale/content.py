"""The content of the databases; the same scale always gives the same content."""

import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

__all__ = ["Content", "person_id", "post_id", "tag_of"]

_START: Final = 1_700_000_000_000_000
_STEP: Final = 20_000_000
"""Microseconds between posts."""
_WORDS: Final = 5000
_TAGS: Final = 1000
_LIKES_EACH: Final = 50
FOLLOWED: Final = 500
_BODY: Final = "Every queue promises that someone will come. " * 6


def person_id(number: int) -> str:
    """Return a UUIDv7 that ends with `number`."""
    return f"018bcfe5-6800-7000-8000-{number:012x}"


def post_id(number: int) -> str:
    """Return a UUIDv7 that ends with `number`."""
    milliseconds = (_START + number * _STEP) // 1000
    return f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7000-9000-{number:012x}"


def tag_of(dice: random.Random) -> str:
    """Return a random tag with a frequency by Zipf's law."""
    return f"tag{dice.choices(range(_TAGS), cum_weights=_ZIPF)[0]}"


_ZIPF: Final = list(accumulate(1 / rank for rank in range(1, _TAGS + 1)))


@dataclass(frozen=True, slots=True)
class Content:
    """`posts` posts, a tenth as many users, five likes per post; each reader follows 500 users."""

    posts: int
    readers: int = 200
    like_counts: "array[int]" = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "like_counts", array("I", bytes(4 * self.posts)))

    @property
    def people(self) -> int:
        """The number of users."""
        return self.posts // 10

    def usernames(self) -> Iterator[str]:
        """Yield the usernames: two words and a number."""
        for number in range(self.people):
            yield f"{_word(number % 701)}{_word(number % 997)}_{number}"

    def author_documents(self) -> Iterator[dict[str, Any]]:
        """Yield the author document of each user."""
        for number, name in enumerate(self.usernames()):
            yield {
                "_id": person_id(number),
                "username": name,
                "name_key": name,
                "display_name": "",
                "image_url": "",
                "version": 1,
                "deleted": False,
                "shape": 2,
            }

    def follows(self) -> Iterator[tuple[int, int]]:
        """Yield pairs of follower and followed user."""
        dice = random.Random(1)  # noqa: S311  # no secret
        for reader in range(self.readers):
            followed = dice.sample(range(self.people), min(FOLLOWED + 1, self.people))
            yield from [(reader, each) for each in followed if each != reader][:FOLLOWED]

    def likes(self) -> Iterator[dict[str, Any]]:
        """Yield the documents of likes, and count the likes of each post for `post_documents`."""
        dice = random.Random(2)  # noqa: S311  # no secret
        for person in range(self.people):
            user_id = person_id(person)
            for post in dice.sample(range(self.posts), _LIKES_EACH):
                self.like_counts[post] += 1
                id_, at = post_id(post), _START + dice.randrange(self.posts * _STEP)
                yield {
                    "_id": f"{id_}/{user_id}",
                    "post_id": id_,
                    "user_id": user_id,
                    "place": f"{at:016x} {id_}",
                }

    def post_documents(self) -> Iterator[dict[str, Any]]:
        """Yield the documents of posts; call `likes` first."""
        dice = random.Random(3)  # noqa: S311  # no secret
        for number in range(self.posts):
            at, id_ = _START + number * _STEP, post_id(number)
            title = [_word(dice.randrange(_WORDS)) for _ in range(5)]
            tags = list(dict.fromkeys(tag_of(dice) for _ in range(3)))
            slug = f"{'-'.join(title)}-{number}"
            yield {
                "_id": id_,
                "author_id": person_id(dice.randrange(self.people)),
                "slug": slug,
                "slugs": [slug],
                "title": " ".join(title),
                "summary": "A summary of a few words",
                "body": _BODY,
                "tags": tags,
                "tag_keys": tags,
                "words": [*dict.fromkeys(title), *tags],
                "status": "published",
                "place": f"{at:016x} {id_}",
                "created_at": at,
                "updated_at": at,
                "published_at": at,
                "like_count": self.like_counts[number],
                "comment_count": 0,
                "version": 1,
                "shape": 2,
            }


def _word(number: int) -> str:
    """Return a pronounceable word of three syllables."""
    consonants, vowels = "bdfgklmnprst", "aeiou"
    text = ""
    for _ in range(3):
        number, rest = divmod(number, 60)
        text += consonants[rest % 12] + vowels[rest // 12]
    return text
