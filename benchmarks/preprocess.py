"""JPEG bytes to normalised tensors at 224 px, beside open_clip's documented transform.

    .venv-peers/bin/python benchmarks/preprocess.py [--rounds 5] [--pictures 200]

Pictures are real: `photos` has 1,000 small ones (shortest side 160), which are enlarged; `coco` has 30 of 640 px, which
are reduced; `large` are those 30 at three times the size, as cameras make them. "Documented" is Pillow and torchvision
in a loop, measured like ours in CPU seconds of one thread. "At its best" is its DataLoader with a worker for each core
beside our threads, in wall seconds, where
the documented loop is shown again. Rounds are interleaved, figures are medians.
"""

import argparse
import io
import os
import tarfile
import time

import harness
import torch
from PIL import Image

from openvocab.clip.engine import pixel_batches
from openvocab.clip.preprocess import PreprocessConfig, normalize, preprocess, preprocess_bytes

CONFIG = PreprocessConfig()
CORES = os.cpu_count() or 1
BATCH = 25


def pictures(limit: int) -> dict[str, list[bytes]]:
    with tarfile.open(harness.DATA / "photos" / "photos.tar") as tar:
        names = [member for member in tar if member.name.endswith(".jpg")][:limit]
        photos = [tar.extractfile(member).read() for member in names]  # type: ignore[union-attr]
    coco = [path.read_bytes() for path in sorted((harness.DATA / "coco" / "images").glob("*.jpg"))[:limit]]
    return {"photos": photos, "coco": coco, "large": [_enlarged(content) for content in coco[:10]]}


def _enlarged(content: bytes) -> bytes:
    image, buffer = Image.open(io.BytesIO(content)).convert("RGB"), io.BytesIO()
    image.resize((3 * image.width, 3 * image.height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


class Pictures(torch.utils.data.Dataset):
    def __init__(self, contents, transform):
        self.contents, self.transform = contents, transform

    def __len__(self):
        return len(self.contents)

    def __getitem__(self, index):
        return self.transform(Image.open(io.BytesIO(self.contents[index])))


def ours(contents: list[bytes]) -> torch.Tensor:
    return normalize(torch.stack([preprocess_bytes(content, CONFIG) for content in contents]), CONFIG)


def ours_threads(contents: list[bytes]) -> None:
    batches = (contents[start : start + BATCH] for start in range(0, len(contents), BATCH))
    for batch in pixel_batches(batches, lambda content: preprocess_bytes(content, CONFIG), CORES):
        normalize(batch.pixels, CONFIG)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=200)
    options = parser.parse_args()
    count = options.rounds
    torch.set_num_threads(1)
    harness.import_peers()
    from open_clip.transform import image_transform

    transform = image_transform(224, is_train=False)
    figures: dict[str, dict[str, float]] = {}
    for name, contents in pictures(options.pictures).items():
        dataset = Pictures(contents, transform)
        for content in contents[:5]:
            assert torch.equal(
                preprocess(Image.open(io.BytesIO(content)), CONFIG), dataset.transform(Image.open(io.BytesIO(content)))
            )

        def documented(contents=contents):
            return torch.stack([transform(Image.open(io.BytesIO(content))) for content in contents])

        def best(dataset=dataset):
            for _ in torch.utils.data.DataLoader(dataset, BATCH, num_workers=CORES):
                pass

        alone = harness.medians(
            harness.rounds(
                {"openvocab": lambda contents=contents: ours(contents), "documented": documented},
                count,
                time.process_time,
            )
        )
        # Enough pictures that starting workers is not what is measured.
        many = contents * -(-options.pictures // len(contents))
        dataset.contents = many
        together = harness.medians(
            harness.rounds(
                {
                    "openvocab": lambda many=many: ours_threads(many),
                    "at its best": best,
                    "documented": lambda many=many: documented(many),
                },
                max(2, count // 2),
            )
        )
        figures[name] = {
            "pictures": len(contents),
            "openvocab_cpu_ms": round(alone["openvocab"] / len(contents) * 1e3, 3),
            "documented_cpu_ms": round(alone["documented"] / len(contents) * 1e3, 3),
            "over_documented": round(alone["documented"] / alone["openvocab"], 2),
            "openvocab_all_cores_ms": round(together["openvocab"] / len(many) * 1e3, 3),
            "at_its_best_all_cores_ms": round(together["at its best"] / len(many) * 1e3, 3),
            "over_its_best": round(together["at its best"] / together["openvocab"], 2),
            "documented_wall_ms": round(together["documented"] / len(many) * 1e3, 3),
            "over_documented_wall": round(together["documented"] / together["openvocab"], 2),
        }
    harness.record("preprocess", {"pictures": figures, "rounds": count}, "open_clip_torch", "torchvision", "pillow")
    harness.show(figures)


if __name__ == "__main__":
    main()
