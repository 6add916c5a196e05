"""What may be asked and what is answered, as json; `/openapi.json` is made of these."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from openvocab.clip.templates import TEMPLATES

Text = Annotated[str, Field(min_length=1, max_length=2_000)]
Label = Annotated[str, Field(min_length=1, max_length=200)]
Labels = Annotated[list[Label], Field(min_length=1, max_length=1_000)]
Template = Annotated[str, Field(min_length=1, max_length=500)]
Image = Annotated[str, Field(min_length=1, description="Base64 or a data URL; an address where the server allows it.")]
Row = Annotated[int, Field(ge=0, lt=2**31)]
MAX_HITS = 1_000
MAX_PROMPTS = 4_000
"""Labels times templates."""


ERRORS = (400, 401, 403, 404, 408, 413, 415, 422, 429, 503, 504)


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Failed(BaseModel):
    error: str


class OpenAIError(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIFailed(BaseModel):
    error: OpenAIError


class Model(BaseModel):
    name: str
    fingerprint: str
    trained_on: dict[str, Any] | None = None


class Words(Asked):
    """Labels and how they are put: a named set of templates, one with {}, or some."""

    labels: Labels
    templates: Template | Annotated[list[Template], Field(min_length=1, max_length=200)] = "generic"

    @field_validator("templates")
    @classmethod
    def _no_file(cls, given: str | list[str]) -> str | list[str]:
        for template in [given] if isinstance(given, str) else given:
            if "{}" not in template and "{c}" not in template and not (template is given and given in TEMPLATES):
                raise ValueError(f"a template has {{}} for the label, or is the name of a set: {', '.join(TEMPLATES)}")
        return given

    @model_validator(mode="after")
    def _not_too_many(self) -> "Words":
        count = len(TEMPLATES.get(self.templates, "1")) if isinstance(self.templates, str) else len(self.templates)
        if len(self.labels) * count > MAX_PROMPTS:
            raise ValueError(f"{len(self.labels)} labels in {count} templates are more than {MAX_PROMPTS} prompts")
        return self


class Classify(Words):
    image: Image


class LabelScore(BaseModel):
    label: str
    score: float
    probability: float


class Classified(BaseModel):
    labels: list[LabelScore]
    kind: Literal["softmax", "sigmoid"]
    unseen_words: dict[str, list[str]]
    model: Model


class Embed(Asked):
    """Texts, or images: one of them."""

    texts: Annotated[list[Text], Field(min_length=1, max_length=256)] | None = None
    images: Annotated[list[Image], Field(min_length=1, max_length=32)] | None = None

    @model_validator(mode="after")
    def _one(self) -> "Embed":
        if (self.texts is None) == (self.images is None):
            raise ValueError("give texts or images, one of them")
        return self


class Embedded(BaseModel):
    vectors: list[list[float]]
    fingerprint: str
    numerics: str


class Explain(Asked):
    image: Image
    text: Text
    others: Annotated[list[Label], Field(max_length=100)] = []


class WordShare(BaseModel):
    word: str
    share: float


class Explained(BaseModel):
    """`map` is a grey PNG as a data URL, white where most speaks for the text."""

    map: str
    score: float
    words: list[WordShare]
    model: Model


class Segment(Words):
    image: Image
    none_below: Annotated[float, Field(ge=0, le=1)] | None = None


class SegmentLabel(BaseModel):
    label: str
    score: float
    area: float
    colour: str


class Segmented(BaseModel):
    """`map` is a PNG as a data URL: each label's colour, transparent where none fits."""

    labels: list[SegmentLabel]
    map: str


class Detect(Words):
    image: Image
    score_above: Annotated[float, Field(ge=0, le=1)] = 0.3


class Ground(Asked):
    image: Image
    sentence: Text


class Box(BaseModel):
    label: str
    score: float
    box_xyxy_px: list[float]
    span: list[int] | None = None


class Detected(BaseModel):
    boxes: list[Box]
    width_px: int
    height_px: int


class Picture(Asked):
    image: Image


class Measured(BaseModel):
    """`map` is a PNG as a data URL: yellow is near, dark is far."""

    near_m: float
    median_m: float
    far_m: float
    map: str


class Captioned(BaseModel):
    text: str
    log_probability: float


class Draw(Asked):
    prompt: Text
    negatives: Annotated[list[Text], Field(max_length=8)] = []
    seed: Row = 0
    steps: Annotated[int, Field(ge=1, le=500)] = 100


class Drawn(BaseModel):
    svg: str
    picture: str


class SearchTerm(Asked):
    """A text, an image or a row of the index, and how much it counts; below 0 it is taken away."""

    text: Text | None = None
    image: Image | None = None
    row: Row | None = None
    weight: Annotated[float, Field(ge=-10, le=10)] = 1.0

    @model_validator(mode="after")
    def _one(self) -> "SearchTerm":
        if sum(value is not None for value in (self.text, self.image, self.row)) != 1:
            raise ValueError("a term is a text, an image or a row, one of them")
        return self


Date = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}([T ][0-9:.+Z-]{0,30})?$")]


class Search(Asked):
    """`folder` lies below the indexed ones; `until` itself is left out; `group` folds near-duplicates."""

    terms: Annotated[list[SearchTerm], Field(min_length=1, max_length=16)]
    k: Annotated[int, Field(ge=1, le=MAX_HITS)] = 20
    kind: Literal["picture", "video"] | None = None
    folder: Annotated[str, Field(max_length=1_000)] | None = None
    since: Date | None = None
    until: Date | None = None
    group: bool = True


class Shown(BaseModel):
    """A row of the index; `thumbnail` and `media` are paths on this server."""

    row: int
    path: str
    kind: Literal["picture", "video"]
    start_s: float | None
    end_s: float | None
    width_px: int | None
    height_px: int | None
    duration_s: float | None
    taken_at: str | None
    thumbnail: str
    media: str


class Found(Shown):
    """`moments` are the parts of a video that answer, in seconds, the best first."""

    score: float
    probability: float
    moments: list[tuple[float, float]]
    alike: list[Shown]


class Searched(BaseModel):
    hits: list[Found]
    model: Model
    took_ms: float


class Health(BaseModel):
    status: Literal["ready", "loading"]


class About(BaseModel):
    version: str
    model: Model
    embed_dim: int
    image_size: int
    numerics: str
    verbs: list[str]
    index: dict[str, Any] | None
    limits: dict[str, float]
