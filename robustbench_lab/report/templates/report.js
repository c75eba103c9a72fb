"use strict";
(() => {
  // A closed contents list on a phone; what a link points at, or a printer prints, is opened first.
  if (matchMedia("(max-width: 67.99rem)").matches) document.querySelector(".contents").open = false;
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const own = target.querySelector(":scope > details");
    if (own) own.open = true;
    for (let box = target.closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  addEventListener("click", (event) => { // a link to where the page is already changes no hash
    if (event.target.closest?.("a[href^='#']")?.hash === location.hash) reveal();
  });
  if (location.hash) reveal();
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("main details:not([open])")];
    for (const box of opened) box.open = true;
  });
  addEventListener("afterprint", () => { for (const box of opened) box.open = false; });

  const table = document.getElementById("record-table");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const text = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const search = document.getElementById("record-search");
  const selects = [...document.querySelectorAll("#record-controls select")];
  const count = document.getElementById("record-count");

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = selects.filter((select) => select.value).map((select) => [Number(select.dataset.column), select.value]);
    let shown = 0;
    for (const row of rows) {
      const fits = words.every((word) => text.get(row).includes(word))
        && chosen.every(([column, value]) => row.cells[column].textContent === value);
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  search.addEventListener("input", filter);
  for (const select of selects) select.addEventListener("change", filter);
  document.getElementById("record-clear").addEventListener("click", () => {
    search.value = "";
    for (const select of selects) select.value = "";
    filter();
    search.focus();
  });

  const number = (cell) => parseFloat(cell.textContent.replaceAll(",", "").replace("\u2212", "-"));
  const words = new Intl.Collator("en", { numeric: true });
  const sort = (head, column, direction) => {
    const isNumber = head.classList.contains("number");
    const keyed = rows.map((row, index) => {
      const key = isNumber ? number(row.cells[column]) : row.cells[column].textContent;
      return { row, index, key, missing: isNumber ? Number.isNaN(key) : key === "\u2013" };
    });
    keyed.sort((a, b) => a.missing - b.missing // what is missing stays at the end
      || (a.missing ? 0 : direction * (isNumber ? a.key - b.key : words.compare(a.key, b.key)))
      || a.index - b.index);
    body.append(...keyed.map((entry) => entry.row));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (head.classList.contains("plain")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent.trim();
    head.replaceChildren(button);
    button.addEventListener("click", () => sort(head, column, head.getAttribute("aria-sort") === "ascending" ? -1 : 1));
  });
  document.getElementById("record-controls").hidden = false;
})();
