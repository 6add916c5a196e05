"""Claims that this house cannot test: they need people, 400 million pairs or public photographs by the million."""

from openvocab.lab.claims import Untested

UNTESTED = (
    Untested(
        name="people-on-pets",
        says="CLIP names breeds of pets better than people do, and they gain more from a first example than a second.",
        source="CLIP, section 4, table 2",
        published="CLIP 93.5 % zero-shot; five people 53.7 % with no example, 75.7 % with one, 75.7 % with two",
        reason="needs people and the Oxford-IIIT Pets photographs",
    ),
    Untested(
        name="imagenet-without-labels",
        says="Without any of its labels CLIP classifies ImageNet as well as the ResNet-50 that was trained on all.",
        source="CLIP, section 3.1.3",
        published="76.2 % top-1 of ViT-L/14 at 336 pixels",
        reason="needs ImageNet's validation photographs and the published weights; `make published` loads these",
    ),
    Untested(
        name="behind-the-state-of-the-art",
        says="To reach the state of the art everywhere by scale alone, CLIP would need a thousand times the compute.",
        source="CLIP, section 6",
        published="an estimate of the authors; zero-shot lies 10 to 25 points below the same features with all labels",
        reason="36 public data sets; the slope of error against compute of this house's world is a row above",
    ),
    Untested(
        name="natural-shifts",
        says="Zero-shot models lose less than supervised ones when photographs are gathered in another way.",
        source="CLIP, section 3.3, figure 13",
        published="the gap between ImageNet and its natural shifts shrinks by up to 75 %",
        reason="needs ImageNet and its seven variants; a change of style in the generated world is a row above",
    ),
    Untested(
        name="yfcc-as-good-as-wit",
        says="Photographs with natural sentences from YFCC teach on average as much as the same number of WIT's pairs.",
        source="CLIP, section 2.2 and appendix",
        published="RN50 on 15 million pairs, averages within a point; single data sets differ by 10 points either way",
        reason="needs both collections",
    ),
)
