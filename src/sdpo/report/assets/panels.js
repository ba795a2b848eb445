"use strict";
/* Which curves the report has: those of report/panels.py that a run wrote, then the environment's, then every other
   metric. No page and no Plotly in here. */

const NEVER_DRAWN = /^time\/|_low$|_high$/;

function panelsOf(data) {
  const names = [
    ...new Set(
      data.runs.flatMap((run) =>
        Object.keys(run.metrics).filter((name) => run.metrics[name].some((v) => v !== null)),
      ),
    ),
  ]
    .filter((name) => !NEVER_DRAWN.test(name) && !data.undrawn.includes(name))
    .sort();
  const shown = new Set();
  const panels = [];
  for (const panel of data.panels) {
    const keys = keysOf(panel, names);
    Object.keys(keys).forEach((name) => shown.add(name));
    if (Object.keys(keys).length) panels.push({ ...panel, keys });
  }
  for (const name of names) if (!shown.has(name)) panels.push(unlisted(name));
  return panels;
}

/* The listed metrics that exist, `*` filled in. */
function keysOf(panel, names) {
  const keys = {};
  for (const [key, label] of Object.entries(panel.keys)) {
    if (key.endsWith("*"))
      for (const name of names.filter((n) => n.startsWith(key.slice(0, -1)))) keys[name] = name.split("/")[1];
    else if (names.includes(key)) keys[key] = label;
  }
  return keys;
}

function unlisted(name) {
  const isEnv = name.startsWith("env/");
  return {
    group: isEnv ? "Environment" : "Other metrics",
    title: isEnv ? name.slice(4).replaceAll("_", " ") : name,
    keys: { [name]: name },
    axis: isEnv ? "mean over attempts" : "value",
    meaning: isEnv
      ? `${name}: what the environment measured, averaged over a step's attempts.`
      : `${name}, as metrics.jsonl has it.`,
    bounds: [null, null],
    sparse: name.startsWith("eval/"),
    exact: false,
    canaries: [],
  };
}
