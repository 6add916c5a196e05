"""What fits best comes first, folded and merged, and says how surely it is no chance hit."""

import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from searching import Colours, index_of, pictures, plain, video

from openvocab.search.queries import Term, search, search_then
from openvocab.search.records import Where

DIM = 64


class Apart(Colours):
    """A model like CLIP: pictures and texts lie in two cones, and what they say turns texts much less."""

    embed_dim = DIM
    said = torch.eye(DIM)[8:]

    def images(self, pixels):
        raise AssertionError("not asked")

    def texts(self, texts):
        rows = [0.25 * self.said[int(text)] + 2 * torch.eye(DIM)[0] + 0.4 * torch.eye(DIM)[1] for text in texts]
        return F.normalize(torch.stack(rows) if rows else torch.empty(0, DIM), dim=1)

    def shown(self, attributes, seed=0):
        """Vectors of pictures that show what each of these lists says, and much that nobody asks for."""
        noise = torch.randn(len(attributes), DIM, generator=torch.Generator().manual_seed(seed))
        noise[:, 0] = 0
        rows = [sum((self.said[each] for each in said), torch.zeros(DIM)) for said in attributes]
        return F.normalize(0.05 * noise + 0.5 * torch.stack(rows) + 1.2 * torch.eye(DIM)[1], dim=1)


def colours(**counts):
    """So many pictures of each colour, all a little different."""
    made = []
    for colour, count in counts.items():
        made += [torch.from_numpy(plain(colour, 16) - (7 * n) % 20).permute(2, 0, 1) for n in range(count)]
    noise = 0.15 * torch.randn(len(made), 12, generator=torch.Generator().manual_seed(1))
    return F.normalize(Colours().images(torch.stack(made)) + noise, dim=1)


def test_words_pictures_and_rows_find_what_they_name(tmp_path):
    index = index_of(tmp_path, pictures(colours(red=5, green=5, blue=5)))
    reds = {"0", "1", "2", "3", "4"}
    for term in (Term(text="red"), Term(picture=Image.fromarray(plain("red", 40, 60)))):
        hits = search(index, Colours(), [term], k=5, group=False)
        assert {hit.entry.path for hit in hits} == reds
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    more = search(index, Colours(), [Term(row=index.find("0")[0])], k=4, group=False)
    assert {hit.entry.path for hit in more} == reds - {"0"}


def test_what_is_taken_away_comes_last(tmp_path):
    encoder = Apart()
    index = index_of(tmp_path, pictures(encoder.shown([[0], [0, 1], [0, 2]] * 9)), encoder)
    found = search(index, encoder, [Term(text="0"), Term(text="1", weight=-1.0)], k=27, group=False)
    with_one = [int(hit.entry.path) % 3 == 1 for hit in found]
    assert with_one == [False] * 18 + [True] * 9


def test_a_picture_and_a_text_count_alike_though_their_cosines_do_not(tmp_path):
    """Added as they are, the picture's wide cosines drown the text's narrow ones: that is the control."""
    encoder = Apart()
    said = [
        [2, 3],
        *([one, 10 + n] for one in (2, 3) for n in range(20)),
        [2, 3],
        *([4, 10 + n % 40] for n in range(60)),
    ]
    vectors = encoder.shown(said)
    index = index_of(tmp_path, pictures(vectors), encoder)
    both = [row for row, each in enumerate(said) if each == [2, 3]]
    example = index.find("1")[0]
    found = search(index, encoder, [Term(row=example), Term(text="3")], k=2, group=False)
    assert {int(hit.entry.path) for hit in found} == set(both)
    plainly = vectors @ F.normalize(vectors[1] + encoder.texts(["3"])[0], dim=0)
    assert set(plainly.topk(3).indices.tolist()) - {1} != set(both)


def test_chance_hits_are_seldom_taken_for_sure_ones(tmp_path):
    """Among random vectors the best is one of chance in 19 of 20 queries; a real hit is found beside them."""
    generator, encoder = torch.Generator().manual_seed(0), Apart()
    vectors = F.normalize(torch.randn(1000, DIM, generator=generator), dim=1)
    planted = F.normalize(vectors[:20] + 0.6 * F.normalize(torch.randn(20, DIM, generator=generator), dim=1), dim=1)
    index = index_of(tmp_path, pictures(torch.cat([vectors, planted])), encoder)

    def best(number):
        return search(index, encoder, [Term(row=index.find(str(number))[0])], k=2)

    by_chance = [best(number)[0].probability for number in range(500, 540)]
    assert sum(probability > 0.95 for probability in by_chance) <= 4
    assert sum(by_chance) / len(by_chance) < 0.7
    real = [best(number) for number in range(20)]
    assert [hits[0].entry.path for hits in real] == [str(1000 + number) for number in range(20)]
    assert all(hits[0].probability > 0.99 for hits in real)
    assert sum(hits[1].probability > 0.95 for hits in real) <= 2


def test_what_is_common_is_sure_too(tmp_path):
    """A tenth of all pictures show it, which makes none of them a chance hit."""
    encoder = Apart()
    said = [[number % 10] for number in range(400)]
    index = index_of(tmp_path, pictures(encoder.shown(said)), encoder)
    hits = search(index, encoder, [Term(text="7")], k=60, group=False)
    assert all(hit.probability > 0.9 for hit in hits[:40])
    assert all(int(hit.entry.path) % 10 == 7 for hit in hits[:40])
    assert hits[-1].probability < 0.5


def test_near_duplicates_are_folded_under_the_best(tmp_path):
    base = colours(red=4, green=4)
    twins = F.normalize(base + 0.02 * torch.randn(8, 12, generator=torch.Generator().manual_seed(3)), dim=1)
    index = index_of(tmp_path, pictures(torch.cat([base, twins])))
    hits = search(index, Colours(), [Term(text="red")], k=4)
    assert {frozenset((int(hit.entry.path) % 8, *(int(e.path) % 8 for e in hit.alike))) for hit in hits} == {
        frozenset([row]) for row in range(4)
    }
    assert all(len(hit.alike) == 1 for hit in hits)
    apart = search(index, Colours(), [Term(text="red")], k=8, group=False)
    assert len(apart) == 8
    assert not any(hit.alike for hit in apart)


def test_a_video_is_folded_under_nothing(tmp_path):
    red = Colours().texts(["red"])
    index = index_of(tmp_path, [video("v", red, [(0.0, 1.0)]), video("w", red, [(0.0, 1.0)]), *pictures(red)])
    assert {hit.entry.path for hit in search(index, Colours(), [Term(text="red")])} == {"v", "w", "0"}


def test_as_many_as_are_asked_for_are_found_behind_many_rows_of_one_file(tmp_path):
    """400 rows of one video lie before the pictures: the search goes deeper until it has enough files."""
    red = Colours().texts(["red"])
    generator = torch.Generator().manual_seed(0)
    frames = F.normalize(red + 0.1 * torch.randn(400, 12, generator=generator), dim=1)
    runs = video("v", frames, [(2.0 * n, 2.0 * n + 1) for n in range(400)])
    index = index_of(tmp_path, [runs, *pictures(F.normalize(red + torch.randn(9, 12, generator=generator), dim=1))])
    hits = search(index, Colours(), [Term(text="red")], k=6, group=False)
    assert len(hits) == 6
    assert hits[0].entry.path == "v"
    assert len(search(index, Colours(), [Term(text="red")], k=50, group=False)) == 10


def test_the_moments_of_a_video(tmp_path):
    shown = {"red": [(0, 3), (20, 22)], "green": [(3, 9)], "blue": [(9, 20), (22, 30)]}
    spans = [(float(second), second + 1.0) for second in range(30)]
    said = [next(c for c, parts in shown.items() if any(a <= s < b for a, b in parts)) for s, _ in spans]
    vectors = Colours().texts(said)
    vectors[21] = F.normalize(vectors[21] + 0.3 * vectors[5], dim=0)
    index = index_of(tmp_path, [video("v", vectors, spans), *pictures(colours(grey=20))])
    (hit,) = search(index, Colours(), [Term(text="red")], where=Where(kind="video"))
    assert hit.moments == ((0.0, 3.0), (20.0, 22.0))
    assert hit.entry.start_s in (0.0, 1.0, 2.0)
    (hit,) = search(index, Colours(), [Term(text="green")], where=Where(kind="video"))
    assert hit.moments == ((3.0, 9.0),)
    assert not search(index, Colours(), [Term(text="grey")], where=Where(kind="picture"))[0].moments


def test_one_thing_after_another(tmp_path):
    def clip(name, *colours):
        spans = [(4.0 * number, 4.0 * number + 4) for number in range(len(colours))]
        return video(name, Colours().texts(colours), spans)

    index = index_of(
        tmp_path,
        [
            clip("right", "blue", "red", "blue", "green", "blue"),
            clip("wrong way", "green", "blue", "red", "blue", "blue"),
            clip("late", "red", "blue", "blue", "blue", "green"),
            clip("one", "red", "red", "blue"),
        ],
    )
    terms = [Term(text="red")], [Term(text="green")]
    (hit,) = search_then(index, Colours(), *terms)
    assert (hit.entry.path, hit.moments) == ("right", ((4.0, 16.0),))
    assert {hit.entry.path for hit in search_then(index, Colours(), *terms, gap_s=12.0)} == {"right", "late"}
    assert search_then(index, Colours(), *terms, gap_s=3.0) == []


def test_filters_hold(tmp_path):
    index = index_of(tmp_path, pictures(colours(red=3, blue=3)))
    assert [hit.entry.path for hit in search(index, Colours(), [Term(text="red")], where=Where(path="5"))] == ["5"]


def test_a_filter_leaves_less_to_chance(tmp_path):
    """A score that one of 2,000 rows may well reach by chance is no chance hit among five."""
    generator, encoder = torch.Generator().manual_seed(0), Apart()
    vectors = F.normalize(torch.randn(2005, DIM, generator=generator), dim=1)
    clips = [video(f"v{row}", vectors[row][None], [(0.0, 1.0)]) for row in range(5)]
    index = index_of(tmp_path, [*clips, *pictures(vectors[5:])], encoder)
    other = F.normalize(vectors[5] - (vectors[5] @ vectors[0]) * vectors[0], dim=0)
    terms = [Term(vector=0.45 * vectors[0] + math.sqrt(1 - 0.45**2) * F.normalize(other, dim=0))]
    among_all = next(hit for hit in search(index, encoder, terms, k=20) if hit.entry.path == "v0")
    (hit, *_) = search(index, encoder, terms, where=Where(kind="video"))
    assert hit.entry.path == "v0"
    assert hit.probability > 0.99 > 0.9 > among_all.probability
    assert index.count(Where(kind="video")) == 5


def test_an_index_of_one_or_of_nothing(tmp_path):
    (hit,) = search(index_of(tmp_path / "one", pictures(colours(red=1))), Colours(), [Term(text="red")])
    assert hit.probability <= 0.5
    assert math.isfinite(hit.score)
    assert search(index_of(tmp_path / "none", []), Colours(), [Term(text="red")]) == []


def test_new_rows_are_background_too(tmp_path):
    index = index_of(tmp_path, pictures(colours(red=1)))
    search(index, Colours(), [Term(text="red")])
    index_of(tmp_path, [video("more", colours(green=9), [(float(n), n + 1.0) for n in range(9)])])
    assert index.background().num_rows == 10


def test_what_is_refused(tmp_path):
    index = index_of(tmp_path, pictures(colours(red=2)))
    with pytest.raises(ValueError, match="counts above 0"):
        search(index, Colours(), [Term(text="red", weight=-1.0)])
    with pytest.raises(ValueError, match="one of them"):
        Term(text="red", row=3)
    with pytest.raises(ValueError, match="row 99"):
        search(index, Colours(), [Term(row=99)])
    other = Colours()
    other.numerics = "torch bfloat16"
    with pytest.raises(ValueError, match="torch bfloat16"):
        search(index, other, [Term(text="red")])


def test_dates_are_in_the_order_of_time():
    assert Where(since="2024-05-17 10:00").since == "2024-05-17T10:00"
    for given in ("May", "2024-13", "2024-02-30", "20240517", "2024-W20-1", "2024-5"):
        with pytest.raises(ValueError, match=f"until {given!r}: expected a date such as 2024"):
            Where(until=given)
