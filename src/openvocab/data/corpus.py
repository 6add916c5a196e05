"""A corpus of pairs as CLIP's was built: queries from text, matched, balanced to a cap for each query.

Radford et al. 2021 (arXiv 2103.00020), section 2.2, as Xu et al. 2023 (arXiv 2309.16671) reconstruct it. With count[q]
samples whose captions hold query q and a cap t, query q asks for a sample with probability p[q] = min(1, t / count[q]),
and a sample stays where any of its queries asks for it: with probability 1 - prod(1 - p[q]). What is rare stays whole,
what is frequent is thinned. Each draw depends on seed, sample and query alone. Then the pictures of what stays are
read, and broken ones, equal pairs and near-duplicates are left out.

The source is read three times, part by part: terms are counted, queries matched, pairs written. Every finished part is
a file, so the same command goes on where it was killed and writes the same bytes. Memory holds one part, the queries,
and some 2 kB for each picture that was kept; of captions nothing.
"""

import io
import itertools
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt64
from PIL import Image

from openvocab import config as plain
from openvocab import storage
from openvocab.data import queries
from openvocab.data.captions import Captions, Entry, open_captions
from openvocab.data.duplicates import Kept
from openvocab.data.queries import Matcher, Query
from openvocab.data.source import Pairs, PairsConfig, image_id
from openvocab.progress import note
from openvocab.world.chance import mix


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig:
    """The paper's cap and least count of a word; a bigram's least PMI, which it does not say, is in bits."""

    cap: int = 20_000
    min_count: int = 100
    min_pmi: float = 4.0
    seed: int = 0
    part: int = 20_000
    """Samples handled together: what memory holds, what an interruption costs, and what makes a shard."""

    def __post_init__(self) -> None:
        for name in ("cap", "min_count", "part"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")


def build(
    source: PairsConfig | Pairs, out: Path, config: CorpusConfig = CorpusConfig(), names: Sequence[str] = ()
) -> dict[str, Any]:
    """Builds a corpus in `out`, or goes on with it, and returns its report.

    Pairs become shards that `open_pairs(out)` opens; tables of captions alone become `.jsonl` tables of the rows that
    stay. `queries.tsv` holds how many samples each query matched and kept, `report.json` everything else.

    Args:
        names: queries besides words and bigrams, such as titles.

    Raises:
        ValueError: `out` holds a corpus of another source or configuration; there is nothing to count.
    """
    captions = open_captions(source)
    asked = {"source": captions.source, "fingerprint": captions.fingerprint, "config": plain.to_dict(config)}
    storage.claim(out / "corpus.json", asked | {"names": storage.fingerprint(list(names))})
    work = out / "work"
    if not (out / "report.json").exists():
        work.mkdir(exist_ok=True)
        for torn in out.glob(".*.part"):
            torn.unlink()
        found = _choose(captions, work, config, names)
        draw = Draw(found, _match(captions, work, config, found), config)
        _write(captions, out, work, config, draw)
        storage.write_json(out / "report.json", asked | _report(out, work, draw))
        note(f"wrote {out}")
    # Only now may the parts go: a run that is killed here finds its report.
    shutil.rmtree(work, ignore_errors=True)
    return storage.read_json(out / "report.json")


@dataclass(frozen=True)
class Matches:
    """What a part's samples match: sample i holds the queries `ids[bounds[i]:bounds[i + 1]]`."""

    keys: UInt64[np.ndarray, " sample"]
    bounds: Int[np.ndarray, " bound"]
    ids: Int[np.ndarray, " match"]

    @property
    def rows(self) -> Int[np.ndarray, " match"]:
        """The sample of each match."""
        return np.repeat(np.arange(len(self.keys)), np.diff(self.bounds))

    def of(self, row: int) -> Int[np.ndarray, " found"]:
        return self.ids[self.bounds[row] : self.bounds[row + 1]]


class Draw:
    """Decides which samples stay.

    Attributes:
        counts: how many samples hold each query.
        probability: p[q] of each query.
    """

    def __init__(self, found: Sequence[Query], counts: Int[np.ndarray, " query"], config: CorpusConfig) -> None:
        self.queries, self.counts, self.cap = found, counts, config.cap
        self.probability = np.minimum(1.0, config.cap / np.maximum(counts, 1))
        self._seed = np.uint64(config.seed % 2**64)
        self._hashes = np.asarray([image_id(query.text) for query in found], np.uint64)

    def __call__(self, matches: Matches) -> Bool[np.ndarray, " sample"]:
        rows = matches.rows
        bits = mix(mix(mix(matches.keys ^ self._seed)[rows] + self._hashes[matches.ids]))
        asked = (bits >> np.uint64(11)) * 2.0**-53 < self.probability[matches.ids]
        return np.bincount(rows[asked], minlength=len(matches.keys)) > 0


def _choose(captions: Captions, work: Path, config: CorpusConfig, names: Sequence[str]) -> list[Query]:
    path = work / "queries.json"
    if not path.exists():
        for number, part in captions.parts(len(_done(work, "terms")), config.part, "counting words"):
            counts = queries.count_terms(text for entry in part for text in entry.captions)
            queries.write_counts(work / f"terms-{number}", sorted(counts.items()))
        merged = queries.merge_counts(_done(work, "terms"))
        found = queries.choose_queries(merged, names, config.min_count, config.min_pmi)
        storage.write_json(path, [asdict(query) for query in found])
    return [Query(**record) for record in storage.read_json(path)]


def _match(captions: Captions, work: Path, config: CorpusConfig, found: list[Query]) -> Int[np.ndarray, " query"]:
    """How many samples hold each query."""
    path, matcher = work / "counts.json", Matcher([query.text for query in found])
    if not path.exists():
        for number, part in captions.parts(len(_done(work, "matches")), config.part, "matching queries"):
            matched = [matcher(entry.captions) for entry in part]
            keys = [image_id(entry.key) for entry in part]
            bounds, ids = np.cumsum([0, *map(len, matched)]), [query for numbers in matched for query in numbers]
            _save(work / f"matches-{number}", keys=np.asarray(keys, np.uint64), bounds=bounds, ids=np.asarray(ids, int))
        counts = np.zeros(len(found), np.int64)
        for part in _done(work, "matches"):
            counts += np.bincount(_matches(part).ids, minlength=len(found))
        storage.write_json(path, counts.tolist())
    return np.asarray(storage.read_json(path), np.int64)


def _write(captions: Captions, out: Path, work: Path, config: CorpusConfig, draw: Draw) -> None:
    """A shard or table for each part, and in `work` which rows it kept and why it dropped others."""
    pairs, suffix = captions.pairs, "jsonl" if captions.pairs is None else "tar"
    done = [path for number, path in enumerate(_done(work, "written")) if (out / f"{number}.{suffix}").exists()]
    pictures = Kept(_load(path, "digests", "prints") for path in done)
    for number, part in captions.parts(len(done), config.part, "writing pairs"):
        matches, kept, dropped = _matches(work / f"matches-{number}"), [], Counter[str]()
        stays = draw(matches)
        # The shard takes its place after the record: a part whose record stands alone is written again.
        with storage.atomic_path(out / f"{number}.{suffix}") as path:
            with closing(_Table(path) if pairs is None else _Shard(path, pairs)) as sink:
                for row, entry in enumerate(part):
                    index, found = number * config.part + row, matches.of(row)
                    if not stays[row]:
                        reason = _reason(entry, len(found))
                    else:
                        reason = pictures.refuse(pairs, index) if pairs is not None else None
                    if reason is None:
                        kept.append(row)
                        sink.write(index, entry, [draw.queries[query].text for query in found])
                    else:
                        dropped[reason] += 1
            digests, prints = pictures.flush()
            record = {"rows": np.asarray(kept, np.int64), "dropped": json.dumps(dropped)}
            _save(work / f"written-{number}", **record, digests=digests, prints=prints)
    if pairs is not None:
        if pairs.classnames:
            storage.write_text(out / "classnames.txt", "\n".join(pairs.classnames) + "\n")
        storage.write_text(out / "nshards.txt", f"{len(_done(work, 'written'))}\n")


def _reason(entry: Entry, num_queries: int) -> str:
    if not entry.captions:
        return "no caption"
    return "balanced away" if num_queries else "matches no query"


class _Table:
    """The rows that stay, as lines of json."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.close = self._file.close

    def write(self, index: int, entry: Entry, texts: list[str]) -> None:
        self._file.write(_json({"key": entry.key, **(entry.row or {}), "queries": texts}))


class _Shard:
    """The pairs that stay, as members of a tar file; a caption is a line."""

    def __init__(self, path: Path, pairs: Pairs) -> None:
        self._pairs, self._file = pairs, tarfile.open(path, "w")
        self.close = self._file.close

    def write(self, index: int, entry: Entry, texts: list[str]) -> None:
        content, label = self._pairs.content(index), self._pairs.label(index)
        lines = (" ".join(text.split()) for text in entry.captions)
        self._member(f"{index:09}.{_suffix(content)}", content)
        self._member(f"{index:09}.txt", "\n".join(lines).encode())
        self._member(f"{index:09}.json", _json({"key": entry.key, "queries": texts}))
        if label is not None:
            self._member(f"{index:09}.cls", str(label).encode())

    def _member(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._file.addfile(member, io.BytesIO(content))


def _report(out: Path, work: Path, draw: Draw) -> dict[str, Any]:
    """Writes queries.tsv, the most frequent query first, and sums up the parts."""
    kept, dropped, samples = np.zeros_like(draw.counts), Counter[str](), 0
    for part, record in zip(_done(work, "matches"), _done(work, "written")):
        matches = _matches(part)
        samples += len(matches.keys)
        rows, counts = _load(record, "rows", "dropped")
        dropped.update(json.loads(str(counts)))
        chosen = np.isin(matches.rows, rows)
        kept += np.bincount(matches.ids[chosen], minlength=len(kept))
    lines = [
        f"{query.text}\t{query.kind}\t{'' if query.pmi is None else f'{query.pmi:.3f}'}\t{matched}\t{stayed}\n"
        for query, matched, stayed in zip(draw.queries, draw.counts.tolist(), kept.tolist())
    ]
    order = np.argsort(-draw.counts, kind="stable").tolist()
    storage.write_text(out / "queries.tsv", "query\tkind\tpmi\tmatched\tkept\n" + "".join(lines[n] for n in order))
    capped = draw.counts > draw.cap
    return {
        "samples": samples,
        "kept": samples - dropped.total(),
        "dropped": dict(sorted(dropped.items())),
        "queries": dict(Counter(query.kind for query in draw.queries)),
        "queries_without_match": int((draw.counts == 0).sum()),
        "queries_over_cap": int(capped.sum()),
        "matches": int(draw.counts.sum()),
        "matches_over_cap": int(draw.counts[capped].sum()),
        "matches_kept": int(kept.sum()),
    }


def _done(work: Path, what: str) -> list[Path]:
    """The finished parts of a pass, in order."""
    paths = map(lambda number: work / f"{what}-{number}", itertools.count())
    return list(itertools.takewhile(Path.exists, paths))


def _matches(path: Path) -> Matches:
    return Matches(*_load(path, "keys", "bounds", "ids"))


def _load(path: Path, *names: str) -> list[np.ndarray]:
    with np.load(path) as stored:
        return [stored[name] for name in names]


def _save(path: Path, **arrays: Any) -> None:
    with storage.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def _json(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, default=str).encode() + b"\n"


def _suffix(content: bytes) -> str:
    with Image.open(io.BytesIO(content)) as opened:
        kind = str(opened.format).lower()
    return "jpg" if kind in ("jpeg", "mpo") else kind
