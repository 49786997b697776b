"""The frame of the status page: its style, its script, and the policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib

__all__ = ["PAGE_POLICY", "framed"]

_STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --line: #c8ced6; --soft: #f3f5f8;
  --good: #0b6b32; --warn: #7a4a00; --bad: #a3111b; --curve: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --bg: #12161b; --fg: #e7ebf0; --line: #3b444f;
  --soft: #1b2128; --good: #5fd38d; --warn: #f0b85a; --bad: #ff8a8a; --curve: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 110rem; background: var(--bg); color: var(--fg);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.1rem; margin: 0 0 .5rem; }
h2 { font-size: 1rem; margin: 0 0 .5rem; }
main { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); align-items: start; }
#state, #gone { grid-column: 1 / -1; margin: 0; padding: .8rem 1rem; border: 2px solid; }
#state strong { display: block; font-size: 1.8rem; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
#state span { color: var(--fg); }
section { background: var(--soft); padding: 1rem; min-width: 0; }
ul { margin: 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.wide { overflow: auto; max-height: 28rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
thead th { position: sticky; top: 0; background: var(--soft); }
.long { overflow-wrap: anywhere; min-width: min(14rem, 40vw); }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
tr.bad th, tr.bad td { color: var(--bad); font-weight: bold; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
.where { margin: 0 0 .5rem; overflow-wrap: anywhere; }
.facts { grid-column: 1 / -1; gap: .5rem 1rem; background: none;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 11rem), 1fr)); }
.facts div { border-left: 4px solid var(--line); padding-left: .6rem; min-width: 0; }
.facts div.bad, .facts div.warn { border-color: currentColor; }
.facts dd { font-size: 1.3rem; font-weight: bold; font-variant-numeric: tabular-nums; }
.curves { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
figure { margin: 0; min-width: 0; }
.plot { display: grid; grid-template: "top drawing" 1fr "zero drawing" auto ". times" auto
  / minmax(4.5rem, max-content) 1fr; column-gap: .4rem; font-size: .85rem; }
.plot .top { grid-area: top; text-align: right; }
.plot .zero { grid-area: zero; text-align: right; }
.plot .times { grid-area: times; display: flex; justify-content: space-between; }
svg { grid-area: drawing; display: block; width: 100%; height: 5rem; background: var(--bg);
  border: 1px solid var(--line); }
path { stroke: var(--curve); stroke-width: 2; stroke-linecap: round; fill: none; }
line { stroke: var(--line); stroke-width: 1; }
.old main { opacity: .45; }
@media (min-width: 120rem) { html { font-size: 130%; } }
"""

_SCRIPT = """
const gone = document.getElementById("gone");
let failures = 0;
async function again() {
  try {
    const answer = await fetch(location.pathname,
      {cache: "no-store", signal: AbortSignal.timeout(4000)});
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const held = document.activeElement && document.activeElement.getAttribute("aria-label");
    document.querySelector("main").replaceChildren(...page.querySelector("main").childNodes);
    if (held) for (const one of document.querySelectorAll("[tabindex]"))
      if (one.getAttribute("aria-label") === held) one.focus({preventScroll: true});
    failures = 0;
    gone.hidden = true;
    document.title = page.title;
    document.documentElement.classList.remove("old");
  } catch (error) {
    failures += 1;
    if (failures === 1) gone.dataset.since = new Date().toLocaleTimeString();
    gone.textContent = "Nobody answers since " + gone.dataset.since + ": what stands below is old.";
    gone.hidden = false;
    document.title = "kvtls: nobody answers";
    document.documentElement.classList.add("old");
  }
  setTimeout(again, 5000);
}
setTimeout(again, 5000);
"""

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<noscript><meta http-equiv="refresh" content="15"></noscript>
<style>{style}</style>
</head>
<body>
<header>
<h1>kvtls status</h1>
<p id="gone" class="bad" role="alert" hidden></p>
</header>
<main>
{main}
</main>
<script>{script}</script>
</body>
</html>
"""


def framed(title: str, main: str) -> str:
    """Return the whole page.

    Args:
        title: For the browser's tab, escaped.
        main: What is shown, as HTML.
    """
    return _FRAME.format(style=_STYLE, script=_SCRIPT, title=title, main=main)


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


PAGE_POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""What the page may do: what is in it, and ask for itself again."""
