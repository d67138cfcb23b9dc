"""The words of a report, the same for every score: any script, no punctuation, numbers whole."""

from __future__ import annotations

import unicodedata

import regex

# Written without blanks between words; the last is the mark of a long vowel, of no script.
_SINGLE = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
_WORDS = regex.compile(
    r"(?V1)\p{Nd}+(?:\.\p{Nd}+)*"
    rf"|[{_SINGLE}]\p{{M}}*"
    rf"|[\p{{L}}--[{_SINGLE}]][[\p{{L}}\p{{M}}\p{{Nd}}]--[{_SINGLE}]]*"
)


def words_of(text: str) -> list[str]:
    """Words in order, lower case and in normal form NFKC, in which both signs of micro are one.

    ``300`` and ``0.5`` are one word each, ``300 µm`` and ``300µm`` the same two. Chinese characters
    and Japanese kana stand alone, as BLEU for Chinese is computed character by character; Hangul
    has blanks and is taken by word. Whatever is no letter or digit parts words and is dropped.
    """
    return _WORDS.findall(unicodedata.normalize("NFKC", text).lower())
