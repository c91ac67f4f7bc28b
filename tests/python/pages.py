"""Checks the pages of `inspect --format html`, `eval --html` and `plan --html` in a real browser.

    python tests/python/pages.py [--snlp target/release/snlp] [--chromium /usr/bin/chromium] [--shots FOLDER] [--only NAME]

Wants `playwright` with a Chromium of its own or one on the path; skips, and says so, without. With `onnx` a model
whose names are markup is checked too. `--shots` keeps a picture of every page in both widths and both colours.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
WIDTHS = {"wide": (1280, 800), "narrow": (390, 844)}
NANO = "fixtures/nano/model.onnx"


def skip(why):
    print(f"SKIPPED, no page was checked: {why}", file=sys.stderr)
    sys.exit(0)


try:
    from playwright.sync_api import sync_playwright
except ImportError:
    skip("playwright is not installed (pip install playwright; playwright install chromium)")


def hostile(folder):
    """A model whose names are markup, if onnx is there to write it."""
    try:
        import onnx
    except ImportError:
        print("SKIPPED, names that are markup: onnx is not installed", file=sys.stderr)
        return None
    model = onnx.load(ROOT / "fixtures/gpt2-tiny/model.onnx")
    bad = "</script><img src=x onerror=alert(1)>\"'`<!--"
    for i, node in enumerate(model.graph.node):
        node.name = f"{bad}{i}[{{|}}]\u202e"
    path = folder / "a<b>&'c'.onnx"
    onnx.save(model, path)
    return path


def pages(snlp, folder):
    """Name, file and kind of each page."""

    def make(name, *args):
        ran = subprocess.run([snlp, *map(str, args)], cwd=ROOT, capture_output=True, text=True)
        if ran.returncode != 0:
            sys.exit(f"{name}: {' '.join(map(str, args))}: {ran.stderr}")

    many = folder / "d96.onnx"
    make("d96", "bench", "--shape", "d96-w64-h2-v256", "--save", many, "--seq", "8")
    inspected = {
        "chain": (NANO,),
        "nano": (NANO, "--plan", "s2 5xF2"),
        "iterated": (NANO, "--plan", "s2 2*1xF2 6xF1[k=2]", "--explain"),
        "mhc": ("fixtures/mhc/hcn.onnx", "--plan", "4xF1"),
        "past": ("fixtures/llama-tiny-past/model.onnx", "--plan", "2xF1"),
        "d96": (many, "--plan", "s32 48xF1 1xF16"),
        "d96-chain": (many,),
        "no-chain": ("fixtures/bad/mlp.onnx",),
    }
    bad = hostile(folder)
    if bad:
        inspected["hostile"] = (bad, "--plan", "2xF2")
    converted = folder / "converted.onnx"
    make("converted", "convert", NANO, "-o", converted, "--plan", "6xF1")
    inspected["converted"] = (converted,)
    for name, args in inspected.items():
        file = folder / f"{name}.html"
        make(name, "inspect", *args, "--format", "html", "-o", file)
        yield name, file, "inspect" if name != "no-chain" else "plain"
    tokens = ("--tokens", "fixtures/nano/val_windows.npz", "--windows", "2")
    plans = ["6xF1", "6xF1[k=2]", "3xF2", "1xF6", "12xF1", "s2 5xF2", "s4 4*1xF2", "8xF1[k=2,init=batch_fwd]"]
    file = folder / "eval.html"
    make("eval", "eval", NANO, *tokens, *[a for p in plans for a in ("--plan", p)], "--html", file)
    yield "eval", file, "report"
    file = folder / "plan.html"
    make("plan", "plan", NANO, *tokens, "--budget", "ppl+2%", "--html", file)
    yield "plan", file, "report"


class Checks:
    def __init__(self):
        self.failed = []

    def that(self, ok, what):
        if not ok:
            self.failed.append(what)
            print(f"FAILED  {what}")


def focused(page):
    return page.evaluate("document.activeElement?.dataset?.key ?? document.activeElement?.id ?? ''")


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def keyboard_of_a_chain(page, name, checks):
    page.keyboard.press("/")
    checks.that(focused(page) == "find", f"{name}: / leads to the search field")
    page.keyboard.type("matmul")
    found = page.inner_text("#found")
    # A model that was converted elsewhere has no nodes.
    nodes = name != "converted"
    checks.that(("node" in found) if nodes else bool(found), f"{name}: the search says what it found, not '{found}'")
    if nodes:
        page.keyboard.press("Enter")
        checks.that(page.is_visible("#panel") and page.locator("#panel mark").count() > 0, f"{name}: Enter lists what was found")
        page.keyboard.press("Escape")
        checks.that(not page.is_visible("#panel"), f"{name}: Escape closes the list")
    page.keyboard.press("/")
    page.keyboard.type("zzzz")
    checks.that(page.locator("#chain .card.dim").count() > 0, f"{name}: what does not fit is dimmed")
    page.keyboard.press("Escape")
    checks.that(page.locator("#chain .card.dim").count() == 0, f"{name}: Escape empties the search")
    page.evaluate("document.activeElement.blur()")
    # By tab into the chain: one stop.
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#chain') !== null"):
            break
    start = focused(page)
    checks.that(start.startswith("layer"), f"{name}: the tab key leads to the first layer, not to '{start}'")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    checks.that(outline != "none", f"{name}: the focus is visible")
    page.keyboard.press("ArrowDown")
    checks.that(focused(page) not in ("", start), f"{name}: arrow keys move")
    if page.locator("#chain .unit[data-key]").count():
        page.keyboard.press("ArrowRight")
        for _ in range(400):
            if focused(page).startswith("unit"):
                break
            page.keyboard.press("ArrowDown")
        checks.that(focused(page).startswith("unit"), f"{name}: arrow keys reach a unit, not '{focused(page)}'")
    fold = page.locator("#chain [aria-expanded=false]")
    if fold.count():
        key = fold.first.get_attribute("data-key")
        fold.first.focus()
        page.keyboard.press("Enter")
        again = f"#chain [data-key='{key}']"
        opened = page.get_attribute(again, "aria-expanded") == "true" and focused(page) == key
        checks.that(opened, f"{name}: Enter unfolds and keeps the focus")
        page.keyboard.press("Enter")
        checks.that(page.get_attribute(again, "aria-expanded") == "false", f"{name}: Enter folds again")
    while page.evaluate("document.activeElement.getAttribute('aria-expanded')") is not None:
        page.keyboard.press("ArrowUp")
    key = focused(page)
    page.keyboard.press("Enter")
    checks.that(page.is_visible("#panel"), f"{name}: Enter opens {key}")
    checks.that(page.evaluate("document.activeElement.id") == "panel-title", f"{name}: the focus goes to what was opened")
    checks.that(overflow(page) <= 0, f"{name}: {overflow(page)} px too wide with the panel open")
    page.keyboard.press("Escape")
    checks.that(not page.is_visible("#panel") and focused(page) == key, f"{name}: Escape closes and goes back to {key}")


def search(page, text):
    """Searches, and gives what is said of the original and of what a plan makes of it."""
    page.fill("#find", text)
    first, _, second = page.inner_text("#found").replace(" · Enter lists", "").partition(" — rewritten: ")
    return first.removeprefix("original: "), second


def number_of(text, what):
    found = re.search(rf"([\d,]+) {what}s?\b", text)
    return int(found[1].replace(",", "")) if found else 0


def search_of_a_plan(page, name, checks, nodes):
    """Units, segments and what stands in their place are found; counts are those of the model."""
    lit = "#chain .unit[data-key]:not(.dim)"
    if page.is_visible("#all") and page.inner_text("#all") == "Unfold all":
        page.click("#all")
    units = page.locator("#chain .unit[data-key]").count()
    for text in ["unit 1", "unit 2", "segment 1", "segment 2", "layer 1", "attention", "zzzz"]:
        first, second = search(page, text)
        shown = page.locator(lit).count()
        checks.that(number_of(second, "unit") == shown, f"{name}: '{text}': {shown} units are lit, '{second}' are told")
        layers = page.locator("#chain .layer[data-key]:not(.dim)").count()
        checks.that(number_of(first, "layer") == layers, f"{name}: '{text}': {layers} layers are lit, '{first}' are told")
    checks.that(search(page, "layer 1")[0] == "1 layer", f"{name}: a number is one layer, not '{search(page, 'layer 1')[0]}'")
    first, second = search(page, "unit 1")
    checks.that(0 < number_of(second, "unit") <= units and first == "nothing", f"{name}: units are found: '{first}', '{second}'")
    page.press("#find", "Enter")
    checks.that("[object" not in page.inner_text("#panel"), f"{name}: the list is elements")
    button = page.locator("#panel button", has_text=re.compile("^Open unit 1$")).first
    button.focus()
    page.keyboard.press("Enter")
    checks.that(page.inner_text("#panel-title").startswith("Unit 1 of"), f"{name}: a unit opens from the list")
    page.keyboard.press("Escape")
    checks.that(focused(page).startswith("unit:"), f"{name}: Escape goes to the unit, not to '{focused(page)}'")
    # A line beside the chain, by what it carries.
    lane = page.locator("#chain button.lane").first
    if lane.count():
        hint = page.evaluate("(e) => lanes[+e.dataset.key.slice(5)].names[0].name", lane.element_handle())
        first, _ = search(page, hint)
        checks.that("beside the chain" in first, f"{name}: '{hint}' is told: '{first}'")
        page.press("#find", "Enter")
        opened = page.locator("#panel .links button", has_text=re.compile("^Open "))
        checks.that(opened.count() > 0, f"{name}: '{hint}' can be opened")
        page.keyboard.press("Escape")
    # What a plan leaves as it is can be opened by that.
    if "as it is" in page.inner_text("#chain").lower() or page.locator("#chain [data-key^='same:']").count():
        _, second = search(page, "as it is")
        page.press("#find", "Enter")
        opened = page.locator("#panel button", has_text=re.compile("^Open layer"))
        checks.that(number_of(second, "layer") > 0 and opened.count() > 0, f"{name}: what stays can be opened: '{second}'")
        page.keyboard.press("Escape")
    if nodes:
        # Each type has brackets.
        figures = page.evaluate("[...document.querySelectorAll('.figures > div')].find((d) => d.querySelector('dt').textContent === 'nodes').querySelector('dd').innerText")
        figures = [int(n.replace(",", "")) for n in re.findall(r"[\d,]+", figures)]
        found = [number_of(side, "node") for side in search(page, "[")]
        checks.that(found == figures, f"{name}: {found} nodes are found of {figures}")
        if page.locator("#chain .correction").count():
            first, second = search(page, "newton")
            checks.that(number_of(second, "node") > 0 and first == "nothing", f"{name}: the functions are found: '{first}', '{second}'")
            lit = page.locator("#chain .correction:not(.dim)").count()
            checks.that(number_of(second, "correction") == lit > 0, f"{name}: {lit} corrections are lit, '{second}' are told")
            page.press("#find", "Enter")
            checks.that("Newton" in page.inner_text("#panel .nodes"), f"{name}: the list has the functions")
            page.keyboard.press("Escape")
            checks.that(focused(page) == "find", f"{name}: Escape goes back to the search, not to '{focused(page)}'")
    page.fill("#find", "")
    if page.is_visible("#all"):
        page.click("#all")


def keyboard_of_a_report(page, name, checks):
    page.keyboard.press("/")
    checks.that(focused(page) == "find", f"{name}: / leads to the search field")
    page.keyboard.type("xf1")
    checks.that("plans" in page.inner_text("#found"), f"{name}: the search says what it found")
    checks.that(page.locator("tr.dim").count() > 0, f"{name}: what does not fit is dimmed")
    page.keyboard.press("Escape")
    checks.that(page.locator("tr.dim").count() == 0, f"{name}: Escape empties the search")
    page.focus("tr[data-plan]")
    page.keyboard.press("ArrowDown")
    checks.that(page.locator("tr.on[data-plan='1']").count() == 1, f"{name}: arrow keys move through the plans")
    boxes = page.evaluate("""() => [...document.querySelectorAll('svg g text')].filter((t) => t.getClientRects().length)
        .map((t) => { const b = t.getBoundingClientRect(); return [b.left, b.top + 3, b.right, b.bottom - 3]; })""")
    clash = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]]
    checks.that(boxes and not clash, f"{name}: {len(clash)} labels cover one another")


def check(browser, name, file, kind, size, colours, shots, checks):
    width, height = WIDTHS[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=colours)
    page = context.new_page()
    label = f"{name} {size} {colours}"
    outside = []
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or outside.append(r.url))
    page.on("console", lambda m: m.type in ("error", "warning") and checks.that(False, f"{label}: console: {m.text}"))
    page.on("pageerror", lambda e: checks.that(False, f"{label}: {e}"))
    page.on("dialog", lambda d: (checks.that(False, f"{label}: a name ran as a script"), d.dismiss()))
    page.goto(file.as_uri())
    page.wait_for_load_state("load")
    if shots:
        page.screenshot(path=shots / f"{name}-{size}-{colours}.png", full_page=name in ("nano", "eval", "plan", "iterated"))
    checks.that(overflow(page) <= 0, f"{label}: {overflow(page)} px too wide")
    checks.that(page.locator("img, link, iframe, object").count() == 0, f"{label}: a name became an element")
    if kind == "inspect":
        if page.is_visible("#all"):
            page.click("#all")
            checks.that(overflow(page) <= 0, f"{label}: too wide when all is unfolded")
            page.click("#all")
        keyboard_of_a_chain(page, label if name != "converted" else name, checks)
        if page.locator("#chain .unit").count():
            search_of_a_plan(page, label, checks, name != "converted")
        if shots and page.locator("#chain .unit[data-key]").count():
            page.locator("#chain .unit[data-key]").first.click()
            page.screenshot(path=shots / f"{name}-{size}-{colours}-open.png")
            page.keyboard.press("Escape")
    elif kind == "report":
        keyboard_of_a_report(page, label, checks)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    page.wait_for_timeout(30)
    checks.that(page.evaluate("getComputedStyle(document.body).backgroundColor") != before, f"{label}: the switch changes the colours")
    checks.that(not outside, f"{label}: asks for {outside}")
    context.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--snlp", default=str(ROOT / "target/release/snlp"))
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--shots", type=pathlib.Path)
    parser.add_argument("--only")
    args = parser.parse_args()
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    checks = Checks()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        try:
            # Containers run as root, where Chromium's own sandbox does not start.
            browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        except Exception as e:  # noqa: BLE001
            skip(f"no Chromium starts: {str(e).splitlines()[0]}")
        n = 0
        for name, file, kind in pages(args.snlp, pathlib.Path(folder)):
            if args.only and args.only != name:
                continue
            for size in WIDTHS:
                for colours in ("light", "dark"):
                    check(browser, name, file, kind, size, colours, args.shots, checks)
                    n += 1
        browser.close()
    print(f"{n} views checked, {len(checks.failed)} failures")
    sys.exit(1 if checks.failed or n == 0 else 0)


if __name__ == "__main__":
    main()
