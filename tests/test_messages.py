"""Messages are one printable line without passwords."""

import pytest

from drilldown.messages import one_line, printable


def test_a_message_is_one_printable_line():
    assert printable("a\tb\nc\x1b[1m é 7") == "a\\tb\\nc\\x1b[1m é 7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:secret@host:5000/api failed", "http://host:5000/api failed"),
        (
            "at postgresql+psycopg2://user:s@cret@host/db and http://a:b@c",
            "at postgresql+psycopg2://host/db and http://c",
        ),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("http://host/path x@y", "http://host/path x@y"),
        ("several\n  lines", "several lines"),
        ("mysql://host/db?user=me&password=s@cret&charset=utf8", "mysql://host/db?user=me&password=&charset=utf8"),
        ("http://host?mail=me@work", "http://host?mail=me@work"),
    ],
)
def test_credentials_are_removed(text, expected):
    assert one_line(text) == expected
