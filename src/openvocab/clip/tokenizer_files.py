"""Tokenizers of folders: telling them apart, reading published ones, writing CLIP's in Hugging Face's layout."""

import json
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import BertWordPieceTokenizer, Regex, models, normalizers, processors

from openvocab import storage
from openvocab.clip.caption_bpe import CAPTION_CLASS, CaptionTokenizer, put_around, read_bytes, without_surrogates
from openvocab.clip.tokenizer import CLIPTokenizer, Tokenizer, clean, clip_merges, clip_vocabulary, fix, packed

_CLIP_NAMES = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
_BERT_NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_UNBOUNDED = 1_000_000  # Hugging Face writes a far larger model_max_length where there is no limit
_LEFT_PADDED = ("Siglip2Tokenizer", "GemmaTokenizer", "GemmaTokenizerFast")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

CLEANERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "whitespace": fix,
    "lower": clean,
    "canonicalize": lambda text: " ".join(fix(text).replace("_", " ").translate(_PUNCTUATION).lower().split()),
    "siglip": lambda text: " ".join(text.lower().translate(_PUNCTUATION).split()),
}
"""What happens to a text before tokenizer.json sees it: nothing; open_clip's three; that of transformers' SigLIP."""


class PublishedTokenizer(Tokenizer):
    """A `tokenizer.json` of any kind, with the padding and the clean-up of the model it was published with.

    Text that spells the start or end token is ordinary text, or dropped where the vocabulary cannot spell it otherwise.
    """

    def __init__(self, tokenizer_json: str, settings: dict[str, Any], clean: str = "none"):
        """
        Args:
            settings: as in tokenizer_config.json; read are pad_token, padding_side and model_max_length. The tokens
                around a text are those of tokenizer.json itself, as in transformers.
            clean: one of `CLEANERS`.

        Raises:
            ValueError: an unknown clean-up, no padding token, or more than one token before or after a text.
        """
        if clean not in CLEANERS:
            raise ValueError(f"unknown clean-up {clean!r}; known are {', '.join(CLEANERS)}")
        self._clean, self._settings = clean, settings
        self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocabulary_size = self._tokenizer.get_vocab_size()
        self.start_id, self.end_id = self._start_and_end()
        self.pad_id = _token_id(self._tokenizer, settings, "pad_token")
        self.pads_left = settings.get("padding_side") == "left"
        length = settings.get("model_max_length")
        self.context_length = int(length) if length is not None and length < _UNBOUNDED else None
        layout = [clean, self.start_id, self.end_id, self.pad_id, self.pads_left]
        self.fingerprint = storage.fingerprint("published", self._tokenizer.to_str(), layout)

    def encode(self, text: str) -> list[int]:
        return self._ordinary(self._tokenizer.encode(self._cleaned(text), add_special_tokens=False).ids)

    def located(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of one text, without start and end, and the characters that each stands for."""
        found = self._tokenizer.encode(self._cleaned(text), add_special_tokens=False)
        return found.ids, found.offsets

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([token for token in self._inner(ids) if token != self.pad_id])

    def save(self, folder: Path | str) -> None:
        """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
        folder = Path(folder)
        names = {name: value for name, value in self._settings.items() if name in _CLIP_NAMES}
        storage.write_text(folder / "tokenizer.json", self._tokenizer.to_str())
        storage.write_json(folder / "special_tokens_map.json", names)
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "openvocab_clean": self._clean}
        storage.write_json(folder / "tokenizer_config.json", self._settings | kind)

    def __reduce__(self) -> tuple[Any, ...]:
        return PublishedTokenizer, (self._tokenizer.to_str(), self._settings, self._clean)

    def _bodies(self, texts: Sequence[str]) -> Iterable[bytes]:
        cleaned = [self._cleaned(text) for text in texts]
        found = self._tokenizer.encode_batch_fast(cleaned, add_special_tokens=False)
        return (packed(self._ordinary(encoding.ids)) for encoding in found)

    def _ordinary(self, ids: list[int]) -> list[int]:
        special = (self.start_id, self.end_id)  # SentencePiece vocabularies hold them as pieces that text can match
        return [token for token in ids if token not in special]

    def _cleaned(self, text: str) -> str:
        return without_surrogates(CLEANERS[self._clean](text))

    def _start_and_end(self) -> tuple[int | None, int | None]:
        """What the file puts around a text."""
        inner = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a").ids
        before = next(at for at in range(len(whole)) if whole[at : at + len(inner)] == inner)
        starts, ends = whole[:before], whole[before + len(inner) :]
        if len(starts) > 1 or len(ends) > 1:
            raise ValueError(
                f"tokenizer.json puts {len(starts)} + {len(ends)} tokens around a text, supported is 1 + 1"
            )
        return (starts or [None])[0], (ends or [None])[0]


def load_tokenizer(folder: Path | str, context_length: int | None = None) -> Tokenizer:
    """The tokenizer of a model's folder, told apart by content.

    CLIP's vocabulary gives a `CLIPTokenizer` (whose clean-up and padding with 0 are those of the original, where
    transformers skips the clean-up and pads with the end token); a vocabulary learnt here a `CaptionTokenizer`; any
    other `tokenizer.json` a `PublishedTokenizer` that does what open_clip does if the folder holds an
    open_clip_config.json, and what transformers does otherwise.

    Args:
        context_length: the model's; by default what the folder's config files say.

    Raises:
        FileNotFoundError: there are no tokenizer files.
        ValueError: a file is broken, or asks for what is not supported.
    """
    folder = Path(folder)
    settings = _settings(folder)
    open_clip = _json(folder / "open_clip_config.json").get("model_cfg", {}).get("text_cfg")
    length = context_length or _context_length(folder, open_clip, settings)
    file = folder / "tokenizer.json"
    if settings.get("openvocab_class") == CAPTION_CLASS:
        return CaptionTokenizer(_text(file), length or 77)
    if open_clip is not None and not open_clip.get("hf_tokenizer_name"):
        if _open_clip_clean(folder, open_clip, "lower") != "lower":
            raise ValueError(f"{folder / 'open_clip_config.json'}: CLIP's tokenizer has the clean-up 'lower' only")
        return CLIPTokenizer(length or 77)
    if file.exists():
        content = _text(file)
        vocabulary = _json(file).get("model", {}).get("vocab")
    else:
        content, vocabulary = None, _json(folder / "vocab.json")
    if vocabulary == clip_vocabulary():
        return CLIPTokenizer(length or 77)
    if content is None:
        content = _from_vocabulary_and_merges(folder, vocabulary, settings)
    if _json(folder / "config.json").get("model_type") == "siglip2":
        settings["tokenizer_class"] = "Siglip2Tokenizer"  # its published folders name another
    return _published(file, content, settings | {"model_max_length": length}, open_clip)


def own_tokenizer(folder: Path, context_length: int | None = None) -> Tokenizer | None:
    """The tokenizer that a model saved here lies with; None where it has none."""
    return load_tokenizer(folder, context_length) if (folder / "tokenizer_config.json").exists() else None


def wordpiece(vocabulary: Path | str, context_length: int) -> PublishedTokenizer:
    """BERT's lower-casing tokenizer, of its `vocab.txt`."""
    return _bert(_text(Path(vocabulary)).splitlines(), context_length)


def learn_wordpiece(texts: Iterable[str], vocabulary_size: int, context_length: int) -> PublishedTokenizer:
    """BERT's tokenizer with the most frequent words of `texts`; others are spelt in parts and letters.

    The same texts in any order give the same tokenizer.
    """
    reader = BertWordPieceTokenizer(lowercase=True)
    seen: Counter[str] = Counter()
    for text in texts:
        plain = reader.normalizer.normalize_str(without_surrogates(text))  # type: ignore[union-attr]
        seen.update(word for word, _ in reader.pre_tokenizer.pre_tokenize_str(plain))  # type: ignore[union-attr]
    letters = sorted({*string.ascii_lowercase, *string.digits, *string.punctuation, *"".join(seen)})
    begin = [*_BERT_NAMES, *letters, *(f"##{letter}" for letter in letters)]
    room = max(0, vocabulary_size - len(begin))
    frequent = sorted(set(seen) - set(letters), key=lambda word: (-seen[word], word))[:room]
    return _bert([*begin, *sorted(frequent)], context_length)


def _bert(words: Sequence[str], context_length: int) -> PublishedTokenizer:
    tokenizer = BertWordPieceTokenizer({word: row for row, word in enumerate(words)}, lowercase=True)
    return PublishedTokenizer(tokenizer.to_str(), {"pad_token": "[PAD]", "model_max_length": context_length})


def save_clip(folder: Path | str, context_length: int | None) -> None:
    """Writes CLIP's tokenizer as transformers' CLIPTokenizer reads it; it gives the same ids for plain captions.

    Differs there: no repair of broken text or HTML entities, special tokens spelt out in a text become special, and
    padding is the end token.
    """
    folder = Path(folder)
    vocabulary, merges = clip_vocabulary(), clip_merges()
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length, "do_lower_case": True}
    names = _CLIP_NAMES | {"unk_token": _CLIP_NAMES["eos_token"]}
    storage.write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    storage.write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))
    storage.write_text(folder / "tokenizer.json", _clip_layout(vocabulary, merges, _CLIP_NAMES).to_str())
    storage.write_json(folder / "special_tokens_map.json", names)
    storage.write_json(folder / "tokenizer_config.json", settings | names)


def _published(
    file: Path, content: str, settings: dict[str, Any], open_clip: dict[str, Any] | None
) -> PublishedTokenizer:
    clean = settings.get("openvocab_clean", "none")
    if settings.get("tokenizer_class") in _LEFT_PADDED:  # unless the file says otherwise, as in transformers
        settings = {"padding_side": "left"} | settings
    if open_clip is not None:
        clean = _open_clip_clean(file.parent, open_clip, "whitespace")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content)
        if open_clip is None and settings.get("tokenizer_class") == "SiglipTokenizer":
            clean, end = "siglip", settings.get("eos_token")
            around = [(end, _token_id(tokenizer, settings, "eos_token"))]
            tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
                single=f"$A {end}", special_tokens=around
            )
        elif settings.get("tokenizer_class") == "Siglip2Tokenizer":
            steps = [normalizers.Lowercase(), *filter(None, [tokenizer.normalizer])]
            tokenizer.normalizer = normalizers.Sequence(steps)  # type: ignore[assignment]
        return PublishedTokenizer(tokenizer.to_str(), settings, clean)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    except Exception as error:  # the library raises bare Exception for a file that it cannot read
        raise ValueError(f"{file}: not a tokenizer that the tokenizers library reads ({error})") from None


def _open_clip_clean(folder: Path, open_clip: dict[str, Any], default: str) -> str:
    """The clean-up that an open_clip config asks for; whatever else it asks of its tokenizer is refused."""
    options = dict(open_clip.get("tokenizer_kwargs") or {})
    clean = options.pop("clean", default)
    if open_clip.get("tokenizer_mode"):
        options["tokenizer_mode"] = open_clip["tokenizer_mode"]
    if options:
        raise ValueError(
            f"{folder / 'open_clip_config.json'}: its tokenizer asks for {options}, which is not supported"
        )
    return clean


def _token_id(tokenizer: tokenizers.Tokenizer, settings: dict[str, Any], name: str) -> int:
    content = settings.get(name)
    if content is None:
        raise ValueError(f"tokenizer_config.json and special_tokens_map.json name no {name}")
    token = tokenizer.token_to_id(content)
    if token is None:
        raise ValueError(f"{name} {content!r} is not in the vocabulary of tokenizer.json")
    return token


def _from_vocabulary_and_merges(folder: Path, vocabulary: dict[str, int], settings: dict[str, Any]) -> str:
    """A vocabulary of CLIP's kind but not CLIP's own, as tokenizer.json."""
    if not vocabulary or not (folder / "merges.txt").exists():
        raise FileNotFoundError(f"{folder}: no tokenizer.json, and no vocab.json with merges.txt")
    kind = settings.get("tokenizer_class", "CLIPTokenizer")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise ValueError(f"{folder}: vocab.json and merges.txt are of a {kind}, which needs its tokenizer.json")
    for name, default in _CLIP_NAMES.items():
        settings.setdefault(name, default)
    lines = _text(folder / "merges.txt").splitlines()
    merges = [line for line in lines if line and not line.startswith("#version")]
    return _clip_layout(vocabulary, merges, settings).to_str()


def _clip_layout(vocabulary: dict[str, int], merges: list[str], names: dict[str, Any]) -> tokenizers.Tokenizer:
    start, end = names["bos_token"], names["eos_token"]
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=pairs, end_of_word_suffix="</w>", unk_token=end)
    )
    tokenizer.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    read_bytes(tokenizer, r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    put_around(tokenizer, start, end)
    return tokenizer


def _settings(folder: Path) -> dict[str, Any]:
    """special_tokens_map.json and tokenizer_config.json in one; special tokens as plain text."""
    merged = _json(folder / "special_tokens_map.json") | _json(folder / "tokenizer_config.json")
    plain = {
        name: value["content"] if isinstance(value, dict) and "content" in value else value
        for name, value in merged.items()
        if name != "added_tokens_decoder"
    }
    return {name: value for name, value in plain.items() if value is not None}


def _context_length(folder: Path, open_clip: dict[str, Any] | None, settings: dict[str, Any]) -> int | None:
    if open_clip is not None:
        return open_clip.get("context_length", 77)
    text = _json(folder / "config.json").get("text_config") or {}
    length = text.get("max_position_embeddings", settings.get("model_max_length"))
    return int(length) if length is not None and length < _UNBOUNDED else None


def _json(file: Path) -> dict[str, Any]:
    return storage.read_json(file) if file.exists() else {}


def _text(file: Path) -> str:
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing")
    return file.read_text(encoding="utf-8")
