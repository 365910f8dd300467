"use strict";
(() => {
  const UNITS = { k: 1e3, M: 1e6, G: 1e9, T: 1e12, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40, min: 60, h: 3600 };
  const NUMBER = /^[×\s]*([+−-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?:\s([A-Za-z]+))?/;

  // A cell's first line as a number, as text, or null where nothing was measured. Small print does not count.
  function value(cell) {
    const text = cell.firstChild ? cell.firstChild.textContent.trim() : "";
    if (text === "" || text === "–") return null;
    const found = NUMBER.exec(text);
    if (!found || cell.tagName === "TH") return text;
    return Number(found[1].replace("−", "-")) * (UNITS[found[2]] ?? 1);
  }

  // Texts with numbers in them: "lora lr 0.002" before "lora lr 0.01".
  const pieces = text => text.split(/(\d*\.?\d+(?:e[+-]?\d+)?)/);
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    const left = pieces(String(a)), right = pieces(String(b));
    for (let i = 0; i < Math.min(left.length, right.length); i++) {
      const by = i % 2 ? Number(left[i]) - Number(right[i]) : left[i].localeCompare(right[i]);
      if (by) return by;
    }
    return left.length - right.length;
  }

  function sort(table, place, ascending) {
    const body = table.tBodies[0];
    const rows = [...body.rows].map(row => [value(row.cells[place]), row]);
    const known = rows.filter(([key]) => key !== null), missing = rows.filter(([key]) => key === null);
    known.sort(([a], [b]) => ascending ? compare(a, b) : compare(b, a));
    body.append(...[...known, ...missing].map(([, row]) => row));
  }

  for (const table of document.querySelectorAll("table")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.title = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const ascending = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sort(table, place, ascending);
      });
    });
  }

  for (const figure of document.querySelectorAll("figure.chart")) {
    const output = figure.querySelector("output"), items = [...figure.querySelectorAll(".legend li")];
    const of = number => [...figure.querySelectorAll(`g[data-series="${number}"]`)];
    const say = event => {
      const mark = event.target.closest?.(".mark");
      if (mark) output.textContent = mark.querySelector("title").textContent;
    };
    figure.addEventListener("pointerover", say);
    figure.addEventListener("click", say);
    output.textContent = "Point at or touch a point for its values; the names below show and hide methods.";
    output.hidden = false;
    const show = (item, shown) => {
      item.firstChild.setAttribute("aria-pressed", shown);
      of(item.dataset.series).forEach(part => part.toggleAttribute("hidden", !shown));
    };
    const light = (item, lit) => {
      figure.classList.toggle("lit", lit);
      items.forEach(other => of(other.dataset.series).forEach(part => part.classList.toggle("dim", lit && other !== item)));
    };
    const add = (item, press) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...item.childNodes);
      button.addEventListener("click", press);
      item.append(button);
    };
    for (const item of items) {
      add(item, () => show(item, item.firstChild.getAttribute("aria-pressed") === "false"));
      show(item, true);
      item.addEventListener("pointerenter", event => event.pointerType === "mouse" && light(item, true));
      item.addEventListener("pointerleave", () => light(item, false));
    }
    for (const [words, shown] of [["all", true], ["none", false]]) {
      const item = document.createElement("li");
      item.append(words);
      add(item, () => items.forEach(other => show(other, shown)));
      figure.querySelector(".legend").append(item);
    }
  }
})();
