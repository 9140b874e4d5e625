"""A headless Chromium and a small web server, for looking at the built book as a reader does."""

from __future__ import annotations

import contextlib
import functools
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def executable() -> str | None:
    """The browser that is installed, if any."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *args: Any) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, served on this machine only."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


# Ready: the page has loaded and MathJax, where there is any, has finished.
READY = """async () => {
  if (document.querySelector('.math')) {
    for (let i = 0; i < 200 && !(window.MathJax && MathJax.startup && MathJax.startup.promise); i++)
      await new Promise(done => setTimeout(done, 50));
    if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  }
  await document.fonts.ready;
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""

MATH = """() => {
  const of = (n) => (n.textContent || '').trim().slice(0, 60);
  const bare = [...document.querySelectorAll('.math')].filter(m => !m.querySelector('mjx-container'));
  const bad = [...document.querySelectorAll('mjx-merror')];
  return [...bare.map(n => 'math not typeset: ' + of(n)), ...bad.map(n => 'math error: ' + of(n))];
}"""

IMAGES = """() => [...document.querySelectorAll('main img')].flatMap(i => {
  const name = i.src.startsWith('data:') ? 'an embedded image' : i.src.split('/').pop();
  const alt = i.getAttribute('alt') || '';
  return [...(i.complete && i.naturalWidth ? [] : ['image not shown: ' + name]),
          ...(alt && !/_images\\//.test(alt) ? [] : ['image without alt text: ' + name]),
          ...(i.closest('figure')?.querySelector('figcaption') ? [] : ['image without a caption: ' + name])];
})"""

OVERFLOW = """() => {
  const root = document.documentElement, over = root.scrollWidth - root.clientWidth;
  if (over <= 1) return [];
  const inside = n => { for (let p = n.parentElement; p && p !== document.body; p = p.parentElement)
    if (/auto|scroll|hidden/.test(getComputedStyle(p).overflowX)) return true; return false; };
  const wide = [...document.querySelectorAll('main *')].filter(n =>
    n.getBoundingClientRect().right > root.clientWidth + 1 && !inside(n)).slice(0, 3);
  return ['page wider than the screen by ' + over + ' px: ' +
    wide.map(n => n.tagName.toLowerCase() + '.' + n.className).join(', ')];
}"""

# What loses its end: wider than a box that hides it, or moved only together with the text around it.
CUT = """() => {
  const ends = n => {
    const right = n.getBoundingClientRect().right;
    for (let p = n.parentElement; p && p !== document.documentElement; p = p.parentElement) {
      const how = getComputedStyle(p).overflowX;
      if (how === 'visible' || right <= p.getBoundingClientRect().right + 1) continue;
      if (how === 'auto' || how === 'scroll') return !p.querySelector('h1, h2, h3');
      return false;
    }
    return right <= document.documentElement.clientWidth + 1;
  };
  const low = n => /hidden|clip/.test(getComputedStyle(n).overflowY) && n.scrollHeight > n.clientHeight + 2;
  const of = n => n.tagName.toLowerCase() + ' ' + (n.getAttribute('alt') || n.textContent).trim().slice(0, 40);
  const shown = [...document.querySelectorAll('article :is(mjx-math, img, table, pre, svg)')].filter(n => n.getClientRects().length);
  return [...shown.filter(n => !ends(n)).map(n => 'cut at the right: ' + of(n)),
          ...[...document.querySelectorAll('article div.math')].filter(low).map(n => 'cut below: ' + of(n))].slice(0, 5);
}"""

# Markup that was shown instead of obeyed: rows of a Markdown table, a role of MyST.
RAW = """() => [...document.querySelectorAll('main p, main td, main figcaption')].map(n => n.textContent)
  .filter(t => /\\|\\s*(—|-{2,})\\s*\\|/.test(t) || /\\{(glue|ref|numref|cite|eq)[:a-z]*\\}`/.test(t))
  .map(t => 'markup shown as text: ' + t.trim().slice(0, 60)).slice(0, 3)"""

# The contrast of body text against its ground (WCAG), measured on the paragraphs of the page.
CONTRAST = """() => {
  const light = c => { const v = c.map(x => { x /= 255; return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4; });
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
  const parse = s => (s.match(/[\\d.]+/g) || []).map(Number);
  const ground = n => { for (let p = n; p; p = p.parentElement) { const c = parse(getComputedStyle(p).backgroundColor);
    if (c.length === 3 || c[3] > 0.99) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll('main p, main figcaption .caption-text, main td')].filter(p => p.offsetParent && p.textContent.trim()).flatMap(p => {
    const a = light(parse(getComputedStyle(p).color)), b = light(ground(p));
    let seen = 1; for (let n = p; n; n = n.parentElement) seen *= +getComputedStyle(n).opacity;
    const ratio = seen * (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    return ratio < 4.5 ? ['contrast ' + ratio.toFixed(1) + ': ' + p.textContent.trim().slice(0, 40)] : [];
  }).slice(0, 5);
}"""


def is_complaint(message: Any) -> bool:
    """An error on the console, except that of a missing file: the page's own files are seen as responses already."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")


def findings(browser: Any, url: str, home: str, *, looks: bool = True) -> list[str]:
    """What a reader of one page would trip over; with ``looks`` in both themes and on a phone as well."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = context.new_page()
    own = (home, "data:", "blob:", "about:")
    page.on("request", lambda r: None if r.url.startswith(own) else wrong.append(f"request to elsewhere: {r.url}"))
    page.on("requestfailed", lambda r: wrong.append(f"request failed: {r.url} ({r.failure})"))
    page.on("response", lambda r: wrong.append(f"status {r.status}: {r.url}") if r.status >= 400 else None)
    page.on("pageerror", lambda e: wrong.append(f"JavaScript error: {e.message}"))
    page.on("console", lambda m: wrong.append(f"console: {m.text}") if is_complaint(m) else None)
    try:
        page.goto(url, wait_until="load")
        page.evaluate(READY)
        wrong += page.evaluate(MATH)
        wrong += page.evaluate(IMAGES)
        wrong += page.evaluate(RAW)
        if looks:
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme)
                page.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'", timeout=30_000)
                wrong += [f"{theme}: {line}" for line in page.evaluate(CONTRAST)]
            wrong += page.evaluate(CUT)
            page.set_viewport_size({"width": 390, "height": 844})
            page.evaluate(READY)
            wrong += [f"at 390 px: {line}" for line in page.evaluate(OVERFLOW) + page.evaluate(CUT)]
    except Exception as error:
        wrong.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    finally:
        context.close()
    return list(dict.fromkeys(wrong))
