"use strict";

const tip = document.getElementById("tip");

function showTip(text, event) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const right = event.clientX + 16 + box.width > innerWidth;
  const below = event.clientY + 20 + box.height > innerHeight;
  tip.style.left = `${Math.max(4, right ? event.clientX - box.width - 12 : event.clientX + 16)}px`;
  tip.style.top = `${below ? event.clientY - box.height - 12 : event.clientY + 20}px`;
}

function hideTip() {
  tip.hidden = true;
}

function tokenText(token) {
  const { s, t } = token.dataset;
  const share = (logprob) => `${(100 * Math.exp(logprob)).toPrecision(3)} %`;
  const line = (who, value) =>
    value === undefined ? `${who}  unknown` : `${who}  ${Number(value).toFixed(3)} nats  ${share(value)}`;
  const lines = [line("teacher", t), line("student", s)];
  if (s !== undefined && t !== undefined) {
    const gap = t - s;
    lines.push(`teacher minus student  ${gap < 0 ? "−" : "+"}${Math.abs(gap).toFixed(3)}`);
  }
  return lines.join("\n");
}

function nearest(places, x) {
  return places.reduce((best, place) => (Math.abs(place[0] - x) < Math.abs(best[0] - x) ? place : best));
}

function readChart(figure) {
  const { steps, lines } = JSON.parse(figure.dataset.chart);
  const drawing = figure.querySelector(":scope > svg");
  const cursor = figure.querySelector(".cursor");
  const values = [...figure.querySelectorAll("[data-line]")];
  const last = values.map((value) => value.textContent);

  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const [x, step] = nearest(steps, ((event.clientX - box.left) / box.width) * 420);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const read = lines.map((line) => line.find((point) => point[0] === x)?.[1] ?? "–");
    values.forEach((value, index) => { value.textContent = read[index]; });
    showTip(`step ${step}`, event);
  });
  drawing.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    values.forEach((value, index) => { value.textContent = last[index]; });
    hideTip();
  });
}

function press(button) {
  for (const other of button.parentElement.children) {
    other.setAttribute("aria-pressed", String(other === button));
  }
}

document.querySelectorAll(".chart").forEach(readChart);

document.querySelectorAll(".tokens").forEach((tokens) => {
  tokens.addEventListener("pointermove", (event) => {
    if (event.target.matches(".t")) showTip(tokenText(event.target), event);
    else hideTip();
  });
  tokens.addEventListener("pointerleave", hideTip);
});

document.querySelectorAll("[data-filter]").forEach((button) => {
  button.addEventListener("click", () => {
    press(button);
    document.querySelectorAll(".rollout").forEach((rollout) => {
      const wanted = button.dataset.filter;
      rollout.hidden = wanted !== "" && rollout.dataset.status !== wanted;
    });
  });
});

document.querySelectorAll("[data-show]").forEach((button) => {
  button.addEventListener("click", () => {
    press(button);
    button.closest(".rollout").querySelectorAll("[data-view]").forEach((part) => {
      part.hidden = part.dataset.view !== button.dataset.show;
    });
  });
});
