"""Longer contexts without new weights: the rotary frequencies of a loaded decoder, scaled once and for all.

    linear:F   positions F times closer together: inv_freq / F (position interpolation, arXiv 2306.15595)
    dynamic:F  a larger base (NTK), as transformers' `dynamic` has it for F times the trained length L:
               base · (F·(F·L)/L − (F − 1))^(D / (D − 2))
    yarn:F     fast frequencies as they are, slow ones / F, cos and sin times 0.1 ln F + 1 (arXiv 2309.00071)

transformers' own `dynamic` chooses the base anew by the largest position of every call: keys of a prefix that were kept
would stand on another base than the answers behind it, and neither would be what one forward over both makes. So the
base is fixed for the longest input that F allows; prefill, decoding and training then agree to the last bit, and the
saved config.json holds a plain network with that base. D rotary width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longtake.config import suggest
from longtake.errors import UserError

WAYS = ("linear", "dynamic", "yarn")
STATED = "max_sequence_length"  # of a config whose max_position_embeddings leaves its factor out (Vicuna 16k)
BY_LENGTH = ("dynamic", "longrope")  # frequencies that follow the length of each call


@dataclass(frozen=True, slots=True)
class Scaling:
    """How rotary frequencies are scaled. Example: parse("linear:2") == Scaling("linear", 2.0)."""

    way: str
    factor: float

    def __str__(self) -> str:
        return f"{self.way}:{self.factor:g}"


def parse(spec: str) -> Scaling:
    """Raises UserError for anything but a way, a colon and a factor above 1."""
    way, _, number = spec.partition(":")
    if way not in WAYS:
        near = suggest(way, WAYS)
        fix = f"did you mean '{near}:{number or 2}'?" if near else f"one of {', '.join(f'{name}:2' for name in WAYS)}"
        raise UserError(f"no way to scale positions '{spec}'", where="--context.rope", fix=fix)
    try:
        factor = float(number)
    except ValueError:
        factor = 0.0
    if not 1 < factor < float("inf"):
        why = f"the factor must be a number above 1, not '{number}'"
        raise UserError(f"cannot scale positions by '{spec}'", where="--context.rope", why=why, fix=f"{way}:2")
    return Scaling(way, factor)


def scale(text: Any, scaling: Scaling) -> None:
    """Scales the decoder `text` in place, config and built embedding; to be called before it reads anything.

    Raises UserError for one that is scaled already, or has no rotary positions.
    """
    config, own = text.config, getattr(text.config, "rope_parameters", None) or {}
    if "rope_theta" not in own or not hasattr(text, "rotary_emb"):
        why = f"a {config.model_type} has other positions, or several kinds of them"
        raise UserError(
            "the positions of this model cannot be scaled", where="--context.rope", why=why, fix="leave it out"
        )
    if own["rope_type"] != "default":
        raise already(f"config.json says {own['rope_type']} by {own.get('factor', 1):g}")
    longest, factor = config.max_position_embeddings, scaling.factor
    if scaling.way == "dynamic":
        width = int(_head_width(config) * own.get("partial_rotary_factor", 1.0))
        grown = own["rope_theta"] * (factor * factor - (factor - 1)) ** (width / (width - 2))
        config.rope_parameters = {**own, "rope_theta": grown}
        config.max_position_embeddings = int(factor * longest)
    else:
        more = {"original_max_position_embeddings": longest} if scaling.way == "yarn" else {}
        config.rope_parameters = {**own, "rope_type": scaling.way, "factor": factor, **more}
    text.rotary_emb = type(text.rotary_emb)(config=config)


def _head_width(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def already(why: str) -> UserError:
    """The error for positions that would be scaled twice."""
    return UserError("the model's positions are scaled already", where="--context.rope", why=why, fix="leave it out")


def check(config: Any) -> None:
    """Raises UserError for a decoder whose frequencies follow the length of each call: see above."""
    own = getattr(config, "rope_parameters", None) or {}
    if own.get("rope_type") in BY_LENGTH:
        why = f"config.json says {own['rope_type']}: its frequencies follow the length of what is read at once"
        fix = 'set rope_type "default" in config.json, and --context.rope'
        raise UserError("prefixes of this model cannot be kept", why=why, fix=fix)


def scaled(config: Any) -> bool:
    """Whether the rotary positions of a transformers config are scaled in any way."""
    own = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return bool(own.get("rope_type", "default") != "default")


def reach(parameters: dict[str, Any], longest: int, ours: bool) -> int:
    """Positions that a network knows, by its `rope_parameters` and the longest input that its config states.

    Where `ours`, scaled here, the factor multiplies; else only what the config says was so before it was scaled: a
    checkpoint may count the factor already (LongVILA), and nothing in it tells.
    """
    before = parameters.get("original_max_position_embeddings") or (longest if ours else 0)
    return max(longest, int((parameters.get("factor") or 1.0) * before))


def known_to(config: Any, ours: bool) -> int:
    """Positions that the network of a transformers config knows; `ours`: its positions were scaled here."""
    text = config.get_text_config()
    longest = max(text.max_position_embeddings, getattr(text, STATED, None) or 0)
    return reach(getattr(text, "rope_parameters", None) or {}, longest, ours)
