import json
from pathlib import Path

import pytest
from made import encode, noise, write_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures with two captions each."""
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(12):
        (root / f"{number:02}.png").write_bytes(encode(noise(number)))
        (root / f"{number:02}.txt").write_text(f"picture {number}\nthe picture with number {number}\n")
    return root


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Six samples as webdataset writes them."""
    members: dict[str, bytes] = {}
    for number in range(6):
        members[f"{number:03}.jpg"] = encode(noise(number), "JPEG")
        members[f"{number:03}.json"] = json.dumps({"captions": [f"a {number}", f"the {number}"], "kind": "x"}).encode()
    return write_tar(tmp_path / "a-000.tar", members)
