"use strict";
/* The rollout browser: filters, order, list, one attempt in full. Needs attempt.js. */

const PAGE = 100;

const ORDERS = {
  newest: ["last step first", (a, b) => b.step - a.step],
  oldest: ["first step first", (a, b) => a.step - b.step],
  reward: ["lowest reward first", (a, b) => a.rollout.reward - b.rollout.reward],
  best: ["highest reward first", (a, b) => b.rollout.reward - a.rollout.reward],
  longest: ["longest first", (a, b) => b.rollout.completion_tokens - a.rollout.completion_tokens],
  task: ["by task", (a, b) => a.task.localeCompare(b.task) || a.step - b.step],
};

/* Every shown rollout of a run with its group and its key, in file order. */
function flatRollouts(run, runIndex) {
  return run.groups.flatMap((group) =>
    group.rollouts.map((rollout) => ({
      run: runIndex,
      step: group.step,
      split: group.split,
      task: group.task,
      index: rollout.index,
      group,
      rollout,
    })),
  );
}

class RolloutSection {
  constructor(data) {
    this.host = section("rollouts", "Rollouts");
    this.note = this.host.appendChild(el("p", { className: "soft small" }));
    this.browser = data.runs.some((run) => run.num_rollouts) ? new RolloutBrowser(this.host) : null;
    this.update(data);
    if (!this.browser) return;
    const follow = (scroll) => {
      const wanted = attemptOfHash(location.hash, this.browser.runs);
      if (wanted) this.browser.open(wanted, scroll);
    };
    this.browser.startAt(attemptOfHash(location.hash, data.runs));
    window.addEventListener("hashchange", () => follow(true));
  }

  update(data) {
    const all = data.runs.reduce((sum, run) => sum + run.num_rollouts, 0);
    const shown = data.runs.reduce(
      (sum, run) => sum + run.groups.reduce((n, group) => n + group.rollouts.length, 0),
      0,
    );
    this.note.textContent = !all
      ? "This run recorded no rollouts."
      : shown < all
        ? `${number(shown)} of ${number(all)} rollouts, spread evenly over the run to keep this page small; rollouts.jsonl.gz has all of them.`
        : "";
    if (this.browser) this.browser.update(data.runs);
  }

  open(item) {
    this.browser.open(item, true);
  }

  redraw() {}
}

class RolloutBrowser {
  constructor(host) {
    this.runs = [];
    this.items = [];
    this.current = null;
    this.isMade = false;
    this.list = el("div", { className: "card list", onkeydown: (event) => this.step(event) });
    this.detail = el("div");
    this.count = el("span", { className: "soft small" });
    host.append(this.controls(), el("div", { className: "browser" }, this.list, this.detail));
  }

  controls() {
    const onchange = () => this.filter();
    const select = (ariaLabel) => el("select", { ariaLabel, onchange });
    const bound = (ariaLabel) => el("input", { type: "number", ariaLabel, onchange });
    this.fields = {
      run: select("run"),
      task: select("task"),
      outcome: select("outcome"),
      split: select("split"),
      from: bound("first step"),
      to: bound("last step"),
      text: el("input", {
        type: "search",
        placeholder: "text in completion or feedback",
        oninput: onchange,
        ariaLabel: "text",
      }),
      credit: el("input", { type: "checkbox", onchange }),
      order: select("order"),
    };
    const fields = this.fields;
    fillOptions(
      fields.order,
      Object.entries(ORDERS).map(([value, [text]]) => [value, text]),
    );
    const save = () => download("rollouts.csv", csv(this.table()));
    return el(
      "div",
      { className: "controls" },
      fields.run,
      fields.task,
      fields.outcome,
      fields.split,
      el("label", {}, "steps", fields.from, "to", fields.to),
      fields.text,
      el("label", {}, fields.credit, "with token credit"),
      el("label", {}, "sorted", fields.order),
      el("button", {
        type: "button",
        textContent: "CSV",
        title: "Save the attempts of the list",
        onclick: save,
      }),
      this.count,
    );
  }

  /* Newer data: filters and the attempt that is read stay as they are. */
  update(runs) {
    this.runs = runs;
    this.items = runs.flatMap(flatRollouts);
    this.credited = new Set(
      runs.flatMap((run, i) => run.credit.map((row) => attemptKey({ ...row, run: i }))),
    );
    const { run, task, outcome, split } = this.fields;
    const unique = (values) => [...new Set(values)].sort();
    const choices = (all, values) => [
      ["", all],
      ...values.map((value) => [value, value.replaceAll("_", " ")]),
    ];
    const categories = unique(this.items.map((item) => item.rollout.category || ""));
    fillOptions(run, [["", "every run"], ...runs.map((one, i) => [i, one.name])]);
    fillOptions(task, [
      ["", "every task"],
      ...unique(this.items.map((item) => item.task)).map((name) => [name, name]),
    ]);
    fillOptions(
      outcome,
      choices("every outcome", [
        "solved",
        "failed",
        ...categories.filter((name) => name && name !== "solved" && name !== "accepted"),
      ]),
    );
    fillOptions(split, choices("every split", unique(this.items.map((item) => item.split))));
    run.hidden = runs.length === 1;
    this.bounds();
    const place = this.list.scrollTop;
    this.filter();
    this.list.scrollTop = place;
  }

  /* The range of steps; an end that stood at its limit moves with it. */
  bounds() {
    const steps = this.items.map((item) => item.step);
    const [low, high] = [
      steps.reduce((a, b) => Math.min(a, b), Infinity),
      steps.reduce((a, b) => Math.max(a, b), 0),
    ];
    for (const [field, limit, value] of [
      [this.fields.from, "min", low],
      [this.fields.to, "max", high],
    ]) {
      if (field.value === "" || field.value === field[limit]) field.value = value;
    }
    for (const field of [this.fields.from, this.fields.to]) Object.assign(field, { min: low, max: high });
  }

  filter() {
    const { run, task, outcome, split, from, to, text, credit, order } = this.fields;
    const needle = text.value.toLowerCase();
    const isOutcome = (rollout) =>
      !outcome.value ||
      (outcome.value === "solved"
        ? rollout.solved
        : outcome.value === "failed"
          ? !rollout.solved
          : rollout.category === outcome.value);
    this.found = this.items
      .filter(
        (item) =>
          (!run.value || Number(run.value) === item.run) &&
          (!task.value || item.task === task.value) &&
          (!split.value || item.split === split.value) &&
          item.step >= Number(from.value) &&
          item.step <= Number(to.value) &&
          isOutcome(item.rollout) &&
          (!needle ||
            `${item.rollout.text}\n${item.rollout.feedback || ""}`.toLowerCase().includes(needle)) &&
          (!credit.checked || this.credited.has(attemptKey(item))),
      )
      .sort(ORDERS[order.value][1]);
    this.count.textContent = `${this.found.length} of ${this.items.length} attempts`;
    const shown = Math.max(PAGE, this.list.querySelectorAll("button.item").length);
    this.list.replaceChildren();
    this.extend(this.isMade ? shown : PAGE);
    this.isMade = true;
  }

  extend(count) {
    const start = this.list.querySelectorAll("button.item").length;
    this.list.querySelectorAll(".more").forEach((node) => node.remove());
    const end = start + count;
    for (const item of this.found.slice(start, end)) this.list.append(this.entry(item));
    if (this.found.length > end)
      this.list.append(
        el(
          "div",
          { className: "more" },
          el("button", {
            textContent: `Show ${Math.min(PAGE, this.found.length - end)} more`,
            onclick: () => this.extend(PAGE),
          }),
        ),
      );
    if (!this.found.length)
      this.list.append(
        el("div", { className: "more soft", textContent: "No attempt matches these filters." }),
      );
  }

  entry(item) {
    const { group, rollout } = item;
    const run = this.runs.length > 1 ? `${this.runs[item.run].name}, ` : "";
    const isCurrent = this.current !== null && attemptKey(this.current) === attemptKey(item);
    const node = el(
      "button",
      { className: "item", onclick: () => this.show(item), ariaCurrent: String(isCurrent) },
      el("span", { className: "first", textContent: `${group.task} #${rollout.index}` }),
      verdictBadge(rollout),
      el("span", {
        className: "second",
        textContent: `${run}step ${group.step} ${group.split}, reward ${number(rollout.reward)}, ${rollout.completion_tokens} tokens`,
      }),
    );
    node.item = item;
    return node;
  }

  /* Show an attempt and put its address into the browser's address line. */
  show(item) {
    this.display(item);
    history.replaceState(null, "", attemptHash(item, this.runs));
  }

  display(item) {
    this.current = item;
    for (const node of this.list.querySelectorAll("button.item"))
      node.setAttribute("aria-current", String(attemptKey(node.item) === attemptKey(item)));
    this.detail.replaceChildren(rolloutDetail(item, this));
  }

  /* The attempt with this key, whatever the filters say. */
  open(wanted, scroll = false) {
    const item = this.items.find((one) => attemptKey(one) === attemptKey(wanted));
    if (item) this.show(item);
    else this.detail.replaceChildren(missing(wanted));
    if (scroll) this.detail.scrollIntoView({ block: "start" });
  }

  /* At the start: the attempt of the address, or one that says more about the method than the first of the file: failed,
     with feedback and a teacher. */
  startAt(wanted) {
    if (wanted) return this.open(wanted, true);
    const first =
      this.found.find(({ rollout }) => !rollout.solved && rollout.feedback && rollout.teacher !== null) ||
      this.found[0];
    if (first) this.display(first);
  }

  /* All attempts at a task in the order of the steps. */
  follow(item) {
    this.fields.task.value = item.task;
    this.fields.order.value = "oldest";
    this.filter();
  }

  /* Arrow keys, or j and k, go through the list. */
  step(event) {
    const by = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const nodes = [...this.list.querySelectorAll("button.item")];
    const next = nodes[nodes.indexOf(document.activeElement) + by];
    if (!next) return;
    next.focus();
    this.show(next.item);
  }

  table() {
    const heads = ["run", "step", "split", "task", "index", "category", "solved", "reward"];
    const rows = this.found.map(({ run, step, split, task, index, rollout }) => [
      ...[this.runs[run].name, step, split, task, index, rollout.category, rollout.solved, rollout.reward],
      ...[rollout.completion_tokens, rollout.feedback, rollout.text],
    ]);
    return [[...heads, "completion_tokens", "feedback", "text"], ...rows];
  }
}

function missing({ step, split, task, index }) {
  return el("p", {
    className: "card soft",
    textContent: `Attempt ${index} at ${task} (step ${step}, ${split}) is not on this page; look for it with sdpo rollouts.`,
  });
}
