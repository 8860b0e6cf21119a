"""Numbers as people read them: percent, points, seconds, counts; and sentences made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

THIN = "\u202f"  # narrow no-break space, between a number and its unit
MINUS = "\u2212"
DASH = "–"  # what stands where a number is not known


@dataclass(frozen=True, slots=True)
class Verdict:
    """A sentence and how it should look: "good", "bad" or "plain"."""

    tone: str
    text: str


def number(value: float) -> str:
    """Three significant digits, thousands apart. Example: 0.01234 -> "0.0123", 12345.6 -> "12 346"."""
    if not math.isfinite(value):
        return "not a number"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000 or (size >= 10 and value == int(value)):
        text = f"{size:,.0f}".replace(",", THIN)
    elif size >= 0.0001:
        text = f"{size:.{max(0, 2 - max(-3, math.floor(math.log10(size))))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        base, _, power = f"{size:.2g}".partition("e")
        text = f"{base}e{MINUS}{abs(int(power))}"
    return (MINUS if value < 0 else "") + text


def signed(value: float) -> str:
    """Two decimals with a sign. Example: 0.7 -> "+0.70", -1.234 -> "−1.23"."""
    text = f"{abs(value):.2f}"
    return text if float(text) == 0 else ("+" if value > 0 else MINUS) + text


def count(value: float) -> str:
    """Whole number, thousands apart. Example: 12345 -> "12 345"."""
    return f"{value:,.0f}".replace(",", THIN)


def plural(value: int, one: str, many: str = "") -> str:
    """Example: plural(1, "film") -> "1 film"; plural(3, "film") -> "3 films"."""
    return f"{count(value)} {one if value == 1 else many or one + 's'}"


def percent(value: float) -> str:
    """Share as whole percent. Example: 0.523 -> "52 %"."""
    return f"{100 * value:.0f}{THIN}%"


def points(value: float) -> str:
    """Difference of two shares in signed points. Example: 0.34 -> "+34"."""
    rounded = round(100 * value)
    return f"+{rounded}" if rounded > 0 else f"{MINUS}{-rounded}" if rounded < 0 else "0"


def seconds(value: float) -> str:
    """Duration. Example: 0.042 -> "42 ms", 3.25 -> "3.2 s", 75 -> "1 min 15 s", 7300 -> "2 h 2 min"."""
    if value < 1:
        return f"{1000 * value:.0f}{THIN}ms"
    if value < 59.95:
        return f"{value:.1f}{THIN}s" if value < 10 else f"{value:.0f}{THIN}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{THIN}min" + (f" {rest}{THIN}s" if rest else "")
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours}{THIN}h" + (f" {minutes}{THIN}min" if minutes else "")


def clock(value: float, length: float) -> str:
    """Time in a film of `length` seconds.

    Example: 3.5 of 8 -> "3.50", 75 of 600 -> "1:15", 4000 of 7200 -> "1:06:40".
    """
    if length < 60:
        return f"{value:.2f}"
    minutes, rest = divmod(int(value), 60)
    if length < 3600:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def listed(items: list[str]) -> str:
    """Example: ["a", "b", "c"] -> "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else ""
