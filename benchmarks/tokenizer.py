"""Captions to padded rows of ids per second, beside open_clip and transformers.

    .venv-peers/bin/python benchmarks/tokenizer.py [CAPTIONS.tar ...]

The tars hold one .json a picture with its `captions`; default are those of `captions/`. "First sight" is a fresh
tokenizer that has seen no word; "steady" has seen every word, which is open_clip at its best too: its word cache is
full; "not ASCII" is steady with one accented word added to every caption, so that each is repaired by ftfy as open_clip
repairs all of them. transformers is called as documented; tokenizers is the same vocabulary without transformers around
it. Clocks are CPU seconds of one thread, rounds are interleaved, figures are medians.
"""

import copy
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.tokenizer import CLIPTokenizer

ROUNDS, CAPTIONS = 5, 20_000


def read_captions(tars: list[str]) -> list[str]:
    captions = []
    for path in tars:
        with tarfile.open(path) as tar:
            captions += [json.load(tar.extractfile(m))["captions"] for m in tar if m.name.endswith(".json")]
    return [caption for group in captions for caption in group]


def medians(works: dict[str, Callable[[], Callable[[], object]]]) -> dict[str, float]:
    """CPU seconds of each; a work is prepared afresh, off the clock, before every round."""
    return harness.medians(harness.fresh_rounds(works, ROUNDS, time.process_time))


def transformers_tokenizer() -> Callable[[list[str]], torch.Tensor]:
    from transformers import CLIPTokenizer as PeerCLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        CLIPTokenizer().save(folder)
        peer = PeerCLIPTokenizer.from_pretrained(folder)
    options = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
    return lambda texts: peer(texts, **options).input_ids


def tokenizers_tokenizer() -> Callable[[list[str]], torch.Tensor]:
    import tokenizers

    with tempfile.TemporaryDirectory() as folder:
        CLIPTokenizer().save(folder)
        peer = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    peer.enable_truncation(77)
    peer.enable_padding(pad_id=0, length=77)
    return lambda texts: torch.tensor([encoding.ids for encoding in peer.encode_batch_fast(texts)])


def main() -> None:
    torch.set_num_threads(1)
    harness.import_peers()
    from open_clip.tokenizer import SimpleTokenizer

    unique = read_captions(sys.argv[1:] or [str(path) for path in sorted((harness.DATA / "captions").glob("*.tar"))])
    captions = (unique * (CAPTIONS // len(unique) + 1))[:CAPTIONS]
    learnt = train_tokenizer(unique, 4_096)
    makers = {
        "openvocab": CLIPTokenizer,
        "openvocab, learnt 4,096": lambda: copy.copy(learnt),
        "open_clip": SimpleTokenizer,
        "transformers": transformers_tokenizer,
        "tokenizers": tokenizers_tokenizer,
    }
    used = {name: make() for name, make in makers.items()}
    assert torch.equal(used["openvocab"](captions), used["open_clip"](captions)), "ids differ"
    for tokenizer in used.values():
        tokenizer(captions)

    def fresh(make: Callable) -> Callable[[], Callable[[], object]]:
        def prepare() -> Callable[[], object]:
            tokenizer = make()
            return lambda: tokenizer(unique)

        return prepare

    def warm(tokenizer: Callable, texts: list[str]) -> Callable[[], Callable[[], object]]:
        return lambda: lambda: tokenizer(texts)

    first = medians({name: fresh(make) for name, make in makers.items()})
    steady = medians({name: warm(tokenizer, captions) for name, tokenizer in used.items()})
    accented = [f"{caption} caf\u00e9" for caption in unique]
    not_ascii = medians({name: warm(tokenizer, accented) for name, tokenizer in used.items()})
    rates = {
        "first_sight": {name: round(len(unique) / time_s) for name, time_s in first.items()},
        "steady": {name: round(len(captions) / time_s) for name, time_s in steady.items()},
        "not_ascii": {name: round(len(accented) / time_s) for name, time_s in not_ascii.items()},
    }
    ratios = {
        f"{state}_over_{peer}": round(rate["openvocab"] / rate[peer], 1)
        for state, rate in rates.items()
        for peer in ("open_clip", "transformers", "tokenizers")
    }
    print(f"{'captions per CPU second':26}" + "".join(f"{state.replace('_', ' '):>13}" for state in rates))
    for name in makers:
        print(f"{name:26}" + "".join(f"{rate[name]:>13,}" for rate in rates.values()))
    for name, ratio in ratios.items():
        print(f"{name.replace('_', ' '):42}{ratio:>6.1f} x")
    result = {
        "captions": {
            "first_sight": len(unique),
            "steady": len(captions),
            "not_ascii": len(accented),
            "ascii": sum(map(str.isascii, unique)),
        },
        "captions_per_cpu_second": rates,
        "ratios": ratios,
        "rounds": ROUNDS,
    }
    harness.record("tokenizer", result, "open_clip_torch", "transformers", "tokenizers", "ftfy", "regex")


if __name__ == "__main__":
    main()
