"""The forced choice: what knows the order gets it right both ways, what does not gets exactly one of the two."""

from dataclasses import replace

import torch

from openvocab.clip.dense import TINY_CLIP
from openvocab.clip.model import CLIP
from openvocab.clip.tokenizer import CLIPTokenizer
from openvocab.data.clips import ClipsConfig, MotionClips
from openvocab.lab.studies import clip4clip as study
from openvocab.systems import clip4clip as system


def test_a_head_that_is_blind_to_order_is_right_one_way():
    torch.manual_seed(0)
    text = replace(TINY_CLIP.text, vocabulary_size=49408, end_id=49407)
    clip = CLIP(replace(TINY_CLIP, text=text)).eval()
    clip.tokenizer, clip.name = CLIPTokenizer(), "tiny"
    config = replace(system.SIZES["tiny"], head="meanP")
    test = MotionClips(replace(ClipsConfig(), actions=study.TOLD), 40, 5)
    right = study.choices(system.build(config, clip).eval(), test)
    assert (right[0] ^ right[1]).all()
    unplaced = system.build(replace(config, head="seqTransf", positions=False), clip).eval()
    assert study.choices(unplaced, test).double().mean() == 0.5


def test_all_heads_learn_from_the_same():
    for arms in (study.HEADS.values(), (study.EARLY, study.LATE)):
        assert len({str((it.data, it.fit, it.optim)) for it in (arm.recipe(3) for arm in arms)}) == 1
