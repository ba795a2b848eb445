"use strict";
/* Puts the page together: from the embedded data, or from the server of a page that follows its runs. Needs every other
   script. */

const POLL_MS = 2000;

function section(id, title, note) {
  const node = el(
    "section",
    { id },
    el("h2", { textContent: title }),
    note ? el("p", { className: "soft small", textContent: note }) : null,
  );
  document.querySelector("main").append(node);
  return node;
}

function groupsOf(data) {
  return data.groups.map((group) => ({ name: group.name, runs: group.runs.map((i) => data.runs[i]) }));
}

/* The page of some data. `show` again with newer data of the same runs changes what is new and leaves the rest: filters,
   zoom, what is open, where the reader is. */
class Page {
  constructor() {
    this.parts = [];
    this.shape = null;
    this.links = [...document.querySelectorAll("nav a")];
  }

  show(data) {
    const shape = JSON.stringify([
      data.waiting,
      data.runs.map((run) => [run.name, run.credit.length > 0, run.num_rollouts > 0]),
      data.discoveries.map(({ name, summary }) => [name, summary.tasks.length]),
    ]);
    if (shape === this.shape) return this.parts.forEach((part) => part.update(data));
    const top = this.shape === null ? null : window.scrollY;
    this.shape = shape;
    document.querySelectorAll("main > section, #loading").forEach((node) => node.remove());
    this.parts = data.waiting ? [new Waiting()] : this.build(data);
    for (const link of this.links) link.hidden = !document.querySelector(link.getAttribute("href"));
    if (top !== null) window.scrollTo(0, top);
  }

  build(data) {
    const parts = data.discoveries.length ? [new DiscoverySection(data)] : [];
    if (!data.runs.length) return parts;
    parts.push(new Overview(data), new CurveSection(data));
    const isCredited = data.runs.some((run) => run.credit.length);
    const credits = isCredited ? new CreditSection(data) : null;
    const rollouts = new RolloutSection(data);
    if (credits) credits.open = (item) => rollouts.open(item);
    return [...parts, credits, rollouts, new CostSection(data), new ConfigSection(data)].filter(Boolean);
  }

  redraw() {
    this.parts.forEach((part) => part.redraw());
  }
}

class Waiting {
  constructor() {
    section("overview", "Overview").append(
      el("p", {
        className: "card soft",
        textContent:
          "No step is done yet: the first row comes after the evaluation of the initial weights. This page fills itself.",
      }),
    );
  }

  update() {}

  redraw() {}
}

/* Asks the server for newer data for as long as the page is open. */
async function follow(page) {
  const state = document.querySelector("#live");
  const say = (text, isOn) => {
    state.textContent = text;
    state.className = isOn ? "soft small on" : "soft small";
  };
  let version = "";
  let shown = "";
  for (;;) {
    const answer = version && document.hidden ? null : await ask(version);
    if (answer === undefined) say("the server has ended", false);
    else if (answer && answer.status === 500) say((await answer.json()).error, false);
    else if (answer) {
      if (answer.status === 200) {
        const data = await answer.json();
        page.show(data);
        version = answer.headers.get("ETag");
        shown = liveText(data);
        document.body.dataset.version = version;
        document.body.dataset.ready = "true";
      }
      say(shown, true);
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}

/* The server's answer; undefined when there is none. */
async function ask(version) {
  try {
    return await fetch("data", { headers: version ? { "If-None-Match": version } : {}, cache: "no-store" });
  } catch {
    return undefined;
  }
}

function liveText(data) {
  const steps = data.runs.map((run) => Math.max(...run.metrics.step));
  const time = new Date().toLocaleTimeString();
  if (data.waiting) return "live, waiting for the first step";
  if (steps.length !== 1) return `live, ${time}`;
  const planned = data.runs[0].config.steps;
  return `live, step ${steps[0]}${planned ? ` of ${planned}` : ""}, ${time}`;
}

async function start() {
  const page = new Page();
  const toggle = startTheme(() => page.redraw());
  const library = el("script", {
    nonce: document.querySelector("script[nonce]").nonce,
    textContent: await unpack("plotly"),
  });
  document.head.append(library);
  document.querySelector("nav button").addEventListener("click", toggle);
  if (document.body.dataset.live) return follow(page);
  page.show(JSON.parse(await unpack("data")));
  document.body.dataset.ready = "true";
}

start().catch((error) => {
  const said =
    typeof DecompressionStream === "undefined"
      ? "This report needs a browser from 2023 or later."
      : `This report could not be shown: ${error.message}`;
  const place = document.querySelector("#loading") || section("failure", "Failure");
  place.textContent = said;
  console.error(error);
});
