"""Breaks of what stands between us and vLLM: what is sent, what is asked again, what is exported. See mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

CLIENT, DEATHS, WEIGHTS = "engines/test_vllm.py", "engines/test_vllm_deaths.py", "engines/test_vllm_weights.py"
LISTEN = "engines/test_vllm_listen.py"
TESTS = {
    "engines/vllm.py": (CLIENT, DEATHS),
    "engines/vllm_link.py": (CLIENT, DEATHS),
    "engines/vllm_listen.py": (LISTEN,),
    "engines/vllm_reach.py": (LISTEN,),
    "engines/vllm_process.py": (DEATHS,),
    "engines/vllm_troubles.py": (DEATHS,),
    "engines/vllm_weights.py": (WEIGHTS,),
}  # of what families send: mutants_turns

ENGINE = breaks(
    "engines/vllm.py",
    ("ids[:-1] if ended", "ids[:-1] if not ended", "the end token in the text"),
    ("if version == self.weights:", "if self.weights:", "new weights never go"),
    ("shutil.rmtree(before)", "pass", "old weights stay on disk"),
    ("len(prompt.ids) + more > most", "len(prompt.ids) > most", "an answer beyond the context"),
    ("heat and not COLDEST <= heat", "heat and not 0 <= heat", "a temperature that vLLM changes"),
    ("if not all(map(math.isfinite", "if False and not all(map(math.isfinite", "numbers that are none"),
    ('reply["seen"] != [', 'reply["seen"] is [', "what it reads otherwise"),
    ("if place.memory < 1:", "if place.memory > 1:", "a share and GiB change places"),
)
LINK = breaks(
    "engines/vllm_link.py",
    ("if place not in found)", ")", "all is asked again"),
    ("<= AHEAD", "<= AHEAD * 99", "more at once than there is room for"),
    ("if handle not in there:", "if True:", "a film is sent for every question"),
    ("if handle is not None and not uses[handle]:", "if False:", "films are never forgotten"),
    ("not uses[handle]", "handle", "a film is forgotten after its first question"),
    ("torch.cat(list(level_LNE), -1)", "level_LNE[0]", "DeepStack levels lost"),
    ('self._process.say("drop")', "pass", "a refused call goes on"),
    ('message["op"] == "broken"', 'message["op"] == "gone"', "a broken worker is waited for"),
    ("self.restarts += 1", "pass", "deaths uncounted"),
    ('[*short, *job.tail]', '[*short]', "an answer to score is not sent"),
    ('for file in self.folder.glob("features-*"):', "for file in ():", "features of the dead stay on disk"),
)  # fmt: skip
DEATH, ONE = f"{LISTEN}::test_a_death_loses_nothing", f"{LISTEN}::test_one_run_at_a_time"
SEEN = f"{LISTEN}::test_a_listener_of_another_version_and_a_folder_that_is_not_there"
REACH = (
    breaks(
        "engines/vllm_reach.py",
        ('if message["op"] == "ended":', "if False:", "how it ended is not told"),
        tests=(DEATH,),
    )
    + breaks(
        "engines/vllm_reach.py",
        ("self._socket.shutdown(socket.SHUT_RDWR)", "pass", "a worker that nobody ends"),
        tests=(f"{LISTEN}::test_a_worker_that_is_stopped_is_ended_with_its_run",),
    )
    + breaks(
        "engines/vllm_listen.py",
        ("child.kill()\n        code", "code", "a stopped worker is waited for"),
        ("and not poll.poll(LOOK)", "", "who has left is not noticed"),
        tests=(f"{LISTEN}::test_a_worker_that_is_stopped_is_ended_with_its_run",),
    )
    + breaks(
        "engines/vllm_listen.py",
        ("not self._turn.acquire(timeout=TURN)", "self._turn.locked()", "two runs at once"),
        tests=(ONE,),
    )
    + breaks(
        "engines/vllm_listen.py",
        ('if first.get("worker") !=', 'if "" ==', "a worker of any version"),
        ("if not os.path.isdir(folder):", "if False:", "a folder that is not seen"),
        tests=(SEEN,),
    )
    + breaks(
        "engines/vllm_listen.py",
        ("                    self._child.kill()", "                    pass", "a worker outlives its listener"),
        tests=(f"{LISTEN}::test_it_is_ended_with_whoever_waited",),
    )
)
PROCESS = breaks(
    "engines/vllm_process.py",
    ("errors or lines", "lines", "the last line, whatever it says"),
    ("if code < 0", "if code < -99", "signals are codes"),
    ("self._popen.stdin.close()", "pass", "it is never told to end"),
)
PROCESS += breaks(
    "engines/vllm_troubles.py",
    ('"architectures" in said', '"architecture:" in said', "a network that vLLM does not know"),
    ('if any(word in said for word in MEMORY):', "if False:", "no word about memory"),
    ('"said nothing" in said', '"silent" in said', "no word about patience"),
)  # fmt: skip
WRITTEN = breaks(
    "engines/vllm_weights.py",
    ("* layer.scaling[NAME]", "", "a LoRA without its scale"),
    ('if ".lora_" not in name', "", "the adapter's own weights go too"),
    ('model.adapter.kind == "alora"', 'model.adapter.kind == "none"', "an aLoRA is merged"),
    ("if not all(x.is_floating_point()", "if all(x.is_complex()", "four bits go as numbers"),
    ("(context + SPARE)", "1", "no room for long films"),
    ("= max(text.max_position_embeddings, context)", "= text.max_position_embeddings", "contexts of the checkpoint"),
    ('kind == "linear" or', 'kind == "none" or', "linear scaling of M-RoPE"),
    ('not rope.get("mrope_interleaved")', "False", "yarn in sections"),
    ("state = {name: x.to(\"cpu\", dtype)", "state = {name: x.to(\"cpu\")", "weights in the model's own dtype"),
    (
        "config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False",
        "config.tie_word_embeddings = True",
        "a tied head",
    ),
    ("x.clone() if name in own else x.contiguous()", "x.clone()", "the model's memory again in every step"),
    ('own = {"lm_head.weight"} if tied else set()', 'own = {"lm_head.weight"}', "a copy of a head of its own"),
    ("    config.tie_word_embeddings = False\n    _lengthen", "    _lengthen", "a bare decoder's tied head"),
)  # fmt: skip
PLACES = breaks(
    "models/qwen2_5_vl.py",
    ("seconds = float(least + most) / 2 / rate", "seconds = self.seconds(receipt)", "float64 multiples of a float32"),
    ("!= time_T).sum()", "> time_T + 9).sum()", "frames one position off are not counted"),
)
PLACES += breaks(
    "models/qwen3_vl.py",
    ("stop = prompt.visual[-1][1] + 1", "stop = prompt.visual[-1][1]", "the last mark twice"),
    ("timestamps=tuple(self.middles(receipt))", "timestamps=tuple(receipt.seconds[::2])", "times of first frames"),
)
PLACES += breaks(
    "models/qwen_vl.py",
    ('Sent("image", (*prompt.ids[:start], self.pads[1]', 'Sent("image", (*prompt.ids[:start], self.pads[0]', "a film"),
    ("self.pads[0], *prompt.ids[stop:]), grid), receipt)", "*prompt.ids[stop:]), grid), receipt)", "no film"),
)

MUTANTS = ENGINE + LINK + REACH + PROCESS + WRITTEN + PLACES
