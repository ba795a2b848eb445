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
    if (Object.keys(keys).length) panels.push({ ...panel, keys, title: titleOf(panel, keys) });
  }
  for (const name of names) if (!shown.has(name)) panels.push(unlisted(name));
  return panels.map((panel) => ({ ...panel, bounds: boundsOf(panel, data.runs) }));
}

/* Bounds of a panel; those of a rate for what is "observed" to be one. */
function boundsOf(panel, runs) {
  if (panel.bounds !== "observed") return panel.bounds;
  const isRate = (value) => value === null || (value >= 0 && value <= 1);
  const columns = runs.flatMap((run) => Object.keys(panel.keys).map((key) => run.metrics[key] || []));
  return columns.every((values) => values.every(isRate)) ? [0, 1] : [null, null];
}

/* The listed metrics that exist, `*` filled in. */
function keysOf(panel, names) {
  const keys = {};
  for (const [key, label] of panel.keys) {
    if (key.endsWith("*"))
      for (const name of names.filter((n) => n.startsWith(key.slice(0, -1)))) keys[name] = name.split("/")[1];
    else if (names.includes(key)) keys[key] = label;
  }
  return keys;
}

/* "pass@*, held out" with what the `*` of its key stands for. */
function titleOf(panel, keys) {
  const star = panel.keys.find(([key]) => key.endsWith("*"));
  const names = Object.keys(keys);
  if (!star) return panel.title;
  return panel.title.replace("*", names.length === 1 ? names[0].slice(star[0].length - 1) : "k");
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
    bounds: isEnv ? "observed" : [null, null],
    sparse: name.startsWith("eval/"),
    exact: false,
    canaries: [],
  };
}
