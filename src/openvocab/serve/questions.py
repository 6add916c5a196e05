"""Routes that ask the model, and the systems that were loaded with it, about one picture."""

from dataclasses import replace
from typing import Any

import torch
from fastapi import APIRouter
from PIL import Image

from openvocab.clip import relevance
from openvocab.clip.colours import depth_colours, label_colours
from openvocab.clip.created import Pictures
from openvocab.clip.dense import NONE
from openvocab.clip.zeroshot import classify_embeds
from openvocab.serve import messages as said
from openvocab.serve.pictures import data_url
from openvocab.serve.server import Server

LONG_SIDE_PX = 1024
"""Of what systems look at pixel by pixel."""


def routes(server: Server) -> APIRouter:
    router = APIRouter(prefix="/api")
    ask, encoder = server.slow, server.encoder

    @router.post("/classify")
    async def classify(asked: said.Classify) -> said.Classified:
        """How well each label fits a picture."""
        words = await server.vocabulary(asked)
        found = classify_embeds(encoder.clip, await server.embedder.images([asked.image]), words)
        rows = zip(found.labels, found.scores[0].tolist(), found.probabilities[0].tolist())
        labels = [said.LabelScore(label=label, score=score, probability=share) for label, score, share in rows]
        labels.sort(key=lambda row: -row.probability)
        unseen = {label: list(missing) for label, missing in found.unseen_words.items()}
        return said.Classified(labels=labels, kind=found.kind, unseen_words=unseen, model=server.model)

    @router.post("/embed")
    async def embed(asked: said.Embed) -> said.Embedded:
        """Unit vectors in the order of what was given."""
        if asked.texts is not None:
            rows = await server.embedder.texts(asked.texts)
        else:
            rows = await server.embedder.images(asked.images or [])
        return said.Embedded(vectors=rows.tolist(), fingerprint=encoder.fingerprint, numerics=encoder.numerics)

    @router.post("/explain")
    async def explain(asked: said.Explain) -> said.Explained:
        """Where a picture shows what a text says, rather than the others, and which words count."""
        clip, picture = server.system("explain"), _small(await server.picture(asked.image))
        found = await ask(relevance.explain, clip, picture, asked.text, asked.others)
        light = (found.map / found.map.max().clamp_min(1e-6)).clamp(0, 1).mul(255).round().byte().numpy()
        words = [said.WordShare(word=word, share=share) for word, share in found.words]
        shown = data_url(Image.fromarray(light))
        return said.Explained(map=shown, score=found.score, words=words, model=server.model)

    @router.post("/segment")
    async def segment(asked: said.Segment) -> said.Segmented:
        """Which label each pixel shows."""
        segmenter = server.system("segment")
        words: Any = asked.labels
        if getattr(segmenter, "fingerprint", None) == encoder.fingerprint:
            words = await server.vocabulary(asked)
        picture = _small(await server.picture(asked.image))

        def work() -> said.Segmented:
            found = segmenter.segment(picture, words, templates=asked.templates, none_below=asked.none_below)
            colours = label_colours(len(found.labels))
            areas = torch.stack([(found.classes == row).double().mean() for row in range(len(found.labels))]).tolist()
            rows = [
                said.SegmentLabel(label=label, score=score, area=area, colour=f"#{bytes(colour).hex()}")
                for label, score, area, colour in zip(found.labels, found.scores.tolist(), areas, colours)
            ]
            opaque = torch.tensor([[*colour, 255] for colour in colours.tolist()] + [[0, 0, 0, 0]], dtype=torch.uint8)
            assert NONE == -1  # the last colour
            return said.Segmented(labels=rows, map=data_url(Image.fromarray(opaque[found.classes].numpy())))

        return await ask(work)

    @router.post("/detect")
    async def detect(asked: said.Detect) -> said.Detected:
        """Boxes around what the labels name."""
        detector, picture = server.system("detect"), await server.picture(asked.image)
        small = _small(picture)

        def work() -> said.Detected:
            found = detector.detect(small, asked.labels, templates=asked.templates, score_above=asked.score_above)
            return _boxes(found, picture, small)

        return await ask(work)

    @router.post("/ground")
    async def ground(asked: said.Ground) -> said.Detected:
        """Boxes around what the phrases of a sentence name."""
        reader, picture = server.system("ground"), await server.picture(asked.image)
        small = _small(picture)

        def work() -> said.Detected:
            found = reader.ground(small, asked.sentence)
            return _boxes(found.detection(), picture, small, found.spans)

        return await ask(work)

    @router.post("/depth")
    async def depth(asked: said.Picture) -> said.Measured:
        """How far away each pixel is."""
        reader, picture = server.system("depth"), _small(await server.picture(asked.image))

        def work() -> said.Measured:
            depth_m = reader.depth(picture).depth_m
            near, far = depth_m.min().item(), depth_m.max().item()
            shown = data_url(Image.fromarray(depth_colours(depth_m.numpy(), near, far)))
            return said.Measured(near_m=near, median_m=depth_m.median().item(), far_m=far, map=shown)

        return await ask(work)

    @router.post("/caption")
    async def caption(asked: said.Picture) -> said.Captioned:
        """What a picture shows, in a sentence of the model's own."""
        writer, picture = server.system("caption"), await server.picture(asked.image)
        found = await ask(writer.caption, [picture], 4)
        return said.Captioned(text=found.texts[0], log_probability=found.log_probabilities[0].item())

    @router.post("/draw")
    async def draw(asked: said.Draw) -> said.Drawn:
        """Words as coloured strokes."""
        artist = server.system("draw")
        artist = type(artist)(replace(artist.config, steps=asked.steps), artist.clip)

        def work() -> said.Drawn:
            drawing = artist.draw(asked.prompt, asked.negatives, seed=asked.seed)
            return said.Drawn(svg=drawing.svg, picture=data_url(Pictures(drawing.pixels_01[None]).images()[0]))

        return await ask(work)

    return router


def _small(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((LONG_SIDE_PX, LONG_SIDE_PX))
    return small


def _boxes(found: Any, picture: Image.Image, seen: Image.Image, spans: Any = None) -> said.Detected:
    """What was found in the smaller picture, in pixels of the picture."""
    scale = torch.tensor([picture.width / seen.width, picture.height / seen.height]).repeat(2)
    boxes = (found.boxes_xyxy_px * scale).tolist()
    rows = [
        said.Box(label=found.labels[row], score=score, box_xyxy_px=box, span=span)
        for row, score, box, span in zip(
            found.label_ids.tolist(), found.scores.tolist(), boxes, spans or [None] * len(boxes)
        )
    ]
    return said.Detected(boxes=rows, width_px=picture.width, height_px=picture.height)
