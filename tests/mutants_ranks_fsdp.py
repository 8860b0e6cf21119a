"""Breaks of weights in shares, and of checkpoints that several ranks write. See mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

FSDP, RESUME = "parallel/test_fsdp.py", "train/test_resume_ranks.py"
TESTS = {
    "parallel/checkpoint.py": (RESUME,),
    "parallel/fsdp.py": (
        "parallel/test_fsdp_units.py",
        *(f"{FSDP}::test_steps_are_those_of_one[{size}]" for size in (2, 3)),
        f"{FSDP}::test_rows_of_many_ranks_give_the_gradient_of_one[qwen2_5-False-ways1-3]",
    ),
    "train/resume.py": (RESUME,),
}

SHARES = breaks(
    "parallel/fsdp.py",
    ("set_gradient_divide_factor(1.0)", "set_gradient_divide_factor(3.0)", "a mean over ranks for a sum"),
    (
        "reduce_dtype=torch.promote_types(weight.dtype, torch.float32)",
        "reduce_dtype=weight.dtype",
        "summed in bfloat16",
    ),
    ("        self._end()  # first all", "        # first all", "gradients of several dtypes"),
    ("if p.requires_grad and p not in inside]", "if p not in inside]", "what is frozen learns"),
    ("        if number not in touched:", "        if False:", "zeros where nobody has a gradient"),
    (".union(*shares.axis.gather(shares.touched))", "(shares.touched)", "what this rank did not touch, nobody did"),
    ("    shares.touched.clear()\n", "", "what was touched once is so for ever"),
    ("p.grad = before[number]", "p.grad = None", "a step's later rows make it forget the earlier ones"),
    ("        if not shares.learns:\n            shares.rest.reshard()", "", "embeddings stay whole"),
    ("            layer.reshard()\n        if not", "        if not", "layers stay whole"),
    (
        "parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts))",
        "parts[0]",
        "the norm of one kind",
    ),
    ("    for own in kinds(learned):", "    for own in kinds(learned)[:1]:", "one kind is clipped"),
    ("found.setdefault(in_shares(x), [])", "found.setdefault(True, [])", "a mixture"),
    ("        return\n    shares.grasp(layer)", "        return\n    shares.release(layer)", "a layer is not whole"),
)

SHARES += breaks(
    "parallel/fsdp.py",
    ("for unit in (rest, *units) for p in", "for unit in (rest,) for p in", "zeros in layers that nobody met"),
    tests=("train/test_ranks.py::test_weights_in_shares_learn_what_one_rank_learns[qwen3_vl-2]",),
)

PARTS = breaks(
    "parallel/checkpoint.py",
    ("if dist.get_rank() == 0:", "if True:", "every rank holds the whole model"),
    ("in places:\n            setattr(module, name, p)", "in []:\n            setattr(module, name, p)", "it stays so"),
    ("raise next(iter(error.failures.values()))[0] from error", "raise", "a failure that nobody catches"),
    ('f"{number}.{key}": x', 'f"{key}.{number}": x', "keys for numbers"),
    ("torch.zeros(()) if key == STEPS else p.detach()", "torch.zeros(p.shape)", "whole, and nothing counted"),
    ("if isinstance(p, DTensor) else x\n", "if False else x\n", "one process's state is not shared out"),
)

SAVED = breaks(
    "train/resume.py",
    ("if world.leads and not shared:", "if world.leads:", "two optimizer states"),
    (
        "parts.gathered(model.net), _together(world):\n        if world.leads:",
        "_together(world):\n        if world.leads:",
        "shares are saved as they are",
    ),
    ("        if why is not None:", "        if False:", "a failure stays with its rank"),
    ("    if problem is not None:\n        raise problem", "    pass", "who failed goes on"),
    ("        except Exception:  # a full", "        except KeyError:  # a full", "half a checkpoint stays"),
    ("if (checkpoint / parts.FOLDER).is_dir() else OPTIMIZER", "if False else OPTIMIZER", "parts are not read"),
)

MUTANTS = SHARES + PARTS + SAVED
