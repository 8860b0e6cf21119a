"""Breaks of prefixes, of what is kept of them, and of adapters; see mutants_table."""

from __future__ import annotations

from tests.mutants_loop import TAUGHT
from tests.mutants_table import breaks

PREFIX = "runtime/test_prefix.py::test_"
ROW = f"{PREFIX}a_shared_prefix_is_a_row_for_every_answer"
TILED = f"{PREFIX}a_layer_may_be_computed_again_in_tiles"
TOWER = f"{PREFIX}a_tower_in_training_gets_its_gradient"
SCALED = f"{PREFIX}the_gradient_through_the_prefix_is_multiplied"
ROLLOUT = "engines/test_rollout.py::test_"
DISK = "runtime/test_feature_cache_disk.py::test_"
ADAPTED = "models/test_adapters.py::test_"
RAM = "runtime/test_feature_cache_ram.py::test_the_value_used_last_stays"
TESTS = {  # which tests must notice a break in which file
    "models/adapters.py": (
        f"{ADAPTED}off_is_the_base_model_also_nested_and_after_an_error",
        f"{ADAPTED}values_and_gradients_are_those_of_merged_weights",
        f"{ADAPTED}in_half_precision_the_adapter_is_float32_and_acts_in_half",
        "runtime/test_beside.py",
    ),
    "runtime/features.py": (
        "runtime/test_features.py::test_films_go_through_the_tower_a_few_pixels_at_a_time",
        "runtime/test_features.py::test_keys_tell_apart_what_was_seen",
        f"{DISK}what_a_step_needs_stays_even_if_there_is_no_room_for_more",
        "runtime/test_features_ranks.py",
        "runtime/test_films_ranks.py",
    ),
    "runtime/inputs.py": (TAUGHT, "runtime/test_rows.py::test_gather_fills_the_places_in_row_order"),
    "runtime/prefix.py": (
        f"{ROW}[qwen2_5-layers-1]",
        f"{ROW}[llama-graph-1]",
        f"{SCALED}[qwen2_5-graph]",
        f"{SCALED}[llama-layers]",
        f"{TOWER}[qwen3_vl-layers-8192]",
        f"{TOWER}[qwen3_vl-layers-7]",
        f"{PREFIX}gradients_that_add_up_are_wider_than_half_precision",
        f"{ROLLOUT}kept_prefills_score_what_was_sampled[full-graph]",
        f"{ROLLOUT}kept_prefills_score_what_was_sampled[alora-graph]",
    ),
    "runtime/prefixcache.py": ("runtime/test_prefixcache.py",),
    "runtime/rows.py": (
        "runtime/test_rows.py::test_an_aloras_prefix_is_the_base_models_and_ends_before_the_header",
        "runtime/test_rows.py::test_a_prefix_key_names_all_that_keys_and_values_depend_on",
        f"{ROLLOUT}a_rollout_gives_the_answers_of_generate[full-1000000]",
        f"{ROLLOUT}prefixes_are_taken_from_where_they_are_kept[alora]",
    ),
    "runtime/shelf.py": (RAM, "runtime/test_prefixcache.py", f"{DISK}what_was_not_used_for_longest_gives_way"),
    "runtime/tiles.py": (f"{TILED}[qwen2_5-layers]", f"{TILED}[qwen3_vl-attention]"),
    "runtime/top.py": (f"{ROW}[llama-graph-1]", f"{ROW}[qwen2_5-layers-1]", f"{ROW}[qwen3_vl-attention-1]"),
}

PREFILL = breaks(
    "runtime/prefix.py",
    ("else self.ends_SE[tips]", "else self.ends_SE[: len(tips)]", "ends of films for those of questions"),
    ("if found is None:\n            k, v", "if True:\n            k, v", "every run of answers in new buffers"),
    (
        "wide = k.dtype if once else torch.promote_types(k.dtype, torch.float32)",
        "wide = k.dtype",
        "sums in half precision",
    ),
    (
        "torch.cat([ends_SE.to(hidden_AE.dtype), hidden_AE])",
        "torch.cat([ends_SE.detach().to(hidden_AE.dtype), hidden_AE])",
        "the gradient of the ends lost",
    ),
    (
        "row.source_R.to(hidden_AE.device) - len(made.ends_SE)",
        "row.source_R.to(hidden_AE.device) - len(made.ends_SE) - 1",
        "the token before the header's last",
    ),
    (
        "made.graph = [x for pair in top.kv",
        "made.graph = [x for pair in top.kv[::-1]",
        "layers' gradients in another order",
    ),
    ("found * scale", "found", "the scale of the ends' gradient forgotten"),
    ("(x if scale == 1 else x * scale)", "x", "the scale forgotten"),
    ("[None] for x in added]", "[None] for x in added[::-1]]", "keys' gradients for values'"),
    (
        "given = [_end_gradient(made, scale)]",
        "given = [_end_gradient(made, scale) * 0]",
        "the gradient of the ends lost where layers are computed again",
    ),
    (
        "given + own, strict=True)",
        "given + [0 * x for x in own], strict=True)",
        "the answers' gradients lost where layers are computed again",
    ),
    ("torch.stack([*reversed(deep), *none])", "torch.stack([*deep, *none])", "DeepStack's gradients in another order"),
    ("if 0 < number <= levels:", "if 0 <= number < levels:", "DeepStack's gradients of the layer before"),
    (
        "if 0 < number <= levels:",
        "if 0 < number <= levels and call.hidden.requires_grad:",
        "no gradient for DeepStack from tiles",
    ),
    ("learns, below = [], inputs", "learns, below = [], False", "embeddings learn nothing from the prefix"),
    (
        "outputs, given = [embed_UE], [gradient[0]]",
        "outputs, given = [embed_UE], [gradient[0] * 2]",
        "embeddings' gradient twice",
    ),
    ("into=self.made.buffers(layer, self.once)", "into=self.made.buffers(0, self.once)", "all layers in one buffer"),
    ("if made.inputs is None:", "if False:", "finished twice"),
)

TILES = breaks(
    "runtime/tiles.py",
    ("y.backward(gradient[:, a:b])", "y.backward(gradient[:, : b - a])", "every tile with the first one's gradient"),
    ("own[:, a:b] += x.grad", "own[:, a:b] = x.grad", "the way past attention lost"),
    (
        "over.attend(q, k, v,",
        "over.attend(q, k.detach(), v.detach(),",
        "the prefix's own gradient of keys and values lost",
    ),
    ("zip(gradient_kv, whole", "zip(gradient_kv[::-1], whole", "keys' gradients for values'"),
    (
        "(cos[..., start:stop, :], sin[..., start:stop, :])",
        "(cos[..., : stop - start, :], sin[..., : stop - start, :])",
        "every tile at the first one's positions",
    ),
    ("[given, *(g.to", "[given / 2, *(g.to", "half of attention's gradient"),
)

TOP = breaks(
    "runtime/top.py",
    ("cos[..., place_S, :], sin", "cos[..., : len(place_S), :], sin", "positions of the row's beginning"),
    ("(hidden[:, place_S],)", "(hidden[:, place_S.flip(0)],)", "ends in another order"),
    ("if self._met < len(self.layers):", "if True:", "the last layer whole: ends are not at their places"),
    (
        "self.calls.append(Call(kept,",
        "self.calls.append(Call(self.calls[0].hidden if self.calls else kept,",
        "every layer with the first one's input",
    ),
    ("return taken.k, taken.v", "return taken.v, taken.k", "values for keys"),
    ("out, self.calls[-1].known =", "out, self.calls[0].known =", "one layer's attention for the others'"),
)

ROWS = breaks(
    "runtime/rows.py",
    ('is not None and model.adapter.kind == "alora" else 0', "is not None else 0", "a LoRA that acts on answers alone"),
    (
        "is not None and lead(model) else nullcontext()",
        "is None else nullcontext()",
        "an aLoRA's prefix with the adapter on",
    ),
    (
        "is not None and lead(model) else nullcontext()",
        "is not None else nullcontext()",
        "a LoRA's prefix without the adapter",
    ),
    ("pack(prompts, none, none, lead=lead(model))", "pack(prompts, none, none)", "the header in an aLoRA's prefix"),
    ("row.ids_T.tolist(), row.features,", "row.ids_T.tolist(),", "a prefix's key without its film"),
    ("row.ids_T.tolist(), row.features,", "row.features,", "a prefix's key without its tokens"),
    ("row.layout, base_version", "base_version", "a prefix's key without its segments"),
    ("base_version(model), str", "str", "a prefix's key without the weights"),
    ("features(handles), mine_N)", "features(handles)[::-1], mine_N)", "films in another order"),
    ("kept.put(key, made.kv, writes=ranks.sequence.leads)", "pass", "prefixes computed again and again"),
)

INPUTS = breaks(
    "runtime/inputs.py",
    ("for film in films], dim=1)", "for film in films[::-1]], dim=1)", "films in another order"),
    ("embed_TE = model.embed(ids_T)\n", "embed_TE = model.embed(ids_T).detach()\n", "no gradient into embeddings"),
    ("level_LNE[1:] if len(level_LNE) > 1 else None", "None", "no DeepStack"),
    ("index_copy(0, place_N, level_LNE[0])", "index_copy(0, place_N, level_LNE[-1])", "another level's features"),
)

FEATURES = breaks(
    "runtime/features.py",
    ("pixels + request.pixels > MOST_PIXELS", "pixels > MOST_PIXELS", "a film too many in a chunk"),
    ("run, pixels = [], 0", "run = []", "pixels that are never forgotten"),
    (", self.fingerprint, str(self.dtype))", ", self.fingerprint)", "a key without the dtype"),
    ("self.disk.pinned.add(name)", "pass", "what was just encoded gives way"),
)

CACHES = breaks(
    "runtime/shelf.py",
    ("if about.get(key) != str(checksum(tensor)):", "if False:", "damage unseen"),
    (
        "room = self.quota - need - sum(size for _, size, _ in found)",
        "room = self.quota - need",
        "files beyond the quota",
    ),
    ("self._kept.move_to_end(key)", "pass", "the value used last goes first"),
) + breaks(
    "runtime/prefixcache.py",
    ('to("cpu", copy=True)', 'to("cpu")', "what was put changes with its owner"),
    ('(found[f"k{layer}"], found[f"v{layer}"])', '(found[f"v{layer}"], found[f"k{layer}"])', "values for keys"),
    ("disk.aside(name)", "pass", "a damaged file stays"),
)

ADAPTERS = breaks(
    "models/adapters.py",
    ("name = self.acting\n", "name = self.acting or NAME\n", "the adapter acts on the prefix"),
    ("self.delta.acting = before", "self.delta.acting = NAME", "on again inside an outer off"),
    (" * module.scaling[name]", "", "alpha / rank forgotten"),
    ("module.scaling[name]", "module.scaling[NAME]", "another adapter's alpha / rank"),
    ("self.delta.acting, name\n", "self.delta.acting, name and NAME\n", "the policy acts for all"),
    ("requires_grad=trainable)", "requires_grad=True)", "the frozen ones learn"),
    (
        "config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)",
        "layer.scaling[NAME]",
        "a further adapter with the first one's alpha / rank",
    ),
    ("                part.float()", "                pass", "weights that learn in half precision"),
)

MUTANTS = PREFILL + TILES + TOP + ROWS + INPUTS + FEATURES + CACHES + ADAPTERS
