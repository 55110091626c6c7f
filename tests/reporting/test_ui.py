"""MLflow's UI in a real browser."""

import math
import shutil
import urllib.parse
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.helpers.commands import Workplace
from tests.helpers.servers import mlflow_server

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, trained_place) -> Workplace:
    return trained_place.copy_to(tmp_path_factory.mktemp("ui"))


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
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as browser:
        yield browser


def wait_for_element(browser: webdriver.Chrome, xpath: str, *words: str) -> WebElement:
    """An element once it is there and its text has all of the words."""

    def find(_: object) -> WebElement | None:
        element = browser.find_element(By.XPATH, xpath)
        return element if all(word in element.text for word in words) else None

    ignored = [NoSuchElementException, StaleElementReferenceException]
    return WebDriverWait(browser, math.inf, ignored_exceptions=ignored).until(find)


def runs(place: Workplace, kind: str) -> list[str]:
    return [run.info.run_id for run in place.runs() if run.data.tags["twinsqueeze.kind"] == kind]


def test_comparing_runs_shows_alpha_and_spearman_by_default(place, server, browser):
    chosen = urllib.parse.quote(str(runs(place, "train")).replace("'", '"'))
    browser.get(f"{server}/#/compare-runs?runs={chosen}&experiments=%5B%220%22%5D")
    text = wait_for_element(browser, "//body", "Comparing 4 Runs", "dev/spearman").text
    chart = text.split("Parameters:")[1].split("Run details")[0]
    for name in ("alpha", "seed", "dev/spearman"):
        assert name in chart


def test_the_report_is_displayed_as_an_artifact(place, server, browser):
    (comparison,) = runs(place, "comparison")
    browser.get(f"{server}/#/experiments/0/runs/{comparison}/artifacts/comparison/report.html")
    browser.switch_to.frame(wait_for_element(browser, "//iframe"))
    wait_for_element(browser, "//body", "best on dev", "PCA to 8, whitened")
    assert min(browser.execute_script("return [...document.images].map(image => image.naturalWidth)")) > 100
    browser.switch_to.default_content()


def test_a_parents_description_holds_the_table(place, server, browser):
    (parent,) = runs(place, "ablation")
    browser.get(f"{server}/#/experiments/0/runs/{parent}")
    wait_for_element(browser, "//td[contains(., 'mlp8 (best on dev)')]")


def test_the_report_fits_1280_pixels_and_its_tables_are_sorted_by_a_click(place, browser):
    browser.set_window_size(1280, 900)
    browser.get(place.download(runs(place, "comparison")[0], "comparison/report.html").as_uri())
    tables = browser.find_elements(By.TAG_NAME, "table")
    rights = [table.rect["x"] + table.rect["width"] for table in tables if table.is_displayed()]
    assert max(rights) <= browser.execute_script("return document.documentElement.clientWidth")

    table = browser.find_element(By.CSS_SELECTOR, "#table1-dev + .scroll table")
    names = [cell.text for cell in table.find_elements(By.TAG_NAME, "th")]

    def click(name: str) -> list[str]:
        column = names.index(name)
        table.find_elements(By.TAG_NAME, "button")[column].click()
        return [
            row.find_elements(By.TAG_NAME, "td")[column].text
            for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")
        ]

    scores = [float(text.split()[0]) for text in click("Spearman")]
    assert scores == sorted(scores, reverse=True)
    assert [float(text.split()[0]) for text in click("Spearman")] == sorted(scores)
    first, second = click("model"), click("model")
    assert first == second[::-1]
    assert first[0].casefold() < first[-1].casefold()
    alphas = click("alpha")
    assert alphas == sorted(alphas, reverse=True)  # "0.75", "0", and baselines without one at the end
