"""DALL-E: pictures of sentences, written code by code (Ramesh et al. 2021, arXiv 2102.12092).

    loss = 1/8 mean CE(words) + 7/8 mean CE(codes),  each word and code after the text and codes before it

Reproduced: the sequence with a learned pad for every place of the text, codes by row and column, the sparse layers
(`blocks.sparse`; DALLE-pytorch's patterns too), BPE dropout, the loss, the size of 12 billion parameters. Codes are
those of a trained dVAE or VQGAN, which stays as it is. A share of captions is left out in training, for guidance.
Differs from the paper: pads are not predicted; the learning rate is not halved on plateaus; no scaling of gradients,
which bfloat16 does not need. Best of N by a CLIP: `clip.ranking`.

    openvocab train autoencoders --out codes
    openvocab train dalle --init codes --out run
    openvocab generate "a red circle on the left" --model run --out pictures
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openvocab.blocks.sparse import openai_layers
from openvocab.clip.caption_bpe import CaptionTokenizer, train_tokenizer
from openvocab.clip.engine import evaluating
from openvocab.clip.learning import shared_batches, words
from openvocab.data.memory import InMemory
from openvocab.data.source import PairsConfig
from openvocab.shapes import Batch
from openvocab.system import Recipe, System
from openvocab.systems.dalle.model import DALLE, PAD_ID, DALLEConfig, check_coder
from openvocab.systems.dalle.samples import Captioned, DALLEData, codes_of, open_data, open_test, rows_of
from openvocab.train.config import FitConfig, GroupConfig, OptimConfig
from openvocab.train.fit import Stage
from openvocab.train.step import Losses

_SMALL = DALLEConfig(
    vocabulary_size=512,
    text_length=16,
    num_codes=128,
    rows=8,
    cols=8,
    image_size=32,
    dim=128,
    heads=4,
    layers=openai_layers(6),
    kernel=3,
)
SIZES = {
    "tiny": replace(
        _SMALL, vocabulary_size=320, num_codes=16, rows=4, cols=4, dim=32, heads=2, layers=openai_layers(3)
    ),
    "small": _SMALL,
    "paper": DALLEConfig(),
}
"""Codes of a run are those of the autoencoder that it is given."""


def build(config: DALLEConfig | str, coder: Any = None) -> DALLE:
    """Of random weights, and of the codes of `coder`, an autoencoder, where it is given one."""
    config = SIZES[config] if isinstance(config, str) else config
    if coder is None:
        return DALLE(config)
    check_coder(coder)
    side = coder.config.image_size // coder.network.stride
    config = replace(config, rows=side, cols=side, num_codes=coder.network.num_codes)
    model = DALLE(replace(config, image_size=coder.config.image_size))
    model.attach(coder)
    return model


def embed(model: DALLE, batch: Batch) -> dict[str, Tensor]:
    """-log p of the tokens of each text and of the codes of its picture."""
    return model(batch["tokens"], batch["codes"])


def loss(model: DALLE, batch: Batch, embeds: dict[str, Tensor]) -> Losses:
    """Both means weighted; `text` and `picture` are the means, in nats."""
    said = (batch["tokens"][:, 1:] != PAD_ID).sum().clamp(min=1)
    text, picture, share = embeds["text"].sum() / said, embeds["picture"].mean(), model.config.text_share
    return {"loss": share * text + (1 - share) * picture, "text": text, "picture": picture}


def example(model: DALLE, rows: int) -> Batch:
    """Texts and codes of noise."""
    config = model.config
    tokens = torch.randint(1, config.vocabulary_size, (rows, config.text_length + 1))
    tokens[:, config.text_length // 2 :] = PAD_ID
    return {"tokens": tokens, "codes": torch.randint(config.num_codes, (rows, config.rows, config.cols))}


def recipe(size: str, source: str = "scenes") -> Recipe[DALLEConfig]:
    """The training run of a size, on the quiet world or on the pairs of `source`."""
    data = DALLEData(pairs=PairsConfig(source=source))
    optim = OptimConfig(lr=1.5e-3, betas=(0.9, 0.96), eps=1e-8, weight_decay=4.5e-2, clip_norm=4.0)
    fit = FitConfig(steps=6000, ema_decay=0.99, checkpoint_every_steps=250)
    if size == "tiny":
        data, fit = replace(data, num_scenes=200, batch_size=16), replace(fit, steps=10)
    elif size == "paper":
        data = replace(data, batch_size=1024, workers=8)
        optim = replace(optim, lr=4.5e-4, warmup_steps=5000, schedule="constant")
        fit = replace(fit, steps=430_000, ema_decay=0.9996, precision="bfloat16", gradient_checkpointing=True)
    return Recipe(model=SIZES[size], data=data, optim=optim, fit=fit, groups=(GroupConfig(),))


def prepare(recipe: Recipe[DALLEConfig], init: Any = None, folder: Path | None = None) -> tuple[DALLE, tuple[Stage]]:
    """Opens the pairs, codes their pictures by the autoencoder `init` (or that of a DALL-E, which then goes on).

    Raises:
        ValueError: no autoencoder with a grid of codes.
    """
    data, seed = recipe.data, recipe.fit.seed
    coder = init.coder if isinstance(init, DALLE) else init
    check_coder(coder)
    pairs = open_data(data, coder.config.image_size, seed)
    if isinstance(init, DALLE):
        model, init.fingerprint = init, ""
    else:
        length = recipe.model.text_length + 1
        tokenizer = train_tokenizer(pairs.texts, recipe.model.vocabulary_size, length)
        torch.manual_seed(seed)
        model = build(replace(recipe.model, vocabulary_size=tokenizer.vocabulary_size), coder)
        model.tokenizer = tokenizer
    assert isinstance(model.tokenizer, CaptionTokenizer)
    model.name = f"dalle-{Path(data.pairs.source).stem}"
    model.trained_on = {"source": pairs.source, "pairs": len(pairs), "words": words(pairs.texts)}
    model.trained_on["autoencoder"] = coder.fingerprint
    fetch = Captioned(pairs, codes_of(pairs, coder), model.tokenizer, model.config.text_length + 1, data)
    batches = shared_batches(fetch, pairs, batch_size=data.batch_size, seed=seed, workers=data.workers, folder=folder)
    return model, (recipe.stage(name="dalle", data=batches, loss=loss, embed=embed),)


def evaluate(model: DALLE, data: InMemory) -> dict[str, float]:
    """Nats per token of captions (`text_nll`) and per code of pictures (`image_nll`), over all captions of a source."""
    assert isinstance(model.tokenizer, CaptionTokenizer)
    codes, length = torch.from_numpy(codes_of(data, model.coder)), model.config.text_length + 1
    owners = torch.arange(len(data)).repeat_interleave(torch.from_numpy(data.first).diff())
    bodies = [model.tokenizer.encode(data.texts[row]) for row in data.text_rows]
    tokens, sums = rows_of(bodies, model.tokenizer, length), torch.zeros(2)
    with evaluating(model):
        for texts, pictures in zip(tokens.split(64), owners.split(64)):
            found = model(texts.to(model.device), codes[pictures].to(model.device))
            sums += torch.stack([found["text"].sum(), found["picture"].sum()]).cpu()
    counts = ((tokens[:, 1:] != PAD_ID).sum().item(), len(owners) * codes[0].numel())
    return {"text_nll": sums[0].item() / counts[0], "image_nll": sums[1].item() / counts[1]}


SYSTEM = System(
    name="dalle",
    title="DALL-E",
    paper="arXiv 2102.12092",
    sizes=SIZES,
    build=build,
    loss=loss,
    embed=embed,
    recipe=recipe,
    prepare=prepare,
    evaluate=evaluate,
    open=open_test,
    example=example,
    load=DALLE.load,
    init=("autoencoders", "small"),
    minutes={"small": 27.0},
)
