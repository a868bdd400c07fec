"""The page of a trace in a real browser: its numbers, its keys, its colours, and what it saves. Skipped without one."""

import csv
import html
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import trace_page
from traces import FRAME, HOSTILE, a_step, data_of, values_of

from clada import Trace
from clada.cli import main as run_clada

NBSP = "\u00a0"
LONG = 5_000  # tokens


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """Two prompts of SmolLM2 with half of the neurons: the page, and the JSON of the same run."""
    folder = tmp_path_factory.mktemp("generated")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("Once upon a time", "A list:\n- tea\n-")))
    page, out = folder / "trace.html", io.StringIO()
    options = ["--max-new-tokens", "12", "--dtype", "bfloat16", "--method", "griffin", "--keep", "0.5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        assert run_clada(["generate", "--prompt-jsonl", str(prompts), *options, "--html", str(page)]) == 0
    return SimpleNamespace(page=page, results=[json.loads(line) for line in out.getvalue().splitlines()])


def test_generate_writes_the_page_of_its_steps(generated):
    found, _ = data_of(generated.page.read_text(encoding="utf-8"))
    assert [text["before"] for text in found["texts"]] == ["Once upon a time", "A list:\n- tea\n-"]
    title = "smollm2-135m, griffin, bfloat16"
    assert [text["title"] for text in found["texts"]] == [f"{title}, 1", f"{title}, 2"]
    for text, result in zip(found["texts"], generated.results, strict=True):
        steps = result["steps"]
        assert text["tokens"] == [step["token"] for step in steps]
        for name, values in values_of(text).items():
            assert values == [step[name] for step in steps]
        assert text["layers"][0]["values"] == [step["layer_shares"] for step in steps]
        assert steps[0]["layer_shares"] == [0.5] * 30


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A driver; its folder of downloads is `chromium.folder`."""
    if reason := trace_page.lacking():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("downloads")
    with trace_page.browser(folder) as driver:
        driver.folder = folder
        yield driver


@pytest.fixture
def opened(chromium, tmp_path):
    """Opens a trace, or a file; the console must be empty at the end."""

    def opened(trace, size=(1280, 800), scheme="light"):
        path = trace
        if isinstance(trace, Trace):
            path = tmp_path / "trace.html"
            trace.save(path)
        trace_page.show(chromium, path, size, scheme)
        return chromium

    yield opened
    assert chromium.get_log("browser") == []


def all_of(driver, selector):
    return driver.find_elements("css selector", selector)


def script(driver, code, *arguments):
    return driver.execute_script(f"return {code}", *arguments)


def choose(driver, name):
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", "quantity")).select_by_value(name)


def press(driver, *keys):
    for key in keys:
        driver.switch_to.active_element.send_keys(key)


def told(driver):
    """The table of the chosen token: its head, and by quantity what stands there."""
    head = [cell.text.splitlines() for cell in all_of(driver, "#details thead td, #details thead th")]
    rows = {row.get_attribute("data-name"): [cell.text for cell in row.find_elements("css selector", "td")]
            for row in all_of(driver, "#details tbody tr")}  # fmt: skip
    return head, rows


def written(name, value):
    """A number of a step as the page writes it."""
    if name.startswith(("load", "drafted")):
        return "yes" if value else "no"
    if name == "active_fraction":
        return f"{100 * value:.1f} %"
    return f"{value:.2f} bits"


def test_the_page_says_the_numbers_of_the_json(generated, opened):
    driver = opened(generated.page)
    sections = all_of(driver, "section")
    assert len(sections) == 2
    names = ["surprisal_bits", "entropy_bits", "active_fraction", "load_surprisal", "load_entropy"]
    labels = [
        "surprisal",
        "entropy",
        "neurons computed",
        "surprisal above its threshold",
        "entropy above its threshold",
    ]
    for section, result in zip(sections, generated.results, strict=True):
        tokens = section.find_elements("css selector", ".token")
        prompt = section.find_element("css selector", ".before").get_property("textContent")
        shown = section.find_element("css selector", ".text").get_property("textContent").replace("↵", "")
        assert shown == prompt + result["text"]
        for token, step in zip(tokens, result["steps"], strict=True):
            said = token.get_attribute("aria-label").replace(NBSP, " ")
            values = [f"{label} {written(name, step[name])}" for name, label in zip(names, labels, strict=True)]
            assert said == ", ".join([step["token"].strip() or "white space", *values])
    tokens[3].click()
    step = generated.results[1]["steps"][3]
    head, rows = told(driver)
    assert head[0] == ["token 4"]
    assert rows == {name: [written(name, step[name])] for name in names}
    bars = all_of(driver, ".bars i")
    assert [bar.get_attribute("title").replace(NBSP, " ") for bar in bars] == [f"layer {i}: 50.0 %" for i in range(30)]
    assert "layer 29 50.0" in all_of(driver, ".bars")[0].get_attribute("aria-label")


def test_shades_follow_the_numbers_and_the_legend_says_how(opened):
    values = [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    driver = opened(Trace([a_step(f" {value}", value, drafted=value > 5) for value in values]))
    shades = [token.value_of_css_property("background-color") for token in all_of(driver, ".token")]
    lightness = [oklab(shade)[0] for shade in shades]
    assert all(one > other for one, other in pairwise(lightness))
    legend = driver.find_element("id", "legend").text.splitlines()
    assert legend == ["surprisal (bits)", "0", "5", "10"]
    # Equal steps look equally large: bytes of sRGB are a two-hundredth of OKLab's lightness apart, at most.
    points = np.array([oklab(shade) for shade in shades])
    distances = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert distances.max() - distances.min() < 0.01
    assert distances.min() > 0.04
    choose(driver, "drafted")
    assert driver.find_element("id", "legend").text.splitlines() == ["draft accepted", "no", "yes"]
    shades = [token.value_of_css_property("background-color") for token in all_of(driver, ".token")]
    assert shades == [shades[0]] * 3 + [shades[5]] * 3
    assert shades[0] != shades[5]


def test_few_high_values_leave_a_difference_between_the_others(opened):
    steps = [a_step(" x", float(value)) for value in [*range(100), 5000, 6000]]
    driver = opened(Trace(steps))
    assert driver.find_element("id", "legend").text.splitlines() == ["surprisal (bits)", "0", "50", "100 or more"]


def channels(colour):
    return np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255


def linear(colour):
    c = channels(colour)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def oklab(colour):
    """Björn Ottosson, "A perceptual color space for image processing", 2020."""
    lms = np.array([
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ])  # fmt: skip
    lab = np.array([
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ])  # fmt: skip
    return lab @ np.cbrt(lms @ linear(colour))


def contrast(one, other):
    """WCAG 2.2, contrast ratio."""
    a, b = (float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_every_shade(opened, scheme):
    driver = opened(Trace([a_step(f" {i}", i / 10) for i in range(101)]), scheme=scheme)
    paper = script(driver, "getComputedStyle(document.body).backgroundColor")
    assert (oklab(paper)[0] < 0.5) == (scheme == "dark")
    pairs = script(driver, """[...document.querySelectorAll('.token, h1, h2, .about, .keys, td, th, label')].map(e => {
        const style = getComputedStyle(e); return [style.color, style.backgroundColor]; })""")  # fmt: skip
    assert len(pairs) > 110
    low = min(contrast(ink, paper if shade == "rgba(0, 0, 0, 0)" else shade) for ink, shade in pairs)
    assert low >= 4.5  # WCAG 2.2, level AA


def test_keys_move_between_tokens_and_keep_one(opened):
    from selenium.webdriver.common.keys import Keys

    driver = opened(Trace([a_step(f"{' ' * bool(i)}word{i}", float(i)) for i in range(60)]))
    tokens = all_of(driver, ".token")
    assert [token.get_attribute("tabindex") for token in tokens] == ["0"] + ["-1"] * 59
    script(driver, "document.querySelector('.token').focus()")

    def now():
        return tokens.index(driver.switch_to.active_element)

    for keys, expected in [
        ([Keys.ARROW_RIGHT] * 2, 2), ([Keys.ARROW_LEFT], 1), ([Keys.ARROW_LEFT] * 3, 0), ([Keys.END], 59),
        ([Keys.ARROW_RIGHT], 59), ([Keys.HOME], 0),
    ]:  # fmt: skip
        press(driver, *keys)
        assert now() == expected
        assert told(driver)[0][0] == [f"token {expected + 1}"]
        assert [token.get_attribute("tabindex") for token in tokens].count("0") == 1
    press(driver, Keys.ARROW_DOWN)
    below = now()
    assert tokens[below].rect["y"] > tokens[0].rect["y"]
    assert abs(tokens[below].rect["x"] - tokens[0].rect["x"]) < 2
    press(driver, Keys.ARROW_UP)
    assert now() == 0
    press(driver, Keys.ARROW_RIGHT, Keys.ENTER, Keys.END)
    head, rows = told(driver)
    assert [cell[0] for cell in head] == ["token 60", "word59", "word1"]
    assert rows["surprisal_bits"] == ["59 bits", "1 bits"]
    assert [token.get_attribute("aria-selected") for token in tokens].count("true") == 1
    press(driver, Keys.ESCAPE)
    assert [cell[0] for cell in told(driver)[0]] == ["token 60", "word59"]
    assert "true" not in [token.get_attribute("aria-selected") for token in tokens]


def test_text_from_right_to_left_is_laid_out_and_walked_so(opened):
    from selenium.webdriver.common.keys import Keys

    words = ["ذهب", "الوزير", "إلى", "المدينة", "ليقابل", "اللجنة"]
    frame = pd.DataFrame({"word": words, "surprisal_bits": range(6)})
    driver = opened(Trace(frame))
    tokens = all_of(driver, ".token")
    places = [token.rect["x"] for token in tokens]
    assert places == sorted(places, reverse=True)
    script(driver, "document.querySelector('.token').focus()")
    press(driver, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert tokens.index(driver.switch_to.active_element) == 2
    press(driver, Keys.ARROW_RIGHT)
    assert tokens.index(driver.switch_to.active_element) == 1


def test_hovering_tells_the_numbers_until_another_is_hovered(opened):
    from selenium.webdriver import ActionChains

    driver = opened(Trace([a_step(f" word{i}", float(i)) for i in range(20)]))
    for i in (4, 7):
        ActionChains(driver).move_to_element(all_of(driver, ".token")[i]).perform()
        assert told(driver)[1]["surprisal_bits"] == [f"{i} bits"]


def test_the_same_text_in_two_models_is_told_together(opened):
    one, two = (FRAME[:3].assign(surprisal_bits=values) for values in ([1.5, 2.5, 3.5], [4.5, 5.5, 6.5]))
    one.attrs["words"], two.attrs["words"] = {"model": "one"}, {"model": "two"}
    driver = opened(Trace(one).beside(two))
    all_of(driver, ".token")[4].click()  # the second word of the second model
    head, rows = told(driver)
    assert head == [["word 2"], ["dog", "two"], ["dog", "one"]]
    assert rows["surprisal_bits"] == ["5.50 bits", "2.50 bits"]
    assert [each.text for each in all_of(driver, "h2")] == ["one", "two"]


@pytest.mark.parametrize("width", [740, 900, 1280])
def test_the_numbers_of_two_texts_fit_beside_the_texts(opened, width):
    one, two = (FRAME[:3].assign(surprisal_bits=[15.25, 7.5, 26.75], entropy_bits=[10.5, 11.25, 9.75]) for _ in "12")
    one.attrs["words"], two.attrs["words"] = {"model": "smollm2-135m"}, {"model": "gemma3-270m"}
    driver = opened(Trace(one).beside(two), (width, 700))
    wide, there = script(driver, "[details.scrollWidth, details.clientWidth]")
    assert wide <= there


def test_what_is_missing_is_shown_as_missing(opened):
    driver = opened(Trace(FRAME[:3]))
    first, second, _ = all_of(driver, ".token")
    assert "missing" in first.get_attribute("class")
    assert first.value_of_css_property("background-image").startswith("repeating-linear-gradient")
    assert "missing" not in second.get_attribute("class")
    assert told(driver)[1]["surprisal_bits"] == ["missing"]
    assert "missing" in driver.find_element("id", "legend").text
    assert all_of(driver, ".about")[0].text == "3 words; mean surprisal 1.88 bits, 1 missing"


def test_tokens_of_no_text_and_of_line_feeds_are_there_to_choose(opened):
    driver = opened(Trace([a_step(token, 1.0) for token in ("Tea", "", "\n\n", "  two")]))
    tokens = all_of(driver, ".token")
    assert [token.get_property("textContent") for token in tokens] == ["Tea", "▫", "↵\n↵\n", "two"]
    assert all(token.rect["width"] > 4 for token in tokens)
    assert tokens[3].rect["y"] > tokens[0].rect["y"]
    assert [token.get_attribute("aria-label").split(",")[0] for token in tokens] == [
        "Tea", "no text", "white space", "two",
    ]  # fmt: skip


def test_a_hostile_text_is_shown_as_it_is(opened):
    driver = opened(Trace([a_step(token, 1.0) for token in HOSTILE]))
    text = all_of(driver, ".text")[0].get_property("textContent")
    assert text == "".join(HOSTILE)
    assert script(driver, "window.harm === undefined && document.querySelectorAll('script').length === 2")


@pytest.mark.parametrize(("size", "columns"), [((390, 844), 1), ((1280, 800), 2)], ids=["phone", "desk"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_a_desk(generated, opened, size, columns, scheme):
    driver = opened(generated.page, size, scheme)
    width, height = size
    assert script(driver, "document.scrollingElement.scrollWidth") <= width
    one, two = (section.rect for section in all_of(driver, "section"))
    assert (one["y"] == two["y"], one["x"] == two["x"]) == (columns == 2, columns == 1)
    # What is told of a token is in sight, beside the texts or at the lower edge.
    box = script(driver, "document.querySelector('aside').getBoundingClientRect().toJSON()")
    assert 0 <= box["left"] < box["right"] <= width
    assert 0 <= box["top"] < height
    assert all(token.rect["height"] >= 16 for token in all_of(driver, ".token"))


def test_thousands_of_tokens_are_one_page(opened):
    from selenium.webdriver.common.keys import Keys

    shares = [round(0.5 + i / 1000, 4) for i in range(30)]
    driver = opened(Trace([a_step(f" w{i}", i % 17 / 2, layer_shares=shares) for i in range(LONG)]))
    assert script(driver, "document.querySelectorAll('.token').length") == LONG
    script(driver, "document.querySelector('.token').focus()")
    press(driver, Keys.END)
    assert told(driver)[0] == [["token 5000"], ["w4999"]]


def saved(driver, ending):
    """What the page saves at the press of a button."""
    from selenium.webdriver.support.ui import WebDriverWait

    path = driver.folder / f"trace.{ending}"
    driver.find_element("id", ending).click()
    WebDriverWait(driver, 60).until(lambda _: path.exists() and path.stat().st_size)  # the limit only ends a hang
    content = path.read_bytes()
    path.unlink()
    return content


def test_what_is_shown_is_saved_as_a_table(generated, opened):
    driver = opened(generated.page)
    rows = list(csv.DictReader(io.StringIO(saved(driver, "csv").decode(), newline="")))
    steps = [step for result in generated.results for step in result["steps"]]
    assert [row["token"] for row in rows] == [step["token"] for step in steps]
    for name in ("surprisal_bits", "entropy_bits", "active_fraction"):
        assert [float(row[name]) for row in rows] == [step[name] for step in steps]
    assert [row["layer_shares_29"] for row in rows] == ["0.5"] * 24
    assert list(rows[0])[:4] == ["text", "token_index", "token", "surprisal_bits"]
    driver = opened(Trace(FRAME[:3]))
    rows = list(csv.DictReader(io.StringIO(saved(driver, "csv").decode(), newline="")))
    assert [row["surprisal_bits"] for row in rows] == ["", "3.5", "0.25"]


def test_what_is_shown_is_saved_as_figures(opened):
    words = [
        "The",
        "editor",
        "who",
        "had",
        "read",
        "the",
        "letter",
        "twice",
        "put",
        "it",
        "back",
        "into",
        "its",
        "envelope,",
        "and",
        "laughed",
        "aloud.",
    ]
    frame = pd.DataFrame({"word": words, "surprisal_bits": [None, *map(float, range(1, len(words)))]})
    driver = opened(Trace(frame), scheme="dark")
    picture = saved(driver, "png")
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(picture[16:20], "big") == 2 * 760
    drawn = ElementTree.fromstring(saved(driver, "svg"))
    texts = list(drawn.iter("{http://www.w3.org/2000/svg}text"))
    boxes = list(drawn.iter("{http://www.w3.org/2000/svg}rect"))
    assert texts[0].text == "surprisal (bits)"
    # The lines of the text in their order; a space at a line's end is not drawn.
    lines = [element.text.strip() for element in texts if float(element.get("font-size")) == 17]
    assert len(lines) > 1
    assert " ".join(lines) == " ".join(words)
    fills = [box.get("fill") for box in boxes[-len(words) :]]
    assert fills[0] == "url(#missing)"
    light = [oklab(f"rgb({int(fill[1:3], 16)}, {int(fill[3:5], 16)}, {int(fill[5:], 16)})")[0] for fill in fills[1:]]
    assert light == sorted(light, reverse=True)  # figures are on white, whatever the page is
    assert light[0] > 0.9


def test_a_notebooks_page_and_the_traces_leave_each_other_alone(opened, tmp_path):
    """In a host whose styles would hide every token, as an output of a cell."""
    host = tmp_path / "notebook.html"
    cell = Trace([a_step(token, 2.5) for token in HOSTILE])._repr_html_()
    style = "<style>span { display: none }</style>"
    host.write_text(f"<!DOCTYPE html><meta charset=utf-8>{style}<p>Cell</p>{cell}", encoding="utf-8")
    driver = opened(host)
    frame = driver.find_element("css selector", "iframe")
    assert frame.rect["height"] > 400
    assert frame.get_attribute("title").startswith("<Trace of 8 tokens")
    assert html.unescape(frame.get_attribute("sandbox")) == "allow-scripts allow-downloads"
    assert script(driver, "document.querySelectorAll('.token').length") == 0
    driver.switch_to.frame(frame)
    tokens = all_of(driver, ".token")
    assert len(tokens) == len(HOSTILE)
    assert all(token.is_displayed() for token in tokens)
    assert told(driver)[1]["surprisal_bits"] == ["2.50 bits"]
    driver.switch_to.default_content()
