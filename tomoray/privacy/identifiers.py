"""What in a header names somebody: evidence against any text that is about to be kept.

An identifier is held as letters and digits only, folded: case, accents, spaces and punctuation do not hide it.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.tag import BaseTag

from tomoray.dicom.headers import quiet_pydicom
from tomoray.privacy.ps3_15 import TABLE
from tomoray.privacy.vocabulary import BODY_PARTS, KERNELS, MONTHS, PLACES, SCANNERS, TERMS

MAX_DEPTH = 32  # of nested sequences; no CT needs six, and nothing is kept from below
SHORTEST = 3
HIDDEN = "…"

_TEXT = frozenset({"AE", "LO", "LT", "SH", "ST", "UC", "UR", "UT"})
_PERSONS = frozenset(tag for tag in TABLE if dictionary_VR(tag) == "PN")  # whatever VR a file gives them
_PIXELS = 0x7FE0
_HOMES = frozenset({"SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"})
_SHORTEST_UID = 8  # digits; a shorter one is no real UID, and would be found by chance
_SHORTEST_WORD = 4
_SHORTEST_PRODUCT = 5  # letters; shorter ones ("CT1") are as likely a name that the site gave
_STANDARD_UIDS = "1.2.840.10008."
_SPELLED = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "ø": "oe", "å": "aa", "æ": "ae", "œ": "oe", "đ": "dj", "ł": "l"}
)
_PLAIN = str.maketrans({"ø": "o", "æ": "ae", "œ": "oe", "đ": "d", "ł": "l"})
_COMMON = frozenset(word.lower() for word in BODY_PARTS | KERNELS | PLACES | SCANNERS | TERMS)


class Element(NamedTuple):
    """One element of a header, wherever it is nested. Its value is converted when it is asked for, as most never are.

    Attributes:
        home: whether it speaks of the series: at the top, or in the first functional groups of a multi-frame object.
    """

    dataset: Dataset
    tag: BaseTag
    keyword: str
    vr: str
    depth: int
    home: bool

    @property
    def value(self) -> Any:
        """As pydicom converts it; None for pixels, and where it cannot be converted."""
        return None if self.tag.group == _PIXELS else _read(self.dataset, self.tag)[1]

    @property
    def creator(self) -> str:
        """Who reserved the block of a private element (PS3.5 7.8.1); empty for others."""
        owner = BaseTag(self.tag.group << 16 | self.tag.element >> 8)
        if not self.tag.is_private or self.tag.is_private_creator or owner not in self.dataset:
            return ""
        return "".join(values_as_text(_read(self.dataset, owner)[1])[:1])


def identifiers(dataset: Dataset) -> frozenset[str]:
    """Everything in a header that names a person, a place, a case or a day, folded.

    Taken from all sequences and private elements: parts of names (three characters or more) and whole names in both
    orders; other than descriptive text of Table E.1-1, such as IDs, institutions, addresses and telephone numbers,
    whole and by words; dates, in a dozen spellings; UIDs.
    """
    with quiet_pydicom():
        return frozenset(evidence(walk(dataset)))


def is_clean(text: str, identifiers: Collection[str]) -> bool:
    """True where `text` holds none of `identifiers`, whatever its case, accents, spaces and punctuation.

    Example:
        >>> is_clean("Thorax M.U.S.T.E.R", {"muster"})
        False
    """
    return not any(identifier in form for form in fold(text) for identifier in identifiers)


def scrub_uri(uri: str, identifiers: Collection[str]) -> str:
    """`uri` with every part of its path, bucket or host that holds an identifier replaced by "…".

    An identifier that runs over two or three parts ("1950/01/31", "doe/jane") takes all of them away.

    Example:
        >>> scrub_uri("s3://ct/2019/DOE_JANE/ct", {"doe", "jane"})
        's3://ct/2019/…/ct'
    """
    scheme, mark, path = uri.rpartition("://")
    pieces = re.split(r"([/\\])", path)
    hidden: set[int] = set()
    for width in (1, 2, 3):
        for start in range(0, len(pieces), 2):
            window = range(start, min(start + 2 * width, len(pieces)), 2)
            if hidden.isdisjoint(window) and not is_clean(unquote("".join(pieces[i] for i in window)), identifiers):
                hidden.update(window)
    return scheme + mark + "".join(HIDDEN if i in hidden else piece for i, piece in enumerate(pieces))


def names_in(path: str) -> frozenset[str]:
    """Evidence of a file without a header: whatever in its path below the source may name somebody, folded.

    Every part of the path, and its words of four letters or more, but for words that describe a CT.

    Example:
        >>> sorted(names_in("DOE_JANE/ct.nii.gz"))
        ['ctniigz', 'doejane', 'jane']
    """
    return frozenset(_of_text(part for part in re.split(r"[/\\]", unquote(path)) if part))


def walk(dataset: Dataset) -> Iterator[Element]:
    """Every element of a header, those at the top first. Sequences below `MAX_DEPTH` stay shut.

    Pixels are not touched. An element that pydicom cannot convert is there, without a value.
    """
    meta = getattr(dataset, "file_meta", None)
    pending = deque([(dataset, 0, 0), *([(meta, 1, 9)] if meta else [])])
    while pending:
        current, depth, steps = pending.popleft()  # steps: 0 top, 1 functional groups, 2 one group, 9 elsewhere
        for tag in sorted(current.keys(), key=int):
            keyword, vr = keyword_for_tag(tag), _vr(current, tag)
            yield Element(current, tag, keyword, vr, depth, steps in (0, 2))
            if vr != "SQ" or depth >= MAX_DEPTH:
                continue
            for number, item in enumerate(_read(current, tag)[1] or ()):
                inwards = number == 0 and (steps == 1 or (steps == 0 and keyword in _HOMES))
                pending.append((item, depth + 1, steps + 1 if inwards else 9))


def evidence(elements: Iterable[Element], besides: Collection[str] = ()) -> Iterator[str]:
    """The identifiers in `elements`, those of the keywords `besides` left out."""
    for element in elements:
        search = _search(element)
        if search and element.keyword not in besides:
            yield from search(values_as_text(element.value))


def values_as_text(value: Any) -> list[str]:
    """The values of an element as text; none where they cannot be decoded."""
    try:
        if value is None or isinstance(value, (bytes, bytearray)):
            return []
        several = hasattr(value, "__iter__") and not isinstance(value, str) and not hasattr(value, "components")
        return [str(part).strip(" \0") for part in (value if several else [value])]
    except Exception:  # a broken character set can raise anything
        return []


def fold(text: str) -> tuple[str, ...]:
    """Letters and digits of `text`, without case and accents; twice where ä may be spelled a or ae."""
    if text.isascii():
        return (_alphanumeric(text.lower()),)
    folded = unicodedata.normalize("NFKC", text).casefold()
    forms = (folded.translate(_PLAIN), unicodedata.normalize("NFC", folded).translate(_SPELLED))
    return tuple(dict.fromkeys(_alphanumeric(unicodedata.normalize("NFKD", form)) for form in forms))


def _alphanumeric(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum())


def _vr(dataset: Dataset, tag: BaseTag) -> str:
    """The VR that the file states, else the one that pydicom finds."""
    if tag.group == _PIXELS:
        return "OW"
    try:
        stated = dataset.get_item(tag).VR
    except Exception:  # as in `_read`
        return "UN"
    return _read(dataset, tag)[0] if stated in (None, "UN") else str(stated)


def _read(dataset: Dataset, tag: BaseTag) -> tuple[str, Any]:
    try:
        element = dataset[tag]
    except Exception:  # malformed; what cannot be read cannot be kept
        return "UN", None
    return str(element.VR), element.value


def _search(element: Element) -> Callable[[Iterable[str]], Iterator[str]] | None:
    """How an element's values are searched for identifiers, if at all."""
    if element.vr == "PN" or (element.vr in _TEXT and element.tag in _PERSONS):
        return _of_names
    if element.vr == "UI":
        return _of_uids
    if element.vr in ("DA", "DT"):
        return _of_dates
    rule = TABLE.get(element.tag)
    if rule is None or element.vr not in _TEXT or "descriptors" in rule.options or "patient" in rule.options:
        return None  # descriptions and traits are words, not identifiers
    return _of_devices if "device" in rule.options else _of_text


def _of_names(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for group in text.split("="):  # alphabetic, ideographic, phonetic (PS3.5 6.2.1)
            parts = [part for part in re.split(r"[\W_]+", group) if part]
            for name in (*parts, "".join(parts[:2]), "".join(parts[1::-1]), "".join(parts)):
                yield from (form for form in fold(name) if len(form) >= (SHORTEST if form.isascii() else 2))


def _of_text(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        words = [word for word in re.split(r"[\W_]+", text) if len(word) >= _SHORTEST_WORD]
        digits = "".join(letter for letter in text if letter.isdigit())
        for part in (text, *words):
            yield from (form for form in fold(part) if len(form) >= SHORTEST and form not in _COMMON)
        if len(digits) > _SHORTEST_WORD:
            yield digits


def _of_devices(texts: Iterable[str]) -> Iterator[str]:
    """As `_of_text`, but a station that is called by its product's name ("LightSpeed16") is not named by it."""
    for text in texts:
        words = [re.fullmatch(r"([A-Z]*)\d{0,3}", word.upper()) for word in re.split(r"[\W_]+", text) if word]
        products = [word[1] for word in words if word and (not word[1] or word[1] in SCANNERS)]
        if len(products) < len(words) or not any(len(product) >= _SHORTEST_PRODUCT for product in products):
            yield from _of_text([text])


def _of_uids(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        digits = _alphanumeric(text.lower())
        if len(digits) >= _SHORTEST_UID and not text.startswith(_STANDARD_UIDS):
            yield digits


def _of_dates(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        digits = re.sub(r"[.\-/ ]", "", text)[:8]
        try:
            date = datetime.date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
        except ValueError:
            continue
        day, month, year, name = date.day, date.month, f"{date.year:04d}", MONTHS[date.month - 1]
        orders = [f"{year}{month:02d}{day:02d}", f"{day:02d}{month:02d}{year}", f"{month:02d}{day:02d}{year}"]
        yield from orders
        yield from (f"{year[2:]}{month:02d}{day:02d}", orders[1][:4] + year[2:], orders[2][:4] + year[2:])
        yield from (f"{day}{month}{year}", f"{month}{day}{year}")
        for word in (name, name[:3]):
            yield from (f"{day}{word}{year}", f"{word}{day}{year}", f"{word}{day:02d}{year}", f"{year}{word}{day:02d}")
            yield from (f"{day}{word}{year[2:]}", f"{word}{day:02d}{year[2:]}")
