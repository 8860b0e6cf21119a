"""The simulated world's stories played out with things in places, and the answers read off at the end."""

import re

COLOURS = {"red", "green", "blue", "yellow"}


def cups(events):
    """Where the ball is: three cups stand in a row, two change places."""
    row = {"left": False, "middle": False, "right": False} | {events[0]: True}
    name = {place[0]: place for place in row}
    for event in events[1:]:
        if event != "none":
            one, other = (name[letter] for letter in event.removeprefix("swap-"))
            row[one], row[other] = row[other], row[one]
    return next(place for place, ball in row.items() if ball)


def flashes(events, question):
    """The colour of flash number k, or how many there were."""
    colours = [event for event in events[1:] if event in COLOURS]
    number = re.search(r"number (\d+)", question)
    return colours[int(number[1]) - 1] if number else str(len(colours))


def rooms(events):
    """The rooms that nobody has been to."""
    return COLOURS.difference(events[1:])


def gifts(events, question):
    """Who handed the thing over last, going back from the end."""
    thing, receiver = re.search(r"gave the (\w+) to (\w+)", question).groups()
    for event in reversed(events[1:]):
        handed = re.fullmatch(r"(\w+)>(\w+):(\w+)", event)
        if handed and handed.group(2, 3) == (receiver, thing):
            return handed[1]
    return "nobody"


def answer(kind, question, events):
    if kind == "spatial":
        return cups(events)
    if kind == "temporal":
        return flashes(events, question)
    if kind == "plot":
        return gifts(events, question)
    (room,) = rooms(events)
    return room
