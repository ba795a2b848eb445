"use strict";
/* How curves are drawn. Needs util.js, series.js, panels.js and Plotly. */

const DASHES = ["solid", "dash", "dot", "dashdot"];

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
          name: isOne ? label : Object.keys(panel.keys).length > 1 ? `${group.name}, ${label}` : group.name,
          window: isSparse || panel.exact ? 1 : view.window,
        }),
      );
    });
  });
  return traces;
}

function curveTraces(runs, key, look) {
  const rows = groupCurve(runs, key, look.view.axis, look.window);
  if (!rows.length) return [];
  const traces = [];
  const band = bandOutline(rows);
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

const AXES = { step: "step", rollouts_total: "rollouts", tokens_total: "sampled tokens", hours: "hours" };

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
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, family: cssVar("--sans"), size: 12 },
    margin: { l: 44, r: 12, t: 8, b: 34 },
    hovermode: "x unified",
    showlegend: false,
    hoverlabel: { bgcolor: cssVar("--card"), bordercolor: grid, font: { color: cssVar("--ink"), size: 12 } },
    legend: { orientation: "h", y: -0.24, x: 0, font: { size: 11 }, itemwidth: 30 },
    xaxis: { ...axis, title: { text: AXES[view.axis], font: { size: 11 }, standoff: 4 } },
    yaxis: {
      ...axis,
      title: { text: panel.axis, font: { size: 11 }, standoff: 4 },
      range: isShare(panel) ? [-0.02, 1.02] : undefined,
      rangemode: isShare(panel) ? undefined : "tozero",
    },
    shapes: alertLines(panel, groups, view),
  };
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

/* Dragging zooms and a double click goes back; the button bar would cover the curves. */
const PLOT_CONFIG = { responsive: true, displayModeBar: false };

/* Share axes zoom in where everything happens near the bottom: 0 to 1 would show a flat line. */
function fitShare(panel, layout, traces) {
  if (!isShare(panel)) return layout;
  const top = Math.max(...traces.flatMap((trace) => trace.y.filter((y) => y !== null)), 0);
  if (top < 0.5) layout.yaxis.range = [-0.02 * Math.max(top, 0.05), Math.max(0.05, top * 1.1)];
  return layout;
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

class Charts {
  constructor(host, groups, data) {
    this.groups = groups;
    this.view = { axis: "step", window: 1, hiddenGroups: new Set() };
    this.entries = [];
    this.observer = new IntersectionObserver(
      (seen) => seen.filter((e) => e.isIntersecting).forEach((e) => this.draw(e.target.entry)),
      { rootMargin: "400px" },
    );
    const panels = panelsOf(data);
    for (const name of [...new Set(panels.map((panel) => panel.group))])
      this.addGroup(
        host,
        name,
        panels.filter((panel) => panel.group === name),
      );
  }

  /* Which colour is which run; a click hides one. */
  groupLegend() {
    return el(
      "div",
      { className: "keys" },
      ...this.groups.map((group, g) =>
        legendButton(
          lineSample(`var(--c${g % 8})`, "solid"),
          group.runs.length > 1 ? `${group.name} (${group.runs.length} seeds)` : group.name,
          true,
          (isOn) => {
            toggleIn(this.view.hiddenGroups, g, isOn);
            this.refresh({});
          },
        ),
      ),
    );
  }

  addGroup(host, name, panels) {
    const grid = el("div", { className: "charts" });
    for (const panel of panels) {
      const plot = el("div", { className: "plot" });
      const entry = { panel, plot, dirty: true, hiddenKeys: new Set() };
      plot.entry = entry;
      this.entries.push(entry);
      grid.append(
        el(
          "div",
          { className: "card chart" },
          el("h3", { textContent: panel.title }),
          this.keyLegend(entry),
          plot,
        ),
      );
      this.observer.observe(plot);
    }
    if (name !== "Other metrics")
      return host.append(el("h3", { className: "group-title", textContent: name }), grid);
    host.append(el("details", {}, el("summary", { textContent: `Other metrics (${panels.length})` }), grid));
  }

  /* Several runs times several keys are too many lines: comparisons start with the first key. */
  keyLegend(entry) {
    const keys = Object.entries(entry.panel.keys);
    const isOne = this.groups.length === 1;
    if (!isOne) keys.slice(1).forEach(([key]) => entry.hiddenKeys.add(key));
    if (keys.length < 2) return el("div", { className: "keys" });
    return el(
      "div",
      { className: "keys" },
      ...keys.map(([key, label], k) =>
        legendButton(
          lineSample(isOne ? `var(--c${k % 8})` : "var(--soft)", isOne ? "solid" : DASHES[k % DASHES.length]),
          label,
          !entry.hiddenKeys.has(key),
          (isOn) => {
            toggleIn(entry.hiddenKeys, key, isOn);
            entry.dirty = true;
            this.draw(entry);
          },
        ),
      ),
    );
  }

  draw(entry) {
    if (!entry.dirty) return;
    entry.dirty = false;
    const traces = panelTraces(entry.panel, this.groups, this.view, entry.hiddenKeys);
    const layout = fitShare(entry.panel, panelLayout(entry.panel, this.groups, this.view), traces);
    Plotly.react(entry.plot, traces, layout, PLOT_CONFIG);
  }

  refresh(view) {
    this.view = { ...this.view, ...view };
    for (const entry of this.entries) {
      entry.dirty = true;
      this.observer.unobserve(entry.plot);
      this.observer.observe(entry.plot);
    }
  }
}
