import json

import torch
import torch.nn.functional as F
from searching import Colours, index_of, pictures
from tiny import tiny_clip, write_picture

from openvocab.cli import run
from openvocab.search.audit import audit, questions
from openvocab.search.records import Nearest


def test_texts_and_pictures_are_judged_apart(tmp_path, monkeypatch):
    vectors = F.normalize(torch.randn(50, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    index = index_of(tmp_path, pictures(vectors))
    texts, seen = vectors[:10] * -1, vectors[10:20]
    whole = audit(index, texts, seen, k=5)
    assert whole == {"text_recall@5": 1.0, "picture_recall@5": 1.0, "texts": 10, "pictures": 10}
    every = index.store.nearest

    def blind(queries, k, where, exact):
        found = every(queries, k, where, exact)
        if exact or not torch.equal(queries, texts):
            return found
        rows = found.rows.clone()
        rows[:, 2:] = -1
        return Nearest(found.scores, rows)

    monkeypatch.setattr(index.store, "nearest", blind)
    assert audit(index, texts, seen, k=5) == whole | {"text_recall@5": 0.4}


def test_questions_to_tune_with_are_not_those_to_judge_with():
    class Telling(Colours):
        def texts(self, texts):
            self.asked = set(texts)
            return torch.zeros(len(texts), 12)

    tuned, judged = Telling(), Telling()
    assert len(questions(tuned, 0)) > 300
    questions(judged, 1)
    assert not tuned.asked & judged.asked


def test_index_from_the_command_line(tmp_path, capsys):
    for number in range(3):
        write_picture(tmp_path / "src" / f"{number}.png", number)
    (tmp_path / "src" / "broken.png").write_bytes(b"nothing")
    tiny_clip().save(tmp_path / "model")
    common = ["--out", str(tmp_path / "index"), "--model", str(tmp_path / "model"), "--json"]
    assert run(["index", str(tmp_path / "src"), *common]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["added"], done["embedded_rows"], len(done["failures"])) == (4, 3, 1)
    assert run(["index", "--audit", *common]) == 0
    assert json.loads(capsys.readouterr().out)["picture_recall@10"] == 1.0
    assert run(["index", str(tmp_path / "src"), *common[:-1]]) == 0
    said = capsys.readouterr().out
    assert "unchanged      4" in said
    assert "broken.png: not a picture" in said
    assert run(["index", "--audit", *common[:2]]) == 0
    said = capsys.readouterr().out
    assert "text_recall@10" in said
    assert "failures" not in said
    assert run(["index", *common]) == 2
    assert "what to index?" in capsys.readouterr().err
    assert run(["index", str(tmp_path / "gone"), *common]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_an_audit_asks_as_the_index_was_made(tmp_path, capsys):
    write_picture(tmp_path / "src" / "a.png", 0)
    tiny_clip().save(tmp_path / "model")
    out, asked = str(tmp_path / "index"), ["--model", str(tmp_path / "model"), "--precision", "float32"]
    assert run(["index", str(tmp_path / "src"), "--out", out, *asked]) == 0
    assert run(["index", "--out", out, "--audit"]) == 0
    (tmp_path / "src" / "a.png").unlink()
    assert run(["index", str(tmp_path / "src"), "--out", out, *asked]) == 0
    capsys.readouterr()
    assert run(["index", "--out", out, "--audit"]) == 1
    assert "holds nothing that could be found" in capsys.readouterr().err
