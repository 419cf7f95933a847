"""What is said of a name or of an error, made fit to be read by anyone."""

import re

CREDENTIALS = re.compile(r"(?<=://)[^/?\s]+@|(?<=password=)[^&\s]+")  # of an address: user:password@, ?password=


def printable(text: str) -> str:
    """A name or a message as one line that any terminal, table and JSON takes: what else is in it is escaped."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def one_line(message: str) -> str:
    """The message as one line, with the user and the password taken out of the addresses in it."""
    return CREDENTIALS.sub("", " ".join(message.split()))
