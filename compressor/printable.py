"""Text from files as a terminal or a page may show it."""

_MOST_LINES = 40
_LONGEST_LINE = 1000
"""Of a message, in characters."""


def printable(name: str) -> str:
    """A name without what a terminal would obey: control characters, and those that turn text round."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def showable(text: str) -> str:
    """A message as it may be shown: what is cited in it came from files, and may be long or hostile."""
    lines = [printable(line) for line in text.split("\n")[:_MOST_LINES]]
    half = _LONGEST_LINE // 2
    return "\n".join(
        line if len(line) <= _LONGEST_LINE else f"{line[:half]} … {line[-half:]}" for line in lines
    )
