"""The page of `microgpt explain` in a real Chromium, offline, from a file.

What a test expects comes from calling the package, never from the page. Every number of the page
carries all its digits in `data-v`; tests read those.
"""

import contextlib
import io
import json
import math
import os
import random
import re
import shutil
from array import array
from base64 import b64decode, b64encode
from decimal import ROUND_HALF_UP, Context, Decimal
from importlib import resources
from pathlib import Path
from random import Random

import pytest

import microgpt as mg
from microgpt.cli import run_command
from microgpt.explainer import contents
from microgpt.explainer.listings import listings

ROOT = Path(__file__).parent.parent
DEMANDED = os.environ.get("MICROGPT_REQUIRE_BROWSER") == "1"
TEXT, OTHER = "emma", "olivia"
SETTLED = "() => new Promise(done => setTimeout(() => setTimeout(done)))"
PAINTED = "() => new Promise(done => requestAnimationFrame(() => setTimeout(done)))"


def missing(reason):
    """Skip, or fail where the browser is demanded."""
    if DEMANDED:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser(compiled):
    """A Chromium; the tests train for 1,000 steps, which the pure core takes a minute for."""
    pytest.importorskip("jinja2")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("Playwright is not installed: pip install 'microgpt[browser]'")
    if mg.BACKEND != "cython":
        pytest.skip("these tests need the compiled core")
    with sync_playwright() as playwright:
        path = os.environ.get("MICROGPT_CHROMIUM")
        if path is None and not os.path.exists(playwright.chromium.executable_path):
            missing("no Chromium: playwright install chromium, or set MICROGPT_CHROMIUM to one")
        with playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as chromium:
            yield chromium


class Page:
    """A page that is open, with what it asked the network for and what it complained of."""

    def __init__(self, browser, path, **context):
        settings = {"viewport": {"width": 1440, "height": 900}, "offline": True}
        self.context = browser.new_context(**settings | context)
        self.tab = self.context.new_page()
        self.requests, self.complaints = [], []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(error.message))
        self.tab.goto(f"file://{path}")

    def settle(self):
        self.tab.evaluate(SETTLED)

    def read(self, text):
        """Type a text into the bar."""
        self.tab.fill("#text", text)
        self.settle()

    def at(self, position):
        self.tab.click(f"#bar .tokens button >> nth={position}")
        self.settle()

    def slide(self, selector, value):
        """Move a slider, or set a number, as a reader's hand does."""
        self.tab.eval_on_selector(
            selector,
            "(input, value) => { input.value = value;"
            " input.dispatchEvent(new Event('input', {bubbles: true}));"
            f" return ({SETTLED})(); }}",
            str(value),
        )

    def click(self, selector):
        self.tab.click(selector)
        self.settle()

    def press(self, *keys):
        for key in keys:
            self.tab.keyboard.press(key)
        self.settle()

    def values(self, selector):
        """The full numbers of the elements that a selector finds, in order."""
        texts = self.tab.eval_on_selector_all(selector, "all => all.map(e => e.dataset.v)")
        return [float(text) for text in texts]

    def value(self, selector):
        [value] = self.values(selector)
        return value

    def texts(self, selector):
        return self.tab.eval_on_selector_all(
            selector, "all => all.map(e => e.textContent.trim())"
        )

    def text(self, selector):
        [text] = self.texts(selector)
        return text

    def count(self, selector):
        return self.tab.locator(selector).count()

    def attributes(self, selector, name):
        return self.tab.eval_on_selector_all(
            selector, f"all => all.map(e => e.getAttribute('{name}'))"
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("explain")


def command(*args):
    """Run a command of the package; return its standard output."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert run_command(list(map(str, args))) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def files(compiled, folder):
    """The demo: a model of the bundled names with its record, and its page."""
    pytest.importorskip("jinja2")
    model, page = folder / "names.safetensors", folder / "names.html"
    command("train", "--out", model, "--record", "--samples", 0)
    command("explain", model, "--text", TEXT, "--text", OTHER, "--out", page)
    return model, page


@pytest.fixture(scope="module")
def run(files):
    return mg.load(files[0], mg.load_documents())


@pytest.fixture(scope="module")
def open_page(browser, files):
    """The demo's page, opened once for the tests that leave it as they found it."""
    page = Page(browser, files[1])
    yield page
    assert page.complaints == []
    page.context.close()


@pytest.fixture
def page(open_page):
    """The demo's page, at its first text and position."""
    open_page.tab.evaluate("location.hash = 'header'")
    open_page.tab.evaluate("location.hash = ''")
    open_page.settle()
    return open_page


def opened(browser, path, **context):
    return contextlib.closing(_Opened(Page(browser, path, **context)))


class _Opened:
    def __init__(self, page):
        self.page = page

    def __getattr__(self, name):
        return getattr(self.page, name)

    def close(self):
        self.page.context.close()


def close(a, b, tolerance=1e-12):
    """Compare numbers or lists of them; NaN fails."""
    if isinstance(a, (int, float)):
        return abs(a - b) <= tolerance
    return len(a) == len(b) and all(close(x, y, tolerance) for x, y in zip(a, b, strict=True))


def written(value, form):
    """What a number looks like: rounded half away from zero, as JavaScript rounds."""
    number = Decimal(value)
    if form == "g":
        if not number:
            return "0.000"
        rounded = Context(prec=4, rounding=ROUND_HALF_UP).create_decimal(number)
        exponent = rounded.adjusted()
        if -7 < exponent < 4:
            text = f"{rounded:.{3 - exponent}f}"
        else:
            text = f"{rounded.scaleb(-exponent):.3f}e{exponent:+d}"
    elif form == "%":
        text = f"{Decimal(value * 100).quantize(Decimal('0.1'), ROUND_HALF_UP)} %"
    else:
        places = 0 if form == "i" else int(form)
        number = number.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP, Context(prec=400))
        text = f"{number:,f}" if form == "i" else f"{number:f}"
    if text.startswith("-"):
        text = text[1:] if not text.strip("-0. %") else "−" + text[1:]
    return text


def check_numbers(page):
    """Every number stands there as its full value says."""
    numbers = page.tab.eval_on_selector_all(
        "[data-v][data-f]", "all => all.map(e => [e.dataset.v, e.dataset.f, e.textContent])"
    )
    assert len(numbers) > 1000
    for value, form, text in numbers:
        shown = written(float(value), form)
        cells = {shown, shown.replace("0.", ".", 1), shown.removesuffix(" %"), ""}
        if form == "%" and shown[:-2].replace(".", "").isdigit():
            cells.add(written(100 * float(value), 0))
        text = text.removeprefix("data ").removeprefix("grad ")
        assert text in cells or text == written(float(value), 1).replace("0.", "."), (value, form)


# The file


def test_the_page_is_one_request_without_a_complaint_and_of_bounded_size(browser, files):
    with opened(browser, files[1]) as page:
        page.settle()
        assert page.requests == [f"file://{files[1]}"]
        assert page.complaints == []
        assert page.count("#problem:not([hidden])") == 0
    assert os.path.getsize(files[1]) < 1_200_000


def test_every_number_shows_what_its_full_value_says(page):
    check_numbers(page)


def test_the_network_is_forbidden(page):
    refused = "() => fetch('https://example.org').then(() => false, () => true)"
    assert page.tab.evaluate(refused)
    page.complaints[:] = [text for text in page.complaints if "example.org" not in text]


# Texts that are typed


def texts_to_type(run):
    """Ten texts: random ones of lengths 1, 15, 16 and others, upper case, a stranger among them."""
    rng, chars = Random(14), run.tokenizer.chars
    texts = ["".join(rng.choices(chars, k=n)) for n in (1, 2, 5, 8, 11, 15, 16)]
    return [*texts, "Olivia", "XqZ", "ann4"]


def test_texts_are_encoded_predicted_and_measured_as_by_the_package(page, run):
    for typed in texts_to_type(run):
        page.read(typed)
        text = typed.lower().replace("4", "")
        traced = mg.trace(run, text)
        T = len(traced["targets"])
        ids = traced["ids"]
        assert page.values("#tokens .boxes:not(.vocabulary) .v") == ids
        assert page.text("#tokens .decode code") == run.tokenizer.decode(ids) == text
        assert page.count("#bar .tokens button") == T
        notes = page.text("#text-notes")
        assert ("Upper case" in notes) == (typed != typed.lower())
        assert ("Not in the alphabet" in notes and "“4”" in notes) == ("4" in typed)
        assert ("was cut" in notes) == (len(ids) - 1 > run.model.config.block_size)
        assert close(page.tab.evaluate("text => microgpt.logits(text)", typed), traced["logits"])
        # 0: the target is marked, the likeliest stand first
        probs = traced["probs"]
        targets = page.attributes("#header .predictions tr.target", "data-token")
        assert list(map(int, targets)) == traced["targets"]
        firsts = page.attributes("#header .predictions li tr:first-child", "data-token")
        assert list(map(int, firsts)) == [row.index(max(row)) for row in probs]
        # 3: the pairs
        assert page.count("#prediction .pairs tbody tr") == T
        for t in range(T):
            assert page.count(f"#prediction .pairs tbody tr:nth-child({t + 1}) .window .token") == (
                t + 1
            )
        shown = page.values("#prediction .pairs td:nth-child(3) .v")
        assert close(shown, [row[i] for row, i in zip(probs, traced["targets"], strict=True)])
        pairs = zip(probs, traced["targets"], strict=True)
        ranks = [1 + sum(p > row[i] for p in row) for row, i in pairs]
        assert page.values("#prediction .pairs td:nth-child(4) .v") == ranks
        # 5: the losses
        assert close(page.values("#loss td.loss .v"), traced["losses"])
        mean, perplexity = page.values("#loss .mean .v")
        assert close([mean, perplexity], [traced["loss"], math.exp(traced["loss"])], 1e-10)
        assert abs(mean - math.fsum(page.values("#loss td.loss .v")) / T) <= 1e-12
        check_attention_table(page, traced, 0, 0)


def check_attention_table(page, traced, layer, head):
    """Rows sum to 1, nothing stands above the diagonal, and all is the package's."""
    weights = traced["layers"][layer]["weights"][head]
    T = len(weights)
    cells = page.tab.eval_on_selector_all(
        "#attention .grid tbody tr",
        "rows => rows.map(row => [...row.querySelectorAll('td')].map("
        "  cell => cell.dataset.v ? +cell.dataset.v : cell.textContent))",
    )
    assert [[c for c in row if isinstance(c, float | int)] for row in cells] == [
        pytest.approx(row, abs=1e-12, rel=0) for row in weights
    ]
    for t, row in enumerate(cells):
        assert row[t + 1 :] == [""] * (T - t - 1)
        assert abs(math.fsum(row[: t + 1]) - 1) <= 1e-12
    assert cells[0][0] == 1.0


def test_an_empty_text_has_one_position(page, run):
    page.read("")
    assert page.values("#tokens .boxes:not(.vocabulary) .v") == [run.tokenizer.bos] * 2
    assert page.count("#loss td.loss") == 1
    loss = run.model.loss([[run.tokenizer.bos] * 2]).data
    assert close(page.value("#loss td.loss .v"), loss)


def test_a_token_of_the_vocabulary_can_be_appended(page):
    page.click("#tokens .vocabulary li:nth-child(4) button")
    assert page.tab.input_value("#text") == TEXT + "d"


def test_the_page_draws_the_names_that_the_command_prints(page, files):
    for seed in (0, 1, 7, 42, 2**40):
        for temperature in (0.2, 0.5, 1.0, 2.0):
            options = ["--seed", seed, "--temperature", temperature, "-n", 10, "--json"]
            lines = command("sample", files[0], *options).splitlines()
            names = [json.loads(line)["text"] for line in lines]
            assert page.tab.evaluate(f"microgpt.sample({seed}, {temperature}, 10)") == names
    greedy = command("sample", files[0], "--temperature", 0, "-n", 1).strip()
    assert page.tab.evaluate("microgpt.sample(0, 0, 1)") == [greedy]
    some = json.loads(command("sample", files[0], "--seed", 3, "--top-k", 3, "-n", 1, "--json"))
    assert page.tab.evaluate("microgpt.sample(3, 0.5, 1, 3)") == [some["text"]]
    own = command("sample", files[0], "-n", 20, "--json").splitlines()
    assert page.tab.evaluate("microgpt.sample('', 0.5, 20)") == [json.loads(x)["text"] for x in own]


# The sections, one after another


def test_0_the_card_speaks_of_the_file_and_the_check_passes(page, files, run):
    from hashlib import sha256

    assert page.text("#header .sha") == sha256(files[0].read_bytes()).hexdigest()
    params = sum(rows * cols for rows, cols in run.model.config.shapes().values())
    assert page.values("#header .card .v")[0] == params == 4192
    assert page.value("#check .embedded .v") == params
    assert page.attributes("#header .badge", "data-ok") == ["true"]
    assert page.count("#check .checks tr.ok") >= 8
    assert page.count("#check .checks tr.wrong") == 0
    assert max(page.values("#check .checks td:nth-child(3)")) <= 1e-12
    lengths = [len(text) for text in page.texts("#check .checks tbody th")]
    assert max(lengths) >= run.model.config.block_size


def test_1_the_counts_are_those_of_the_documents(page, run):
    docs = mg.load_documents()
    assert page.values("#dataset .text > p .v")[:2] == [len(docs), len(set(docs))]
    lengths = page.values("#dataset .lengths .v")
    assert sum(lengths) == len(docs)
    assert lengths == [sum(len(d) == n for d in docs) for n in sorted(set(map(len, docs)))]
    shares = page.tab.eval_on_selector_all(
        "#dataset .grid tbody tr",
        "rows => rows.map(row => [...row.querySelectorAll('[data-v]')].map(c => +c.dataset.v))",
    )
    assert all(abs(math.fsum(row) - 1) < 1e-12 for row in shares)
    tokens = [*run.tokenizer.chars, "\n"]
    pairs = "".join(f"\n{doc}\n" for doc in docs).replace("\n\n", "\n")
    for a, b in ((4, 12), (26, 0), (16, 20)):
        followers = [y for x, y in zip(pairs, pairs[1:], strict=False) if x == tokens[a]]
        share = followers.count(tokens[b]) / len(followers)
        assert abs(shares[a][b] - share) < 1e-12
        page.click(f"#dataset .grid [data-at='{a},{b}']")
        count, total, shown, model = page.values("#dataset [data-pair] .v")
        assert [count, total] == [followers.count(tokens[b]), len(followers)]
        context = [26] if a == 26 else [26, a]
        logits = run.model.forward(context)
        assert close([shown, model], [share, mg.softmax(logits).tolist()[-1][b]])


def test_1_samples_say_whether_they_are_new(page, run):
    known = set(mg.load_documents())
    for line in page.texts("#dataset .made li"):
        name, _, mark = line.partition(" ")
        assert mark == ("in the data" if name in known else "new"), line
    page.tab.fill("#dataset [data-widget=search] input", "no such name")
    page.settle()
    assert "not among" in page.text("#dataset [data-widget=search] output")
    first = page.texts("#dataset .namelist .name")[0]
    assert first in known
    page.tab.fill("#dataset [data-widget=search] input", first)
    page.settle()
    assert page.text("#dataset [data-widget=search] output").startswith("among")


def test_2_the_vocabulary_is_the_tokenizers(page, run):
    shown = page.texts("#tokens .vocabulary b")
    assert shown == [*run.tokenizer.chars, "BOS"]
    assert page.texts("#tokens .vocabulary span:not(.hidden)") == [str(i) for i in range(27)]
    assert page.values("#tokens .boxes:not(.vocabulary) .v") == [26, 4, 12, 12, 0, 26]


def test_3_the_game_counts_right_guesses(page, run):
    probs, targets = (mg.trace(run, TEXT)[name] for name in ("probs", "targets"))
    right = sum(row.index(max(row)) == i for row, i in zip(probs, targets, strict=True))
    page.at(0)
    assert page.count("#prediction [data-widget=game] .goal") == 0
    page.tab.select_option("#prediction select", str(targets[0]))
    page.settle()
    assert page.text("#prediction [data-widget=game] .goal") == TEXT[0]
    page.at(1)
    page.tab.select_option("#prediction select", "25")
    page.settle()
    assert page.values("#prediction .score .v") == [1, 2, right, len(targets)]
    page.click("#prediction .stepper button >> nth=1")
    assert page.count("#prediction [data-widget=game] .window .token") == 4  # three, and "?"


def test_4_probabilities_are_the_packages_at_every_position(page, run):
    traced = mg.trace(run, TEXT)
    page.tab.check("#softmax .controls input >> nth=1")
    for t, (logits, probs) in enumerate(zip(traced["logits"], traced["probs"], strict=True)):
        page.at(t)
        ids = list(map(int, page.attributes("#softmax .sliders tr[data-token]", "data-token")))
        assert sorted(ids) == list(range(27))
        assert close(page.values("#softmax .logit .v"), [logits[i] for i in ids])
        assert close(page.values("#softmax .probability .v"), [probs[i] for i in ids])
        assert abs(page.value("#softmax .total .v") - 1) <= 1e-12
        logit, largest, total, p = page.values("#softmax .formula .v")
        assert close(math.exp(logit - largest) / total, p) and close(p, probs[traced["targets"][t]])
        p, loss = page.values("#loss .example .v")
        assert close([p, loss], [probs[traced["targets"][t]], traced["losses"][t]])
    page.tab.uncheck("#softmax .controls input >> nth=1")


def probabilities(page):
    ids = page.attributes("#softmax .sliders tr[data-token]", "data-token")
    return dict(zip(ids, page.values("#softmax .probability .v"), strict=True))


def test_4_logits_that_are_moved(page):
    page.tab.check("#softmax .controls input >> nth=1")
    before = probabilities(page)
    page.click("#softmax button:text('Add 1 to all')")
    after = probabilities(page)
    assert all(abs(after[i] - p) <= 1e-12 for i, p in before.items())
    assert page.count("#softmax [data-origin=you]") == 1
    page.click("#softmax button:text('Reset')")
    moved = list(before)[3]
    logit = page.values("#softmax .logit .v")[3]
    page.slide(f"#softmax tr[data-token='{moved}'] input", logit + 2)
    after = probabilities(page)
    assert after[moved] > before[moved]
    assert all(after[i] < p for i, p in before.items() if i != moved)
    assert abs(sum(after.values()) - 1) <= 1e-12
    page.click("#softmax button:text('Reset')")
    assert probabilities(page) == before
    page.tab.uncheck("#softmax .controls input >> nth=1")


def test_4_the_exponential_overflows_where_python_does(page):
    page.click("#softmax button:text('Push the largest')")
    assert page.count("#softmax .alarm") == 0
    assert max(page.values("#softmax .probability .v")) == 1.0
    page.tab.uncheck("#softmax .controls input >> nth=0")
    page.settle()
    with pytest.raises(OverflowError) as error:
        math.exp(710)
    assert f"OverflowError: {error.value}" in page.text("#softmax .alarm")
    math.exp(709.78)
    page.click("#softmax button:text('Reset')")
    assert page.count("#softmax .alarm") == 0


def test_4_the_steps_of_softmax_show_the_line_and_its_values(page, run):
    page.at(2)
    logits, probs = (mg.trace(run, TEXT)[name][2] for name in ("logits", "probs"))
    likely = sorted(range(27), key=lambda i: -logits[i])[:8]
    largest = max(logits)
    exps = [math.exp(x - largest) for x in logits]
    expected = [
        [largest],
        [logits[i] - largest for i in likely],
        [exps[i] for i in likely],
        [math.fsum(exps)],
        [probs[i] for i in likely],
    ]
    lines = ["largest =", "shifted =", "exps =", "total =", "return"]
    for step, (numbers, line) in enumerate(zip(expected, lines, strict=True)):
        page.slide("#softmax .stepper input", step)
        assert close(page.values("#softmax .code-values .v"), numbers)
        page.tab.evaluate(PAINTED)  # a mark follows what is painted
        assert page.text("#softmax .here").startswith(line)


def test_5_the_curve_is_minus_log_p(page, run):
    for p, loss in ((0.9, 0.105), (0.01, 4.605), (1, 0)):
        page.slide("#loss .slider input", p)
        x, y = page.values("#loss .yours .v")
        assert x == p and round(y, 3) == loss
    traced = mg.trace(run, TEXT)
    top = max(5, *traced["losses"]) * 1.08
    places = page.attributes("#loss .point", "transform")
    y_of = sorted(260 - loss / top * 238 for loss in traced["losses"])
    ys = sorted(float(place.rstrip(")").split(" ")[1]) for place in places)
    assert close(ys, y_of, 0.1)
    page.at(4)
    assert page.text("#loss .point.here").startswith("4:")


def said_on_the_way(page, widget):
    """Go through the steps of a graph to the last; return what each says."""
    slider = f"[data-widget={widget}] .stepper input"
    says = []
    for step in range(int(page.attributes(slider, "max")[0]) + 1):
        page.slide(slider, step)
        says.append(page.text(f"[data-widget={widget}] .says"))
    return says


def node_numbers(page, widget):
    """The data and the gradients of the nodes of a graph, by name."""
    nodes = page.tab.eval_on_selector_all(
        f"[data-widget={widget}] .graph .node",
        "all => all.map(node => [node.querySelector('.name').textContent,"
        " ...[...node.querySelectorAll('[data-v]')].map(e => +e.dataset.v)])",
    )
    return {name.split(" ")[0]: numbers for name, *numbers in nodes}


def test_6_the_gradient_of_a_comes_along_two_paths(page):
    a, b = mg.Value(2), mg.Value(3)
    c = a * b
    loss = c + a
    loss.backward()
    says = said_on_the_way(page, "expression")
    numbers = node_numbers(page, "expression")
    assert numbers == {
        "a": [a.data, a.grad],
        "b": [b.data, b.grad],
        "c": [c.data, c.grad],
        "L": [loss.data, loss.grad],
    } == {"a": [2, 4], "b": [3, 2], "c": [6, 1], "L": [8, 1]}  # fmt: skip
    to_a = [said for said in says if said.startswith("grad of a ")]
    assert "1.000 × 1.000 = 1.000; grad of a is now 1.000" in to_a[0]
    assert "3.000 × 1.000 = 3.000; grad of a is now 4.000" in to_a[1]
    assert len(to_a) == 2


def test_6_an_expression_of_the_readers_own(page):
    field = "#autograd [data-widget=expression] input.wide"
    expressions = ["exp(a) / b - relu(-a) ** 2", "log(b * b) + a * (b - 0.5)", "a ** -2 * 3 + b"]
    for text in expressions:
        a, b = mg.Value(1.5), mg.Value(3)
        names = {"a": a, "b": b, "exp": lambda x: x.exp(), "log": lambda x: x.log()}
        loss = eval(text, names | {"relu": lambda x: x.relu()})
        loss.backward()
        page.tab.fill(field, text)
        page.slide("#autograd [data-widget=expression] input[type=number]", 1.5)
        page.slide("#autograd [data-widget=expression] .stepper input", 99)
        numbers = node_numbers(page, "expression")
        assert close(numbers["a"], [a.data, a.grad])
        assert close(numbers["b"], [b.data, b.grad])
    page.tab.fill(field, "a * (b +")
    page.settle()
    assert "cannot be read" in page.text("#autograd .alarm")
    page.tab.fill(field, "log(0 * a)")
    page.settle()
    assert "Python refuses" in page.text("#autograd .alarm")
    page.tab.fill(field, "a * b + a")
    page.slide("#autograd [data-widget=expression] input[type=number]", 2)


def test_6_slices_of_the_loss_have_the_packages_gradients(page, run):
    traced = mg.trace(run, TEXT)
    n = len(traced["losses"])
    page.click("#autograd [data-widget=slices] .choice button >> nth=2")
    numbers = node_numbers(page, "slices")
    assert close(numbers["mean"], [traced["loss"], 1.0])
    for t, loss in enumerate(traced["losses"]):
        assert close(numbers[f"POS{t}"], [loss, 1 / n])
    page.click("#autograd [data-widget=slices] .choice button >> nth=1")
    worst = traced["losses"].index(max(traced["losses"]))
    target, probs = traced["targets"][worst], traced["probs"][worst]
    nodes = page.tab.eval_on_selector_all(
        "[data-widget=slices] .graph .node",
        "all => all.map(node => [node.querySelector('.name').textContent,"
        " ...[...node.querySelectorAll('[data-v]')].map(e => +e.dataset.v)])",
    )
    seen = 0
    for name, value, grad in nodes:
        if name.startswith("logit ") and len(name.split(" ")[1]) == 1:
            i = run.tokenizer.encode(name.split(" ")[1])[1]
            assert close(value, traced["logits"][worst][i])
            assert close(grad, (probs[i] - (i == target)) / n)
            seen += 1
    assert seen >= 3
    page.click("#autograd [data-widget=slices] .choice button >> nth=0")
    numbers = node_numbers(page, "slices")
    page.at(2)
    row = traced["layers"][0]["scores"][0][2]
    assert numbers["score"][0] == pytest.approx(row[max(range(3), key=row.__getitem__)], abs=1e-12)


def test_6_nudged_parameters_have_the_packages_gradients(page, run):
    run.model.loss([run.tokenizer.encode(TEXT)]).backward()
    grads = {name: m.grad.tolist() for name, m in run.model.named_parameters().items()}
    for matrix in run.model.parameters():
        for row in matrix:
            for value in row:
                value.grad = 0.0
    assert page.values("#autograd .text > p .v")[-2] == sum(
        g != 0 for rows in grads.values() for row in rows for g in row
    )
    rng = Random(5)
    widget = "#autograd [data-widget=nudge]"
    for _ in range(50):
        name = rng.choice(list(grads))
        row = rng.randrange(len(grads[name]))
        column = rng.randrange(len(grads[name][0]))
        page.tab.select_option(f"{widget} select", name)
        page.slide(f"{widget} input[type=number] >> nth=0", row)
        page.slide(f"{widget} input[type=number] >> nth=1", column)
        grad = grads[name][row][column]
        assert abs(page.value(".package-grad .v") - grad) <= 1e-12
        assert abs(page.value(".page-grad .v") - grad) <= 1e-6


def test_7_the_sum_is_a_sum_and_normalized(page, run):
    traced = mg.trace(run, TEXT)
    seen = {}
    for t in (2, 3):
        page.at(t)
        rows = [page.values(f"#embedding [data-row='{i}'] [data-v]") for i in range(4)]
        names = ("token", "position", "embedding", "norm")
        assert all(close(row, traced[name][t]) for row, name in zip(rows, names, strict=True))
        assert close([a + b for a, b in zip(rows[0], rows[1], strict=True)], rows[2])
        mean_square = math.fsum(x * x for x in rows[2]) / 16
        [rms, *_] = page.values("#embedding .says .v")
        assert abs(rms - math.sqrt(mean_square / (mean_square + 1e-5))) <= 1e-12
        seen[t] = rows
    assert seen[2][0] == seen[3][0]  # the two m of emma
    assert seen[2][1] != seen[3][1] and seen[2][2] != seen[3][2]
    page.click("#embedding button:text('backward')")
    assert page.tab.input_value("#text") == TEXT[::-1]


def test_7_cosines_and_vowels(page, run):
    wte = run.model.state_dict["wte"].tolist()

    def cosine(a, b):
        dot = math.fsum(x * y for x, y in zip(wte[a], wte[b], strict=True))
        return dot / math.hypot(*wte[a]) / math.hypot(*wte[b])

    for a, b in ((0, 4), (4, 20), (3, 26)):
        page.click(f"#embedding .grid [data-at='{a},{b}']")
        assert abs(page.values("#embedding .wide .says .v")[0] - cosine(a, b)) <= 1e-12
    vowels = [run.tokenizer.chars.index(c) for c in "aeiou"]
    pairs = [cosine(a, b) for a in vowels for b in vowels if a < b]
    last = page.values("#embedding .vowels tr:last-child .v")
    assert last[0] == 1000 and close(last[1], math.fsum(pairs) / len(pairs))


def test_8_each_weight_follows_from_the_shown_query_and_key(page, run):
    traced = mg.trace(run, TEXT)
    layer = traced["layers"][0]
    for head in range(4):
        page.click(f"#attention [data-widget=heads] .choice button >> nth={head}")
        check_attention_table(page, traced, 0, head)
        for query, key in ((4, 1), (2, 2)):
            page.click(f"#attention .grid [data-at='{query},{key}']")
            q, k, products = (
                page.values(f"#attention .detail [data-row='{i}'] [data-v]") for i in range(3)
            )
            part = slice(4 * head, 4 * head + 4)
            assert close(q, layer["q"][query][part]) and close(k, layer["k"][key][part])
            assert close(products, [a * b for a, b in zip(q, k, strict=True)])
            score = math.fsum(products) / 2
            assert close(page.value(".the-score .v"), score)
            assert close(page.values(".detail .row td:nth-child(2) .v")[key], score)
            weights = page.values(".detail .row .weight .v")
            assert close(weights, layer["weights"][head][query])
            assert page.value(".the-weight .v") == weights[key]
            values = page.tab.eval_on_selector_all(
                ".detail .row tr", "rows => rows.slice(1).map(row => [...row.querySelectorAll("
                "'.vector [data-v]')].map(e => +e.dataset.v))"
            )  # fmt: skip
            *shown, total = values
            mixed = [
                math.fsum(w * row[j] for w, row in zip(weights, shown, strict=True))
                for j in range(4)
            ]
            assert close(total, mixed) and close(total, layer["heads"][query][part])
    page.click("#attention [data-widget=heads] .choice button >> nth=4")
    assert page.count("#attention .grid") == 4
    page.click("#attention [data-widget=heads] .choice button >> nth=0")


def without_head(run, head):
    """The loss of the text when the columns of a head in attn_wo are zero."""
    other = mg.GPT(run.model.config, Random(0))
    other.load_state_dict(run.model.state_dict)
    wo = other.state_dict["layer0.attn_wo"]
    wo.load([[0.0 if j // 4 == head else x for j, x in enumerate(row)] for row in wo.tolist()])
    return other.loss([run.tokenizer.encode(TEXT)]).data


def test_8_heads_that_are_switched_off(page, run):
    assert page.value("#attention .switched-loss .v") == page.values("#loss .mean .v")[0]
    for head in range(4):
        box = f"#attention [data-widget=head-switches] input >> nth={head}"
        page.click(box)
        assert close(page.value("#attention .switched-loss .v"), without_head(run, head))
        page.click(box)
    assert close(page.value("#attention .switched-loss .v"), mg.trace(run, TEXT)["loss"])


STAGES = "attn_norm q k v heads proj attn_out mlp_norm fc1 relu fc2 mlp_out".split()


def test_9_every_stage_is_the_packages_and_add_adds(page, run):
    traced = mg.trace(run, TEXT)
    layer = traced["layers"][0]
    names = page.attributes("#pipeline .stages [data-stage]", "data-stage")
    assert names == ["token", "embedding", "norm", *STAGES, "logits"]
    for t in (0, 4):
        page.at(t)
        for i, name in enumerate(names):
            page.slide("#pipeline .stepper input", i)
            expected = (layer[name] if name in layer else traced[name])[t]
            row = page.values("#pipeline .result-row [data-v]")
            assert close(row, expected)
            before = [page.values(f"#pipeline [data-from='{j}'] [data-v]") for j in (0, 1)]
            if name in ("embedding", "attn_out", "mlp_out"):
                assert close([a + b for a, b in zip(*before, strict=True)], row)
            if name == "relu":
                assert row == [max(0.0, x) for x in before[0]]
            assert page.value("#pipeline .zeros .v") == row.count(0.0)
            assert page.count("#pipeline .source .here") == 1
    assert page.values("#pipeline .matrices tbody .v") == [
        rows * cols for rows, cols in run.model.config.shapes().values()
    ]
    assert page.values("#pipeline .matrices tfoot .v") == [4192]


def test_9_a_part_that_is_left_out_changes_the_loss(page, run):
    loss = mg.trace(run, TEXT)["loss"]
    for i in range(5):
        box = f"#pipeline [data-widget=stage-switches] input >> nth={i}"
        page.click(box)
        assert abs(page.value("#pipeline .switched-loss .v") - loss) > 1e-6
        page.click(box)
    assert close(page.value("#pipeline .switched-loss .v"), loss)


def test_10_the_curve_has_a_point_for_each_step(page, run):
    raw = page.attributes("#training .raw", "d")[0]
    assert raw.count("L") + 1 == len(run.losses) == 1000
    step, loss, mean, lr = page.values("#training .curve .v")
    recent = math.fsum(run.losses[-100:]) / 100
    assert step == 1000 and close([loss, mean], [run.losses[-1], recent])
    assert close(lr, run.config.lr * (1 - 999 / 1000))


def recorded(run, i):
    """The model of a recorded step."""
    model = mg.GPT(run.model.config, Random(0))
    flat = iter(run.record.snapshots[i].tolist())
    for matrix in model.parameters():
        rows, cols = matrix.shape
        matrix.load([[next(flat) for _ in range(cols)] for _ in range(rows)])
    return model


def test_10_snapshots_show_the_model_of_their_step(page, run):
    shown = [int(text.replace(",", "")) for text in page.texts("#training .snapshots th button")]
    steps = list(run.record.steps)
    assert shown[: len(steps)] == steps and shown[0] == 0 and shown[-1] == 1000
    ids, slider = run.tokenizer.encode(TEXT), "#training [data-widget=loss-curve] input"
    losses = page.values("#training .snapshots td:nth-child(3) .v")
    samples = page.texts("#training .snapshots td:nth-child(2)")
    for i in (0, len(steps) - 1):
        model = recorded(run, i)
        loss = model.loss([ids]).data
        page.slide(slider, i)
        assert close([losses[i], page.values("#loss .mean .v")[0]], [loss, loss])
        names = [
            run.tokenizer.decode(mg.sample(model, run.tokenizer.bos, rng))
            for rng in [Random(7)]
            for _ in range(5)
        ]
        assert samples[i] == "".join(names)
    first = mg.prepare(mg.load_documents()).model.loss([ids]).data  # before any step
    assert close(losses[0], first, 1e-6)
    page.slide(slider, len(shown) - 1)
    assert page.count("#bar .follow") == 0
    assert close(losses[-1], mg.trace(run, TEXT)["loss"], 1e-6)
    assert close(page.values("#loss .mean .v")[0], mg.trace(run, TEXT)["loss"])


def test_10_adam_moves_every_parameter_as_the_package_does(page, run):
    assert page.value("#training .adam-difference") <= 1e-12
    record, model = run.record, recorded(run, -1)
    loss = model.loss(record.documents)
    loss.backward()
    grad = model.state_dict["wte"].grad.tolist()
    row, column = max(
        ((i, j) for i in range(27) for j in range(16)), key=lambda ij: abs(grad[ij[0]][ij[1]])
    )
    line = "#training .adam [data-line='adam.{}'] .v"
    assert close(page.value(line.format("g")), grad[row][column])
    assert close(page.value(line.format("old")), model.state_dict["wte"][row][column].data)
    page.slide("#training [data-widget=iteration] .stepper input", 3)
    assert close(page.values("#training .losses tfoot .v"), [loss.data])
    assert close(math.fsum(page.values("#training .losses tbody .v")), 
                 loss.data * (len(record.documents[0]) - 1))  # fmt: skip
    change = page.value(line.format("change"))
    assert close(page.value(line.format("new")) - page.value(line.format("old")), change)
    page.click("#training button:text('× 10')")
    assert close(page.value(line.format("change")), 10 * change, 1e-9)
    page.click("#training button:text-is('learning rate × 1')")
    page.slide("#training [data-widget=iteration] .stepper input", 0)
    said = page.text("#training [data-widget=iteration] .says")
    assert said.startswith(f"Step {record.steps[-1] + 1:,}: ")


def shown_distribution(page):
    ids = page.attributes("#sampling [data-widget=distribution] tr[data-token]", "data-token")
    values = page.values("#sampling [data-widget=distribution] td:nth-child(3) .v")
    return {int(i): p for i, p in zip(ids, values, strict=True)}


def test_11_temperature_greedy_and_top_k(page, run):
    traced = mg.trace(run, TEXT)
    box = "#sampling [data-widget=distribution]"
    page.tab.check(f"{box} .controls >> nth=1 >> input")
    slider = f"{box} input[type=range]"
    page.at(2)
    largest = []
    for temperature in (3, 2, 1, 0.5, 0.2, 0.05):
        page.slide(slider, temperature)
        expected = mg.softmax(run.model.forward(traced["ids"][:-1]), temperature).tolist()[2]
        shown = shown_distribution(page)
        assert close([shown[i] for i in range(27)], expected)
        largest.append(page.value("#sampling .largest .v"))
    assert largest == sorted(largest)
    page.slide(slider, 1)
    assert close([shown_distribution(page)[i] for i in range(27)], traced["probs"][2])
    page.slide(f"{box} input[type=number]", 5)
    kept = sorted(traced["probs"][2])[-5:]
    shown = sorted(p for p in shown_distribution(page).values() if p)
    assert close(shown, [p / math.fsum(kept) for p in kept]) and abs(math.fsum(shown) - 1) <= 1e-12
    page.slide(f"{box} input[type=number]", "")
    page.click(f"{box} .switch >> nth=0")
    shown = shown_distribution(page)
    favourite = max(traced["probs"][2])
    assert shown == {i: float(p == favourite) for i, p in enumerate(traced["probs"][2])}
    page.click(f"{box} .switch >> nth=0")
    page.tab.uncheck(f"{box} .controls >> nth=1 >> input")


def test_11_samples_are_replayed_and_drawn(page, files, run):
    listed = [json.loads(x)["text"] for x in command("sample", files[0], "--json").splitlines()]
    buttons = "#sampling .names:last-of-type li button"
    assert page.texts(buttons) == [text or "∅" for text in listed]
    page.click(f"{buttons} >> nth=1")
    name, text = listed[1], ""
    steps = int(page.attributes("#sampling .stepper input", "max")[0]) + 1
    for step in range(steps):
        page.slide("#sampling .stepper input", step)
        token = page.text("#sampling .drawn .token")
        text += "" if token == "BOS" else token
        assert page.count("#sampling .cumulative .here") == 1
        here = page.attributes("#sampling .cumulative .here", "data-token")[0]
        assert int(here) == run.tokenizer.encode(text)[-2 if token != "BOS" else -1]
    assert text == name
    page.tab.fill("#sampling input[inputmode=numeric]", "7")
    page.settle()
    drawn = command("sample", files[0], "--seed", 7, "--json").splitlines()
    assert page.texts("#sampling .generated li") == [json.loads(x)["text"] for x in drawn]
    assert max(map(len, page.texts("#sampling .generated li"))) <= run.model.config.block_size
    page.click(f"{buttons} >> nth=0")


def test_12_parameters_of_other_sizes(page):
    rng = Random(3)
    sliders = "#efficiency [data-widget=sizes] input >> nth={}"
    names = ("n_embd", "n_layer", "n_head", "block_size")
    tried = 0
    while tried < 20:
        sizes = {}
        for i, name in enumerate(names):
            most = min(int(page.attributes(sliders.format(i), "max")[0]), 8)
            page.slide(sliders.format(i), rng.randint(0, most))
            outputs = page.texts("#efficiency [data-widget=sizes] output")
            sizes[name] = int(outputs[i].replace(",", ""))
        if sizes["n_embd"] % sizes["n_head"]:
            assert "multiple" in page.text("#efficiency .alarm")
            continue
        shapes = mg.Config(vocab_size=27, **sizes).shapes()
        assert page.value("#efficiency .params .v") == sum(a * b for a, b in shapes.values())
        tried += 1


def test_13_the_data_can_be_downloaded(page, files):
    jsonschema = pytest.importorskip("jsonschema")
    with page.tab.expect_download() as download:
        page.tab.click("#check button:text('JSON')")
    data = json.loads(Path(download.value.path()).read_text("utf-8"))
    schema = json.loads((resources.files("microgpt.explainer") / "schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(data)
    assert data["vocab"]["chars"] == list("abcdefghijklmnopqrstuvwxyz")
    tables = page.texts("#check select option")
    [chosen] = [i for i, name in enumerate(tables) if "Measuring" in name and "cost" in name]
    page.tab.select_option("#check select", str(chosen))
    with page.tab.expect_download() as download:
        page.tab.click("#check button:text('CSV')")
    lines = Path(download.value.path()).read_text("utf-8").splitlines()
    assert [float(line.split(",")[4]) for line in lines[1:]] == page.values("#loss td.loss .v")


def test_questions_have_answers(page):
    sections = page.attributes("main section", "id")
    for name in sections:
        assert page.count(f"#{name} .question") == 1
    assert len(sections) == 14
    assert all(text for text in page.texts(".question p"))


# State


def test_the_address_keeps_what_is_chosen(browser, files, page):
    page.read("olivia")
    page.at(3)
    page.click("#attention [data-widget=heads] .choice button >> nth=2")
    page.slide("#training [data-widget=loss-curve] input", 4)
    page.slide("#sampling input[type=range]", 1.5)
    page.tab.wait_for_timeout(500)  # the address follows when the reader pauses
    hash = page.tab.evaluate("location.hash")
    with opened(browser, f"{files[1]}{hash}") as other:
        other.settle()
        assert other.tab.input_value("#text") == "olivia"
        assert other.text("#bar [aria-checked=true] small") == "3"
        assert other.text("#attention [aria-checked=true]:not(#bar *)").endswith("2")
        assert "step" in other.text("#bar .follow")
        assert other.values("#loss .mean .v") == page.values("#loss .mean .v")
    nonsense = "loss;text=%E0%A4%A;position=99;head=x;step=-1;temperature=9"
    page.tab.evaluate("hash => { location.hash = hash }", nonsense)
    page.settle()
    assert page.complaints == []


# Damage


def damaged(files, folder, name, old, new):
    html = files[1].read_text("utf-8")
    assert html.count(old) >= 1
    path = folder / f"{name}.html"
    path.write_text(html.replace(old, new, 1), "utf-8")
    return path


def changed(files, folder, part, index, by):
    """Write a page in which one number of the first tensor of a part is another."""
    html = files[1].read_text("utf-8")
    start = html.index('"data":"', html.index(f'"{part}":[')) + len('"data":"')
    end = html.index('"', start)
    numbers = array("d", b64decode(html[start:end]))
    numbers[index] += by
    path = folder / f"{part}-{index}.html"
    path.write_text(html[:start] + b64encode(numbers.tobytes()).decode() + html[end:], "utf-8")
    return path


@pytest.mark.parametrize("token", [2, 25, 26])
def test_a_changed_weight_fails_the_check(browser, files, folder, token):
    with opened(browser, changed(files, folder, "weights", 16 * token + 3, 1e-6)) as page:
        assert page.attributes("#header .badge", "data-ok") == ["false"]
        assert "failed" in page.text("#header .badge")
        assert page.count("#check .checks tr.wrong") > 0


def test_a_changed_expectation_fails_the_check(browser, files, folder):
    with opened(browser, changed(files, folder, "checks", 5, 1e-9)) as page:
        assert page.attributes("#header .badge", "data-ok") == ["false"]
        assert page.count("#check .checks tr.wrong") == 1


def test_truncated_data_leave_the_still_page_and_a_message(browser, files, folder):
    path = damaged(files, folder, "truncated", '"graph_size":', "")
    with opened(browser, path) as page:
        assert "damaged" in page.text("#problem:not([hidden])")
        assert page.count("#attention .grid") == 4  # the still form
        assert page.text("#header .badge").startswith("not checked")


# Readers


def test_all_widgets_are_reached_by_keyboard(browser, files):
    with opened(browser, files[1]) as page:
        page.settle()
        sections, kinds = set(), set()
        describe = """() => { const e = document.activeElement;
            return [(e.closest('section') || e.closest('nav') || {}).id || e.id || e.tagName,
                    e.getAttribute('role') || e.type || e.tagName,
                    getComputedStyle(e).outlineStyle !== 'none'] }"""
        for _ in range(400):
            page.tab.keyboard.press("Tab")
            where, kind, outlined = page.tab.evaluate(describe)
            if where == "BODY":
                break
            assert outlined, (where, kind)
            sections.add(where)
            kinds.add(kind)
        else:
            pytest.fail("the tour does not end")
        assert set(page.attributes("main section", "id")) <= sections
        assert {"radio", "gridcell", "range", "checkbox", "button", "number"} <= kinds
        # arrows move within groups, grids and steppers
        page.tab.focus("#bar .tokens [aria-checked=true]")
        page.press("Home", "ArrowRight")
        assert page.text("#bar [aria-checked=true] small") == "1"
        page.press("End")
        assert page.text("#bar [aria-checked=true] small") == "4"
        page.tab.focus("#attention .grid [tabindex='0']")
        page.press("Home", "ArrowRight", "ArrowRight")
        assert page.attributes("#attention .detail", "data-cell") == ["4,2"]
        page.press("ArrowUp", "ArrowUp", "ArrowUp")
        assert page.attributes("#attention .detail", "data-cell") == ["1,1"]
        page.tab.focus("#pipeline .stepper input")
        page.press("Home", "ArrowRight")
        assert page.attributes("#pipeline .stage", "data-stage") == ["embedding"]
        assert page.complaints == []


def test_no_serious_finding_of_axe(browser, files):
    axe = ROOT / "explain-page/node_modules/axe-core/axe.min.js"
    if not axe.exists():
        (missing if DEMANDED and shutil.which("npm") else pytest.skip)(
            "axe-core is not there: npm ci in explain-page"
        )
    most = "{exclude: [['.grid.small tbody tr:nth-child(n+3)'], ['.source pre:nth-of-type(n+2)']]}"
    for scheme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        rules |= {"resultTypes": ["violations"]}
        with opened(browser, files[1], bypass_csp=True, color_scheme=scheme) as page:
            page.tab.add_script_tag(path=axe)
            found = page.tab.evaluate("rules => axe.run(MOST, rules)".replace("MOST", most), rules)
            found = found["violations"]
            serious = [
                (v["id"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"][:200])
                for v in found
                if v["impact"] in ("serious", "critical")
            ]
            assert serious == []


def luminance(colour):
    """Return the relative luminance of #rrggbb (WCAG 2)."""
    linear = [
        x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4
        for x in (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_coloured_cell_can_be_read():
    """The colours of cells, which axe takes long to look at one by one."""
    style = (resources.files("microgpt.explainer") / "page.css").read_text("utf-8")
    cells = re.findall(r"\.[as]\d+\{background:(#\w{6});color:(#\w{3})\}", style)
    assert len(cells) == 2 * (16 + 15)
    for background, ink in cells:
        ink = luminance("#" + "".join(2 * c for c in ink[1:]))
        low, high = sorted([luminance(background), ink])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_without_javascript_the_numbers_are_the_same(browser, files, run):
    with opened(browser, files[1], java_script_enabled=False) as page:
        page = _Still(page)
        traced = mg.trace(run, TEXT)
        assert close(page.values("#loss td.loss .v"), traced["losses"])
        assert page.values("#tokens .boxes:not(.vocabulary) .v") == traced["ids"]
        probs = [row[i] for row, i in zip(traced["probs"], traced["targets"], strict=True)]
        assert close(page.values("#prediction .pairs td:nth-child(3) .v"), probs)
        weights = traced["layers"][0]["weights"]
        assert close(
            page.values("#attention .grid [data-v]"), [w for h in weights for row in h for w in row]
        )
        likely = sorted(range(27), key=lambda i: -traced["logits"][2][i])
        assert close(page.values("#softmax .logit .v"), [traced["logits"][2][i] for i in likely])
        stages = page.values("#pipeline .vector [data-v]")
        layer = traced["layers"][0]
        expected = [*traced["token"][2], *traced["embedding"][2], *traced["norm"][2]]
        for name in STAGES:
            expected += layer[name][2]
        assert close(stages, expected + traced["logits"][2])
        graph = page.values("#autograd [data-widget=expression] [data-v]")
        assert graph == [2, 4, 3, 2, 6, 1, 8, 1]
        assert page.visible("#header") and not page.visible("#bar")
        assert not page.visible("#softmax .controls")
        assert page.texts("#sampling .drawn") == []
        check_numbers(page)


class _Still:
    """Read a page that runs no JavaScript: by what the browser's own protocol says of it."""

    def __init__(self, page):
        self.tab = self
        self._tab = page.page.tab

    def _all(self, selector):
        return self._tab.locator(selector).all()

    def values(self, selector):
        return [float(v) for v in self._tab.locator(selector).evaluate_all(
            "all => all.map(e => e.dataset.v)")]  # fmt: skip

    def texts(self, selector):
        return self._tab.locator(selector).all_text_contents()

    def visible(self, selector):
        return any(place.is_visible() for place in self._all(selector))

    def eval_on_selector_all(self, selector, script):
        return self._tab.locator(selector).evaluate_all(script)


@pytest.mark.parametrize("width", [320, 1000])
def test_narrow_windows_do_not_scroll_sideways(browser, files, width):
    with opened(browser, files[1], viewport={"width": width, "height": 700}) as page:
        page.settle()
        assert page.tab.evaluate("document.documentElement.scrollWidth") <= width


def test_print_reduced_motion_and_forced_colours(browser, files):
    settings = {"reduced_motion": "reduce", "forced_colors": "active"}
    with opened(browser, files[1], **settings) as page:
        page.settle()
        assert page.complaints == []
        moving = """() => [...document.querySelectorAll('.bar, .vector > span')].slice(0, 200)
            .filter(e => getComputedStyle(e, '::before').transitionDuration !== '0s').length"""
        assert page.tab.evaluate(moving) == 0
        assert len(page.tab.pdf()) > 50_000
        page.tab.emulate_media(media="print")
        page.tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.count("details:not([open])") == 0
        assert not page.tab.locator("#bar").is_visible()


# Other models


def explained(folder, name, *training, texts=(), options=()):
    model, page = folder / f"{name}.safetensors", folder / f"{name}.html"
    command("train", "--out", model, "--samples", 0, *training)
    given = [x for text in texts for x in ("--text", text)]
    command("explain", model, "--out", page, *given, *options)
    return model, page


def check_page(browser, path, run, typed):
    """Open a page; its check passes, and a typed text has the package's logits and losses."""
    with opened(browser, path) as page:
        page.settle()
        assert page.complaints == [] and page.count("#problem:not([hidden])") == 0
        assert page.attributes("#header .badge", "data-ok") == ["true"]
        traced = mg.trace(run, typed)
        page.read(typed)
        assert close(page.tab.evaluate("text => microgpt.logits(text)", typed), traced["logits"])
        assert close(page.values("#loss td.loss .v"), traced["losses"])
        for layer in range(run.model.config.n_layer):
            if run.model.config.n_layer > 1:
                page.click(f"#attention [aria-label=Layer] button >> nth={layer}")
            check_attention_table(page, traced, layer, 0)
        assert page.count("#header .question") == 1
        return page.tab.content()


def test_a_model_of_two_layers(browser, folder):
    training = ["--steps", 30, "--n-layer", 2, "--n-head", 1, "--block-size", 8, "--record"]
    model, path = explained(folder, "deep", *training, texts=["emma"])
    run = mg.load(model, mg.load_documents())
    check_page(browser, path, run, "isabella")


GREEK = ["Αθήνα", "Πάτρα", "Λάρισα", "Βόλος", "Χανιά", "Νέα Σμύρνη", "Ηράκλειο"]


def test_a_model_of_greek_city_names(browser, folder):
    data = folder / "cities.txt"
    data.write_text("\n".join(GREEK), "utf-8")
    model, path = explained(folder, "greek", "--data", data, "--steps", 20, texts=["Βόλος"])
    run = mg.load(model, GREEK)
    content = check_page(browser, path, run, "Πάτρα")
    assert "␣" in content  # the space of Νέα Σμύρνη can be seen


def test_a_model_of_a_text_stream(browser, folder):
    data = folder / "text.txt"
    data.write_text("To be, or not to be: that is the question.\n" * 20)
    sizes = ["--n-embd", 8, "--n-head", 2, "--block-size", 64]
    training = ["--data", data, "--unit", "stream", "--steps", 20, *sizes]
    model, path = explained(folder, "stream", *training, texts=["To be, or not " * 6])
    check_page(browser, path, mg.load(model, mg.load_documents(data, "stream")), "that is")
    with opened(browser, path) as page:  # of a long text the table shows a part
        page.at(50)
        assert page.count("#attention .grid tbody tr") == 32
        assert page.attributes("#attention .detail", "data-cell")[0].startswith("50,")
        assert page.complaints == []


def test_lines_of_a_data_set_cannot_become_script(browser, folder):
    docs = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(2)>", "&amp;\u2028'\""]
    model, path = folder / "hostile.safetensors", folder / "hostile.html"
    run = mg.train(docs, steps=5, block_size=8)
    mg.save(run, model)
    mg.explain(run, docs[0], path=model).save(path)
    content = check_page(browser, path, run, "</script>"[:8])
    assert "<img src=x" not in content


def test_a_page_of_the_pure_core_without_losses(browser, folder):
    import subprocess
    import sys

    model, path = folder / "pure.safetensors", folder / "pure.html"
    environment = os.environ | {"MICROGPT_BACKEND": "python"}
    sizes = ["--n-embd", "4", "--n-head", "2", "--steps", "0"]
    for args in (
        ["train", "--out", model, *sizes, "--samples", "0"],
        ["explain", model, "--text", "emma", "--out", path],
    ):
        subprocess.run(
            [sys.executable, "-m", "microgpt", *map(str, args)],
            env=environment, check=True, capture_output=True,
        )  # fmt: skip
    run = mg.load(model, mg.load_documents())
    content = check_page(browser, path, run, "olivia")
    assert "python core" in content and "--record" in content


def test_a_model_without_its_documents(browser, folder):
    data = folder / "gone.txt"
    data.write_text("anna\nemma\nhannah\n")
    model = folder / "gone.safetensors"
    command("train", "--data", data, "--out", model, "--steps", 10, "--samples", 0)
    data.unlink()
    path = folder / "gone.html"
    command("explain", model, "--text", "anna", "--out", path)
    content = check_page(browser, path, mg.load(model), "hanna")
    assert "--data FILE" in content


def test_a_model_too_large_to_compute_is_shown_as_it_is(browser, folder, run, monkeypatch):
    for name in ("MOST_WEIGHTS", "MOST_GRADIENTS", "MOST_TRACED"):
        monkeypatch.setattr(contents, name, 10)
    path = folder / "large.html"
    mg.explain(run, TEXT).save(path)
    with opened(browser, path) as page:
        page.settle()
        assert page.complaints == [] and page.count("#problem:not([hidden])") == 0
        assert page.count("#text") == 0 and page.count("main section") == 14
        assert close(page.values("#loss td.loss .v"), mg.trace(run, TEXT)["losses"])


def test_a_model_too_large_for_gradients_still_computes(browser, folder, run, monkeypatch):
    monkeypatch.setattr(contents, "MOST_GRADIENTS", 10)
    path = folder / "larger.html"
    mg.explain(run, TEXT).save(path)
    check_page(browser, path, run, OTHER)


# The original's names


def test_the_originals_names_give_its_numbers(browser, folder, reference):
    training = ["--data", reference / "data/names.txt", "--record"]
    model, path = explained(folder, "original", *training, texts=[TEXT])
    golden = json.loads((reference / "golden/default.json").read_text())
    with opened(browser, path) as page:
        page.settle()
        assert page.values("#dataset .text > p .v")[:2] == [32033, 29494]
        lengths = page.values("#dataset .lengths .v")
        assert sum(lengths) == 32033 and lengths[-1] == 2
        page.click("#dataset .grid [data-at='4,12']")
        count, total, share, probability = page.values("#dataset [data-pair] .v")
        assert round(100 * share, 2) == 3.77 and round(probability, 4) == 0.0629
        made = page.texts("#dataset .made li")
        assert [line.split(" ")[0] for line in made] == golden["samples"]
        assert sum(line.endswith("in the data") for line in made) == 11
        losses = [2.971, 2.767, 4.617, 1.479, 1.798]
        assert [round(x, 3) for x in page.values("#loss td.loss .v")] == losses
        assert round(page.values("#loss .mean .v")[0], 4) == 2.7263
        levels = page.texts("#loss .level")
        assert len(levels) == 3
        vowels = page.values("#embedding .vowels .v")
        assert [round(vowels[1], 2), round(vowels[-3], 2)] == [-0.01, 0.53]
        first, last = page.values("#training figcaption .v")[:2]
        assert [round(first, 4), round(last, 4)] == [3.366, 2.6497]
        assert page.tab.evaluate("microgpt.sample(0, 0, 1)") == ["anan"]
        assert page.tab.evaluate("microgpt.sample('', 0.5, 20)") == golden["samples"]
        assert page.complaints == []


# The package's source beside the text


def test_the_script_speaks_of_lines_that_exist():
    """The widgets find the line to mark by its text; here the text is found in the source."""
    if not (ROOT / "explain-page/src").is_dir():
        pytest.skip("the sources of the page are not here")
    code = {key: "\n".join(it["lines"]) for key, it in listings().items()}
    widgets = {p.name: p.read_text("utf-8") for p in (ROOT / "explain-page/src/widgets").iterdir()}
    softmax = re.search(r"const LINES = \[(.*?)\]", widgets["softmax.tsx"])[1]
    forward = re.findall(r"code: (?:'([^']+)'|\"([^\"]+)\")", widgets["pipeline.tsx"])
    marks = [("softmax", line) for line in re.findall(r'"([^"]+)"', softmax)]
    marks += [("forward", a or b) for a, b in forward]
    steps = widgets["training.tsx"].partition("const CODE")[2].partition("};")[0]
    for key, first, second in re.findall(r'\["(\w+)", (?:"([^"]+)"|\'([^\']+)\')\]', steps):
        marks.append((key, first or second))
    for text in widgets.values():
        for key, line in re.findall(r'useMark\("(\w+)", .*?"([^"]+)"', text):
            marks.append((key, line))
    assert len(marks) > 25
    for key, line in marks:
        assert line in code[key], (key, line)


def test_random_is_not_touched_by_explain(run):
    state = random.getstate()
    mg.explain(run, TEXT)
    assert random.getstate() == state
