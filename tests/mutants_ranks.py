"""Breaks of what ranks share: tokens, keys, answers of a row; who has what, and what is summed. See mutants_table and
mutants_ranks_learn.
"""

from __future__ import annotations

from tests.mutants_table import breaks

SHARE, DEALT = "maths/test_share.py", ("maths/test_dealt.py",)
AXIS, EXCHANGE = "parallel/test_axis.py", "parallel/test_exchange.py"
ROW = "runtime/test_shared.py::test_n_ranks_give_one_ranks_losses_and_gradients"
HEADS, THREE, SEES = f"{ROW}[eight of four-2]", f"{ROW}[six of three-3]", f"{ROW}[qwen3_vl-2]"
FITS = "runtime/test_shared.py::test_what_fits_the_heads"
SHORT = "runtime/test_shared.py::test_a_short_row_is_computed_by_each[eight of four]"
LEARN = "train/test_ranks.py::test_"
ASKED = ("train/test_ranks_read.py::test_every_reward_is_asked_for_once",)
TESTS = {  # those of files that one rank has as well are named with the breaks
    "maths/share.py": (SHARE,),
    "parallel/axis.py": (AXIS,),
    "parallel/exchange.py": (EXCHANGE,),
    "parallel/ranks.py": (AXIS,),
    "runtime/shared.py": (FITS, HEADS, THREE, SHORT),
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

WRITTEN = breaks(
    "runtime/prefixcache.py",
    ("if self.disk is not None and writes:", "if self.disk is not None:", "every rank writes"),
    tests=("runtime/test_prefixcache.py",),
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

MUTANTS = CUT + READS + DEALING + PARTS + SEEN + WRITTEN + SUMMED + SAID + HALVES + TURNS
