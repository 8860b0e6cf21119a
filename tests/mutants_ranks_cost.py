"""Breaks of what a step shared by ranks costs. See mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

TESTS = {"maths/cost_ranks.py": ("maths/test_cost_ranks.py",)}

COST = breaks(
    "maths/cost_ranks.py",
    ("rates.attend.over(d)", "rates.attend", "pairs of a share alone"),
    ("kv=whole.kv", "kv=own.kv", "keys and values in shares"),
    ("others, kv = 1 - 1 / mesh.sequence", "others, kv = 1 - 1 / mesh.ranks", "others of the world"),
    ("kv * max(WIDE, way.item)", "kv * way.item", "gradients summed in half precision"),
    ('(1 if way.keep == "graph" else 2)', "1", "queries go out once"),
    ("ceil(films / mesh.data)", "ceil(films / mesh.ranks)", "a rank as a sequence"),
    ("work, group=ceil(work.group / mesh.sequence)", "work, group=work.group // mesh.sequence", "the least busy rank"),
    ("min(self.near, self.machine * self.far)", "self.far", "one card brings what all need"),
    ("whole.encode / mesh.ranks", "whole.encode / d", "frames shared by a sequence"),
    ("repeated * (part.prefill - whole.prefill)", "0.0", "prefixes computed again are whole"),
    ("learning=found.learning / mesh.ranks", "learning=found.learning", "moments whole on every rank"),
    ("generate=found.generate + learned * way.item", "generate=found.generate", "shares that decode"),
    ("way.through > 0)", "False)", "no gradient of the prefix is summed"),
    ("fits(shape, work, way, one, device", "fits(shape, work, way, mesh, device", "one rank's room for all"),
    ("JOINING * layer * way.item", "0.0", "keys joined in no room"),
    ("(film.prefill > 0) + repeated", "1", "keys of a cached prefix travel"),
)

MUTANTS = COST
