"use strict";
/* Numbers behind the curves: smoothing, intervals, means over seeds. No page and no Plotly in here. */

/* Two-sided 90% quantiles of Student's t by degrees of freedom; a handful of seeds is far from normal. */
const T90 = [6.314, 2.92, 2.353, 2.132, 2.015, 1.943, 1.895, 1.86, 1.833, 1.812];
const Z90 = 1.645;

/* Rows of a run where `key` was observed: [{step, x, y, low, high}]. */
function observations(run, key, axis) {
  const values = run.metrics[key];
  if (!values) return [];
  const xs = axisValues(run, axis);
  const low = run.metrics[key + "_low"];
  const high = run.metrics[key + "_high"];
  const rows = [];
  values.forEach((y, i) => {
    if (y !== null)
      rows.push({
        step: run.metrics.step[i],
        x: xs[i],
        y,
        low: low ? low[i] : null,
        high: high ? high[i] : null,
      });
  });
  return rows;
}

/* Position of every row on the chosen axis; totals and time are 0 before the first step reports them. */
function axisValues(run, axis) {
  if (axis === "hours") {
    let sum = 0;
    return (run.metrics["time/step_s"] || run.metrics.step).map((value) => (sum += (value || 0) / 3600));
  }
  let last = 0;
  return (run.metrics[axis] || run.metrics.step).map((value) => (last = value ?? last));
}

/* Centred moving mean over `window` rows with the 90% interval of that mean. */
function smooth(rows, window) {
  if (window <= 1) return rows;
  const half = Math.floor(window / 2);
  return rows.map((row, i) => {
    const part = rows.slice(Math.max(0, i - half), i + half + 1).map((other) => other.y);
    const { mean, sd } = moments(part);
    const width = (Z90 * sd) / Math.sqrt(part.length);
    return { ...row, y: mean, low: mean - width, high: mean + width };
  });
}

function moments(values) {
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const variance =
    values.length > 1 ? values.reduce((a, b) => a + (b - mean) ** 2, 0) / (values.length - 1) : 0;
  return { mean, sd: Math.sqrt(variance) };
}

/* One curve of a group of seeds: mean over the seeds that reached a step, and the 90% interval of that mean. */
function groupCurve(runs, key, axis, window) {
  const curves = runs
    .map((run) => smooth(observations(run, key, axis), window))
    .filter((rows) => rows.length);
  if (curves.length <= 1) return curves[0] || [];
  const bySteps = new Map();
  for (const rows of curves) {
    for (const row of rows) {
      if (!bySteps.has(row.step)) bySteps.set(row.step, []);
      bySteps.get(row.step).push(row);
    }
  }
  return [...bySteps.entries()]
    .sort((a, b) => a[0] - b[0])
    .map(([step, rows]) => {
      const { mean, sd } = moments(rows.map((row) => row.y));
      const n = rows.length;
      const width = n > 1 ? ((T90[n - 2] || Z90) * sd) / Math.sqrt(n) : 0;
      return {
        step,
        x: moments(rows.map((row) => row.x)).mean,
        y: mean,
        low: mean - width,
        high: mean + width,
      };
    });
}

/* Curve with gaps closed into one outline: upper bound forwards, lower bound backwards. An interval around a mean knows
   nothing of what the value can be, so it is cut to `bounds`. */
function bandOutline(rows, bounds) {
  const known = rows.filter(
    (row) => row.low !== null && row.high !== null && row.low !== undefined && row.high !== undefined,
  );
  if (known.length < 2) return null;
  const cut = (value) => Math.min(bounds[1] ?? Infinity, Math.max(bounds[0] ?? -Infinity, value));
  const back = known.slice().reverse();
  return {
    x: [...known.map((row) => row.x), ...back.map((row) => row.x)],
    y: [...known.map((row) => cut(row.high)), ...back.map((row) => cut(row.low))],
  };
}

function ends(run, key) {
  const values = (run.metrics[key] || []).filter((value) => value !== null);
  return values.length
    ? {
        first: values[0],
        last: values[values.length - 1],
        best: Math.max(...values),
        mean: moments(values).mean,
        count: values.length,
      }
    : null;
}

/* Mean of the first and of the last tenth of a noisy series. */
function tenths(run, key) {
  const values = (run.metrics[key] || []).filter((value) => value !== null);
  if (!values.length) return null;
  const n = Math.max(1, Math.round(values.length / 10));
  return { first: moments(values.slice(0, n)).mean, last: moments(values.slice(-n)).mean };
}

function total(run, key) {
  return (run.metrics[key] || []).reduce((sum, value) => sum + (value || 0), 0);
}
