import pytest

from utils.captions import find_sides, swap_sides


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Left-sided fluid", ["Left"]),
        ("fluid to the right of the fovea", ["right"]),
        ("drift rightwards, leftmost cyst", ["rightwards", "leftmost"]),
        ("inferonasal and superotemporal drusen", ["inferonasal", "superotemporal"]),
        ("superior-temporal, temporally", ["superior-temporal", "temporally"]),
        ("scan of OD, then O.S.", ["OD", "O.S."]),
        ("left_eye_017", ["left"]),
        ("LE: drusen", ["LE"]),
        ("oculus sinister", ["oculus sinister"]),
    ],
)
def test_words_of_a_side_are_found(text, words):
    assert find_sides(text) == words


@pytest.mark.parametrize(
    "text",
    [
        "a bright, upright layer",
        "spatiotemporal drift",
        "intranasal spray",
        "pods and hosts",
        "le re: lowercase is no eye",
        "cystic low-reflective areas of varying sizes",
        "",
    ],
)
def test_words_that_only_contain_a_side_are_not_found(text):
    assert find_sides(text) == []


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Left-sided fluid", "Right-sided fluid"),
        ("LEFT and right", "RIGHT and left"),
        ("Nasal cyst, temporally thin", "Temporal cyst, nasally thin"),
        ("inferonasal drusen", "inferotemporal drusen"),
        ("OD with O.S. beside it", "OS with O.D. beside it"),
        ("Oculus Dexter", "Oculus Sinister"),
        ("RE: drusen", "LE: drusen"),
        ("leftwards of the fovea", "rightwards of the fovea"),
        ("no side here", "no side here"),
    ],
)
def test_swapping_mirrors_the_words_and_keeps_their_case(text, mirrored):
    assert swap_sides(text) == mirrored


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("OD, cyst nasal to the fovea", "OS, cyst nasal to the fovea"),
        ("right eye, temporal fluid on the left", "left eye, temporal fluid on the right"),
        ("eye: left, nasal drusen", "eye: right, nasal drusen"),
    ],
)
def test_nasal_stays_nasal_where_the_mirrored_eye_is_named(text, mirrored):
    assert swap_sides(text) == mirrored


@pytest.mark.parametrize("text", ["Left-sided", "OD nasal, LEFT", "inferotemporal; RE", "O.D."])
def test_swapping_twice_gives_the_caption_back(text):
    assert swap_sides(text) != text
    assert swap_sides(swap_sides(text)) == text
