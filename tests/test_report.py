"""The report: it says what was judged and what was not measured, stands alone, and can be read by everyone."""

import functools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from apple import compute_plan
from helpers import ROOT, build_places

import milrun
from milrun import standin
from pipeline import baseline, coreml, mac, params, places, plots, regression
from pipeline.audit import audit
from pipeline.benchmark import benchmark
from pipeline.errors import PipelineError
from pipeline.reference import reference
from pipeline.summarize import not_measured, summarize
from pipeline.validate import validate

VARIANTS = ("fp16", "int8")


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, tmp_path_factory):
    """A checkout's reports for one tiny model with labelled texts; int8 misses a gate that was made too strict."""
    root = tmp_path_factory.mktemp("report")
    everything = yaml.safe_load((ROOT / "params.yaml").read_text())
    everything["models"] = {"tiny": {}}
    everything["quantized"] = {"int8": everything["quantized"]["int8"]}
    everything["variants"] = {name: everything["variants"][name] for name in VARIANTS}
    plain = {"scheme": "linear", "bits": 8}
    everything["variants"]["int8"]["weights"] = {"linear": plain, "embedding": plain}
    everything["variants"]["int8"]["gates"]["min_cosine"] = 0.9999999
    everything["variants"]["fp16"]["gates"]["max_quality_drop"] = 1.0  # ten queries: one place is a tenth
    (root / "params.yaml").write_text(yaml.safe_dump(everything))
    wiki = params.Retrieval(queries=10, documents=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        source = tiny_checkpoint()
        entry, where = build_places(
            source,
            Path("artifacts/tiny"),
            *map(params.variant, VARIANTS),
            max_lengths=(64,),
            parity_texts=60,
            retrieval=wiki,
        )
        reference(entry, where.checkpoint, where.reference)
        for name in VARIANTS:
            variant = params.variant(name)
            report = {
                k: places.report(k, "tiny", name)
                for k in ("audit", "parity", "evidence", "benchmark", "coreml")
            }
            audit(where, "tiny", variant, report["audit"])
            try:
                validate(where, "tiny", variant, report["parity"], report["evidence"])
            except PipelineError:
                assert name == "int8"
            benchmark(where, "tiny", variant, report["benchmark"], report["coreml"])
        summarize()
    return root


@pytest.fixture
def checkout(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "reports/index.html").read_text()


class Page(HTMLParser):
    """What an accessibility checker looks at."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.headings, self.ids, self.links, self.heads = [], [], [], [], []
        self.figures, self.tables = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if "id" in given and tag != "path":
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        if tag == "th":
            self.heads.append(given)
        if tag == "table":
            self.tables.append(len(self.heads))


def test_every_build_says_whether_it_passes_on_what_and_how_far_off(page):
    assert "1 of 2 builds fail:</span> tiny int8" in page
    assert page.count("60 parity texts") == 2
    assert (
        page.count("10 queries over 30 documents with people's labels, and 50 texts with human similarity")
        == 2
    )
    assert re.search(r"Missed: min_cosine 0\.99\d+, allowed at least 0.9999999", page)
    assert "<b>Cause:</b>" in page
    assert "SHA-256 of every input and output" in page


def test_what_needs_a_mac_reads_not_measured_beside_prediction_and_emulator(checkout, page):
    rows = json.loads((checkout / "reports/summary.json").read_text())

    assert [row["neural_engine_latency_p50_ms"] for row in rows] == [None, None]
    assert page.count("they need a Mac (make measure)") == 2
    assert (
        page.count(
            '<th scope="row">neural engine latency p50 ms</th><td><span class="none">not measured</span>'
        )
        == 2
    )
    assert page.count("Predicted by static rules") == 2
    assert page.count("The emulator's own time") == 2
    assert all("they need a Mac" in not_measured(row)[0] for row in rows)


def test_the_page_stands_alone_and_its_links_lead_somewhere(checkout, page):
    parsed = Page(page)
    here = [link for link in parsed.links if not link.startswith("#")]

    assert len(here) == 2 * 5 + 2
    assert [link for link in here if not (checkout / "reports" / link).exists()] == []
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    assert not [t for t, given in parsed.tags if t in {"script", "link", "img", "iframe"} or "src" in given]
    assert "url(http" not in page


def test_the_page_can_be_read_by_everyone(page):
    parsed = Page(page)
    first = dict(parsed.tags[0][1])
    pictures = [given for tag, given in parsed.tags if given.get("role") == "img"]
    svgs = [given for tag, given in parsed.tags if tag == "svg"]

    assert first == {"lang": "en"}
    assert any(g.get("name") == "viewport" and "width=device-width" in g["content"] for _, g in parsed.tags)
    assert len(pictures) == len(svgs) == 6
    assert all(len(given["aria-label"]) > 30 for given in pictures)
    assert parsed.headings[0] == 1
    assert parsed.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(parsed.headings, parsed.headings[1:], strict=False))
    own = [i for i in parsed.ids if re.fullmatch(r"b\d+|[a-z]+", i)]
    assert len(own) == len(set(own))
    assert all(given.get("scope") in {"row", "col"} for given in parsed.heads)
    assert {tag for tag, _ in parsed.tags} >= {"header", "nav", "main", "section", "caption", "figcaption"}


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_stands_out_from_its_background(page):
    """WCAG 2.2, 1.4.3: 4.5 to 1, against the darkest background that the page uses; plots 3 to 1 (1.4.11)."""
    style = page[page.index("<style>") : page.index("</style>")]
    texts = set(re.findall(r"[{; ]color: (#[0-9a-f]{6})", style))
    grounds = set(re.findall(r"background: (#[0-9a-f]{6})", style))

    assert len(texts) >= 5
    assert "#ffffff" in grounds
    assert [(t, g) for t in texts for g in grounds if contrast(t, g) < 4.5] == []
    assert [c for c in plots.COLOURS if contrast(c, "#ffffff") < 4.5] == []


def test_raw_data_hold_every_text_of_every_build(checkout):
    table = pq.read_table(checkout / "reports/texts.parquet").to_pylist()
    shown = json.loads((checkout / "reports/evidence/tiny/fp16.json").read_text())["texts"]

    assert len(table) == 2 * 60
    assert [r["cosine"] for r in table if r["build"] == "tiny fp16"] == [t["cosine"] for t in shown]


def test_the_comment_of_a_pull_request_says_the_same(checkout):
    text = (checkout / "reports/comment.md").read_text()

    assert text.startswith("### A build fails")
    assert "| tiny fp16 | pass |" in text
    assert "| tiny int8 | **fail** |" in text
    assert "**tiny int8**: min_cosine" in text
    assert "No release yet to compare with." in text
    assert "they need a Mac" in text
    assert max(len(block.splitlines()) for block in text.split("\n\n") if block.startswith("|")) == 4


def test_what_a_mac_measured_is_shown_with_its_conditions(folder, tmp_path, monkeypatch):
    """Through the stand-in, with the test's compute plan: every setting, part and reason, and what failed."""
    copy = shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(copy)
    monkeypatch.setattr(coreml, "run", lambda job: coreml.JOBS[job["job"]](job))
    monkeypatch.setattr(mac, "UNITS", ("CPU_AND_NE",))
    monkeypatch.setattr(baseline, "KINDS", {})
    files = [places.report(kind, "tiny", "fp16") for kind in ("benchmark", "coreml")]
    with milrun.installed():
        monkeypatch.setattr(standin.ModelProxy, "get_compute_plan", staticmethod(compute_plan))
        quick = functools.partial(mac.measure, warmups=3, runs=4, idle_seconds=0)
        benchmark(places.of("tiny"), "tiny", params.variant("fp16"), *files, quick)
    raw = json.loads(files[1].read_text())
    raw["settings"].append({"layout": "single", "function": "main", "units": "ALL", "error": "E5RT: no"})
    files[1].write_text(json.dumps(raw))
    summarize()
    page = (copy / "reports/index.html").read_text()
    row = json.loads((copy / "reports/summary.json").read_text())[0]

    assert f"{row['neural_engine_latency_p50_ms']:.2f} ms" in page
    assert "3 warm-ups, 4 runs" in page
    assert "gather on the cpu (not supported there)" in page
    assert "E5RT: no" in page
    assert page.count("they need a Mac (make measure)") == 1


@pytest.fixture
def recorded(folder, monkeypatch):
    """FP16 as release 1.0.0, taken back afterwards."""
    monkeypatch.chdir(folder)
    rows = json.loads(Path("reports/summary.json").read_text())
    Path("reports/summary.json").write_text(json.dumps([row for row in rows if row["passed"]]))
    monkeypatch.setattr("sys.argv", ["regression", "tiny", "1.0.0"])
    regression.main()
    yield json.loads(regression.RELEASED.read_text())
    regression.RELEASED.unlink()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    summarize()


def test_what_failed_is_not_recorded_as_released(checkout):
    with pytest.raises(PipelineError, match="tiny int8 does not pass"):
        regression.record("tiny", "1.0.0")
    with pytest.raises(PipelineError, match="no build of other"):
        regression.record("other", "1.0.0")
    assert not (checkout / regression.RELEASED).exists()


def test_a_release_is_compared_with_the_one_before(checkout, recorded):
    summarize()
    page = (checkout / "reports/index.html").read_text()
    text = (checkout / "reports/comment.md").read_text()

    assert list(recorded["builds"]) == ["tiny fp16"]
    assert "<td>tiny fp16, v1.0.0</td><td>min cosine</td>" in page
    assert "- tiny fp16: v1.0.0, min cosine" in text
    assert "- tiny int8: new" in text


def test_a_worse_build_fails_after_the_report_is_written(checkout, recorded, monkeypatch):
    """With a noise below the tiny model's own error, a release that was exact is missed."""
    monkeypatch.setattr(regression, "NOISE", 1e-12)
    recorded["builds"]["tiny fp16"]["min_cosine"] = 1.0
    regression.RELEASED.write_text(json.dumps(recorded))

    with pytest.raises(PipelineError, match=r"tiny fp16: min_cosine .* 1\.0000000 in release 1\.0\.0: worse"):
        summarize()
    assert "**worse beyond noise**" in (checkout / "reports/comment.md").read_text()


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (0.999998, 0.999997, False),  # what FP16 itself may do
        (0.99, 0.9899, False),
        (0.99, 0.985, True),
        (0.999998, 0.9999, True),
        (0.99, 0.999, False),
        (0.99, float("nan"), True),
    ],
)
def test_noise_is_told_from_a_loss(before, now, expected):
    assert regression.worse(before, now) is expected


CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)


@pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (apt install chromium), which is not on this machine"
)
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page, tmp_path, width):
    """Laid out by a real browser: the page scrolls down, never sideways."""
    measure = (
        "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    )
    copy = tmp_path / "page.html"
    copy.write_text(page.replace("</body>", measure))
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         f"--window-size={width},900", "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    wide, window = map(int, re.search(r"<title>(\d+) of (\d+)</title>", done.stdout).groups())

    assert wide <= window
