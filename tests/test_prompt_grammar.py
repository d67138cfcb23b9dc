"""Prompts that a template file makes, and what is wrong with such a file."""

import json

import pytest

from utils.cli import UserError
from utils.prompt_grammar import MAX_PROMPTS, read_template_file
from utils.prompts import PromptError

RETINA = {
    "templates": [
        "{severity} {finding}, {side}",
        {"template": "normal retina, {side}", "label": "normal"},
    ],
    "label": "{finding}",
    "slots": {
        "severity": ["", "mild"],
        "finding": {"edema": ["macular edema", "cysts"], "drusen": "soft drusen"},
        "side": ["left eye", "right eye"],
    },
}


def _file(tmp_path, content):
    path = tmp_path / "t.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def _read(tmp_path, content):
    return read_template_file(_file(tmp_path, content))


def _pairs(prompts):
    return [(prompt.text, prompt.label) for prompt in prompts]


def _problems(tmp_path, content):
    with pytest.raises(PromptError) as caught:
        _read(tmp_path, content)
    return [(problem.where, problem.kind) for problem in caught.value.problems]


def test_every_combination_is_made_in_the_order_of_the_file(tmp_path):
    prompts = _read(tmp_path, RETINA)
    assert _pairs(prompts) == [
        ("macular edema, left eye", "edema"),
        ("macular edema, right eye", "edema"),
        ("cysts, left eye", "edema"),
        ("cysts, right eye", "edema"),
        ("soft drusen, left eye", "drusen"),
        ("soft drusen, right eye", "drusen"),
        ("mild macular edema, left eye", "edema"),
        ("mild macular edema, right eye", "edema"),
        ("mild cysts, left eye", "edema"),
        ("mild cysts, right eye", "edema"),
        ("mild soft drusen, left eye", "drusen"),
        ("mild soft drusen, right eye", "drusen"),
        ("normal retina, left eye", "normal"),
        ("normal retina, right eye", "normal"),
    ]
    assert [prompt.where for prompt in prompts[:2]] == ["t.json#1", "t.json#2"]


def test_one_template_of_fixed_words_needs_neither_slots_nor_label(tmp_path):
    assert _pairs(_read(tmp_path, {"template": "normal  retina"})) == [("normal retina", "")]


def test_a_label_of_several_slots_leaves_out_what_is_left_out(tmp_path):
    content = {
        "template": "{first} with {second}",
        "label": "{first};{second}; oct",
        "slots": {
            "first": ["edema"],
            "second": {"drusen": "large 🟡 drusen/deposits", "": "no drusen"},
        },
    }
    assert _pairs(_read(tmp_path, content)) == [
        ("edema with large 🟡 drusen/deposits", "edema;drusen;oct"),
        ("edema with no drusen", "edema;oct"),
    ]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{a}{b}, {c}", "x"),
        ("{a}, {b}, {c}", "x"),
        ("{b}, {a}, {c}.", "x."),
        ("{b} {c}; {a}", "x"),
        ("{a} {b}, scan", "x, scan"),
        ("{a}, {b} scan", "x, scan"),
        ("{a}; {b}, scan", "x; scan"),
        ("{a}, {b}, {c}, scan", "x, scan"),
        ("{a} ({b}), {c}.", "x."),
        ("({b} {a} {c})", "(x)"),
        ("{a} {b} in {c} scan", "x in scan"),
        ("{a}{b}y", "xy"),
        ("{a} , .5 mm {b}, {b}", "x , .5 mm"),
    ],
)
def test_empty_words_take_their_comma_and_blank_with_them(tmp_path, template, text):
    content = {"template": template + "{b}{c}", "slots": {"a": ["x"], "b": [""], "c": ""}}
    assert [prompt.text for prompt in _read(tmp_path, content)] == [text]


def test_a_slot_that_stands_twice_has_the_same_words_twice(tmp_path):
    content = {"template": "{a}, as {a}", "slots": {"a": ["x", "y"]}}
    assert [prompt.text for prompt in _read(tmp_path, content)] == ["x, as x", "y, as y"]


def test_doubled_braces_are_braces_and_braces_in_words_stay(tmp_path):
    content = {"template": "{{a}} {a}", "slots": {"a": ["{x}", "}"]}}
    assert [prompt.text for prompt in _read(tmp_path, content)] == ["{a} {x}", "{a} }"]


@pytest.mark.parametrize(
    "slot", ["{a.b}", "{a[0]}", "{a!r}", "{a:>9}", "{}", "{0}", "{a b}", "{a:{a}}"]
)
def test_only_a_plain_name_is_a_slot(tmp_path, slot):
    content = {"template": f"{slot} {{a}}", "slots": {"a": ["x"]}}
    assert _problems(tmp_path, content) == [("t.json, template 1", "wrong slot")]


def test_everything_wrong_is_reported_at_once(tmp_path):
    content = {
        "templates": ["{finding} of {eye}", {"template": "scan {side}", "label": "{finding}"}],
        "Label": "{finding}",
        "slots": {
            "finding": {"edema": ["cysts", "cysts "], "drusen": [], "scar": 5},
            "side": ["left", "{finding}", "bad\x07bell"],
            "eye 2": [],
            "unused": {"word\x00": "text"},
        },
    }
    assert _problems(tmp_path, content) == [
        ("t.json", "unknown key"),
        ("t.json, slot finding", "no words"),
        ("t.json, slot finding", "repeated words"),
        ("t.json, slot finding", "wrong kind"),
        ("t.json, slot side", "slot in words"),
        ("t.json, slot side", "control character"),
        ("t.json, slot eye 2", "wrong name"),
        ("t.json, slot eye 2", "no words"),
        ("t.json, slot unused", "control character"),
        ("t.json, template 1", "unknown slot"),
        ("t.json, template 1, label", "no slot"),
        ("t.json, template 2, label", "unknown slot"),
        ("t.json, slot eye 2", "unused slot"),
        ("t.json, slot unused", "unused slot"),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "it must be an object"),
        ({}, "either template or templates"),
        ({"template": "a", "templates": ["b"]}, "either template or templates"),
        ({"templates": []}, "a list [...] of templates"),
        ({"templates": "a"}, "a list [...] of templates"),
        ({"templates": ["a", {"text": "b"}]}, "t.json, template 2: unknown key: 'text'"),
        ({"template": 5}, "5, but a text is needed"),
        ({"template": "a", "label": ["b"]}, "['b'], but a text is needed"),
        ({"template": "a { b"}, "a brace that is no slot is written twice"),
        ({"template": "a } b"}, "a brace that is no slot is written twice"),
        ({"template": "a\x00b"}, "U+0000"),
        ({"template": "a", "slots": ["b"]}, "an object {slot: words}"),
        ({"template": "{a}", "slots": {"a": []}}, "slot a: no words: the list is empty"),
        ({"template": "{a}", "slots": {"a": {}}}, "slot a: no words: the list is empty"),
        ({"template": "{a}", "slots": {"a": {"b": []}}}, "the list of 'b' is empty"),
        ({"template": "{b}", "slots": {"a": "x"}}, "{b} (slots: a)"),
        ({"template": "{a}", "label": "a", "slots": {"a": "x"}}, '"label": "{a}"'),
        ({"template": "{a}", "slots": {"a": {"x": "y"}}}, '"label": "{a}"'),
        ({"template": "{a}", "slots": {"a": ""}}, "t.json#1: empty text"),
        ({"template": "{a}", "slots": {"a": "x" * 100_001}}, "prompt too long"),
        ({"templates": ["x y", "x  y"]}, "t.json#2: duplicate prompt: 'x y' is also t.json#1"),
    ],
)
def test_a_wrong_file_is_refused_in_clear_words(tmp_path, content, words):
    with pytest.raises(PromptError) as caught:
        _read(tmp_path, content)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"template": "a",\n "slots" {}}', "not JSON: .*line 2 column 10"),
        ("", "not JSON: .*line 1 column 1"),
        ('{"template": "a", "template": "b"}', "the key 'template' stands twice"),
        ('{"template": NaN}', "NaN"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(tmp_path, content, words):
    with pytest.raises(UserError, match=rf"t\.json: {words}"):
        _read(tmp_path, content)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_obstacle(tmp_path, encoding):
    path = tmp_path / "t.json"
    path.write_bytes('{"template":\r\n "Ödem 👁"}'.encode(encoding))
    assert [prompt.text for prompt in read_template_file(path)] == ["Ödem 👁"]


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "t.json"
    path.write_bytes(b'{"template": "caf\xe9"}')
    with pytest.raises(UserError, match="not JSON: 'utf-8' codec"):
        read_template_file(path)


def test_a_grammar_that_explodes_is_refused_before_it_does(tmp_path):
    letters = "abcdefgh"
    words = [str(number) for number in range(50)]
    content = {
        "template": " ".join(f"{{{letter}}}" for letter in letters),
        "slots": dict.fromkeys(letters, words),
    }
    with pytest.raises(UserError, match=f"make {50**8} prompts, the limit is {MAX_PROMPTS}"):
        _read(tmp_path, content)
