"""A worker without vLLM that speaks the protocol and fails on demand: `fake_worker.py MODE FILE WEIGHTS OPTIONS`.

MODE is a word, or a word and a number: `dies 2` ends itself after two answers. FILE marks that one life is over: most
modes misbehave in their first only. Everything it hears goes to stderr, which is the log.
"""

import json
import math
import os
import shutil
import signal
import sys
from pathlib import Path

SECOND_TOO = ("always",)
LOGPROB = math.nan if sys.argv[1] == "nan" else -0.5


def say(op, **content):
    print(json.dumps({"op": op, **content}), flush=True)


def note(op, **content):
    print(json.dumps({"op": op, **content}), file=sys.stderr, flush=True)


def answer(message):
    """Depends on the prompt and the draw alone: 12 … 61, ended by the first stop token if the seed is even."""
    first = (sum(message["ids"]) % 1000 + 7 * len(message["ids"]),)
    found = []
    for temperature, seed in message["draws"]:
        ids = [12 + (first[0] + seed + place) % 50 for place in range(message["max_tokens"])]
        ids = [*ids[:-1], message["stop"][0]] if seed % 2 == 0 else ids
        finish = "stop" if seed % 2 == 0 else "length"
        found.append({"ids": ids, "logprobs": [LOGPROB - temperature] * len(ids), "finish": finish})
    return found


def reply(message, mode):
    number = message["number"]
    note("replied", number=number)
    seen = message["ids"][::-1] if mode == "strange" else message["ids"]
    if mode == "refuses" and message["op"] == "ask":
        say("refused", number=number, kind="ValueError", why="the prompt is odd")
    elif message["op"] == "ask":
        say("found", number=number, seen=seen, found=answer(message))
    elif message["op"] == "score":
        say("found", number=number, seen=seen, found=[[-float(token) for token in message["ids"][-message["tail"] :]]])
    elif message["op"] == "held":
        shutil.copy(Path(sys.argv[2]).with_name("last.safetensors"), message["file"])
        say("held", number=number)
    else:
        say("positions", number=number, rows=[list(range(len(message["ids"])))] * 3)


def start(mode):
    if mode == "slow":
        sys.stdin.read()
    if mode == "raises":
        raise ValueError("no room for kv")
    if mode == "nonsense":
        print("Hello!", flush=True)
        sys.stdin.read()
    if mode == "fails":
        say("failed", kind="ValidationError", why="Model architectures ['X'] are not supported for now.")
        sys.exit(1)
    say("ready", vllm="0", device="cpu")


def misbehave(mode):
    if mode in ("dies", "always"):
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "exits":
        print("RuntimeError: out of memory", file=sys.stderr, flush=True)
        sys.exit(7)
    if mode == "babbles":
        print("Hello!", flush=True)
    if mode == "breaks":
        say("broken", kind="RuntimeError", why="it broke")
    sys.stdin.read()


def main():
    mode, _, count = sys.argv[1].partition(" ")
    life = Path(sys.argv[2])
    again, left = life.exists(), int(count or 0)
    life.write_text(str(os.getpid()))
    start(mode)
    if again and mode not in SECOND_TOO:
        mode = "plain"
    waiting = []
    for line in sys.stdin:
        message = json.loads(line)
        print(line, end="", file=sys.stderr, flush=True)
        if message["op"] == "load":
            if mode == "unloadable":
                misbehave("exits")
            say("loaded")
        if message["op"] == "features" and (path := Path(message["file"])).is_file():
            path.rename(life.with_name("last.safetensors"))
        if "number" not in message:
            continue
        waiting.append(message)
        if mode == "backwards" and len(waiting) < left:
            continue
        for one in reversed(waiting):
            reply(one, mode)
            left -= 1
            if mode in ("dies", "always", "exits", "babbles", "breaks", "hangs") and left == 0:
                misbehave(mode)
            if mode == "beats":
                for _ in range(5):
                    say("beat")
        waiting = []
    note("bye")


if __name__ == "__main__":
    main()
