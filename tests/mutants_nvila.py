"""Breaks of NVILA: blocks of patches, pools, tiles, what is read of a folder, prompts. See mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

FAMILY, FILES, PROMPT = "models/test_nvila.py", "models/test_nvila_files.py", "models/test_nvila_prompt.py"
SHOWN, PROJECTOR = "models/test_nvila_pixels.py", "models/test_nvila_projector.py"
TESTS = {
    "models/nvila.py": (PROMPT, FAMILY, FILES),
    "models/nvila_files.py": (SHOWN, PROMPT, FILES, FAMILY, "models/test_processor_files.py"),
    "models/nvila_network.py": (FAMILY, FILES),
    "models/nvila_pixels.py": (SHOWN, FAMILY),
    "models/nvila_projector.py": (PROJECTOR, f"{FAMILY}::test_features_and_logits_of_a_film_are_the_plain_ones"),
}

PROJECTORS = breaks(
    "models/nvila_projector.py",
    ("(0, 0, 0, lack, 0, lack)", "(0, 0, lack, 0, lack, 0)", "zeros at the top and left"),
    (".transpose(2, 3)  # [N", "  # [N", "whole rows for blocks"),
    ("if self.column_major:", "if not self.column_major:", "columns first"),
    ("_layers(kind, channels, width, column_major)", "_layers(kind, channels, width, False)", "the switch unheard"),
    ("if BLOCKS[kind] == 3:", "if BLOCKS[kind] == 4:", "3 x 3 without its first half"),
    ("range(int(deep[1]) - 1)", "range(int(deep[1]))", "a layer too many"),
    (".mean(axis + 1)", ".amax(axis + 1)", "the largest for the mean"),
    ("film_FYXE.unflatten(axis, (-1, size)).mean(axis + 1)", "film_FYXE.unflatten(axis, (size, -1)).mean(axis)",
     "frames far apart pooled"),
    ("if channels != width:", "if False:", "an identity of any width"),
)  # fmt: skip

PIXELS = breaks(
    "models/nvila_pixels.py",
    ("off = abs(width / height - i / j)", "off = abs(width / height - j / i)", "rows for columns"),
    ("0.5 * self.size**2 * i * j", "2.0 * self.size**2 * i * j", "ties to the smaller"),
    ("key=lambda way: way[0] * way[1]", "key=lambda way: -way[0] * way[1]", "the largest first"),
    ("max_pixels // self.size**2)", "max_pixels // self.size)", "max_pixels without effect"),
    ("if frames is None and self.aspect", "if self.aspect", "films in tiles"),
    ("down * across + (down * across > 1)", "down * across", "no whole among the tiles"),
    ("* (frames // t)", "* frames", "frames counted before pooling"),
    ("(self.side // rows) * (self.side // columns)", "self.side**2", "tokens counted before pooling"),
    ("math.lcm(*(pool[0] for pool in self.pools))", "max([pool[0] for pool in self.pools], default=1)",
     "a multiple of the largest pool alone"),
    ("or frames % self.frames)", "or False)", "frames that do not fill a pool"),
    (".swapaxes(1, 2)", "", "tiles across rows"),
    ("if len(tiles_NHWC) == 1:", "if False:", "one tile twice"),
    ("/ 255.0", "/ 256.0", "the wrong white"),
    ("return (pixels - mean) / std", "return pixels - mean / std", "normalised otherwise"),
    (".permute(0, 3, 1, 2)", ".permute(0, 3, 2, 1)", "frames on their side"),
    ("for scale in self.scales[:-1]", "for scale in self.scales[:0:-1]", "scales in another order"),
    ("(down, across) if last else (edge, edge)", "(down, across)", "always the last scale's map"),
)  # fmt: skip

NETWORK = breaks(
    "models/nvila_network.py",
    (".encoder.layers[: self.pixels.depth]", ".encoder.layers", "the last layer for the last but one"),
    ("return hidden[:, self.pixels.first :]", "return hidden", "no patch left out"),
    ("torch.cat([patch_FPC] * max(1, len(self.pixels.scales)), dim=-1)", "patch_FPC.repeat_interleave(max(1, "
     "len(self.pixels.scales)), dim=-1)", "channels repeated one by one"),
    (".unflatten(0, shape).transpose(1, 2)", ".unflatten(0, shape)", "tiles joined as they lie"),
    (".unflatten(0, (shape[0], -1)).transpose(1, 2)", ".unflatten(0, (shape[0], -1))", "a map cut across"),
    ('mode="area"', 'mode="nearest"', "maps brought to a size otherwise"),
    ("return join(tokens, (rows, columns)).flatten(0, 1)", "return tokens.flatten(0, 1)", "tokens tile by tile"),
    ("if key not in STALE", "if key", "paths of somebody else"),
    ('{"column_major": True} if projector.column_major else {}', "{}", "the order of tokens unsaved"),
)  # fmt: skip

READ = breaks(
    "models/nvila_files.py",
    ('root.get("mm_vision_select_layer", -2)', 'root.get("mm_vision_select_layers", -2)', "the layer unread"),
    ("return named % (layers + 1)", "return named % layers", "a layer early"),
    ('== "cls_patch" else 1', '== "cls_patch" else 0', "patch as cls_patch"),
    ('if (base / name / "config.json").is_file():', "if not isinstance(root.get(f'{name}_cfg'), dict):",
     "the root's copy first"),
    ("column_major=projector.column_major,", "column_major=False,", "features of another order under one name"),
    ("if side % pool[1] or side % pool[2]:", "if False:", "pools that do not fill a frame"),
    ('bool(said.get("column_major"))', "False", "the switch unread"),
    ('"image_std": [0.5] * 3} | said)', '"image_std": [0.5] * 3})', "the processor unread"),
    ('for name in ("size", "crop_size"):', 'for name in ("size",):', "squares of another size"),
    ("if not all(isinstance(mark, str) for mark in marks):", "if False:", "numbers as text"),
    ("scales[0] != size or", "", "scales of another tower"),
    ('found.get("end_tokens", "\\n") or ""', '"\\n"', "always a newline"),
    ("and made.least > made.max_tiles", "and False", "no number of tiles fits"),
    ('not in (None, {"height": size, "width": size})', "is False", "another processor"),
    ("(several and not scaled)", "False", "S2 of another kind"),
)  # fmt: skip

PROMPTS = breaks(
    "models/nvila.py",
    ("ids += [*start, *[own] * length, *end]", "ids += [*start, *[own] * length]", "no newline"),
    ("            ids += between", "            pass", "no separator"),
    ('f"{mark}\\n" * len(blocks)', "mark * len(blocks)", "tiles without newlines"),
    ("question.text.rstrip() if part else question.text.strip()", "question.text", "the message as it is"),
    ("replace(receipt, tokens=sum(map(sum, blocks)))", "receipt", "visual tokens uncounted"),
    ("self.temporal_patch = self.pixels.frames", "pass", "films of any length"),
    ("step = max(1, SLAB // self.pixels.grid**2)", "step = SLAB", "slabs of any size"),
    ('film.ndim == 3 and self.pixels.aspect == "dynamic_s2"', "film.ndim == 3 and self.pixels.scales != ()",
     "pictures at all scales where they are resized"),
    ("weight_VE[:have].double().mean(0).to(weight_VE)", "0.0", "zeros for the tokens added"),
    ("add_tokens(list(MEDIA)", "add_tokens(list(MEDIA[::-1])", "media tokens in another order"),
    ('(kind == "llava_llama" and "llm_cfg" in config)', 'kind == "llava_llama"', "LLaVA's own folders"),
    ("QWEN2 if template else tokenizer.chat_template", "tokenizer.chat_template or QWEN2", "the template named"),
    ("if receipt and mark not in text:", "if False:", "a template that shows nothing"),
    ("self.pixels = replace(self.pixels, pools=())", "pass", "pools beside a reduction"),
    ("self.reduction, self.temporal_patch = how, 1", "self.reduction = how", "frames padded for pools that are gone"),
    ("if count != sum(", "if 0 > sum(", "positions of anything"),
)  # fmt: skip

MUTANTS = PROJECTORS + PIXELS + NETWORK + READ + PROMPTS
