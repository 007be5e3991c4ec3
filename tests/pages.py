"""Reads a page of HTML, and fails on a tag that is not closed where it should be."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """The names of the tags, their attributes (tag, name, value), and the text without styles and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not {"style", "title", "script"} & set(self.open):
            self.text += data

    @property
    def ids(self) -> set[str]:
        return {value for _, key, value in self.attributes if key == "id"}

    def check_self_contained(self) -> None:
        """The page loads nothing from elsewhere, runs no handlers, and its links lead to something."""
        for tag, key, value in self.attributes:
            assert not key.startswith("on"), (tag, key)
            if key in ("src", "href", "srcset", "xlink:href"):
                assert value.startswith(("data:", "#")), (tag, key, value)
        links = {value[1:] for _, key, value in self.attributes if key == "href" and value.startswith("#")}
        assert links <= self.ids
