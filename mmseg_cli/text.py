"""Text that a person or a file name brought, made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line, with a question mark for what cannot be shown (control characters, broken Unicode)."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def shortened(text: str, longest: int) -> str:
    """The printable text in at most `longest` characters: the middle of a longer one is left out."""
    text = printable(text)
    if len(text) <= longest:
        return text
    end = (longest - 1) // 2
    return f"{text[: longest - 1 - end]}…{text[len(text) - end :]}"
