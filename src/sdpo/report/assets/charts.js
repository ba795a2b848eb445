"use strict";
/* How curves are drawn. Needs util.js, series.js, panels.js and Plotly. */

const DASHES = ["solid", "dash", "dot", "dashdot"];
const ON_TOP = "5px,6px"; /* Of a curve that lies on another one: both colours stay visible. */

/* Curves of the shown groups and keys. With one group colour tells keys apart; with several it tells groups, and dashes keys. */
function panelTraces(panel, groups, view, hiddenKeys) {
  const traces = [];
  const isOne = groups.length === 1;
  groups.forEach((group, g) => {
    if (view.hiddenGroups.has(g)) return;
    Object.entries(panel.keys).forEach(([key, label], k) => {
      if (hiddenKeys.has(key)) return;
      const isSparse = panel.sparse || key.startsWith("eval/");
      traces.push(
        ...curveTraces(group.runs, key, {
          color: seriesColor(isOne ? k : g),
          dash: isOne ? "solid" : DASHES[k % DASHES.length],
          view,
          isSparse,
          bounds: panel.bounds,
          name: isOne ? label : Object.keys(panel.keys).length > 1 ? `${group.name}, ${label}` : group.name,
          window: isSparse || panel.exact ? 1 : view.window,
        }),
      );
    });
  });
  return partEqualCurves(traces);
}

function partEqualCurves(traces) {
  const seen = new Set();
  for (const trace of traces) {
    if (!trace.name) continue;
    const points = JSON.stringify([trace.x, trace.y]);
    if (seen.has(points)) trace.line = { ...trace.line, dash: ON_TOP };
    seen.add(points);
  }
  return traces;
}

function curveTraces(runs, key, look) {
  const rows = groupCurve(runs, key, look.view.axis, look.window);
  if (!rows.length) return [];
  const traces = [];
  const band = bandOutline(rows, look.bounds);
  const base = { legendgroup: look.name, hoverinfo: "skip", showlegend: false, type: "scatter" };
  if (band)
    traces.push({
      ...base,
      ...band,
      mode: "lines",
      fill: "toself",
      fillcolor: transparent(look.color, 0.16),
      line: { width: 0 },
    });
  if (runs.length === 1 && look.window > 1) {
    const raw = observations(runs[0], key, look.view.axis);
    traces.push({
      ...base,
      x: raw.map((r) => r.x),
      y: raw.map((r) => r.y),
      mode: "lines",
      line: { color: transparent(look.color, 0.35), width: 1 },
    });
  }
  const few = look.isSparse || rows.length < 12;
  traces.push({
    type: "scatter",
    name: look.name,
    legendgroup: look.name,
    x: rows.map((r) => r.x),
    y: rows.map((r) => r.y),
    mode: few ? "lines+markers" : "lines",
    line: { color: look.color, width: 2, dash: look.dash },
    marker: { size: 6 },
    hovertemplate: "%{y:.4~g}<extra>%{fullData.name}</extra>",
  });
  return traces;
}

function seriesColor(index) {
  return cssVar(`--c${index % 8}`);
}

function transparent(hex, alpha) {
  const value = parseInt(hex.slice(1), 16);
  return `rgba(${value >> 16}, ${(value >> 8) & 255}, ${value & 255}, ${alpha})`;
}

const isShare = (panel) => panel.bounds[0] === 0 && panel.bounds[1] === 1;

const AXES = {
  step: "step",
  rollouts_total: "rollouts",
  tokens_total: "sampled tokens",
  hours: "hours in steps",
};
const WHOLE_AXES = ["step", "rollouts_total"];

function panelLayout(panel, groups, view) {
  const ink = cssVar("--soft");
  const grid = cssVar("--line");
  const axis = {
    gridcolor: grid,
    zerolinecolor: grid,
    linecolor: grid,
    tickfont: { size: 11 },
    automargin: true,
    exponentformat: "e",
  };
  const title = (text) => ({ text, font: { size: 11 }, standoff: 4 });
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, family: cssVar("--sans"), size: 12 },
    margin: { l: 44, r: 12, t: 8, b: 34 },
    hovermode: "x unified",
    showlegend: false,
    hoverlabel: { bgcolor: cssVar("--card"), bordercolor: grid, font: { color: cssVar("--ink"), size: 12 } },
    legend: { orientation: "h", y: -0.24, x: 0, font: { size: 11 }, itemwidth: 30 },
    xaxis: { ...axis, title: title(AXES[view.axis]) },
    yaxis: {
      ...axis,
      title: title(panel.axis),
      range: isShare(panel) ? [-0.02, 1.02] : undefined,
      rangemode: isShare(panel) ? undefined : "tozero",
    },
    shapes: alertLines(panel, groups, view),
    uirevision: view.axis,
  };
}

/* There is no step 0.5: few steps get a tick each, at whole numbers. */
function wholeTicks(layout, traces, view) {
  if (!WHOLE_AXES.includes(view.axis)) return layout;
  const xs = traces.flatMap((trace) => trace.x);
  const span = xs.length ? Math.max(...xs) - Math.min(...xs) : 0;
  if (span <= 20) Object.assign(layout.xaxis, { tick0: 0, dtick: span <= 8 ? 1 : span <= 16 ? 2 : 4 });
  if (span === 0 && xs.length) layout.xaxis.range = [xs[0] - 0.5, xs[0] + 0.5];
  return layout;
}

/* A dashed line where a canary of this panel fired. */
function alertLines(panel, groups, view) {
  const shapes = [];
  for (const group of groups) {
    for (const run of group.runs) {
      for (const alert of run.alerts) {
        if (!(panel.canaries || []).includes(alert.canary)) continue;
        const row = run.metrics.step.indexOf(alert.step);
        const x = row < 0 ? alert.step : axisValues(run, view.axis)[row];
        shapes.push({
          type: "line",
          x0: x,
          x1: x,
          yref: "paper",
          y0: 0,
          y1: 1,
          line: { color: cssVar("--bad"), width: 1.5, dash: "dash" },
        });
      }
    }
  }
  return shapes;
}

/* Share axes zoom in where everything happens near the bottom: 0 to 1 would show a flat line. Where all is zero, 0 to 1
   says so best. */
function fitShare(panel, layout, traces) {
  if (!isShare(panel)) return layout;
  const top = Math.max(...traces.flatMap((trace) => trace.y.filter((y) => y !== null)), 0);
  if (top > 0 && top < 0.5)
    layout.yaxis.range = [-0.02 * Math.max(top, 0.05), Math.max(0.05, Math.min(1.02, top * 1.1))];
  return layout;
}

/* Dragging zooms and a double click goes back; the button bar would cover the curves. */
const PLOT_CONFIG = { responsive: true, displayModeBar: false };

const onScreen = new IntersectionObserver(
  (seen) =>
    seen.forEach(({ target, isIntersecting }) => {
      target.chart.isVisible = isIntersecting;
      target.chart.draw();
    }),
  { rootMargin: "400px" },
);

/* A card with a chart that is drawn when it comes into view: what it means, its numbers and its picture to take along.
   `figure()` gives {traces, layout}, `table()` the rows of the CSV. */
class ChartCard {
  constructor({ title, meaning, figure, table, controls = [], tall = false }) {
    Object.assign(this, { title, figure, table, isDirty: true, isVisible: false });
    this.plot = el("div", { className: tall ? "plot tall" : "plot" });
    this.plot.chart = this;
    this.node = el(
      "div",
      { className: "card chart" },
      ...explained(title, meaning, el("span", { className: "saves" }, ...this.saves())),
      ...controls,
      this.plot,
    );
    onScreen.observe(this.plot);
  }

  saves() {
    const button = (textContent, what, onclick) =>
      el("button", { className: "ghost", type: "button", textContent, title: `Save ${what}`, onclick });
    return [
      button("CSV", "the numbers", () => download(`${this.title}.csv`, csv(this.table()))),
      button("PNG", "the picture", async () => download(`${this.title}.png`, await this.picture())),
    ];
  }

  /* The chart as a data URL, with its title and a legend of its own: the page's is not in it. */
  picture() {
    const { traces, layout } = this.figure();
    const title = { text: this.title, x: 0.02, font: { size: 15, color: cssVar("--ink") } };
    const framed = {
      ...layout,
      title,
      showlegend: true,
      paper_bgcolor: cssVar("--card"),
      margin: { l: 60, r: 20, t: 44, b: 60 },
    };
    const size = { format: "png", width: 900, height: 480, scale: 2 };
    return Plotly.toImage({ data: traces, layout: framed }, size);
  }

  draw() {
    if (!this.isDirty || !this.isVisible) return;
    this.isDirty = false;
    const { traces, layout } = this.figure();
    Plotly.react(this.plot, traces, layout, PLOT_CONFIG);
  }

  redraw() {
    this.isDirty = true;
    this.draw();
  }
}

/* A line sample for legends: colour and dash as in the chart. */
function lineSample(color, dash) {
  const sample = el("span", { className: "line-sample" });
  sample.style.borderTop = `2.5px ${{ solid: "solid", dash: "dashed", dot: "dotted", dashdot: "dashed" }[dash]} ${color}`;
  return sample;
}

function legendButton(sample, label, isOn, toggle) {
  const button = el("button", { className: "key", ariaPressed: String(isOn) }, sample, label);
  button.addEventListener("click", () => {
    button.ariaPressed = String(button.ariaPressed !== "true");
    toggle(button.ariaPressed === "true");
  });
  return button;
}

function toggleIn(set, item, isOn) {
  if (isOn) set.delete(item);
  else set.add(item);
}
