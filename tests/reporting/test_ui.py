"""MLflow's UI in a real browser."""

import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.helpers.commands import Workplace
from tests.helpers.servers import mlflow_server

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
SECONDS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_cache, pairs_folder) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("ui"), shared_cache)
    grid = "alpha: [0, 0.75]\nseed: [0, 1]\nepochs: 3\ndim: 8\n"
    (place.folder / "grid.yaml").write_text(grid)
    for arguments in (["ablation", "--grid", "grid.yaml", "--dataset", str(pairs_folder)], ["compare"]):
        done = place.command(*arguments)
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def server(place) -> Iterator[str]:
    with mlflow_server(place.uri, place.folder / "server", place.environment, command="ui") as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1700,1400"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


def text_with(browser: webdriver.Chrome, *words: str) -> str:
    """The page's text once it has all of the words."""

    def matching_text(_: object) -> str | None:
        text = browser.find_element(By.TAG_NAME, "body").text
        return text if all(word in text for word in words) else None

    return WebDriverWait(browser, SECONDS, ignored_exceptions=[Exception]).until(matching_text)


def runs(place: Workplace, kind: str) -> list[str]:
    return [run.info.run_id for run in place.runs() if run.data.tags["twinsqueeze.kind"] == kind]


def test_comparing_runs_shows_alpha_and_spearman_by_default(place, server, browser):
    chosen = urllib.parse.quote(str(runs(place, "train")).replace("'", '"'))
    browser.get(f"{server}/#/compare-runs?runs={chosen}&experiments=%5B%220%22%5D")
    text = text_with(browser, "Comparing 4 Runs", "dev/spearman")
    chart = text.split("Parameters:")[1].split("Run details")[0]
    assert "alpha" in chart
    assert "seed" in chart
    assert "dev/spearman" in chart


def test_the_report_is_displayed_as_an_artifact(place, server, browser):
    (comparison,) = runs(place, "comparison")
    browser.get(f"{server}/#/experiments/0/runs/{comparison}/artifacts/comparison/report.html")
    frame = WebDriverWait(browser, SECONDS).until(lambda b: b.find_element(By.CSS_SELECTOR, "iframe"))
    browser.switch_to.frame(frame)
    text_with(browser, "best on dev", "PCA to 8, whitened")
    loaded = "return [...document.images].map(image => image.naturalWidth)"
    assert min(browser.execute_script(loaded)) > 100
    browser.switch_to.default_content()


def test_a_parents_description_holds_the_table(place, server, browser):
    (parent,) = runs(place, "ablation")
    browser.get(f"{server}/#/experiments/0/runs/{parent}")
    cells = (By.XPATH, "//td[contains(., 'mlp8 (best on dev)')]")
    WebDriverWait(browser, SECONDS).until(lambda b: b.find_elements(*cells))
