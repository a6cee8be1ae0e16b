"""The HTML frame of a fit's report: style and order, no content."""

from string import Template

TEMPLATE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --paper: #fff; --back: #f4f5f7; --ink: #1f2328; --quiet: #59636e; --line: #d5d9de;
  --good: #1a7f37; --careful: #9a6700; $light
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #1b1f24; --back: #101317; --ink: #e6e8eb; --quiet: #9aa4af; --line: #3d444d;
    --good: #4ac26b; --careful: #e3b341; $dark
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
main { max-width: 1000px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.verdict {
  border-left: .3rem solid; padding: .6rem .9rem; background: var(--paper); font-weight: 600;
}
.good { border-color: var(--good); }
.careful { border-color: var(--careful); }
.wide { overflow-x: auto; margin: .8rem 0; }
table {
  border-collapse: collapse; background: var(--paper); font-variant-numeric: tabular-nums;
  font-size: .92rem;
}
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; }
tr:first-child th { color: var(--quiet); font-weight: 500; }
.weights, .pairs { width: 100%; }
.weights td:not(.bar), .weights tr:first-child th:not(:first-child),
.numbers td, .numbers th { text-align: right; overflow-wrap: normal; white-space: nowrap; }
.weights th:first-child { min-width: 5rem; }
.pairs th { width: 38%; font-weight: 400; color: var(--quiet); vertical-align: top; }
.bar { width: 30%; min-width: 4rem; }
.bar i { display: block; height: .7rem; min-width: 1px; }
.charts {
  display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
}
figure { margin: 0; padding: .7rem; background: var(--paper); border: 1px solid var(--line); }
img { display: block; width: 100%; max-width: 480px; height: auto; margin: 0 auto; }
figcaption { color: var(--quiet); font-size: .88rem; margin-top: .5rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="verdict $tone">$verdict</p>
<p>$fitted</p>
$weights
$numbers
<section class="charts">
$pictures
</section>
$sweep
<h2>Settings and provenance</h2>
$provenance
</main>
</body>
</html>
""")
