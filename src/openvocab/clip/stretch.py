"""A longer text context for a trained model: Long-CLIP's positions (Zhang et al. 2024, arXiv 2403.15378, section 3.2).

The first `keep` positions are well trained and stay; the others are stretched by a whole factor f:

    new[keep + f i + j] = ((f - j) p[keep + i] + j p[keep + i + 1]) / f,   j = 0 ... f - 1

and the last position goes on as from the one before it. What a causal tower makes of texts of at most `keep` tokens
does not change by a bit. Differs from the paper: nothing is trained here; `openvocab train clip --init` does that.
"""

from dataclasses import replace

from openvocab.blocks.posemb import stretch_positions
from openvocab.blocks.text import TextConfig
from openvocab.clip.model import CLIP
from openvocab.clip.weights import build, identified

KEEP = 20


def stretch_context(clip: CLIP, context_length: int = 248, *, keep: int = KEEP) -> CLIP:
    """The same model, in float32, with a text context of `context_length`.

    Raises:
        ValueError: a tower without learned positions or that pools a padded text, or a length that no whole factor
            reaches; names the nearest that one does.
    """
    text = clip.config.text
    if not isinstance(text, TextConfig) or not text.causal or text.pool != "end":
        raise ValueError(f"{clip.name}: only a causal text tower that pools its end token can be stretched")
    rest = text.context_length - keep
    if rest < 2:
        raise ValueError(f"{clip.name}: its context of {text.context_length} leaves nothing to stretch after {keep}")
    factor, over = divmod(context_length - keep, rest)
    if over or factor < 2:
        fits = keep + rest * max(2, factor + (2 * over > rest))
        raise ValueError(
            f"a context of {text.context_length} stretches to {keep} + {rest} f tokens for whole f, not to "
            f"{context_length}; the nearest is {fits}"
        )
    state = {name: tensor.detach().cpu().clone() for name, tensor in clip.state_dict().items()}
    state["text.positions"] = stretch_positions(state["text.positions"].float(), factor, keep)
    longer = build(replace(clip.full_config, text=replace(text, context_length=context_length)), state)
    return identified(longer, clip.name, clip.tokenizer, clip.trained_on)
