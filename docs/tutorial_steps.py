"""The steps of tutorial.md, done on the real page: for its pictures, and for the test that it tells the truth."""

from collections.abc import Callable
from dataclasses import dataclass

from playwright.sync_api import Page, expect

PATIENCE = 60_000  # ms

# The position in the second copy, past its beginning, whose token has the lowest loss: from the figure on the page.
EASIEST = """() => {
  const models = [...Bokeh.documents[0]._all_models.values()]
  const {loss, x} = models.find((model) => model.type === "ColumnDataSource" && "loss" in model.data).data
  const copy = Array.from(x).filter((at) => at > 30 && at < 46)
  return copy.reduce((best, at) => loss[at - 1] < loss[best - 1] ? at : best)
}"""


@dataclass(frozen=True)
class Step:
    """One step: the name of its picture, and what is done on the page."""

    name: str
    do: Callable[[Page], None]


def blank(page: Page) -> None:
    """Empty the text, then have random tokens repeated."""
    area = page.get_by_placeholder("Type a text: the model reads it as you type.")
    area.fill("")
    expect(page.get_by_role("alert").filter(has_text="The text is empty")).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Insert").click()
    expect(page.locator(".says")).to_contain_text("49 tokens", timeout=PATIENCE)


def stripes(page: Page) -> None:
    """Select a head of layer 2, and hold a token of the second copy."""
    click_head(page, 2, 3)
    expect(page.get_by_text("L2H3: what each token attends to")).to_be_visible(timeout=PATIENCE)
    page.locator(".strip .token").nth(page.evaluate(EASIEST) - 1).click()


def lens(page: Page) -> None:
    """Open the lens at that token."""
    page.get_by_role("tab", name="Lens").click()
    page.locator(".cell").first.wait_for(timeout=PATIENCE)
    page.mouse.move(720, 40)


def contributions(page: Page) -> None:
    """Ask which parts add up to its logit."""
    page.get_by_role("tab", name="Contributions").click()
    page.get_by_text("add up to").wait_for(timeout=PATIENCE)


def one_head(page: Page) -> None:
    """Set that one head to zero, and see how little that does."""
    page.get_by_role("tab", name="Attention").click()
    click_head(page, 2, 3)
    page.get_by_role("button", name="Set it to zero").click()
    expect(rows(page)).to_have_count(1, timeout=PATIENCE)


def layer(page: Page) -> None:
    """Set every head of the layer to zero."""
    fill_site(page, "L2.z")
    expect(rows(page)).to_have_count(2, timeout=PATIENCE)


def causal_map(page: Page) -> None:
    """Take that back, and ask which heads matter: one after the other, exactly."""
    page.get_by_role("button", name="Delete all").click()
    expect(rows(page)).to_have_count(0, timeout=PATIENCE)
    page.get_by_role("tab", name="Causal map").click()
    page.get_by_role("button", name="Exact: a run for each site").click()
    page.get_by_text("32 sites in").wait_for(timeout=PATIENCE)


def previous(page: Page) -> None:
    """Look at what the heads of layer 1 attend to."""
    page.get_by_role("tab", name="Attention").click()
    click_head(page, 1, 5)
    expect(page.get_by_text("L1H5: what each token attends to")).to_be_visible(timeout=PATIENCE)


def proof(page: Page) -> None:
    """Set the three that attend to the token before to zero: the stripes of layer 2 are gone."""
    for count, head in enumerate((1, 4, 5), 1):
        click_head(page, 1, head)
        page.get_by_role("button", name="Set it to zero").click()
        expect(rows(page)).to_have_count(count, timeout=PATIENCE)
    click_head(page, 2, 3)


def generate(page: Page) -> None:
    """Continue the text without the circuit, and with it."""
    page.get_by_role("tab", name="Generate").click()
    page.get_by_label("New tokens", exact=True).fill("12")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("24 tokens, ").wait_for(timeout=PATIENCE)


def finder(page: Page) -> None:
    """Take it all back, and have every head scored."""
    page.get_by_role("button", name="Delete all").click()
    expect(rows(page)).to_have_count(0, timeout=PATIENCE)
    page.get_by_role("tab", name="Heads", exact=True).click()
    expect(scores(page)).to_have_count(32, timeout=PATIENCE)


def composition(page: Page) -> None:
    """Ask the weights which earlier heads an induction head finds its keys by."""
    scores(page).filter(has_text="L2H6").click()
    page.get_by_role("tab", name="Weights", exact=True).click()
    page.get_by_role("button", name="Composition", exact=True).click()
    page.get_by_role("group", name="Heads read most").wait_for(timeout=PATIENCE)


STEPS = tuple(
    Step(name, do)
    for name, do in {
        "1-repeat": blank,
        "2-stripes": stripes,
        "3-lens": lens,
        "4-contributions": contributions,
        "5-one-head": one_head,
        "6-layer": layer,
        "7-causal-map": causal_map,
        "8-previous-token": previous,
        "9-proof": proof,
        "10-generate": generate,
        "11-heads": finder,
        "12-composition": composition,
    }.items()
)


def rows(page: Page):
    """The lines of the table of interventions."""
    return page.get_by_role("list", name="Interventions").get_by_role("listitem")


def scores(page: Page):
    """The lines of the table of heads and their scores."""
    return page.get_by_role("table", name="Scores of heads").locator("tbody tr")


def fill_site(page: Page, site: str) -> None:
    """Add what the form does at a site."""
    field = page.get_by_label("Site", exact=True)
    field.fill(site)
    field.press("Enter")


def click_head(page: Page, layer: int, head: int) -> None:
    """Click a head's thumbnail on the contact sheet."""
    sheet = page.locator("canvas.picture")
    shape = sheet.evaluate("e => JSON.parse(e.dataset.geometry)")
    x, y = shape["cells"][layer][head]
    half = shape["cell"] / 2
    sheet.click(position={"x": (x + half) / shape["dpr"], "y": (y + half) / shape["dpr"]})
