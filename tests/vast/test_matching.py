"""The re-rank by matching, and the tokens it needs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from calmrl_lab.errors import CalmrlError, WorkFailedError
from feature_extractors.encoders import encoders
from feature_extractors.encoders.vast.checkpoint import load_checkpoint
from feature_extractors.encoders.vast.rerank.condition_tokens import keep_tokens, rerank_kept
from feature_extractors.encoders.vast.rerank.matching import Matcher, rerank
from feature_extractors.encoders.vast.rerank.token_file import TokenFile, tokens_folder, writing_tokens
from feature_extractors.protocols import Image, Item, Manifest, Text, Waveform

#                 clip  0   1   2   3
SIMILARITY = np.array([[0.9, 0.8, 0.1, 0.0], [0.2, 0.3, 0.7, 0.6], [0.5, 0.5, 0.5, 0.4]])


class Table:
    """A matcher that looks P(match) up, and remembers which clips were encoded."""

    probabilities = np.array([[0.1, 0.9, 1.0, 1.0], [1.0, 1.0, 0.4, 0.5], [0.2, 0.3, 1.0, 1.0]])

    def __init__(self):
        self.encoded = []

    def keys_values(self, condition):
        self.encoded.append(condition)
        return condition

    def scores(self, captions, clip):
        return np.array([self.probabilities[caption[0], clip] for caption in captions])


CAPTIONS = [np.array([row]) for row in range(3)]


def test_the_best_of_each_caption_are_reordered_and_the_rest_stays_behind():
    matcher = Table()
    scores = rerank(SIMILARITY, CAPTIONS, lambda clip: clip, matcher, top=2)
    # Caption 0: clips 0 and 1 swap. Caption 1: clips 2 and 3 swap. Caption 2: the tie at the border goes to the first two.
    assert [list(np.argsort(-row, kind="stable")) for row in scores] == [[1, 0, 2, 3], [3, 2, 1, 0], [1, 0, 2, 3]]
    assert_allclose(scores[0, :2], [0.1, 0.9])
    assert (scores[0, 2:] < 0).all()
    assert matcher.encoded == [0, 1, 2, 3], "each clip once"


def test_clips_as_queries_re_score_their_best_captions():
    scores = rerank(SIMILARITY, CAPTIONS, lambda clip: clip, Table(), top=1, queries="clips")
    # Clip 0's best caption is 0, clip 1's 0, clip 2's 1, clip 3's 1.
    assert [int(np.argmax(column)) for column in scores.T] == [0, 0, 1, 1]
    assert (scores >= 0).sum(axis=0).tolist() == [1, 1, 1, 1]


def test_a_clip_that_no_query_wants_is_not_encoded():
    matcher = Table()
    rerank(SIMILARITY[:1], CAPTIONS[:1], lambda clip: clip, matcher, top=2)
    assert matcher.encoded == [0, 1]


def test_a_top_larger_than_the_gallery_scores_everything():
    assert_allclose(rerank(SIMILARITY, CAPTIONS, lambda clip: clip, Table(), top=50), Table.probabilities)


@pytest.mark.parametrize(("queries", "top"), [("items", 5), ("captions", 0)])
def test_impossible_requests(queries, top):
    with pytest.raises(CalmrlError, match="cannot re-rank"):
        rerank(SIMILARITY, CAPTIONS, lambda clip: clip, Table(), top=top, queries=queries)


@pytest.fixture(scope="module")
def matcher(weights):
    return Matcher(load_checkpoint(weights))


def test_absent_modalities_give_no_tokens(matcher):
    generator = np.random.default_rng(0)
    vision, audio = generator.standard_normal((2, 5, 32)), generator.standard_normal((1, 4, 48))
    both = matcher.condition(vision, audio)
    assert both.shape == (14, 32)
    assert_array_equal(matcher.condition(vision=vision), both[:10])
    assert_array_equal(matcher.condition(audio=audio), both[10:])
    with pytest.raises(CalmrlError, match="at least one"):
        matcher.condition()


def test_scores_do_not_depend_on_the_captions_beside(matcher):
    captions = [np.array([3, *range(6, 6 + n), 4]) for n in range(1, 30)]
    cached = matcher.keys_values(np.random.default_rng(1).standard_normal((20, 32)))
    together = matcher.scores(captions, cached)
    assert_allclose(together, [matcher.scores([c], cached)[0] for c in captions], atol=1e-6)
    assert ((together > 0) & (together < 1)).all()
    assert len(matcher.scores([], cached)) == 0


def test_tokens_are_kept_and_found_again(tmp_path):
    path = tokens_folder(tmp_path / "msrvtt.zarr")
    assert path.name == "msrvtt.tokens"
    first, second = np.arange(12, dtype=np.float32).reshape(3, 4), np.ones((2, 4), np.float32)
    with writing_tokens(path, 4, "print") as writer:
        writer.add("video0", first, [np.array([3, 7, 4])])
        assert not path.exists(), "nothing appears before everything is written"
        writer.add("video1", second, [np.array([3, 4]), np.array([3, 8, 4])])
    kept = TokenFile(path)
    assert kept.ids == ["video0", "video1"]
    assert kept.fingerprint == "print"
    assert_array_equal(kept.condition(0), first)
    assert_array_equal(kept.condition(kept.place("video1")), second)
    assert [list(c) for c in kept.captions[1]] == [[3, 4], [3, 8, 4]]
    with pytest.raises(CalmrlError, match="no condition tokens of item 'video2'"):
        kept.place("video2")
    with pytest.raises(CalmrlError, match="exists already"), writing_tokens(path, 4, "print"):
        pass
    with writing_tokens(path, 4, "new", overwrite=True) as writer:
        writer.add("video0", second, [])
        assert TokenFile(path).fingerprint == "print", "the old ones stay until the new ones are complete"
    assert TokenFile(path).fingerprint == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    (path / "tokens.f16").write_bytes(b"short")
    with pytest.raises(CalmrlError, match="has 5 bytes, expected 16"):
        TokenFile(path)
    with pytest.raises(CalmrlError, match="no condition tokens in"):
        TokenFile(tmp_path / "nothing")


def test_a_value_that_float16_cannot_hold_stops_and_leaves_nothing(tmp_path):
    with pytest.raises(WorkFailedError, match="do not fit float16"), writing_tokens(tmp_path / "a.tokens", 1, "") as writer:
        writer.add("x", np.array([[1e6]]), [])
    assert list(tmp_path.iterdir()) == []


CHOICE = {"vision": "vast/eva-g", "audio": "vast/beats64", "caption": "vast/bert-caption", "subtitle": "vast/bert-subtitle"}


def made(weights):
    return {modality: encoders.get(name)(weights=weights) for modality, name in CHOICE.items()}


@pytest.fixture(scope="module")
def manifest():
    """Four test items: everything, no subtitle, sound too short to use, nothing but a caption; and a training item."""
    generator = np.random.default_rng(0)
    picture = [Image(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(3)]
    sound = [Waveform(generator.standard_normal((1, n)).astype(np.float32), 16000) for n in (8000, 9000, 10)]
    text = [Text(t) for t in ("a dog", "a cat is playing", "a man", "the car", "two")]
    items = [
        Item("all", "test", {"vision": [picture[0]], "audio": [sound[0]], "caption": text[:2], "subtitle": [text[2]]}),
        Item("silent", "test", {"vision": [picture[1]], "audio": [sound[2]], "caption": [text[2]]}),
        Item("heard", "test", {"audio": [sound[1]], "caption": [text[3]], "subtitle": [Text(" ")]}),
        Item("nothing", "test", {"caption": [text[4]]}),
        Item("seen", "train", {"vision": [picture[2]], "caption": [text[4]]}),
    ]
    return Manifest("made", "none", "none", tuple(CHOICE), tuple(items))


def test_the_tokens_of_a_split_are_kept_and_re_rank_it(manifest, weights, tmp_path):
    path = tmp_path / "made.tokens"
    assert keep_tokens(manifest, made(weights), path, "mark", workers=2) == {"kept": 3, "left_out": 1}
    assert keep_tokens(manifest, made(weights), path, "mark") == {"kept": 3, "left_out": 1}, "what is there stays"
    tokens = TokenFile(path)
    assert tokens.ids == ["all", "silent", "heard"]
    vision, audio = 257, 256
    assert [len(tokens.condition(i)) for i in range(3)] == [vision + audio + 70, vision, audio]
    assert [len(c) for c in tokens.captions] == [2, 1, 1]

    matcher = Matcher(load_checkpoint(weights))
    owners = ["all", "all", "silent", "heard"]
    similarity = np.random.default_rng(0).standard_normal((4, 3))
    scores = rerank_kept(similarity, owners, tokens.ids, tokens, matcher)
    caption = encoders.get("vast/bert-caption")(weights=weights)
    second = caption.prepare(manifest.items[0].media["caption"][1])
    expected = matcher.scores([second], matcher.keys_values(tokens.condition(2)))
    assert_allclose(scores[1, 2], expected[0], atol=1e-6)
    for owners_now, sentence in (
        (["silent", "silent", "heard"], "'silent' has 1 captions .* and 2 in the store"),
        (["all"], "'all' has 2 .* and 1"),
    ):
        with pytest.raises(CalmrlError, match=sentence):
            rerank_kept(similarity[: len(owners_now)], owners_now, tokens.ids, tokens, matcher)
    with pytest.raises(CalmrlError, match="no condition tokens of item 'seen'"):
        rerank_kept(similarity, owners, ["all", "silent", "seen"], tokens, matcher)


def test_what_has_no_feature_has_no_tokens(manifest, tensors, make_weights, tmp_path):
    name = "vision_encoder.visual.cls_token"
    encoders_now = made(make_weights({**tensors, name: tensors[name] * float("nan")}))
    keep_tokens(manifest, encoders_now, tmp_path / "a", "mark")
    kept = TokenFile(tmp_path / "a")
    assert kept.ids == ["all", "heard"], "the one that showed nothing but a picture is left out"
    assert len(kept.condition(0)) == 256 + 70


def test_tokens_of_other_encoders_or_of_no_items_are_refused(manifest, weights, tmp_path):
    with pytest.raises(CalmrlError, match="has no items in split 'validation'"):
        keep_tokens(manifest, made(weights), tmp_path / "a", "mark", split="validation")
    with pytest.raises(CalmrlError, match="the encoder of 'subtitle' is another"):
        keep_tokens(manifest, made(weights) | {"subtitle": encoders.get("identity")()}, tmp_path / "a", "mark")
    with pytest.raises(CalmrlError, match="no encoder of captions"):
        keep_tokens(manifest, {"vision": made(weights)["vision"]}, tmp_path / "a", "mark")
    with writing_tokens(tmp_path / "a", 32, "of another store") as writer:
        writer.add("all", np.zeros((1, 32)), [])
    with pytest.raises(CalmrlError, match="holds the tokens of another store"):
        keep_tokens(manifest, made(weights), tmp_path / "a", "mark")
    keep_tokens(manifest, made(weights), tmp_path / "a", "mark", overwrite=True)
    assert TokenFile(tmp_path / "a").fingerprint == "mark"
