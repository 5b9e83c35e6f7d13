"""A list written as text with commas."""


def split(value: object) -> object:
    """A list that was written as text, with commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value
