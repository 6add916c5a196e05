"""DALL-E against what DALLE-pytorch gave once (scripts/record.py): logits, loss, gradients, each of its patterns.

Its options that are not in the paper are off. The last word of its texts is our start of the picture.
"""

import pytest
import torch
import torch.nn.functional as F

import recorded
from openvocab.systems.dalle.model import DALLE, DALLEConfig

LENGTH, WORDS, CODES, DIM = recorded.DALLE_TEXT, recorded.DALLE_WORDS, recorded.DALLE_CODES, 32
NAMES = {
    "norm1": "0.fn.norm",
    "attention.qkv": "0.fn.fn.fn.to_qkv",
    "attention.out": "0.fn.fn.fn.to_out.0",
    "norm2": "1.fn.norm",
    "mlp.up": "1.fn.fn.net.0",  # the gates are our MLP, what they gate is 1
    "mlp.down": "1.fn.fn.net.3",
}
BLOCKS = {
    f"blocks.{row}.{our}": f"transformer.layers.layers.{row}.{their}"
    for row in range(len(recorded.DALLE_PATTERNS))
    for our, their in NAMES.items()
}


def copied():
    """Our model with the weights that theirs had."""
    sizes = {"vocabulary_size": WORDS, "text_length": LENGTH - 1, "num_codes": CODES, "rows": 4, "cols": 4, "dim": DIM}
    model = DALLE(DALLEConfig(**sizes, heads=2, layers=recorded.DALLE_PATTERNS, kernel=5)).eval()
    total, ours = WORDS + LENGTH + CODES, dict(model.named_parameters())
    shapes = {"text_emb.weight": (WORDS + LENGTH, DIM), "image_emb.weight": (CODES, DIM)}
    shapes |= {"text_pos_emb.weight": (LENGTH + 1, DIM), "to_logits.0.weight": (DIM,), "to_logits.0.bias": (DIM,)}
    shapes |= {"image_pos_emb.weights_0": (1, 4, 1, DIM), "image_pos_emb.weights_1": (1, 1, 4, DIM)}
    shapes |= {"to_logits.1.weight": (total, DIM), "to_logits.1.bias": (total,)}
    for our, their in BLOCKS.items():
        for part in ("weight", "bias"):
            first, *rest = ours[f"{our}.{part}"].shape
            shapes[f"{their}.{part}"] = ((2 if their.endswith("net.0") else 1) * first, *rest)
    theirs = recorded.dalle_weights(shapes)
    text, places = theirs["text_emb.weight"], theirs["text_pos_emb.weight"]
    state = {"words": text[:WORDS], "pads": text[WORDS:-1], "positions": places[:-1]}
    state |= {"begin": text[recorded.DALLE_BEGIN] + places[-1], "codes": theirs["image_emb.weight"]}
    state |= {name: theirs[f"image_pos_emb.weights_{axis}"].view(4, DIM) for axis, name in enumerate(("rows", "cols"))}
    for part in ("weight", "bias"):
        head = theirs[f"to_logits.1.{part}"]
        state |= {f"next_word.{part}": head[:WORDS], f"next_code.{part}": head[-CODES:]}
        state[f"norm.{part}"] = theirs[f"to_logits.0.{part}"]
        state |= {
            f"{our}.{part}": theirs[f"{their}.{part}"][-len(ours[f"{our}.{part}"]) :] for our, their in BLOCKS.items()
        }
    state |= {name: torch.zeros(3 * DIM) for name in ours if name.endswith("qkv.bias")}  # theirs has none
    model.load_state_dict(state)
    return model


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-5, rtol=2e-5)


def test_it_is_dalle_pytorch_on_the_same_weights():
    model, expected = copied(), recorded.numbers("dalle")
    asked, cells = recorded.dalle_inputs()
    tokens = torch.cat([torch.zeros_like(asked[:, :1]), asked[:, :-1]], 1)
    hidden = model.read(tokens, cells[:, :-1])
    outputs, words = model.next_code(hidden[:, LENGTH:]), torch.tensor(expected["words"])
    close(outputs, expected["outputs"])
    close(model.next_word(hidden[:, :LENGTH]), words[..., :WORDS].tolist())

    # Theirs predicts pads and the start of the picture too, by ids of their own.
    targets = torch.where(asked == 0, torch.arange(LENGTH) + WORDS, asked)
    text, picture = F.cross_entropy(words.mT, targets), model(tokens, cells.view(-1, 4, 4))["picture"].mean()
    assert ((text + 7 * picture) / 8).item() == pytest.approx(expected["loss"], abs=1e-5)

    recorded.judged(outputs).backward()
    ours = {name: value.grad for name, value in model.named_parameters()}
    names = {their: our for our, their in BLOCKS.items() if not their.endswith("net.0")}
    found = {f"{their}.{part}": ours[f"{our}.{part}"] for their, our in names.items() for part in ("weight", "bias")}
    found |= {"image_emb.weight": ours["codes"], "to_logits.0.weight": ours["norm.weight"]}
    found |= {f"image_pos_emb.weights_{axis}": ours[name] for axis, name in enumerate(("rows", "cols"))}
    compared = found.keys() & expected["gradients"].keys()
    assert len(compared) == 4 * (2 * 5 - 1) + 4
    for name in compared:
        sums = expected["gradients"][name]
        assert recorded.summed({name: found[name]})[name] == pytest.approx(sums, abs=2e-4 * max(1e-3, sums[1])), name
