"use strict";
(() => {
  const root = document.documentElement;
  document.getElementById("mode").addEventListener("click", () => {
    const dark = root.dataset.mode ? root.dataset.mode === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.mode = dark ? "light" : "dark";
  });
  const value = (row, at) => {
    const cell = row.cells[at];
    const told = cell.dataset.value ?? cell.textContent.trim();
    return told !== "" && !Number.isNaN(Number(told)) ? Number(told) : told;
  };
  const order = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b
      : typeof a === "number" ? -1 : typeof b === "number" ? 1 : a.localeCompare(b);
  for (const table of document.querySelectorAll("table")) {
    const body = table.tBodies[0];
    table.querySelectorAll("th button").forEach((button) => {
      button.addEventListener("click", () => {
        const head = button.parentElement;
        const down = head.getAttribute("aria-sort") !== "descending";
        table.querySelectorAll("th").forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const at = head.cellIndex;
        [...body.rows]
          .sort((a, b) => order(value(a, at), value(b, at)) * (down ? -1 : 1))
          .forEach((row) => body.append(row));
      });
    });
  }
  for (const table of document.querySelectorAll("table")) {
    const rows = [...table.tBodies[0].rows];
    const heads = [...table.tHead.rows[0].cells].map((each) => each.textContent.trim());
    const box = document.querySelector(`input[data-filters="${table.id}"]`);
    const lists = [...document.querySelectorAll(`select[data-chooses="${table.id}"]`)];
    const apply = () => {
      const words = box ? box.value.toLowerCase().split(/\s+/).filter(Boolean) : [];
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        const chosen = lists.every((list) =>
          !list.value || row.cells[heads.indexOf(list.dataset.column)].textContent.trim() === list.value);
        row.hidden = !(chosen && words.every((word) => text.includes(word)));
      }
    };
    for (const list of lists) {
      const at = heads.indexOf(list.dataset.column);
      const values = [...new Set(rows.map((row) => row.cells[at].textContent.trim()))].sort();
      for (const value of values) list.append(new Option(value, value));
    }
    for (const each of [box, ...lists]) if (each) each.addEventListener("input", apply);
  }
})();
