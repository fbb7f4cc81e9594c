"""Who gets the page: browsers, which prefer HTML. Programs and curl get JSON."""

Preferences = dict[str, float]


def prefers_html(accept: str) -> bool:
    """Whether this `Accept` header asks for HTML rather than for JSON; where both are welcome, JSON is answered."""
    preferences = _preferences(accept)
    return _quality(preferences, "text/html") > _quality(preferences, "application/json")


def _quality(preferences: Preferences, type_: str) -> float:
    """The most specific range that holds the type decides."""
    ranges = (type_, f"{type_.split('/')[0]}/*", "*/*")
    return next((preferences[each] for each in ranges if each in preferences), 0.0)


def _preferences(accept: str) -> Preferences:
    found: Preferences = {}
    for part in accept.lower().split(","):
        range_, *parameters = (each.strip() for each in part.split(";"))
        values = [each.removeprefix("q=") for each in parameters if each.startswith("q=")]
        found[range_] = _number(values[0]) if values else 1.0
    return found


def _number(text: str) -> float:
    """A quality from 0 to 1; anything else is a range that is not wanted."""
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0
