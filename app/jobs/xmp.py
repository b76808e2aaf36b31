"""Read the texts of XMP, the XML that cameras and programs write into pictures."""

from xml.parsers import expat

# Larger ones are not read: this much takes some hundredths of a second.
MAX_BYTES = 2**20
# Elements of these namespaces hold properties, and are none.
_HOLDERS = ("http://www.w3.org/1999/02/22-rdf-syntax-ns#", "adobe:ns:meta/")
_XML = "http://www.w3.org/XML/1998/namespace"
_ITEM = f"{_HOLDERS[0]} li"


def read_xmp(xmp: bytes) -> dict[str, str]:
    """Return the texts of XMP by the names of their properties, without namespaces; of a list the first.

    It takes linear time: a document type, without which there are no entities, is refused.

    Raises:
        ValueError: it is damaged, has a document type, or is larger than MAX_BYTES.
    """
    if len(xmp) > MAX_BYTES:
        raise ValueError("it is too large")
    pieces: dict[str, list[str]] = {}
    filled, complete = set[str](), set[str]()
    path = [""]  # the property that each open element belongs to

    def begin(element: str, attributes: dict[str, str]) -> None:
        space, _, name = element.rpartition(" ")
        path.append(path[-1] if space in _HOLDERS else name)
        for attribute, value in attributes.items():
            space, _, name = attribute.rpartition(" ")
            if space and space not in (*_HOLDERS, _XML):
                pieces.setdefault(name, [value])

    def end(element: str) -> None:
        path.pop()
        if element == _ITEM and path[-1] in filled:
            complete.add(path[-1])

    def add(text: str) -> None:
        if path[-1] and path[-1] not in complete:
            pieces.setdefault(path[-1], []).append(text)
            if text.strip():
                filled.add(path[-1])

    def refuse(*_: object) -> None:
        raise ValueError

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = begin, end, add
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(xmp.strip(b"\0 \r\n\t"), True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise ValueError("it is damaged") from error
    texts = {name: "".join(parts).strip() for name, parts in pieces.items()}
    return {name: text for name, text in texts.items() if text}
