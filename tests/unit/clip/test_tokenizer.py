import hashlib
import html
import itertools
import pickle

import ftfy
import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openvocab.clip import tokenizer as module
from openvocab.clip.caption_bpe import train_tokenizer
from openvocab.clip.tokenizer import CLIPTokenizer, WordCache, clean, clip_merges, clip_vocabulary, token_report
from openvocab.clip.tokenizer_files import PublishedTokenizer, load_tokenizer
from openvocab.storage import read_json, write_json

GOLDEN = [
    ("Hello World!", [3306, 1002, 256]),
    ("a photo of a cat.", [320, 1125, 539, 320, 2368, 269]),
    ("a diagram", [320, 22697]),
    ("it's don't we'll I'VE", [585, 568, 847, 713, 649, 1342, 328, 1200]),
    ("na\u00efve caf\u00e9", [1097, 35689, 563, 15304]),
    ("123 abc45", [272, 273, 274, 5334, 275, 276]),
    ("\u65e5\u672c\u8a9e", [39121, 44353, 34002, 508]),
    ("\U0001f431", [22979]),
    ("a&amp;amp;b &lt;", [320, 261, 321, 283]),
    ("L&AMP;AMP;R", [331, 261, 337]),
    ("\u201cquoted\u201d", [257, 27706, 257]),
    ("\ufb01ne print", [3797, 3557]),
    ("e\u0301", [4166]),
    ("\u0130stanbul", [328, 16384, 11231]),
    ("\u01c5", [67, 129, 378]),
    ("The_quick", [518, 318, 3712]),
    ("...!!!??", [3002, 11194, 2197]),
    ("it''s 3.14%", [585, 8445, 338, 274, 269, 272, 275, 260]),
    ("supercalifragilisticexpialidocious", [1642, 2857, 13093, 2076, 5868, 26850, 835, 639, 38466]),
    ("", []),
    (" \t\n ", []),
    ("a\0b", [3937]),
]
MARKERS = ["<|startoftext|>", "<|endoftext|>", "<start_of_text>", "<END_OF_TEXT>", "&lt;|endoftext|&gt;"]
CAPTIONS = [
    f"{start} {size} {colour} {shape}"
    for start in ("a photo of a", "there is one")
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square", "triangle", "star")
]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer()


@pytest.fixture(scope="module")
def learnt():
    return train_tokenizer(CAPTIONS, 400, context_length=12)


@pytest.mark.parametrize(("text", "ids"), GOLDEN)
def test_ids_are_those_of_the_original(tokenizer, text, ids):
    assert tokenizer.encode(text) == ids


def test_packaged_merges_are_the_published_ones():
    merges = clip_merges()
    content = "".join(merge + "\n" for merge in merges).encode()
    assert hashlib.sha256(content).hexdigest() == module.CLIP_MERGES_SHA256
    assert len(merges) == 48_894
    assert merges[:6] == ["i n", "t h", "a n", "r e", "a r", "e r"]


def test_vocabulary_has_the_published_order():
    vocabulary = clip_vocabulary()
    assert len(vocabulary) == CLIPTokenizer.vocabulary_size == 49_408  # every symbol is made by one merge only
    assert [vocabulary[name] for name in ("!", "!</w>", "a", "a</w>", "in")] == [0, 256, 64, 320, 512]
    assert [vocabulary[name] for name in ("<|startoftext|>", "<|endoftext|>")] == [49_406, 49_407]


def test_a_damaged_merge_table_is_refused(monkeypatch):
    monkeypatch.setattr(module, "CLIP_MERGES_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="damaged"):
        clip_merges()


def test_merging_the_bytes_of_any_word_in_the_vocabulary_gives_that_word():
    # The premise of the look-up that spares known words their merges.
    table = module._clip_table()
    merging = module._MergeTable(table.symbols, table.first_ids, table.merged, endings={})
    assert all(merging.encode(ending[:-1]) == [token] for ending, token in table.endings.items())


def test_rows_are_start_text_end_and_zeros(tokenizer):
    tokens = tokenizer(["a cat", ""])
    assert tokens.shape == (2, 77)
    assert tokens.dtype == torch.int64
    assert tokens[0].tolist() == [49406, 320, 2368, 49407] + [0] * 73
    assert tokens[1].tolist() == [49406, 49407] + [0] * 75
    assert torch.equal(tokenizer("a cat"), tokens[:1])
    assert tokenizer([]).shape == (0, 77)


def test_a_text_that_is_too_long_raises_and_names_row_length_and_cure(tokenizer):
    with pytest.raises(ValueError, match=r"text 1 has 82 tokens, the limit is 77: shorten it, or truncate=True"):
        tokenizer(["a cat", "cat " * 80])
    assert tokenizer(["cat " * 75]).shape == (1, 77)


def test_truncation_keeps_the_end_token_last(tokenizer):
    tokens = tokenizer(["cat " * 80, "dog"], context_length=5, truncate=True)
    assert tokens.tolist() == [[49406, 2368, 2368, 2368, 49407], [49406, 1929, 49407, 0, 0]]


@pytest.mark.parametrize("marker", MARKERS)
def test_special_tokens_spelt_out_are_ordinary_text(tokenizer, learnt, marker):
    for one in (tokenizer, learnt):
        row = one([f"a red {marker} circle"], context_length=77)[0].tolist()
        assert row.count(one.start_id) == row.count(one.end_id) == 1
        assert row.index(one.end_id) == one.count_tokens([f"a red {marker} circle"]).item() - 1


def test_counts_say_which_captions_are_cut(tokenizer):
    counts = tokenizer.count_tokens(["", "a cat", "cat " * 80])
    assert counts.tolist() == [2, 4, 82]
    assert token_report(tokenizer, ["a cat", "cat " * 80]).truncated_share == 0.5


def test_plain_ascii_needs_no_repair():
    # Exhaustive over pairs of the characters that skip ftfy and html, and over each beside a letter.
    safe = [chr(code) for code in range(128) if module._PLAIN(chr(code))]
    assert len(safe) == 98  # printable without "&", tab, line feed, form feed, carriage return
    for first, second in itertools.product(safe, safe):
        text = f"Ab{first}{second}cd"
        repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
        assert " ".join(repaired.split()) == " ".join(text.split())


def test_other_ascii_is_repaired():
    changed = [chr(code) for code in range(128) if not module._PLAIN(chr(code))]
    assert [clean(f"a{character}b") for character in changed if character != "&"] == ["ab"] * 29
    assert clean("a\x1b[31mb") == "ab"
    assert clean("&amp;lt;") == "<"


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_words_apart_give_the_ids_of_the_whole_text(tokenizer, text):
    pieces = module._PIECES.findall(clean(text))
    assert tokenizer.encode(text) == [
        token for piece in pieces for token in module._clip_table().encode(piece.encode())
    ]


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_decoding_gives_back_the_cleaned_text_up_to_spaces(tokenizer, text):
    # U+0345 is neither letter nor other character to the ignore-case pattern: the original drops it too.
    cleaned = regex.sub(r"\s", "", clean(text)).replace("\u0345", "")
    assert regex.sub(r"\s", "", tokenizer.decode(tokenizer.encode(text))) == cleaned


@given(st.text(alphabet="abcdefghij klmnopqrstuvwxyz0123456789.,!?-", max_size=60))
def test_decoding_and_encoding_again_gives_the_same_ids(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_decoding_a_row_leaves_out_start_end_and_padding(tokenizer):
    assert tokenizer.decode(tokenizer(["Two cats!"])[0].tolist()) == "two cats !"


def test_word_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(WordCache, "words", 3)
    cache = WordCache(lambda word: [len(word)])
    for word in ("a", "bb", "ccc", "dddd", "e" * 65):
        assert cache[word] == module.packed([len(word)])
    assert set(cache) == {"dddd"}


def test_fresh_pickled_and_used_tokenizers_agree(tokenizer, learnt):
    for one in (tokenizer, learnt):
        again = pickle.loads(pickle.dumps(one))
        assert again.fingerprint == one.fingerprint
        assert torch.equal(again(CAPTIONS), one(CAPTIONS))
    assert tokenizer.fingerprint != learnt.fingerprint


def test_saved_clip_folder_holds_the_published_files_and_loads(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    files = ["merges.txt", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == files
    again = load_tokenizer(tmp_path)
    assert isinstance(again, CLIPTokenizer)
    assert again.context_length == 77
    (tmp_path / "tokenizer.json").unlink()
    assert isinstance(load_tokenizer(tmp_path, context_length=32), CLIPTokenizer)
    assert load_tokenizer(tmp_path, context_length=32).context_length == 32


def test_learnt_vocabulary_makes_frequent_words_one_token(learnt):
    assert learnt.vocabulary_size <= 400
    assert token_report(learnt, CAPTIONS).tokens_per_word == 1.0
    assert (learnt.pad_id, learnt.start_id, learnt.end_id) == (
        0,
        learnt.vocabulary_size - 2,
        learnt.vocabulary_size - 1,
    )
    tokens = learnt(CAPTIONS)
    assert tokens.shape == (len(CAPTIONS), 12)
    assert torch.equal(tokens.argmax(dim=1), (tokens == learnt.end_id).int().argmax(dim=1))
    assert [learnt.decode(row) for row in tokens.tolist()] == CAPTIONS


def test_learning_is_deterministic_in_any_order(learnt):
    assert train_tokenizer(reversed(CAPTIONS), 400, 12).fingerprint == learnt.fingerprint


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_learnt_words_apart_give_the_ids_of_the_whole_text(learnt, text):
    row = learnt([text], context_length=1000)[0].tolist()
    assert learnt._inner(row) == learnt.encode(text)


@pytest.mark.parametrize(
    "text", ["\u0932\u093e\u0932 \u0918\u0930", "\u7ea2\u8272\u7684\u5706", "\u0645\u0631\u0628\u0639", "\U0001f7e5 ok"]
)
def test_learnt_bytes_cover_every_script(learnt, text):
    assert learnt.decode(learnt.encode(text)) == text
    own = train_tokenizer([text] * 2, 300)
    assert len(own.encode(text)) < len(learnt.encode(text))


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocabulary_size is 200; 256 bytes and 3 special tokens need 259"):
        train_tokenizer(CAPTIONS, 200)
    assert train_tokenizer(CAPTIONS, 259).vocabulary_size == 259


def test_learnt_tokenizer_survives_its_folder(learnt, tmp_path):
    learnt.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == learnt.fingerprint
    assert torch.equal(again(CAPTIONS), learnt(CAPTIONS))


def _sentencepiece_folder(folder):
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors

    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581a", -2.0),
        ("\u2581red", -3.0),
        ("\u2581cat", -3.0),
    ]
    letters = [(letter, -9.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz!_"]
    made = tokenizers.Tokenizer(models.Unigram(pieces + letters, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    made.save(str(folder / "tokenizer.json"))
    write_json(folder / "special_tokens_map.json", {"eos_token": {"content": "</s>"}, "pad_token": "<pad>"})
    write_json(folder / "tokenizer_config.json", {"model_max_length": 64, "tokenizer_class": "SiglipTokenizer"})


def test_siglip_style_folder_is_cleaned_ended_and_padded_its_own_way(tmp_path):
    _sentencepiece_folder(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, PublishedTokenizer)
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (None, 1, 0)
    tokens = tokenizer(["A RED, cat!"])
    assert tokens.shape == (1, 64)
    assert tokens[0].tolist() == [3, 4, 5, 1] + [0] * 60
    assert tokenizer(["a red cat " * 40], truncate=True)[0, -1] == 1
    assert tokenizer.decode(tokens[0].tolist()) == "a red cat"
    tokenizer.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.fingerprint == tokenizer.fingerprint
    assert torch.equal(again(["A RED, cat!", "\ud800"]), tokenizer(["A RED, cat!", "\ud800"]))
    assert pickle.loads(pickle.dumps(tokenizer)).fingerprint == tokenizer.fingerprint


def test_padding_side_of_the_file_is_kept(tmp_path):
    _sentencepiece_folder(tmp_path)
    settings = {"model_max_length": 5, "padding_side": "left", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(tmp_path / "tokenizer_config.json", settings)
    assert load_tokenizer(tmp_path)(["a red"]).tolist() == [[0, 0, 3, 4, 1]]


def test_special_tokens_spelt_out_never_end_a_row_of_a_published_tokenizer(tmp_path):
    _sentencepiece_folder(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 16})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer(["a</s>red"])[0].tolist().count(1) == 1
    assert 1 not in tokenizer.encode("a</s>red")


def test_open_clip_folders_without_a_tokenizer_of_their_own_have_clips(tmp_path):
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": {"text_cfg": {"context_length": 32}}})
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, CLIPTokenizer)
    assert tokenizer.context_length == 32


def test_bad_folders_name_the_file_and_what_is_wrong(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json, and no vocab.json with merges.txt"):
        load_tokenizer(tmp_path)
    write_json(tmp_path / "vocab.json", {"a": 0})
    (tmp_path / "merges.txt").touch()
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"})
    with pytest.raises(ValueError, match=r"of a RobertaTokenizer, which needs its tokenizer.json"):
        load_tokenizer(tmp_path)
    _sentencepiece_folder(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer.json: .* name no eos_token"):
        load_tokenizer(tmp_path)
    content = read_json(tmp_path / "tokenizer.json")
    write_json(tmp_path / "tokenizer.json", content | {"model": {"type": "Strange"}})
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json: not valid json"):
        load_tokenizer(tmp_path)
    text = {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"strip_sep_token": True}}
    _sentencepiece_folder(tmp_path)
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": {"text_cfg": text}})
    with pytest.raises(ValueError, match="strip_sep_token"):
        load_tokenizer(tmp_path)
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": {"text_cfg": {"tokenizer_kwargs": {"clean": "none"}}}})
    with pytest.raises(ValueError, match="clean-up 'lower' only"):
        load_tokenizer(tmp_path)


def test_no_context_length_anywhere_is_said(tmp_path):
    _sentencepiece_folder(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"model_max_length": 10**30})
    with pytest.raises(ValueError, match="pass context_length="):
        load_tokenizer(tmp_path)(["a"])
