"""Names and error messages as one printable line without credentials."""

import re

CREDENTIALS = re.compile(r"(?<=://)[^/?\s]+@|(?<=password=)[^&\s]+")  # in a URL: user:password@, ?password=


def printable(text: str) -> str:
    """Escape every character that a terminal, a table or JSON cannot show."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def one_line(message: str) -> str:
    """Return the message as one line, without the users and passwords of the URLs in it."""
    return without_password(" ".join(message.split()))


def without_password(text: str) -> str:
    """Return the text without the users and passwords of the URLs in it."""
    return CREDENTIALS.sub("", text)
