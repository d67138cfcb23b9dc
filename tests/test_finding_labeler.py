"""The finding labeler: hand-checked sentences, rules of users, errors in their files."""

import re
import time
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from labeler_sentences import CODES, CXR, OCT, OCT_HELD_OUT, OCT_HELD_OUT_2

from demo import oct_report
from demo.simulate import FINDINGS, SEVERITIES
from utils.cli import UserError
from utils.finding_labeler import load_labeler

STATUS = {"+": "present", "-": "absent", "?": "uncertain"}


@pytest.fixture(scope="module")
def oct_labeler():
    return load_labeler("oct")


@pytest.fixture(scope="module")
def cxr_labeler():
    return load_labeler("cxr")


def expected(codes):
    """Findings and, of those that are named, the attributes that a line of codes stands for."""
    findings, attributes = {}, {}
    for code in codes.split():
        name, status, rest = re.fullmatch(r"([A-Z]+)([-+?])(.*)", code).groups()
        findings[CODES[name]] = STATUS[status]
        told = {}
        for part in filter(None, rest.split(",")):
            if part.endswith("um"):
                told["size_um"] = part.removesuffix("um")
            elif part.startswith("x"):
                told["count"] = part[1:]
            else:
                told["side"] = part
        if status != "-":
            attributes[CODES[name]] = told
    return findings, attributes


def wrong_sentences(labeler, sentences):
    wrong = []
    for text, codes in sentences:
        said = labeler.findings(text), labeler.attributes(text)
        if said != expected(codes):
            wrong.append(f"{text!r} expected {expected(codes)}, got {said}")
    return wrong


def test_every_oct_sentence_is_right_in_all_it_says(oct_labeler):
    sentences = OCT + OCT_HELD_OUT + OCT_HELD_OUT_2
    assert len({text for text, _ in sentences}) >= 150
    assert wrong_sentences(oct_labeler, sentences) == []


def test_every_chest_sentence_is_right_in_all_it_says(cxr_labeler):
    assert wrong_sentences(cxr_labeler, CXR) == []


@pytest.mark.parametrize("number", [0, 1, 2])
def test_reports_of_the_demo_are_read_as_they_were_composed(oct_labeler, number):
    rng = np.random.default_rng(number)
    for _ in range(300):
        names = [str(name) for name in rng.permutation(FINDINGS[1:])[:number]]
        lesions = {name: {"count": rng.integers(2, 12), "size_um": 1e3} for name in names}
        side = str(rng.choice(["left", "right", "central"]))
        severity = str(rng.choice(SEVERITIES))
        text = oct_report.compose(rng, lesions=lesions, severity=severity, side=side)
        said = oct_labeler.findings(text)
        named = {name for name, status in said.items() if status != "absent"}
        assert named == set(names or ["normal"]), text
        told = oct_labeler.attributes(text)
        assert all(told[name]["side"] == side for name in names), text


@pytest.mark.parametrize("name", FINDINGS[1:])
def test_sizes_and_numbers_of_the_demo_are_read_where_they_are_told(oct_labeler, name):
    rng = np.random.default_rng(0)
    words = {2: "two", 4: "four", 9: "nine"}
    for _ in range(100):
        count, size_um = int(rng.choice(list(words))), int(rng.choice([300, 1200, 2700]))
        lesion = {"count": count, "size_um": size_um}
        text = oct_report.compose(rng, lesions={name: lesion}, severity="mild", side="left")
        expected = {"side": "left"}
        if f"{size_um} µm" in text:
            expected["size_um"] = str(size_um)
        if words[count] in text.lower():
            expected["count"] = str(count)
        assert oct_labeler.attributes(text) == {name: expected}, text


def test_names_are_those_of_the_demo_and_of_chexpert(oct_labeler, cxr_labeler):
    assert oct_labeler.names[:6] == FINDINGS
    assert set(cxr_labeler.names) == {CODES[code] for code in list(CODES)[24:]}
    assert len(cxr_labeler.names) == 14


def test_a_mention_says_where_its_words_stand(oct_labeler):
    text = "No drusen. Left eye: two CYSTS, possible CNV."
    found = oct_labeler.mentions(text)
    assert [text[m.start : m.end] for m in found] == ["drusen", "CYSTS", "CNV"]
    assert [m.status for m in found] == ["absent", "present", "uncertain"]
    assert found[1].attributes == {"side": "left", "count": "2"}


def test_present_wins_over_uncertain_and_uncertain_over_absent(oct_labeler):
    assert oct_labeler.findings("No drusen. Possible drusen.") == {"drusen": "uncertain"}
    assert oct_labeler.findings("Drusen. No drusen. Drusen?") == {"drusen": "present"}


def test_normal_stands_beside_no_other_finding_but_support_devices(oct_labeler, cxr_labeler):
    assert oct_labeler.findings("Normal macula. Possible drusen.") == {"drusen": "uncertain"}
    assert oct_labeler.findings("Normal macula. No drusen.")["normal"] == "present"
    assert cxr_labeler.findings("Pacemaker. Lungs are clear.")["No Finding"] == "present"


def test_attributes_are_gathered_over_the_mentions_of_a_finding(oct_labeler):
    text = "Drusen on the left, 200 µm. Three drusen on the right, 100 µm. No drusen centrally."
    expected = {"drusen": {"side": "both", "size_um": "200", "count": "3"}}
    assert oct_labeler.attributes(text) == expected


@pytest.mark.parametrize("text", ["", "  \n", "?", "-", "()", "...", "3", "µm", "no", "🙂 drusen?"])
def test_odd_texts_are_read(oct_labeler, text):
    assert oct_labeler.findings(text) == ({"drusen": "uncertain"} if "drusen" in text else {})


def test_a_thousand_reports_take_less_than_a_second(oct_labeler):
    reports = [f"{a} {b}" for (a, _), (b, _) in pairwise(OCT)] * 10
    start = time.process_time()
    for report in reports:
        oct_labeler.mentions(report)
    assert time.process_time() - start < len(reports) / 1000


def write_rules(tmp_path, text, name="rules.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


CHINESE = """
normal: 正常
findings:
  正常: {words: [黄斑正常, 未见(明显)异常]}
  玻璃膜疣: {words: [玻璃膜疣]}
  黄斑水肿: {words: [黄斑(囊样)水肿], implies: [积液]}
  积液: {words: [积液, 're:SRF|IRF']}
cues:
  absent: {before: [未见, 无], after: [已消失]}
  uncertain: {just_before: [可疑], just_after: [待排]}
ends: ["；", 但]
breaks: ["，"]
lists: ["、", 和]
sides: {left: [左眼], right: [右眼], both: [双眼]}
numbers: {2: [两], 3: [三]}
units_um: {1: [微米, µm], 1000: [毫米]}
counted: [个]
"""


@pytest.mark.parametrize(
    ("text", "findings", "attributes"),
    [
        ("左眼玻璃膜疣。", {"玻璃膜疣": "present"}, {"玻璃膜疣": {"side": "left"}}),
        (
            "未见玻璃膜疣、黄斑囊样水肿,但右眼OCT示SRF约300微米。",
            {"玻璃膜疣": "absent", "黄斑水肿": "absent", "积液": "present"},
            {"积液": {"side": "right", "size_um": "300"}},
        ),
        ("可疑玻璃膜疣", {"玻璃膜疣": "uncertain"}, {"玻璃膜疣": {}}),
        ("黄斑水肿已消失", {"黄斑水肿": "absent"}, {}),
        ("三个玻璃膜疣", {"玻璃膜疣": "present"}, {"玻璃膜疣": {"count": "3"}}),
        ("未见明显异常", {"正常": "present"}, {"正常": {}}),
        (
            "双眼黄斑水肿待排",
            {"黄斑水肿": "uncertain", "积液": "uncertain"},
            {"黄斑水肿": {"side": "both"}, "积液": {"side": "both"}},
        ),
    ],
)
def test_chinese_reports_are_read_by_rules_of_a_user(tmp_path, text, findings, attributes):
    labeler = load_labeler(write_rules(tmp_path, CHINESE))
    assert labeler.findings(text) == findings
    assert labeler.attributes(text) == attributes


def test_words_with_accents_match_in_either_unicode_form(tmp_path):
    path = write_rules(tmp_path, "findings: {œdème: {words: [œdème maculaire]}}")
    labeler = load_labeler(path)
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, "Un ŒDÈME maculaire.")
        (mention,) = labeler.mentions(text)
        assert unicodedata.normalize("NFC", text[mention.start : mention.end]) == "ŒDÈME maculaire"
    assert labeler.findings("œdèmes maculaire") == {}


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("Drusen on the left. Drusen in both eyes.", {"side": "both"}),
        ("Drusen of approx. 300 µm.", {"size_um": "300"}),
        ("Three 200 µm drusen.", {"size_um": "200", "count": "3"}),
        ("Three 200 to 300 µm drusen.", {"size_um": "300", "count": "3"}),
        ("OS drusen.", {"side": "left"}),
        ("os drusen.", {}),
        ("Drusen since 3 weeks.", {}),
        ("Drusen 500 µm from the foveal pit.", {}),
    ],
)
def test_attributes_are_what_is_said_of_the_finding(oct_labeler, text, attributes):
    assert oct_labeler.attributes(text) == {"drusen": attributes}


def test_forms_of_a_character_are_one(oct_labeler):
    for unit in ("\u00b5m", "\u03bcm", "\uff55\uff4d"):  # micro sign, Greek mu, full-width um
        said = oct_labeler.attributes(f"Drusen of 200 {unit}；no fluid.")
        assert said == {"drusen": {"size_um": "200"}}, unit


def test_rules_of_a_user_add_to_those_they_extend(tmp_path):
    extended = write_rules(
        tmp_path,
        "extends: oct\nfindings: {drusen: {words: [Drusenpapille]}, Mactel: {words: [mactel]}}\n"
        "ignore: [cnv]\n",
    )
    again = load_labeler(write_rules(tmp_path, f"extends: {extended}", "again.yaml"))
    said = again.findings("Drusenpapille, no mactel, CNV.")
    assert said == {"drusen": "present", "Mactel": "absent"}
    assert again.names[-1] == "Mactel"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("findings: [", ["not YAML"]),
        ("- a", ["must be keys and values"]),
        ("findings: [a]", ["line 1: findings: must be keys and values"]),
        (
            "findings: {a: , yes: {words: [b]}}",
            ["findings.a: must be", "findings: True must be a name"],
        ),
        ("{}", ["findings: none"]),
        ("normal: none\nfindings: {a: {words: [b]}}", ["line 1: normal: 'none' is no finding"]),
        ("findings: {a: {words: []}}", ["findings.a: has no words"]),
        ("findings:\n  a: {words: [b]}\n  a: {words: [c]}", ["line 3: the key 'a' stands twice"]),
        (
            "extends: nowhere\nfindings: {a: {words: [b]}}",
            ["line 1: extends: ", "no such file of rules"],
        ),
        ("extends: rules.yaml", ["extends itself"]),
        ("findings: {a: {words: [b], implies: [c]}}", ["implies 'c', which is no finding"]),
        (
            "finding: {}\ncues:\n  absent: {before: [no, 'x(']}\n  gone: {}\n"
            "findings:\n  a: {words: b}\n  c: {words: ['re:(']}\nunits_um: {x: [y]}",
            [
                "7 problem(s)",
                "line 1: finding: unknown key; known: extends",
                "line 3: cues.absent.before: YAML reads this as False, not as words: put it in",
                "line 3: cues.absent.before: 'x(' has an open bracket",
                "line 4: cues.gone: unknown key; known: absent, uncertain",
                "line 6: findings.a.words: must be a list",
                "line 7: findings.c.words: 're:(' is no regular expression",
                "line 8: units_um.x: the key must be a number above 0",
            ],
        ),
    ],
)
def test_everything_that_is_wrong_with_rules_is_told_at_once(tmp_path, text, messages):
    with pytest.raises(UserError) as error:
        load_labeler(write_rules(tmp_path, text))
    for message in ["rules.yaml", *messages]:
        assert message in str(error.value)
