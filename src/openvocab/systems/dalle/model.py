"""The transformer over text and codes, and what it is asked: pictures of sentences, and the rest of a picture.

    p(y, c) = prod_i p(y_i | y_<i) prod_j p(c_j | y, c_<j),  c the codes of an autoencoder

Read are start, text, start of picture, codes: a token and its place each; where a text has ended, a learned pad of the
place stands for the token; a code's place is its row and its column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from openvocab import systems
from openvocab.blocks.attention import Attend
from openvocab.blocks.sampling import draw, guide
from openvocab.blocks.sparse import Cached, Grid, Pattern, dense, flex, openai_layers
from openvocab.blocks.transformer import Transformer, initialize_blocks, normal_
from openvocab.clip.created import Pictures
from openvocab.clip.engine import Picture, evaluating
from openvocab.clip.folder import RECORD
from openvocab.clip.preprocess import PreprocessConfig
from openvocab.clip.saved import SystemModel
from openvocab.clip.vocabulary import known_words, unseen_words
from openvocab.data.decode import opened, to_rgb
from openvocab.progress import track, warn
from openvocab.shapes import Tokens

PAD_ID = 0
"""Of texts: nothing is said there."""
CODER = "autoencoder"
"""The folder, inside a model's, of what makes pictures of codes."""
Cells = Int[Tensor, "text cell"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DALLEConfig:
    """What is read and written, and by how large a transformer; the defaults are the paper's.

    `text_length`: tokens that a caption may have, with its end, without its start. `layers`: the pattern of each
    layer; `kernel` is of the convolutional ones. `text_share`: what text counts in the loss, pictures the rest.
    """

    vocabulary_size: int = 16_384
    text_length: int = 256
    num_codes: int = 8192
    rows: int = 32
    cols: int = 32
    image_size: int = 256
    dim: int = 3968
    heads: int = 62
    layers: tuple[Pattern, ...] = openai_layers(64)
    kernel: int = 11
    text_share: float = 1 / 8

    @property
    def preprocess(self) -> PreprocessConfig:
        """To values from 0 to 1."""
        return PreprocessConfig(image_size=self.image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    @property
    def grid(self) -> Grid:
        return Grid(prefix=self.text_length + 2, rows=self.rows, cols=self.cols, kernel=self.kernel)


class DALLE(SystemModel):
    """Writes the codes of pictures after sentences.

    Attributes:
        coder: an autoencoder with a grid of codes, saved beside the model; frozen, and none of its parameters.
    """

    system, config_type = "dalle", DALLEConfig
    coder: Any

    def __init__(self, config: DALLEConfig):
        super().__init__(config)
        dim = config.dim
        self.words = nn.Parameter(torch.zeros(config.vocabulary_size, dim))
        self.pads = nn.Parameter(torch.zeros(config.text_length, dim))
        self.positions = nn.Parameter(torch.zeros(config.text_length + 1, dim))
        self.begin = nn.Parameter(torch.zeros(dim))
        self.codes = nn.Parameter(torch.zeros(config.num_codes, dim))
        self.rows, self.cols = (nn.Parameter(torch.zeros(count, dim)) for count in (config.rows, config.cols))
        self.blocks = Transformer(len(config.layers), dim, config.heads, 4 * dim, "gelu", 1e-5)
        self.norm = nn.LayerNorm(dim)
        self.next_word = nn.Linear(dim, config.vocabulary_size)
        self.next_code = nn.Linear(dim, config.num_codes)
        learned = (self.words, self.pads, self.positions, self.begin, self.codes, self.rows, self.cols)
        for weight in (*learned, self.next_word.weight, self.next_code.weight):
            normal_(weight, std=0.02)
        initialize_blocks(self.blocks, dim)
        object.__setattr__(self, "coder", None)

    def read(self, tokens: Tokens, codes: Cells, attend: dict[int, Attend] | None = None) -> Float[Tensor, "text _ _"]:
        """What the transformer makes of start, text, start of picture and the first codes, in this order."""
        words = F.embedding(tokens, self.words)
        said = torch.where(tokens[:, 1:, None] == PAD_ID, self.pads, words[:, 1:])
        texts = torch.cat([words[:, :1], said], 1) + self.positions
        begin = self.begin.expand(len(tokens), 1, -1)
        return self._run(torch.cat([texts, begin, self._cells(codes, 0)], 1), attend)

    def forward(self, tokens: Tokens, codes: Int[Tensor, "text rows cols"]) -> dict[str, Tensor]:
        """-log p of every token of the texts after its start, 0 where nothing is said, and of every code."""
        cells, length = codes.flatten(1), self.config.text_length
        hidden = self.read(tokens, cells[:, :-1])
        words, text = self.next_word(hidden[:, :length]).transpose(1, 2), tokens[:, 1:]
        picture = self.next_code(hidden[:, length + 1 :]).transpose(1, 2)
        return {
            "text": F.cross_entropy(words.float(), text, ignore_index=PAD_ID, reduction="none"),
            "picture": F.cross_entropy(picture.float(), cells, reduction="none"),
        }

    def generate(
        self, prompts: str | Sequence[str], num: int = 1, *, seed: int = 0, batch_size: int = 64, **choice: Any
    ) -> Pictures:
        """`num` pictures of each prompt, one prompt after the other.

        Args:
            choice: `temperature`, `top_k`, `top_p` as `blocks.sampling.draw` takes them, and `cond_scale`: how strongly
                prompts guide; 1 draws from the model as it is.

        Raises:
            ValueError: a prompt that is empty or too long, `num` below 1, or a model without its autoencoder.
        """
        tokens = self._prompts(prompts, num)
        cells = torch.empty(len(tokens), 0, dtype=torch.int64)
        return self._made(tokens, cells, seed, batch_size, choice)

    def complete(
        self, picture: Picture, rows: int, prompt: str, num: int = 1, *, seed: int = 0, **choice: Any
    ) -> Pictures:
        """`num` pictures that begin as the central square of this one: its upper `rows` of codes stay.

        `choice` is as in `generate`.

        Raises:
            ValueError: as `generate`, and where `rows` leaves nothing to keep or to write.
        """
        config = self.config
        if not 0 < rows < config.rows:
            raise ValueError(f"rows is {rows}, of {config.rows} rows of codes: expected 1 to {config.rows - 1}")
        tokens = self._prompts(prompt, num)
        codes = self._coder().encode(self.preprocess(to_rgb(opened(picture, exif=True)))[None])
        return self._made(tokens, codes[:, :rows].flatten(1).expand(num, -1), seed, num, choice)

    def draw_codes(
        self,
        tokens: Tokens,
        given: Cells,
        generator: torch.Generator,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        cond_scale: float = 1.0,
    ) -> Int[Tensor, "text rows cols"]:
        """Grids of codes after texts, begun with those given: every code costs the same, early or late."""
        config, guided = self.config, cond_scale != 1.0
        cells = torch.zeros(len(tokens), config.rows * config.cols, dtype=torch.int64, device=self.device)
        cells[:, : given.shape[1]] = given
        asked = torch.cat([tokens, without_words(tokens)]) if guided else tokens
        caches: dict[int, Attend] = {
            number: Cached(pattern, config.grid) for number, pattern in enumerate(config.layers)
        }
        written = given.repeat(2, 1) if guided else given
        hidden = self.read(asked, written, caches)[:, -1]
        for place in track(range(given.shape[1], cells.shape[1]), "drawing codes", unit="code"):
            logits = self.next_code(hidden)
            if guided:
                logits = guide(*logits.float().chunk(2), cond_scale)
            cells[:, place] = draw(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
            if place + 1 < cells.shape[1]:
                written = cells[:, place : place + 1]
                hidden = self._run(self._cells(written.repeat(2, 1) if guided else written, place), caches)[:, -1]
        return cells.view(-1, config.rows, config.cols)

    def attach(self, coder: Any) -> None:
        """Gives it the autoencoder whose codes it writes.

        Raises:
            ValueError: one of other codes.
        """
        config = self.config
        check_coder(coder)
        side = coder.config.image_size // coder.network.stride
        if (coder.network.num_codes, side, side) != (config.num_codes, config.rows, config.cols):
            raise ValueError(
                f"{coder.name}: makes {side} x {side} codes of {coder.network.num_codes}, "
                f"{self.name} writes {config.rows} x {config.cols} of {config.num_codes}"
            )
        object.__setattr__(self, "coder", coder.requires_grad_(False).eval())

    def save(self, folder: Path | str) -> None:
        """As `SystemModel.save`, with the autoencoder in a folder of its own."""
        super().save(folder)
        if self.coder is not None:
            self.coder.save(Path(folder) / CODER)

    @classmethod
    def load(cls, folder: Path | str) -> "DALLE":
        """As `SystemModel.load`, with its autoencoder."""
        model, beside = super().load(folder), Path(folder) / CODER
        if (beside / RECORD).exists():
            model.attach(systems.get("autoencoders").load(beside))  # type: ignore[misc]
        return model

    def _run(self, x: Float[Tensor, "text _ dim"], attend: dict[int, Attend] | None) -> Float[Tensor, "text _ dim"]:
        if attend is None:
            rule = flex if x.is_cuda else dense
            attend = dict(enumerate(rule(pattern, self.config.grid) for pattern in self.config.layers))
        return self.norm(self.blocks(x, bias=attend).tokens)

    def _cells(self, codes: Cells, first: int) -> Float[Tensor, "text cell dim"]:
        places = (self.rows[:, None] + self.cols).flatten(0, 1)
        return F.embedding(codes, self.codes) + places[first : first + codes.shape[1]]

    def _coder(self) -> Any:
        if self.coder is None:
            raise ValueError(f"{self.name}: has no autoencoder to make pictures of its codes")
        return self.coder

    def _prompts(self, prompts: str | Sequence[str], num: int) -> Tokens:
        """Each prompt `num` times."""
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        length = self.config.text_length + 1
        assert self.tokenizer is not None
        if num < 1 or not texts:
            raise ValueError(f"{len(texts)} prompts, {num} pictures of each: expected at least 1")
        for text, count in zip(texts, self.tokenizer.count_tokens(texts).tolist()):
            if not text.strip():
                raise ValueError("an empty prompt: say what the picture should show")
            if count > length:
                said = text if len(text) <= 60 else f"{text[:57]}..."
                raise ValueError(f"prompt too long: {said!r} has {count} tokens, {self.name} reads {length}")
        if unseen := unseen_words(known_words(self.trained_on), texts):
            warn(f"{self.name} never read in training: {', '.join(unseen)}")
        return self.tokenizer(texts, length).repeat_interleave(num, 0)

    def _made(self, tokens: Tokens, given: Cells, seed: int, batch_size: int, choice: dict[str, Any]) -> Pictures:
        coder = self._coder()
        generator, parts = torch.Generator(self.device).manual_seed(seed), []
        with evaluating(self):
            for texts, begun in zip(tokens.split(batch_size), given.split(batch_size)):
                codes = self.draw_codes(texts.to(self.device), begun.to(self.device), generator, **choice)
                parts.append(coder.decode(codes.cpu()))
        return Pictures(torch.cat(parts))


def without_words(tokens: Tokens) -> Tokens:
    """Captions that say nothing: what guidance compares with."""
    return torch.cat([tokens[:, :1], torch.full_like(tokens[:, 1:], PAD_ID)], 1)


def check_coder(coder: Any) -> None:
    """Raises ValueError for what is no autoencoder with a grid of codes."""
    if not getattr(coder, "is_grid", False):
        raise ValueError(
            f"dalle writes the codes of a dVAE or VQGAN, a {type(coder).__name__} has none; train one with: "
            "openvocab train autoencoders --out RUN"
        )
