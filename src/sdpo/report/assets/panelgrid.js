"use strict";
/* The section of curves: its controls, the legend of the runs and a card per panel. Needs charts.js and verdicts.js. */

/* A curve's numbers: a row per run and step. */
function panelTable(panel, groups) {
  const keys = Object.keys(panel.keys);
  const rows = [["run", "step", ...keys]];
  for (const { runs } of groups)
    for (const run of runs)
      run.metrics.step.forEach((step, i) => {
        const values = keys.map((key) => (run.metrics[key] ? run.metrics[key][i] : null));
        if (values.some((value) => value !== null)) rows.push([run.name, step, ...values]);
      });
  return rows;
}

/* Every metric of every run. */
function metricsTable(groups) {
  const runs = groups.flatMap((group) => group.runs);
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))].filter(
    (name) => name !== "step",
  );
  const keys = Object.fromEntries(names.sort().map((name) => [name, name]));
  return panelTable({ keys }, groups);
}

class CurveSection {
  constructor(data) {
    this.groups = groupsOf(data);
    this.cards = new Map();
    const longest = Math.max(...data.runs.map((run) => run.metrics.step.length));
    this.view = { axis: "step", window: smoothing(longest), hiddenGroups: new Set() };
    this.host = section("curves", "Curves", this.note());
    this.host.append(this.controls(longest));
    if (this.groups.length > 1) this.host.append(this.groupLegend());
    this.verdicts = new VerdictChart(data, this.view);
    this.grids = new Map();
    this.update(data);
  }

  note() {
    return this.groups.some((group) => group.runs.length > 1)
      ? "Lines are means over seeds, bands their 90% interval (Student's t). Dashed verticals: a canary fired."
      : "Thin lines are single steps, thick ones a centred moving mean with the 90% interval of that mean. Dashed verticals: a canary fired.";
  }

  controls(longest) {
    const label = el("span", { textContent: plural(this.view.window, "step") });
    const slider = el("input", {
      type: "range",
      min: 1,
      max: Math.max(3, 2 * Math.floor(longest / 6) + 1),
      step: 2,
      value: this.view.window,
      ariaLabel: "smoothing",
      oninput: () => {
        this.view.window = Number(slider.value);
        label.textContent = plural(this.view.window, "step");
        this.redraw();
      },
    });
    const axis = el(
      "select",
      {
        ariaLabel: "horizontal axis",
        onchange: () => {
          this.view.axis = axis.value;
          this.redraw();
        },
      },
      ...Object.entries(AXES).map(([value, text]) => el("option", { value, textContent: text })),
    );
    const save = () => download("metrics.csv", csv(metricsTable(this.groups)));
    return el(
      "div",
      { className: "controls" },
      el("label", {}, "Smoothing", slider, label),
      el("label", {}, "Against", axis),
      el("button", { type: "button", textContent: "All metrics as CSV", onclick: save }),
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
            this.redraw();
          },
        ),
      ),
    );
  }

  /* New numbers into the cards that stand; new panels and new curves get new cards. */
  update(data) {
    this.groups = groupsOf(data);
    this.verdicts.update(data);
    for (const panel of panelsOf(data)) {
      const known = this.cards.get(panel.title);
      if (known && samePanel(known.panel, panel)) continue;
      const card = this.card(panel, known ? known.hiddenKeys : null);
      if (known) known.chart.node.replaceWith(card.chart.node);
      else this.grid(panel.group).append(card.chart.node);
      this.cards.set(panel.title, card);
    }
    this.redraw();
  }

  grid(name) {
    if (this.grids.has(name)) return this.grids.get(name);
    const grid = el("div", { className: "charts" });
    if (name === "Other metrics")
      this.host.append(el("details", {}, el("summary", { textContent: "Other metrics" }), grid));
    else this.host.append(el("h3", { className: "group-title", textContent: name }), grid);
    if (!this.grids.size) this.host.append(this.verdicts.chart.node);
    this.grids.set(name, grid);
    return grid;
  }

  card(panel, hidden) {
    const hiddenKeys = hidden || new Set(this.groups.length === 1 ? [] : Object.keys(panel.keys).slice(1));
    const entry = { panel, hiddenKeys };
    entry.chart = new ChartCard({
      title: panel.title,
      meaning: panel.meaning,
      controls: [this.keyLegend(entry)],
      table: () => panelTable(panel, this.groups),
      figure: () => {
        const traces = panelTraces(panel, this.groups, this.view, hiddenKeys);
        const layout = wholeTicks(panelLayout(panel, this.groups, this.view), traces, this.view);
        return { traces, layout: fitShare(panel, layout, traces) };
      },
    });
    return entry;
  }

  /* Several runs times several keys are too many lines: comparisons start with the first key. */
  keyLegend({ panel, hiddenKeys }) {
    const keys = Object.entries(panel.keys);
    const isOne = this.groups.length === 1;
    if (keys.length < 2) return el("div", { className: "keys" });
    return el(
      "div",
      { className: "keys" },
      ...keys.map(([key, label], k) =>
        legendButton(
          lineSample(isOne ? `var(--c${k % 8})` : "var(--soft)", isOne ? "solid" : DASHES[k % DASHES.length]),
          label,
          !hiddenKeys.has(key),
          (isOn) => {
            toggleIn(hiddenKeys, key, isOn);
            this.cards.get(panel.title).chart.redraw();
          },
        ),
      ),
    );
  }

  redraw() {
    this.verdicts.redraw();
    for (const { chart } of this.cards.values()) chart.redraw();
  }
}

function samePanel(one, other) {
  const look = ({ keys, bounds }) => JSON.stringify([keys, bounds]);
  return look(one) === look(other);
}

/* Steps that are averaged at the start: none in a short run, a twentieth of a long one. */
function smoothing(longest) {
  return Math.max(1, 2 * Math.floor(longest / 40) + 1);
}
