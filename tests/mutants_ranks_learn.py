"""Breaks of how ranks learn, answer and score together, and of how many share a prefix. See mutants_table."""

from __future__ import annotations

from tests.mutants_ranks import ASKED, LEARN
from tests.mutants_table import breaks

LEARNED = (f"{LEARN}ranks_learn_what_one_learns[qwen2_5_vl-2]",)
KEPT = (f"{LEARN}kept_prefills_learn_whatever_groups_are_dropped[qwen2_5_vl-2-False]",)
STEPPED = (f"{LEARN}a_step_is_one_ranks_step[qwen2_5_vl-2-False]",)
READ = ("train/test_ranks_read.py::test_ranks_read_what_one_reads[qwen3_vl-2]",)
ROWS = "train/test_ranks_rows.py::test_"
LOCAL = "engines/test_local_ranks.py::test_"
ANSWERED = f"{LOCAL}answers_are_those_of_one_rank[full-5-3-2]"
ROLLED = f"{LOCAL}prefills_are_kept_where_they_were_made[full-2-1000000]"
OUTSIDE = "train/test_outside_ranks.py"
SETTLED = f"{OUTSIDE}::test_all_ranks_have_what_one_has[full"
TESTS = {  # those of files that one rank has as well are named with the breaks
    "engines/for_all.py": (OUTSIDE,),
    "train/degree.py": ("train/test_degree.py",),
    "train/ranks_settings.py": ("train/test_ranks_settings.py",),
    "train/rollout.py": ASKED,
}

LEARNING = (
    breaks(
        "train/step.py",
        ("if long and self.keep in", "if False and self.keep in", "a graph longer than was reckoned with"),
        tests=("train/test_step.py",),
    )
    + breaks(
        "train/step.py",
        (", (axis.index, axis.size)))", "))", "every rank of a sequence learns from all answers"),
        ("any(own) for own in zip(", "all(own) for own in zip(", "a gradient that one rank lacks is forgotten"),
        ("    world.add_([", "    ([", "gradients stay local"),
        (
            "    if world.size == 1:\n        return\n    params",
            "    if True:\n        return\n    params",
            "never summed",
        ),
        tests=LEARNED,
    )
    + breaks(
        "train/step.py",
        (" for _, numbers in every])[order_R]", " for _, numbers in every])", "numbers in the order of ranks"),
        (", dealt=(axis.index, axis.size)):", "):", "every rank reads all answers"),
        tests=READ,
    )
    + breaks(
        "train/rows.py",
        ("[ranks.data.index :: ranks.data.size]", "", "the data axis ignored"),
        ("attended()\n    return summed(session, sums)", "attended()\n    return sums", "sums stay local"),
        ("[items] if session.passes.prefix_gradient in (0, 1) else films", "[items]", "ranks decide what is drawn"),
        ("session.ranks.world.gather(sums)", "session.ranks.data.gather(sums)", "sums of one rank of a sequence"),
        tests=LEARNED,
    )
    + breaks(
        "train/rows.py",
        ("and not together(run[-1], item)", "", "questions on one film parted"),
        ("-(-len(items) // session.ranks.data.size)", "len(items)", "nothing to do for the second"),
        tests=(f"{ROWS}every_replica_has_a_row_and_a_film_its_questions",),
    )
    + breaks(
        "train/policy.py",
        ("if kept.made and any(", "if any(", "prefills of other ranks learned from"),
        ("kept.made, scale, session.ranks)", "kept.made, scale)", "every rank of a sequence learns from all answers"),
        ("attended()\n    return summed(session, sums)", "attended()\n    return sums", "sums stay local"),
        tests=KEPT,
    )
    + breaks(
        "train/session.py",
        ("        add_gradients(self.params, self.ranks.world)\n", "", "every rank steps with its own gradients"),
        ("(self.params, self.ranks.world)", "(self.params, self.ranks.data)", "gradients of a sequence not summed"),
        ("count=count,", "count=count / self.ranks.world.size,", "a local count for the denominator"),
        tests=STEPPED,
    )
)

SCORED = breaks(
    "train/rollout.py",
    ("ranks.world.deal(range(len(looks)), judged)", "map(judged, range(len(looks)))", "asked for on every rank"),
    ("ranks.world.deal(", "ranks.data.deal(", "asked for on every rank of a sequence"),
    ("model(groups, ranks) for", "model(groups, ONE) for", "every rank scores all"),
) + breaks(
    "rewards/model.py",
    (", dealt=(axis.index, axis.size)):", "):", "every rank scores all answers"),
    ("in sorted(one for", "in list(one for", "scores in the order of ranks"),
    ("axis.gather(flat)", "axis.gather(flat)[:1]", "the first rank's scores alone"),
    tests=READ,
)

ANSWERS = (
    breaks(
        "engines/local.py",
        ("[axis.index :: axis.size]\n", "\n", "every rank decodes all"),
        ("[axis.index :: axis.size]\n", "[axis.index :: axis.size][:1]\n", "answers dealt to nobody"),
        ("mine if axis.size > 1 else None)", "None)", "all decoded, some taken"),
        (
            "return self.ranks.sequence.woven(mine)",
            "return [x for own in self.ranks.sequence.gather(mine) for x in own]",
            "answers in the order of ranks",
        ),
        ("if place == data.index else None)", "if True else None)", "every rank makes every prefill"),
        ("here.index(True) if any(here) else 0, sum(here)", "0, sum(here)", "prompts of another rank"),
        ("-(-len(prompts) // self.ranks.data.size)", "len(prompts)", "nothing to do for the second"),
        (
            "in self.ranks.data.gather(own) for",
            "in self.ranks.data.gather(own)[::-1] for",
            "answers to other questions",
        ),
        tests=(ANSWERED, ROLLED),
    )
    + breaks(
        "engines/local.py",
        ("and not of_one_film(", "and not (lambda *_: False)(", "questions on one film parted"),
        tests=(ROLLED.replace("2", "3", 1),),
    )
    + breaks(
        "engines/loop.py",
        (
            "[found[answer] for answer in mine.tolist()]",
            "[found[answer] for answer in range(len(mine))]",
            "another rank's answers",
        ),
        tests=(ANSWERED,),
    )
)

DEGREE = breaks(
    "train/degree.py",
    ("if found else size", "if found else 1", "alone where nothing fits"),
    ("shares=in_parts(model.layers)", "shares=True", "always in shares"),
    ("shares=in_parts(model.layers)", "shares=False", "never in shares"),
    ("visual=longest, question=1", "visual=1, question=1", "the longest prompt is short"),
    ("answer=ANSWERS // 8", "answer=1", "no answers to keep room for"),
    ("max(films.longest, _longest(films, looks))", "_longest(films, looks)", "what was long is forgotten"),
    ("films.sequence or degree(", "degree(", "what was asked for has no effect"),
    ("if films.longest and found", "if found", "one rank each is never said"),
    ('if films.attention == "gather":', "if True:", "how heads go is not said"),
    ("alike.setdefault(size, look)", "alike[len(alike)] = look", "every prompt is made"),
    ("> device / 3", "> device / 2", "half the memory for weights"),
) + breaks(
    "train/passes.py",
    ("/ world.gather(node).count(node)", "", "every rank has all of its machine's memory"),
    ("[min(each) for each", "[max(each) for each", "the largest machine decides"),
    tests=("train/test_degree.py::test_all_ranks_reckon_with_the_smallest_machines_part",),
)

SETTINGS = breaks(
    "train/ranks_settings.py",
    ("if size == 1 and self.model_fields_set:", "if False:", "settings of nobody"),
    ("and size % self.sequence:", "and size < self.sequence:", "sequences that do not part the world"),
    ('if self.sequence == 1 and "attention"', 'if False and "attention"', "attention over nobody"),
    ("if adapter is not None and adapter.kind", "if False and adapter.kind", "shares of an adapter's base"),
    ('(self.weights == "auto" and large', '(self.weights != "shares" and large', "shares where whole was asked for"),
    (" or world.size == 1:", ":", "shares of one"),
    ("        self.check(films.ranks.world.size)", "        pass", "nothing is refused"),
    ("films.attention = self.sequence, self.attention", 'films.attention = self.sequence, "gather"', "always gathered"),
)

DISTANT = (
    breaks(
        "engines/for_all.py",
        ("            raise trouble", "            pass", "what is wrong is not heard"),
        tests=(f"{OUTSIDE}::test_what_it_refuses_is_heard_by_all",),
    )
    + breaks(
        "engines/for_all.py",
        (
            "        with gathered(model.net):\n            self._led(load)",
            "        self._led(load)",
            "a share goes for all",
        ),
        tests=(f"{SETTLED}-2-1-True]",),
    )
    + breaks(
        "train/outside.py",
        ("if made is not None", "", "every rank settles all answers, on prefills that it has not"),
        ("local.ranks.data.gather(own)", "[own]", "what others settled is lost"),
        tests=(f"{SETTLED}-2-1-False]",),
    )
)

MUTANTS = LEARNING + SCORED + ANSWERS + DEGREE + SETTINGS + DISTANT
