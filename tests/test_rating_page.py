"""The rating page in Chromium, against the server that raters meet."""

import os
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from rating_browser import (
    IMAGE_QUESTIONS,
    INERT_TEXT,
    RaterAtPage,
    ServedStudy,
    draw_answers,
    make_study,
)

PAGE = Path(__file__).parents[1] / "utils" / "rating_page.html"
NUM_IMAGES = 15  # of each of two arms: 30 to rate, and 3 for the second time
NUM_SHOWN = 33
RATERS = [f"Dr {letter}" for letter in "ABCDEFGHIJKLMNOPQRST"]
FULL = {
    "turing": "real",
    "quality": "4",
    "diagnosis": "normal",
    "agreement": "2",
    "errors": "omission;context",
}
SIZES = [(1366, 768, False), (1024, 768, True), (768, 1024, True)]


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        reason = "no chromium on PATH; on Debian: apt-get install chromium"
        if os.environ.get("OCT_SD_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    # Chromium's sandbox refuses to run as root.
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=args)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def study(browser, tmp_path_factory):
    """A served study of single images with all their questions."""
    folder = tmp_path_factory.mktemp("images")
    made = make_study(folder, num_images=NUM_IMAGES, questions=list(IMAGE_QUESTIONS), raters=RATERS)
    served = ServedStudy(made)
    yield served
    served.kill()


@pytest.fixture(scope="module")
def pair_study(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    made = make_study(
        folder, "--num_pairs", "4", num_images=8, questions=["preference"], raters=["Dr A", "Dr B"]
    )
    served = ServedStudy(made)
    yield served
    served.kill()


@pytest.fixture(scope="module")
def raters():
    """Names of which no test has rated anything yet."""
    return iter(RATERS)


@pytest.fixture
def new_page(browser):
    """Makes a page in a browser profile of its own; an error of a script fails the test."""
    errors, contexts = [], []

    def note_violation(message) -> None:
        if "Content Security Policy" in message.text:
            errors.append(message.text)

    def make(width: int = 1366, height: int = 768, *, touch: bool = False):
        context = browser.new_context(viewport={"width": width, "height": height}, has_touch=touch)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", note_violation)
        return page

    yield make
    for context in contexts:
        context.close()
    assert errors == []


def _stored(answers: dict[int, dict[str, str]]) -> dict[tuple[int, str], str]:
    return {(place, name): value for place, own in answers.items() for name, value in own.items()}


def test_thirty_images_by_keyboard_on_two_days_with_an_undo_are_stored_once(
    study, raters, new_page
):
    rater, rng = next(raters), np.random.default_rng(5)
    given = {position: draw_answers(rng) for position in range(NUM_SHOWN)}
    first_day = RaterAtPage(new_page())
    first_day.open(study.link(rater))
    for position in range(12):
        first_day.answer(given[position])
        first_day.go_on()
    first_day.page.context.close()

    second_day = RaterAtPage(new_page())
    second_day.open(study.link(rater), "Continue")
    assert second_day.place() == f"13 of {NUM_SHOWN}"
    second_day.press("u")
    second_day.wait_at(12)
    second_day.press("ArrowDown")  # from the first question to the quality
    given[11]["quality"] = "1" if given[11]["quality"] != "1" else "5"
    second_day.press(given[11]["quality"])
    second_day.go_on()
    for position in range(12, NUM_SHOWN):
        second_day.answer(given[position])
        second_day.go_on()
    second_day.page.get_by_role("heading", name=f"Thank you, {rater}").wait_for()
    assert study.answers(rater) == _stored(given)


def test_two_raters_at_once_do_not_mix(study, raters, new_page):
    names = [next(raters), next(raters)]
    pages = [RaterAtPage(new_page()) for _ in names]
    rng = np.random.default_rng(6)
    given = {name: {position: draw_answers(rng) for position in range(4)} for name in names}
    for page, name in zip(pages, names):
        page.open(study.link(name))
    for position in range(4):
        for page, name in zip(pages, names):
            page.answer(given[name][position])
        for page in pages:
            page.go_on()
    assert [study.answers(name) for name in names] == [_stored(given[name]) for name in names]


def test_no_acknowledged_answer_is_lost_when_the_server_is_killed(tmp_path, browser, new_page):
    served = ServedStudy(
        make_study(tmp_path, num_images=3, questions=list(IMAGE_QUESTIONS), raters=["Dr A"])
    )
    try:
        rater = RaterAtPage(new_page())
        rater.open(served.link("Dr A"))
        for _ in range(2):
            rater.answer(FULL)
            rater.go_on()
        rater.answer(FULL)
        rater.press("m", *"blurred", "Escape")
        served.kill()
        rater.press("Enter")
        rater.page.get_by_role("alert").get_by_text("The server does not answer").wait_for()
        assert rater.place() == "3 of 7"
        assert rater.page.locator("#state").inner_text() == "Not saved"
        assert served.answers("Dr A") == _stored({0: FULL, 1: FULL})

        served.start()
        rater.page.reload()
        rater.page.get_by_role("button", name="Continue").click()
        rater.wait_at(3)
        words = [label.split("\n")[0] for label in rater.chosen()]
        assert words == ["Real", "4", "normal", "2", "Omission", "Context"]
        assert rater.page.locator("#comment").input_value() == "blurred"
        rater.go_on()
        expected = _stored({0: FULL, 1: FULL, 2: FULL | {"comment": "blurred"}})
        assert served.answers("Dr A") == expected

        rater.answer(FULL)
        served.kill()
        rater.press("Enter")
        rater.page.get_by_role("alert").wait_for()
        served.start()
        rater.go_on()  # without a reload: the page still has what was typed
        assert served.answers("Dr A") == expected | _stored({3: FULL})
    finally:
        served.kill()


def test_undo_shows_what_was_just_saved_and_the_last_answer_counts(study, raters, new_page):
    name, rater = next(raters), RaterAtPage(new_page())
    rater.open(study.link(name))
    rater.answer(FULL)
    rater.go_on()
    for key, quality in (("Backspace", "1"), ("ArrowLeft", "5"), ("u", "3")):
        rater.press(key)
        rater.wait_at(1)
        assert rater.chosen()[0] == "Real" and len(rater.chosen()) == 6
        rater.press("ArrowDown", quality)
        rater.go_on()
    rater.press("u")
    rater.wait_at(1)
    assert rater.chosen()[1] == "3\nFair"
    assert study.answers(name) == _stored({0: FULL | {"quality": "3"}})


def test_the_page_waits_until_the_server_has_the_answer(study, raters, new_page):
    rater = RaterAtPage(new_page())
    rater.open(study.link(next(raters)))
    held = []
    rater.page.route(
        "**/api/items/0", lambda route: held.append(route) if _is_put(route) else route.continue_()
    )
    rater.answer(FULL)
    rater.press("Enter")
    rater.page.get_by_text("Saving …").wait_for()
    rater.press("s", "1", "Enter", "u")  # keys of the next image, too early
    assert rater.place() == f"1 of {NUM_SHOWN}"
    held[0].continue_()
    rater.wait_at(2)
    assert len(held) == 1
    assert rater.chosen() == []


def _is_put(route) -> bool:
    return route.request.method == "PUT"


def test_a_refusal_is_shown_in_the_servers_words_and_the_answers_stay(study, raters, new_page):
    rater = RaterAtPage(new_page())
    rater.open(study.link(next(raters)))
    rater.page.route(
        "**/api/items/0",
        lambda route: route.fulfill(status=422, json={"error": "quality: <b>no</b> number"}),
        times=1,
    )
    rater.answer(FULL)
    rater.press("Enter")
    rater.page.get_by_text("The server says: quality: <b>no</b> number").wait_for()
    rater.go_on()
    assert rater.place() == f"2 of {NUM_SHOWN}"


def test_the_next_image_is_there_before_it_is_asked_for(study, raters, new_page):
    rater = RaterAtPage(new_page())
    with rater.page.expect_response("**/api/items/2"):
        rater.open(study.link(next(raters)))
    rater.page.wait_for_load_state("networkidle")
    rater.page.route(re.compile("/api/images/"), lambda route: route.abort())
    before = rater.picture()
    rater.answer(FULL)
    rater.go_on()
    assert rater.place() == f"2 of {NUM_SHOWN}"
    assert rater.picture() != before


def test_the_next_image_shows_soon_after_the_key(study, raters, new_page, record_property):
    rater = RaterAtPage(new_page())
    rater.open(study.link(next(raters)))
    for _ in range(10):
        rater.answer(FULL)
        rater.go_on()
        rater.page.wait_for_load_state("networkidle")
    times = rater.page.evaluate(
        "performance.getEntriesByName('next-item').map(entry => entry.duration)"
    )
    record_property("next_image_ms", times)
    assert len(times) == 10
    # 100 ms is the aim, and reached on an idle machine; a busy one must not fail the tests.
    assert statistics.median(times) < 1000


def test_texts_are_shown_as_text(study, raters, new_page):
    rater = RaterAtPage(new_page())
    rater.open(study.link(next(raters)))
    rater.answer({name: FULL[name] for name in ("turing", "quality", "diagnosis")})
    assert INERT_TEXT in rater.page.locator("#text p").inner_text()
    assert rater.page.locator("#text img, #text script").count() == 0
    assert rater.page.title() != "run"


def test_the_text_is_hidden_until_the_look_is_judged(study, raters, new_page):
    rater = RaterAtPage(new_page())
    rater.open(study.link(next(raters)))
    shown = {name: rater.page.locator(f"#question-{name}") for name in IMAGE_QUESTIONS}
    text = rater.page.locator("#text")
    rater.press("r", "3")
    assert not text.is_visible() and not shown["agreement"].is_visible()
    rater.press("Enter")
    rater.page.get_by_role("alert").get_by_text("Which diagnosis").wait_for()
    rater.press("2")
    assert text.is_visible() and shown["agreement"].is_visible() and shown["errors"].is_visible()
    assert "active" in shown["agreement"].get_attribute("class")


def test_zoom_and_window_change_the_pixels_and_are_reset(study, raters, new_page):
    rater = RaterAtPage(new_page())
    rater.open(study.link(next(raters)))
    canvas = rater.page.locator(".pane canvas").first
    pictures = [rater.picture()]
    whole = pictures[0]

    def has_changed() -> bool:
        pictures.append(rater.picture())
        return pictures[-1] != pictures[-2]

    canvas.hover(position={"x": 300, "y": 200})
    rater.page.mouse.wheel(0, -400)
    assert has_changed()
    rater.press("+")
    assert has_changed()
    _drag(rater.page, button="left")
    assert has_changed()
    rater.press("z")
    assert has_changed() and pictures[-1] == whole
    canvas.dblclick()
    assert has_changed()
    rater.press("z")
    assert has_changed() and pictures[-1] == whole
    for change in (
        lambda: rater.press("w"),
        lambda: rater.press("d"),
        lambda: _drag(rater.page, button="right"),
        lambda: rater.page.get_by_label("Brightness", exact=True).fill("50"),
    ):
        change()
        assert has_changed()
    rater.press("Shift+Z")
    assert has_changed() and pictures[-1] == whole


def _drag(page, *, button: str) -> None:
    page.mouse.move(400, 300)
    page.mouse.down(button=button)
    page.mouse.move(470, 350, steps=3)
    page.mouse.up(button=button)


def test_zoom_begins_anew_with_each_image_and_the_window_stays(study, raters, new_page):
    rater = RaterAtPage(new_page())
    rater.open(study.link(next(raters)))
    rater.press("w", "w", "+")
    rater.answer(FULL)
    rater.go_on()
    assert rater.page.locator("#zoom-value").inner_text() == "100 %"
    assert rater.page.get_by_label("Contrast", exact=True).input_value() == "10"


def test_two_fingers_zoom(study, raters, new_page):
    rater = RaterAtPage(new_page(1024, 768, touch=True))
    rater.open(study.link(next(raters)))
    session = rater.page.context.new_cdp_session(rater.page)
    for kind, gap in (("touchStart", 40), ("touchMove", 80), ("touchMove", 160)):
        points = [{"x": 300 - gap / 2, "y": 300, "id": 0}, {"x": 300 + gap / 2, "y": 300, "id": 1}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    rater.picture()
    assert rater.page.locator("#zoom-value").inner_text() == "400 %"


def test_a_pair_is_answered_by_arrows_and_stored_by_side(pair_study, new_page):
    from utils.rating_store import Store

    rater = RaterAtPage(new_page())
    rater.open(pair_study.link("Dr A"))
    for key in ("ArrowLeft", "ArrowRight", "t"):
        rater.press(key)
        rater.go_on()
    with Store.open(pair_study.folder) as store:
        shown = store.presentations(store.raters()[0])[:3]
        assert [store.given(one)["preference"] for one in shown] == ["left", "right", "tie"]


def test_answers_can_be_given_by_touch_alone(pair_study, new_page):
    rater = RaterAtPage(new_page(768, 1024, touch=True))
    rater.page.goto(pair_study.link("Dr B"))
    rater.page.get_by_role("button", name="Begin").tap()
    for number in (1, 2):
        rater.wait_at(number)
        rater.page.get_by_role("button", name="Left", exact=True).tap()
        rater.page.get_by_role("button", name="Right", exact=True).tap()  # the other one after all
        rater.page.get_by_role("button", name="Next").tap()
    rater.wait_at(3)
    assert list(pair_study.answers("Dr B")) == [(0, "preference"), (1, "preference")]


def test_keys_in_the_comment_are_text_and_escape_leaves_it(study, raters, new_page):
    rater = RaterAtPage(new_page())
    rater.open(study.link(next(raters)))
    rater.press("m", *"rust 5?", "Enter", "u")
    assert rater.page.locator("#comment").input_value() == "rust 5?\nu"
    assert rater.chosen() == []
    rater.press("Escape", "s")
    assert rater.chosen() == ["Synthetic"]


def test_the_question_mark_shows_the_keys_and_answers_wait_meanwhile(study, raters, new_page):
    rater = RaterAtPage(new_page())
    rater.open(study.link(next(raters)))
    rater.press("?")
    assert rater.page.get_by_role("dialog", name="Keys").is_visible()
    rater.press("r", "Escape", "s")
    assert not rater.page.get_by_role("dialog", name="Keys").is_visible()
    assert rater.chosen() == ["Synthetic"]


def test_a_link_is_kept_for_the_plain_address_and_another_link_replaces_it(study, raters, new_page):
    page, names = new_page(), [next(raters), next(raters)]
    for name in names:
        page.goto(study.link(name))
        page.get_by_role("heading", name=f"Welcome, {name}").wait_for()
        assert page.url == f"{study.url}/"
    page.goto("about:blank")
    page.goto(study.url)
    page.get_by_role("heading", name=f"Welcome, {names[1]}").wait_for()


def test_a_browser_that_alters_pixels_is_refused(study, raters, new_page):
    page = new_page()
    page.add_init_script(
        """const read = CanvasRenderingContext2D.prototype.getImageData;
        CanvasRenderingContext2D.prototype.getImageData = function (...box) {
          const pixels = read.apply(this, box);
          pixels.data[40] ^= 1;
          return pixels;
        };"""
    )
    page.goto(study.link(next(raters)))
    page.get_by_role("heading", name="This browser alters images").wait_for()


@pytest.mark.parametrize(
    ("fragment", "heading"),
    [("", "Please open your personal link"), ("#wrong", "This link does not open the study")],
)
def test_without_a_good_link_the_page_says_what_to_do(study, new_page, fragment, heading):
    page = new_page()
    page.goto(f"{study.url}/{fragment}")
    page.get_by_role("heading", name=heading).wait_for()
    assert page.evaluate("localStorage.length") == 0


def test_nothing_is_asked_of_another_host_and_no_address_holds_the_token(study, raters, new_page):
    name, addresses = next(raters), []
    rater = RaterAtPage(new_page())
    rater.page.on("request", lambda request: addresses.append(request.url))
    rater.open(study.link(name))
    rater.answer(FULL)
    rater.go_on()
    rater.press("?")
    assert len(addresses) > 5
    own = re.compile(re.escape(study.url) + r"/(api/(study|items/\d+|images/[\w-]+))?")
    # The browser's own list has the fragment of the page itself, which is not sent.
    assert [one for one in addresses if not own.fullmatch(one.partition("#")[0])] == []
    assert study.tokens[name] not in " ".join(one.partition("#")[0] for one in addresses)


@pytest.mark.parametrize(("width", "height", "touch"), SIZES)
def test_buttons_are_large_enough_and_nothing_is_cut_off(
    study, pair_study, new_page, width, height, touch
):
    for served, rater_name in ((study, RATERS[-1]), (pair_study, "Dr A")):
        rater = RaterAtPage(new_page(width, height, touch=touch))
        rater.page.goto(served.link(rater_name))
        rater.page.locator("#screen-actions button").click()
        rater.page.locator("#rating").wait_for()
        rater.answer({name: FULL[name] for name in ("turing", "quality", "diagnosis")})
        small, cut = rater.page.evaluate(
            """() => {
              const seen = [...document.querySelectorAll("button, textarea, input")]
                .filter((element) => element.checkVisibility());
              const box = (element) => element.getBoundingClientRect();
              return [
                seen.filter((one) => box(one).height < 44 || box(one).width < 44),
                seen.filter((one) => box(one).right > innerWidth || box(one).left < 0
                  || one.scrollWidth > one.clientWidth + 1),
              ].map((found) => found.map((one) => one.textContent || one.id));
            }"""
        )
        assert (small, cut) == ([], [])


def test_the_page_is_one_file_that_a_strict_policy_allows():
    page = PAGE.read_text(encoding="utf-8")
    assert page.count("<style>") == page.count("<script>") == 1
    foreign = r"<(?:link|img|iframe|object)\b|\s(?:style|on\w+)=|https?://|@import|url\("
    # The one link is an empty icon, else browsers ask the server for one.
    assert re.findall(foreign, page.replace('<link rel="icon" href="data:,">', "")) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", page) == []
    assert '<html lang="en">' in page


def test_colours_of_text_have_the_contrast_of_wcag_aa():
    page = PAGE.read_text(encoding="utf-8")
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", page))
    grounds = [colours[name] for name in ("ground", "panel", "raised")] + ["#2a2d30", "#3a2522"]
    pairs = [(colours[ink], ground) for ink in ("ink", "soft", "accent") for ground in grounds]
    pairs += [(colours["ink"], colours["chosen"]), (colours["alert"], colours["panel"])]
    assert [pair for pair in pairs if _contrast(*pair) < 4.5] == []


def _contrast(one: str, other: str) -> float:
    """Of two colours, 1 to 21 (WCAG 2.2, contrast ratio)."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
