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

from tests.helpers.servers import mlflow_server

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver"),
]


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


def test_runs_their_comparison_and_the_report_are_displayed(trained_place, browser, tmp_path):
    place = trained_place.copy_to(tmp_path)
    (comparison,), (parent,) = place.runs("comparison"), place.runs("ablation")
    chosen = urllib.parse.quote(str([run.info.run_id for run in place.runs("train")]).replace("'", '"'))
    with mlflow_server(place.uri, tmp_path / "server", place.environment, "--workers", "1", command="ui") as address:
        browser.get(f"{address}/#/compare-runs?runs={chosen}&experiments=%5B%220%22%5D")
        text = wait_for_element(browser, "//body", "Comparing 4 Runs", "dev/spearman").text
        chart = text.split("Parameters:")[1].split("Run details")[0]
        assert all(name in chart for name in ("alpha", "seed", "dev/spearman"))

        browser.get(f"{address}/#/experiments/0/runs/{parent.info.run_id}")
        wait_for_element(browser, "//td[contains(., 'mlp8 (best on dev)')]")  # its description

        browser.get(f"{address}/#/experiments/0/runs/{comparison.info.run_id}/artifacts/comparison/report.html")
        browser.switch_to.frame(wait_for_element(browser, "//iframe"))
        wait_for_element(browser, "//body", "best on dev", "PCA to 8, whitened")
        assert min(browser.execute_script("return [...document.images].map(image => image.naturalWidth)")) > 100
        browser.switch_to.default_content()


def test_the_report_fits_1280_pixels_and_its_tables_are_sorted_by_a_click(trained_place, browser):
    browser.set_window_size(1280, 900)
    (comparison,) = trained_place.runs("comparison")
    browser.get(trained_place.download(comparison.info.run_id, "comparison/report.html").as_uri())
    tables = browser.find_elements(By.TAG_NAME, "table")
    rights = [table.rect["x"] + table.rect["width"] for table in tables if table.is_displayed()]
    assert max(rights) <= browser.execute_script("return document.documentElement.clientWidth")

    table = browser.find_element(By.CSS_SELECTOR, "#table1-dev + .scroll table")
    names = [cell.text for cell in table.find_elements(By.TAG_NAME, "th")]

    def click(name: str) -> list[str]:
        column = names.index(name) + 1
        table.find_elements(By.TAG_NAME, "button")[column - 1].click()
        return [cell.text for cell in table.find_elements(By.CSS_SELECTOR, f"tbody td:nth-child({column})")]

    scores = [float(text.split()[0]) for text in click("Spearman")]
    assert scores == sorted(scores, reverse=True)
    assert [float(text.split()[0]) for text in click("Spearman")] == sorted(scores)
    first, second = click("model"), click("model")
    assert first == second[::-1]
    assert first[0].casefold() < first[-1].casefold()
    alphas = click("alpha")
    assert alphas == sorted(alphas, reverse=True)  # "0.75", "0", and baselines without one at the end
