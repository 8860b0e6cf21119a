"""Breaks of the LLaVA families and of fewer visual tokens. See mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

REDUCE, PIXELS = "models/test_reduce.py", "models/test_llava_pixels.py"
NEXT, ORIGINAL, FILMS = "models/test_llava_next_video.py", "models/test_llava_original.py", "models/test_llava_films.py"
FOLDERS, PROCESSOR = "models/test_llava_folders.py", "models/test_processor_files.py"
TESTS = {
    "models/reduce.py": (REDUCE,),
    "models/llava_pixels.py": (PIXELS, FOLDERS, ORIGINAL, PROCESSOR),
    "models/llava_next_video.py": (
        NEXT,
        FILMS,
        f"{ORIGINAL}::test_vlm_rlaif_sees_means_of_frames_then_means_of_patches",
        f"{PROCESSOR}::test_what_would_end_in_somebody_elses_error_is_said",
    ),
    "models/llava_original.py": (ORIGINAL, PROCESSOR),
}

REDUCED = breaks(
    "models/reduce.py",
    ("z_FhwE if how.before else project(z_FhwE), how)", "project(z_FhwE), how)", "projected twice"),
    (
        "parts = [z_FhwE.mean((1, 2)), z_FhwE.mean(0).flatten(0, 1)]",
        "parts = [z_FhwE.mean(0).flatten(0, 1), z_FhwE.mean((1, 2))]",
        "spatial before temporal",
    ),
    ("how.strides[i % how.slow > 0]", "how.strides[i % how.slow == 0]", "fast frames are slow"),
    ("kinds[frame % self.slow > 0]", "kinds[frame % self.slow == 0]", "counts of fast frames"),
    (
        "(a * means[i] + b * means[i + 1]) / (a + b)",
        "(means[i] + means[i + 1]) / 2",
        "a long segment weighs as a frame",
    ),
    (
        "round(float(cosine_similarity(a, b, dim=0)), ALIKE)",
        "float(cosine_similarity(a, b, dim=0))",
        "rounding chooses",
    ),
    ("alike.index(max(alike))", "alike.index(min(alike))", "the least alike are joined"),
    ("for border in (i - 1, i):", "for border in (i,):", "the similarity to the segment before is old"),
    (
        "return max(1, round(self.merge * frames)) if self.merge",
        "return round(self.merge * frames) if self.merge",
        "no frame is left",
    ),
    ("return min(frames, int(self.merge))", "return int(self.merge)", "more frames than there are"),
    ("-(-frames // self.time)", "frames // self.time", "the last frames of a film are lost"),
    ("(-(-h // stride), -(-w // stride)) if mode", "(h // stride, w // stride) if mode", "bilinear leaves out"),
    (
        '(max_pool2d if mode == "max" else avg_pool2d)',
        '(avg_pool2d if mode == "max" else max_pool2d)',
        "modes change places",
    ),
    ("rows * (wide + per_row) + per_block", "rows * wide + per_block", "newlines uncounted"),
    ("if made.apart and (made.stride > 1 or", "if made.apart and (", "a pool that has no effect"),
    ('if like is not None and not said.get("apart"):', "if False:", "the checkpoint's side forgotten"),
    ('said |= {"stride": 2}', "pass", "slow frames whole"),
)

LOOKED = breaks(
    "models/llava_pixels.py",
    ("if self.tiling(*size) == want:", "if True:", "rounding between a picture and its tiles"),
    (
        "top, left = max(0, (height - self.size) // 2), max(0, (width - self.size) // 2)",
        "top, left = 0, 0",
        "the corner, not the middle",
    ),
    ("if width / height > columns / rows:", "if width / height < columns / rows:", "padding on the wrong sides"),
    (
        "top = (rows * grid - int(round(height * (columns * grid / width), 7))) // 2",
        "top = 0",
        "bars above are features",
    ),
    (
        "reshape(how.rows, size, how.columns, size, 3).swapaxes(1, 2)",
        "reshape(how.columns, size, how.rows, size, 3).swapaxes(1, 2)",
        "tiles of another grid",
    ),
    (
        "return np.concatenate([whole[None], tiles])",
        "return np.concatenate([tiles, whole[None]])",
        "the whole picture last",
    ),
    ("return shown, shown - on[0] * on[1]", "return shown, on[0] * on[1]", "as many tiles as there can be"),
    ("if max_pixels is not None and max_pixels < self.size**2:", "if False:", "max_pixels without effect"),
    ("if frames is None and not self.pictures:", "if False:", "pictures shown in another way"),
    (
        '[int(255 * part) for part in self.mean] if self.shape == "pad" else',
        '[0, 0, 0] if self.shape == "pad" else',
        "black bars",
    ),
    ("sub_(mean).div_(std)", "sub_(mean).div_(255.0)", "the deviation forgotten"),
    ("if of_pictures != (mean, std):", "if False:", "films in the colours of pictures"),
    ('if _edge(image["size"])[1] != size:', "if False:", "tiles that are resized"),
    ("if tile != size:", "if False:", "tiles that are cropped"),
    ("video = image if video is None else video", "pass", "one nested processor unread"),
    ("video = image if video is None else video", "video = video or image", "an empty file passed over"),
)

SEEN = breaks(
    "models/llava_next_video.py",
    ("tiles.transpose(1, 2)", "tiles.transpose(1, 2).flip(2)", "tiles from right to left"),
    ("Reduction.parse(spec, like=self.reduction)", "Reduction.parse(spec)", "the checkpoint's side forgotten"),
    ('if how.newline != "no_token" and self._newline() is None:', "if False:", "newlines that nobody learned"),
    ("if not all(-depth - 1 <= layer <= depth for", "if not all(True for", "a layer that is not there"),
    ("z[:, 1:] if", "z[:, :-1] if", "the CLS token is a patch"),
    (
        "return grid * grid + how.high * (how.wide + 1)",
        "return grid * grid + how.high * how.wide",
        "newlines of pictures uncounted",
    ),
    ("if len(shape) == 4:", "if True:", "pictures are pooled"),
    ("before=True)", "before=False)", "pooled behind the projector"),
    ("add_special_tokens=not written", "add_special_tokens=True", "a second beginning"),
    ("return tuple(whole[same:])", "return tuple(whole[same + 1 :])", "a header without its first token"),
    ("width=size[0], height=size[1], cut=", "cut=", "a receipt of pixels that nobody saw"),
    (
        "return int(config.image_token_id)",
        "return getattr(config, 'video_token_id', config.image_token_id)",
        "a stray key of a config",
    ),
    ("self.image_newline: nn.Parameter = model.image_newline", "pass", "features of another newline"),
)

READ = breaks(
    "models/llava_original.py",
    ("TEMPLATES[decoder]", 'TEMPLATES["llama"]', "every decoder speaks as Vicuna"),
    ('if merge.startswith("spatial"):', "if True:", "flat checkpoints with newlines"),
    ('if newline == "one_token" and "unpad" not in merge:', "if False:", "a newline that is not there"),
    ("vision_feature_layer=layer + gone", "vision_feature_layer=layer", "a layer too early"),
    ("(gone and layer + gone >= 0) or ", "", "a layer that is not there"),
    ('-vision["whole"] - 1 <= layer', "True", "a layer before the first"),
    ("points_of(points, size) if tiled", "tuple(map(tuple, points)) if tiled", "tiles of another size than the tower"),
    ('"pad" if ratio == "pad" else', "", "no mean colour"),
    ('pictures=tiled or not str(ratio).startswith("anyres")', "pictures=True", "pictures of anyres_max"),
    ('"add_faster_video": bool(root.get("add_faster_video")),', "", "tokens left out"),
    (' and "llm_cfg" not in config', "", "VILA read as LLaVA"),
)

MUTANTS = REDUCED + LOOKED + SEEN + READ
