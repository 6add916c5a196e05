import threading

import pytest
import torch
from PIL import Image
from tiny import tiny_clip, write_picture

from openvocab.blocks.text import CBOWConfig
from openvocab.blocks.vit import ViTConfig
from openvocab.clip import engine
from openvocab.clip.engine import embed_images, embed_texts
from openvocab.clip.model import CLIP, CLIPConfig
from openvocab.clip.tokenizer import CLIPTokenizer


@pytest.fixture
def clip():
    return tiny_clip()


@pytest.fixture
def folder(tmp_path):
    for number in range(7):
        write_picture(tmp_path / "pictures" / f"{number // 3}" / f"{number}.{'jpg' if number % 2 else 'png'}", number)
    return tmp_path / "pictures"


def test_row_i_is_picture_i_for_paths_and_pil_images_alike(clip, folder):
    paths = sorted(folder.rglob("*.*g"))
    embeds = embed_images(clip, [*paths, Image.open(paths[0])], batch_size=3, threads=3)
    singly = torch.cat([embed_images(clip, path) for path in paths])
    torch.testing.assert_close(embeds[:-1], singly)
    torch.testing.assert_close(embeds[-1], singly[0], rtol=0, atol=2e-3)  # files take the fast path
    assert not torch.equal(singly[0], singly[1])


def test_embeddings_equal_encode_image_of_preprocessed_pictures(clip, folder):
    picture = Image.open(folder / "0" / "0.png")
    expected = clip.encode_image(clip.preprocess(picture).unsqueeze(0)).detach()
    torch.testing.assert_close(embed_images(clip, picture), expected)
    torch.testing.assert_close(embed_images(clip, picture).norm(dim=-1), torch.ones(1))


def test_one_error_names_every_unreadable_picture(clip, folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    (folder / "empty.png").touch()
    pictures = [folder / "broken.jpg", folder / "0" / "0.png", folder / "empty.png", folder / "gone.jpg"]
    with pytest.raises(ValueError, match=r"^3 of 4 .*broken\.jpg.*empty\.png.*gone\.jpg") as raised:
        embed_images(clip, pictures, batch_size=2)
    assert "\n" not in str(raised.value)


def test_no_pictures_and_no_texts_give_no_rows(clip):
    assert embed_images(clip, []).shape == (0, 8)
    assert embed_texts(clip, []).shape == (0, 8)


def test_modes_and_random_state_are_left_as_found(clip, folder):
    clip.train()
    clip.image.norm.eval()
    state = torch.get_rng_state()
    first = embed_images(clip, folder / "0" / "0.png")
    assert torch.equal(first, embed_images(clip, folder / "0" / "0.png"))
    embed_texts(clip, ["a"])
    assert torch.equal(state, torch.get_rng_state())
    assert clip.training
    assert clip.image.blocks.training
    assert not clip.image.norm.training


def test_texts_of_mixed_length_equal_the_whole_context(clip):
    texts = ["a cat", "a photo of a very long caption, " * 5, "", "a cat", "dogs and cats"]
    expected = clip.encode_text(clip.tokenize(texts)).detach()
    torch.testing.assert_close(embed_texts(clip, texts, batch_tokens=20), expected)


def test_short_texts_do_not_pay_for_the_whole_context(clip, monkeypatch):
    seen = []
    encode = clip.encode_text
    monkeypatch.setattr(
        clip, "encode_text", lambda tokens, **k: seen.append(tuple(tokens.shape)) or encode(tokens, **k)
    )
    embed_texts(clip, ["cat"] * 50 + [f"dog {number}" for number in range(9)] + ["word " * 60], batch_tokens=40)
    assert seen == [(9, 4), (1, 62)] or sum(rows for rows, _ in seen) == 11
    assert all(rows * tokens <= 40 or rows == 1 for rows, tokens in seen)


@pytest.mark.parametrize("text", [{"causal": False, "pool": "last"}, {"pool": "last"}])
def test_towers_that_see_padding_read_their_whole_context(text):
    clip = tiny_clip(**text)
    texts = ["a", "a photo of a cat", "two dogs"]
    torch.testing.assert_close(embed_texts(clip, texts), clip.encode_text(clip.tokenize(texts)).detach())


def test_bag_of_words_towers_embed_texts():
    image = ViTConfig(image_size=16, patch_size=8, dim=16, layers=1, heads=2, mlp_dim=32)
    clip = CLIP(CLIPConfig(image=image, text=CBOWConfig(dim=16), embed_dim=8))
    clip.tokenizer = CLIPTokenizer()
    texts = ["a cat", "two red dogs"]
    torch.testing.assert_close(embed_texts(clip, texts), clip.encode_text(clip.tokenize(texts)).detach())


def test_over_long_text_is_numbered_as_the_caller_knows_it(clip):
    with pytest.raises(ValueError, match="text 2 has"):
        embed_texts(clip, ["a", "a", "word " * 100])


def test_decoding_stays_a_bounded_number_of_pictures_ahead(clip, monkeypatch):
    made, taken, lock = 0, 0, threading.Lock()

    def load(item):
        nonlocal made
        with lock:
            made += 1
            assert made - taken <= 4 * (1 + engine._BATCHES_AHEAD)
        return torch.zeros(3, 16, 16, dtype=torch.uint8)

    batches = [range(start, start + 4) for start in range(0, 100, 4)]
    for batch, wanted in zip(engine.pixel_batches(batches, load, 3), batches):
        taken += len(batch.read)
        assert batch.read == list(wanted)
    assert (made, taken) == (100, 100)
