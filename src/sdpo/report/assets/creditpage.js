"use strict";
/* The standalone page of one attempt. Needs util.js and credit.js. */

function creditPage() {
  const row = JSON.parse(document.getElementById("data").textContent);
  document.querySelector("header button").addEventListener(
    "click",
    startTheme(() => {}),
  );
  const page = document.getElementById("page");
  const verdict = row.solved === null ? "" : row.solved ? "solved" : "not solved";
  if (row.feedback || verdict) {
    page.append(el("h3", { textContent: verdict ? `Verdict: ${verdict}` : "Feedback" }));
    if (row.feedback) page.append(el("pre", { className: "text", textContent: row.feedback }));
  }
  page.append(el("div", { className: "card" }, creditView(row)));
  for (const [title, messages] of [
    ["Prompt", row.prompt],
    ["What the teacher reads instead", row.teacher],
  ]) {
    if (messages)
      page.append(
        el(
          "details",
          { open: messages === row.teacher },
          el("summary", { textContent: title }),
          ...messagesView(messages, row.prompt),
        ),
      );
  }
  document.body.dataset.ready = "true";
}

creditPage();
