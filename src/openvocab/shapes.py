"""The words and aliases that shapes are written in, everywhere.

One vocabulary, words not letters: `batch`, `image` and `text` (rows of a similarity matrix), `token`, `dim`
(model width), `head`, `head_dim`, `embed` (the shared space), `channel`, `height`, `width` (pixels), `rows`,
`cols` (patch grid), `layer`, `vocab`, `label`, `template`, `frame`, `view`, `point`, `box`, `mask`, `query`.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Images = Float[Tensor, "image channel height width"]
"""Preprocessed pixels: square, RGB, normalised by the model's mean and standard deviation."""
Tokens = Int[Tensor, "text token"]
ImageEmbeds = Float[Tensor, "image embed"]
TextEmbeds = Float[Tensor, "text embed"]
Embeds = Float[Tensor, "row embed"]
Sequence = Float[Tensor, "batch token dim"]
Logits = Float[Tensor, "image text"]
Scalar = Float[Tensor, ""]
Ids = Int[Tensor, " row"]
Mask = Bool[Tensor, "batch token"]

Batch = dict[str, Tensor]
"""One step's samples by name; row i of every tensor is sample i."""
