"""Numbers with their nouns, for messages."""


def number(count: int, what: str) -> str:
    """'1 day', '2,000 days', '2 batches', '2 entries'."""
    if count == 1:
        return f"1 {what}"
    if what.endswith(("s", "sh", "ch", "x")):
        return f"{count:,} {what}es"
    if what.endswith("y") and not what.endswith(("ay", "ey", "oy")):
        return f"{count:,} {what[:-1]}ies"
    return f"{count:,} {what}s"
