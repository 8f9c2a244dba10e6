// Headings of tables sort, by a click anywhere in the cell or by the button for the keyboard: one way, the other way, then as written. Without this
// script the tables stay as they were written.
for (const table of document.querySelectorAll("figure.table table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const written = [...body.rows];
  const ruled = written.filter((row) => row.classList.contains("rule"));
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = (cell.dataset.sort ?? cell.textContent).trim();
    const number = Number(text.replace("−", "-"));
    return text !== "" && !Number.isNaN(number) ? number : text;
  };
  // In a column of numbers a cell without one (a dash, nothing, a word) comes last, whichever way is sorted.
  const compare = (x, y, numeric, down) => {
    if (numeric && (typeof x === "number") !== (typeof y === "number")) return typeof x === "number" ? -1 : 1;
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return down ? -order : order;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.replaceChildren(button);
    const numeric = head.classList.contains("num");
    const ways = numeric ? ["descending", "ascending", null] : ["ascending", "descending", null];
    head.addEventListener("click", () => {
      const way = ways[(ways.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (way) head.setAttribute("aria-sort", way);
      const keys = new Map(written.map((row) => [row, key(row, column)]));
      const rows = [...written];
      if (way) rows.sort((a, b) => compare(keys.get(a), keys.get(b), numeric, way === "descending"));
      ruled.forEach((row) => row.classList.toggle("rule", !way));
      body.append(...rows);
    });
  });
}
// On paper nothing can be opened: folds are open while the page is printed.
const folded = [];
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details:not([open])")) {
    folded.push(fold);
    fold.open = true;
  }
});
addEventListener("afterprint", () => folded.splice(0).forEach((fold) => { fold.open = false; }));
