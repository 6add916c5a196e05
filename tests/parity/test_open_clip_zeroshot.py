"""Templates and zero-shot weights against open_clip's own."""

import open_clip
import torch
from tiny import tiny_clip

from openvocab.clip.templates import TEMPLATES
from openvocab.clip.vocabulary import vocabulary


def test_imagenet_templates_are_open_clips():
    published = {template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES}
    assert set(TEMPLATES["imagenet"]) == published
    assert len(TEMPLATES["imagenet"]) == len(published)
    assert TEMPLATES["imagenet7"] == tuple(template("{}") for template in open_clip.SIMPLE_IMAGENET_TEMPLATES)


def test_label_vectors_equal_open_clips_classifier():
    clip = tiny_clip()
    names = ["tench", "great white shark", "construction crane"]
    theirs = open_clip.build_zero_shot_classifier(
        clip, clip.tokenizer, names, open_clip.OPENAI_IMAGENET_TEMPLATES, num_classes_per_batch=2
    )
    ours = vocabulary(clip, names, "imagenet", cache=False)
    torch.testing.assert_close(ours.embeds.T, theirs.detach(), rtol=0, atol=1e-6)
