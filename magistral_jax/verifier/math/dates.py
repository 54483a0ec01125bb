"""Dates and times of day in the ways they are written, as comparable values."""

import re

_MONTHS = "january february march april may june july august september october november december"
_MONTH = {name[:length]: i + 1 for i, name in enumerate(_MONTHS.split()) for length in (3, 12)} | {
    "sept": 9
}
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAY = (
    {name: i for i, name in enumerate(_DAYS)}
    | {name[:3]: i for i, name in enumerate(_DAYS)}
    | {
        "tues": 1,
        "thur": 3,
        "thurs": 3,
    }
)
_NUMBER = r"(?P<day>[0-9]{1,2})(?: ?(?:st|nd|rd|th))?"
_NAME = r"(?P<month>[a-z]{3,9})\.?"
_YEAR = r"(?:,? ?(?P<year>[0-9]{4}))?"
_DATES = [
    re.compile(rf"{_NAME} ?{_NUMBER}{_YEAR}"),
    re.compile(rf"(?:the )?{_NUMBER}(?: of)? ?{_NAME}{_YEAR}"),
]
_ISO = re.compile(r"([0-9]{4})[-/]([0-9]{1,2})[-/]([0-9]{1,2})")
_SLASHED = re.compile(r"([0-9]{1,2})/([0-9]{1,2})/([0-9]{4})")
_TIME = re.compile(
    r"(?P<hour>[0-9]{1,2})(?: ?: ?(?P<minute>[0-9]{2}))?(?: ?: ?(?P<second>[0-9]{2}))?"
    r" ?(?P<half>a\.? ?m\.?|p\.? ?m\.?)?"
)
_NAMED = {"noon": (12, 0), "midnight": (0, 0), "12 noon": (12, 0), "12 midnight": (0, 0)} | {
    "12:00 noon": (12, 0),
    "12:00 midnight": (0, 0),
}

Moment = tuple[str, tuple[int | None, ...]]


def moment(text: str) -> Moment | None:
    """The date, the day of the week, or the time that a cleaned text is; None if it is none."""
    plain = " ".join(text.replace('"', " ").lower().split()).replace(" ,", ",").replace(" .", ".")
    if plain.strip(".") in _DAY:
        return "weekday", (_DAY[plain.strip(".")],)
    return _date(plain) or _time(plain)


def _date(text: str) -> Moment | None:
    for pattern in _DATES:
        match = pattern.fullmatch(text)
        if match and match["month"] in _MONTH:
            year = int(match["year"]) if match["year"] else None
            return _checked(year, _MONTH[match["month"]], int(match["day"]))
    if match := _ISO.fullmatch(text):
        return _checked(int(match[1]), int(match[2]), int(match[3]))
    if match := _SLASHED.fullmatch(text):
        first, second = int(match[1]), int(match[2])
        if first == second or (first <= 12) != (second <= 12):  # else either order is meant
            month, day = (first, second) if first <= 12 else (second, first)
            return _checked(int(match[3]), month, day)
    return None


def _checked(year: int | None, month: int, day: int) -> Moment | None:
    return ("date", (year, month, day)) if 1 <= month <= 12 and 1 <= day <= 31 else None


def _time(text: str) -> Moment | None:
    if text in _NAMED:
        return "time", (*_NAMED[text], 0)
    match = _TIME.fullmatch(text)
    if match is None or (match["minute"] is None and match["half"] is None):
        return None
    hour, minute, second = (int(match[part] or 0) for part in ("hour", "minute", "second"))
    if minute > 59 or second > 59 or hour > 23:
        return None
    if match["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if match["half"][0] == "p" else 0)
    return "time", (hour, minute, second)
