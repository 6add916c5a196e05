"""DALL-E whose layers see everything against a GPT-2 of transformers: one vocabulary, one table of places."""

import torch
from peer_models import randomize
from transformers import GPT2Config, GPT2LMHeadModel

from openvocab.systems.dalle.model import DALLE, DALLEConfig

CONFIG = DALLEConfig(
    vocabulary_size=30, text_length=6, num_codes=12, rows=3, cols=4, dim=32, heads=4, layers=("full",) * 3
)  # fmt: skip
BLOCK = {"norm1": "ln_1", "attention.qkv": "attn.c_attn", "attention.out": "attn.c_proj", "norm2": "ln_2"}
BLOCK |= {"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}


def peer(model: DALLE) -> GPT2LMHeadModel:
    """Ids: words, pads, the start of the picture, codes. A place of the picture is its row and its column."""
    length = CONFIG.grid.length
    total = CONFIG.vocabulary_size + CONFIG.text_length + 1 + CONFIG.num_codes
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=total, n_positions=length, n_embd=CONFIG.dim, n_layer=3, n_head=4, activation_function="gelu",
            tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
        )
    ).eval()  # fmt: skip
    state = {f"transformer.ln_f.{part}": getattr(model.norm, part) for part in ("weight", "bias")}
    state["transformer.wte.weight"] = torch.cat([model.words, model.pads, model.begin[None], model.codes])
    cells = (model.rows[:, None] + model.cols).flatten(0, 1)[:-1]
    state["transformer.wpe.weight"] = torch.cat([model.positions, torch.zeros(1, CONFIG.dim), cells])
    unsaid = torch.zeros(CONFIG.text_length + 1, CONFIG.dim)
    state["lm_head.weight"] = torch.cat([model.next_word.weight, unsaid, model.next_code.weight])
    for row in range(3):
        for our, their in BLOCK.items():
            layer = model.blocks.get_submodule(f"{row}.{our}")
            for part in ("weight", "bias"):
                value = getattr(layer, part)
                state[f"transformer.h.{row}.{their}.{part}"] = value.T if value.ndim == 2 else value
    missing, extra = theirs.load_state_dict({name: value.detach() for name, value in state.items()}, strict=False)
    assert not missing
    assert not extra
    return theirs


def test_full_attention_is_gpt2():
    torch.manual_seed(0)
    model = DALLE(CONFIG).eval()
    randomize(model)
    with torch.no_grad():
        model.next_word.bias.zero_()
        model.next_code.bias.zero_()
    theirs = peer(model)
    tokens, codes = torch.tensor([[28, 5, 9, 29, 0, 0, 0], [28, 7, 1, 2, 3, 4, 29]]), torch.randint(12, (2, 3, 4))
    hidden = model.read(tokens, codes.flatten(1)[:, :-1])
    places = torch.arange(CONFIG.text_length) + CONFIG.vocabulary_size
    said = torch.cat([tokens[:, :1], torch.where(tokens[:, 1:] == 0, places, tokens[:, 1:])], 1)
    first = CONFIG.vocabulary_size + CONFIG.text_length
    ids = torch.cat([said, torch.full((2, 1), first), codes.flatten(1)[:, :-1] + first + 1], 1)
    logits = theirs(ids).logits
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(model.next_word(hidden), logits[..., : CONFIG.vocabulary_size], **close)
    torch.testing.assert_close(model.next_code(hidden), logits[..., first + 1 :], **close)

    model(tokens, codes)["picture"].mean().backward()
    picture = logits[:, CONFIG.text_length + 1 :, first + 1 :].transpose(1, 2)
    torch.nn.functional.cross_entropy(picture, codes.flatten(1)).backward()
    gradient = theirs.transformer.h[1].attn.c_attn.weight.grad.T
    torch.testing.assert_close(model.blocks[1].attention.qkv.weight.grad, gradient, **close)
