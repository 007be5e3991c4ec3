"""Read XML that comes from outside: elements, attributes and text alone."""

from __future__ import annotations

from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

DEPTH = 50  # levels of nesting


def parse_xml(text: str) -> Element:
    """The root element of a document.

    Document types are refused, and with them all entities that a document defines: those can stand for more text than memory
    holds, or for other files.

    Raises:
        ValueError: it is no XML, has a document type, or is nested deeper than `DEPTH`.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > DEPTH:
            raise ValueError("it is nested too deeply")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise ValueError("it has a document type (DOCTYPE), which may define entities without end; remove that line")

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(text, True)
    except expat.ExpatError as error:
        raise ValueError(f"it is no XML: {error}") from None
    return builder.close()
