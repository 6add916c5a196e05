import json
import random

import clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from transformers import AutoTokenizer
from transformers import CLIPTokenizer as PeerCLIPTokenizer

from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.clip.tokenizer_files import load_tokenizer
from openvocab.storage import write_json

CAPTIONS = [
    "a photo of a cat.",
    "Two dogs, one brown & one white, run on the grass!",
    "it's 3 o'clock; they're late (again)",
    "na\u00efve caf\u00e9 \u2014 \u00c5ngstr\u00f6m, 100% \u65e5\u672c\u8a9e \u041f\u0440\u0438\u0432\u0435\u0442",
    "\U0001f431\U0001f3fd",
    "",
    "  many   spaces\tand\nlines ",
]
TRICKY = [
    *["Hello World!", "a diagram", "it's don't we'll I'VE", "123 abc45", "a&amp;amp;b &lt;", "L&AMP;AMP;R"],
    *[
        "\u201cquoted\u201d",
        "\ufb01ne print",
        "e\u0301",
        "\u0130stanbul",
        "\u01c5",
        "The_quick",
        "...!!!??",
        "it''s 3.14%",
    ],
    *["supercalifragilisticexpialidocious", " \t\n ", "a\0b"],
]
FRAGMENTS = [
    *["&amp;", "&amp;lt;", "&LT;", "&#39;", "&#x1F600;", "&nbsp", "&copy", "&amp;amp;quot;", "&#0;", "&zzz;"],
    *["&#xD800;", "\x1b[31m", "\r\n", "\x85", "\ufeff", "\u200d", "\u3000", "\u2028", "\xa0", "\ud83d", "\ude00"],
    *["\u00c3\u00a9", "\u00e2\u20ac\u2122", "\u00c2\u00a3", "\u00f0\u0178\u02dc\u0160", "\u201cquoted\u201d", "\ufb03"],
    *["'S", "'\u017f", "'ll", "\u03a3", "\u0130", "\u01c5", "\u0345", "\u1e9e", "\uff34\uff28", "\u2164", "\u00bd"],
    *["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\ufffd", "\0", "\u0663"],
    *["<|startoftext|>", "<|endoftext|>", "</w>", "_", "<", ">", "cat", "The", "12", "!!", " ", " "],
]
RANGES = [(0x20, 0x7F), (0, 0x100), (0x100, 0x300), (0x300, 0x370), (0x370, 0x590), (0x590, 0x700), (0x900, 0xE80)]
RANGES += [(0x1E00, 0x2100), (0x2100, 0x2C00), (0x3040, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xF900, 0x10000)]
RANGES += [(0x1F300, 0x1FAFF), (0, 0xD800), (0x10000, 0x110000)]


def random_text(rng: random.Random) -> str:
    parts = []
    for _ in range(rng.randrange(9)):
        low, high = rng.choice(RANGES)
        run = "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 6)))
        parts.append(rng.choice([run, rng.choice(FRAGMENTS)]))
    return rng.choice(["", " "]).join(parts)


def test_20_000_random_unicode_texts_have_open_clips_ids():
    """open_clip's own markers (`<start_of_text>`) are the one deliberate difference and do not occur in the texts."""
    rng = random.Random(0)
    texts = [random_text(rng) for _ in range(20_000)]
    ours, peer = CLIPTokenizer()(texts, context_length=512), SimpleTokenizer()(texts, context_length=512)
    different = (ours != peer).any(dim=1).nonzero().flatten().tolist()
    assert [texts[row] for row in different] == []
    assert (peer[:, -1] == 0).all()  # no text was cut
    assert sum(map(len, texts)) > 200_000


def test_open_clips_own_markers_are_special_there_and_ordinary_here():
    assert SimpleTokenizer().encode("a <end_of_text>") == [320, 49407]
    assert CLIPTokenizer().encode("a <end_of_text>") == CLIPTokenizer().encode("a < end _ of _ text >")


@pytest.mark.parametrize("text", [*CAPTIONS, *TRICKY])
def test_clips_own_tokenizer_gives_the_same_rows(text):
    assert torch.equal(CLIPTokenizer()([text]), clip.tokenize([text]))
    assert torch.equal(CLIPTokenizer()([text * 40], truncate=True), clip.tokenize([text * 40], truncate=True))


def test_saved_folder_opens_in_transformers_and_gives_the_same_ids(tmp_path):
    CLIPTokenizer().save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    peers = [PeerCLIPTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)]
    (tmp_path / "tokenizer.json").unlink()
    peers.append(PeerCLIPTokenizer.from_pretrained(tmp_path))
    ours = CLIPTokenizer()(CAPTIONS)
    inside = torch.arange(77) < CLIPTokenizer().count_tokens(CAPTIONS)[:, None]
    for peer in peers:
        theirs = peer(CAPTIONS, padding="max_length", truncation=True, return_tensors="pt")
        assert torch.equal(theirs.attention_mask.bool(), inside)
        assert torch.equal(theirs.input_ids.where(inside, 0), ours)
        assert peer.model_max_length == 77


def test_folder_saved_by_transformers_loads_as_clips_tokenizer(tmp_path):
    CLIPTokenizer().save(tmp_path / "ours")
    PeerCLIPTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert load_tokenizer(tmp_path / "theirs").fingerprint == CLIPTokenizer.fingerprint


def test_learnt_tokenizer_opens_in_transformers_and_gives_the_same_ids(tmp_path):
    tokenizer = train_tokenizer(CAPTIONS * 2, 320)
    tokenizer.save(tmp_path)
    peer = AutoTokenizer.from_pretrained(tmp_path)
    rng = random.Random(1)
    texts = [*CAPTIONS, *(random_text(rng).encode("utf-8", "replace").decode() for _ in range(500))]
    texts = [text for text in texts if "<|" not in text]  # the peer takes spelt-out special tokens for special
    theirs = peer(texts, padding="max_length", truncation=True, max_length=300, return_tensors="pt")
    assert torch.equal(theirs.input_ids, tokenizer(texts, context_length=300))


def test_a_vocabulary_of_clips_kind_from_its_two_files_gives_transformers_ids(tmp_path):
    symbols = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz.")]
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    names = [*symbols, *("".join(merge) for merge in merges), "<|startoftext|>", "<|endoftext|>"]
    write_json(tmp_path / "vocab.json", {name: token for token, name in enumerate(names)})
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    texts = ["A cat.", "the dog of a Cat", ""]
    peer = PeerCLIPTokenizer.from_pretrained(tmp_path)
    theirs = peer(texts, padding="max_length", max_length=16, return_tensors="pt").input_ids
    assert torch.equal(load_tokenizer(tmp_path)(texts, context_length=16), theirs)


def _sentencepiece_folder(folder, settings):
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    words = [(f"\u2581{word}", -4.0) for word in ("a", "photo", "of", "cat", "two", "dogs", "the", "and")]
    letters = [(chr(code), -9.0 - code / 500) for code in [0x2581, *range(33, 127)]]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *words, *letters]
    made = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    made.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", names)
    write_json(folder / "tokenizer_config.json", names | {"tokenizer_class": "PreTrainedTokenizerFast"} | settings)


@pytest.mark.parametrize("clean", ["canonicalize", "whitespace", "lower"])
def test_siglip_layout_of_open_clip_gives_its_ids(tmp_path, clean):
    _sentencepiece_folder(tmp_path, {})
    text = {"context_length": 64, "hf_tokenizer_name": "x", "tokenizer_kwargs": {"clean": clean}}
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": {"text_cfg": text}})
    peer = HFTokenizer(str(tmp_path), context_length=64, clean=clean)
    texts = [*CAPTIONS, "The_cat! <b> &amp; \u201cTWO\u201d dogs", "cat " * 90]
    assert torch.equal(load_tokenizer(tmp_path)(texts, truncate=True), peer(texts))


@pytest.mark.parametrize("settings", [{}, {"padding_side": "left"}, {"add_bos_token": True}])
def test_any_tokenizer_json_gives_transformers_ids(tmp_path, settings):
    _sentencepiece_folder(tmp_path, {"model_max_length": 32} | settings)
    peer = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*CAPTIONS, "cat " * 90]
    theirs = peer(texts, padding="max_length", truncation=True, max_length=32, return_tensors="pt").input_ids
    assert torch.equal(load_tokenizer(tmp_path)(texts, truncate=True), theirs)


def test_siglip2_layout_gives_transformers_ids(tmp_path):
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    letters = ["\u2581", *map(chr, range(97, 123))]
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "ca", "cat", "\u2581o", "\u2581of"]
    merges = [("c", "a"), ("ca", "t"), ("\u2581", "o"), ("\u2581o", "f")]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.post_processor = tokenizers.processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    made.add_special_tokens(specials)
    made.save(str(tmp_path / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(tmp_path / "tokenizer_config.json", names | {"tokenizer_class": "Siglip2Tokenizer"})
    write_json(tmp_path / "config.json", {"model_type": "siglip2", "text_config": {"max_position_embeddings": 64}})
    texts = ["A Cat OF cats", "two DOGS", "", "\u03a3\u0391\u03a3 \u0130"]
    peer = AutoTokenizer.from_pretrained(tmp_path)
    theirs = peer(texts, padding="max_length", truncation=True, max_length=64, return_tensors="pt").input_ids
    ours = load_tokenizer(tmp_path)
    assert torch.equal(ours(texts), theirs)
    ours.save(tmp_path / "again")
    assert torch.equal(load_tokenizer(tmp_path / "again")(texts), theirs)
