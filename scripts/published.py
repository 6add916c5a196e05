"""For anyone online: opens public weights in every layout and compares them with each other and with a public number.

    make published

The number is the example of OpenAI's README: CLIP.png against "a diagram", "a dog", "a cat" with ViT-B/32 gives
0.9927937, 0.00421068, 0.00299572 (half precision; OpenAI's own tests allow 0.01).
"""

import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import openvocab as ov

EXAMPLE = "https://raw.githubusercontent.com/openai/CLIP/main/CLIP.png"
EXPECTED = (0.9927937, 0.00421068, 0.00299572)
SAME_WEIGHTS = ("hf:openai/clip-vit-base-patch32", "hf:timm/vit_base_patch32_clip_224.openai")
LOADS = (
    "hf:openai/clip-vit-base-patch16",
    "hf:timm/resnet50_clip.openai",
    "hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    "hf:google/siglip-base-patch16-224",
)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "CLIP.png"
        try:
            urllib.request.urlretrieve(EXAMPLE, picture)
        except (urllib.error.URLError, OSError) as error:
            print(f"make published needs the internet: {error}", file=sys.stderr)
            return 1
        failed = 0
        for source in SAME_WEIGHTS:
            clip = ov.load(source)
            words = clip.vocabulary(["a diagram", "a dog", "a cat"], templates="{}")
            found = clip.classify(picture, words).probabilities[0].tolist()
            good = all(abs(ours - theirs) < 0.01 for ours, theirs in zip(found, EXPECTED))
            failed += not good
            print(f"{'ok ' if good else 'BAD'} {source}: {', '.join(f'{p:.5f}' for p in found)}")
        for source in LOADS:
            clip = ov.load(source)
            print(f"ok  {source}: {clip.fingerprint}, {sum(p.numel() for p in clip.parameters()):,} parameters")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
