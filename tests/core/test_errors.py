"""What is printed of what the user gave."""

from __future__ import annotations

import pytest

from petriscope.core.errors import hide_password


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        (
            "--storage=postgresql+psycopg://me:se@cret:1@host:5432/db",
            "--storage=postgresql+psycopg://me:***@host:5432/db",
        ),
        ("s3://:secret@host", "s3://:***@host"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("https://host:80/a@b:c@d", "https://host:80/a@b:c@d"),
        ("a://[", "a://["),
        ("--trials", "--trials"),
    ],
)
def test_passwords_are_not_shown(word: str, shown: str) -> None:
    assert hide_password(word) == shown
