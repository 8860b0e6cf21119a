"""Breaks of what ranks share: tokens, keys, answers, rows, gradients; who has what, and what is summed. See
mutants_table.
"""

from __future__ import annotations

from tests.mutants_table import breaks

SHARE, DEALT = "maths/test_share.py", ("maths/test_dealt.py",)
AXIS, EXCHANGE = "parallel/test_axis.py", "parallel/test_exchange.py"
ROW = "runtime/test_shared.py::test_n_ranks_give_one_ranks_losses_and_gradients"
HEADS, THREE, SEES = f"{ROW}[eight of four-ulysses-2]", f"{ROW}[six of three-gather-3]", f"{ROW}[qwen3_vl-gather-2]"
FITS = "runtime/test_shared.py::test_what_fits_the_heads"
SHORT = "runtime/test_shared.py::test_a_short_row_is_computed_by_each[eight of four]"
LEARN = "train/test_ranks.py::test_"
LEARNED = (f"{LEARN}ranks_learn_what_one_learns[qwen2_5_vl-2]",)
KEPT = (f"{LEARN}kept_prefills_learn_whatever_groups_are_dropped[qwen2_5_vl-2-False]",)
STEPPED = (f"{LEARN}a_step_is_one_ranks_step[qwen2_5_vl-2-False]",)
READ = ("train/test_ranks_read.py::test_ranks_read_what_one_reads[qwen3_vl-2]",)
ASKED = ("train/test_ranks_read.py::test_every_reward_is_asked_for_once",)
LOCAL = "engines/test_local_ranks.py::test_"
ANSWERED = f"{LOCAL}answers_are_those_of_one_rank[full-5-3-2]"
ROLLED = f"{LOCAL}prefills_are_kept_where_they_were_made[full-2-1000000]"
TESTS = {  # those of files that one rank has as well are named with the breaks
    "maths/share.py": (SHARE,),
    "parallel/axis.py": (AXIS,),
    "parallel/exchange.py": (EXCHANGE,),
    "parallel/ranks.py": (AXIS,),
    "runtime/shared.py": (FITS, HEADS, THREE, SHORT),
    "train/degree.py": ("train/test_degree.py",),
    "train/ranks_settings.py": ("train/test_ranks_settings.py",),
    "train/rollout.py": ASKED,
}

CUT = breaks(
    "maths/share.py",
    ("2 * self.ranks - 1 - rank", "2 * self.ranks - 2 - rank", "tails cut off by one"),
    ("piece * self.total // (2 * self.ranks)", "piece * (self.total // (2 * self.ranks))", "the last tokens nobody's"),
    ("*reversed(pieces[1::2])", "*pieces[1::2]", "tails joined in the order of ranks"),
    ("self._pieces(rank)])", "self._pieces(rank)[::-1]])", "head and tail swapped"),
    ("return before + place - start", "return place - start", "the tail where the head is"),
)

READS = breaks(
    "maths/spans.py",
    ("calls(own, causal=True), tuple(crossing))", "calls(own, causal=False), tuple(crossing))", "its own future"),
    ("cross += [earlier, *_above(", "cross += [*_above(", "what a segment began with on other ranks forgotten"),
    (
        "cross += [earlier, *_above(layout.segments, [(before - start, start, stop)])]",
        "cross += [earlier]",
        "ancestors forgotten",
    ),
    ("segment.start, first - segment.start))", "segment.start, last - segment.start))", "its own run read twice"),
    ("for spans in _above(segments, asking) for", "for spans in _above(segments, asking[:0]) for", "ends alone"),
    ("cross[len(open_until)].append((reads", "cross[0].append((reads", "depths mixed up over ranks"),
    tests=(SHARE,),
)

DEALING = breaks(
    "maths/pack.py",
    ("if owners[unit] != dealt[0]:", "if False:", "every answer dealt to every rank"),
    ("if owners[unit] != dealt[0]:", "if owners[unit] != dealt[0] or run:", "answers dealt to nobody"),
    ("key=lambda one: -lengths[one]", "key=lambda one: lengths[one]", "the longest last"),
    ("load[rank][0] + lengths[unit], load", "load[rank][0], load", "whoever has fewest, not least"),
    ("load[rank][1] + 1", "load[rank][1]", "answers that are not fed are all the first rank's"),
    tests=DEALT,
)

PARTS = breaks(
    "runtime/shared.py",
    ("first, count = self.axis.index * heads // ranks, max", "first, count = 0, max", "the first ranks' key heads"),
    (
        "q[0].unflatten(0, (ranks, -1)).transpose(1, 2).flatten(0, 1)",
        "q[0].unflatten(0, (-1, ranks)).transpose(0, 1).transpose(1, 2).flatten(0, 1)",
        "heads dealt in turn",
    ),
    (
        "return out_S.transpose(1, 2).flatten(0, 1)[None]",
        "return out_S.flip(0).transpose(1, 2).flatten(0, 1)[None]",
        "the ranks' heads in another order",
    ),
    (
        "self.share.part(_flat(*known))",
        "self.share.part(_flat(*known).flip(0))",
        "keys that are known in another order",
    ),
    (
        "self.share.join(gathered(_flat(k, v), self.share.counts, self.axis, before))",
        "gathered(_flat(k, v), self.share.counts, self.axis, before)",
        "keys rank by rank, not in row order",
    ),
    ("self.share.part(out[0].transpose(0, 1))", "out[0].transpose(0, 1)", "outputs in row order, not rank by rank"),
    ("gathered(ends_nE[: len(self._mine)],", "gathered(ends_nE[: len(self._mine)].detach(),", "no gradient of ends"),
    ("torch.tensor(back, device", "torch.tensor(sorted(back), device", "ends in the order of ranks"),
    ("and (kv_heads % ranks == 0 or ranks % kv_heads == 0)", "", "key heads parted that cannot be"),
    ("layout.total < LEAST * axis.size", "layout.total <= LEAST * axis.size", "a row that could be shared"),
) + breaks(
    "runtime/shared.py",
    ("            return q * 0  #", "            return torch.zeros_like(q)  #", "weights that one rank alone sums"),
    tests=(f"{LEARN}weights_in_shares_learn_what_one_rank_learns[qwen3_vl-2]",),
)

SEEN = (
    breaks(
        "runtime/rows.py",
        ("shared.cut(row.visual_T.cumsum(0) - 1)[visual_U]", "torch.arange(int(visual_U.sum()))", "the first features"),
        ("shared.cut(row.ids_T), visual_U", "row.ids_T[: len(visual_U)], visual_U", "the row's first tokens"),
        tests=(SEES,),
    )
    + breaks(
        "runtime/prefix.py",
        (
            "over.cut(row.position_3T, 1)",
            "row.position_3T[:, : len(over.cut(row.visual_T))]",
            "the row's first positions",
        ),
        ("over.any(made.ends_SE.grad is not None or any(made.added))", "over.any(False)", "nobody's answers learned"),
        tests=(SEES,),
    )
    + breaks(
        "runtime/inputs.py",
        ("mine_N.to(level_LNE.device)]", "mine_N.flip(0).to(level_LNE.device)]", "features in another order"),
        tests=(SEES,),
    )
)

SUMMED = breaks(
    "parallel/exchange.py",
    ("ctx.axis.home(wide, ctx.counts)", "wide.split(ctx.counts)[ctx.axis.index]", "other ranks' gradients lost"),
    ("ctx.axis.home(wide, ctx.counts)", "(2 * ctx.axis.home(wide, ctx.counts))", "gradients twice"),
    ("torch.promote_types(ctx.dtype, torch.float32)", "ctx.dtype", "summed in half precision"),
    ("if known is None else known.detach()", "", "what is known gathered again"),
    (
        "ctx.axis.swap(grads[0], ctx.take, ctx.give)",
        "grads[0].new_zeros(sum(ctx.give))",
        "no gradient for what went to others",
    ),
)

SAID = breaks(
    "parallel/axis.py",
    (
        "        if min(counts) == most:\n            return every",
        "        if True:\n            return every",
        "padding",
    ),
    ("mine[: counts[self.index]]", "mine[: counts[0]]", "as many rows as the first rank"),
    ("for part in x.split(list(counts))]", "for part in x.split(list(counts))[::-1]]", "rows for another rank"),
    ("x.copy_(found.view_as(x))", "x.copy_(x)", "sums stay local"),
    ("[sum(each) for each in zip(", "[max(each) for each in zip(", "the largest for the sum"),
    ("return any(self.gather(here))", "return all(self.gather(here))", "so on all"),
    ("self.leads else None)[0]", "self.leads else None)[-1]", "the last for the first"),
    ("sent.nbytes - real.nbytes", "0", "padding uncounted"),
    ("if not same or size", "if not runs or size", "two dtypes in one sum"),
)
HALVES = breaks(
    "parallel/axis.py",
    ("torch.promote_types(flat.dtype, torch.float32)", "flat.dtype", "summed in half precision"),
    tests=(EXCHANGE,),
)
TURNS = breaks(
    "parallel/axis.py",
    (
        "every[place % self.size][place // self.size]",
        "every[-1 - place % self.size][place // self.size]",
        "other order",
    ),
    ("for thing in things[self.index :: self.size]]", "for thing in things]", "everybody does all"),
    tests=ASKED,
) + breaks(
    "parallel/ranks.py",
    (
        "_axis(world, replicas), _axis(world, sequences), how)",
        "_axis(world, sequences), _axis(world, replicas), how)",
        "data and sequence swapped",
    ),
    ("Axis(own.index(world.index)", "Axis(world.index", "a place in the world for one in a group"),
    ("    if world.size % degree:", "    if False:", "a degree that does not divide"),
)

LEARNING = (
    breaks(
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
        ("if session.passes.prefix_gradient in (0, 1) else len(items)", "", "ranks decide what is drawn"),
        ("session.ranks.world.gather(sums)", "session.ranks.data.gather(sums)", "sums of one rank of a sequence"),
        tests=LEARNED,
    )
    + breaks(
        "train/rows.py",
        ("and not together(run[-1], item)", "", "questions on one film parted"),
        ("-(-len(items) // session.ranks.data.size)", "len(items)", "nothing to do for the second"),
        tests=(f"{LEARN}every_replica_has_a_row_and_a_film_its_questions",),
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

ANSWERS = breaks(
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
    ("and not of_one_film(", "and not (lambda *_: False)(", "questions on one film parted"),
    ("in self.ranks.data.gather(own) for", "in self.ranks.data.gather(own)[::-1] for", "answers to other questions"),
    tests=(ANSWERED, ROLLED),
) + breaks(
    "engines/loop.py",
    (
        "[found[answer] for answer in mine.tolist()]",
        "[found[answer] for answer in range(len(mine))]",
        "another rank's answers",
    ),
    tests=(ANSWERED,),
)

DEGREE = breaks(
    "train/degree.py",
    ("if size % d == 0 and need(", "if need(", "a degree that does not divide the world"),
    ("return next(fitting, size)", "return next(fitting, 1)", "alone where nothing fits"),
    ("own.peak - own.kv + whole.kv", "own.peak", "keys and values are shared as well"),
    ("<= USABLE * device", "<= device", "all of the memory"),
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
    ('            if self.weights == "shares":', "            if False:", "shares of an adapter's base"),
    ('(self.weights == "auto" and large', '(self.weights != "shares" and large', "shares where whole was asked for"),
    ("if world.size > 1 and (", "if (", "shares of one"),
    ("        self.check(films.ranks.world.size)", "        pass", "nothing is refused"),
    ("films.attention = self.sequence, self.attention", 'films.attention = self.sequence, "gather"', "always gathered"),
)

MUTANTS = (
    CUT
    + READS
    + DEALING
    + PARTS
    + SEEN
    + SUMMED
    + SAID
    + HALVES
    + TURNS
    + LEARNING
    + SCORED
    + ANSWERS
    + DEGREE
    + SETTINGS
)
